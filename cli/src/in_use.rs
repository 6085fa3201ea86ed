//! Whether a command uses the daemon of this machine. Each command holds a shared lock on a file
//! while it runs; the daemon takes the exclusive lock before it ends. So the daemon's end cuts off
//! no command, and a command that comes during the end waits and starts the next daemon. A killed
//! process releases its lock.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::state::StateDir;

const POLL: Duration = Duration::from_millis(20);

/// The file is held; dropping this lets go of it.
#[derive(Debug)]
pub struct InUse {
    _file: File,
}

/// Marks the daemon as used by a command. `None` when a daemon is still ending after `within`.
///
/// # Errors
/// When the file cannot be used.
pub async fn share(state: &StateDir, within: Duration) -> io::Result<Option<InUse>> {
    hold(state, within, File::try_lock_shared).await
}

/// Takes the exclusive lock for the ending daemon. `None` when a command holds the file for longer
/// than `within`.
///
/// # Errors
/// When the file cannot be used.
pub(crate) async fn take(state: &StateDir, within: Duration) -> io::Result<Option<InUse>> {
    hold(state, within, File::try_lock).await
}

async fn hold(
    state: &StateDir,
    within: Duration,
    lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> io::Result<Option<InUse>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state.use_lock())?;
    let deadline = Instant::now() + within;
    loop {
        match lock(&file) {
            Ok(()) => return Ok(Some(InUse { _file: file })),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(POLL).await,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_share_it_and_the_end_waits_for_them_and_keeps_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::resolve(Some(dir.path())).unwrap();
        let now = Duration::ZERO;
        let one = share(&state, now).await.unwrap();
        let other = share(&state, now).await.unwrap();
        assert!(one.is_some() && other.is_some());
        drop(one);
        assert!(take(&state, now).await.unwrap().is_none(), "a command still runs");
        drop(other);
        let end = take(&state, now).await.unwrap();
        assert!(end.is_some());
        assert!(share(&state, now).await.unwrap().is_none(), "it ends");
        // A later command continues as soon as the daemon has ended.
        let (waited, ()) = tokio::join!(share(&state, Duration::from_secs(60)), async { drop(end) });
        assert!(waited.unwrap().is_some());
    }
}
