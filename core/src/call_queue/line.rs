//! Whose turn it is: calls of the task that had least go first, and within a task the one that waited longest. A task
//! that comes later begins where the others are, so that nobody saves up turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::id::{CallId, TaskId};

#[derive(Debug, Default)]
struct Share {
    /// What its calls took, in parts of the account's limits.
    had: u128,
    waiting: VecDeque<CallId>,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    tasks: BTreeMap<TaskId, Share>,
    of: BTreeMap<CallId, TaskId>,
    /// Calls that nobody asks about just now keep their place, and are passed over.
    absent: BTreeSet<CallId>,
    /// What the task of the last turn had before it.
    had: u128,
}

impl Line {
    pub(super) fn join(&mut self, task: TaskId, call: CallId) {
        if self.of.insert(call, task).is_some() {
            return;
        }
        let share = self.tasks.entry(task).or_default();
        if share.waiting.is_empty() {
            share.had = share.had.max(self.had);
        }
        share.waiting.push_back(call);
    }

    pub(super) fn set_present(&mut self, call: CallId, is_present: bool) {
        if is_present {
            self.absent.remove(&call);
        } else if self.of.contains_key(&call) {
            self.absent.insert(call);
        }
    }

    pub(super) fn next(&self) -> Option<CallId> {
        let first = |share: &Share| share.waiting.iter().find(|call| !self.absent.contains(call)).copied();
        let firsts = self
            .tasks
            .values()
            .filter_map(|share| first(share).map(|call| (share.had, call)));
        firsts.min_by_key(|(had, _)| *had).map(|(_, call)| call)
    }

    /// It is its turn, and it takes so much.
    pub(super) fn served(&mut self, call: CallId, amount: u64) {
        if let Some(task) = self.leave(call)
            && let Some(share) = self.tasks.get_mut(&task)
        {
            self.had = self.had.max(share.had);
            share.had += u128::from(amount.max(1));
        }
    }

    pub(super) fn leave(&mut self, call: CallId) -> Option<TaskId> {
        let task = self.of.remove(&call)?;
        self.absent.remove(&call);
        if let Some(share) = self.tasks.get_mut(&task) {
            share.waiting.retain(|waiting| *waiting != call);
        }
        Some(task)
    }

    /// Forgets tasks that have nothing to wait for, and would begin where they are.
    pub(super) fn sweep(&mut self) {
        let had = self.had;
        self.tasks
            .retain(|_, share| !share.waiting.is_empty() || share.had > had);
    }
}
