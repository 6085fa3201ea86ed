//! What the present transaction changed, until it is known whether it was committed: then the feed
//! is told. Tasks that it did not write to are as [`Recent`] knows them, so that most of what
//! a command loads costs no statement.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kage_core::id::TaskId;

use super::change::Change;
use super::feed::Feed;
use super::recent::Recent;

/// Tasks whose number is remembered: more than are worked on at once.
const NUMBERS: usize = 8192;

#[derive(Debug)]
pub(super) struct Journal {
    feed: Arc<Feed>,
    recent: Arc<Recent>,
    changes: Vec<Change>,
    /// Tasks that were written to; also by commands that were taken back.
    touched: HashSet<TaskId>,
    /// The numbers of tasks' rows, which everything of a task is stored by.
    numbers: HashMap<TaskId, i64>,
}

impl Journal {
    /// Nothing is written yet.
    pub(super) fn new(feed: Arc<Feed>, recent: Arc<Recent>) -> Self {
        Self {
            feed,
            recent,
            changes: Vec::new(),
            touched: HashSet::new(),
            numbers: HashMap::new(),
        }
    }

    /// Something of the task is written.
    pub(super) fn touch(&mut self, task: TaskId) {
        self.touched.insert(task);
    }

    /// A command of the transaction is done: this is what it changed.
    pub(super) fn keep(&mut self, changes: Vec<Change>) {
        self.changes.extend(changes);
    }

    /// A command of the transaction was taken back.
    pub(super) fn take_back(&mut self) {
        // It may have been the one that stored a task.
        self.numbers.clear();
    }

    /// Where to ask about a task; `None` when only the database knows how it is now.
    pub(super) fn recent(&self, task: TaskId) -> Option<&Recent> {
        (!self.touched.contains(&task)).then_some(&*self.recent)
    }

    /// The memory of recent tasks, for facts that never change.
    pub(super) fn ever(&self) -> &Recent {
        &self.recent
    }

    /// The number of a task's row, if it is remembered.
    pub(super) fn number(&self, task: TaskId) -> Option<i64> {
        self.numbers.get(&task).copied()
    }

    /// Remembers the number of a task's row.
    pub(super) fn numbered(&mut self, task: TaskId, n: i64) {
        if self.numbers.len() >= NUMBERS {
            self.numbers.clear();
        }
        self.numbers.insert(task, n);
    }

    pub(super) fn gone(&mut self, task: TaskId) {
        self.numbers.remove(&task);
    }

    pub(super) fn committed(&mut self) {
        self.touched.clear();
        self.feed.committed(std::mem::take(&mut self.changes));
    }

    /// None of it was stored.
    pub(super) fn broken_off(&mut self) {
        self.touched.clear();
        self.changes.clear();
        self.numbers.clear();
    }

    /// It may be stored or not.
    pub(super) fn unknown(&mut self) {
        self.broken_off();
        self.feed.unknown();
    }
}
