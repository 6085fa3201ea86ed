//! What an agent stores on its disk, and what is removed first when that is too much: checkpoints
//! of removed worktrees, oldest first, then the parts set aside of damaged mirrors, then
//! unreferenced objects, then whole mirrors and base contexts, which are caches. Undelivered data
//! of an attempt stays. Checkouts that wait for any attempt are removed when they take too much or
//! nobody uses them, then worktrees that wait for the next attempt of their session. Undelivered output and events have limits of their own, in the
//! outbox.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kage_core::cause::chain;
use kage_core::id::Digest;
use kage_core::time::Timestamp;
use kage_git::upkeep::WorktreeCheckpoints;
use kage_git::{GitError, Mirror, Worktree};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::delivery::live::Live;
use crate::ground::folders::{folders, remove_folder};
use crate::ground::parking::Parking;
use crate::ground::pool::Pool;
use crate::ground::port::Workspace;
use crate::ground::uses::Uses;
use crate::identity::state::Paths;
use crate::ports::Blocking;

/// The interval of checks.
const EVERY: Duration = Duration::from_secs(60);
/// Collecting reads a whole mirror, so it is not done more often for the same one.
const COLLECT: Duration = Duration::from_secs(3600);

/// Bytes on an agent's disk, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Undelivered events and output.
    pub outbox: u64,
    /// Mirrors of repositories, including checkpoints.
    pub mirrors: u64,
    /// Checkpoints in the mirrors.
    pub checkpoints: u64,
    /// Worktrees of attempts, and checkouts that wait for an attempt.
    pub worktrees: u64,
    /// HOME and TMPDIR of attempts.
    pub scratch: u64,
    pub contexts: u64,
}

impl Usage {
    /// Measures the state directory of an agent, which may be running.
    pub async fn of(state_dir: &Path) -> Self {
        let paths = Paths::at(state_dir);
        let bytes = |path| bytes_in(&Blocking::Threads, path);
        let mut usage = Self {
            outbox: bytes(paths.output()).await,
            mirrors: bytes(paths.mirrors()).await,
            checkpoints: 0,
            worktrees: bytes(paths.worktrees()).await + bytes(paths.pool()).await,
            scratch: bytes(paths.scratches()).await + bytes(paths.short_tmp().folder().to_owned()).await,
            contexts: bytes(paths.contexts()).await,
        };
        for part in ["", "-wal", "-shm"] {
            let mut file = paths.outbox().into_os_string();
            file.push(part);
            usage.outbox += bytes(file.into()).await;
        }
        for mirror in mirrors(&paths) {
            let Ok(mirror) = Mirror::open_or_init(mirror).await else {
                continue;
            };
            for kept in mirror.kept().await.unwrap_or_default() {
                usage.checkpoints += mirror.size_of(&kept).await.unwrap_or(0);
            }
        }
        usage
    }
}

/// A mirror that was damaged and then healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealedMirror {
    pub at: Timestamp,
    pub mirror: PathBuf,
    /// Where the damaged parts are; `None`: they were deleted since, or were missing.
    pub aside: Option<PathBuf>,
    pub what: String,
}

impl HealedMirror {
    /// The incidents that the agent with this state directory remembers, oldest first. Blocks.
    #[must_use]
    pub fn all(state_dir: &Path) -> Vec<Self> {
        let mut all = Vec::new();
        for mirror in mirrors(&Paths::at(state_dir)) {
            for incident in kage_git::mirror::incidents(&mirror) {
                all.push(Self {
                    at: incident.at,
                    mirror: mirror.clone(),
                    aside: incident.aside.filter(|aside| aside.exists()),
                    what: incident.what,
                });
            }
        }
        all.sort_by_key(|healed| healed.at);
        all
    }
}

fn mirrors(paths: &Paths) -> Vec<PathBuf> {
    let projects = folders(&paths.mirrors());
    projects.iter().flat_map(|project| folders(project)).collect()
}

/// Bytes of a file, or of a folder with all its content. Files that vanish meanwhile count as
/// nothing.
async fn bytes_in(blocking: &Blocking, path: PathBuf) -> u64 {
    let counting = blocking.run(move || {
        let mut bytes = 0;
        let mut open = vec![path];
        while let Some(path) = open.pop() {
            let Ok(meta) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            bytes += meta.blocks() * 512;
            if meta.is_dir()
                && let Ok(entries) = std::fs::read_dir(&path)
            {
                open.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
            }
        }
        bytes
    });
    counting.await.unwrap_or(0)
}

/// The worktrees' size at the last look. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Worktrees(Arc<AtomicU64>);

impl Worktrees {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Checkouts on the disk: how much those of attempts take, and those that wait for one.
pub(crate) struct Checkouts {
    pub(crate) worktrees: Worktrees,
    pub(crate) parking: Parking<Arc<dyn Workspace>>,
    pub(crate) pool: Pool,
}

/// Keeps an agent's disk within its limits.
pub(crate) struct Disk {
    paths: Paths,
    limits: Limits,
    live: Live,
    uses: Uses,
    worktrees: Worktrees,
    parking: Parking<Arc<dyn Workspace>>,
    pool: Pool,
    blocking: Blocking,
    /// Sizes of checkpoints, which change only when one is added.
    sizes: HashMap<String, (SystemTime, u64)>,
    /// Mirrors in which checkpoints were forgotten.
    forgotten: BTreeSet<PathBuf>,
    collected: BTreeMap<PathBuf, Instant>,
}

/// The checkpoints of one worktree in one mirror.
struct Group {
    mirror: Mirror,
    kept: WorktreeCheckpoints,
    bytes: u64,
}

impl Disk {
    pub(crate) fn new(
        paths: Paths,
        limits: Limits,
        live: Live,
        uses: Uses,
        checkouts: Checkouts,
        blocking: Blocking,
    ) -> Self {
        let Checkouts {
            worktrees,
            parking,
            pool,
        } = checkouts;
        Self {
            blocking,
            paths,
            limits,
            live,
            uses,
            worktrees,
            parking,
            pool,
            sizes: HashMap::new(),
            forgotten: BTreeSet::new(),
            collected: BTreeMap::new(),
        }
    }

    /// Looks from time to time until `shutdown` is cancelled.
    pub(crate) async fn keep(mut self, shutdown: CancellationToken) {
        let looking = async {
            loop {
                self.look().await;
                tokio::time::sleep(EVERY).await;
            }
        };
        // An interrupted look is completed at the next start.
        shutdown.run_until_cancelled(looking).await;
    }

    async fn look(&mut self) {
        self.count_worktrees().await;
        self.forget_checkpoints().await;
        let mut over = bytes_in(&self.blocking, self.paths.mirrors()).await > self.limits.mirrors;
        if over {
            self.discard_damaged().await;
            over = bytes_in(&self.blocking, self.paths.mirrors()).await > self.limits.mirrors;
        }
        for path in mirrors(&self.paths) {
            let due = self.collected.get(&path).is_none_or(|last| last.elapsed() >= COLLECT);
            if due && (over || self.forgotten.contains(&path)) {
                self.collect(path).await;
            }
        }
        if over {
            self.remove_mirrors().await;
        }
        self.remove_contexts().await;
    }

    /// Measures the worktrees, after removing those that waited too long or take too much.
    async fn count_worktrees(&self) {
        for late in self.parking.overdue(Instant::now()) {
            late.retire().await;
        }
        self.pool.discard_unused(SystemTime::now());
        for folder in self.pool.unmeasured() {
            let bytes = bytes_in(&self.blocking, folder.clone()).await;
            self.pool.measured(&folder, bytes);
        }
        loop {
            let bytes = bytes_in(&self.blocking, self.paths.worktrees()).await + self.pool.bytes();
            self.worktrees.0.store(bytes, Ordering::Relaxed);
            if bytes <= self.limits.worktrees {
                break;
            }
            if self.pool.discard_oldest() {
                continue;
            }
            match self.parking.oldest() {
                Some(oldest) => oldest.remove().await,
                None => break,
            }
        }
        self.remove_discarded().await;
    }

    /// Removes checkouts that are not used again, and what is left of some. What cannot be removed
    /// is tried again at the next look.
    async fn remove_discarded(&self) {
        for folder in self.pool.discarded() {
            let removed = folder.clone();
            let removing = self.blocking.run(move || kage_git::removal::remove_folder(&removed));
            match removing.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "a checkout is not removed");
                    self.pool.discard(folder);
                }
                Err(error) => {
                    tracing::debug!(%error, "the agent ends");
                    self.pool.discard(folder);
                }
            }
        }
    }

    /// The names of the worktrees of live attempts, and of those that wait for an attempt: nothing
    /// of theirs is removed.
    fn in_use(&self) -> BTreeSet<String> {
        let keys = self.live.keys().into_iter();
        keys.map(|key| self.paths.worktree(key.attempt))
            .chain(self.parking.paths())
            .filter_map(|path| Worktree::name(&path).ok())
            .collect()
    }

    /// Forgets checkpoints, oldest first, until the rest fits.
    async fn forget_checkpoints(&mut self) {
        let mut groups = Vec::new();
        for path in mirrors(&self.paths) {
            // A damaged mirror must not keep the others from being counted.
            match self.checkpoints_in(&path).await {
                Ok(found) => groups.extend(found),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = chain(&error), "checkpoints are not counted");
                }
            }
        }
        let sizes = groups
            .iter()
            .map(|group| (group.kept.worktree.clone(), (group.kept.newest, group.bytes)));
        self.sizes = sizes.collect();
        groups.sort_by_key(|group| group.kept.newest);
        let mut total: u64 = groups.iter().map(|group| group.bytes).sum();
        let in_use = self.in_use();
        for group in groups {
            if total <= self.limits.checkpoints {
                break;
            }
            if in_use.contains(&group.kept.worktree) {
                continue;
            }
            if let Err(error) = group.mirror.forget(&group.kept.worktree).await {
                let path = group.mirror.path().display();
                tracing::warn!(%path, error = chain(&error), "checkpoints are not forgotten");
                continue;
            }
            total -= group.bytes;
            self.forgotten.insert(group.mirror.path().to_owned());
            tracing::info!(
                bytes = group.bytes,
                "checkpoints of a session that is over were removed"
            );
        }
    }

    /// The checkpoints in one mirror, with their sizes.
    async fn checkpoints_in(&self, path: &Path) -> Result<Vec<Group>, GitError> {
        let mirror = Mirror::open_or_init(path).await?;
        let mut groups = Vec::new();
        for kept in mirror.kept().await? {
            let known = self.sizes.get(&kept.worktree);
            let bytes = match known.filter(|(newest, _)| *newest == kept.newest) {
                Some((_, bytes)) => *bytes,
                None => mirror.size_of(&kept).await?,
            };
            groups.push(Group {
                mirror: mirror.clone(),
                kept,
                bytes,
            });
        }
        Ok(groups)
    }

    /// Removes the parts set aside of damaged mirrors: people have had their chance to look.
    async fn discard_damaged(&self) {
        for path in mirrors(&self.paths) {
            let shown = path.clone();
            let discarding = self.blocking.run(move || kage_git::mirror::discard_damaged(&path));
            if let Ok(Err(error)) = discarding.await {
                tracing::warn!(path = %shown.display(), %error, "damaged parts of a mirror are kept");
            }
        }
    }

    /// Frees unreferenced objects, unless the mirror is in use.
    async fn collect(&mut self, path: PathBuf) {
        let Ok(_alone) = self.uses.of(&path).try_write_owned() else {
            return;
        };
        let collected = match Mirror::open_or_init(&path).await {
            Ok(mirror) => mirror.collect().await,
            Err(error) => Err(error),
        };
        match collected {
            Ok(()) => {
                self.forgotten.remove(&path);
            }
            Err(error) => tracing::warn!(path = %path.display(), error = chain(&error), "not collected"),
        }
        self.collected.insert(path, Instant::now());
    }

    /// Removes mirrors, least recently used first, until the rest fits.
    async fn remove_mirrors(&mut self) {
        let mut all = Vec::new();
        for path in mirrors(&self.paths) {
            let bytes = bytes_in(&self.blocking, path.clone()).await;
            all.push((last_use(&path), path, bytes));
        }
        all.sort();
        let mut total: u64 = all.iter().map(|(_, _, bytes)| bytes).sum();
        let in_use = self.in_use();
        for (_, path, bytes) in all {
            if total <= self.limits.mirrors {
                return;
            }
            let Ok(_alone) = self.uses.of(&path).try_write_owned() else {
                continue;
            };
            let undelivered = match Mirror::open_or_init(&path).await {
                Ok(mirror) => mirror.kept().await,
                Err(error) => Err(error),
            };
            match undelivered {
                Ok(kept) if kept.iter().all(|kept| !in_use.contains(&kept.worktree)) => {
                    remove_folder(path.clone()).await;
                    total -= bytes;
                    tracing::info!(path = %path.display(), bytes, "a mirror was removed");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(path = %path.display(), error = chain(&error), "mirror is kept"),
            }
        }
        tracing::warn!(
            bytes = total,
            limit = self.limits.mirrors,
            "mirrors in use take more than they may"
        );
    }

    /// Removes base contexts, least recently used first, until the rest fits.
    async fn remove_contexts(&self) {
        let mut all = contexts(&self.blocking, self.paths.contexts()).await;
        all.sort();
        let mut total: u64 = all.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, path, bytes) in all {
            if total <= self.limits.contexts {
                return;
            }
            let Ok(_alone) = self.uses.of(&path).try_write_owned() else {
                continue;
            };
            match tokio::fs::remove_file(&path).await {
                Ok(()) => total -= bytes,
                Err(error) => tracing::warn!(path = %path.display(), %error, "a context is kept"),
            }
        }
    }
}

/// The base contexts in a folder: last use, path and bytes. Files that are still being written have
/// another kind of name.
async fn contexts(blocking: &Blocking, folder: PathBuf) -> Vec<(SystemTime, PathBuf, u64)> {
    let listing = blocking.run(move || {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let files = entries.filter_map(Result::ok).filter_map(|entry| {
            entry.file_name().to_str()?.parse::<Digest>().ok()?;
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, entry.path(), meta.blocks() * 512))
        });
        files.collect()
    });
    listing.await.unwrap_or_default()
}

/// When a mirror was last used.
fn last_use(mirror: &Path) -> SystemTime {
    let used = std::fs::metadata(mirror.join("used")).and_then(|meta| meta.modified());
    used.unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
