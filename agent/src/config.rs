//! What an agent is told at its start: parsed and checked once, before anything is opened.

pub mod slots;

use std::path::PathBuf;
use std::time::Duration;

use kage_core::task::Labels;
use kage_proto::client::Credentials;

/// How an agent runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it keeps its id, outbox, mirrors and worktrees. Held by an exclusive lock.
    pub state_dir: PathBuf,
    /// `https://HOST:PORT` of the coordinator, or `http://` on loopback.
    pub coordinator_url: String,
    /// What it shows with every request, and whom it trusts. Never logged.
    pub credentials: Credentials,
    /// What people call it.
    pub name: String,
    /// How many attempts run at once.
    pub slots: u32,
    /// What tasks may require.
    pub labels: Labels,
    /// How much it keeps and how long it waits.
    pub limits: Limits,
}

/// Bounds of what an agent keeps and of how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one output stream; what comes after is read and dropped.
    pub output_cap: u64,
    /// Undelivered output of all attempts together; beyond it programs are not read from.
    pub undelivered_output: u64,
    /// Undelivered events of all attempts together, in bytes.
    pub undelivered_events: u32,
    /// Bytes of mirrors, checkpoints included. Beyond it those go that nobody uses.
    pub mirrors: u64,
    /// Bytes of checkpoints of sessions that are over. Beyond it the oldest go.
    pub checkpoints: u64,
    /// Bytes of base contexts. Beyond it those go that were not used for longest.
    pub contexts: u64,
    /// Bytes of worktrees. Beyond it no work is taken.
    pub worktrees: u64,
    /// How long running attempts may go on after a shutdown was asked for.
    pub drain: Duration,
    /// How often it looks whether its certificate is to be renewed.
    pub certificate_check: Duration,
    /// How long set-up and verify have to end after they were told to, and the output of an
    /// attempt that was stopped to be kept. Programs of sessions and their tools get less.
    pub stop_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            output_cap: 256 << 20,
            undelivered_output: 4 << 30,
            undelivered_events: 64 << 20,
            mirrors: 32 << 30,
            checkpoints: 4 << 30,
            contexts: 2 << 30,
            worktrees: 64 << 30,
            drain: Duration::from_secs(60),
            certificate_check: Duration::from_secs(60 * 60),
            stop_grace: Duration::from_secs(15),
        }
    }
}
