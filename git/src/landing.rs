//! Lands a result in a person's repository; no other code writes to one. Both commands merge three
//! trees (the task's base, the result, and the person's files), never histories: only the session's
//! change comes in. They plan everything before they change anything, in a private git directory
//! that reads the objects of the person and of the mirror. `apply` writes files only; `merge` makes
//! a commit on the current branch, or on another one that nobody has checked out. Executing a plan
//! first checks that its inputs have not changed, and undoes all steps when one fails. [`checkout`]
//! puts a result into a working tree of its own, and [`push`] sends a branch to a remote.

mod files;
mod index;

mod submodules;
mod tree;

mod merge_tree;

mod conflicts;
mod large;
mod present;

mod leftovers;
mod renames;
mod theirs;

mod three_way;

mod person;

mod commits;
mod dirty;
mod send;
mod hooks;
mod committing;
mod branches;

mod apply;
mod finish;
mod merge;
mod into;
pub mod checkout;
pub mod push;

use std::path::{Path, PathBuf};

pub use apply::{ApplyPlan, plan_apply, plan_apply_of};
pub use branches::{Branch, Held, HeldBy, commit_of};
pub use commits::{LandingMessage, is_in_history};
pub use hooks::{Hook, Hooks};
pub use into::{IntoPlan, Onto, plan_merge_into};
pub use merge::{MergeEnd, MergePlan, plan_merge, probe_merge};

pub use submodules::MovedSubmodule;

use kage_core::id::Oid;

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
    /// The path has the result's content already.
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

    /// The kind of a change, by whether the path exists before and after it.
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
    /// Relative to the repository's top.
    pub path: PathBuf,
    pub landed_as: LandedAs,
}

impl PlannedPath {
    /// The path for people: bytes that are not UTF-8 are U+FFFD.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.path)
    }
}

/// A path that blocks the landing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub path: String,
    /// The reason as a clause.
    pub reason: &'static str,
    /// Decides which remedy is suggested.
    pub kind: ObstacleKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObstacleKind {
    /// Its content; committing it or moving it away changes nothing about that.
    Content,
    /// git tracks the path, and its content is not committed.
    Edited,
    /// Something that git does not know is there.
    Untracked {
        /// The obstacle itself: the path, or a parent of it.
        at: String,
    },
    /// git does not track the path, and its folder becomes a file.
    Inside { folder: String },
    /// The index has unresolved conflicts.
    Unmerged,
    /// Git LFS stores it, which is not set up here.
    Large,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    Auto,
    Theirs,
    /// Leave markers and index conflict entries for the person; no commit is made then.
    Manual,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// As a commit on the branch.
    Committed(Oid),
    /// With conflicts left for the person to resolve and commit.
    LeftConflicts,
    /// The branch has the result already.
    AlreadyThere,
}

/// Why a result was not landed. Nothing was changed, unless stated.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The result and the person's work contradict each other.
    #[error("{} path(s) conflict", conflicts.len())]
    Conflicts { conflicts: Vec<Obstacle> },
    /// The merge changes paths with uncommitted changes.
    #[error("{} path(s) have uncommitted changes", paths.len())]
    Dirty {
        paths: Vec<Obstacle>,
        /// Whether all of them could be stashed, and would go back on top without a conflict.
        fits_back: bool,
    },
    /// Paths of the result that only a program of the person's could write.
    #[error("{} path(s) cannot be landed by Kage", paths.len())]
    Unsupported { paths: Vec<Obstacle> },
    /// The person's git-lfs did not store a file of the result.
    #[error("git-lfs did not store {path}: {said}")]
    LargeFile {
        path: String,
        /// What it said instead.
        said: String,
    },
    /// A path changed between plan and execution.
    #[error("{path} changed in the meantime; nothing was done")]
    ChangedMeanwhile { path: String },
    /// There is no branch to put a commit on.
    #[error("HEAD is not on a branch")]
    NotOnABranch,
    /// There is no commit to put a commit on.
    #[error("the branch has no commit yet")]
    NoCommits,
    /// The person's git makes no commit, for example because it cannot sign it.
    #[error("git makes no commit here: {said}")]
    NoCommit {
        /// What git wrote.
        said: String,
    },
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
    /// The branch to put a commit on does not exist.
    #[error("there is no branch {branch}")]
    NoBranch {
        branch: String,
        /// The local branches there are, and those of remotes.
        others: Vec<String>,
    },
    /// Files of a working tree belong to the branch.
    #[error("the branch {branch} is {} in {}", held.by.words(), held.at.display())]
    Held { branch: String, held: Held },
    /// Hooks of the person are not as HEAD has them.
    #[error("{} file(s) of your hooks are not as HEAD has them", paths.len())]
    HooksDiffer { paths: Vec<Obstacle> },
    /// Commit hooks need the files of a working tree.
    #[error("the hooks of a commit need files, and the branch {branch} has none here")]
    HooksNeedFiles { branch: String },
    /// A hook of the person said no.
    #[error("your {} hook failed ({exit})", hook.name())]
    HookFailed { hook: Hook, exit: String },
    /// The hooks of the person left no message.
    #[error("your hooks left no message for the commit")]
    NoMessage,
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
