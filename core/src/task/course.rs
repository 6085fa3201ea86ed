//! The course of a task: which of its sessions work when, and which of them a verified result spares.
//! `job` moves sessions; this decides only whose turn it is.
//!
//! ```text
//!   race             all at once, each to its end
//!   first verified   all at once; when so many are verified, the others are stopped
//!   ladder           one after the other, in the order of the task, the next one only when verify was
//!                    run on the result of the one before and rejected it
//! ```
//! People make sessions of a ladder go on, and fork them. That moves no ladder: only the highest session
//! that had its turn does, and the next one waits until nothing else works.

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

/// The end of a session, as the course of its task sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfTurn {
    /// What it came to.
    pub state: SessionStateKind,
    /// How many sessions of the task are verified, this one among them.
    pub verified: u32,
    /// How many others have not ended; those that wait for their turn do not count.
    pub working: u32,
    /// True when no session above it on the ladder had its turn; a fork is on none.
    pub highest: bool,
    /// True when the highest one had been rejected before, and the next waits for the end of the others.
    pub due: bool,
}

/// What the end of a session means for the other sessions of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing.
    Unchanged,
    /// The next session is told why this one was rejected, and its turn comes when nothing else works.
    Due,
    /// It is the turn of the next session, which is told why the one before was rejected.
    Next,
    /// The others are not needed, and end for this reason: all of them, or those of a ladder that wait.
    Enough(Spared),
}

impl EndOfTurn {
    const fn on_ladder(self) -> Turn {
        if !self.highest {
            return match self.due && self.working == 0 {
                true => self.go_up(),
                false => Turn::Unchanged,
            };
        }
        match self.state {
            SessionStateKind::Rejected => self.go_up(),
            SessionStateKind::Verified => Turn::Enough(Spared::Verified),
            // Nothing says that a better model would do better.
            SessionStateKind::Unverified | SessionStateKind::Failed | SessionStateKind::Cancelled => {
                Turn::Enough(Spared::NotRejected)
            }
            SessionStateKind::Queued
            | SessionStateKind::Running
            | SessionStateKind::Claimed
            | SessionStateKind::Verifying
            | SessionStateKind::Saving => Turn::Unchanged,
        }
    }

    /// After the rejection of the highest one.
    const fn go_up(self) -> Turn {
        if self.verified > 0 {
            Turn::Enough(Spared::Verified)
        } else if self.working > 0 {
            Turn::Due
        } else {
            Turn::Next
        }
    }
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

    /// What the end of a session means for the others.
    pub const fn after(self, ended: EndOfTurn) -> Turn {
        match self {
            Self::Race => Turn::Unchanged,
            Self::FirstVerified(enough) => {
                let verified = matches!(ended.state, SessionStateKind::Verified);
                if verified && ended.verified >= enough.get() {
                    Turn::Enough(Spared::Verified)
                } else {
                    Turn::Unchanged
                }
            }
            Self::Ladder => ended.on_ladder(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The highest session ends, and nothing else works.
    fn end(state: SessionStateKind) -> EndOfTurn {
        EndOfTurn {
            state,
            verified: u32::from(state == SessionStateKind::Verified),
            working: 0,
            highest: true,
            due: false,
        }
    }

    #[test]
    fn a_ladder_goes_on_only_when_verify_rejects() {
        use SessionStateKind as S;
        for state in [S::Queued, S::Running, S::Claimed, S::Verifying, S::Saving] {
            assert_eq!(Course::Ladder.after(end(state)), Turn::Unchanged, "{state}");
        }
        assert_eq!(Course::Ladder.after(end(S::Rejected)), Turn::Next);
        assert_eq!(Course::Ladder.after(end(S::Verified)), Turn::Enough(Spared::Verified));
        for state in [S::Failed, S::Cancelled, S::Unverified] {
            assert_eq!(
                Course::Ladder.after(end(state)),
                Turn::Enough(Spared::NotRejected),
                "{state}"
            );
        }
        assert!(!Course::Ladder.waits_for_turn(0) && Course::Ladder.waits_for_turn(1));
    }

    #[test]
    fn what_people_ask_for_beside_moves_no_ladder() {
        use SessionStateKind as S;
        for state in [S::Rejected, S::Verified, S::Failed, S::Cancelled, S::Unverified] {
            let beside = EndOfTurn {
                working: 1,
                highest: false,
                ..end(state)
            };
            assert_eq!(
                Course::Ladder.after(beside),
                Turn::Unchanged,
                "{state}: the highest works"
            );
            let due = EndOfTurn { due: true, ..beside };
            assert_eq!(Course::Ladder.after(due), Turn::Unchanged, "{state}: another works");
            let last = EndOfTurn { working: 0, ..due };
            let expected = match state {
                S::Verified => Turn::Enough(Spared::Verified),
                _ => Turn::Next,
            };
            assert_eq!(Course::Ladder.after(last), expected, "{state}: nothing else works");
        }
    }

    #[test]
    fn the_next_one_waits_for_those_beside_and_is_not_needed_when_one_of_them_is_verified() {
        let rejected = EndOfTurn {
            working: 1,
            ..end(SessionStateKind::Rejected)
        };
        assert_eq!(Course::Ladder.after(rejected), Turn::Due);
        let again = EndOfTurn { due: true, ..rejected };
        assert_eq!(Course::Ladder.after(again), Turn::Due, "it was made to go on meanwhile");
        let verified = EndOfTurn {
            verified: 1,
            ..rejected
        };
        assert_eq!(Course::Ladder.after(verified), Turn::Enough(Spared::Verified));
        let failed = EndOfTurn {
            working: 1,
            ..end(SessionStateKind::Failed)
        };
        assert_eq!(
            Course::Ladder.after(failed),
            Turn::Enough(Spared::NotRejected),
            "nothing is left to wait for"
        );
    }

    #[test]
    fn enough_verified_sessions_stop_the_others() {
        use SessionStateKind as S;
        let two = Course::FirstVerified(NonZeroU32::new(2).unwrap());
        let end = |state, verified| EndOfTurn {
            state,
            verified,
            working: 1,
            highest: false,
            due: false,
        };
        assert_eq!(two.after(end(S::Verified, 1)), Turn::Unchanged);
        assert_eq!(two.after(end(S::Verified, 2)), Turn::Enough(Spared::Verified));
        // The end of another session is no reason: it may be one that a person made go on since.
        assert_eq!(two.after(end(S::Rejected, 2)), Turn::Unchanged);
        assert_eq!(Course::Race.after(end(S::Verified, 9)), Turn::Unchanged);
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
