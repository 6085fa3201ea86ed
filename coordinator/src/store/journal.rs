//! What the present transaction wrote about tasks, in order, until it is known whether it was
//! committed. Tasks that it did not write to are as [`Recent`] knows them, so that most of what
//! a command loads costs no statement.

use std::collections::HashSet;
use std::sync::Arc;

use kage_core::id::TaskId;

use super::recent::{Recent, Written};

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    recent: Arc<Recent>,
    written: Vec<Written>,
    /// Tasks that were written to; also by commands that were taken back.
    touched: HashSet<TaskId>,
}

impl Journal {
    /// Nothing is written yet.
    pub(super) fn new(recent: Arc<Recent>) -> Self {
        Self {
            recent,
            written: Vec::new(),
            touched: HashSet::new(),
        }
    }

    /// Notes what was written.
    pub(super) fn note(&mut self, written: Written) {
        self.touched.insert(written.task());
        self.written.push(written);
    }

    /// How much is noted.
    pub(super) const fn mark(&self) -> usize {
        self.written.len()
    }

    /// What was noted after this mark was not kept.
    pub(super) fn take_back(&mut self, mark: usize) {
        self.written.truncate(mark);
    }

    /// Where to ask about a task; `None` when only the database knows how it is now.
    pub(super) fn recent(&self, task: TaskId) -> Option<&Recent> {
        (!self.touched.contains(&task)).then_some(&*self.recent)
    }

    /// The memory of recent tasks, for facts that never change.
    pub(super) fn ever(&self) -> &Recent {
        &self.recent
    }

    /// It was committed.
    pub(super) fn committed(&mut self) {
        self.touched.clear();
        self.recent.commit(self.written.drain(..));
    }

    /// None of it was stored.
    pub(super) fn broken_off(&mut self) {
        self.touched.clear();
        self.written.clear();
    }

    /// It may be stored or not: nothing that is remembered can be trusted.
    pub(super) fn unknown(&mut self) {
        self.broken_off();
        self.recent.forget_all();
    }
}
