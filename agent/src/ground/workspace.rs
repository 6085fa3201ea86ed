//! Worktrees for attempts: a bare mirror per repository, filled from the coordinator, and a
//! worktree per attempt, which becomes the next one when the attempt is over (`pool`). `kage-git` runs all git.
//!
//! A mirror is a cache. A damaged mirror is healed once, in place (`workspace::healing`), and the
//! operation is repeated; that does not count as a failure. When it fails again straight after, the
//! attempt fails.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::checkpoint::Resume;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::id::{AttemptId, Digest, Oid, ProjectId, RepositoryName, SessionId};
use kage_core::task::ResultRules;
use kage_git::restore::RestoreError;
use kage_git::{Auth, FetchProblem, GitError, Mirror, Origin, Wanted, Worktree};
use kage_proto::blob::repository_path;
use kage_proto::client::Credentials;
use tokio::sync::OwnedRwLockReadGuard;

use crate::backoff::Backoff;
use crate::ground::blobs::{BlobError, Blobs, TRIES};
use crate::ground::folders::{folders, remove_folder};
use crate::ground::pool::Pool;
use crate::ground::port::{Ground, GroundAttempt, Grounded, Making, Workspace};
use crate::ground::uses::Uses;
use crate::identity::state::Paths;
use crate::identity::trust::git_auth;
use crate::ports::Random;

mod left_out;
mod checkout;
mod healing;
mod proving;

pub(crate) use checkout::Checkout;
pub(crate) use healing::Healer;
pub(crate) use left_out::ToldFiles;

/// Why a workspace could not be provided.
#[derive(Debug, thiserror::Error)]
enum WorkspaceError {
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
    fn failure(&self) -> Failure {
        let kind = match self {
            // A fetch that failed because the mirror is damaged and could not be healed.
            Self::Fetch { source, .. } if source.suggests_damage(Path::new("/")) => FailureKind::CorruptedState,
            Self::Fetch { .. } | Self::Pack(BlobError::Unanswered(_)) => FailureKind::Network,
            Self::Assemble {
                source: GitError::PackRefused { .. },
                ..
            } => FailureKind::ResultTooLarge,
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

    /// The error of git, if it was git's.
    const fn git(&self) -> Option<&GitError> {
        match self {
            Self::Mirror(source)
            | Self::Fetch { source, .. }
            | Self::Create(source)
            | Self::Assemble { source, .. }
            | Self::Restore(RestoreError::Git(source)) => Some(source),
            Self::Missing { .. } | Self::Pack(_) | Self::OtherTree { .. } | Self::Restore(_) => None,
        }
    }
}

fn removed(path: &Path, removed: Result<(), GitError>) {
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), error = chain(&error), "worktree was not removed");
    }
}

/// A repository, and the commits that an attempt needs of it.
struct Source<'a> {
    project: &'a ProjectId,
    repository: &'a RepositoryName,
    origin: Origin,
    wanted: Vec<Wanted>,
    healer: Healer,
}

pub(crate) struct MirrorGround {
    paths: Paths,
    coordinator_url: String,
    auth: Auth,
    blobs: Blobs,
    uses: Uses,
    pool: Pool,
    random: Random,
}

impl MirrorGround {
    pub(crate) fn new(
        paths: Paths,
        coordinator_url: &str,
        credentials: &Credentials,
        blobs: Blobs,
        uses: Uses,
        pool: Pool,
        random: Random,
    ) -> Self {
        Self {
            random,
            paths,
            blobs,
            uses,
            pool,
            coordinator_url: coordinator_url.trim_end_matches('/').to_owned(),
            auth: git_auth(credentials),
        }
    }

    /// A worktree of the base commit, or with the files of a checkpoint.
    async fn session(&self, of: &GroundAttempt, resume: Option<&Resume>) -> Result<Checkout, WorkspaceError> {
        let source = self.source(of, sent(of).map(Wanted::base).collect());
        let mut healed = false;
        loop {
            match Box::pin(self.try_session(&source, of, resume, healed)).await {
                Ok(workspace) => return Ok(workspace),
                Err(error) => self.heal(&source, of, &mut healed, error).await?,
            }
        }
    }

    /// `anew`: fetches the checkpoint also when the mirror has it.
    async fn try_session(
        &self,
        source: &Source<'_>,
        of: &GroundAttempt,
        resume: Option<&Resume>,
        anew: bool,
    ) -> Result<Checkout, WorkspaceError> {
        let (mirror, in_use) = self.mirror(source).await?;
        self.fetch_all(&mirror, source).await?;
        let (path, base) = (self.paths.worktree(of.attempt), &of.repository.base);
        if let Some(resume) = resume {
            assemble(&mirror, &self.blobs, source.project, resume, &of.results, anew).await?;
        }
        let tree = self.pool.worktree(&mirror, &path, base).await;
        let mut tree = tree.map_err(WorkspaceError::Create)?;
        let ruled = tree.set_rules(of.results.clone()).await;
        ruled.map_err(WorkspaceError::Create)?;
        if let Some(resume) = resume {
            let restored = tree.go_back(&resume.commit, false).await;
            restored.map_err(WorkspaceError::Restore)?;
        }
        complete(&tree, of).await?;
        Ok(self.checkout(mirror, tree, source, in_use))
    }

    fn checkout(
        &self,
        mirror: Mirror,
        tree: Worktree,
        source: &Source<'_>,
        in_use: OwnedRwLockReadGuard<()>,
    ) -> Checkout {
        Checkout {
            mirror,
            tree,
            healer: source.healer.clone(),
            blobs: self.blobs.clone(),
            project: source.project.clone(),
            pool: self.pool.clone(),
            told: ToldFiles::default(),
            _use: in_use,
        }
    }

    /// A clean worktree of a session's result; its mirror has the base as well. The objects of both, and
    /// the files themselves, are hashed: a verdict on files that differ from the commit would mean nothing.
    async fn verify(&self, of: &GroundAttempt, session: SessionId, result: &Oid) -> Result<Checkout, WorkspaceError> {
        let reference = format!("refs/kage/results/{session}");
        let commit = result.clone();
        let mut wanted: Vec<Wanted> = sent(of).map(Wanted::base).collect();
        if *result != of.repository.base {
            wanted.push(Wanted { reference, commit });
        }
        let source = self.source(of, wanted);
        let mut healed = false;
        loop {
            match Box::pin(self.try_verify(&source, of, result)).await {
                Ok(workspace) => return Ok(workspace),
                Err(error) => self.heal(&source, of, &mut healed, error).await?,
            }
        }
    }

    async fn try_verify(
        &self,
        source: &Source<'_>,
        of: &GroundAttempt,
        result: &Oid,
    ) -> Result<Checkout, WorkspaceError> {
        let (mirror, in_use) = self.mirror(source).await?;
        self.fetch_all(&mirror, source).await?;
        let mut commits: Vec<Oid> = sent(of).chain([result]).cloned().collect();
        if let Some(names) = &of.repository.names {
            let beside = mirror.beside(names).await;
            commits.extend(beside.map_err(WorkspaceError::Mirror)?);
        }
        let hashed = mirror.check_files_of(&commits).await;
        hashed.map_err(WorkspaceError::Mirror)?;
        let tree = self.proved(&mirror, of, result).await?;
        Ok(self.checkout(mirror, tree, source, in_use))
    }

    /// The source of commits of a repository.
    fn source<'a>(&self, of: &'a GroundAttempt, wanted: Vec<Wanted>) -> Source<'a> {
        let (project, repository) = (&of.project, &of.repository.name);
        let url = format!("{}{}", self.coordinator_url, repository_path(project, repository));
        let auth = self.auth.clone();
        let origin = Origin { url, auth };
        let path = self.paths.mirror(project, repository);
        Source {
            project,
            repository,
            healer: Healer::new(path, origin.clone(), wanted.clone(), Arc::clone(&self.random)),
            origin,
            wanted,
        }
    }

    /// Heals the mirror after `error`, once, and removes the unfinished worktree; otherwise returns
    /// the error.
    async fn heal(
        &self,
        source: &Source<'_>,
        of: &GroundAttempt,
        healed: &mut bool,
        error: WorkspaceError,
    ) -> Result<(), WorkspaceError> {
        let Some(git) = error.git().filter(|_| !*healed) else {
            return Err(error);
        };
        if !source.healer.heal(&of.warnings, git).await {
            return Err(error);
        }
        *healed = true;
        self.remove_worktree(of.attempt, source.project, source.repository)
            .await;
        Ok(())
    }

    /// The mirror of a repository, usable while the guard is held.
    async fn mirror(&self, source: &Source<'_>) -> Result<(Mirror, OwnedRwLockReadGuard<()>), WorkspaceError> {
        let path = self.paths.mirror(source.project, source.repository);
        let in_use = self.uses.of(&path).read_owned().await;
        let mirror = Mirror::open_or_init(path).await.map_err(WorkspaceError::Mirror)?;
        // Only tells which mirror was not used for longest.
        if let Err(error) = tokio::fs::write(mirror.path().join("used"), b"").await {
            tracing::debug!(%error, "use of a mirror is not noted");
        }
        Ok((mirror, in_use))
    }

    /// Fetches the wanted commits that are missing.
    async fn fetch_all(&self, mirror: &Mirror, source: &Source<'_>) -> Result<(), WorkspaceError> {
        let missing = async || mirror.missing(&source.wanted).await.map_err(WorkspaceError::Mirror);
        let asked: Vec<Wanted> = missing().await?.into_iter().cloned().collect();
        let Some(first) = asked.first() else {
            return Ok(());
        };
        let (mut backoff, mut broken_off) = (Backoff::default(), 0);
        while let Err(error) = mirror.fetch_missing(&source.origin, &asked).await {
            match error.fetch_problem() {
                // An unreachable coordinator is waited for; the caller ends the wait.
                FetchProblem::Away => {}
                FetchProblem::BrokenOff if broken_off < TRIES => broken_off += 1,
                // One of them, or more.
                FetchProblem::NoReference => break,
                FetchProblem::BrokenOff | FetchProblem::Other => {
                    let commit = first.commit.clone();
                    return Err(WorkspaceError::Fetch { commit, source: error });
                }
            }
            tracing::debug!(error = chain(&error), "fetch failed");
            tokio::time::sleep(backoff.next(&self.random)).await;
        }
        match missing().await?.first() {
            None => Ok(()),
            Some(missing) => {
                let commit = missing.commit.clone();
                Err(WorkspaceError::Missing { commit })
            }
        }
    }

    /// Removes an attempt's worktree, even if its creation was cut short. What cannot be removed is
    /// swept at the next start.
    async fn remove_worktree(&self, attempt: AttemptId, project: &ProjectId, repository: &RepositoryName) {
        let path = self.paths.worktree(attempt);
        let done = match Mirror::open_or_init(self.paths.mirror(project, repository)).await {
            Ok(mirror) => Worktree::remove(&mirror, &path).await,
            Err(error) => Err(error),
        };
        removed(&path, done);
    }

    /// Removes worktrees of earlier starts, and those that a crash left unfinished. Checkouts that
    /// wait for an attempt stay.
    async fn sweep_worktrees(&self) {
        let pool = self.pool.clone();
        if tokio::task::spawn_blocking(move || pool.recover()).await.is_err() {
            tracing::debug!("the agent ends; the next start finds its checkouts");
        }
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
        for folder in [self.paths.worktrees(), self.paths.scratches(), self.paths.doors()] {
            for left in folders(&folder) {
                remove_folder(left).await;
            }
        }
        let short = self.paths.short_tmp();
        if tokio::task::spawn_blocking(move || short.sweep()).await.is_err() {
            tracing::debug!("the agent ends; the next start removes its temporary folders");
        }
    }
}

impl Ground for MirrorGround {
    fn for_session<'a>(&'a self, of: &'a GroundAttempt, resume: Option<&'a Resume>) -> Making<'a> {
        async move { made(self.session(of, resume).await) }.boxed()
    }

    fn for_verify<'a>(&'a self, of: &'a GroundAttempt, session: SessionId, commit: &'a Oid) -> Making<'a> {
        async move { made(self.verify(of, session, commit).await) }.boxed()
    }

    fn remove<'a>(
        &'a self,
        attempt: AttemptId,
        project: &'a ProjectId,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, ()> {
        self.remove_worktree(attempt, project, repository).boxed()
    }

    fn sweep(&self) -> BoxFuture<'_, ()> {
        self.sweep_worktrees().boxed()
    }

    fn put<'a>(&'a self, project: &'a ProjectId, bytes: Bytes) -> Grounded<'a, Digest> {
        async move {
            let put = self.blobs.put(project, bytes).await;
            put.map_err(|error| error.failure("the bytes could not be sent"))
        }
        .boxed()
    }

    fn get<'a>(&'a self, project: &'a ProjectId, digest: &'a Digest) -> Grounded<'a, Bytes> {
        async move {
            let got = self.blobs.get(project, digest).await;
            got.map_err(|error| error.failure("the bytes could not be fetched"))
        }
        .boxed()
    }
}

/// The commits that the person sent for the task: its base, and what goes with it.
fn sent(of: &GroundAttempt) -> impl Iterator<Item = &Oid> {
    let beside = [of.files.as_ref(), of.repository.names.as_ref()];
    [&of.repository.base].into_iter().chain(beside.into_iter().flatten())
}

/// Puts the task's names, submodules, large files and ignored files into a worktree, which is as its commit or its checkpoint
/// has it.
async fn complete(tree: &Worktree, of: &GroundAttempt) -> Result<(), WorkspaceError> {
    if let Some(names) = &of.repository.names {
        tree.give_names(names).await.map_err(WorkspaceError::Create)?;
        tree.fill_submodules(names).await.map_err(WorkspaceError::Create)?;
        tree.fill_large(names).await.map_err(WorkspaceError::Create)?;
    }
    match &of.files {
        Some(files) => tree.include(files).await.map_err(WorkspaceError::Create),
        None => Ok(()),
    }
}

fn made(made: Result<Checkout, WorkspaceError>) -> Result<Arc<dyn Workspace>, Failure> {
    match made {
        Ok(checkout) => Ok(Arc::new(checkout)),
        Err(error) => Err(error.failure()),
    }
}

/// Puts a checkpoint's commit into the mirror, unless it was taken here. `anew`: even then.
async fn assemble(
    mirror: &Mirror,
    blobs: &Blobs,
    project: &ProjectId,
    resume: &Resume,
    rules: &ResultRules,
    anew: bool,
) -> Result<(), WorkspaceError> {
    let commit = &resume.commit;
    let failed = |source| WorkspaceError::Assemble {
        commit: commit.clone(),
        source,
    };
    if anew || !mirror.has_commit(commit).await.map_err(WorkspaceError::Mirror)? {
        let incoming = mirror.incoming().map_err(failed)?.within(rules);
        for digest in &resume.packs {
            let pack = blobs.get_file(project, digest, mirror.path()).await;
            incoming
                .add(pack.map_err(WorkspaceError::Pack)?)
                .await
                .map_err(failed)?;
        }
        incoming.admit(commit).await.map_err(failed)?;
    }
    match mirror.tree_of(commit).await.map_err(failed)? {
        Some(tree) if tree == resume.tree => Ok(()),
        Some(found) => Err(WorkspaceError::OtherTree {
            commit: commit.clone(),
            found,
            expected: resume.tree.clone(),
        }),
        None => Err(WorkspaceError::Missing { commit: commit.clone() }),
    }
}
