//! The agent: the daemon on a worker machine.
//!
//! It connects to a coordinator, takes jobs, runs an adapter (or a verify command) in a
//! workspace of its own, and delivers events and output until they are acknowledged.

//!
//! Modules stand in the order in which they build on each other.

#[cfg(target_os = "linux")]
pub mod passing;
pub mod contain;
pub mod config;
pub mod ports;
mod backoff;
pub mod process;
#[cfg(target_os = "linux")]
pub mod door;
pub mod logins;
pub mod calls;
pub mod adapters;
pub mod gateway;
mod equipment;
pub mod shell_socket;
pub mod identity;
pub mod delivery;
pub mod ground;
mod attempt;
mod control;
mod start;

pub mod decoders;

pub use adapters::port::Registry;
pub use config::{Config, Limits};
pub use equipment::MakeAdapterConfig;
pub use ports::Blocking;
pub use start::{Ports, RunError, contained_at_last, run};
