//! Which process is this machine's `kage up`: it holds a file, with its process id in it, for as
//! long as it runs. The file is how `kage down` finds it, also when it does not answer.

use std::fs::TryLockError;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use kage_git::lock_file::LockFile;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::state::StateDir;

const POLL: Duration = Duration::from_millis(20);
/// A process that checks the lock holds it for a moment.
const LOOKED_AT: Duration = Duration::from_secs(1);

/// Marks this process as the holder; dropped when it ends.
#[derive(Debug)]
pub(crate) struct Held {
    _lock: LockFile,
}

/// Takes the lock. `None` when another process holds it.
///
/// # Errors
/// When the file cannot be used.
pub(crate) async fn hold(state: &StateDir) -> io::Result<Option<Held>> {
    let file = LockFile::open(&state.daemon_lock())?;
    let deadline = Instant::now() + LOOKED_AT;
    loop {
        match file.try_own() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(POLL).await,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(Some(Held { _lock: file }))
}

/// True if a process holds this lock. A killed process holds nothing.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn is_held(path: &Path) -> io::Result<bool> {
    let file = match LockFile::open_existing(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The process that holds the file; `None` when none does.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn holder(state: &StateDir) -> io::Result<Option<Holder>> {
    let file = match LockFile::open_existing(&state.daemon_lock()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => return Ok(None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut text = String::new();
    (&*file).read_to_string(&mut text)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no process id")))?;
    Ok(Some(Holder { pid, file }))
}

/// A running `kage up`.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: Pid,
    file: LockFile,
}

impl Holder {
    /// Asks it to end: the first time to finish running work, the second time to hand it back.
    ///
    /// # Errors
    /// When it is not ours.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        match kill_process(self.pid, Signal::TERM) {
            // It has ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended. False when it has not by then.
    ///
    /// # Errors
    /// When the file cannot be locked.
    pub(crate) async fn ended(&self, within: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            match self.file.try_lock_shared() {
                Ok(()) => return Ok(true),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(POLL).await,
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_process_holds_it_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::resolve(Some(dir.path())).unwrap();
        assert!(holder(&state).unwrap().is_none(), "nobody ever did");
        let held = hold(&state).await.unwrap().unwrap();
        let found = holder(&state).unwrap().unwrap();
        assert_eq!(
            u32::try_from(found.pid.as_raw_nonzero().get()).unwrap(),
            std::process::id()
        );
        assert!(!found.ended(Duration::ZERO).await.unwrap());
        assert!(hold(&state).await.unwrap().is_none(), "one at a time");
        assert!(is_held(&state.daemon_lock()).unwrap());
        drop(held);
        // A program that another test starts has the file too until it is executed.
        assert!(found.ended(Duration::from_secs(20)).await.unwrap());
        drop(found);
        assert!(!is_held(&state.daemon_lock()).unwrap() && !is_held(&state.use_lock()).unwrap());
        assert!(holder(&state).unwrap().is_none());
        assert!(hold(&state).await.unwrap().is_some());
    }
}
