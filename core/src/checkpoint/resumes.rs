//! The positions from which an adapter can continue a conversation.

use serde::{Deserialize, Serialize};

/// The positions from which an adapter can continue a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resumes {
    /// None, or unknown: an attempt begins a new conversation.
    #[default]
    None,
    /// Its end, when nothing that was said is taken back.
    Latest,
    /// Any position between two steps.
    Position,
}

impl Resumes {
    /// Whether it can continue from a position after which so many calls were answered.
    #[must_use]
    pub const fn can(self, repeated_calls: u32) -> bool {
        match self {
            Self::None => false,
            Self::Latest => repeated_calls == 0,
            Self::Position => true,
        }
    }
}
