//! Proves that the objects of commits are what their ids say. libgit2 hashes whatever it reads whole,
//! with the detection of collisions; git hashes what is too large for that. A checkout does not: it
//! writes an object's content without comparing it with the id.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use git2::{Oid as Id, Repository};
use kage_core::id::Oid;

use super::Mirror;
use crate::error::{GitError, blocking};
use crate::loose::check_loose;
use crate::objects::{STREAMED_BYTES, id_of, mode};

/// The most threads that hash; further ones would take the processors from the sessions.
const HASHING_THREADS: usize = 4;

impl Mirror {
    /// Reads and hashes these commits and all their folders and files. Earlier commits are not read.
    ///
    /// # Errors
    /// When an object is missing, damaged or another one, or git cannot run.
    pub async fn check_files_of(&self, commits: &[Oid]) -> Result<(), GitError> {
        let (path, commits) = (self.path.clone(), commits.to_vec());
        let large = blocking("checking objects", move || hash_all(&path, &commits)).await?;
        if large.is_empty() {
            return Ok(());
        }
        let ids: String = large.iter().map(|id| format!("{id}\n")).collect();
        self.git("rev-list")
            .args(["--objects", "--verify-objects", "--no-walk", "--quiet", "--stdin"])
            .stdin(ids)
            // It reports a wrong object and still exits with 0.
            .run_quietly()
            .await
            .map(drop)
    }
}

/// Hashes all but the large files, which are returned.
fn hash_all(mirror: &Path, commits: &[Oid]) -> Result<Vec<Id>, GitError> {
    let files = files_of(mirror, commits)?;
    let next = AtomicUsize::new(0);
    let hash = || {
        let failed = || GitError::library("check the files of a commit");
        let repository = Repository::open_bare(mirror).map_err(failed())?;
        let objects = repository.odb().map_err(failed())?;
        let mut large = Vec::new();
        while let Some(id) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            check_loose(mirror, *id)?;
            let (size, _) = objects.read_header(*id).map_err(failed())?;
            if size as u64 > STREAMED_BYTES {
                large.push(*id);
            } else {
                objects.read(*id).map_err(failed())?;
            }
        }
        Ok(large)
    };
    let found = in_threads(files.len(), hash)?;
    Ok(found.into_iter().flatten().collect())
}

/// Runs the same work on a few threads, as many as `pieces` are worth; each takes the next piece until
/// none is left.
pub(crate) fn in_threads<T: Send>(
    pieces: usize,
    work: impl Fn() -> Result<T, GitError> + Sync,
) -> Result<Vec<T>, GitError> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(HASHING_THREADS).min(pieces / 64 + 1);
    thread::scope(|scope| {
        let running: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut done = vec![work()?];
        for thread in running {
            let ended = thread.join();
            done.push(ended.map_err(|_| GitError::Interrupted {
                action: "hashing files",
            })??);
        }
        Ok(done)
    })
}

/// The files of commits, each once, after all of their folders were hashed.
fn files_of(mirror: &Path, commits: &[Oid]) -> Result<Vec<Id>, GitError> {
    let failed = || GitError::library("check the files of a commit");
    let repository = Repository::open_bare(mirror).map_err(failed())?;
    let (mut seen, mut folders, mut files) = (HashSet::new(), Vec::new(), Vec::new());
    for commit in commits {
        check_loose(mirror, id_of(commit)?)?;
        let commit = repository.find_commit(id_of(commit)?).map_err(failed())?;
        folders.push(commit.tree_id());
    }
    while let Some(folder) = folders.pop() {
        if !seen.insert(folder) {
            continue;
        }
        check_loose(mirror, folder)?;
        let tree = repository.find_tree(folder).map_err(failed())?;
        for entry in &tree {
            match u32::try_from(entry.filemode()).unwrap_or_default() {
                mode::FOLDER => folders.push(entry.id()),
                // A commit of another repository, which is not here.
                mode::SUBMODULE => {}
                _ if seen.insert(entry.id()) => files.push(entry.id()),
                _ => {}
            }
        }
    }
    Ok(files)
}
