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
    /// The position of the session whose turn came by that, among the assignments of its task; `None`: it
    /// was not recorded yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
}

impl Climbed {
    /// The instruction for the model. `command` is the verify command.
    #[must_use]
    pub fn instruction(&self, command: &str) -> String {
        rework::of_another(&self.verdict, command)
    }
}

impl Session {
    /// Why its task did without it. `None` also when it was asked to stop for that, and came to another
    /// end all the same.
    #[must_use]
    pub fn spared_for(&self) -> Option<Spared> {
        self.spared.filter(|_| self.state.kind() == SessionStateKind::Cancelled)
    }

    /// True when it is the session just below this position on the ladder of its task. A fork is on none.
    #[must_use]
    pub fn is_rung_below(&self, position: u32) -> bool {
        match (&self.fork, &self.climbed) {
            (Some(_), _) => false,
            (None, None) => position == 1,
            // Nothing tells more of sessions from before positions were recorded.
            (None, Some(climbed)) => climbed.position.is_none_or(|own| own.saturating_add(1) == position),
        }
    }

    /// The course of its task, for its history.
    pub(crate) fn turn_words(&self) -> Option<String> {
        let climbed = self.climbed.as_ref();
        let climbed = climbed.map(|climbed| format!("its turn came when verify rejected {}", climbed.from));
        let spared = self.spared_for().map(|spared| match (spared, self.started_at) {
            (Spared::Verified, Some(_)) => "stopped, because enough sessions were verified",
            (Spared::Verified, None) => "never started, because enough sessions were verified",
            (Spared::NotRejected, Some(_)) => "stopped, because verify did not reject the session before it",
            (Spared::NotRejected, None) => "never started, because verify did not reject the session before it",
        });
        spared.map(str::to_owned).or(climbed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{SessionId, TaskId};
    use crate::session::{Fork, SessionState};
    use crate::time::Timestamp;

    fn session() -> Session {
        let (id, task) = (SessionId::from_random(1), TaskId::from_random(1));
        Session::new(id, task, "s".parse().unwrap(), "echo".parse().unwrap(), None)
    }

    fn climbed(position: Option<u32>) -> Session {
        let climbed = Climbed {
            from: "before".parse().unwrap(),
            verdict: Verdict::errored("it ran".to_owned()),
            position,
        };
        Session {
            climbed: Some(Box::new(climbed)),
            ..session()
        }
    }

    #[test]
    fn only_the_session_just_below_is_the_rung_below() {
        let forked = Session {
            fork: Some(Fork {
                from: "s".parse().unwrap(),
                checkpoint: 1,
                assignment: "s".parse().unwrap(),
                by: "user".to_owned(),
                at: Timestamp::from_millis(1),
            }),
            ..session()
        };
        for (session, position, expected) in [
            (session(), 1, true),
            (session(), 2, false),
            (climbed(Some(1)), 2, true),
            (climbed(Some(1)), 3, false),
            (climbed(Some(2)), 2, false),
            (climbed(None), 2, true),
            (forked, 1, false),
        ] {
            assert_eq!(session.is_rung_below(position), expected, "{position}: {session:?}");
        }
    }

    #[test]
    fn a_session_that_came_to_another_end_was_not_spared() {
        let cancelled = SessionState::Cancelled {
            unfinished: None,
            verdict: None,
        };
        let mut session = session();
        session.spared = Some(Spared::NotRejected);
        assert_eq!(session.spared_for(), None);
        session.state = cancelled;
        assert_eq!(session.spared_for(), Some(Spared::NotRejected));
        assert!(session.turn_words().unwrap().starts_with("never started"));
        session.started_at = Some(Timestamp::from_millis(1));
        assert!(session.turn_words().unwrap().starts_with("stopped"));
    }
}
