//! The waits between attempts to connect: they double up to a limit, and half of each is random, so
//! that agents do not come back all at once. The caller decides when a series starts over.

use std::time::Duration;

use crate::ports::Random;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// The first wait of an agent that the coordinator refuses: only a person can change that.
const FIRST_REFUSED: Duration = Duration::from_secs(5);
const LONGEST_REFUSED: Duration = Duration::from_secs(5 * 60);
/// A control session of this length worked, and the waits start over. A Welcome alone says little:
/// the next session may end as soon. An agent whose connection breaks again and again is connected
/// at least as long as it waits.
const STEADY: Duration = LONGEST;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: FIRST,
            longest: LONGEST,
            failures: 0,
        }
    }
}

impl Backoff {
    /// The waits of an agent that gets an answer but is refused.
    const fn of_refused() -> Self {
        Self {
            first: FIRST_REFUSED,
            longest: LONGEST_REFUSED,
            failures: 0,
        }
    }

    pub(crate) fn next(&mut self, random: &Random) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let thousandths = u32::try_from(random() % 1000).unwrap_or(0);
        full / 2 + full / 2 * thousandths / 1000
    }

    /// The connection works again.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionWaits {
    broken: Backoff,
    refused: Backoff,
}

/// Why a control session ended, or did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The connection broke, or could not be made.
    Broken,
    /// Another running agent has this one's identity.
    IdInUse,
}

impl SessionWaits {
    pub(crate) fn new() -> Self {
        Self {
            broken: Backoff::default(),
            refused: Backoff::of_refused(),
        }
    }

    /// The wait after a session that lasted so long since its Welcome; `None`: it got no Welcome.
    pub(crate) fn next(&mut self, end: SessionEnd, lasted: Option<Duration>, random: &Random) -> Duration {
        if lasted.is_some_and(|lasted| lasted >= STEADY) {
            self.broken.reset();
            self.refused.reset();
        }
        match end {
            SessionEnd::Broken => self.broken.next(random),
            SessionEnd::IdInUse => self.refused.next(random),
        }
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

    #[test]
    fn a_welcome_alone_does_not_make_the_waits_begin_anew() {
        let least: Random = Arc::new(|| 0);
        for (end, first, longest) in [
            (SessionEnd::Broken, FIRST / 2, LONGEST / 2),
            (SessionEnd::IdInUse, FIRST_REFUSED / 2, LONGEST_REFUSED / 2),
        ] {
            let mut waits = SessionWaits::new();
            let mut after = |lasted| waits.next(end, lasted, &least);
            let short = Some(STEADY - Duration::from_millis(1));
            let waited: Vec<_> = (0..8).map(|_| after(short)).collect();
            assert!(waited.is_sorted(), "{waited:?}");
            assert_eq!((waited[0], waited[7]), (first, longest));
            assert_eq!(after(None), longest);
            assert_eq!(after(Some(STEADY)), first);
            assert_eq!(after(None), first * 2);
        }
    }
}
