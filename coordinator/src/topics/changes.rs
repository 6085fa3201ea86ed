//! Which tasks changed, and when: the last changes of all tasks, each task once, at its newest.
//! Whoever watches many tasks asks what changed since it last looked, however long ago that was:
//! a slow one gets each task once, as it is. What was forgotten is told as such.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kage_core::id::TaskId;
use tokio::sync::watch;

/// How many tasks are remembered: whoever comes back after more were changed reads all anew.
const MOST: usize = 20_000;

/// A number of a change; later changes have larger ones, while this process lives.
pub(crate) type Position = u64;

#[derive(Debug)]
pub(crate) struct Changes {
    most: usize,
    log: Mutex<Log>,
    last: watch::Sender<Position>,
}

#[derive(Debug, Default)]
struct Log {
    /// Of the last change.
    last: Position,
    /// Changes up to this one may be forgotten.
    forgotten: Position,
    newest: BTreeMap<Position, TaskId>,
    places: HashMap<TaskId, Position>,
}

impl Default for Changes {
    fn default() -> Self {
        Self::with_most(MOST)
    }
}

impl Changes {
    fn with_most(most: usize) -> Self {
        Self {
            most,
            log: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }

    /// Something of the task was committed.
    pub(super) fn add(&self, task: TaskId) {
        let mut log = self.lock();
        log.last += 1;
        let last = log.last;
        if let Some(before) = log.places.insert(task, last) {
            log.newest.remove(&before);
        }
        log.newest.insert(last, task);
        if log.newest.len() > self.most
            && let Some((oldest, task)) = log.newest.pop_first()
        {
            log.places.remove(&task);
            log.forgotten = oldest;
        }
        drop(log);
        self.last.send_replace(last);
    }

    /// Anything may have changed.
    pub(super) fn forget(&self) {
        let mut log = self.lock();
        log.last += 1;
        let last = log.last;
        (log.forgotten, log.newest, log.places) = (last, BTreeMap::new(), HashMap::new());
        drop(log);
        self.last.send_replace(last);
    }

    /// Wakes the caller at every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Position> {
        self.last.subscribe()
    }

    /// Where the last change is.
    pub(crate) fn position(&self) -> Position {
        self.lock().last
    }

    /// The tasks that changed after a position, the one that changed last at the end, and where
    /// that is. `None` = nobody knows any more.
    pub(crate) fn since(&self, position: Position) -> Option<(Position, Vec<TaskId>)> {
        let log = self.lock();
        let known = log.forgotten <= position && position <= log.last;
        known.then(|| {
            let after = log.newest.range(position + 1..);
            (log.last, after.map(|(_, task)| *task).collect())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // Nothing in between can panic.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u128) -> TaskId {
        TaskId::from_random(n)
    }

    #[test]
    fn a_task_is_told_once_at_its_newest_change() {
        let changes = Changes::default();
        let mut news = changes.subscribe();
        let begin = changes.position();
        for n in [1, 2, 1, 3, 1] {
            changes.add(task(n));
        }
        assert!(news.has_changed().unwrap());
        assert_eq!(*news.borrow_and_update(), 5);
        assert_eq!(changes.since(begin), Some((5, vec![task(2), task(3), task(1)])));
        assert_eq!(changes.since(3), Some((5, vec![task(3), task(1)])));
        assert_eq!(changes.since(5), Some((5, Vec::new())));
        assert_eq!(changes.since(6), None, "it is of another process");
    }

    #[test]
    fn what_is_forgotten_is_told_as_such() {
        let changes = Changes::with_most(2);
        for n in 1..=4 {
            changes.add(task(n));
        }
        assert_eq!(changes.since(1), None);
        assert_eq!(changes.since(2), Some((4, vec![task(3), task(4)])));
        let log = changes.lock();
        assert_eq!((log.newest.len(), log.places.len()), (2, 2));
        drop(log);
        changes.forget();
        assert_eq!(changes.since(4), None);
        assert_eq!(changes.since(5), Some((5, Vec::new())));
        changes.add(task(1));
        assert_eq!(changes.since(5), Some((6, vec![task(1)])));
    }
}
