//! Wake-ups for watchers: of one task, two version numbers per watched task, nothing else; of many,
//! which tasks changed ([`changes`]). A woken watcher reads from the store and the output files at its
//! own pace, so that a slow one holds up nobody.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kage_core::id::TaskId;
use tokio::sync::watch;

pub(crate) mod changes;

use changes::Changes;

/// Counts the changes of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// The version of the rows: events and states.
    pub(crate) rows: u64,
    pub(crate) output: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Topics {
    each: Mutex<BTreeMap<TaskId, watch::Sender<Version>>>,
    /// The changes of rows of all tasks.
    pub(crate) changes: Changes,
}

impl Topics {
    /// Wakes the caller at every change from now on.
    pub(crate) fn subscribe(&self, task: TaskId) -> watch::Receiver<Version> {
        let mut topics = self.lock();
        topics
            .entry(task)
            .or_insert_with(|| watch::Sender::new(Version::default()))
            .subscribe()
    }

    /// Events or states of the task were committed.
    pub(crate) fn rows_changed(&self, task: TaskId) {
        self.bump(task, |version| version.rows += 1);
        self.changes.add(task);
    }

    /// Output of the task became durable.
    pub(crate) fn output_grew(&self, task: TaskId) {
        self.bump(task, |version| version.output += 1);
    }

    /// Anything of any task may have changed.
    pub(crate) fn all_changed(&self) {
        for topic in self.lock().values() {
            topic.send_modify(|version| {
                version.rows += 1;
                version.output += 1;
            });
        }
        self.changes.forget();
    }

    fn bump(&self, task: TaskId, change: impl FnOnce(&mut Version)) {
        if let Entry::Occupied(topic) = self.lock().entry(task) {
            // The lock keeps new subscribers out meanwhile.
            if topic.get().receiver_count() == 0 {
                topic.remove();
            } else {
                topic.get().send_modify(change);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, watch::Sender<Version>>> {
        // A version number cannot be left half-changed by a panic.
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_watchers_and_forgets_tasks_that_nobody_watches() {
        let topics = Topics::default();
        let task = TaskId::from_random(1);
        topics.rows_changed(task);
        assert!(topics.lock().is_empty());
        let mut watcher = topics.subscribe(task);
        assert!(!watcher.has_changed().unwrap());
        topics.rows_changed(task);
        topics.output_grew(task);
        assert_eq!(*watcher.borrow_and_update(), Version { rows: 1, output: 1 });
        drop(watcher);
        topics.rows_changed(task);
        assert!(topics.lock().is_empty());
    }
}
