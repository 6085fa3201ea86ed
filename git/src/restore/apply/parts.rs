//! Writes the new files of a restore outside of the worktree, several at a time when there are
//! many.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use super::{Apply, Step, threads_for};
use crate::beneath::{Parent, new_mode};
use crate::durable::flush_all;
use crate::error::GitError;
use crate::known::KnownEntry;
use crate::objects::{Objects, Unflushed, mode};
use crate::shared_work::share_out;

impl Apply<'_> {
    /// Writes all new files. Returns the steps that have something to place.
    pub(super) fn stage(&self, steps: &[Step]) -> Result<BTreeSet<usize>, GitError> {
        fs::create_dir_all(&self.parts).map_err(GitError::io("create", &self.parts))?;
        let start = || Objects::open(self.worktree.mirror.path(), Unflushed::default());
        let staged = share_out(steps, threads_for(steps.len()), start, |objects, step| {
            Ok(self.stage_one(objects, step)?.then_some(step.number))
        })?;
        Ok(staged.into_iter().flatten().collect())
    }

    /// False when the step has nothing to place.
    fn stage_one(&self, objects: &Objects, step: &Step) -> Result<bool, GitError> {
        let Some(after) = step.difference.after else {
            return Ok(false);
        };
        if self.resumed && self.is_now(&step.path, &after)? {
            return Ok(false);
        }
        let part = self.parts.join(step.number.to_string());
        self.pass("write a file")?;
        if after.is_link() {
            let target = objects.read(after.id)?;
            symlink(OsStr::from_bytes(&target), &part).map_err(GitError::io("create", &part))?;
        } else if after.is_file() {
            self.write_part(objects, &step.path, &after, &part)?;
        }
        Ok(true)
    }

    pub(super) fn flush_parts(
        &self,
        steps: &[Step],
        placed: &BTreeSet<usize>,
        journal: Option<PathBuf>,
    ) -> Result<(), GitError> {
        let is_file = |step: &&Step| step.difference.after.is_some_and(|after| after.is_file());
        let files = steps
            .iter()
            .filter(|step| placed.contains(&step.number))
            .filter(is_file);
        let mut paths: Vec<PathBuf> = vec![self.parts.clone()];
        paths.extend(
            files
                .map(|step| self.parts.join(step.number.to_string()))
                .chain(journal),
        );
        flush_all(&paths)
    }

    fn write_part(&self, objects: &Objects, path: &Path, after: &KnownEntry, part: &Path) -> Result<(), GitError> {
        let old = match self.beneath.parent(path, false) {
            Ok(Parent::Open(parent, name)) => rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).ok(),
            Ok(Parent::Absent | Parent::Blocked(_)) => None,
            Err(error) => return Err(GitError::io("look at", &self.worktree.root.join(path))(error)),
        };
        let old = old.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let old = old.map(|stat| stat.st_mode & 0o7777);
        let permissions = new_mode(old, after.mode == mode::PROGRAM);
        let mut options = File::options();
        let opened = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(permissions & 0o777)
            .open(part);
        let file = opened.map_err(GitError::io("create", part))?;
        if old.is_some() {
            // The permissions of the former file apply, not the umask.
            let exact = fs::Permissions::from_mode(permissions);
            file.set_permissions(exact).map_err(GitError::io("change", part))?;
        }
        objects.copy_to(after.id, &file, part)
    }
}
