//! The repository of a task with checkpoints put together in it. Their packs are on the blob
//! plane; the repository is a cache of them.

use kage_core::checkpoint::{Chain, Checkpoint};
use kage_git::{GitError, Mirror};
use kage_proto::status::ApiError;

use super::subject::Subject;
use crate::coordinator::Coordinator;
use crate::refusals::internal;

/// The repository of the subject's task, which has these checkpoints.
pub(in crate::services) async fn repository(
    coordinator: &Coordinator,
    subject: &Subject,
    needed: &[&Checkpoint],
) -> Result<Mirror, ApiError> {
    let spec = &subject.view.task.spec;
    let gone = || ApiError::FailedPrecondition {
        message: "the task has no repository".to_owned(),
    };
    let repository = spec.repository.as_ref().ok_or_else(gone)?;
    let opened = coordinator.repositories.open(&spec.project, &repository.name).await;
    let mirror = opened.map_err(|error| internal("the repository could not be opened", &error))?;
    let mirror = mirror.ok_or_else(gone)?;
    for checkpoint in needed {
        put_together(coordinator, &mirror, subject, checkpoint).await?;
    }
    Ok(mirror)
}

/// Takes into the repository what it lacks of a checkpoint.
async fn put_together(
    coordinator: &Coordinator,
    mirror: &Mirror,
    subject: &Subject,
    checkpoint: &Checkpoint,
) -> Result<(), ApiError> {
    let failed = |error: &GitError| internal("a checkpoint cannot be put together", error);
    let broken = |error| internal("a checkpoint cannot be put together", &error);
    let commit = &checkpoint.taken.commit;
    if mirror.has_commit(commit).await.map_err(|error| failed(&error))? {
        return Ok(());
    }
    let chain = Chain::of(checkpoint, &subject.all, subject.base()?).map_err(broken)?;
    let project = &subject.view.task.spec.project;
    let incoming = mirror.incoming().map_err(|error| failed(&error))?;
    let incoming = incoming.within(&subject.view.task.spec.policy.results);
    for pack in &chain.packs {
        let file = coordinator.blobs.file(project, pack).await;
        let file = file.map_err(|error| internal("the pack of a checkpoint cannot be read", &error))?;
        incoming.add(file).await.map_err(|error| failed(&error))?;
    }
    incoming.admit(commit).await.map_err(|error| failed(&error))
}
