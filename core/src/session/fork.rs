//! A session that goes on from the files of another one of its task: with another adapter or model, and
//! beside it. It has that one's checkpoints up to where it begins, as its own, so that everything that
//! resumes, verifies, compares and lands works as for every session, relative to the task's base.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Session, Setback};
use crate::checkpoint::{Checkpoint, Head, line};
use crate::fallback::Fallback;
use crate::id::{AdapterName, SessionId, SessionName};
use crate::time::Timestamp;

/// From which files a session goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The session that made them.
    pub from: SessionName,
    /// The number that the checkpoint has there.
    pub checkpoint: u32,
    /// The session whose assignment says the context of both.
    pub assignment: SessionName,
    /// The caller that asked for it, as the coordinator knew it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

impl Fork {
    /// One line for people.
    #[must_use]
    pub fn words(&self) -> String {
        let Self {
            from, checkpoint, by, ..
        } = self;
        format!("continued from checkpoint {checkpoint} of {from}, as {by} asked")
    }
}

/// A name for a session of this adapter that no session has: the adapter's, or the first number behind
/// it that is free.
#[must_use]
pub fn fork_name(adapter: &AdapterName, taken: &[SessionName]) -> SessionName {
    let taken: BTreeSet<&str> = taken.iter().map(SessionName::as_str).collect();
    let numbered = (2..).map(|n: u32| format!("{adapter}-{n}"));
    std::iter::once(adapter.to_string())
        .chain(numbered)
        .filter(|name| !taken.contains(name.as_str()))
        .find_map(|name| name.parse().ok())
        .expect("numbers do not end, and a name of an adapter is one of a session")
}

/// Who works on a fork, and who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// Its id.
    pub id: SessionId,
    /// Its name.
    pub name: SessionName,
    /// The adapter that works.
    pub adapter: AdapterName,
    /// `None`: the adapter's default.
    pub model: Option<String>,
    /// Adapters that may take over.
    pub fallbacks: Vec<Fallback>,
    /// The caller that asked for it.
    pub by: String,
}

impl Session {
    /// A session that goes on from a checkpoint of this one, and its checkpoints, oldest first; `all`
    /// are those of this one.
    #[must_use]
    pub fn fork(
        &self,
        at: &Checkpoint,
        all: &[Checkpoint],
        next: Successor,
        now: Timestamp,
    ) -> (Self, Vec<Checkpoint>) {
        let mut fork = Self::new(next.id, self.task, next.name, next.adapter, next.model);
        let oldest_first = line(at, all).into_iter().rev();
        let own: Vec<Checkpoint> = (1..)
            .zip(oldest_first)
            .map(|(number, checkpoint)| Checkpoint {
                session: fork.id,
                number,
                // No attempt and no call of its own.
                attempt: 0,
                calls: 0,
                ..checkpoint.clone()
            })
            .collect();
        fork.fallbacks = next.fallbacks;
        fork.requirements.clone_from(&self.requirements);
        fork.timeout = self.timeout;
        fork.contained = self.contained_so_far();
        fork.checkpoints.taken = own.last().map_or(0, |last| last.number);
        fork.checkpoints.head = own.last().map(Head::of);
        fork.setback = (at.adapter != fork.adapter).then_some(Setback::HandedOver);
        fork.messages = self.messages.for_fork(at.number);
        fork.fork = Some(Fork {
            from: self.name.clone(),
            checkpoint: at.number,
            assignment: self.assignment().clone(),
            by: next.by,
            at: now,
        });
        (fork, own)
    }

    /// The name of the assignment that says its context.
    #[must_use]
    pub fn assignment(&self) -> &SessionName {
        self.fork.as_ref().map_or(&self.name, |fork| &fork.assignment)
    }
}
