//! Files that leave the worktree: each is renamed out, compared, and deleted only when a checkpoint
//! has exactly it. Anything else is kept under its path, including leftovers of an interrupted run.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::files::entry_at;
use super::{Apply, Step};
use crate::beneath::Parent;
use crate::error::GitError;
use crate::removal::remove_folder;

impl Apply<'_> {
    /// Finds the files that an interrupted run kept.
    pub(super) fn note_kept(&mut self) -> Result<(), GitError> {
        let mut folders = vec![self.aside.join("kept")];
        while let Some(folder) = folders.pop() {
            let items = match fs::read_dir(&folder) {
                Ok(items) => items,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(GitError::io("list", &folder)(error)),
            };
            for item in items {
                let path = item.map_err(GitError::io("list", &folder))?.path();
                let below: PathBuf = path.strip_prefix(&self.aside).unwrap_or(&path).iter().skip(2).collect();
                if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                    folders.push(path);
                } else {
                    self.kept.push((below, path));
                }
            }
        }
        Ok(())
    }

    /// Checks the files that an interrupted run left outside of the worktree.
    pub(super) fn settle_leftovers(&mut self, steps: &[Step]) -> Result<(), GitError> {
        self.pass("clear up")?;
        remove_folder(&self.parts)?;
        for step in steps {
            self.settle(&step.number.to_string(), step)?;
            self.settle(&format!("{}.old", step.number), step)?;
        }
        // It is empty now, or it is not ours to delete.
        match fs::remove_dir(&self.ready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("delete", &self.ready)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(super) fn move_aside(&mut self, path: &Path) -> Result<(), GitError> {
        let to = self.aside.join("moved").join(path);
        // The file at the path now came later.
        let done = fs::symlink_metadata(&to).is_ok();
        if !done {
            let Parent::Open(parent, name) = self.parent(path)? else {
                return Ok(());
            };
            self.pass("move something aside")?;
            if !self.rename_out(&parent, name, path, &to)? {
                return Ok(());
            }
        }
        self.kept.push((path.to_owned(), to));
        Ok(())
    }

    /// False when nothing is there.
    fn rename_out(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, to: &Path) -> Result<bool, GitError> {
        let folder = to.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(GitError::io("create", folder))?;
        match rustix::fs::renameat(parent, name, CWD, to) {
            Ok(()) => {
                self.touch(path);
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(GitError::io("move aside", &self.worktree.root.join(path))(error.into())),
        }
    }

    /// Removes the file at a path, and deletes it if a checkpoint has it.
    pub(super) fn displace(&mut self, step: &Step) -> Result<(), GitError> {
        let path = &step.path;
        let name_of_old = format!("{}.old", step.number);
        let to = self.ready.join(&name_of_old);
        let Parent::Open(parent, name) = self.parent(path)? else {
            return Ok(());
        };
        self.pass("take a file away")?;
        match rustix::fs::renameat(&parent, name, CWD, &to) {
            Ok(()) => self.touch(path),
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(GitError::io("take away", &self.worktree.root.join(path))(error.into())),
        }
        self.settle(&name_of_old, step)
    }

    /// Deletes a removed file if a checkpoint has it; otherwise keeps it.
    pub(super) fn settle(&mut self, name: &str, step: &Step) -> Result<(), GitError> {
        let staged = self.ready.join(name);
        if fs::symlink_metadata(&staged).is_err() {
            return Ok(());
        }
        let there = entry_at(&staged)?;
        self.pass("delete what was replaced")?;
        if there.is_some_and(|there| step.expects(&there)) {
            return fs::remove_file(&staged).map_err(GitError::io("delete", &staged));
        }
        let to = self.free_place(&step.path);
        let folder = to.parent().unwrap_or(&to);
        fs::create_dir_all(folder).map_err(GitError::io("create", folder))?;
        fs::rename(&staged, &to).map_err(GitError::io("create", &to))?;
        self.kept.push((step.path.clone(), to));
        Ok(())
    }

    /// Moves an unexpected file at a path aside.
    pub(super) fn keep_from_worktree(&mut self, path: &Path) -> Result<(), GitError> {
        let to = self.free_place(path);
        let Parent::Open(parent, name) = self.parent(path)? else {
            return Ok(());
        };
        self.pass("move something aside")?;
        if self.rename_out(&parent, name, path, &to)? {
            self.kept.push((path.to_owned(), to));
        }
        Ok(())
    }

    fn free_place(&self, path: &Path) -> PathBuf {
        let mut number = 0_u64;
        loop {
            let top = self.aside.join("kept").join(number.to_string());
            let place = top.join(path);
            let mut above = place.ancestors().skip(1).take_while(|above| above.starts_with(&top));
            // A link that was kept must not be followed.
            let is_blocked = |above: &Path| fs::symlink_metadata(above).is_ok_and(|meta| !meta.is_dir());
            if !above.any(is_blocked) && fs::symlink_metadata(&place).is_err() {
                return place;
            }
            number += 1;
        }
    }
}
