//! The control stream: the coordinator's offers and requests, and what the agent may do while it is
//! disconnected.

pub(crate) mod lease;
pub(crate) mod connection;
