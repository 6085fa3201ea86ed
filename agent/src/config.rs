//! An agent's configuration: parsed and checked once, before anything is opened.

pub mod slots;

use std::path::PathBuf;
use std::time::Duration;

use kage_core::caches::CacheSettings;
use kage_core::contain::Containment;
use kage_core::deadline::Slack;
use kage_core::network::NetworkSettings;
use kage_core::task::Labels;
use kage_proto::client::Credentials;

use crate::contain::ContainSettings;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where it keeps its id, outbox, mirrors and worktrees. Held by an exclusive lock.
    pub state_dir: PathBuf,
    /// `https://HOST:PORT` of the coordinator, or `http://` on loopback.
    pub coordinator_url: String,
    /// Sent with every request, together with the CA that it trusts. Never logged.
    pub credentials: Credentials,
    /// The name that people see.
    pub name: String,
    /// How many attempts run at once.
    pub slots: u32,
    /// Labels that tasks may require.
    pub labels: Labels,
    pub limits: Limits,
    /// Caches of package managers that attempts get copies of.
    pub caches: CacheSettings,
    /// What of the network programs of sessions and checks have, in boxes that have a network of their own.
    pub network: NetworkSettings,
    /// How programs of sessions and checks are to be kept apart from the machine.
    pub contain: ContainSettings,
    /// How well programs of sessions and checks are kept apart from the machine, as probes found before
    /// the start. Work that demands more is refused.
    pub contained: Containment,
}

/// Bounds of an agent's disk use and of its waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one output stream; later output is read and dropped.
    pub output_cap: u64,
    /// Undelivered output of all attempts together; beyond it the output of programs is not read.
    pub undelivered_output: u64,
    /// Undelivered events of all attempts together, in bytes.
    pub undelivered_events: u32,
    /// Bytes of mirrors, including checkpoints. Beyond it unused mirrors are removed.
    pub mirrors: u64,
    /// Bytes of checkpoints of ended sessions. Beyond it the oldest are removed.
    pub checkpoints: u64,
    /// Bytes of base contexts. Beyond it the least recently used are removed.
    pub contexts: u64,
    /// Bytes of worktrees. Beyond it no work is taken.
    pub worktrees: u64,
    /// How long running attempts may continue after a shutdown was requested.
    pub drain: Duration,
    /// How often it checks whether its certificate needs renewal.
    pub certificate_check: Duration,
    /// How long set-up and verify may take to end after they were told to, and how long to keep
    /// storing the output of a stopped attempt. Programs of sessions and their tools get less.
    pub stop_grace: Duration,
    /// How long committing and sending a session's work may take ([`Slack::finishing`]).
    pub slack: Slack,
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
            slack: Slack::default(),
        }
    }
}
