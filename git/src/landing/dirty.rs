//! Uncommitted work that blocks a merge: the paths, and whether the work would fit on top of it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use git2::Repository;
use kage_core::id::Oid;

use super::files::Seen;
use super::leftovers::leftovers;
use super::merge_tree::{Conflict, Sides, merge_trees};
use super::present::{IndexEntries, Indexed, Present};
use super::three_way::Outcome;
use super::tree::{Change, Changed, Entry, makes_room, replaced, same, tree_of};
use super::{LandingError, Obstacle, ObstacleKind, shown};
use crate::error::{GitError, blocking};
use crate::user_repo::{UserRepo, UserShadow};

/// Refuses when a changed path differs from HEAD, in the index or on the disk, unless it has its
/// final content already.
pub(super) async fn refuse_dirty(
    repository: &UserRepo,
    store: &UserShadow,
    head: &Oid,
    outcome: &Outcome,
    index: &IndexEntries,
    present: &HashMap<PathBuf, Present>,
) -> Result<(), LandingError> {
    let trusts_mode = repository.trusts_mode();
    let mut paths = Vec::new();
    for (path, change) in &outcome.changed {
        let Some(here) = present.get(path) else {
            continue;
        };
        let found = Found {
            path,
            change,
            indexed: index.get(path),
            here,
            conflict: outcome.conflicts.get(path),
        };
        if let Some((reason, kind)) = found.obstacle(&outcome.changed, trusts_mode) {
            paths.push((path.as_path(), reason, kind));
        }
    }
    let inside = leftovers(repository, index, &outcome.changed, present).await?;
    if paths.is_empty() && inside.is_empty() {
        return Ok(());
    }
    let all_edited = inside.is_empty() && paths.iter().all(|(_, _, kind)| *kind == ObstacleKind::Edited);
    let fits_back = match (outcome.tree, all_edited) {
        (Some(merged), true) => {
            let edits = paths.iter().map(|(path, _, _)| {
                let entry = present.get(*path).and_then(|here| here.entry);
                ((*path).to_owned(), entry)
            });
            fits_back(store, head, merged, edits.collect()).await?
        }
        (Some(_) | None, _) => false,
    };
    let obstacle = |(path, reason, kind): (&Path, &'static str, ObstacleKind)| Obstacle {
        path: shown(path),
        reason,
        kind,
    };
    Err(LandingError::Dirty {
        paths: paths.into_iter().map(obstacle).chain(inside).collect(),
        fits_back,
    })
}

/// True if the person staged the final content of a path themselves. What they did to the file since then
/// stays, as in git's own merge.
pub(super) fn is_staged_already(indexed: Option<Indexed>, change: &Change) -> bool {
    match indexed {
        Some(Indexed::Entry(staged)) => change.after == Some(staged) && change.before != Some(staged),
        Some(Indexed::Unmerged) | None => false,
    }
}

/// A path that a merge touches, as it is now.
struct Found<'a> {
    path: &'a Path,
    change: &'a Change,
    indexed: Option<Indexed>,
    here: &'a Present,
    conflict: Option<&'a Conflict>,
}

impl Found<'_> {
    fn obstacle(&self, changed: &Changed, trusts_mode: bool) -> Option<(&'static str, ObstacleKind)> {
        let Change { before, after } = *self.change;
        let staged = match self.indexed {
            Some(Indexed::Unmerged) => {
                return Some(("it has conflicts that are not resolved", ObstacleKind::Unmerged));
            }
            Some(Indexed::Entry(entry)) => Some(entry),
            None => None,
        };
        let here = |entry: Option<Entry>| same(self.here.entry, entry, trusts_mode);
        // Markers would be written over it, or conflicts into the index.
        let is_what_it_becomes = self.conflict.is_none() && !self.is_blocked() && here(after);
        let at = || ObstacleKind::Untracked { at: shown(self.path) };
        if staged != before {
            let same_as_after = staged == after && (is_what_it_becomes || is_staged_already(self.indexed, self.change));
            return (!same_as_after || self.conflict.is_some())
                .then_some(("it has staged changes", ObstacleKind::Edited));
        }
        if is_what_it_becomes {
            return None;
        }
        if before.is_some_and(Entry::is_submodule) {
            // Nothing is written into its folder, whatever is checked out there.
            let is_folder = matches!(self.here.seen, Seen::Folder | Seen::Absent);
            return (!is_folder).then_some(("it has uncommitted changes", ObstacleKind::Edited));
        }
        match &self.here.seen {
            Seen::Folder if before.is_none() && makes_room(changed, self.path) => None,
            Seen::Folder if before.is_none() => Some(("a folder is there", at())),
            Seen::Special => Some(("something that is not a file is there", at())),
            Seen::Beyond(by) if before.is_none() && changed.get(by).is_some_and(|it| it.after.is_none()) => None,
            Seen::Beyond(by) if before.is_none() => Some((
                "something that is not a folder is above it",
                ObstacleKind::Untracked { at: shown(by) },
            )),
            Seen::Folder | Seen::Beyond(_) | Seen::Absent | Seen::File { .. } | Seen::Link(_) => {
                match (here(before), before) {
                    (true, _) if !self.is_blocked() => None,
                    (_, Some(_)) => Some(("it has uncommitted changes", ObstacleKind::Edited)),
                    (_, None) => Some(("something untracked is there", at())),
                }
            }
        }
    }

    /// Whether something that git does not store is where a file was or is going to be.
    fn is_blocked(&self) -> bool {
        matches!(self.here.seen, Seen::Folder | Seen::Special | Seen::Beyond(_))
    }
}

/// Whether the person's edits of some paths can be put back after a merge, as `git stash pop` does. What is
/// staged comes along, whatever its path: `git stash push -- PATHS` saves the whole index.
async fn fits_back(
    store: &UserShadow,
    head: &Oid,
    merged: git2::Oid,
    edits: BTreeMap<PathBuf, Option<Entry>>,
) -> Result<bool, GitError> {
    let (git_dir, head) = (store.shadow.git_dir().to_owned(), head.clone());
    let Ok(staged) = store.shadow.git("write-tree").run().await else {
        // It has conflicts that are not resolved.
        return Ok(false);
    };
    let unexpected = GitError::unexpected("write-tree", &staged);
    let staged = std::str::from_utf8(&staged)
        .ok()
        .and_then(|id| git2::Oid::from_str(id.trim()).ok());
    let staged = staged.ok_or(unexpected)?;
    let sides = blocking("looking at uncommitted changes", move || {
        let find = || {
            let repository = Repository::open_bare(&git_dir)?;
            let base = tree_of(&repository, &head)?;
            let theirs = replaced(
                &repository,
                staged,
                edits.iter().map(|(path, entry)| (path.as_path(), *entry)),
            )?;
            Ok(Sides {
                base,
                ours: merged,
                theirs,
            })
        };
        find().map_err(GitError::library("look at uncommitted changes"))
    })
    .await?;
    Ok(merge_trees(store, sides).await?.conflicts.is_empty())
}
