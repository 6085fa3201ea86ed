//! Puts the state of a folder into a private index: which paths, in what order, and the check that
//! git really took every one. It does not know whose folder or index it is.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::command::GitCommand;
use crate::error::GitError;

/// Flags for every diff of files: no program runs, no submodule is entered.
pub(crate) const DIFF: &[&str] = &[
    "-z",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--no-color",
    "--ignore-submodules=dirty",
];

/// The differences between files and an index. Paths are bytes relative to the top.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// In the index, not on the disk.
    pub(crate) gone: Vec<Vec<u8>>,
    /// In the index, with other content on the disk.
    pub(crate) modified: Vec<Vec<u8>>,
    /// Paths that are not in the index.
    pub(crate) untracked: Vec<Vec<u8>>,
}

impl Changes {
    /// The changes of the files in `git`'s index.
    pub(crate) async fn tracked(git: impl Fn(&'static str) -> GitCommand) -> Result<Self, GitError> {
        let status = git("diff-files").args(DIFF).arg("--name-status").run().await?;
        let mut changes = Self::default();
        let mut parts = split(&status);
        while let Some(kind) = parts.next() {
            let path = parts
                .next()
                .ok_or_else(|| GitError::unexpected("diff-files", &status))?;
            let list = if kind == b"D" {
                &mut changes.gone
            } else {
                &mut changes.modified
            };
            list.push(path.to_owned());
        }
        Ok(changes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.modified.is_empty() && self.untracked.is_empty()
    }

    /// Puts all changes into the index; a partial result is an error.
    pub(crate) async fn stage(&self, root: &Path, git: impl Fn(&'static str) -> GitCommand) -> Result<(), GitError> {
        if !self.gone.is_empty() {
            // Without looking at the disk: the path may lie beyond a new symbolic link.
            git("update-index")
                .args(["--force-remove", "-z", "--stdin"])
                .stdin(lines(&self.gone))
                .run()
                .await?;
        }
        let present = [lines(&self.modified), lines(&self.untracked)].concat();
        if !present.is_empty() {
            git("update-index")
                .args(["--add", "--remove", "--replace", "-z", "--stdin"])
                .stdin(present)
                .run()
                .await?;
        }
        if self.untracked.is_empty() {
            return Ok(());
        }
        // git skips names that it never stores (`git~1`) and still ends with 0.
        let taken = git("ls-files").arg("-z").run().await?;
        let taken: HashSet<&[u8]> = split(&taken).collect();
        let still_there = |path: &&Vec<u8>| fs::symlink_metadata(root.join(OsStr::from_bytes(path))).is_ok();
        let mut missing = self.untracked.iter().filter(|path| !taken.contains(path.as_slice()));
        match missing.find(still_there) {
            Some(path) => Err(GitError::NotTaken {
                path: String::from_utf8_lossy(path).into_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// Copies an index with its modification time. git compares that time, in whole seconds, with a
/// file's to decide whether a file that looks unchanged may have changed after it was recorded, and
/// then reads it; with a later time, a change of the same second and length is missed.
pub(crate) fn copy_index(from: &Path, to: &Path) -> io::Result<()> {
    let modified = fs::metadata(from)?.modified()?;
    fs::copy(from, to)?;
    fs::File::options().write(true).open(to)?.set_modified(modified)
}

/// The parts of NUL-separated output.
pub(crate) fn split(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    output.split(|byte| *byte == 0).filter(|part| !part.is_empty())
}

/// NUL-separated input, the inverse of [`split`].
pub(crate) fn lines(paths: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut list = Vec::new();
    for path in paths {
        list.extend_from_slice(path.as_ref());
        list.push(0);
    }
    list
}
