//! The agent: the daemon on a worker machine.
//!
//! It connects to a coordinator, takes jobs, runs an adapter (or a verify command) in a
//! workspace of its own, and delivers events and output until they are acknowledged.

pub mod adapter;
pub mod adapters;
pub mod config;
pub mod ports;
pub mod process;
pub mod state;
pub mod tools;

mod ledger;
mod mask;
pub mod outbox;
mod output;

pub use config::{Config, Limits, Secret};
pub use ports::{Ports, Registry};

use tokio_util::sync::CancellationToken;

use crate::state::{StateDir, StateError};

/// Why an agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its state directory cannot be used.
    #[error("cannot use the state directory")]
    State(#[source] StateError),
}

/// Runs an agent until `shutdown` is cancelled and what it ran is finished or handed back.
///
/// # Errors
/// When it cannot start. Losing the coordinator is no error: it connects again, forever.
pub async fn run(config: Config, ports: Ports, shutdown: CancellationToken) -> Result<(), RunError> {
    let state = StateDir::open(&config.state_dir, &ports.random).map_err(RunError::State)?;
    tracing::info!(agent = %state.agent(), name = %config.name, "agent started");
    shutdown.cancelled().await;
    Ok(())
}
