//! What is said of a checkpoint in one word: why it was taken, and whether its files are safe.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::InvalidId;

/// Why a checkpoint was taken. Data: it is never part of a command or a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointReason {
    /// Before the first step of a session.
    Baseline,
    /// A tool call, or a burst of writes, changed files.
    FilesChanged,
    /// The attempt failed and may be retried; edits may be half done.
    BeforeRetry,
    /// A person asked for it.
    Requested,
    /// Files are about to be restored to an older state.
    BeforeRestore,
    /// The adapter ended successfully.
    Final,
}

impl CheckpointReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Baseline,
        Self::FilesChanged,
        Self::BeforeRetry,
        Self::Requested,
        Self::BeforeRestore,
        Self::Final,
    ];

    /// The name in rows and for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::FilesChanged => "files_changed",
            Self::BeforeRetry => "before_retry",
            Self::Requested => "requested",
            Self::BeforeRestore => "before_restore",
            Self::Final => "final",
        }
    }

    /// True when it was taken between two steps, so that no edit is half done in it.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        match self {
            Self::Baseline | Self::FilesChanged | Self::Requested | Self::Final => true,
            Self::BeforeRetry | Self::BeforeRestore => false,
        }
    }
}

impl fmt::Display for CheckpointReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::FilesChanged => "files changed",
            Self::BeforeRetry => "before a retry",
            Self::Requested => "asked for",
            Self::BeforeRestore => "before a restore",
            Self::Final => "final",
        })
    }
}

impl FromStr for CheckpointReason {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let found = Self::ALL.into_iter().find(|reason| reason.as_str() == text);
        found.ok_or_else(|| invalid(text, "a reason of checkpoints"))
    }
}

/// What is known about a checkpoint's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Safety {
    /// Verify did not run on these files.
    #[default]
    Unknown,
    /// Verify passed on exactly these files.
    Safe,
    /// Verify failed on exactly these files.
    Unsafe,
}

impl Safety {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Safe, Self::Unsafe];

    /// The name in rows and for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Safe => "safe",
            Self::Unsafe => "unsafe",
        }
    }
}

impl fmt::Display for Safety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Safety {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let found = Self::ALL.into_iter().find(|safety| safety.as_str() == text);
        found.ok_or_else(|| invalid(text, "a word for how safe a checkpoint is"))
    }
}

fn invalid(text: &str, expected: &'static str) -> InvalidId {
    InvalidId {
        text: text.chars().take(80).collect(),
        expected,
    }
}
