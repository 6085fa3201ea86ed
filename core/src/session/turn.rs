//! What the course of its task means for a session: that it follows one whose result was rejected, or
//! that it was not needed any more.

use serde::{Deserialize, Serialize};

use super::{Session, SessionStateKind};
use crate::event::Verdict;
use crate::id::SessionName;
use crate::rework;
use crate::words::words;

words! {
    /// Why a session did not work to its end, although nobody stopped it and nothing failed.
    pub enum Spared: "a reason to spare a session" {
        /// Enough sessions of its task were verified.
        Verified = "verified",
        /// It was its turn only after a rejection, and the session before it came to none.
        NotRejected = "not_rejected",
    }
}

/// The session before on the ladder, whose result verify rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climbed {
    /// Its name.
    pub from: SessionName,
    /// Why, with the output.
    pub verdict: Verdict,
}

impl Climbed {
    /// The instruction for the model. `command` is the verify command.
    #[must_use]
    pub fn instruction(&self, command: &str) -> String {
        rework::of_another(&self.verdict, command)
    }
}

impl Session {
    /// The course of its task, for its history.
    pub(crate) fn turn_words(&self) -> Option<String> {
        let climbed = self.climbed.as_ref();
        let climbed = climbed.map(|climbed| format!("its turn came when verify rejected {}", climbed.from));
        let spared = self.spared.filter(|_| self.state.kind() == SessionStateKind::Cancelled);
        let spared = spared.map(|spared| match (spared, self.started_at) {
            (Spared::Verified, Some(_)) => "stopped, because enough sessions were verified",
            (Spared::Verified, None) => "never started, because enough sessions were verified",
            (Spared::NotRejected, _) => "never started, because verify did not reject the session before it",
        });
        spared.map(str::to_owned).or(climbed)
    }
}
