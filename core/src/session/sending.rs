//! What a message does to a session: it is told with the next attempt, or makes a session go on that
//! is over.
//!
//! ```text
//!   Queued                        the next attempt is told
//!   Running                       it comes next when the attempt ends, before verify
//!   Claimed, Verifying            the session goes on at once; nobody waits for verify
//!   over, or being saved          the session goes on from where it stands
//! ```
//! Until the session has a newer result, the one that it had stands: it has it again when it fails or
//! is stopped.

use super::message::MAX_WAITING;
use super::{Session, SessionState, Setback};
use crate::event::Verdict;
use crate::id::SessionName;
use crate::time::Timestamp;

/// What follows from a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It waits for the end of the attempt that runs.
    AfterAttempt,
    /// It goes along with the next attempt: an offer that does not have it is void.
    WithNextAttempt,
    /// The session waits for an attempt now; its other jobs are over.
    GoesOn,
}

/// Why a session takes no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotSend {
    /// It was asked to stop, and did not end yet.
    #[error("session {0} is being stopped; send it again when it is over (`kage wait`)")]
    Stopping(SessionName),
    /// Enough waits.
    #[error(
        "what waits for session {0} is as much as one attempt is told ({MAX_WAITING} messages, 64 KiB); send it again \
         when the present attempt has ended"
    )]
    Full(SessionName),
}

impl Session {
    /// Takes a message, and says its number and what follows.
    ///
    /// # Errors
    /// When it takes none; nothing is changed then.
    pub fn send(&mut self, text: String, by: String, now: Timestamp) -> Result<(u32, Sent), CannotSend> {
        let ended = self.state.is_terminal() || matches!(self.state, SessionState::Saving { .. });
        if self.cancel_requested && !ended {
            return Err(CannotSend::Stopping(self.name.clone()));
        }
        if ended && self.messages.is_full_for(&text) {
            // No attempt is there that could make room.
            self.messages.drop_open();
        }
        if self.messages.is_full_for(&text) {
            return Err(CannotSend::Full(self.name.clone()));
        }
        let number = self.messages.add(text, by, now);
        let sent = match self.state {
            SessionState::Running { .. } => Sent::AfterAttempt,
            SessionState::Queued => Sent::WithNextAttempt,
            SessionState::Claimed { .. }
            | SessionState::Verifying { .. }
            | SessionState::Verified { .. }
            | SessionState::Rejected { .. }
            | SessionState::Unverified { .. }
            | SessionState::Saving { .. }
            | SessionState::Failed { .. }
            | SessionState::Cancelled { .. } => {
                self.go_on();
                Sent::GoesOn
            }
        };
        Ok((number, sent))
    }

    /// Makes the session wait for an attempt that goes on from where it stands, with what was said.
    pub(crate) fn go_on(&mut self) {
        let setback = match &self.state {
            SessionState::Rejected { verdict, .. } => Some(Setback::rejected(verdict)),
            // It had ended without a claim, and verify was only asked for.
            SessionState::Claimed { .. } | SessionState::Verifying { .. } if self.ended_as.is_some() => {
                Some(Setback::Interrupted)
            }
            SessionState::Failed { .. } | SessionState::Cancelled { .. } | SessionState::Saving { .. } => {
                Some(Setback::Interrupted)
            }
            SessionState::Queued
            | SessionState::Running { .. }
            | SessionState::Claimed { .. }
            | SessionState::Verifying { .. }
            | SessionState::Verified { .. }
            | SessionState::Unverified { .. } => None,
        };
        let stands = match &self.state {
            SessionState::Verified { .. } | SessionState::Rejected { .. } | SessionState::Unverified { .. } => {
                Some(self.state.clone())
            }
            SessionState::Claimed { .. } | SessionState::Verifying { .. } if self.ended_as.is_some() => None,
            SessionState::Claimed { result } | SessionState::Verifying { result, .. } => {
                Some(SessionState::Unverified {
                    result: Some(result.clone()),
                    verdict: Some(Verdict::errored("a message came before verify had decided".to_owned())),
                })
            }
            SessionState::Queued
            | SessionState::Running { .. }
            | SessionState::Saving { .. }
            | SessionState::Failed { .. }
            | SessionState::Cancelled { .. } => None,
        };
        self.go_on_from(self.checkpoints.head.clone());
        // Nothing has to be told to a session that begins.
        self.setback = setback.filter(|_| self.checkpoints.head.is_some());
        self.stands = stands.map(Box::new);
        self.messages.reworks_before = self.reworks;
    }

    /// How often it reworked a result of what it was last told.
    #[must_use]
    pub const fn reworked(&self) -> u32 {
        self.reworks.saturating_sub(self.messages.reworks_before)
    }
}
