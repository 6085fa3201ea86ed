//! The coordinator's bare repositories, one per project and name. They are made by the
//! first push; what may be pushed is `kage_git`'s business.

use std::path::{Path, PathBuf};

use kage_core::id::{ProjectId, RepositoryName, SessionId};
use kage_core::time::Timestamp;
use kage_git::{GitError, Mirror};

/// The repositories of every project.
#[derive(Debug)]
pub(crate) struct Repositories {
    root: PathBuf,
}

impl Repositories {
    /// Repositories under this directory, which exists.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Opens a repository, or makes it.
    pub(crate) async fn open_or_init(&self, project: &ProjectId, name: &RepositoryName) -> Result<Mirror, GitError> {
        Mirror::open_or_init(self.path(project, name)).await
    }

    /// Opens a repository that was pushed to; `None` when none was.
    pub(crate) async fn open(&self, project: &ProjectId, name: &RepositoryName) -> Result<Option<Mirror>, GitError> {
        let path = self.path(project, name);
        match tokio::fs::try_exists(path.join("HEAD")).await {
            Ok(true) => Mirror::open_or_init(path).await.map(Some),
            // What cannot be looked at cannot be opened either, and says why.
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

    /// Where a repository is, or would be.
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

/// What the references of results begin with.
pub(crate) const RESULTS: &str = "refs/kage/results/";

/// The reference under which a session's result is fetched.
pub(crate) fn result_ref(session: SessionId) -> String {
    format!("{RESULTS}{session}")
}

/// What the references of results begin with that no row names: a time and a session follow.
/// Nobody is shown them.
pub(crate) const SWEPT: &str = "refs/kage/swept/";

/// The time and the session of a result that was put aside.
pub(crate) fn swept_of(reference: &str) -> Option<(Timestamp, SessionId)> {
    let (at, session) = reference.strip_prefix(SWEPT)?.split_once('/')?;
    Some((Timestamp::from_millis(at.parse().ok()?), session.parse().ok()?))
}

/// The session whose result a reference is.
pub(crate) fn session_of(reference: &str) -> Option<SessionId> {
    reference.strip_prefix(RESULTS)?.parse().ok()
}
