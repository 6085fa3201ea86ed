//! Results of sessions: the uploaded thin pack goes into the task's repository and gets its
//! reference before the event that reports it is stored. So a verify job never waits for objects.
//! What a result is - its parent, its tree, what it changes - is read from the objects here, and never
//! taken from the agent's words: risk and ranking are made of it. Also results that are made here, of the
//! checkpoints of sessions that claimed none.

use std::fs::File;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::event::ResultCommit;
use kage_core::failure::{Failure, FailureKind};
use kage_core::folder::Folder;
use kage_core::id::{Digest, Oid, ProjectId, RepositoryName};
use kage_core::sent_result::NotAResult;
use kage_core::task::RepositoryRef;
use kage_git::{Expected, GitError, Mirror, RefusedObject};

use crate::data::blobs::{BlobError, Blobs};
use crate::data::repositories::{Repositories, result_ref};
use crate::ports::{ArrivedResult, Objects, ResultNotTaken, UnclaimedWork};

/// Why a result was not accepted.
#[derive(Debug, thiserror::Error)]
enum ResultError {
    #[error("the task's repository is not there")]
    RepositoryGone,
    /// The pack is not on the blob plane.
    #[error("the pack of the result was not uploaded")]
    NoPack(#[source] BlobError),
    #[error("the pack of the result could not be read")]
    Blob(#[source] BlobError),
    /// git refused the pack or the reference.
    #[error("git did not take the result")]
    Git(#[source] GitError),
    /// The pack is there, and an object of the result or of its base is missing, damaged or another one.
    #[error("the objects of the result cannot be read")]
    Unreadable(#[source] GitError),
    /// By its objects it is something else.
    #[error("the commit that was sent is no result of this task")]
    NotOne(#[source] NotAResult),
    /// The attempt lost its authority meanwhile.
    #[error("the attempt has ended")]
    Ended,
}

impl ResultError {
    /// How the session fails by it.
    fn failure(&self) -> Failure {
        let refused = match self {
            Self::Git(GitError::PackRefused { .. }) => return Failure::new(FailureKind::ResultTooLarge, chain(self)),
            Self::NotOne(_) => return Failure::new(FailureKind::ResultRefused, chain(self)),
            Self::Git(error) => error.refused_object(),
            Self::RepositoryGone | Self::NoPack(_) | Self::Blob(_) | Self::Unreadable(_) | Self::Ended => None,
        };
        match refused {
            Some(RefusedObject { object, flaw, words }) => Failure::new(
                FailureKind::ResultRefused,
                format!(
                    "the result has an object that git programs can be attacked with, so it is not taken: {object} \
                     ({flaw}: {words})"
                ),
            ),
            // Another attempt sends its objects anew.
            None => Failure::new(FailureKind::CorruptedState, chain(self)),
        }
    }

    /// True if the same result may be accepted later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Blob(_) => true,
            Self::Git(error) | Self::Unreadable(error) => error.is_transient(),
            Self::RepositoryGone | Self::NoPack(_) | Self::NotOne(_) | Self::Ended => false,
        }
    }
}

/// The repositories and blobs of the data directory.
pub(crate) struct StoredObjects {
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) blobs: Arc<Blobs>,
}

impl Objects for StoredObjects {
    fn has_commit<'a>(
        &'a self,
        project: &'a ProjectId,
        repository: &'a RepositoryName,
        commit: &'a Oid,
    ) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            let opened = self.repositories.open(project, repository).await;
            match opened.map_err(io::Error::other)? {
                None => Ok(false),
                Some(mirror) => mirror.has_commit(commit).await.map_err(io::Error::other),
            }
        }
        .boxed()
    }

    fn has_folder<'a>(
        &'a self,
        project: &'a ProjectId,
        repository: &'a RepositoryRef,
        folder: &'a Folder,
    ) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            let opened = self.repositories.open(project, &repository.name).await;
            match opened.map_err(io::Error::other)? {
                None => Ok(false),
                Some(mirror) => {
                    let found = mirror.has_folder(&repository.base, folder).await;
                    found.map_err(io::Error::other)
                }
            }
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, project: &'a ProjectId, digest: &'a Digest) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            let size = self.blobs.size(project, digest).await;
            Ok(size.map_err(io::Error::other)?.is_some())
        }
        .boxed()
    }

    fn take_in<'a>(&'a self, arrived: ArrivedResult<'a>) -> BoxFuture<'a, Result<ResultCommit, ResultNotTaken>> {
        async move {
            let error = match self.take(&arrived).await {
                Ok(taken) => return Ok(taken),
                Err(error) => error,
            };
            tracing::warn!(?arrived, error = chain(&error), "result not taken");
            Err(match &error {
                ResultError::Ended => ResultNotTaken::Ended,
                error if error.is_transient() => ResultNotTaken::Later(error.to_string()),
                error => ResultNotTaken::Never(error.failure()),
            })
        }
        .boxed()
    }

    fn save<'a>(&'a self, unclaimed: UnclaimedWork<'a>) -> BoxFuture<'a, Result<Option<ResultCommit>, ResultNotTaken>> {
        async move {
            self.made_of(unclaimed).await.map_err(|error| {
                tracing::warn!(?unclaimed, error = chain(&error), "unfinished work not saved");
                match error.is_transient() {
                    true => ResultNotTaken::Later(chain(&error)),
                    false => ResultNotTaken::Never(error.failure()),
                }
            })
        }
        .boxed()
    }
}

impl StoredObjects {
    /// The result of work that nobody claimed, after it got its reference.
    async fn made_of(&self, unclaimed: UnclaimedWork<'_>) -> Result<Option<ResultCommit>, ResultError> {
        let UnclaimedWork {
            project,
            repository,
            session,
            work,
            message,
            rules,
        } = unclaimed;
        let opened = self.repositories.open(project, &repository.name).await;
        let mirror = opened.map_err(ResultError::Git)?.ok_or(ResultError::RepositoryGone)?;
        let reference = result_ref(session);
        // A result that comes meanwhile is newer, and stays.
        let before = mirror.resolve(&reference).await.map_err(ResultError::Git)?;
        if !mirror.has_commit(&work.to).await.map_err(ResultError::Git)? {
            let incoming = mirror.incoming().map_err(ResultError::Git)?.within(rules);
            for pack in &work.packs {
                let file = self.pack(project, pack).await?;
                incoming.add(file).await.map_err(ResultError::Git)?;
            }
            incoming.admit(&work.to).await.map_err(ResultError::Git)?;
        }
        let made = mirror
            .commit_unfinished(&repository.base, &work.from, &work.to, message)
            .await;
        let made = made.map_err(ResultError::Git)?;
        if let Some(result) = &made {
            let expected = before.map_or(Expected::Absent, Expected::At);
            let updated = mirror.update_ref(&reference, &result.commit, &expected).await;
            updated.map_err(ResultError::Git)?;
        }
        Ok(made)
    }

    async fn pack(&self, project: &ProjectId, pack: &Digest) -> Result<File, ResultError> {
        let file = self.blobs.file(project, pack).await;
        file.map_err(|error| match error {
            BlobError::NotFound(_) => ResultError::NoPack(error),
            error => ResultError::Blob(error),
        })
    }

    async fn take(&self, arrived: &ArrivedResult<'_>) -> Result<ResultCommit, ResultError> {
        let (project, commit) = (arrived.project, &arrived.result.commit);
        let mirror = self
            .repositories
            .open(project, &arrived.repository.name)
            .await
            .map_err(ResultError::Git)?
            .ok_or(ResultError::RepositoryGone)?;
        let reference = result_ref(arrived.session);
        let before = mirror.resolve(&reference).await.map_err(ResultError::Git)?;
        if before.as_ref() == Some(commit)
            && let Ok(taken) = read(&mirror, arrived).await
        {
            return Ok(taken);
        }
        let file = self.pack(project, arrived.pack).await?;
        let taken = mirror.ingest_result(file, commit, arrived.rules).await;
        taken.map_err(ResultError::Git)?;
        let taken = read(&mirror, arrived).await?;
        // A slow older attempt must not overwrite the result of a newer one: it was ended before the
        // newer one began, and the reference moved meanwhile.
        if (arrived.ended)() {
            return Err(ResultError::Ended);
        }
        let expected = before.map_or(Expected::Absent, Expected::At);
        let Err(error) = mirror.update_ref(&reference, commit, &expected).await else {
            return Ok(taken);
        };
        // An agent that reconnected sends the same result again, and that call may have finished
        // first.
        let now = mirror.resolve(&reference).await.map_err(ResultError::Git)?;
        if now.as_ref() == Some(commit) {
            return Ok(taken);
        }
        Err(ResultError::Git(error))
    }
}

/// What a result is by its objects, which are here. What its session left out is in no object: that the
/// agent says.
async fn read(mirror: &Mirror, arrived: &ArrivedResult<'_>) -> Result<ResultCommit, ResultError> {
    let (base, said) = (&arrived.repository.base, arrived.result);
    let found = mirror.read_result(base, &said.commit, said.tree.as_ref()).await;
    let found = found.map_err(ResultError::Unreadable)?.map_err(ResultError::NotOne)?;
    let result = ResultCommit {
        left_out: said.left_out.clone(),
        ..found
    };
    if said.diff != result.diff || said.paths != result.paths || said.deleted != result.deleted {
        tracing::warn!(
            ?arrived,
            "an agent said something else of its result than the objects say"
        );
    }
    Ok(result)
}
