//! A file whose advisory lock says who uses a folder: a repository, a mirror, a state directory.
//! The system releases the lock when its process dies.
//!
//! Dropping a [`LockFile`] unlocks it explicitly. Closing the file would not be enough: a program
//! that another thread is starting shares the open file, and with it the lock, from `fork` to
//! `execve` (flock(2)), so the next owner would still find it locked.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::path::Path;

/// An open lock file, unlocked when dropped.
#[derive(Debug)]
pub struct LockFile(File);

impl LockFile {
    /// Opens the file, and creates it if it is missing. Takes no lock.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map(Self)
    }

    /// Opens the file for reading, so that another's lock can be looked at. Takes no lock.
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Locks the file exclusively and writes the id of this process into it, for the messages of
    /// processes that find it locked ([`holder`]).
    pub fn try_own(&self) -> Result<(), TryLockError> {
        self.0.try_lock()?;
        self.0
            .set_len(0)
            .and_then(|()| (&self.0).write_all(std::process::id().to_string().as_bytes()))
            .map_err(TryLockError::Error)
    }
}

impl Deref for LockFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Fails only where the file system has no locks, and there nothing was locked.
        let _without_locks = self.0.unlock();
    }
}

/// The process that owns the lock file at `path`, as it wrote it down.
#[must_use]
pub fn holder(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_reads_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = LockFile::open(&path).unwrap();
        first.try_own().unwrap();
        let second = LockFile::open(&path).unwrap();
        assert!(matches!(second.try_own(), Err(TryLockError::WouldBlock)));
        assert_eq!(holder(&path), Some(std::process::id()));
        assert_eq!(holder(&dir.path().join("missing")), None);
    }

    #[test]
    fn dropping_it_unlocks_what_a_starting_program_still_shares() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = LockFile::open(&path).unwrap();
        first.try_own().unwrap();
        // A forked child has the same open file description, as this duplicate has.
        let shared = first.try_clone().unwrap();
        drop(first);
        LockFile::open(&path).unwrap().try_own().unwrap();
        drop(shared);
    }
}
