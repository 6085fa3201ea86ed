//! Bringing a result home into a person's repository, decided completely before anything
//! is touched.
use kage_core::id::Oid;

use crate::error::GitError;
use crate::mirror::Mirror;
use crate::user_repo::UserRepo;

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

/// What `apply` would do.
#[derive(Debug)]
pub struct ApplyPlan {
    paths: Vec<PlannedPath>,
}

impl ApplyPlan {
    /// Every path of the result, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// Does it: files only; index, HEAD and references stay as they are.
    ///
    /// # Errors
    /// When something changed since the plan, or the file system refuses.
    pub async fn execute(self) -> Result<(), LandingError> {
        unimplemented!("next push")
    }
}

/// Plans to bring what `result` (a commit of `mirror`) changes into the working tree.
///
/// # Errors
/// When it conflicts, with every conflict.
pub async fn plan_apply(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
) -> Result<ApplyPlan, LandingError> {
    let _ = (repository, mirror, base, result);
    unimplemented!("next push")
}

/// What `merge` would do.
#[derive(Debug)]
pub struct MergePlan {
    paths: Vec<PlannedPath>,
}

/// How a merge ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// As a commit on the branch.
    Committed(Oid),
    /// With conflicts left for the person to resolve and commit.
    LeftConflicts,
    /// The branch has the result already.
    AlreadyThere,
}

impl MergePlan {
    /// Every path that changes on the branch, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// Does it.
    ///
    /// # Errors
    /// When something changed since the plan, or the file system refuses.
    pub async fn execute(self) -> Result<Merged, LandingError> {
        unimplemented!("next push")
    }
}

/// Plans to merge `result` (a commit of `mirror`) into the current branch.
///
/// # Errors
/// When it conflicts and the strategy refuses that, or touched paths are dirty.
pub async fn plan_merge(
    repository: &UserRepo,
    mirror: &Mirror,
    result: &Oid,
    strategy: Strategy,
    message: &str,
) -> Result<MergePlan, LandingError> {
    let _ = (repository, mirror, result, strategy, message);
    unimplemented!("next push")
}
