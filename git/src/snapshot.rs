//! The base of a task from a person's repository.
use kage_core::id::Oid;

use crate::command::Auth;
use crate::error::GitError;
use crate::user_repo::UserRepo;

/// What to take.
#[derive(Debug, Clone, Default)]
pub struct SnapshotOptions {
    /// Only HEAD; uncommitted work stays behind.
    pub committed: bool,
    /// Patterns of untracked files to take even when large or secret-looking.
    pub include: Vec<String>,
}

/// An untracked file that did not come along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Relative to the repository's top; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Why.
    pub reason: LeftOutReason,
}

/// Why a file did not come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOutReason {
    /// It is larger than [`MAX_UNTRACKED_BYTES`].
    Large {
        /// Its size in bytes.
        size: u64,
    },
    /// Its name says that it may hold a secret.
    SecretName,
    /// It is (in) another repository.
    NestedRepository,
}

/// Untracked files above this are left out unless asked for.
pub const MAX_UNTRACKED_BYTES: u64 = 5 << 20;

/// Something a person should know about a snapshot that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Sessions see empty folders in place of submodules.
    Submodules {
        /// Their paths.
        paths: Vec<String>,
    },
    /// Sessions see pointer files in place of large files.
    LargeFilePointers {
        /// How many.
        count: usize,
    },
}

/// A base, and the objects it needs.
#[derive(Debug)]
pub struct Snapshot {
    /// The commit that sessions start from.
    pub base: Oid,
    /// The branch tip it was made on. Equal to `base` when nothing uncommitted was taken.
    pub head: Oid,
    /// Untracked files that did not come along.
    pub left_out: Vec<LeftOut>,
    /// What else to tell.
    pub warnings: Vec<Warning>,
}

/// Says why no snapshot was made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is nothing to start from.
    #[error("the repository has no commits yet; make one first: git add -A && git commit -m 'start'")]
    NoCommits,
    /// The history is cut off, so it cannot be sent.
    #[error("the repository is a shallow clone; run `git fetch --unshallow` first")]
    Shallow,
    /// Some objects are only at a remote.
    #[error("the repository is a partial clone, which is not supported; use a full clone")]
    Partial,
    /// A merge is not finished.
    #[error("these paths have unresolved conflicts: {}", paths.join(", "))]
    Unmerged {
        /// Which.
        paths: Vec<String>,
    },
    /// Only the filter program could say what to store, and it is not run.
    #[error(
        "{path} has uncommitted changes and goes through the filter {filter:?}, which is not run; commit it, or use --committed"
    )]
    FilteredPath {
        /// Which.
        path: String,
        /// The filter's name in .gitattributes.
        filter: String,
    },
    /// git failed.
    #[error("could not take a snapshot of the repository")]
    Git(#[from] GitError),
}

impl Snapshot {
    /// Takes one. Nothing in the repository changes.
    ///
    /// # Errors
    /// When it cannot be complete.
    pub async fn take(repository: &UserRepo, options: &SnapshotOptions) -> Result<Self, SnapshotError> {
        let _ = (repository, options);
        unimplemented!("next push")
    }

    /// Sends the base to `url` as `refs/kage/bases/<base>`. Already there = done.
    ///
    /// # Errors
    /// When the remote refuses or cannot be reached.
    pub async fn push(&self, url: &str, auth: &Auth) -> Result<(), GitError> {
        let _ = (url, auth);
        unimplemented!("next push")
    }
}
