//! Makes files and names survive a power cut. It owns how to wait for the disk; callers own the
//! order in which things must survive.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::GitError;
use crate::shared_work::share_out;

/// Above this number of paths, flushing the whole file system once is cheaper.
pub(crate) const MOST_ONE_BY_ONE: usize = 256;

/// A flush waits for the disk, not for a core; the file system joins concurrent flushes.
const THREADS: usize = 8;

/// Flushes files and folders of one file system, all at the same time.
pub(crate) fn flush_all(paths: &[PathBuf]) -> Result<(), GitError> {
    if paths.len() > MOST_ONE_BY_ONE
        && let Some(path) = paths.first()
    {
        return flush_file_system(path);
    }
    let flush = |(): &mut (), path: &PathBuf| {
        let file = File::open(path).map_err(GitError::io("open", path))?;
        file.sync_all().map_err(GitError::io("flush", path))
    };
    share_out(paths, THREADS, || Ok(()), flush)?;
    Ok(())
}

/// Flushes everything on the file system that `path` is on.
pub(crate) fn flush_file_system(path: &Path) -> Result<(), GitError> {
    let file = File::open(path).map_err(GitError::io("open", path))?;
    rustix::fs::syncfs(&file).map_err(|error| GitError::io("flush", path)(error.into()))
}

/// A small file that is written, but neither flushed nor in its final place.
#[derive(Debug)]
pub(crate) struct Prepared {
    file: NamedTempFile,
    to: PathBuf,
}

impl Prepared {
    /// Writes `bytes`, the future content of `to`.
    pub(crate) fn new(to: &Path, bytes: &[u8]) -> Result<Self, GitError> {
        let folder = to.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(GitError::io("create", folder))?;
        let mut file = NamedTempFile::new_in(folder).map_err(GitError::io("make a file in", folder))?;
        file.write_all(bytes).map_err(GitError::io("write", to))?;
        Ok(Self {
            file,
            to: to.to_owned(),
        })
    }

    /// The temporary path, for the flush.
    pub(crate) fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    /// Renames it to its final place. That survives a power cut once the folder is flushed.
    pub(crate) fn place(self) -> Result<(), GitError> {
        match self.file.persist(&self.to) {
            Ok(_) => Ok(()),
            Err(error) => Err(GitError::io("create", &self.to)(error.error)),
        }
    }
}
