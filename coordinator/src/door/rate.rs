//! How often something may happen, for each of many keys: a bucket for each, which fills with time. Only so
//! many keys are remembered. Synchronous; what is done about a refusal is the caller's.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The most keys whose buckets are remembered. While so many are not full, no other key has its turn.
const MOST_KEYS: usize = 4096;

/// When a key has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Turn {
    Now,
    /// After this time; the turn is taken.
    After(Duration),
    /// Not now, and no turn was taken; another try makes sense after this time.
    Refused(Duration),
}

#[derive(Debug)]
pub(crate) struct Rates<K> {
    /// The time for one turn; zero = no limit.
    gap: Duration,
    /// Turns that were not taken, as time: so many can be taken at once.
    saved: Duration,
    /// How long a turn may be waited for.
    patience: Duration,
    /// When the bucket of a key is full again.
    full_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Rates<K> {
    /// `count` turns in each `period`, `burst` of them at once after a pause. A `count` of 0 = no limit.
    pub(crate) fn new(count: u32, period: Duration, burst: u32, patience: Duration) -> Self {
        let gap = period.checked_div(count).unwrap_or_default();
        Self {
            gap,
            saved: gap.saturating_mul(burst),
            patience,
            full_at: Mutex::default(),
        }
    }

    pub(crate) fn take(&self, key: K, now: Instant) -> Turn {
        if self.gap.is_zero() {
            return Turn::Now;
        }
        // Entries are inserted and removed whole.
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= MOST_KEYS && !full_at.contains_key(&key) {
            full_at.retain(|_, full_at| *full_at > now);
            if full_at.len() >= MOST_KEYS {
                return Turn::Refused(self.gap);
            }
        }
        let full = full_at.get(&key).map_or(now, |at| (*at).max(now)) + self.gap;
        let wait = (full - now).saturating_sub(self.saved);
        if wait > self.patience {
            return Turn::Refused(wait - self.patience);
        }
        full_at.insert(key, full);
        if wait.is_zero() { Turn::Now } else { Turn::After(wait) }
    }

    /// How long a key has no turn; zero = it has one now.
    pub(crate) fn wait(&self, key: &K, now: Instant) -> Duration {
        let full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full = full_at.get(key).map_or(now, |at| (*at).max(now));
        (full - now).saturating_sub(self.saved)
    }

    /// Takes turns that a key had already, whether or not it had as many.
    pub(crate) fn charge(&self, key: K, turns: u32, now: Instant) {
        if self.gap.is_zero() {
            return;
        }
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= MOST_KEYS && !full_at.contains_key(&key) {
            full_at.retain(|_, full_at| *full_at > now);
            if full_at.len() >= MOST_KEYS {
                return;
            }
        }
        let full = full_at.get(&key).map_or(now, |at| (*at).max(now));
        full_at.insert(key, full + self.gap.saturating_mul(turns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_has_a_burst_then_waits_then_is_refused_and_recovers() {
        let rates = Rates::new(1, SECOND, 2, 2 * SECOND);
        let start = Instant::now();
        let taken: Vec<_> = (0..6).map(|_| rates.take("a", start)).collect();
        let expected = [
            Turn::Now,
            Turn::Now,
            Turn::After(SECOND),
            Turn::After(2 * SECOND),
            Turn::Refused(SECOND),
            Turn::Refused(SECOND),
        ];
        assert_eq!(taken, expected);
        // Another key has a bucket of its own.
        assert_eq!(rates.take("b", start), Turn::Now);
        assert_eq!(rates.take("a", start + SECOND), Turn::After(2 * SECOND));
        let later = start + 100 * SECOND;
        assert_eq!([rates.take("a", later), rates.take("a", later)], [Turn::Now, Turn::Now]);
        assert_eq!(rates.take("a", later), Turn::After(SECOND));
    }

    #[test]
    fn what_a_key_had_already_is_waited_for_afterwards() {
        let rates = Rates::new(1, SECOND, 2, Duration::ZERO);
        let start = Instant::now();
        rates.charge("a", 2, start);
        assert_eq!(rates.wait(&"a", start), Duration::ZERO);
        rates.charge("a", 5, start);
        assert_eq!(rates.wait(&"a", start), 5 * SECOND);
        assert_eq!(rates.wait(&"a", start + 4 * SECOND), SECOND);
        assert_eq!(rates.wait(&"b", start), Duration::ZERO);
        let unlimited = Rates::new(0, SECOND, 1, Duration::ZERO);
        unlimited.charge("a", u32::MAX, start);
        assert_eq!(unlimited.wait(&"a", start), Duration::ZERO);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_quiet() {
        let rates = Rates::new(1, SECOND, 1, Duration::ZERO);
        let start = Instant::now();
        for key in 0..MOST_KEYS {
            assert_eq!(rates.take(key, start), Turn::Now);
        }
        assert_eq!(rates.take(MOST_KEYS, start), Turn::Refused(SECOND));
        assert_eq!(rates.take(MOST_KEYS, start + SECOND), Turn::Now);
        assert_eq!(rates.full_at.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_count_of_zero_is_no_limit() {
        let rates = Rates::new(0, SECOND, 1, Duration::ZERO);
        let now = Instant::now();
        assert!((0..10_000).all(|_| rates.take("a", now) == Turn::Now));
    }
}
