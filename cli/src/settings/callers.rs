//! `[limits]` of a coordinator's file: what one caller may take of it.

use kage_coordinator::CallerLimits;
use serde::Deserialize;

/// `[limits]`. The owner's token is not limited; 0 = no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallerSettings {
    /// Wrong tokens from one address that are answered at once.
    pub wrong_tokens_per_minute: Option<u32>,
    /// Calls of one token or agent, on average.
    pub calls_per_second: Option<u32>,
    /// Watches that one token may have open.
    pub watches: Option<u32>,
    /// MiB that wait for the networks of all watchers together.
    pub watch_mib: Option<u64>,
    /// MiB of blobs, contexts and pushes that one token or agent may send in an hour.
    pub upload_mib_per_hour: Option<u64>,
    /// MiB that one project may have in blobs and repositories.
    pub project_mib: Option<u64>,
    /// Sessions of one project that may wait for an agent.
    pub waiting_sessions: Option<u32>,
    /// MiB of each stream of output of one attempt.
    pub output_mib: Option<u64>,
}

impl CallerSettings {
    /// The limits of a coordinator with these.
    #[must_use]
    pub fn limits(self) -> CallerLimits {
        let usual = CallerLimits::default();
        let bytes = |mib: Option<u64>, usual| mib.map_or(usual, |mib| mib.saturating_mul(1 << 20));
        CallerLimits {
            wrong_tokens_per_minute: self.wrong_tokens_per_minute.unwrap_or(usual.wrong_tokens_per_minute),
            calls_per_second: self.calls_per_second.unwrap_or(usual.calls_per_second),
            watches: self.watches.unwrap_or(usual.watches),
            watch_bytes: bytes(self.watch_mib, usual.watch_bytes),
            upload_per_hour: bytes(self.upload_mib_per_hour, usual.upload_per_hour),
            project_bytes: bytes(self.project_mib, usual.project_bytes),
            waiting_sessions: self.waiting_sessions.unwrap_or(usual.waiting_sessions),
            output: bytes(self.output_mib, usual.output),
        }
    }
}
