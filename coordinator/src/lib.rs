//! The coordinator: it holds the state of every task and places the work.
//!
//! Modules stand in the order in which they build on each other.

pub mod config;
mod telemetry;
pub mod store;
pub mod ports;
mod topics;
mod data;
pub mod backup;
pub mod door;
mod output;
mod board;
mod calls;
mod coordinator;
mod refusals;
mod duties;
mod delivery;
mod watch;
mod services;
mod life;

pub mod decoders;

pub use config::{CallerLimits, Config, ConnectionLimits, InvalidConfig, Origin, Timings};
pub use data::authority::AuthorityError;
pub use data::custody::Misfit;
pub use data::folder::DataDirError;
pub use life::failure::RunError;
pub use life::listeners::Process;
pub use life::start::run;
pub use ports::{Blocking, Clock, OwnAgent, Ports, Random};
