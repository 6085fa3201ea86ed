//! The coordinator's bare repositories, one per project and name. The first push creates them;
//! `kage_git` decides what may be pushed.

use std::path::{Path, PathBuf};

use kage_core::id::{ProjectId, RepositoryName, SessionId};
use kage_core::time::Timestamp;
use kage_git::{GitError, Mirror};

#[derive(Debug)]
pub(crate) struct Repositories {
    root: PathBuf,
}

impl Repositories {
    /// The repositories under this directory, which exists.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
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
