//! What differs between two commits of a mirror, for people and reports, computed by
//! libgit2 alone: no pager, external diff or textconv can run. These functions block.
use std::path::Path;

use kage_core::event::{DiffStat, FileChange};
use kage_core::id::Oid;

use crate::error::GitError;

/// A difference between two commits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// How much.
    pub stat: DiffStat,
    /// Every changed path with its counts, sorted.
    pub files: Vec<FileChange>,
}

/// What changed from `base` to `commit` in the repository at `repository`.
///
/// # Errors
/// When one of them is not there.
pub fn between(repository: &Path, base: &Oid, commit: &Oid) -> Result<Difference, GitError> {
    let _ = (repository, base, commit);
    unimplemented!("next push")
}

/// The same as a unified patch that `git apply` takes.
///
/// # Errors
/// When one of them is not there.
pub fn patch(repository: &Path, base: &Oid, commit: &Oid) -> Result<Vec<u8>, GitError> {
    let _ = (repository, base, commit);
    unimplemented!("next push")
}
