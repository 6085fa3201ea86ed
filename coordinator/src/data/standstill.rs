//! While a backup is made of a data folder, nothing is removed from it: what the rows of the backup
//! name is copied after them. Both sides hold a lock on a file, so that the backup can be another
//! process, and a killed one holds nothing.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use kage_git::lock_file::LockFile;

/// How often to look whether a sweep has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The file of the lock.
pub(crate) const LOCK: &str = "backup.lock";

/// Nothing is removed while this lives.
#[derive(Debug)]
pub(crate) struct Standstill {
    _lock: LockFile,
}

impl Standstill {
    /// Waits for the end of a sweep. `None` when it takes longer than `within`.
    pub(crate) fn hold(root: &Path, within: Duration) -> io::Result<Option<Self>> {
        let lock = LockFile::open(&root.join(LOCK))?;
        let deadline = Instant::now() + within;
        loop {
            match lock.try_lock_shared() {
                Ok(()) => return Ok(Some(Self { _lock: lock })),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

/// The process that removes files of a data folder, which may be at several removals at once.
#[derive(Debug)]
pub(crate) struct Removals {
    path: PathBuf,
    held: Mutex<Weak<LockFile>>,
}

/// No backup begins while this lives.
#[derive(Debug)]
pub(crate) struct Removing {
    _lock: Arc<LockFile>,
}

impl Removals {
    pub(crate) fn of(root: &Path) -> Self {
        Self {
            path: root.join(LOCK),
            held: Mutex::default(),
        }
    }

    /// Begins to remove files. `None` while a backup is made.
    pub(crate) fn begin(&self) -> io::Result<Option<Removing>> {
        // A reference is replaced in one step.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = held.upgrade() {
            return Ok(Some(Removing { _lock: lock }));
        }
        let lock = LockFile::open(&self.path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let lock = Arc::new(lock);
        *held = Arc::downgrade(&lock);
        Ok(Some(Removing { _lock: lock }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_removed_or_copied_and_never_both() {
        let dir = tempfile::tempdir().unwrap();
        let removals = Removals::of(dir.path());
        let hold = || Standstill::hold(dir.path(), Duration::ZERO).unwrap();
        let removing = (removals.begin().unwrap(), removals.begin().unwrap());
        assert!(removing.0.is_some() && removing.1.is_some(), "two removals at once");
        drop(removing.0);
        assert!(hold().is_none());
        drop(removing.1);
        let (one, other) = (hold(), hold());
        assert!(one.is_some() && other.is_some(), "two backups at once");
        assert!(removals.begin().unwrap().is_none());
        drop((one, other));
        assert!(removals.begin().unwrap().is_some());
    }
}
