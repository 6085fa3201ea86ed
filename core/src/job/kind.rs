//! What jobs are about, what is done in them (both also in one word), and which agents they prefer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, Oid, SessionId};
use crate::task::Policy;
use crate::words::words;

/// The subject of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A session: its work, or a result of it.
    Session(SessionId),
    /// The base that every session of the task starts from.
    Base,
}

impl Subject {
    /// The session that it is about.
    #[must_use]
    pub const fn session(self) -> Option<SessionId> {
        match self {
            Self::Session(session) => Some(session),
            Self::Base => None,
        }
    }
}

/// The kind of work of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobKind {
    /// An adapter works on the task.
    Session,
    /// A commit is checked in a clean checkout: the result of a session, or the base.
    Verify {
        /// What to check.
        commit: Oid,
    },
}

impl JobKind {
    /// The limit of one attempt; `own` is that of the session alone, if it has one.
    #[must_use]
    pub const fn limit(&self, policy: &Policy, own: Option<Duration>) -> Duration {
        match (self, own) {
            (Self::Session, Some(own)) => own,
            (Self::Session, None) => policy.timeout,
            (Self::Verify { .. }, _) => policy.verify.timeout,
        }
    }

    /// Whether the session's adapter does it; a command does the others.
    #[must_use]
    pub const fn is_of_adapter(&self) -> bool {
        matches!(self, Self::Session)
    }
}

words! {
    /// Work and subject of a job in one word, for lists and counts.
    #[derive(PartialOrd, Ord)]
    pub enum JobType: "a type of job" {
        /// An adapter works on the task.
        Session = "session",
        /// A result is checked.
        Verify = "verify",
        /// The base is checked, once per task.
        Baseline = "baseline",
    }
}

impl JobType {
    /// The type of a job that does this.
    #[must_use]
    pub const fn of(subject: Subject, kind: &JobKind) -> Self {
        match (subject, kind) {
            (_, JobKind::Session) => Self::Session,
            (Subject::Session(_), JobKind::Verify { .. }) => Self::Verify,
            (Subject::Base, JobKind::Verify { .. }) => Self::Baseline,
        }
    }

    /// The subject of a job of this type, which is listed with this session.
    #[must_use]
    pub const fn subject(self, session: SessionId) -> Subject {
        match self {
            Self::Session | Self::Verify => Subject::Session(session),
            Self::Baseline => Subject::Base,
        }
    }
}

/// Preferences for an attempt's agent. They yield to necessity: any agent that fits is better than
/// none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// The agent that has the last attempt's files.
    pub prefer: Option<AgentId>,
    /// The agent that has just failed, or that must not verify its own work.
    pub avoid: Option<AgentId>,
}
