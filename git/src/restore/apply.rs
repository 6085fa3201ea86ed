//! Carrying a restore out, from its beginning or from wherever it was interrupted. New
//! files are complete and flushed before the first change. A file leaves the worktree by a
//! rename into a folder of Kage's, and is deleted there only after a look proved that the
//! safety checkpoint has it: whatever else somebody wrote at the last moment is kept.
//!
//! ```text
//! <private>/parts/<number>              new files while they are written
//! <private>/ready/<number>              new files, complete; then what they replaced
//! <private>/aside/<restore>/moved/...   what was planned to be moved aside
//! <private>/aside/<restore>/kept/...    what nobody expected, under its path
//! ```

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags};
use rustix::io::Errno;

use super::journal::Journal;
use super::{Restored, restored};
use crate::beneath::{Beneath, Parent, new_mode};
use crate::checkpoint::Desk;
use crate::error::GitError;
use crate::known::{Difference, Entry, Folder, Stats};
use crate::objects::{Objects, Unflushed, flush_all, mode};

mod files;

mod kept;

use files::{kind_at, read_entry, remove_folder, rename_to_free};

/// How often a file is tried to be put in place.
const PLACE_ATTEMPTS: usize = 32;

/// The paths that differ, in order.
pub(super) type Steps = BTreeMap<PathBuf, Difference>;

pub(super) struct Apply<'a> {
    desk: &'a Desk,
    journal: &'a Journal,
    objects: Objects,
    beneath: Beneath,
    steps: Steps,
    /// Whether some of it may have been done already.
    resumed: bool,
    parts: PathBuf,
    ready: PathBuf,
    aside: PathBuf,
    /// What is not where it was, and where it is.
    kept: Vec<(PathBuf, PathBuf)>,
    /// Folders of the worktree that were changed.
    touched: BTreeSet<PathBuf>,
    stop_before: Option<u64>,
    passed: Cell<u64>,
}

impl<'a> Apply<'a> {
    pub(super) fn new(
        desk: &'a Desk,
        journal: &'a Journal,
        steps: Steps,
        stop_before: Option<u64>,
    ) -> Result<Self, GitError> {
        Ok(Self {
            desk,
            journal,
            objects: Objects::open(desk.mirror.path(), Unflushed::default())?,
            beneath: Beneath::open(&desk.root).map_err(GitError::io("open", &desk.root))?,
            steps,
            resumed: false,
            parts: desk.private("parts"),
            ready: desk.private("ready"),
            aside: desk.private("aside").join(&journal.name),
            kept: Vec::new(),
            touched: BTreeSet::new(),
            stop_before,
            passed: Cell::new(0),
        })
    }

    /// The restore of a journal that was found.
    pub(super) fn found(desk: &'a Desk, journal: &'a Journal) -> Result<Self, GitError> {
        let mut apply = Self::new(desk, journal, Steps::new(), None)?;
        let objects = &apply.objects;
        let steps = || {
            let safety = Folder::load(objects.repository(), objects.tree_of(journal.safety)?, &Stats::new())?;
            safety.differences(objects.repository(), objects.tree_of(journal.target)?)
        };
        apply.steps = steps().map_err(GitError::library("compare two checkpoints"))?;
        Ok(apply)
    }

    /// Passes the next point at which everything may end.
    pub(super) fn pass(&self, action: &'static str) -> Result<(), GitError> {
        let number = self.passed.get();
        self.passed.set(number + 1);
        if self.stop_before == Some(number) {
            return Err(GitError::Interrupted { action });
        }
        Ok(())
    }

    /// Writes the journal, once all that it needs is on the disk, and does all steps.
    pub(super) fn run(mut self) -> Result<Restored, GitError> {
        let steps = self.list();
        self.pass("clear up")?;
        remove_folder(&self.parts)?;
        let placed = self.stage(&steps)?;
        let prepared = self.journal.prepare(self.desk)?;
        self.flush_parts(&placed, Some(prepared.path()))?;
        self.pass("write the journal")?;
        prepared.place()?;
        flush_all(&[self.desk.private("")])?;
        self.carry_out(&steps, &placed)
    }

    /// The same, where the journal is there and some steps may have been done.
    pub(super) fn resume(mut self) -> Result<Restored, GitError> {
        self.resumed = true;
        self.note_kept()?;
        let steps = self.list();
        self.settle_leftovers(&steps)?;
        let placed = self.stage(&steps)?;
        self.flush_parts(&placed, None)?;
        self.carry_out(&steps, &placed)
    }

    fn list(&self) -> Vec<(PathBuf, Difference)> {
        self.steps.iter().map(|(path, step)| (path.clone(), *step)).collect()
    }

    fn carry_out(mut self, steps: &[(PathBuf, Difference)], placed: &BTreeSet<usize>) -> Result<Restored, GitError> {
        self.pass("name the written files")?;
        fs::rename(&self.parts, &self.ready).map_err(GitError::io("create", &self.ready))?;
        // From the back, so that folders are empty when their turn comes.
        for (number, (path, step)) in steps.iter().enumerate().rev() {
            self.take_away(number, path, step)?;
        }
        for path in self.journal.asides.clone() {
            self.move_aside(&path)?;
        }
        for (number, (path, step)) in steps.iter().enumerate() {
            if placed.contains(&number) {
                self.place(number, path, step)?;
            }
        }
        self.pass("delete a folder")?;
        fs::remove_dir(&self.ready).map_err(GitError::io("delete", &self.ready))?;
        self.pass("write what the worktree is")?;
        let last = self.desk.prepare_last(self.journal.target)?;
        self.flush_touched(last.path())?;
        last.place()?;
        self.pass("delete the journal")?;
        self.journal.delete(self.desk)?;
        flush_all(&[self.desk.private("")])?;
        restored(self.journal, &self.steps, self.kept)
    }

    /// Writes all new files. Returns which steps have something to place.
    fn stage(&mut self, steps: &[(PathBuf, Difference)]) -> Result<BTreeSet<usize>, GitError> {
        let mut placed = BTreeSet::new();
        fs::create_dir_all(&self.parts).map_err(GitError::io("create", &self.parts))?;
        for (number, (path, step)) in steps.iter().enumerate() {
            let Some(after) = step.after else { continue };
            if self.resumed && self.is_now(path, &after)? {
                continue;
            }
            placed.insert(number);
            let part = self.parts.join(number.to_string());
            self.pass("write a file")?;
            if after.is_link() {
                let target = self.objects.read(after.id)?;
                symlink(OsStr::from_bytes(&target), &part).map_err(GitError::io("create", &part))?;
            } else if after.is_file() {
                self.write_part(path, &after, &part)?;
            }
        }
        Ok(placed)
    }

    fn flush_parts(&self, placed: &BTreeSet<usize>, journal: Option<PathBuf>) -> Result<(), GitError> {
        let parts = placed.iter().map(|number| self.parts.join(number.to_string()));
        let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        let mut paths: Vec<PathBuf> = parts.filter(is_file).chain(journal).collect();
        paths.push(self.parts.clone());
        flush_all(&paths)
    }

    fn write_part(&self, path: &Path, after: &Entry, part: &Path) -> Result<(), GitError> {
        let old = match self.beneath.parent(path, false) {
            Ok(Parent::Open(parent, name)) => rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).ok(),
            Ok(Parent::Absent | Parent::Blocked(_)) => None,
            Err(error) => return Err(GitError::io("look at", &self.desk.root.join(path))(error)),
        };
        let old = old.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let old = old.map(|stat| stat.st_mode & 0o7777);
        let permissions = new_mode(old, after.mode == mode::PROGRAM);
        let mut options = File::options();
        let opened = options
            .write(true)
            .create_new(true)
            .mode(permissions & 0o777)
            .open(part);
        let mut file = opened.map_err(GitError::io("create", part))?;
        if old.is_some() {
            // A former file's permissions are not the umask's business.
            let exact = fs::Permissions::from_mode(permissions);
            file.set_permissions(exact).map_err(GitError::io("change", part))?;
        }
        let bytes = self.objects.read(after.id)?;
        file.write_all(&bytes).map_err(GitError::io("write", part))
    }

    /// Takes away what the target does not have.
    fn take_away(&mut self, number: usize, path: &Path, step: &Difference) -> Result<(), GitError> {
        let stays = step.after.is_some_and(|after| after.is_file() || after.is_link());
        let Some(before) = step.before else { return Ok(()) };
        if stays && before.mode != mode::SUBMODULE {
            return Ok(());
        }
        let full = self.desk.root.join(path);
        let Parent::Open(parent, name) = self.parent(path)? else {
            return Ok(());
        };
        let kind = kind_at(&parent, name).map_err(GitError::io("look at", &full))?;
        match kind {
            Some(FileType::RegularFile | FileType::Symlink) if before.mode != mode::SUBMODULE => {
                self.displace(number, path, step)?;
            }
            Some(FileType::Directory) if before.mode == mode::SUBMODULE => {
                self.pass("delete a folder")?;
                self.remove_if_empty(&parent, name, path)?;
            }
            Some(_) | None => {}
        }
        self.remove_empty_above(path)
    }

    /// Deletes the folders above a path that are empty, as git does.
    fn remove_empty_above(&mut self, path: &Path) -> Result<(), GitError> {
        let mut folder = path.parent();
        while let Some(here) = folder.filter(|here| *here != Path::new("")) {
            let Parent::Open(parent, name) = self.parent(here)? else {
                return Ok(());
            };
            self.pass("delete a folder")?;
            if !self.remove_if_empty(&parent, name, here)? {
                return Ok(());
            }
            folder = here.parent();
        }
        Ok(())
    }

    /// False when it holds something.
    fn remove_if_empty(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<bool, GitError> {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.touch(path);
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(GitError::io("delete", &self.desk.root.join(path))(error.into())),
        }
    }

    fn place(&mut self, number: usize, path: &Path, step: &Difference) -> Result<(), GitError> {
        let full = self.desk.root.join(path);
        let is_submodule = step.after.is_some_and(|after| after.mode == mode::SUBMODULE);
        let staged = self.ready.join(number.to_string());
        // More than one when somebody makes and removes things here at the same moment.
        for _ in 0..PLACE_ATTEMPTS {
            self.pass("place a file")?;
            let (parent, name) = match self.beneath.parent(path, true) {
                Ok(Parent::Open(parent, name)) => (parent, name),
                Ok(Parent::Absent) => continue,
                Ok(Parent::Blocked(by)) => {
                    self.keep_from_worktree(&by)?;
                    continue;
                }
                Err(error) => return Err(GitError::io("create", &full)(error)),
            };
            self.touch(path);
            let kind = kind_at(&parent, name).map_err(GitError::io("look at", &full))?;
            let done = match kind {
                None if is_submodule => rustix::fs::mkdirat(&parent, name, 0o777.into()),
                Some(FileType::Directory) if is_submodule => Ok(()),
                None => rename_to_free(&staged, &parent, name),
                Some(FileType::RegularFile | FileType::Symlink) if !is_submodule => {
                    rustix::fs::renameat_with(CWD, &staged, &parent, name, RenameFlags::EXCHANGE)
                }
                Some(FileType::Directory) if self.remove_if_empty(&parent, name, path)? => continue,
                Some(_) => {
                    self.keep_from_worktree(path)?;
                    continue;
                }
            };
            match done {
                Ok(()) => return self.settle(&number.to_string(), path, step),
                Err(Errno::EXIST | Errno::NOENT) => {}
                // A file system that cannot exchange two files: first the old one goes.
                Err(Errno::INVAL | Errno::NOSYS) if kind.is_some() => self.displace(number, path, step)?,
                Err(error) => return Err(GitError::io("write", &full)(error.into())),
            }
        }
        Err(GitError::io("write", &full)(Errno::AGAIN.into()))
    }

    fn parent<'p>(&self, path: &'p Path) -> Result<Parent<'p>, GitError> {
        let parent = self.beneath.parent(path, false);
        parent.map_err(GitError::io("open", &self.desk.root.join(path)))
    }

    fn is_now(&self, path: &Path, entry: &Entry) -> Result<bool, GitError> {
        let full = self.desk.root.join(path);
        let Parent::Open(parent, name) = self.parent(path)? else {
            return Ok(false);
        };
        let failed = GitError::io("read", &full);
        let there = read_entry(&parent, name).map_err(failed)?;
        Ok(there.is_some_and(|there| there.is_same(entry)))
    }

    fn touch(&mut self, path: &Path) {
        let folder = path.parent().unwrap_or(Path::new(""));
        self.touched.insert(self.desk.root.join(folder));
    }

    /// Flushes the changed folders, in whose place a gone one's parent has to be.
    fn flush_touched(&self, more: PathBuf) -> Result<(), GitError> {
        let mut folders = BTreeSet::from([more]);
        for folder in &self.touched {
            let there = folder
                .ancestors()
                .find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()));
            folders.extend(there.map(Path::to_owned));
            // New folders are names in the one above.
            let above = folder.parent().filter(|above| above.starts_with(&self.desk.root));
            folders.extend(above.filter(|above| above.is_dir()).map(Path::to_owned));
        }
        let private = self.desk.private("");
        for (_, to) in &self.kept {
            let above = to.ancestors().skip(1).take_while(|above| above.starts_with(&private));
            folders.extend(above.map(Path::to_owned));
        }
        flush_all(&folders.into_iter().collect::<Vec<_>>())
    }
}
