//! Results of sessions: the uploaded thin pack goes into the task's repository and gets its
//! reference before the event that reports it is stored. So a verify job never waits for objects.

use kage_core::event::ResultCommit;
use kage_core::id::{Digest, ProjectId, SessionId};
use kage_core::task::RepositoryRef;
use kage_git::{Expected, GitError};

use crate::coordinator::{Coordinator, Held};
use crate::data::blobs::BlobError;
use crate::data::repositories::result_ref;

/// Why a result was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResultError {
    #[error("the task has no repository to take a result into")]
    NoRepository,
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
    /// The attempt lost its authority meanwhile.
    #[error("the attempt has ended")]
    Ended,
}

impl ResultError {
    /// True if the same result may be accepted later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Blob(_) => true,
            Self::Git(error) => error.is_transient(),
            Self::NoRepository | Self::RepositoryGone | Self::NoPack(_) | Self::Ended => false,
        }
    }
}

/// The attempt that delivers a result.
#[derive(Debug)]
pub(crate) struct Claimant<'a> {
    pub(crate) project: &'a ProjectId,
    pub(crate) repository: Option<&'a RepositoryRef>,
    pub(crate) session: SessionId,
    pub(crate) fence: &'a Held,
}

/// Stores a result. Repeating it is harmless.
pub(crate) async fn take_in(
    coordinator: &Coordinator,
    claimant: Claimant<'_>,
    result: &ResultCommit,
    pack: &Digest,
) -> Result<(), ResultError> {
    let repository = claimant.repository.ok_or(ResultError::NoRepository)?;
    let mirror = coordinator
        .repositories
        .open(claimant.project, &repository.name)
        .await
        .map_err(ResultError::Git)?
        .ok_or(ResultError::RepositoryGone)?;
    let reference = result_ref(claimant.session);
    let before = mirror.resolve(&reference).await.map_err(ResultError::Git)?;
    if before.as_ref() == Some(&result.commit) {
        return Ok(());
    }
    let file = coordinator
        .blobs
        .file(claimant.project, pack)
        .await
        .map_err(|error| match error {
            BlobError::NotFound(_) => ResultError::NoPack(error),
            error => ResultError::Blob(error),
        })?;
    mirror
        .ingest_pack(file, &result.commit)
        .await
        .map_err(ResultError::Git)?;
    // A slow older attempt must not overwrite the result of a newer one: it was ended before the
    // newer one began, and the reference moved meanwhile.
    if claimant.fence.is_closed() {
        return Err(ResultError::Ended);
    }
    let expected = before.map_or(Expected::Absent, Expected::At);
    let Err(error) = mirror.update_ref(&reference, &result.commit, &expected).await else {
        return Ok(());
    };
    // An agent that reconnected sends the same result again, and that call may have finished first.
    let now = mirror.resolve(&reference).await.map_err(ResultError::Git)?;
    if now.as_ref() == Some(&result.commit) {
        return Ok(());
    }
    Err(ResultError::Git(error))
}
