//! Which tasks that ended a coordinator does not keep any longer. Decides by ages and sizes;
//! what belongs to a task, and how that goes away, is others' business.

use std::time::Duration;

use crate::id::TaskId;
use crate::time::Timestamp;

/// How much is kept of what ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For how long after its end.
    pub keep: Duration,
    /// How many bytes of output and blobs, all tasks that ended together.
    pub most_bytes: u64,
}

impl Limits {
    /// As a person says it; what they leave out is as usual.
    #[must_use]
    pub fn of(days: Option<u32>, gib: Option<u32>) -> Self {
        let usual = Self::default();
        Self {
            keep: days.map_or(usual.keep, |days| Duration::from_secs(u64::from(days) * 24 * 60 * 60)),
            most_bytes: gib.map_or(usual.most_bytes, |gib| u64::from(gib) << 30),
        }
    }
}

impl Default for Limits {
    /// Ninety days, and 50 GiB.
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(90 * 24 * 60 * 60),
            most_bytes: 50 << 30,
        }
    }
}

/// How long what no row names is kept aside before it is deleted; and how long a coordinator that
/// met its database for the first time puts nothing aside.
pub const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// True when what no row names is more than a few leftovers, so that somebody should look.
#[must_use]
pub const fn is_large(unnamed: usize, of: usize) -> bool {
    unnamed > 3 && unnamed > of / 10
}

/// A task that ended, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub task: TaskId,
    /// When.
    pub at: Timestamp,
    /// Bytes that go when it goes.
    pub bytes: u64,
}

/// The tasks to drop, the one that ended first first: those that are too old, and of the others
/// as many as it takes to be within the limit.
#[must_use]
pub fn too_many(limits: Limits, ended: &[Ended], now: Timestamp) -> Vec<TaskId> {
    let mut oldest: Vec<&Ended> = ended.iter().collect();
    oldest.sort_by_key(|ended| (ended.at, ended.task));
    let mut left = ended.iter().fold(0_u64, |sum, ended| sum.saturating_add(ended.bytes));
    let dropped = oldest.into_iter().take_while(|ended| {
        let goes = now.since(ended.at) > limits.keep || left > limits.most_bytes;
        if goes {
            left = left.saturating_sub(ended.bytes);
        }
        goes
    });
    dropped.map(|ended| ended.task).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_few_leftovers_are_no_large_share() {
        for (unnamed, of, large) in [
            (0, 0, false),
            (3, 3, false),
            (4, 4, true),
            (4, 400, false),
            (41, 400, true),
        ] {
            assert_eq!(is_large(unnamed, of), large, "{unnamed} of {of}");
        }
    }

    proptest! {
        #[test]
        fn what_is_old_goes_and_of_the_rest_no_more_than_it_takes(
            tasks in prop::collection::vec((0..100_u64, 0..50_u64), 0..20),
            keep in 0..100_u64,
            most_bytes in 0..400_u64,
        ) {
            let now = at(100);
            let limits = Limits { keep: Duration::from_secs(keep), most_bytes };
            let ended: Vec<Ended> = (1..)
                .zip(&tasks)
                .map(|(n, (seconds, bytes))| Ended { task: TaskId::from_random(n), at: at(*seconds), bytes: *bytes })
                .collect();
            let dropped = too_many(limits, &ended, now);
            let goes = |ended: &&Ended| dropped.contains(&ended.task);
            let old = |ended: &&Ended| now.since(ended.at) > limits.keep;
            let (gone, kept): (Vec<&Ended>, Vec<&Ended>) = ended.iter().partition(goes);
            prop_assert!(!kept.iter().any(old), "nothing that is too old stays");
            let bytes: u64 = kept.iter().map(|ended| ended.bytes).sum();
            prop_assert!(bytes <= limits.most_bytes, "the limit holds");
            let newest_gone = gone.iter().map(|ended| ended.at).max();
            let oldest_kept = kept.iter().map(|ended| ended.at).min();
            if let (Some(gone), Some(kept)) = (newest_gone, oldest_kept) {
                prop_assert!(gone <= kept, "the oldest go first");
            }
            // Without the last of them it would have been too much.
            let last = dropped.last().and_then(|last| ended.iter().find(|ended| ended.task == *last));
            if let Some(last) = last.filter(|last| !old(last)) {
                prop_assert!(bytes + last.bytes > limits.most_bytes, "no more go than have to");
            }
        }
    }
}
