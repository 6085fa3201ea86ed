//! Conditions that hold up everything on this agent until they end by themselves, such as a full
//! disk. An event cannot report them, since events go through the disk: the heartbeat does.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The present hindrances. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hindrances(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    counter: u64,
    /// Oldest first.
    present: Vec<(u64, String)>,
}

/// The hindrance lasts until this is dropped.
#[derive(Debug)]
pub(crate) struct Hindrance {
    of: Hindrances,
    number: u64,
}

impl Hindrances {
    /// Starts a hindrance: `what` cannot be done, and is retried.
    pub(crate) fn begin(&self, what: &str, why: impl fmt::Display) -> Hindrance {
        let mut known = self.lock();
        known.counter += 1;
        let number = known.counter;
        known.present.push((number, format!("{what}: {why}")));
        Hindrance {
            of: self.clone(),
            number,
        }
    }

    pub(crate) fn now(&self) -> Option<String> {
        self.lock().present.first().map(|(_, text)| text.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hindrance {
    fn drop(&mut self) {
        self.of.lock().present.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_lasts_is_told() {
        let hindrances = Hindrances::default();
        assert_eq!(hindrances.now(), None);
        let first = hindrances.begin("the outbox cannot be written", "no space");
        let second = hindrances.begin("output cannot be written", "no space");
        assert_eq!(
            hindrances.now().as_deref(),
            Some("the outbox cannot be written: no space")
        );
        drop(first);
        assert_eq!(hindrances.now().as_deref(), Some("output cannot be written: no space"));
        drop(second);
        assert_eq!(hindrances.now(), None);
    }
}
