//! The merge of a result into HEAD: the task's base, the result and HEAD are three trees, and a
//! strategy decides conflicts. It writes nothing that a person can see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use git2::Repository;

use super::conflicts::obstacles;
use super::merge_tree::{Conflict, Landed, Sides, TreeMerge, merge_trees};
use super::theirs;
use super::tree::{Change, Changed, difference, entry_at, tree_of};
use super::{LandingError, Strategy};
use crate::error::{GitError, blocking};
use crate::user_repo::UserShadow;

/// A merge in a private git directory.
pub(super) struct Outcome {
    /// The changes from HEAD to the final files, conflicted ones included.
    pub(super) changed: Changed,
    /// Conflicts that are left to the person.
    pub(super) conflicts: BTreeMap<PathBuf, Conflict>,
    /// The merged tree; `None` when conflicts are left.
    pub(super) tree: Option<git2::Oid>,
}

/// Merges; `None` = HEAD has all that the result changes.
pub(super) async fn compute(
    store: &UserShadow,
    landed: &Landed,
    strategy: Strategy,
) -> Result<Option<Outcome>, LandingError> {
    let git_dir = store.shadow.git_dir();
    let sides = sides(git_dir, landed).await?;
    let mut merge = merge_trees(store, sides).await?;
    if strategy == Strategy::Theirs && !merge.conflicts.is_empty() {
        let tree = theirs::resolve(store, landed, &merge).await?;
        merge = TreeMerge {
            tree,
            conflicts: BTreeMap::new(),
        };
    }
    if strategy == Strategy::Auto && !merge.conflicts.is_empty() {
        let conflicts = obstacles(&merge.conflicts, landed.base_in_history);
        return Err(LandingError::Conflicts { conflicts });
    }
    if merge.conflicts.is_empty() && merge.tree == sides.ours {
        return Ok(None);
    }
    let git_dir = git_dir.to_owned();
    let outcome = blocking("comparing two trees", move || {
        outcome(&git_dir, sides, merge).map_err(GitError::library("compare two trees"))
    })
    .await?;
    Ok(Some(outcome))
}

async fn sides(git_dir: &Path, landed: &Landed) -> Result<Sides, GitError> {
    let (git_dir, landed) = (git_dir.to_owned(), landed.clone());
    blocking("looking for three trees", move || {
        let find = || {
            let repository = Repository::open_bare(&git_dir)?;
            Ok(Sides {
                base: tree_of(&repository, &landed.base)?,
                ours: tree_of(&repository, &landed.head)?,
                theirs: tree_of(&repository, &landed.result)?,
            })
        };
        find().map_err(GitError::library("find the trees to merge"))
    })
    .await
}

fn outcome(git_dir: &Path, sides: Sides, merge: TreeMerge) -> Result<Outcome, git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let mut changed = difference(&repository, sides.ours, merge.tree)?;
    // A conflict without stages names a place, which may be a folder.
    for (path, _) in merge.conflicts.iter().filter(|(_, conflict)| conflict.has_stages()) {
        if !changed.contains_key(path) {
            // A binary file: our version stays until the conflict is resolved.
            let entry = entry_at(&repository, sides.ours, path)?;
            let change = Change {
                before: entry,
                after: entry,
            };
            changed.insert(path.clone(), change);
        }
    }
    Ok(Outcome {
        changed,
        tree: merge.conflicts.is_empty().then_some(merge.tree),
        conflicts: merge.conflicts,
    })
}
