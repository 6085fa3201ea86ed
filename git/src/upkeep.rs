//! Space that a mirror could free, and freeing it: checkpoints of removed worktrees, unreferenced
//! objects, and the cached state of worktrees. It owns how that is measured and removed; callers
//! decide what goes first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kage_core::id::Oid;

use crate::error::{GitError, blocking};
use crate::lock;
use crate::mirror::Mirror;
use crate::removal::remove_folder;
use crate::worktree::Worktree;

/// Younger objects stay: another process may be about to reference them.
const SETTLED: &str = "--prune=10.minutes.ago";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorktreeCheckpoints {
    /// The worktree, as [`Worktree::name`] calls it.
    pub worktree: String,
    /// When the newest one was taken.
    pub newest: SystemTime,
    commits: Vec<Oid>,
}

impl Worktree {
    /// The name of the worktree at `path` in a mirror. The folder that it is in has to exist.
    pub fn name(path: &Path) -> Result<String, GitError> {
        let parent = path.parent().unwrap_or(path);
        let folder = fs::canonicalize(parent).map_err(GitError::io("resolve", parent))?;
        Ok(crate::worktree::private_name(
            &folder.join(path.file_name().unwrap_or_default()),
        ))
    }
}

impl Mirror {
    /// The kept checkpoints, oldest first.
    pub async fn kept(&self) -> Result<Vec<WorktreeCheckpoints>, GitError> {
        let path = self.path().join("refs/kage/checkpoints");
        let mut kept = blocking("listing checkpoints", move || kept_in(&path)).await?;
        kept.sort_by_key(|kept| kept.newest);
        Ok(kept)
    }

    /// Bytes that the objects of these checkpoints take here, beyond those of the bases.
    pub async fn size_of(&self, kept: &WorktreeCheckpoints) -> Result<u64, GitError> {
        let mut list = String::new();
        for commit in &kept.commits {
            list.push_str(commit.as_str());
            list.push('\n');
        }
        let size = self
            .git("rev-list")
            .args(["--objects", "--disk-usage", "--ignore-missing", "--stdin"])
            // Before git 2.42 standard input may not have options.
            .args(["--not", "--glob=refs/kage/bases/*"])
            .stdin(list)
            .run()
            .await?;
        let bytes = std::str::from_utf8(&size)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        bytes.ok_or_else(|| GitError::unexpected("rev-list", &size))
    }

    /// Forgets the checkpoints of a removed worktree. Their objects stay until [`Mirror::collect`].
    pub async fn forget(&self, worktree: &str) -> Result<(), GitError> {
        let _lock = lock::acquire(self.path()).await?;
        let path = self.path().join("refs/kage/checkpoints").join(worktree);
        blocking("forgetting checkpoints", move || remove_folder(&path)).await
    }

    /// Packs the mirror and deletes unreferenced objects; a failure loses nothing. No worktree of
    /// the mirror may be in use meanwhile.
    pub async fn collect(&self) -> Result<(), GitError> {
        let _lock = lock::acquire(self.path()).await?;
        self.git("gc")
            // Checkpoints are forgotten by deleting the folder of their references.
            .config("gc.packRefs", "false")
            .args(["--quiet", "--no-cruft", SETTLED])
            .run()
            .await?;
        self.flush(Vec::new()).await
    }

    /// Deletes the cached state of worktrees. Only for a start, when there are no worktrees. Other
    /// leftovers of a crash are removed when a mirror is opened.
    pub async fn forget_worktrees(&self) -> Result<(), GitError> {
        let _lock = lock::acquire(self.path()).await?;
        let path = self.path().join("checkouts");
        blocking("forgetting worktrees", move || remove_folder(&path)).await
    }
}

/// Every worktree that has checkpoints, with its commits.
fn kept_in(path: &Path) -> Result<Vec<WorktreeCheckpoints>, GitError> {
    let mut all = Vec::new();
    for folder in list(path)? {
        let Some(worktree) = folder.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let mut kept = WorktreeCheckpoints {
            worktree: worktree.to_owned(),
            newest: SystemTime::UNIX_EPOCH,
            commits: Vec::new(),
        };
        for file in list(&folder)? {
            let Some(commit) = file.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            let taken = fs::metadata(&file).and_then(|meta| meta.modified());
            kept.newest = kept.newest.max(taken.map_err(GitError::io("read", &file))?);
            kept.commits.push(commit);
        }
        all.push(kept);
    }
    Ok(all)
}

/// The entries of a folder; empty when it does not exist.
fn list(folder: &Path) -> Result<Vec<PathBuf>, GitError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(GitError::io("list", folder)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(GitError::io("list", folder))?.path());
    }
    Ok(paths)
}
