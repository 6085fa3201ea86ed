//! Bringing a result home into a person's repository: the only code that writes to one.
//! Both ways merge three trees, the task's base, the result and what the person has, and
//! never histories: only what the session changed comes in. Both are decided completely
//! before anything is touched, in a private git directory that reads the person's objects
//! and the mirror's. `apply` writes files only; `merge` makes a commit on the current branch.
//! Executing a plan first checks that nothing it relies on has changed since, and undoes
//! what it did when a step fails.

mod files;
mod index;

mod tree;

mod merge_tree;

mod conflicts;
mod present;

mod leftovers;
mod renames;
mod theirs;

mod three_way;

mod commits;
mod dirty;

mod apply;
mod merge;

use std::path::{Path, PathBuf};

pub use apply::{ApplyPlan, plan_apply};
pub use commits::LandingMessage;
pub use merge::{MergePlan, Merged, plan_merge, probe_merge};

use crate::error::GitError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandedAs {
    Created,
    /// The result's content replaces the base's.
    Updated,
    /// The person's changes and the result's, merged.
    Merged,
    Deleted,
    /// Written with conflict markers (`Strategy::Manual` only).
    Conflicted,
    /// It is already what the result has.
    Unchanged,
}

impl LandedAs {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Merged => "merged",
            Self::Deleted => "deleted",
            Self::Conflicted => "conflicted",
            Self::Unchanged => "unchanged",
        }
    }

    /// What a change is, by whether there is something before and after it.
    const fn of(before: bool, after: bool) -> Self {
        match (before, after) {
            (_, false) => Self::Deleted,
            (false, true) => Self::Created,
            (true, true) => Self::Updated,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPath {
    /// Relative to the repository's top; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    pub landed_as: LandedAs,
}

/// A path that stands in the way, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub path: String,
    /// The reason as a clause.
    pub reason: &'static str,
    /// What could be done about it.
    pub kind: ObstacleKind,
}

/// What sort of obstacle a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObstacleKind {
    /// Its content; committing it or moving it away changes nothing about that.
    Content,
    /// git knows the path, and what is there is not committed.
    Edited,
    /// Something that git does not know is there.
    Untracked {
        /// What stands in the way: the path, or something above it.
        at: String,
    },
    /// git does not know it, and it is in a folder that becomes a file.
    Inside { folder: String },
    /// The index has conflicts that nobody has resolved.
    Unmerged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    Auto,
    Theirs,
    /// Leave markers and index conflict entries for the person; no commit is made then.
    Manual,
}

/// Says why a result was not brought home. Nothing was changed, except where said.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The result and the person's work contradict each other.
    #[error("{} path(s) conflict", conflicts.len())]
    Conflicts { conflicts: Vec<Obstacle> },
    /// Paths the merge touches have uncommitted changes.
    #[error("{} path(s) have uncommitted changes", paths.len())]
    Dirty {
        paths: Vec<Obstacle>,
        /// Whether all of them could be stashed, and would go back on top without a conflict.
        fits_back: bool,
    },
    /// Paths of the result that only a program of the person's could write.
    #[error("{} path(s) cannot be landed by Kage", paths.len())]
    Unsupported { paths: Vec<Obstacle> },
    /// A path changed between plan and execution.
    #[error("{path} changed in the meantime; nothing was done")]
    ChangedMeanwhile { path: String },
    /// There is no branch to put a commit on.
    #[error("HEAD is not on a branch")]
    NotOnABranch,
    /// There is no commit to put a commit on.
    #[error("the branch has no commit yet")]
    NoCommits,
    /// Another operation, such as a rebase, is not finished.
    #[error("a {operation} is in progress")]
    InProgress {
        /// Which; also the command of git that ends it.
        operation: &'static str,
    },
    /// Another program writes the index, or died while it did.
    #[error("another git is at work in this repository: {} is there", lock.display())]
    Locked {
        /// The lock file that was found.
        lock: PathBuf,
    },
    #[error("could not bring the result into the repository")]
    Git(#[from] GitError),
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl From<files::Undone> for LandingError {
    fn from(undone: files::Undone) -> Self {
        match undone {
            files::Undone::Changed(path) => Self::ChangedMeanwhile { path: shown(&path) },
            files::Undone::Failed { path, source } => Self::Git(GitError::Io {
                action: "write",
                path,
                source,
            }),
        }
    }
}
