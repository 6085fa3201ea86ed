//! Gives a worktree the files of a checkpoint again. Nothing is lost on the way: the present files
//! are in a checkpoint before the first one changes, only differing paths are touched, and what
//! appears in between or cannot be in a checkpoint is moved aside, never deleted. It owns what may
//! be restored and the plan; [`apply`] carries out a plan.
//!
//! ```text
//! look ─▶ refuse foreign changes, or ─▶ safety checkpoint ─▶ journal ─▶ apply ─▶ last = target
//!         keep them in the safety one                           │  ▲                 │
//!                                            any interruption ──┘  └── roll forward  ▼
//!                                                                      journal gone
//! ```
//!
//! The worktree is being restored while the journal exists; whatever wants the worktree next
//! rolls it forward first. The session's own `.git` is not looked at, and its HEAD, index
//! and references stay as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use git2::Oid as Id;
use kage_core::id::Oid;
use rustix::fs::{AtFlags, FileType};

use crate::beneath::{Beneath, Parent};
use crate::checkpoint::{LockedWorktree, Look};
use crate::error::GitError;
use crate::known::{Difference, KnownEntry};
use crate::left_out::entry_in;
use crate::objects::{id_of, oid_of};
use crate::worktree::Worktree;

mod journal;

mod apply;

use apply::{Apply, Steps};
use journal::Journal;

#[derive(Debug, Clone)]
pub struct RestoreOptions {
    pub foreign: Foreign,
    /// Also moves aside ignored files that did not exist when the checkpoint was taken. An ignored
    /// folder that existed then is left as it is, with all its content.
    pub complete: bool,
    /// The restore is refused when it would delete more files of the base than this.
    pub most_deletions: usize,
    /// Stops before the step of this number as if the machine had died there. The rest
    /// is done when the worktree is used next.
    pub stop_before: Option<u64>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            foreign: Foreign::Refuse,
            complete: false,
            most_deletions: 1000,
            stop_before: None,
        }
    }
}

/// What to do about changes that no checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    Refuse,
    /// Restore after the safety checkpoint has saved them.
    Save,
}

/// The effect of a restore on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Becomes {
    Created,
    /// It gets other content, or another mode.
    Updated,
    /// It is deleted; the safety checkpoint has it.
    Deleted,
    /// It is moved out of the worktree with all its content.
    MovedAside,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RestoredPath {
    /// Relative to the worktree.
    pub path: PathBuf,
    pub becomes: Becomes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// Every path that would be touched, sorted.
    pub paths: Vec<RestoredPath>,
    /// Paths that changed since the last checkpoint, sorted.
    pub foreign: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The commit whose files are in the worktree now.
    pub target: Oid,
    /// The commit that has the files as they were before.
    pub safety: Oid,
    /// Every path of the plan, sorted.
    pub paths: Vec<RestoredPath>,
    /// Old and new paths of what was moved aside.
    pub aside: Vec<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Files changed since the last checkpoint.
    #[error("{} path(s) changed since the last checkpoint", paths.len())]
    Foreign {
        /// Sorted.
        paths: Vec<PathBuf>,
    },
    #[error("there is no checkpoint {commit} here")]
    Unknown { commit: Oid },
    /// The plan would delete suspiciously many files.
    #[error("{count} files that the session did not make would be deleted; at most {limit} may be")]
    TooManyDeletions {
        /// Number of files that it would delete.
        count: usize,
        /// The most that it may delete.
        limit: usize,
    },
    /// The list of files that were ignored at the checkpoint is missing.
    #[error("there is no record of what was ignored at {commit}, so it cannot be restored completely")]
    NoRecord { commit: Oid },
    /// Files cannot be moved to the folder in which they would be kept.
    #[error("{} is on another file system than Kage's files", path.display())]
    OtherFileSystem { path: PathBuf },
    /// git or the file system failed. A restore that had begun is completed when the worktree is
    /// used next.
    #[error("could not restore a checkpoint")]
    Git(#[from] GitError),
}

impl Worktree {
    /// What [`Worktree::restore`] would do now. Changes no file of the worktree, unless an
    /// interrupted restore has to be finished first.
    ///
    /// # Errors
    /// When the restore would be refused for another reason than foreign changes.
    pub async fn plan_restore(&self, target: &Oid, options: &RestoreOptions) -> Result<RestorePlan, RestoreError> {
        let (target, options) = (target.clone(), options.clone());
        self.owned("planning a restore", move |worktree| {
            worktree.finish_restore()?;
            let mut look = worktree.look()?;
            let plan = Plan::make(worktree, &mut look, &target, &options)?;
            let shown = RestorePlan {
                paths: shown(&plan.steps, &plan.asides),
                foreign: plan.foreign,
            };
            // Files taken for the plan alone must not count as known from now on.
            if !plan.took_ignored {
                look.keep(worktree);
            }
            Ok(shown)
        })
        .await
    }

    /// Gives the worktree the files of `target`, a commit of the mirror. Ignored files stay, except
    /// those in the way of one of `target`'s. Durable when it returns; when it fails half-way, or
    /// the machine dies, the next use of the worktree finishes it.
    ///
    /// # Errors
    /// When it is refused, with nothing changed, or when git or the file system fails.
    pub async fn restore(&self, target: &Oid, options: &RestoreOptions) -> Result<Restored, RestoreError> {
        let (target, options) = (target.clone(), options.clone());
        let restored = self.owned("restoring a checkpoint", move |worktree| {
            worktree.finish_restore()?;
            let mut look = worktree.look()?;
            let plan = Plan::make(worktree, &mut look, &target, &options)?;
            if options.foreign == Foreign::Refuse && !plan.foreign.is_empty() {
                return Err(RestoreError::Foreign { paths: plan.foreign });
            }
            plan.carry_out(worktree, look, options.stop_before)
        });
        let restored = restored.await?;
        self.refill_large(false).await?;
        Ok(restored)
    }

    /// Finishes an interrupted restore; `None` when there is none.
    pub async fn finish_restore(&self) -> Result<Option<Restored>, RestoreError> {
        self.owned("finishing a restore", |worktree| Ok(worktree.finish_restore()?))
            .await
    }
}

impl LockedWorktree {
    pub(crate) fn finish_restore(&self) -> Result<Option<Restored>, GitError> {
        let Some(journal) = Journal::read(self)? else {
            return Ok(None);
        };
        tracing::info!(worktree = %self.root.display(), target = %journal.target, "finishing a restore");
        Apply::found(self, &journal)?.resume().map(Some)
    }
}

struct Plan {
    target: Id,
    target_tree: Id,
    steps: Steps,
    asides: BTreeSet<PathBuf>,
    foreign: Vec<PathBuf>,
    took_ignored: bool,
}

impl Plan {
    fn make(
        worktree: &LockedWorktree,
        look: &mut Look,
        target: &Oid,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let id = id_of(target)?;
        let target_tree = look
            .objects
            .tree_of(id)
            .map_err(|_| RestoreError::Unknown { commit: target.clone() })?;
        let foreign = look.differences_from_last()?;
        let mut steps = look.differences(target_tree)?;
        // Ignored files that are about to be overwritten have to be in the safety checkpoint.
        let mut took_ignored = false;
        for (path, step) in &steps {
            if step.before.is_none() && step.after.is_some() && look.take(&worktree.root, path)? {
                took_ignored = true;
            }
        }
        if took_ignored {
            look.top.write(&mut look.objects)?;
            steps = look.differences(target_tree)?;
        }
        let mut asides = obstacles(worktree, &look.beneath, &steps)?;
        for path in &look.stood_in {
            // What is there is in no checkpoint, whatever the checkpoints have at its path.
            if let Some((mode, id)) = entry_in(look.objects.repository(), target_tree, path) {
                let after = Some(KnownEntry::new(mode, id));
                steps.insert(path.clone(), Difference { before: None, after });
                asides.insert(path.clone());
            }
        }
        if options.complete {
            let then = worktree
                .ignored_at(id)
                .ok_or_else(|| RestoreError::NoRecord { commit: target.clone() })?;
            let related = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
            let is_new = |path: &&PathBuf| !then.iter().any(|old| related(old, path)) && look.top.get(path).is_none();
            asides.extend(look.ignored.iter().filter(is_new).cloned());
        }
        let plan = Self {
            target: id,
            target_tree,
            steps,
            asides,
            foreign,
            took_ignored,
        };
        plan.check(worktree, look, options)?;
        Ok(plan)
    }

    fn check(&self, worktree: &LockedWorktree, look: &Look, options: &RestoreOptions) -> Result<(), RestoreError> {
        let base = look
            .objects
            .repository()
            .find_commit(worktree.base)
            .and_then(|it| it.tree());
        let base = base.map_err(GitError::library("read the base"))?;
        let of_base = |(path, step): &(&PathBuf, &Difference)| step.after.is_none() && base.get_path(path).is_ok();
        let count = self.steps.iter().filter(of_base).count();
        if count > options.most_deletions {
            let limit = options.most_deletions;
            return Err(RestoreError::TooManyDeletions { count, limit });
        }
        let private = worktree.private("");
        let own = fs::metadata(&private).map_err(GitError::io("look at", &private))?.dev();
        let mut devices = HashMap::new();
        for path in self.steps.keys().chain(&self.asides) {
            let folder = path.parent().unwrap_or(path);
            let device = *devices
                .entry(folder)
                .or_insert_with(|| device_of(&worktree.root, folder));
            if device != Some(own) {
                return Err(RestoreError::OtherFileSystem {
                    path: worktree.root.join(folder),
                });
            }
        }
        Ok(())
    }

    fn carry_out(
        self,
        worktree: &LockedWorktree,
        mut look: Look,
        stop_before: Option<u64>,
    ) -> Result<Restored, RestoreError> {
        let now = look.top.write(&mut look.objects)?;
        let last = look.last;
        let last_tree = look.objects.tree_of(last);
        if last_tree.map_err(GitError::library("read the last checkpoint"))? != now {
            look.commit(worktree, last, "Before a restore\n")?;
        }
        let nanoseconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let journal = Journal {
            target: self.target,
            safety: look.last,
            name: nanoseconds.map_or(0, |since| since.as_nanos()).to_string(),
            asides: self.asides,
        };
        let apply = Apply::new(worktree, &journal, self.steps.clone(), stop_before)?;
        let restored = apply.run()?;
        for (path, step) in &self.steps {
            match step.after {
                Some(entry) => look.top.insert(path, entry),
                None => look.top.remove(path),
            }
        }
        look.last = self.target;
        // Otherwise the cached state is wrong and has to be dropped.
        if look.top.assume_written()? == self.target_tree {
            look.keep(worktree);
        }
        Ok(restored)
    }
}

impl Look {
    fn differences(&self, tree: Id) -> Result<Steps, GitError> {
        let found = self.top.differences(self.objects.repository(), tree);
        found.map_err(GitError::library("compare with a checkpoint"))
    }

    fn differences_from_last(&self) -> Result<Vec<PathBuf>, GitError> {
        let last = self.objects.tree_of(self.last);
        let last = last.map_err(GitError::library("read the last checkpoint"))?;
        Ok(self.differences(last)?.into_keys().collect())
    }
}

/// Things that no checkpoint can hold and that stand where files are to be written.
fn obstacles(worktree: &LockedWorktree, beneath: &Beneath, steps: &Steps) -> Result<BTreeSet<PathBuf>, GitError> {
    let goes = |path: &Path| steps.get(path).is_some_and(|step| step.after.is_none());
    let mut found = BTreeSet::new();
    for (path, step) in steps {
        let Some(after) = step.after else { continue };
        let failed = |error| GitError::io("look at", &worktree.root.join(path))(error);
        match beneath.parent(path, false).map_err(failed)? {
            Parent::Absent => {}
            Parent::Blocked(by) => {
                if !goes(&by) {
                    found.insert(by);
                }
            }
            Parent::Open(parent, name) => {
                let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(error) => return Err(failed(error.into())),
                };
                let in_the_way = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile | FileType::Symlink => false,
                    FileType::Directory => (after.is_file() || after.is_link()) && has_more(worktree, path, &goes)?,
                    _ => true,
                };
                if in_the_way {
                    found.insert(path.clone());
                }
            }
        }
    }
    Ok(found)
}

/// Whether a folder holds anything that is not going to be removed.
fn has_more(worktree: &LockedWorktree, folder: &Path, goes: &impl Fn(&Path) -> bool) -> Result<bool, GitError> {
    let here = worktree.root.join(folder);
    for item in fs::read_dir(&here).map_err(GitError::io("list", &here))? {
        let item = item.map_err(GitError::io("list", &here))?;
        let path = folder.join(item.file_name());
        let is_folder = item.file_type().map_err(GitError::io("list", &here))?.is_dir();
        if if is_folder {
            has_more(worktree, &path, goes)?
        } else {
            !goes(&path)
        } {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file system of the nearest folder that exists.
fn device_of(root: &Path, folder: &Path) -> Option<u64> {
    let full = root.join(folder);
    let mut metas = full.ancestors().filter_map(|path| fs::symlink_metadata(path).ok());
    metas.find(fs::Metadata::is_dir).map(|meta| meta.dev())
}

fn shown(steps: &BTreeMap<PathBuf, Difference>, asides: &BTreeSet<PathBuf>) -> Vec<RestoredPath> {
    let moved = asides.iter().map(|path| RestoredPath {
        path: path.clone(),
        becomes: Becomes::MovedAside,
    });
    let step = |(path, step): (&PathBuf, &Difference)| RestoredPath {
        path: path.clone(),
        becomes: match (step.before, step.after) {
            (_, None) => Becomes::Deleted,
            (None, Some(_)) => Becomes::Created,
            (Some(_), Some(_)) => Becomes::Updated,
        },
    };
    let mut paths: Vec<_> = steps.iter().map(step).chain(moved).collect();
    paths.sort();
    paths
}

fn restored(journal: &Journal, steps: &Steps, aside: Vec<(PathBuf, PathBuf)>) -> Result<Restored, GitError> {
    Ok(Restored {
        target: oid_of(journal.target)?,
        safety: oid_of(journal.safety)?,
        paths: shown(steps, &journal.asides),
        aside,
    })
}
