//! The agent: the daemon on a worker machine.
//!
//! It connects to a coordinator, takes jobs, runs an adapter (or a verify command) in a
//! workspace of its own, and delivers events and output until they are acknowledged.

pub mod adapter;
