//! How long the attempts of a session ran, one after the other. Time without a running attempt does
//! not count, as while it waited or while every daemon was dead.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// How long attempts ran: those that worked on the task and those that verified its results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worked {
    /// The total of the ended attempts.
    pub ended: Duration,
    /// Start of the running attempt.
    pub since: Option<Timestamp>,
}

impl Worked {
    /// An attempt begins.
    pub const fn start(&mut self, now: Timestamp) {
        self.since = Some(now);
    }

    /// The attempt ended, and is known to have run until `at`.
    pub fn stop(&mut self, at: Timestamp) {
        if let Some(since) = self.since.take() {
            self.ended = self.ended.saturating_add(at.since(since));
        }
    }

    /// The total, including the running attempt until now.
    #[must_use]
    pub fn until(&self, now: Timestamp) -> Duration {
        let running = self.since.map_or(Duration::ZERO, |since| now.since(since));
        self.ended.saturating_add(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn only_the_time_of_attempts_counts() {
        let seconds = |worked: &Worked, now| worked.until(at(now)).as_secs();
        let mut worked = Worked::default();
        assert_eq!(seconds(&worked, 100), 0);
        worked.start(at(10));
        assert_eq!(seconds(&worked, 13), 3);
        worked.stop(at(14));
        assert_eq!(seconds(&worked, 100), 4, "nobody runs");
        worked.start(at(50));
        assert_eq!(seconds(&worked, 51), 5);
        // The clock was set back: the total never decreases.
        assert_eq!(seconds(&worked, 40), 4);
        worked.stop(at(40));
        worked.stop(at(90));
        assert_eq!(seconds(&worked, 100), 4, "one that ended does not end again");
    }
}
