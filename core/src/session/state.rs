//! The states of a session. `job` makes the transitions.

use serde::{Deserialize, Serialize};

use crate::event::{ResultCommit, Verdict};
use crate::failure::Failure;
use crate::id::AttemptId;
use crate::words::words;

/// The state of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SessionState {
    /// It waits for an agent, for the first time or again.
    Queued,
    /// An agent works on it.
    Running {
        /// The live attempt.
        attempt: AttemptId,
    },
    /// It reported success; its verify job waits.
    Claimed {
        /// The result to land.
        result: ResultCommit,
    },
    /// Its result is being checked.
    Verifying {
        /// The result to land.
        result: ResultCommit,
        /// The live attempt of the verify job.
        attempt: AttemptId,
    },
    /// Verify passed.
    Verified {
        /// The result to land.
        result: ResultCommit,
        /// The verdict.
        verdict: Verdict,
    },
    /// Verify failed.
    Rejected {
        /// The rejected result.
        result: ResultCommit,
        /// The verdict.
        verdict: Verdict,
    },
    /// It reported success, and nothing could or should check that.
    Unverified {
        /// The result to land; `None` for a session without a workspace.
        result: Option<ResultCommit>,
        /// Why verify could not decide; `None` when there is no verify command.
        verdict: Option<Verdict>,
    },
    /// It ended without a claim, and its last checkpoint differs from the base: a result is being
    /// made of that.
    Saving {
        /// How it ended.
        end: Unclaimed,
    },
    /// It failed for good.
    Failed {
        /// The failure.
        failure: Failure,
        /// What it had done until then, if it had changed files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unfinished: Option<ResultCommit>,
        /// What verify said about that, when somebody asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verdict: Option<Verdict>,
    },
    /// It was stopped.
    Cancelled {
        /// What it had done until then, if it had changed files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unfinished: Option<ResultCommit>,
        /// What verify said about that, when somebody asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verdict: Option<Verdict>,
    },
}

/// How a session ended that claimed no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Unclaimed {
    /// It failed for good.
    Failed {
        /// The failure.
        failure: Failure,
    },
    /// It was stopped.
    Cancelled,
}

impl Unclaimed {
    /// The final state; `unfinished` is what was made of its work, and `verdict` what verify said about
    /// that.
    #[must_use]
    pub fn with(self, unfinished: Option<ResultCommit>, verdict: Option<Verdict>) -> SessionState {
        match self {
            Self::Failed { failure } => SessionState::Failed {
                failure,
                unfinished,
                verdict,
            },
            Self::Cancelled => SessionState::Cancelled { unfinished, verdict },
        }
    }
}

words! {
    /// A [`SessionState`] without its data, for counts and lists.
    #[derive(PartialOrd, Ord)]
    pub enum SessionStateKind: "a state of sessions" {
        /// See [`SessionState::Queued`].
        Queued = "queued",
        /// See [`SessionState::Running`].
        Running = "running",
        /// See [`SessionState::Claimed`].
        Claimed = "claimed",
        /// See [`SessionState::Verifying`].
        Verifying = "verifying",
        /// See [`SessionState::Verified`].
        Verified = "verified",
        /// See [`SessionState::Rejected`].
        Rejected = "rejected",
        /// See [`SessionState::Unverified`].
        Unverified = "unverified",
        /// See [`SessionState::Failed`].
        Failed = "failed",
        /// See [`SessionState::Cancelled`].
        Cancelled = "cancelled",
        /// See [`SessionState::Saving`].
        Saving = "saving",
    }
}

impl SessionStateKind {
    /// True when the state is final.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Claimed | Self::Verifying | Self::Saving => false,
            Self::Verified | Self::Rejected | Self::Unverified | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl SessionState {
    /// The state without its data.
    #[must_use]
    pub const fn kind(&self) -> SessionStateKind {
        match self {
            Self::Queued => SessionStateKind::Queued,
            Self::Running { .. } => SessionStateKind::Running,
            Self::Claimed { .. } => SessionStateKind::Claimed,
            Self::Verifying { .. } => SessionStateKind::Verifying,
            Self::Verified { .. } => SessionStateKind::Verified,
            Self::Rejected { .. } => SessionStateKind::Rejected,
            Self::Unverified { .. } => SessionStateKind::Unverified,
            Self::Failed { .. } => SessionStateKind::Failed,
            Self::Cancelled { .. } => SessionStateKind::Cancelled,
            Self::Saving { .. } => SessionStateKind::Saving,
        }
    }

    /// True when the state is final.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.kind().is_terminal()
    }

    /// The result to land, if it got that far. It may be [unfinished](Self::is_unfinished).
    #[must_use]
    pub const fn result(&self) -> Option<&ResultCommit> {
        match self {
            Self::Claimed { result }
            | Self::Verifying { result, .. }
            | Self::Verified { result, .. }
            | Self::Rejected { result, .. } => Some(result),
            Self::Unverified { result, .. } => result.as_ref(),
            Self::Failed { unfinished, .. } | Self::Cancelled { unfinished, .. } => unfinished.as_ref(),
            Self::Queued | Self::Running { .. } | Self::Saving { .. } => None,
        }
    }

    /// True when its result is what it had done when it ended without a claim: nobody said that it
    /// is done.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        match self {
            Self::Failed { unfinished, .. } | Self::Cancelled { unfinished, .. } => unfinished.is_some(),
            Self::Queued
            | Self::Running { .. }
            | Self::Claimed { .. }
            | Self::Verifying { .. }
            | Self::Verified { .. }
            | Self::Rejected { .. }
            | Self::Unverified { .. }
            | Self::Saving { .. } => false,
        }
    }

    /// The verdict on it, if there is one.
    #[must_use]
    pub const fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Verified { verdict, .. } | Self::Rejected { verdict, .. } => Some(verdict),
            Self::Unverified { verdict, .. } | Self::Failed { verdict, .. } | Self::Cancelled { verdict, .. } => {
                verdict.as_ref()
            }
            Self::Queued
            | Self::Running { .. }
            | Self::Claimed { .. }
            | Self::Verifying { .. }
            | Self::Saving { .. } => None,
        }
    }

    /// The attempt that works on it now.
    #[must_use]
    pub const fn attempt(&self) -> Option<AttemptId> {
        match self {
            Self::Running { attempt } | Self::Verifying { attempt, .. } => Some(*attempt),
            Self::Queued
            | Self::Claimed { .. }
            | Self::Verified { .. }
            | Self::Rejected { .. }
            | Self::Unverified { .. }
            | Self::Saving { .. }
            | Self::Failed { .. }
            | Self::Cancelled { .. } => None,
        }
    }
}
