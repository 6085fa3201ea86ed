//! A time limit that stands still while the attempt is frozen: a frozen program cannot work, and
//! gets back the time of a disconnect.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Time that is being used up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    until: Instant,
    /// When the clock stopped; `None` while it runs.
    since: Option<Instant>,
}

impl Allowance {
    /// An allowance of this much time.
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            since: None,
        }
    }

    /// True while the clock is stopped.
    pub(crate) const fn is_frozen(&self) -> bool {
        self.since.is_some()
    }

    /// Stops the clock, or lets it continue with the remaining time.
    pub(crate) fn freeze(&mut self, frozen: bool) {
        self.freeze_at(frozen, Instant::now());
    }

    fn freeze_at(&mut self, frozen: bool, now: Instant) {
        match (self.since, frozen) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.until += now - since;
                self.since = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Waits until the time is used up; forever while the clock is stopped. Cancel-safe.
    pub(crate) async fn used_up(&self) {
        match self.since {
            None => sleep_until(self.until).await,
            Some(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn frozen_time_is_given_back() {
        let mut allowance = Allowance::new(HOUR);
        let (start, end) = (allowance.until - HOUR, allowance.until);
        // Repeated calls change nothing.
        for (minutes, frozen, given_back) in [
            (10, true, 0),
            (20, true, 0),
            (30, false, 20),
            (31, false, 20),
            (40, true, 20),
            (45, false, 25),
        ] {
            allowance.freeze_at(frozen, start + minutes * HOUR / 60);
            assert_eq!(allowance.is_frozen(), frozen);
            assert_eq!(allowance.until, end + given_back * HOUR / 60, "{minutes}");
        }
    }

    #[tokio::test]
    async fn nothing_is_used_up_while_frozen() {
        let mut allowance = Allowance::new(Duration::ZERO);
        allowance.freeze(true);
        assert!(timeout(Duration::from_millis(20), allowance.used_up()).await.is_err());
        allowance.freeze(false);
        allowance.used_up().await;
    }
}
