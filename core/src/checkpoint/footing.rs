//! In what worktree an attempt goes on from a checkpoint.

use serde::{Deserialize, Serialize};

/// In what worktree an attempt goes on. A wish: what cannot be had is made anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Footing {
    /// In a new one, which has the files of the checkpoint and no others.
    #[default]
    Anew,
    /// In the one that the attempt before it left: only what differs is touched, and what is
    /// ignored stays.
    Left,
    /// In the same, without what is ignored and was not there when the checkpoint was taken.
    LeftComplete,
}

impl Footing {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Anew, Self::Left, Self::LeftComplete];

    /// True when a new worktree is what is wanted.
    #[must_use]
    pub const fn is_anew(&self) -> bool {
        matches!(self, Self::Anew)
    }
}
