//! `kage apply`: merges a result's changes into the working tree, three-way, files only. The
//! person's side is a tree of the present files at the paths that may matter; all other paths count
//! as unchanged from the base.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use git2::Repository;
use kage_core::id::Oid;

use super::conflicts::{describe, place};
use super::files::{Seen, Step, Target};
use super::large::LargeFiles;
use super::leftovers::leftovers;
use super::merge_tree::{Sides, TreeMerge, merge_trees};
use super::present::{IndexEntries, Present, present};
use super::renames::moved;
use super::submodules::Submodules;
use super::tree::{Changed, Entry, check_paths, difference, makes_room, rendered, replaced, same, tree_of};
use super::{LandedAs, LandingError, Obstacle, ObstacleKind, PlannedPath, shown};
use crate::beneath::Beneath;
use crate::error::{GitError, blocking};
use crate::mirror::Mirror;
use crate::user_repo::{UserRepo, UserShadow};

#[derive(Debug)]
pub struct ApplyPlan {
    root: PathBuf,
    paths: Vec<PlannedPath>,
    steps: Vec<Step>,
}

impl ApplyPlan {
    /// Every path of the result, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// Does it: files only; index, HEAD and references stay as they are. All of it or, when
    /// it fails, nothing.
    ///
    /// # Errors
    /// When something changed since the plan, or the file system refuses.
    pub async fn execute(self) -> Result<(), LandingError> {
        blocking("writing files", move || {
            let beneath = Beneath::open(&self.root).map_err(GitError::io("open", &self.root))?;
            beneath.carry_out(&self.steps)?;
            Ok(())
        })
        .await
    }
}

/// Plans to apply the changes of `result` (a commit of `mirror`) to the working tree.
///
/// # Errors
/// When it conflicts, with every conflict.
pub async fn plan_apply(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
) -> Result<ApplyPlan, LandingError> {
    plan_apply_of(repository, mirror, base, result, &[]).await
}

/// The same for the changes of some paths and of what is in them; of none: for all. The result counts as
/// one that changed nothing else.
///
/// # Errors
/// When it conflicts, with every conflict.
pub async fn plan_apply_of(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
    only: &[PathBuf],
) -> Result<ApplyPlan, LandingError> {
    let store = repository.shadow(base, &[mirror.objects()]).await?;
    let git_dir = store.shadow.git_dir().to_owned();
    let (result, large) = LargeFiles::of(repository, &store, base, result).await?;
    let (from, to, only) = (base.clone(), result, only.to_vec());
    let (base, theirs, changed) = blocking("comparing two commits", {
        let git_dir = git_dir.clone();
        move || compare(&git_dir, &from, &to, &only).map_err(GitError::library("compare two commits"))
    })
    .await?;
    check_paths(repository, &store, &changed, Submodules::Stay).await?;
    let index = IndexEntries::read(&store).await?;
    let mut here = present(repository, &store, &index, changed.keys().cloned().collect()).await?;
    let moved = moved(repository, &store, &index, base, &changed).await?;
    let new = moved
        .new
        .into_iter()
        .filter(|path| !changed.contains_key(path))
        .collect();
    here.extend(present(repository, &store, &index, new).await?);
    let ours = blocking("making a tree of files", {
        let git_dir = git_dir.clone();
        let mut entries: BTreeMap<PathBuf, Option<Entry>> = moved.gone.into_iter().map(|path| (path, None)).collect();
        entries.extend(here.iter().map(|(path, it)| (path.clone(), it.entry)));
        move || our_tree(&git_dir, base, &entries).map_err(GitError::library("make a tree of files"))
    })
    .await?;
    let merge = merge_trees(&store, Sides { base, ours, theirs }).await?;
    let writes = blocking("comparing two trees", {
        let (git_dir, tree) = (git_dir.clone(), merge.tree);
        move || writes(&git_dir, ours, tree).map_err(GitError::library("compare two trees"))
    })
    .await?;
    check_paths(repository, &store, &writes, Submodules::Stay).await?;
    let more = writes
        .keys()
        .filter(|path| !here.contains_key(*path))
        .cloned()
        .collect();
    here.extend(present(repository, &store, &index, more).await?);
    let inside = leftovers(repository, &index, &changed, &here).await?;
    let view = View {
        changed,
        writes,
        here,
        inside,
        index,
        trusts_mode: repository.trusts_mode(),
    };
    view.refuse(&merge)?;
    view.plan(repository, &store, &large).await
}

/// The trees of two commits and their difference, in the paths that are wanted; none are: in all.
fn compare(
    git_dir: &Path,
    base: &Oid,
    result: &Oid,
    only: &[PathBuf],
) -> Result<(git2::Oid, git2::Oid, Changed), git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let (base, result) = (tree_of(&repository, base)?, tree_of(&repository, result)?);
    let mut changed = difference(&repository, base, result)?;
    if only.is_empty() {
        return Ok((base, result, changed));
    }
    changed.retain(|path, _| only.iter().any(|wanted| path.starts_with(wanted)));
    let entries = changed.iter().map(|(path, change)| (path.as_path(), change.after));
    let result = replaced(&repository, base, entries)?;
    // A file that takes a folder's place takes its files with it, wanted or not.
    let changed = difference(&repository, base, result)?;
    Ok((base, result, changed))
}

fn our_tree(
    git_dir: &Path,
    base: git2::Oid,
    entries: &BTreeMap<PathBuf, Option<Entry>>,
) -> Result<git2::Oid, git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let entries = entries.iter().map(|(path, entry)| (path.as_path(), *entry));
    replaced(&repository, base, entries)
}

fn writes(git_dir: &Path, ours: git2::Oid, merged: git2::Oid) -> Result<Changed, git2::Error> {
    difference(&Repository::open_bare(git_dir)?, ours, merged)
}

/// All inputs of the decision of `apply`.
struct View {
    /// From the base to the result.
    changed: Changed,
    /// The changes from the present files to the final ones.
    writes: Changed,
    here: HashMap<PathBuf, Present>,
    /// Files that remain in folders that become files.
    inside: Vec<Obstacle>,
    index: IndexEntries,
    trusts_mode: bool,
}

impl View {
    fn refuse(&self, merge: &TreeMerge) -> Result<(), LandingError> {
        let mut conflicts: BTreeMap<String, (&'static str, ObstacleKind)> = BTreeMap::new();
        for (path, conflict) in &merge.conflicts {
            conflicts.insert(place(path, conflict), (describe(conflict, true), self.kind(path)));
        }
        for (path, change) in &self.writes {
            if let (Some(_), Some((reason, at))) = (change.after, self.blocked(path)) {
                let at = shown(at);
                conflicts.insert(shown(path), (reason, ObstacleKind::Untracked { at }));
            } else if self.is_in_the_way(path, change.before) {
                conflicts.insert(shown(path), ("something untracked is there", self.kind(path)));
            }
        }
        for obstacle in &self.inside {
            if let ObstacleKind::Inside { folder } = &obstacle.kind {
                conflicts.remove(folder);
            }
            conflicts.insert(obstacle.path.clone(), (obstacle.reason, obstacle.kind.clone()));
        }
        if conflicts.is_empty() {
            return Ok(());
        }
        let obstacle = |(path, (reason, kind))| Obstacle { path, reason, kind };
        Err(LandingError::Conflicts {
            conflicts: conflicts.into_iter().map(obstacle).collect(),
        })
    }

    fn kind(&self, path: &Path) -> ObstacleKind {
        let is_there = self.here.get(path).is_some_and(|it| it.seen != Seen::Absent);
        if is_there && self.index.get(path).is_none() {
            ObstacleKind::Untracked { at: shown(path) }
        } else {
            ObstacleKind::Content
        }
    }

    /// An entry at the place of a file to write that cannot be replaced.
    fn blocked<'a>(&'a self, path: &'a Path) -> Option<(&'static str, &'a Path)> {
        let goes = |path: &Path| self.writes.get(path).is_some_and(|change| change.after.is_none());
        match &self.here.get(path)?.seen {
            Seen::Special => Some(("something that is not a file is there", path)),
            // A folder that loses all its files makes room; otherwise the write fails and
            // everything is undone.
            Seen::Folder if !makes_room(&self.writes, path) => Some(("a folder is there", path)),
            Seen::Beyond(by) if !goes(by) => Some(("something that is not a folder is above it", by)),
            Seen::Folder | Seen::Beyond(_) | Seen::Absent | Seen::File { .. } | Seen::Link(_) => None,
        }
    }

    /// True when an unexpected path, such as a new name, differs from the assumption.
    fn is_in_the_way(&self, path: &Path, assumed: Option<Entry>) -> bool {
        let here = self.here.get(path).and_then(|it| it.entry);
        !same(here, assumed, self.trusts_mode)
    }

    async fn plan(
        self,
        repository: &UserRepo,
        store: &UserShadow,
        large: &LargeFiles,
    ) -> Result<ApplyPlan, LandingError> {
        let mut plan = ApplyPlan {
            root: repository.root().to_owned(),
            paths: Vec::new(),
            steps: Vec::new(),
        };
        let after = |path: &PathBuf| self.writes.get(path).and_then(|change| change.after);
        let wanted: Vec<(PathBuf, Entry)> = self
            .writes
            .keys()
            .filter(|path| self.landed_as(path) != LandedAs::Unchanged)
            .filter_map(|path| Some((path.clone(), after(path)?)))
            .collect();
        let mut files = rendered(store, &wanted).await?;
        large.fill(repository, store, &wanted, &mut files).await?;
        let paths: BTreeSet<&PathBuf> = self.changed.keys().chain(self.writes.keys()).collect();
        for path in paths {
            let landed_as = self.landed_as(path);
            plan.paths.push(PlannedPath {
                path: path.clone(),
                landed_as,
            });
            if landed_as != LandedAs::Unchanged {
                plan.steps.push(Step {
                    seen: self.here.get(path).map_or(Seen::Absent, |it| it.seen.clone()),
                    target: files.remove(path).unwrap_or(Target::Absent),
                    path: path.clone(),
                });
            }
        }
        Ok(plan)
    }

    fn landed_as(&self, path: &PathBuf) -> LandedAs {
        let Some(write) = self.writes.get(path) else {
            return LandedAs::Unchanged;
        };
        if same(write.before, write.after, self.trusts_mode) {
            return LandedAs::Unchanged;
        }
        let results = self.changed.get(path).and_then(|change| change.after);
        match LandedAs::of(write.before.is_some(), write.after.is_some()) {
            LandedAs::Created | LandedAs::Updated if write.after != results => LandedAs::Merged,
            landed_as => landed_as,
        }
    }
}
