//! The door: connections, who makes a call, and what each role may call.
//!
//! ```text
//!   connection (TLS, places for strangers) ─▶ web ─▶ auth (identities, access) ─▶ json ─▶ services
//! ```

pub(crate) mod identities;
pub mod access;
pub(crate) mod bodies;
pub(crate) mod lobby;
pub(crate) mod rate;
pub(crate) mod outflow;
pub(crate) mod restraint;
pub(crate) mod json;
pub(crate) mod auth;
pub(crate) mod web;
pub(crate) mod connections;
