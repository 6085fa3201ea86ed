//! Verify of a result that nothing checked, because somebody asks for it: an unfinished one, or one
//! that verify could not decide about. The session waits for verify again; how it had ended stays
//! with it, so that an unfinished result does not become a claimed one by passing.

use super::{Session, SessionState, Unclaimed};
use crate::id::Oid;

/// Why a session's result cannot be verified now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotVerify {
    /// It works, or its result is being made or checked.
    #[error("it has not ended; its result is verified when it is claimed, and an unfinished one after its end")]
    NotOver,
    /// There are no changed files.
    #[error("it has no result")]
    NoResult,
    /// Verify decided about it.
    #[error("verify has decided about its result already")]
    Decided,
}

impl Session {
    /// Makes an ended session wait for verify of its result; returns the commit to check.
    ///
    /// # Errors
    /// When there is nothing to check, and nothing changes.
    pub fn verify_when_asked(&mut self) -> Result<Oid, CannotVerify> {
        let (result, ended_as) = match &self.state {
            SessionState::Failed {
                failure, unfinished, ..
            } => {
                let failure = failure.clone();
                (unfinished.clone(), Some(Unclaimed::Failed { failure }))
            }
            SessionState::Cancelled { unfinished, .. } => (unfinished.clone(), Some(Unclaimed::Cancelled)),
            SessionState::Unverified { result, .. } => (result.clone(), None),
            SessionState::Verified { .. } | SessionState::Rejected { .. } => return Err(CannotVerify::Decided),
            SessionState::Queued
            | SessionState::Running { .. }
            | SessionState::Claimed { .. }
            | SessionState::Verifying { .. }
            | SessionState::Saving { .. } => return Err(CannotVerify::NotOver),
        };
        let result = result.ok_or(CannotVerify::NoResult)?;
        let commit = result.commit.clone();
        // When verify is stopped, nothing has happened.
        self.stands = Some(Box::new(self.state.clone()));
        self.ended_as = ended_as;
        self.state = SessionState::Claimed { result };
        self.cancel_requested = false;
        self.ended_at = None;
        Ok(commit)
    }

    /// True when its result is what it had done when it ended without a claim, also while verify looks
    /// at it.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        self.state.is_unfinished() || self.ended_as.is_some()
    }
}
