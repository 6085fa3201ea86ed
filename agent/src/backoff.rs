//! The waits between attempts to connect: they double up to a limit, and half of each is
//! drawn at random, so that agents do not come back all at once.

use std::time::Duration;

use crate::ports::Random;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The state of one series of waits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self, random: &Random) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let thousandths = u32::try_from(random() % 1000).unwrap_or(0);
        full / 2 + full / 2 * thousandths / 1000
    }

    /// The connection works again.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let most: Random = Arc::new(|| 999);
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(&most)).collect();
        assert!(waits.is_sorted() && waits[0] < FIRST && waits[7] > LONGEST * 9 / 10 && waits[7] <= LONGEST);
        backoff.reset();
        let least: Random = Arc::new(|| 0);
        assert_eq!(backoff.next(&least), FIRST / 2);
    }
}
