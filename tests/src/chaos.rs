//! Load on a system with faults, recorded by its clients: people who repeat a call until it is
//! answered, watchers that resume from their cursor, scripted agents. `history` checks the record;
//! `faults` has the faults.

pub mod record;

pub mod clients;
pub mod end;
pub mod scripted_agent;

use std::ffi::OsString;
use std::time::Duration;

use crate::cluster::Programs;

/// The coordinator's time limits: short, so that a test reaches them.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    pub heartbeat: Duration,
    /// How long an agent may act without an answer from the coordinator.
    pub lease_ttl: Duration,
    /// An agent that is silent for this long is lost.
    pub lost_after: Duration,
    /// An agent that is disconnected for this long is lost.
    pub grace: Duration,
}

impl Waits {
    /// The workspace's own programs, with a coordinator with these time limits.
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
