//! Load on a system that is being broken, written down by those who cause it: clients that
//! repeat a call until it is answered, watchers that go on from their cursor, agents made of
//! calls. What they saw is checked by `history`; what breaks is in `faults`.

pub mod record;

pub mod clients;
pub mod end;
pub mod scripted_agent;

use std::ffi::OsString;
use std::time::Duration;

use crate::cluster::Programs;

/// How long a coordinator waits for what: short, so that a test sees the end of it.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// How often agents say that they are there.
    pub heartbeat: Duration,
    /// How long an agent may act without hearing from the coordinator.
    pub lease_ttl: Duration,
    /// After so long without a word an agent's attempts end.
    pub lost_after: Duration,
    /// After so long without a connection an agent's attempts end.
    pub grace: Duration,
}

impl Waits {
    /// The workspace's own programs, with a coordinator that waits so long.
    #[must_use]
    pub fn programs(self) -> Programs {
        let mut programs = Programs::own();
        for (name, wait) in [
            ("--heartbeat", self.heartbeat),
            ("--lease-ttl", self.lease_ttl),
            ("--lost-after", self.lost_after),
            ("--grace", self.grace),
        ] {
            let seconds = OsString::from(wait.as_secs_f64().to_string());
            programs.coordinator.1.extend([name.into(), seconds]);
        }
        programs
    }
}
