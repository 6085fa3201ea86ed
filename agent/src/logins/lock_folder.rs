//! Locks that are folders, as the `proper-lockfile` package of npm makes them and programs in
//! JavaScript use them for their logins: whoever can make the folder has the lock, its time of change
//! says that the holder lives, and a folder whose time stands still may be taken away.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often a holder has to renew the time of its folders. Programs take folders away after 10
/// seconds at the earliest.
pub(super) const BEAT: Duration = Duration::from_secs(3);

/// Locks that are held, removed on drop.
#[derive(Debug, Default)]
pub(super) struct LockFolders(Vec<Held>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The time that it was given last. Another one says that somebody took it away.
    time: SystemTime,
}

/// Whether locks were taken.
#[derive(Debug)]
pub(super) enum Taken {
    All(LockFolders),
    /// Somebody else has one of them.
    Busy,
}

impl LockFolders {
    /// Takes all or none. A folder that nobody renewed for `stale` is taken away from its holder.
    pub(super) fn take(paths: &[PathBuf], stale: Duration, now: SystemTime) -> io::Result<Taken> {
        let mut taken = Self::default();
        for path in paths {
            if !make(path, stale, now)? {
                return Ok(Taken::Busy);
            }
            let time = fs::metadata(path)?.modified()?;
            taken.0.push(Held {
                path: path.clone(),
                time,
            });
        }
        taken.beat(now)?;
        Ok(Taken::All(taken))
    }

    /// Says that the holder lives. False: somebody took a lock away.
    pub(super) fn beat(&mut self, now: SystemTime) -> io::Result<bool> {
        let mut ours = true;
        for held in &mut self.0 {
            let folder = File::open(&held.path)?;
            if folder.metadata()?.modified()? == held.time {
                folder.set_modified(now)?;
                // As the file system keeps it.
                held.time = folder.metadata()?.modified()?;
            } else {
                ours = false;
            }
        }
        Ok(ours)
    }
}

impl Drop for LockFolders {
    fn drop(&mut self) {
        for held in self.0.iter().rev() {
            let modified = fs::metadata(&held.path).and_then(|found| found.modified());
            // A folder with another time is somebody else's by now.
            if modified.is_ok_and(|time| time == held.time)
                && let Err(error) = fs::remove_dir(&held.path)
            {
                tracing::warn!(%error, lock = %held.path.display(), "a login's lock was not removed");
            }
        }
    }
}

/// Makes the folder; false when somebody has it.
fn make(path: &Path, stale: Duration, now: SystemTime) -> io::Result<bool> {
    for last in [false, true] {
        match fs::create_dir(path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if last || !is_stale(path, stale, now)? {
            break;
        }
        match fs::remove_dir(path) {
            Ok(()) => tracing::warn!(lock = %path.display(), "a login's lock was left behind, and is removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether nobody renews it. A time in the future is of a clock that was set back.
fn is_stale(path: &Path, stale: Duration, now: SystemTime) -> io::Result<bool> {
    let modified = match fs::metadata(path) {
        Ok(found) => found.modified()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let apart = now.duration_since(modified).unwrap_or_else(|ahead| ahead.duration());
    Ok(apart > stale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE: Duration = Duration::from_secs(60);

    fn take(paths: &[PathBuf], now: SystemTime) -> Option<LockFolders> {
        match LockFolders::take(paths, STALE, now).unwrap() {
            Taken::All(locks) => Some(locks),
            Taken::Busy => None,
        }
    }

    #[test]
    fn one_has_all_of_them_until_it_drops_them_or_stands_still() {
        let place = tempfile::tempdir().unwrap();
        let paths = ["a.lock", "b.lock"].map(|name| place.path().join(name));
        let now = SystemTime::now();
        let mut first = take(&paths, now).unwrap();
        assert!(paths.iter().all(|path| path.is_dir()));
        assert!(take(&paths, now).is_none());
        // None of them is kept when one is missing.
        let others = [place.path().join("c.lock"), paths[1].clone()];
        assert!(take(&others, now).is_none() && !others[0].exists());

        let later = now + STALE;
        assert!(first.beat(later).unwrap());
        assert!(take(&paths, later + STALE).is_none());
        let second = take(&paths, later + 2 * STALE).unwrap();
        drop(first);
        assert!(paths.iter().all(|path| path.is_dir()), "it is the second one's");
        drop(second);
        assert!(paths.iter().all(|path| !path.exists()));
        assert!(take(&paths, now).is_some());
    }

    #[test]
    fn a_lock_of_the_future_is_stale() {
        let place = tempfile::tempdir().unwrap();
        let path = [place.path().join("a.lock")];
        let now = SystemTime::now();
        std::mem::forget(take(&path, now + 2 * STALE).unwrap());
        assert!(take(&path, now).is_some());
    }
}
