//! One owner at a time for a repository's references and packs. With git's own lock files,
//! concurrent fetches of the same reference *fail*; with these they wait. Within a process this is
//! a queue per path, between processes an advisory lock on a file, which the system releases when
//! its holder dies.

use std::collections::HashMap;
use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::error::GitError;
use crate::lock_file::LockFile;

/// How often to try again while another process holds the lock.
const POLL: Duration = Duration::from_millis(20);

type Queue = tokio::sync::Mutex<()>;

static QUEUES: LazyLock<Mutex<HashMap<PathBuf, Weak<Queue>>>> = LazyLock::new(Mutex::default);

/// Exclusive use of a repository until dropped.
#[derive(Debug)]
pub(crate) struct RepositoryLock {
    _file: LockFile,
    _turn: OwnedMutexGuard<()>,
}

/// Waits for the lock of the repository at `path`, which exists.
pub(crate) async fn acquire(path: &Path) -> Result<RepositoryLock, GitError> {
    let turn = queue(path).lock_owned().await;
    let lock_path = path.join("kage.lock");
    let file = LockFile::open(&lock_path).map_err(GitError::io("open", &lock_path))?;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => tokio::time::sleep(POLL).await,
            Err(TryLockError::Error(error)) => return Err(GitError::io("lock", &lock_path)(error)),
        }
    }
    Ok(RepositoryLock {
        _file: file,
        _turn: turn,
    })
}

fn queue(path: &Path) -> Arc<Queue> {
    // A panic while the lock is held cannot leave the map half-changed.
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queue) = queues.get(path).and_then(Weak::upgrade) {
        return queue;
    }
    queues.retain(|_, queue| queue.strong_count() > 0);
    let queue = Arc::new(Queue::default());
    queues.insert(path.to_owned(), Arc::downgrade(&queue));
    queue
}
