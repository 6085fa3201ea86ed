//! Why the model of a session that resumes has to be told that its files changed, in words for it.

use serde::{Deserialize, Serialize};

use super::remembered;
use crate::event::Verdict;
use crate::failure::Failure;

/// Why a session's model has to be told that its files changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Setback {
    /// Its files are older than its work, since edits were half done.
    Unfinished,
    /// Its files are older, since its later work failed the checks.
    Wrong {
        /// The message of the checks.
        message: String,
    },
    /// Another adapter left the files.
    HandedOver,
    /// It ended before it was done, and goes on because a person said what to do.
    Interrupted,
    /// It ended with a result that failed verify, and goes on because a person said what to do.
    Rejected {
        /// The message of verify.
        message: String,
    },
}

impl Setback {
    /// The setback for work that failed its checks.
    #[must_use]
    pub fn wrong(failure: &Failure) -> Self {
        Self::Wrong {
            message: remembered(&failure.message).to_owned(),
        }
    }

    /// The setback for a result that failed verify.
    #[must_use]
    pub fn rejected(verdict: &Verdict) -> Self {
        Self::Rejected {
            message: remembered(&verdict.message).to_owned(),
        }
    }

    /// The note for the model.
    #[must_use]
    pub fn note(&self) -> String {
        match self {
            Self::Wrong { message } => format!(
                "The files are as they were at an earlier point, because what was done since did not pass the \
                 project's checks: {message}"
            ),
            Self::HandedOver => {
                "The files are as another tool left them, which was at the same task and could not go on: do what is \
                 left of it."
                    .to_owned()
            }
            Self::Interrupted => "The work was interrupted before this. The files are as they were after the last \
                                  step that you know of; what you did after it may be undone."
                .to_owned(),
            Self::Rejected { message } => {
                format!("What was done so far was checked in a clean checkout of it, and did not pass: {message}")
            }
            Self::Unfinished => "The files are as they were before the last, unfinished step.".to_owned(),
        }
    }
}
