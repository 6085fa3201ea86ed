//! The path patterns of `kage_core`, with errors of this crate.

use kage_core::pattern::InvalidPattern;
pub(crate) use kage_core::pattern::Patterns;

use crate::error::GitError;

impl From<InvalidPattern> for GitError {
    fn from(invalid: InvalidPattern) -> Self {
        let InvalidPattern { pattern, source } = invalid;
        Self::Pattern { pattern, source }
    }
}
