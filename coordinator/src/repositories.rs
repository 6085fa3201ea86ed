//! The coordinator's bare repositories, one per project and name. They are made by the
//! first push; what may be pushed is `kage_git`'s business.

use std::path::PathBuf;

use kage_core::id::{ProjectId, RepositoryName, SessionId};
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

    fn path(&self, project: &ProjectId, name: &RepositoryName) -> PathBuf {
        self.root.join(project.as_str()).join(format!("{name}.git"))
    }
}

/// The reference under which a session's result is fetched.
pub(crate) fn result_ref(session: SessionId) -> String {
    format!("refs/kage/results/{session}")
}
