//! From where an adapter can go on with a conversation.

use serde::{Deserialize, Serialize};

/// From where an adapter can go on with a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resumes {
    /// From nowhere, or nobody said: an attempt begins a new one.
    #[default]
    None,
    /// From its end, when nothing that was said is taken back.
    Latest,
    /// From any place between two steps.
    Position,
}

impl Resumes {
    /// Whether it can go on at a place after which so many calls were answered.
    #[must_use]
    pub const fn can(self, repeated_calls: u32) -> bool {
        match self {
            Self::None => false,
            Self::Latest => repeated_calls == 0,
            Self::Position => true,
        }
    }
}
