//! Carries out a restore, from its beginning or from wherever it was interrupted. New files are
//! complete and flushed before the first change. A file leaves the worktree by a rename into a
//! folder of Kage's, and is deleted there only after a check that the safety checkpoint has it:
//! whatever another process wrote at the last moment is kept.
//!
//! ```text
//! <private>/parts/<number>              new files while they are written
//! <private>/ready/<number>              new files, complete; then what they replaced
//! <private>/aside/<restore>/moved/...   what was planned to be moved aside
//! <private>/aside/<restore>/kept/...    unexpected files, under their path
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::journal::Journal;
use super::{Restored, restored};
use crate::beneath::{Beneath, Parent};
use crate::checkpoint::LockedWorktree;
use crate::durable::{MOST_ONE_BY_ONE, flush_all, flush_file_system};
use crate::error::GitError;
use crate::known::{Difference, KnownEntry, KnownFolder, Stats};
use crate::large::{Filled, FilledFiles};
use crate::objects::{Objects, Unflushed};
use crate::removal::remove_folder;

mod files;

mod kept;

mod parts;
mod place;

use files::read_entry;

/// From this number of files on, several are written and placed at a time.
const MANY: usize = 64;

/// Most of the time is waiting for locks of the file system, so more threads would not be quicker.
const THREADS: usize = 4;

/// The paths that differ, in order.
pub(super) type Steps = BTreeMap<PathBuf, Difference>;

/// A path with the number that its files outside of the worktree have.
struct Step {
    number: usize,
    path: PathBuf,
    difference: Difference,
    /// What may be there in place of a pointer.
    large: Option<Filled>,
}

impl Step {
    /// Whether a checkpoint has exactly `there` at the path.
    fn expects(&self, there: &KnownEntry) -> bool {
        let mut known = [self.difference.before, self.difference.after].into_iter().flatten();
        known.any(|entry| {
            let content = self.large.filter(|large| large.pointer == entry.id);
            let as_content = content.map(|large| KnownEntry::new(entry.mode, large.content));
            entry.is_same(there) || as_content.is_some_and(|entry| entry.is_same(there))
        })
    }
}

fn threads_for(files: usize) -> usize {
    if files < MANY { 1 } else { THREADS }
}

pub(super) struct Apply<'a> {
    worktree: &'a LockedWorktree,
    journal: &'a Journal,
    beneath: Beneath,
    steps: Steps,
    large: FilledFiles,
    /// Whether some of it may have been done already.
    resumed: bool,
    parts: PathBuf,
    ready: PathBuf,
    aside: PathBuf,
    /// Old and new paths of what was moved.
    kept: Vec<(PathBuf, PathBuf)>,
    /// Changed folders of the worktree.
    touched: BTreeSet<PathBuf>,
    stop_before: Option<u64>,
    passed: AtomicU64,
}

impl<'a> Apply<'a> {
    pub(super) fn new(
        worktree: &'a LockedWorktree,
        journal: &'a Journal,
        steps: Steps,
        stop_before: Option<u64>,
    ) -> Result<Self, GitError> {
        Ok(Self {
            worktree,
            journal,
            beneath: Beneath::open(&worktree.root).map_err(GitError::io("open", &worktree.root))?,
            steps,
            large: worktree.large()?,
            resumed: false,
            parts: worktree.private("parts"),
            ready: worktree.private("ready"),
            aside: worktree.private("aside").join(&journal.name),
            kept: Vec::new(),
            touched: BTreeSet::new(),
            stop_before,
            passed: AtomicU64::new(0),
        })
    }

    /// Resumes the restore of a journal that was found.
    pub(super) fn found(worktree: &'a LockedWorktree, journal: &'a Journal) -> Result<Self, GitError> {
        let mut apply = Self::new(worktree, journal, Steps::new(), None)?;
        let objects = Objects::open(worktree.mirror.path(), Unflushed::default())?;
        let steps = || {
            let safety = KnownFolder::load(objects.repository(), objects.tree_of(journal.safety)?, &Stats::new())?;
            safety.differences(objects.repository(), objects.tree_of(journal.target)?)
        };
        apply.steps = steps().map_err(GitError::library("compare two checkpoints"))?;
        Ok(apply)
    }

    /// Passes a point at which an interruption is survived; `stop_before` stops here.
    pub(super) fn pass(&self, action: &'static str) -> Result<(), GitError> {
        let number = self.passed.fetch_add(1, Ordering::Relaxed);
        if self.stop_before == Some(number) {
            return Err(GitError::Interrupted { action });
        }
        Ok(())
    }

    /// Writes the journal, once everything it needs is on the disk, and does all steps.
    pub(super) fn run(self) -> Result<Restored, GitError> {
        let steps = self.list();
        self.pass("clear up")?;
        remove_folder(&self.parts)?;
        let placed = self.stage(&steps)?;
        let prepared = self.journal.prepare(self.worktree)?;
        self.flush_parts(&steps, &placed, Some(prepared.path()))?;
        self.pass("write the journal")?;
        prepared.place()?;
        flush_all(&[self.worktree.private("")])?;
        self.carry_out(&steps, &placed)
    }

    /// Does all steps of a written journal, some of which may have been done.
    pub(super) fn resume(mut self) -> Result<Restored, GitError> {
        self.resumed = true;
        self.note_kept()?;
        let steps = self.list();
        self.settle_leftovers(&steps)?;
        let placed = self.stage(&steps)?;
        self.flush_parts(&steps, &placed, None)?;
        self.carry_out(&steps, &placed)
    }

    fn list(&self) -> Vec<Step> {
        let numbered = self.steps.iter().enumerate();
        numbered
            .map(|(number, (path, difference))| Step {
                number,
                path: path.clone(),
                difference: *difference,
                large: self.large.get(path).copied(),
            })
            .collect()
    }

    fn carry_out(mut self, steps: &[Step], placed: &BTreeSet<usize>) -> Result<Restored, GitError> {
        self.pass("name the written files")?;
        fs::rename(&self.parts, &self.ready).map_err(GitError::io("create", &self.ready))?;
        // Backwards, so that folders are empty when their turn comes.
        for step in steps.iter().rev() {
            self.take_away(step)?;
        }
        for path in self.journal.asides.clone() {
            self.move_aside(&path)?;
        }
        self.place_all(steps, placed)?;
        self.pass("delete a folder")?;
        fs::remove_dir(&self.ready).map_err(GitError::io("delete", &self.ready))?;
        self.pass("write what the worktree is")?;
        let last = self.worktree.prepare_last(self.journal.target)?;
        self.flush_touched(last.path())?;
        last.place()?;
        self.pass("delete the journal")?;
        self.journal.delete(self.worktree)?;
        flush_all(&[self.worktree.private("")])?;
        restored(self.journal, &self.steps, self.kept)
    }

    fn parent<'p>(&self, path: &'p Path) -> Result<Parent<'p>, GitError> {
        let parent = self.beneath.parent(path, false);
        parent.map_err(GitError::io("open", &self.worktree.root.join(path)))
    }

    fn is_now(&self, path: &Path, entry: &KnownEntry) -> Result<bool, GitError> {
        let full = self.worktree.root.join(path);
        let Parent::Open(parent, name) = self.parent(path)? else {
            return Ok(false);
        };
        let failed = GitError::io("read", &full);
        let there = read_entry(&parent, name).map_err(failed)?;
        Ok(there.is_some_and(|there| there.is_same(entry)))
    }

    fn touch(&mut self, path: &Path) {
        let folder = path.parent().unwrap_or(Path::new(""));
        self.touched.insert(self.worktree.root.join(folder));
    }

    /// Flushes the changed folders; for a removed folder its parent.
    fn flush_touched(&self, more: PathBuf) -> Result<(), GitError> {
        if self.touched.len() > MOST_ONE_BY_ONE {
            return flush_file_system(&more);
        }
        let mut folders = BTreeSet::from([more]);
        for folder in &self.touched {
            let there = folder
                .ancestors()
                .find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()));
            folders.extend(there.map(Path::to_owned));
            // New folders are names in their parents.
            let above = folder.parent().filter(|above| above.starts_with(&self.worktree.root));
            folders.extend(above.filter(|above| above.is_dir()).map(Path::to_owned));
        }
        let private = self.worktree.private("");
        for (_, to) in &self.kept {
            let above = to.ancestors().skip(1).take_while(|above| above.starts_with(&private));
            folders.extend(above.map(Path::to_owned));
        }
        flush_all(&folders.into_iter().collect::<Vec<_>>())
    }
}
