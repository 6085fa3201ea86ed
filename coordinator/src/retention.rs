//! Making room: tasks that ended long ago are dropped, and what no row names any more is
//! removed. Which tasks go is decided in `kage_core::retention`.
//!
//! ```text
//!   DropTask (rows, one transaction) ─▶ sweep: output ─▶ results' references ─▶ blobs
//! ```
//! The rows go first, so that nobody is shown a task whose files are half gone. A sweep compares
//! what is there with what rows name, so whatever a crash left behind the next one finishes.
//! It lists files before it asks for rows: what comes meanwhile is not on the list.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kage_core::retention::{Ended, Limits, too_many};
use kage_git::GitError;
use kage_proto::MAX_INLINE;

use crate::blobs::{BlobError, UNNAMED};
use crate::coordinator::Coordinator;
use crate::repositories::{RESULTS, session_of};
use crate::store::{DropTask, InFiles, ReadError, StoreError};

/// How often it is looked what may go. A task that is dropped by hand is a reason besides.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Why room could not be made.
#[derive(Debug, thiserror::Error)]
enum RetentionError {
    #[error("what is stored cannot be read")]
    Read(#[from] ReadError),
    #[error("a task cannot be dropped")]
    Drop(#[source] StoreError),
    #[error("output cannot be listed or removed")]
    Output(#[from] std::io::Error),
    #[error("blobs cannot be listed or removed")]
    Blobs(#[from] BlobError),
    #[error("references of results cannot be removed")]
    Git(#[from] GitError),
}

/// Makes room at the start, now and then, and when a task was dropped.
pub(crate) async fn run(coordinator: Arc<Coordinator>, limits: Limits) {
    loop {
        let pass = async {
            drop_old(&coordinator, limits).await?;
            sweep(&coordinator).await
        };
        tokio::select! {
            () = coordinator.closing.cancelled() => return,
            made = pass => if let Err(error) = made {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot make room");
            },
        }
        tokio::select! {
            () = coordinator.closing.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
            () = coordinator.dropped.notified() => {}
        }
    }
}

/// Drops the tasks that are beyond the limits.
async fn drop_old(coordinator: &Coordinator, limits: Limits) -> Result<(), RetentionError> {
    let output: HashMap<_, _> = coordinator.outputs.list().await?.into_iter().collect();
    let blobs = coordinator.blobs.list().await?.into_iter();
    let blobs: HashMap<_, _> = blobs.map(|blob| ((blob.project, blob.digest), blob.bytes)).collect();
    let ended = coordinator.store.ended().await?.into_iter().map(|task| {
        let written = task.attempts.iter().filter_map(|attempt| output.get(attempt));
        let project = task.project;
        let kept = task.blobs.into_iter();
        let kept = kept.filter_map(|digest| blobs.get(&(project.clone(), digest)));
        Ended {
            task: task.task,
            at: task.ended_at,
            bytes: written.chain(kept).sum(),
        }
    });
    let ended: Vec<Ended> = ended.collect();
    for task in too_many(limits, &ended, coordinator.now()) {
        let command = DropTask {
            request: None,
            task,
            now: coordinator.now(),
        };
        match coordinator.store.apply(command).await {
            Ok(changes) => {
                tracing::info!(%task, "task dropped: it ended long ago, or room is needed");
                coordinator.follow(changes);
            }
            // Somebody took it up again, or was quicker.
            Err(StoreError::TaskOpen { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => return Err(RetentionError::Drop(error)),
        }
    }
    Ok(())
}

/// Removes what no row names.
async fn sweep(coordinator: &Coordinator) -> Result<(), RetentionError> {
    let output = coordinator.outputs.list().await?;
    let mut results = Vec::new();
    for mirror in coordinator.repositories.all().await? {
        let references = mirror.refs_under(RESULTS).await?;
        results.push((mirror, references));
    }
    let blobs = coordinator.blobs.list().await?;
    let named = coordinator.store.in_files(MAX_INLINE).await?;

    let InFiles {
        attempts,
        sessions,
        blobs: named,
    } = named;
    let gone = output.into_iter().map(|(attempt, _)| attempt);
    coordinator
        .outputs
        .remove(gone.filter(|attempt| !attempts.contains(attempt)).collect())
        .await?;
    for (mirror, references) in results {
        let orphan = |name: &String| session_of(name).is_some_and(|session| !sessions.contains(&session));
        let orphans: Vec<String> = references.into_iter().filter(orphan).collect();
        if !orphans.is_empty() {
            mirror.delete_refs(&orphans).await?;
        }
    }
    for blob in blobs {
        if !named.contains(&(blob.project.clone(), blob.digest.clone())) {
            coordinator.blobs.remove_unnamed(&blob, UNNAMED).await?;
        }
    }
    Ok(())
}
