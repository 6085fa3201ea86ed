//! Bringing a result home into a person's repository: the only code that writes to one.
//! Both ways are decided completely before anything is touched, in a private git directory
//! that reads the person's objects and the mirror's. `apply` writes files only; `merge`
//! makes a commit on the current branch. Executing a plan first checks that nothing it
//! relies on has changed since, and undoes what it did when a step fails.

mod files;
mod index;

mod tree;

mod apply;
mod three_way;

mod merge;

use std::path::Path;

pub use apply::{ApplyPlan, plan_apply};
pub use merge::{MergePlan, Merged, plan_merge};

use crate::error::GitError;

/// What happens to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandedAs {
    /// New.
    Created,
    /// The result's content replaces the base's.
    Updated,
    /// The person's changes and the result's, merged.
    Merged,
    /// Gone.
    Deleted,
    /// Written with conflict markers (`Strategy::Manual` only).
    Conflicted,
    /// It is already what the result has.
    Unchanged,
}

/// One path of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPath {
    /// Relative to the repository's top; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// What happens to it.
    pub landed_as: LandedAs,
}

/// A path that stands in the way, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The path.
    pub path: String,
    /// Why, in words.
    pub reason: &'static str,
}

/// How `merge` treats conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Refuse.
    Auto,
    /// The result's side wins.
    Theirs,
    /// Leave markers and index conflict entries for the person; no commit is made then.
    Manual,
}

/// Says why a result was not brought home. Nothing was changed, except where said.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The result and the person's work contradict each other.
    #[error("{} path(s) conflict", conflicts.len())]
    Conflicts {
        /// Which, and how.
        conflicts: Vec<Obstacle>,
    },
    /// Paths the merge touches have uncommitted changes.
    #[error("{} path(s) have uncommitted changes", paths.len())]
    Dirty {
        /// Which.
        paths: Vec<Obstacle>,
    },
    /// A path changed between plan and execution.
    #[error("{path} changed in the meantime; nothing was done")]
    ChangedMeanwhile {
        /// Which.
        path: String,
    },
    /// There is no branch to put a merge commit on.
    #[error("HEAD is not on a branch")]
    NotOnABranch,
    /// Another operation is under way.
    #[error("a {operation} is in progress; finish or abort it first")]
    InProgress {
        /// Which.
        operation: &'static str,
    },
    /// The two histories have nothing in common.
    #[error("the result and the current branch have no common history")]
    Unrelated,
    /// git failed.
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
