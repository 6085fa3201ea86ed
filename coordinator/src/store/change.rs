//! What a command changed, as it is told to whoever follows the store: rows in their new form, so
//! that a reader needs no second look into the database. Only what somebody in memory follows is
//! here; requests, contexts, join tokens and checkpoints are read where they are.

use std::io;
use std::sync::Arc;

use kage_core::attempt::Attempt;
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, JobId, ProjectId, TaskId};
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::TaskSpec;
use kage_core::time::Timestamp;
use serde::Serialize;

use super::admission::{Enrolment, PersonToken};
use super::apply::waiting;
use super::command::QueuedJob;
use super::rows::{AttemptNote, JobRow, TaskHead};

/// What a change weighs besides its texts, in bytes.
pub(super) const EACH: usize = 1 << 10;

/// One row that changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// A task that begins; with the size of its spec.
    Created {
        head: Arc<TaskHead>,
        spec: Arc<TaskSpec>,
        size: usize,
    },
    /// A task that changed.
    Task(Arc<TaskHead>),
    /// A task that is gone with everything of it; with its jobs that were not over.
    Dropped { task: TaskId, open: Vec<JobId> },
    /// A session, and where it stood before; `None` = it is new.
    Session {
        session: Arc<Session>,
        before: Option<SessionStateKind>,
    },
    /// A job, new or changed, with its task's project.
    Job { row: Arc<JobRow>, project: ProjectId },
    /// An attempt that begins.
    Started {
        attempt: Arc<Attempt>,
        note: Arc<AttemptNote>,
    },
    /// An attempt that changed. It is told as ended once.
    Attempt(Arc<Attempt>),
    /// Every live lease that ended earlier was extended.
    LeasesExtended { until: Timestamp, now: Timestamp },
    /// An event at its position in the task; with its size.
    Event {
        task: TaskId,
        pos: u64,
        attempt: AttemptId,
        event: Arc<Event>,
        size: usize,
    },
    /// An agent, new or changed.
    Agent(Arc<Agent>),
    /// An agent was heard of.
    AgentSeen(AgentId, Timestamp),
    /// An agent that joined, or was shut out.
    Enrolment(Arc<Enrolment>),
    /// A token of a person, new or taken back.
    PersonToken(Arc<PersonToken>),
}

impl Change {
    /// About how many bytes of memory it takes.
    pub(super) const fn weight(&self) -> usize {
        match self {
            Self::Created { size, .. } | Self::Event { size, .. } => EACH + *size,
            Self::Task(_)
            | Self::Dropped { .. }
            | Self::Session { .. }
            | Self::Job { .. }
            | Self::Started { .. }
            | Self::Attempt(_)
            | Self::LeasesExtended { .. }
            | Self::Agent(_)
            | Self::AgentSeen(..)
            | Self::Enrolment(_)
            | Self::PersonToken(_) => EACH,
        }
    }

    /// The job that waits now, as the dispatcher sees it.
    pub(crate) fn queued(&self) -> Option<QueuedJob> {
        match self {
            Self::Job { row, project } => waiting(row, project),
            Self::Created { .. }
            | Self::Task(_)
            | Self::Dropped { .. }
            | Self::Session { .. }
            | Self::Started { .. }
            | Self::Attempt(_)
            | Self::LeasesExtended { .. }
            | Self::Event { .. }
            | Self::Agent(_)
            | Self::AgentSeen(..)
            | Self::Enrolment(_)
            | Self::PersonToken(_) => None,
        }
    }
}

/// How many bytes the text of a value has.
pub(super) fn size_of(value: &impl Serialize) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // What cannot be written is refused where it is stored.
    serde_json::to_writer(&mut counter, value).ok();
    counter.0
}
