//! The coordinator: it holds the state of every task and places the work.
//!
//! Modules stand in the order in which they build on each other.

pub mod config;
mod telemetry;
pub mod store;
pub mod ports;

mod custody;
mod files;
mod listeners;
mod data_dir;
mod secrets;
mod authority;

mod identities;
mod blobs;
mod topics;
mod output;
mod repositories;
mod quarantine;
mod board;
mod coordinator;
pub mod access;
mod bodies;
mod lobby;
mod auth;
mod cursor;
mod dispatch;
mod doubt;
mod results;
mod retention;
mod view;
mod append;
mod watch;
mod services;
mod http;
mod web;
mod connections;
mod server;
mod start;

pub mod decoders;

pub use authority::AuthorityError;
pub use config::{Config, ConnectionLimits, InvalidConfig, Origin, Timings};
pub use custody::Misfit;
pub use data_dir::DataDirError;
pub use listeners::Process;
pub use ports::{Blocking, Clock, Ports, Random};
pub use start::{RunError, run};
