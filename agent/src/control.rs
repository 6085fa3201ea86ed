//! The control stream: what the coordinator offers and asks, and what the agent may do while it
//! does not hear from it.

pub(crate) mod lease;
pub(crate) mod connection;
