//! Where a session stands. The moves between the states are made in `job`.

use serde::{Deserialize, Serialize};

use crate::event::{ResultCommit, Verdict};
use crate::failure::Failure;
use crate::id::AttemptId;

/// Where a session stands.
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
    /// It says it is done; its verify job waits.
    Claimed {
        /// What it wants to land.
        result: ResultCommit,
    },
    /// Its result is being checked.
    Verifying {
        /// What it wants to land.
        result: ResultCommit,
        /// The live attempt of the verify job.
        attempt: AttemptId,
    },
    /// Verify passed.
    Verified {
        /// What it wants to land.
        result: ResultCommit,
        /// The decision.
        verdict: Verdict,
    },
    /// Verify failed.
    Rejected {
        /// What it wanted to land.
        result: ResultCommit,
        /// The decision.
        verdict: Verdict,
    },
    /// It says it is done, and nothing could or should check that.
    Unverified {
        /// What it wants to land; `None` for a session without a workspace.
        result: Option<ResultCommit>,
        /// Why verify could not decide; `None` when there is no verify command.
        verdict: Option<Verdict>,
    },
    /// It gave up.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// It was stopped.
    Cancelled,
}

/// A [`SessionState`] without what it carries: what counts and lists need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionStateKind {
    /// See [`SessionState::Queued`].
    Queued,
    /// See [`SessionState::Running`].
    Running,
    /// See [`SessionState::Claimed`].
    Claimed,
    /// See [`SessionState::Verifying`].
    Verifying,
    /// See [`SessionState::Verified`].
    Verified,
    /// See [`SessionState::Rejected`].
    Rejected,
    /// See [`SessionState::Unverified`].
    Unverified,
    /// See [`SessionState::Failed`].
    Failed,
    /// See [`SessionState::Cancelled`].
    Cancelled,
}

impl SessionStateKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Running,
        Self::Claimed,
        Self::Verifying,
        Self::Verified,
        Self::Rejected,
        Self::Unverified,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name used in rows and for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Claimed => "claimed",
            Self::Verifying => "verifying",
            Self::Verified => "verified",
            Self::Rejected => "rejected",
            Self::Unverified => "unverified",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// True when nothing will change any more.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Claimed | Self::Verifying => false,
            Self::Verified | Self::Rejected | Self::Unverified | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl SessionState {
    /// The state without what it carries.
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
            Self::Cancelled => SessionStateKind::Cancelled,
        }
    }

    /// True when nothing will change any more.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.kind().is_terminal()
    }

    /// What it wants to land, if it got that far.
    #[must_use]
    pub const fn result(&self) -> Option<&ResultCommit> {
        match self {
            Self::Claimed { result }
            | Self::Verifying { result, .. }
            | Self::Verified { result, .. }
            | Self::Rejected { result, .. } => Some(result),
            Self::Unverified { result, .. } => result.as_ref(),
            Self::Queued | Self::Running { .. } | Self::Failed { .. } | Self::Cancelled => None,
        }
    }

    /// The decision on it, if there is one.
    #[must_use]
    pub const fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Verified { verdict, .. } | Self::Rejected { verdict, .. } => Some(verdict),
            Self::Unverified { verdict, .. } => verdict.as_ref(),
            Self::Queued
            | Self::Running { .. }
            | Self::Claimed { .. }
            | Self::Verifying { .. }
            | Self::Failed { .. }
            | Self::Cancelled => None,
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
            | Self::Failed { .. }
            | Self::Cancelled => None,
        }
    }
}
