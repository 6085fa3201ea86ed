//! Worktrees for attempts: a bare mirror per repository, filled from the coordinator, and
//! a worktree per attempt, removed when the attempt is over. All git is `kage-git`'s.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kage_core::cause::chain;
use kage_core::checkpoint::Resume;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::id::{AttemptId, Oid, ProjectId, RepositoryName, SessionId};
use kage_git::restore::{RestoreError, Restored};
use kage_git::{Auth, FetchProblem, GitError, Mirror, Worktree};
use kage_proto::blob::repository_path;
use kage_proto::client::Credentials;
use tokio::sync::OwnedRwLockReadGuard;

use crate::backoff::Backoff;
use crate::blobs::{BlobError, Blobs, TRIES};
use crate::ports::Random;
use crate::state::Paths;
use crate::trust::git_auth;
use crate::uses::Uses;

/// Why a workspace could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    #[error("the mirror cannot be used")]
    Mirror(#[source] GitError),
    #[error("the commit {commit} could not be fetched")]
    Fetch {
        commit: Oid,
        #[source]
        source: GitError,
    },
    #[error("the commit {commit} is not in the coordinator's repository")]
    Missing { commit: Oid },
    #[error("the worktree cannot be made")]
    Create(#[source] GitError),
    #[error("a part of the checkpoint could not be fetched")]
    Pack(#[source] BlobError),
    #[error("the checkpoint {commit} cannot be put together")]
    Assemble {
        commit: Oid,
        #[source]
        source: GitError,
    },
    #[error("the checkpoint {commit} has the tree {found}, and not {expected}")]
    OtherTree { commit: Oid, found: Oid, expected: Oid },
    #[error("the files of the checkpoint cannot be restored")]
    Restore(#[source] RestoreError),
}

impl WorkspaceError {
    /// How the attempt fails.
    pub(crate) fn failure(&self) -> Failure {
        let kind = match self {
            Self::Fetch { .. } | Self::Pack(BlobError::Unanswered(_)) => FailureKind::Network,
            Self::Mirror(_)
            | Self::Missing { .. }
            | Self::Create(_)
            | Self::Pack(_)
            | Self::Assemble { .. }
            | Self::OtherTree { .. }
            | Self::Restore(_) => FailureKind::CorruptedState,
        };
        local_failure(kind, chain(self))
    }
}

/// Where an attempt works.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) mirror: Mirror,
    pub(crate) tree: Arc<Worktree>,
    /// While it is held, nothing is collected in the mirror.
    _use: OwnedRwLockReadGuard<()>,
}

impl Workspace {
    /// One in a mirror that the guard keeps from being collected.
    pub(crate) fn new(mirror: Mirror, tree: Worktree, in_use: OwnedRwLockReadGuard<()>) -> Self {
        Self {
            mirror,
            tree: Arc::new(tree),
            _use: in_use,
        }
    }

    /// Removes it. What cannot be removed is swept at the next start.
    pub(crate) async fn remove(self) {
        removed(self.tree.path(), Worktree::remove(&self.mirror, self.tree.path()).await);
    }
}

fn removed(path: &Path, removed: Result<(), GitError>) {
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), error = chain(&error), "worktree was not removed");
    }
}

/// Makes and removes workspaces.
pub(crate) struct Workspaces {
    paths: Paths,
    coordinator_url: String,
    auth: Auth,
    blobs: Blobs,
    uses: Uses,
    random: Random,
}

impl Workspaces {
    pub(crate) fn new(
        paths: Paths,
        coordinator_url: &str,
        credentials: &Credentials,
        blobs: Blobs,
        uses: Uses,
        random: Random,
    ) -> Self {
        Self {
            random,
            paths,
            blobs,
            uses,
            coordinator_url: coordinator_url.trim_end_matches('/').to_owned(),
            auth: git_auth(credentials),
        }
    }

    /// A worktree of the base commit.
    ///
    /// # Errors
    /// When the commit cannot be had.
    pub(crate) async fn for_session(
        &self,
        attempt: AttemptId,
        project: &ProjectId,
        repository: &RepositoryName,
        base: &Oid,
    ) -> Result<Workspace, WorkspaceError> {
        let (mirror, in_use) = self.mirror(project, repository).await?;
        self.fetch(&mirror, project, repository, base, &base_ref(base)).await?;
        self.checkout(attempt, mirror, in_use, base).await
    }

    /// A worktree of the base commit with the files of a checkpoint.
    ///
    /// # Errors
    /// When base or checkpoint cannot be had whole.
    pub(crate) async fn for_resumed(
        &self,
        attempt: AttemptId,
        project: &ProjectId,
        repository: &RepositoryName,
        base: &Oid,
        resume: &Resume,
    ) -> Result<Workspace, WorkspaceError> {
        let (mirror, in_use) = self.mirror(project, repository).await?;
        self.fetch(&mirror, project, repository, base, &base_ref(base)).await?;
        self.assemble(&mirror, project, resume).await?;
        let path = self.paths.worktree(attempt);
        let tree = Worktree::rebuild(&mirror, path, base, &resume.commit)
            .await
            .map_err(WorkspaceError::Restore)?;
        Ok(Workspace::new(mirror, tree, in_use))
    }

    /// Gives a workspace that an earlier attempt of the session left the files of a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint cannot be had whole, or its files cannot be restored there.
    pub(crate) async fn go_back(
        &self,
        left: &Workspace,
        project: &ProjectId,
        resume: &Resume,
        complete: bool,
    ) -> Result<Restored, WorkspaceError> {
        self.assemble(&left.mirror, project, resume).await?;
        let restored = left.tree.go_back(&resume.commit, complete).await;
        restored.map_err(WorkspaceError::Restore)
    }

    /// Puts a checkpoint's commit into the mirror, unless it was taken here.
    async fn assemble(&self, mirror: &Mirror, project: &ProjectId, resume: &Resume) -> Result<(), WorkspaceError> {
        let commit = &resume.commit;
        let failed = |source| WorkspaceError::Assemble {
            commit: commit.clone(),
            source,
        };
        if !mirror.has_commit(commit).await.map_err(WorkspaceError::Mirror)? {
            let incoming = mirror.incoming().map_err(failed)?;
            for digest in &resume.packs {
                let pack = self.blobs.get_file(project, digest, mirror.path()).await;
                incoming
                    .add(pack.map_err(WorkspaceError::Pack)?)
                    .await
                    .map_err(failed)?;
            }
            incoming.admit(commit).await.map_err(failed)?;
        }
        let tree = mirror.resolve(&format!("{commit}^{{tree}}")).await.map_err(failed)?;
        match tree {
            Some(tree) if tree == resume.tree => Ok(()),
            Some(found) => Err(WorkspaceError::OtherTree {
                commit: commit.clone(),
                found,
                expected: resume.tree.clone(),
            }),
            None => Err(WorkspaceError::Missing { commit: commit.clone() }),
        }
    }

    /// A clean worktree of a session's result; the base is in its mirror as well.
    ///
    /// # Errors
    /// When one of the commits cannot be had.
    pub(crate) async fn for_verify(
        &self,
        attempt: AttemptId,
        project: &ProjectId,
        repository: &RepositoryName,
        base: &Oid,
        session: SessionId,
        result: &Oid,
    ) -> Result<Workspace, WorkspaceError> {
        let (mirror, in_use) = self.mirror(project, repository).await?;
        self.fetch(&mirror, project, repository, base, &base_ref(base)).await?;
        let reference = format!("refs/kage/results/{session}");
        self.fetch(&mirror, project, repository, result, &reference).await?;
        self.checkout(attempt, mirror, in_use, result).await
    }

    /// The mirror of a repository, to be worked in while the guard is held.
    async fn mirror(
        &self,
        project: &ProjectId,
        repository: &RepositoryName,
    ) -> Result<(Mirror, OwnedRwLockReadGuard<()>), WorkspaceError> {
        let path = self.paths.mirror(project, repository);
        let in_use = self.uses.of(&path).read_owned().await;
        let mirror = Mirror::open_or_init(path).await.map_err(WorkspaceError::Mirror)?;
        // Only tells which mirror was not used for longest.
        if let Err(error) = tokio::fs::write(mirror.path().join("used"), b"").await {
            tracing::debug!(%error, "use of a mirror is not noted");
        }
        Ok((mirror, in_use))
    }

    /// Fetches a commit that is not here yet.
    async fn fetch(
        &self,
        mirror: &Mirror,
        project: &ProjectId,
        repository: &RepositoryName,
        commit: &Oid,
        reference: &str,
    ) -> Result<(), WorkspaceError> {
        if mirror.has_commit(commit).await.map_err(WorkspaceError::Mirror)? {
            return Ok(());
        }
        let url = format!("{}{}", self.coordinator_url, repository_path(project, repository));
        let refspec = format!("+{reference}:{reference}");
        let (mut backoff, mut broken_off) = (Backoff::default(), 0);
        while let Err(source) = mirror.fetch(&url, &self.auth, &[&refspec]).await {
            match source.fetch_problem() {
                // A coordinator that is away is waited for; whoever called ends the wait.
                FetchProblem::Away => {}
                FetchProblem::BrokenOff if broken_off < TRIES => broken_off += 1,
                FetchProblem::NoReference => return Err(WorkspaceError::Missing { commit: commit.clone() }),
                FetchProblem::BrokenOff | FetchProblem::Other => {
                    let commit = commit.clone();
                    return Err(WorkspaceError::Fetch { commit, source });
                }
            }
            tracing::debug!(error = chain(&source), "fetch failed");
            tokio::time::sleep(backoff.next(&self.random)).await;
        }
        if mirror.has_commit(commit).await.map_err(WorkspaceError::Mirror)? {
            Ok(())
        } else {
            Err(WorkspaceError::Missing { commit: commit.clone() })
        }
    }

    async fn checkout(
        &self,
        attempt: AttemptId,
        mirror: Mirror,
        in_use: OwnedRwLockReadGuard<()>,
        commit: &Oid,
    ) -> Result<Workspace, WorkspaceError> {
        let path = self.paths.worktree(attempt);
        let tree = Worktree::create(&mirror, path, commit)
            .await
            .map_err(WorkspaceError::Create)?;
        Ok(Workspace::new(mirror, tree, in_use))
    }

    /// Removes what an attempt worked in, also when its making was cut short. What cannot
    /// be removed is swept at the next start.
    pub(crate) async fn remove(&self, attempt: AttemptId, project: &ProjectId, repository: &RepositoryName) {
        let path = self.paths.worktree(attempt);
        let done = match Mirror::open_or_init(self.paths.mirror(project, repository)).await {
            Ok(mirror) => Worktree::remove(&mirror, &path).await,
            Err(error) => Err(error),
        };
        removed(&path, done);
    }

    /// Removes what attempts of earlier starts left, and what a crash left half made.
    pub(crate) async fn sweep(&self) {
        for project in folders(&self.paths.mirrors()) {
            for path in folders(&project) {
                let swept = match Mirror::open_or_init(path).await {
                    Ok(mirror) => mirror.forget_worktrees().await,
                    Err(error) => Err(error),
                };
                if let Err(error) = swept {
                    tracing::warn!(error = chain(&error), "mirror is not swept");
                }
            }
        }
        for folder in [self.paths.worktrees(), self.paths.scratches()] {
            for left in folders(&folder) {
                remove_folder(left).await;
            }
        }
    }
}

fn base_ref(base: &Oid) -> String {
    format!("refs/kage/bases/{base}")
}

/// The folders directly in `dir`; none when it is not there.
pub(crate) fn folders(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Removes a folder and all in it; it may be gone already.
pub(crate) async fn remove_folder(path: PathBuf) {
    match tokio::fs::remove_dir_all(&path).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "folder was not removed"),
    }
}
