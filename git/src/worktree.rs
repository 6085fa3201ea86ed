//! A session's working directory.
use std::path::{Path, PathBuf};

use kage_core::event::{FileChange, ResultCommit};
use kage_core::id::Oid;

use crate::error::GitError;
use crate::mirror::Mirror;

/// A checked-out commit that a session may change.
#[derive(Debug)]
pub struct Worktree {
    path: PathBuf,
    base: Oid,
}

impl Worktree {
    /// Checks `commit` out at `path`, which does not exist or is empty.
    ///
    /// # Errors
    /// When the commit is not in the mirror or the file system refuses.
    pub async fn create(mirror: &Mirror, path: impl Into<PathBuf>, commit: &Oid) -> Result<Self, GitError> {
        let _ = mirror;
        Ok(Self {
            path: path.into(),
            base: commit.clone(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The commit it was made from.
    #[must_use]
    pub fn base(&self) -> &Oid {
        &self.base
    }

    /// What differs from the base now.
    ///
    /// # Errors
    /// When git fails.
    pub async fn changes(&self) -> Result<Vec<FileChange>, GitError> {
        unimplemented!("next push")
    }

    /// Commits the whole state to the mirror, parent = base; `None` when nothing differs.
    ///
    /// # Errors
    /// When any file could not be taken.
    pub async fn commit_result(&self, message: &str) -> Result<Option<ResultCommit>, GitError> {
        let _ = message;
        unimplemented!("next push")
    }

    /// Makes paths that match a glob what they are in `base`; returns the paths that changed.
    ///
    /// # Errors
    /// When a pattern is malformed or git fails.
    pub async fn restore_paths(&self, base: &Oid, globs: &[String]) -> Result<Vec<String>, GitError> {
        let _ = (base, globs);
        unimplemented!("next push")
    }

    /// Deletes the worktree at `path` of `mirror` and what Kage kept about it; also after a crash.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn remove(mirror: &Mirror, path: &Path) -> Result<(), GitError> {
        let _ = (mirror, path);
        unimplemented!("next push")
    }
}
