//! The course of a task: which of its sessions work when, and which of them a verified result spares.
//! `job` moves sessions; this decides only whose turn it is.
//!
//! ```text
//!   race             all at once, each to its end
//!   first verified   all at once; when so many are verified, the others are stopped
//!   ladder           one after the other, in the order of the task, the next one only when verify was
//!                    run on the result of the one before and rejected it
//! ```

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::session::{SessionStateKind, Spared};

/// Which sessions of a task work when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// All of them at once, each to its end.
    #[default]
    Race,
    /// All at once, until so many results are verified.
    FirstVerified(NonZeroU32),
    /// One after the other, in the order of the assignments.
    Ladder,
}

/// What the end of a session means for the other sessions of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing.
    Unchanged,
    /// It is the turn of the next session, which is told why this one was rejected.
    Next,
    /// The others are not needed: they are stopped for this reason.
    Enough(Spared),
}

impl Course {
    /// True for a race, which tasks are that say nothing.
    #[must_use]
    pub fn is_race(&self) -> bool {
        *self == Self::Race
    }

    /// True when the session at this position waits for the end of the one before.
    #[must_use]
    pub const fn waits_for_turn(self, position: usize) -> bool {
        match self {
            Self::Race | Self::FirstVerified(_) => false,
            Self::Ladder => position > 0,
        }
    }

    /// What the end of a session means, when so many sessions of its task are verified.
    pub const fn after(self, ended: SessionStateKind, verified: u32) -> Turn {
        match (self, ended) {
            (Self::FirstVerified(enough), SessionStateKind::Verified) if verified >= enough.get() => {
                Turn::Enough(Spared::Verified)
            }
            (Self::Race | Self::FirstVerified(_), _) => Turn::Unchanged,
            (Self::Ladder, SessionStateKind::Rejected) => Turn::Next,
            (Self::Ladder, SessionStateKind::Verified) => Turn::Enough(Spared::Verified),
            // Nothing says that a better model would do better.
            (Self::Ladder, SessionStateKind::Unverified | SessionStateKind::Failed | SessionStateKind::Cancelled) => {
                Turn::Enough(Spared::NotRejected)
            }
            (
                Self::Ladder,
                SessionStateKind::Queued
                | SessionStateKind::Running
                | SessionStateKind::Claimed
                | SessionStateKind::Verifying
                | SessionStateKind::Saving,
            ) => Turn::Unchanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_goes_on_only_when_verify_rejects() {
        use SessionStateKind as S;
        for state in [S::Queued, S::Running, S::Claimed, S::Verifying, S::Saving] {
            assert_eq!(Course::Ladder.after(state, 0), Turn::Unchanged, "{state}");
        }
        assert_eq!(Course::Ladder.after(S::Rejected, 0), Turn::Next);
        assert_eq!(Course::Ladder.after(S::Verified, 1), Turn::Enough(Spared::Verified));
        for state in [S::Failed, S::Cancelled, S::Unverified] {
            assert_eq!(
                Course::Ladder.after(state, 0),
                Turn::Enough(Spared::NotRejected),
                "{state}"
            );
        }
        assert!(!Course::Ladder.waits_for_turn(0) && Course::Ladder.waits_for_turn(1));
    }

    #[test]
    fn enough_verified_sessions_stop_the_others() {
        use SessionStateKind as S;
        let two = Course::FirstVerified(NonZeroU32::new(2).unwrap());
        assert_eq!(two.after(S::Verified, 1), Turn::Unchanged);
        assert_eq!(two.after(S::Verified, 2), Turn::Enough(Spared::Verified));
        // The end of another session is no reason: it may be one that a person made go on since.
        assert_eq!(two.after(S::Rejected, 2), Turn::Unchanged);
        assert_eq!(Course::Race.after(S::Verified, 9), Turn::Unchanged);
        assert!(!two.waits_for_turn(1));
    }

    #[test]
    fn is_stored_in_few_words() {
        let stored = |course: Course| serde_json::to_string(&course).unwrap();
        assert_eq!(stored(Course::Ladder), r#""ladder""#);
        assert_eq!(
            stored(Course::FirstVerified(NonZeroU32::MIN)),
            r#"{"first_verified":1}"#
        );
        assert_eq!(serde_json::from_str::<Course>(r#""race""#).unwrap(), Course::Race);
    }
}
