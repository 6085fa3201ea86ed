//! Which ended tasks a coordinator deletes. Decides by ages and sizes; callers know what belongs to
//! a task, and delete it.

use std::time::Duration;

use crate::id::TaskId;
use crate::time::Timestamp;

/// How much data of ended tasks is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long after its end a task is kept.
    pub keep: Duration,
    /// Total bytes of output and blobs of all ended tasks.
    pub most_bytes: u64,
}

impl Limits {
    /// Limits as a person sets them; missing ones have their default.
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

/// How long unreferenced files are kept aside before they are deleted; and how long a coordinator
/// that meets its database for the first time puts nothing aside.
pub const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The bytes that are to stay free on a disk, at the cost of what is kept aside: a twentieth of it, and
/// 2 GiB at most.
#[must_use]
pub const fn room(total: u64) -> u64 {
    let share = total / 20;
    let most = 2 << 30;
    if share < most { share } else { most }
}

/// What goes before its time because too little is `free`, the oldest first: as much of what is kept
/// aside, by the times it was put there and its bytes, as it takes to have `room`.
#[must_use]
pub fn freed_early(free: u64, room: u64, aside: &[(Timestamp, u64)]) -> Vec<Timestamp> {
    let mut oldest = aside.to_vec();
    oldest.sort_unstable();
    let mut free = free;
    let freed = oldest.into_iter().take_while(|(_, bytes)| {
        let goes = free < room;
        if goes {
            free = free.saturating_add(*bytes);
        }
        goes
    });
    freed.map(|(at, _)| at).collect()
}

/// True when the unreferenced files are more than a few leftovers, so that a person should look.
#[must_use]
pub const fn is_large(unnamed: usize, of: usize) -> bool {
    unnamed > 3 && unnamed > of / 10
}

/// An ended task, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The task.
    pub task: TaskId,
    /// When it ended.
    pub at: Timestamp,
    /// Bytes that its deletion frees.
    pub bytes: u64,
}

/// The tasks to delete, earliest end first: those that are too old, and of the others as many as
/// needed to get within the limit.
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

    #[test]
    fn what_is_kept_aside_gives_way_to_a_full_disk_the_oldest_first() {
        assert_eq!((room(100), room(1 << 40)), (5, 2 << 30));
        let aside = [(at(3), 10), (at(1), 10), (at(2), 10)];
        for (free, room, freed) in [
            (50, 50, &[][..]),
            (49, 50, &[at(1)]),
            (40, 50, &[at(1)]),
            (39, 50, &[at(1), at(2)]),
            (0, 50, &[at(1), at(2), at(3)]),
        ] {
            assert_eq!(freed_early(free, room, &aside), freed, "{free}");
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
            // Keeping the last of them would have exceeded the limit.
            let last = dropped.last().and_then(|last| ended.iter().find(|ended| ended.task == *last));
            if let Some(last) = last.filter(|last| !old(last)) {
                prop_assert!(bytes + last.bytes > limits.most_bytes, "no more go than have to");
            }
        }
    }
}
