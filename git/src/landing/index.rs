//! Reads and replaces the index of a person's repository as git does: the writer holds
//! `index.lock`. The callers decide what to write.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::LandingError;
use crate::error::GitError;

/// The right to write an index, until dropped. A git that wants it meanwhile fails.
#[derive(Debug)]
pub(super) struct IndexLock {
    git_dir: PathBuf,
    lock: PathBuf,
}

impl IndexLock {
    /// Takes the lock; fails at once when it is held.
    pub(super) fn take(git_dir: &Path) -> Result<Self, LandingError> {
        let lock = git_dir.join("index.lock");
        match fs::File::options().write(true).create_new(true).open(&lock) {
            Ok(_) => Ok(Self {
                git_dir: git_dir.to_owned(),
                lock,
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(LandingError::Locked { lock }),
            Err(error) => Err(GitError::io("create", &lock)(error).into()),
        }
    }

    /// Replaces the index completely or not at all; `None`: there is no index.
    pub(super) fn replace(&self, index: Option<&[u8]>) -> Result<(), GitError> {
        let Some(bytes) = index else {
            let path = self.git_dir.join("index");
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("delete", &path)(error)),
                Ok(()) | Err(_) => Ok(()),
            };
        };
        replace(&self.git_dir, "index", bytes)
    }
}

impl Drop for IndexLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.lock) {
            tracing::warn!(%error, "the index stays locked");
        }
    }
}

/// The index as it is; `None` when there is none.
pub(super) fn read_index(git_dir: &Path) -> Result<Option<Vec<u8>>, GitError> {
    let path = git_dir.join("index");
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(GitError::io("read", &path)(error)),
    }
}

/// Writes a file of a git directory, completely or not at all.
pub(super) fn replace(git_dir: &Path, name: &str, bytes: &[u8]) -> Result<(), GitError> {
    let (path, new) = (git_dir.join(name), git_dir.join(format!("{name}.kage")));
    let mut file = fs::File::create(&new).map_err(GitError::io("create", &new))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let replaced = written
        .map_err(GitError::io("write", &new))
        .and_then(|()| fs::rename(&new, &path).map_err(GitError::io("replace", &path)));
    if replaced.is_err()
        && let Err(error) = fs::remove_file(&new)
    {
        tracing::debug!(%error, path = %new.display(), "half a file stays");
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_holds_it_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let lock = IndexLock::take(folder.path()).unwrap();
        assert!(IndexLock::take(folder.path()).is_err());
        lock.replace(Some(b"an index")).unwrap();
        assert_eq!(read_index(folder.path()).unwrap().as_deref(), Some(&b"an index"[..]));
        lock.replace(None).unwrap();
        assert_eq!(read_index(folder.path()).unwrap(), None);
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        IndexLock::take(folder.path()).unwrap();
    }
}
