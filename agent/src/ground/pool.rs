//! Checkouts that wait for the next attempt on their repository. Making a checkout and deleting it
//! again costs seconds on a large repository, and slows down everybody else who makes files on that
//! disk; changing what differs from the last base costs milliseconds. `kage-git` makes a finished
//! worktree such a checkout, and a worktree of it ([`kage_git::SetAside`]).
//!
//! ```text
//! <state>/pool/<project>/<repository>.git/<number>/     a checkout that waits
//! ```
//!
//! The pool survives a restart of the agent. It owns which checkouts wait and for how long;
//! [`super::disk`] owns how much space they may take.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use kage_core::cause::chain;
use kage_core::id::Oid;
use kage_git::{GitError, Mirror, SetAside, Worktree};

use crate::ground::folders::folders;
use crate::identity::state::Paths;
use crate::ports::Random;

/// A checkout that nobody used for this long is not worth its space.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The checkouts. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    paths: Paths,
    random: Random,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// The one that was used last is the last.
    waiting: Vec<Waiting>,
    /// Folders that are to be removed.
    discarded: Vec<PathBuf>,
}

struct Waiting {
    checkout: SetAside,
    since: SystemTime,
    /// `None`: not measured yet.
    bytes: Option<u64>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.0.paths.pool()).finish()
    }
}

/// A folder that is discarded when its checkout was taken, however that ends.
struct Taken {
    pool: Pool,
    checkout: SetAside,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.pool.discard(self.checkout.folder().to_owned());
    }
}

impl Pool {
    pub(crate) fn new(paths: Paths, random: Random) -> Self {
        Self(Arc::new(Shared {
            paths,
            random,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        // Every change is complete before anything can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the checkouts of earlier starts. Blocks.
    pub(crate) fn recover(&self) {
        let mut found = PoolState::default();
        let projects = folders(&self.0.paths.pool());
        let repositories = projects.iter().flat_map(|project| folders(project));
        for folder in repositories.flat_map(|repository| folders(&repository)) {
            match SetAside::open(&folder).zip(set_aside_at(&folder)) {
                Some((checkout, since)) => found.waiting.push(Waiting {
                    checkout,
                    since,
                    bytes: None,
                }),
                None => found.discarded.push(folder),
            }
        }
        found.waiting.sort_by_key(|waiting| waiting.since);
        *self.state() = found;
    }

    /// The worktree of `commit` at `path`: of a checkout that waits, or a new one.
    ///
    /// # Errors
    /// As [`Worktree::create`]. [`Worktree::remove`] clears what was made.
    pub(crate) async fn worktree(&self, mirror: &Mirror, path: &Path, commit: &Oid) -> Result<Worktree, GitError> {
        while let Some(taken) = self.take(mirror, commit) {
            match Worktree::reuse(mirror, &taken.checkout, path, commit).await {
                Ok(Some(worktree)) => return Ok(worktree),
                Ok(None) => tracing::debug!("a checkout does not fit the next base"),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "a checkout cannot be used again");
                    Worktree::remove(mirror, path).await?;
                }
            }
        }
        Worktree::create(mirror, path, commit).await
    }

    /// Keeps the files of a worktree that no program uses any more. What cannot be kept is removed.
    pub(crate) async fn keep(&self, mirror: &Mirror, worktree: &Worktree) {
        let name = format!("{:032x}", (self.0.random)());
        let folder = self.of(mirror).join(name);
        let kept = Worktree::set_aside(mirror, worktree.path(), worktree.base(), &folder).await;
        match kept {
            Ok(checkout) => {
                let since = set_aside_at(&folder).unwrap_or_else(SystemTime::now);
                self.state().waiting.push(Waiting {
                    checkout,
                    since,
                    bytes: None,
                });
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "a checkout is not used again");
                self.discard(folder);
                if let Err(error) = Worktree::remove(mirror, worktree.path()).await {
                    tracing::warn!(error = chain(&error), "worktree was not removed");
                    self.discard(worktree.path().to_owned());
                }
            }
        }
    }

    /// Has a folder removed at the next look at the disk, and at each one after it until that works.
    pub(crate) fn discard(&self, folder: PathBuf) {
        self.state().discarded.push(folder);
    }

    /// The folders that are to be removed. Whoever asks removes them, and discards again what is
    /// left.
    pub(crate) fn discarded(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.state().discarded)
    }

    /// Discards what nobody used for long.
    pub(crate) fn discard_unused(&self, now: SystemTime) {
        let mut state = self.state();
        let is_unused = |waiting: &mut Waiting| now.duration_since(waiting.since).is_ok_and(|since| since >= UNUSED);
        let unused: Vec<_> = state.waiting.extract_if(.., is_unused).collect();
        state.discarded.extend(unused.iter().map(Waiting::folder));
    }

    /// Discards the checkout that waits for longest. False when none waits.
    pub(crate) fn discard_oldest(&self) -> bool {
        let mut state = self.state();
        if state.waiting.is_empty() {
            return false;
        }
        let oldest = state.waiting.remove(0);
        state.discarded.push(oldest.folder());
        true
    }

    /// Folders whose size is not known.
    pub(crate) fn unmeasured(&self) -> Vec<PathBuf> {
        let state = self.state();
        let unmeasured = state.waiting.iter().filter(|waiting| waiting.bytes.is_none());
        unmeasured.map(Waiting::folder).collect()
    }

    pub(crate) fn measured(&self, folder: &Path, bytes: u64) {
        let mut state = self.state();
        let mut found = state
            .waiting
            .iter_mut()
            .filter(|waiting| waiting.checkout.folder() == folder);
        if let Some(waiting) = found.next() {
            waiting.bytes = Some(bytes);
        }
    }

    /// Bytes of the checkouts that were measured.
    pub(crate) fn bytes(&self) -> u64 {
        self.state().waiting.iter().filter_map(|waiting| waiting.bytes).sum()
    }

    /// The checkout that needs the least to become one of `commit`: one of that commit, else the one
    /// that was used last.
    fn take(&self, mirror: &Mirror, commit: &Oid) -> Option<Taken> {
        let folder = self.of(mirror);
        let mut state = self.state();
        let is_here = |waiting: &Waiting| waiting.checkout.folder().parent() == Some(&folder);
        let same = state
            .waiting
            .iter()
            .rposition(|waiting| is_here(waiting) && waiting.checkout.commit() == commit);
        let index = same.or_else(|| state.waiting.iter().rposition(is_here))?;
        let taken = state.waiting.remove(index);
        Some(Taken {
            pool: self.clone(),
            checkout: taken.checkout,
        })
    }

    /// The folder of the checkouts of a mirror's repository.
    fn of(&self, mirror: &Mirror) -> PathBuf {
        let name = |path: Option<&Path>| path.and_then(Path::file_name).map(OsStr::to_owned).unwrap_or_default();
        let repository = mirror.path();
        let project = name(repository.parent());
        self.0.paths.pool().join(project).join(name(Some(repository)))
    }
}

impl Waiting {
    fn folder(&self) -> PathBuf {
        self.checkout.folder().to_owned()
    }
}

fn set_aside_at(folder: &Path) -> Option<SystemTime> {
    std::fs::metadata(folder.join("commit")).ok()?.modified().ok()
}

#[cfg(test)]
mod tests;
