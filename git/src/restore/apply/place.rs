//! Changes the worktree itself: paths that the target lacks are removed, backwards, so that folders
//! are empty when their turn comes; then the target's paths are placed.
//!
//! Many files are placed several at a time. Anything but replacing one file by another, or a new
//! file where nothing was, waits for the single thread that may also move things aside.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags};
use rustix::io::Errno;

use super::files::{kind_at, read_entry, rename_to_free};
use super::{Apply, MANY, Step, threads_for};
use crate::beneath::Parent;
use crate::error::GitError;
use crate::objects::mode;
use crate::shared_work::share_out;

/// How often placing a file is tried.
const PLACE_ATTEMPTS: usize = 32;

/// The result of placing a file without moving anything else.
enum Placed {
    /// The replaced file is deleted.
    Whole,
    /// The replaced file is not one that a checkpoint has.
    Unsettled,
    /// Nothing changed, except that folders were created.
    Not,
}

impl Apply<'_> {
    /// Removes a path that the target does not have.
    pub(super) fn take_away(&mut self, step: &Step) -> Result<(), GitError> {
        let Step { path, difference, .. } = step;
        let stays = difference.after.is_some_and(|after| after.is_file() || after.is_link());
        let Some(before) = difference.before else { return Ok(()) };
        if stays && before.mode != mode::SUBMODULE {
            return Ok(());
        }
        let full = self.worktree.root.join(path);
        let Parent::Open(parent, name) = self.parent(path)? else {
            return Ok(());
        };
        let kind = kind_at(&parent, name).map_err(GitError::io("look at", &full))?;
        match kind {
            Some(FileType::RegularFile | FileType::Symlink) if before.mode != mode::SUBMODULE => {
                self.displace(step)?;
            }
            Some(FileType::Directory) if before.mode == mode::SUBMODULE => {
                self.pass("delete a folder")?;
                self.remove_if_empty(&parent, name, path)?;
            }
            Some(_) | None => {}
        }
        self.remove_empty_above(path)
    }

    /// Deletes the empty folders above a path, as git does.
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

    /// False when the folder is not empty.
    fn remove_if_empty(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<bool, GitError> {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.touch(path);
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(GitError::io("delete", &self.worktree.root.join(path))(error.into())),
        }
    }

    pub(super) fn place_all(&mut self, steps: &[Step], placed: &BTreeSet<usize>) -> Result<(), GitError> {
        let steps: Vec<&Step> = steps.iter().filter(|step| placed.contains(&step.number)).collect();
        if steps.len() < MANY {
            return steps.into_iter().try_for_each(|step| self.place(step));
        }
        for step in &steps {
            self.touch(&step.path);
        }
        let ready = File::open(&self.ready).map_err(GitError::io("open", &self.ready))?;
        let ready = OwnedFd::from(ready);
        let done = share_out(
            &steps,
            threads_for(steps.len()),
            || Ok(()),
            |(), step| self.place_simply(&ready, step),
        )?;
        for (step, done) in steps.into_iter().zip(done) {
            match done {
                Placed::Whole => {}
                Placed::Unsettled => self.settle(&step.number.to_string(), step)?,
                Placed::Not => self.place(step)?,
            }
        }
        Ok(())
    }

    /// Places a file where nothing or another file is. Moves nothing aside.
    fn place_simply(&self, ready: &OwnedFd, step: &Step) -> Result<Placed, GitError> {
        if step.difference.after.is_some_and(|after| after.mode == mode::SUBMODULE) {
            return Ok(Placed::Not);
        }
        self.pass("place a file")?;
        // Obstacles and errors are met again by the single thread.
        let Ok(Parent::Open(parent, name)) = self.beneath.parent(&step.path, true) else {
            return Ok(Placed::Not);
        };
        let staged = step.number.to_string();
        let replaces = match kind_at(&parent, name) {
            Ok(None) => false,
            Ok(Some(FileType::RegularFile | FileType::Symlink)) => true,
            Ok(Some(_)) | Err(_) => return Ok(Placed::Not),
        };
        let done = if replaces {
            rustix::fs::renameat_with(ready, &staged, &parent, name, RenameFlags::EXCHANGE)
        } else {
            rename_to_free(&self.ready.join(&staged), &parent, name)
        };
        if done.is_err() {
            return Ok(Placed::Not);
        }
        if !replaces {
            return Ok(Placed::Whole);
        }
        let full = self.ready.join(&staged);
        let there = read_entry(ready, OsStr::new(&staged)).map_err(GitError::io("read", &full))?;
        if !there.is_some_and(|there| step.expects(&there)) {
            return Ok(Placed::Unsettled);
        }
        self.pass("delete what was replaced")?;
        let deleted = rustix::fs::unlinkat(ready, &staged, AtFlags::empty());
        deleted.map_err(|error| GitError::io("delete", &full)(error.into()))?;
        Ok(Placed::Whole)
    }

    fn place(&mut self, step: &Step) -> Result<(), GitError> {
        let Step {
            number,
            path,
            difference,
            ..
        } = step;
        let full = self.worktree.root.join(path);
        let is_submodule = difference.after.is_some_and(|after| after.mode == mode::SUBMODULE);
        let staged = self.ready.join(number.to_string());
        // More than once when another process creates and removes things here at the same moment.
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
                Ok(()) => return self.settle(&number.to_string(), step),
                Err(Errno::EXIST | Errno::NOENT) => {}
                // The file system cannot exchange two files: the old one is removed first.
                Err(Errno::INVAL | Errno::NOSYS) if kind.is_some() => self.displace(step)?,
                Err(error) => return Err(GitError::io("write", &full)(error.into())),
            }
        }
        Err(GitError::io("write", &full)(Errno::AGAIN.into()))
    }
}
