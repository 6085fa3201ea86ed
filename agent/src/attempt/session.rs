//! A session attempt: prepare the workspace, let the adapter work under watchdogs, commit
//! and send the result.
//!
//! ```text
//!   Preparing --> Working --> Uploading --> claimed
//!   (base, or a   (checkpoints)  (with a repository; no change = failed)
//!    checkpoint)
//! ```

use std::sync::Arc;

use kage_core::cause::chain;
use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{AttemptOutcome, EventBody, Phase};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::task::RepositoryRef;
use kage_proto::convert::agent::SessionWork;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::kept::Kept;
use super::watchdog::{Watched, crash, watch_over};
use super::{ABANDON, Attempt, Ended};
use crate::adapter::{Adapter, AdapterEnd, Beginning, Report, Reporter, SessionInput};
use crate::outbox::OutboxClosed;
use crate::steps::{Steps, Wish};
use crate::workspace::Workspace;

/// Reports that wait for the recorder. When full, the adapter waits.
const REPORTS: usize = 32;
/// The longest part of a summary that becomes an activity.
const SUMMARY: usize = 500;

/// Works on a session. `asks` has checkpoints that people want.
pub(super) async fn run(
    attempt: &Attempt,
    work: &SessionWork,
    asks: mpsc::Receiver<Wish>,
) -> Result<AttemptOutcome, Ended> {
    attempt.phase(Phase::Preparing).await?;
    let Some(adapter) = attempt.shop.adapters.get(&work.adapter).cloned() else {
        let text = format!("this agent has no adapter {}", work.adapter);
        return Err(Failure::new(FailureKind::AdapterUnavailable, text).into());
    };
    let project = &attempt.work.project;
    let prepared = attempt
        .unless_stopped(async {
            let prepared = attempt.shop.contexts.prepare(project, work).await;
            prepared.map_err(|error| error.failure())
        })
        .await?;
    let workspace = match attempt.repository() {
        Some(repository) => Some(workspace(attempt, work, repository).await?),
        None => None,
    };
    let scratch = if adapter.uses_scratch() {
        attempt.scratch().await?
    } else {
        attempt.shop.paths.scratch(attempt.id)
    };
    let mut input = SessionInput {
        task: attempt.work.task,
        session: attempt.work.session,
        attempt: attempt.id,
        name: work.name.clone(),
        model: work.model.clone(),
        prompt: prepared.prompt,
        base_context: prepared.base.as_ref().map(|base| base.path.clone()),
        beginning: Beginning::New,
        steps: Steps::unheard(),
        worktree: workspace.as_ref().map(|workspace| workspace.tree.path().to_owned()),
        scratch,
        timeout: work.timeout,
        idle_timeout: work.idle_timeout,
        frozen: attempt.frozen.clone(),
    };
    let Some(workspace) = workspace else {
        attempt.phase(Phase::Working).await?;
        let end = work_on(attempt, adapter, input).await?;
        tell(attempt, end).await?;
        return Ok(AttemptOutcome::Claimed);
    };
    let mut kept = Kept::begin(attempt, work, &*adapter, &workspace, &mut input, asks).await?;
    attempt.phase(Phase::Working).await?;
    let end = tokio::select! {
        end = work_on(attempt, adapter, input) => end?,
        OutboxClosed = kept.watch(&workspace, &attempt.recording) => return Err(Ended::Closed),
    };
    match tell(attempt, end).await {
        Ok(()) => {
            kept.look(&workspace, &attempt.recording).await?;
            let finishing = kept.finish(attempt, CheckpointReason::Final);
            let ((), uploaded) = tokio::join!(finishing, upload(attempt, work, &workspace));
            uploaded?;
            Ok(AttemptOutcome::Claimed)
        }
        Err(ended) => {
            kept.finish(attempt, CheckpointReason::BeforeRetry).await;
            Err(ended)
        }
    }
}

/// Makes the place to work in: the base, or what an earlier attempt left.
async fn workspace(attempt: &Attempt, work: &SessionWork, repository: &RepositoryRef) -> Result<Workspace, Ended> {
    let (workspaces, project) = (&attempt.shop.workspaces, &attempt.work.project);
    let (name, base) = (&repository.name, &repository.base);
    let making = async {
        let made = match &work.resume {
            Some(resume) => workspaces.for_resumed(attempt.id, project, name, base, resume).await,
            None => workspaces.for_session(attempt.id, project, name, base).await,
        };
        made.map_err(|error| error.failure())
    };
    attempt.unless_stopped(making).await
}

/// Tells how the adapter's work ended.
async fn tell(attempt: &Attempt, end: AdapterEnd) -> Result<(), Ended> {
    match end {
        AdapterEnd::Done { summary } => {
            if !summary.trim().is_empty() {
                let end = summary.floor_char_boundary(SUMMARY.min(summary.len()));
                let text = summary[..end].trim().to_owned();
                attempt.recording.post(EventBody::Activity(text)).await?;
            }
            Ok(())
        }
        AdapterEnd::Failed(failure) => Err(failure.into()),
        AdapterEnd::Stopped => Err(attempt.stopped().into()),
    }
}

/// Lets the adapter work until it ends, is stopped, or takes too long. Everything it
/// reported is recorded when this returns.
async fn work_on(attempt: &Attempt, adapter: Arc<dyn Adapter>, input: SessionInput) -> Result<AdapterEnd, Ended> {
    let (reporter, reports) = Reporter::channel(REPORTS);
    let (active, last_active) = watch::channel(Instant::now());
    // Aborted when this future is dropped, so neither outlives the attempt.
    let mut recorder = JoinSet::new();
    recorder.spawn(record(attempt, reports, active));
    let stopped = attempt.stop.token();
    let grace = attempt.shop.limits.stop_grace;
    let Watched { end, abandoned } = watch_over(adapter, input, reporter, last_active, stopped, grace + ABANDON).await;
    let recorded = async {
        match recorder.join_next().await {
            Some(Ok(result)) => result.map_err(Ended::from),
            Some(Err(error)) => Err(crash("the recorder", &error).into()),
            None => Ok(()),
        }
    };
    // Waiting for space must not keep a stopped attempt; its last output is lost then.
    let too_long = async {
        if !abandoned {
            stopped.cancelled().await;
        }
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        recorded = recorded => recorded?,
        () = too_long => tracing::warn!("output of a stopped attempt was dropped"),
    }
    Ok(end)
}

fn record(
    attempt: &Attempt,
    reports: mpsc::Receiver<Report>,
    active: watch::Sender<Instant>,
) -> impl Future<Output = Result<(), OutboxClosed>> + Send + 'static {
    attempt.recording.clone().run(reports, active).in_current_span()
}

/// Commits the worktree and sends the commit's objects.
async fn upload(attempt: &Attempt, work: &SessionWork, workspace: &Workspace) -> Result<(), Ended> {
    attempt.phase(Phase::Uploading).await?;
    let message = format!("{}: session {} of task {}", work.adapter, work.name, attempt.work.task);
    let uploading = async {
        let git = |error: kage_git::GitError| local_failure(FailureKind::CorruptedState, chain(&error));
        let Some(result) = workspace.tree.commit_result(&message).await.map_err(git)? else {
            let text = "the adapter said it was done, and nothing had changed";
            return Err(Failure::new(FailureKind::NoChange, text));
        };
        let have = [workspace.tree.base().clone()];
        let pack = workspace.mirror.thin_pack(&result.commit, &have).await.map_err(git)?;
        let project = &attempt.work.project;
        let digest = attempt
            .shop
            .blobs
            .put_file(project, pack.path())
            .await
            .map_err(|error| error.failure("the result could not be sent"))?;
        Ok((result, digest))
    };
    let (result, pack) = attempt.unless_stopped(uploading).await?;
    attempt
        .recording
        .post(EventBody::ResultCommitted { result, pack })
        .await?;
    Ok(())
}
