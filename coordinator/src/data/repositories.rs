//! The coordinator's bare repositories, one per project and name. The first push creates them;
//! `kage_git` decides what may be pushed. Who is about to use one says so, so that none is taken away
//! between a look into it and the row that counts on it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kage_core::id::{ProjectId, RepositoryName, SessionId};
use kage_core::time::Timestamp;
use kage_git::{GitError, Mirror};

#[derive(Debug)]
pub(crate) struct Repositories {
    root: PathBuf,
    uses: Arc<Mutex<Uses>>,
}

/// The repositories that are in use, or being taken away.
type Uses = HashMap<(ProjectId, RepositoryName), Use>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    By(usize),
    TakenAway,
}

/// Why a repository cannot be used, or not be taken away, at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Busy {
    #[error("the repository is being deleted")]
    TakenAway,
    #[error("the repository is being pushed to, or a task of it is being made")]
    InUse,
}

/// While this lives, the repository is not taken away. Or, it is being taken away by its holder.
#[derive(Debug)]
pub(crate) struct RepositoryHold {
    uses: Arc<Mutex<Uses>>,
    key: (ProjectId, RepositoryName),
}

impl Drop for RepositoryHold {
    fn drop(&mut self) {
        let mut uses = lock(&self.uses);
        match uses.get_mut(&self.key) {
            Some(Use::By(count)) if *count > 1 => *count -= 1,
            Some(_) | None => {
                uses.remove(&self.key);
            }
        }
    }
}

fn lock(uses: &Mutex<Uses>) -> MutexGuard<'_, Uses> {
    // A count is changed in one step.
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Repositories {
    /// The repositories under this directory, which exists.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            uses: Arc::default(),
        }
    }

    /// Says that a repository, which may not exist yet, is about to be used.
    pub(crate) fn hold(&self, project: &ProjectId, name: &RepositoryName) -> Result<RepositoryHold, Busy> {
        let key = (project.clone(), name.clone());
        match lock(&self.uses).entry(key.clone()).or_insert(Use::By(0)) {
            Use::TakenAway => return Err(Busy::TakenAway),
            Use::By(count) => *count += 1,
        }
        Ok(self.held(key))
    }

    /// Keeps everybody from a repository that nobody uses now, until the hold is dropped.
    pub(crate) fn close_off(&self, project: &ProjectId, name: &RepositoryName) -> Result<RepositoryHold, Busy> {
        let key = (project.clone(), name.clone());
        let mut uses = lock(&self.uses);
        match uses.get(&key) {
            Some(Use::TakenAway) => return Err(Busy::TakenAway),
            Some(Use::By(_)) => return Err(Busy::InUse),
            None => {}
        }
        uses.insert(key.clone(), Use::TakenAway);
        drop(uses);
        Ok(self.held(key))
    }

    fn held(&self, key: (ProjectId, RepositoryName)) -> RepositoryHold {
        RepositoryHold {
            uses: Arc::clone(&self.uses),
            key,
        }
    }

    /// True when a repository was pushed to.
    pub(crate) async fn is_there(&self, project: &ProjectId, name: &RepositoryName) -> io::Result<bool> {
        tokio::fs::try_exists(self.path(project, name)).await
    }

    /// Moves a repository out of the way, in one step. Nothing happens when it is not there.
    pub(crate) async fn take_away(&self, project: &ProjectId, name: &RepositoryName, to: PathBuf) -> io::Result<()> {
        let from = self.path(project, name);
        if let Some(folder) = to.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        match tokio::fs::rename(from, to).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => moved,
        }
    }

    /// Opens a repository, or creates it.
    pub(crate) async fn open_or_init(&self, project: &ProjectId, name: &RepositoryName) -> Result<Mirror, GitError> {
        Mirror::open_or_init(self.path(project, name)).await
    }

    /// Opens a repository that was pushed to; `None` when there is none.
    pub(crate) async fn open(&self, project: &ProjectId, name: &RepositoryName) -> Result<Option<Mirror>, GitError> {
        let path = self.path(project, name);
        match tokio::fs::try_exists(path.join("HEAD")).await {
            Ok(true) => Mirror::open_or_init(path).await.map(Some),
            // A path that cannot be inspected cannot be opened either; opening gives the error.
            Err(_) => Mirror::open_or_init(path).await.map(Some),
            Ok(false) => Ok(None),
        }
    }

    /// Every repository that was pushed to.
    pub(crate) async fn all(&self) -> Result<Vec<Mirror>, GitError> {
        let root = self.root.clone();
        let paths = tokio::task::spawn_blocking(move || repositories(&root)).await;
        let mut mirrors = Vec::new();
        for path in paths.unwrap_or_default() {
            mirrors.push(Mirror::open_or_init(path).await?);
        }
        Ok(mirrors)
    }

    /// The names of every repository that was pushed to.
    pub(crate) async fn named(&self) -> Result<Vec<(ProjectId, RepositoryName)>, tokio::task::JoinError> {
        let root = self.root.clone();
        let paths = tokio::task::spawn_blocking(move || repositories(&root)).await?;
        Ok(paths.iter().filter_map(|path| names(path)).collect())
    }

    /// The path of a repository, which may not exist yet.
    pub(crate) fn path(&self, project: &ProjectId, name: &RepositoryName) -> PathBuf {
        self.root.join(project.as_str()).join(format!("{name}.git"))
    }
}

/// The folders of repositories, as far as they can be read.
fn repositories(root: &Path) -> Vec<PathBuf> {
    let inside = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let all = inside(root).flat_map(|project| inside(&project.path()).map(|entry| entry.path()));
    all.filter(|path| path.join("HEAD").is_file()).collect()
}

/// The repository of a folder; `None` if the folder has no valid name.
fn names(path: &Path) -> Option<(ProjectId, RepositoryName)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".git")?.parse().ok()?;
    let project = path.parent()?.file_name()?.to_str()?.parse().ok()?;
    Some((project, name))
}

/// Prefix of the references of results.
pub(crate) const RESULTS: &str = "refs/kage/results/";

/// The reference under which a session's result is fetched.
pub(crate) fn result_ref(session: SessionId) -> String {
    format!("{RESULTS}{session}")
}

/// Prefix of the references of unreferenced results, followed by a time and a session. They are
/// hidden from clients.
pub(crate) const SWEPT: &str = "refs/kage/swept/";

/// The time and the session of a result that was put aside.
pub(crate) fn swept_of(reference: &str) -> Option<(Timestamp, SessionId)> {
    let (at, session) = reference.strip_prefix(SWEPT)?.split_once('/')?;
    Some((Timestamp::from_millis(at.parse().ok()?), session.parse().ok()?))
}

/// The session of a result's reference.
pub(crate) fn session_of(reference: &str) -> Option<SessionId> {
    reference.strip_prefix(RESULTS)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_used_or_taken_away_and_never_both() {
        let repositories = Repositories::new(PathBuf::new());
        let (project, name) = (ProjectId::default(), "repo".parse().unwrap());
        let hold = || repositories.hold(&project, &name);
        let close_off = || repositories.close_off(&project, &name);
        let (first, second) = (hold().unwrap(), hold().unwrap());
        drop(first);
        assert_eq!(close_off().err(), Some(Busy::InUse));
        drop(second);
        let closed = close_off().unwrap();
        assert_eq!(hold().err(), Some(Busy::TakenAway));
        assert_eq!(close_off().err(), Some(Busy::TakenAway));
        let other = "other".parse().unwrap();
        assert!(repositories.hold(&project, &other).is_ok());
        drop(closed);
        assert!(hold().is_ok());
        assert!(lock(&repositories.uses).is_empty());
    }
}
