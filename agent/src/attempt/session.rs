//! A session attempt: prepare the workspace, let the adapter work under watchdogs, commit
//! and send the result.
//!
//! ```text
//!   Preparing --> Working --> Uploading --> claimed
//!                            (with a repository; no change = failed)
//! ```

use std::sync::Arc;

use kage_core::event::{AttemptOutcome, EventBody, Phase};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_proto::convert::agent::SessionWork;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::changes::Changes;
use super::{ABANDON, Attempt, Ended};
use crate::adapter::{Adapter, AdapterEnd, Report, Reporter, SessionInput};
use crate::outbox::OutboxClosed;
use crate::workspace::{Workspace, chain};

/// Reports that wait for the recorder. When full, the adapter waits.
const REPORTS: usize = 32;
/// The longest part of a summary that becomes an activity.
const SUMMARY: usize = 500;

/// Works on a session.
pub(super) async fn run(attempt: &Attempt, work: &SessionWork) -> Result<AttemptOutcome, Ended> {
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
    let mut workspace = None;
    if let Some(repository) = attempt.repository() {
        let workspaces = &attempt.shop.workspaces;
        let making = workspaces.for_session(attempt.id, project, &repository.name, &repository.base);
        let making = attempt.unless_stopped(async { making.await.map_err(|error| error.failure()) });
        workspace = Some(making.await?);
    }
    let scratch = if adapter.uses_scratch() {
        attempt.scratch().await?
    } else {
        attempt.shop.paths.scratch(attempt.id)
    };
    let input = SessionInput {
        task: attempt.work.task,
        session: attempt.work.session,
        attempt: attempt.id,
        name: work.name.clone(),
        model: work.model.clone(),
        prompt: prepared.prompt,
        base_context: prepared.base,
        worktree: workspace.as_ref().map(|workspace| workspace.tree.path().to_owned()),
        scratch,
        timeout: work.timeout,
        idle_timeout: work.idle_timeout,
        frozen: attempt.frozen.clone(),
    };
    attempt.phase(Phase::Working).await?;
    let mut changes = Changes::default();
    let end = match &workspace {
        Some(Workspace { tree, .. }) => {
            tokio::select! {
                end = work_on(attempt, adapter, input) => end,
                OutboxClosed = changes.watch(tree, &attempt.recording) => return Err(Ended::Closed),
            }
        }
        None => work_on(attempt, adapter, input).await,
    };
    match end? {
        AdapterEnd::Done { summary } => {
            if !summary.trim().is_empty() {
                let end = summary.floor_char_boundary(SUMMARY.min(summary.len()));
                let text = summary[..end].trim().to_owned();
                attempt.recording.post(EventBody::Activity(text)).await?;
            }
        }
        AdapterEnd::Failed(failure) => return Err(failure.into()),
        AdapterEnd::Stopped => return Err(attempt.stopped().into()),
    }
    if let Some(workspace) = &workspace {
        changes.look(&workspace.tree, &attempt.recording).await?;
        upload(attempt, work, workspace).await?;
    }
    Ok(AttemptOutcome::Claimed)
}

/// Lets the adapter work until it ends, is stopped, or takes too long. Everything it
/// reported is recorded when this returns.
async fn work_on(attempt: &Attempt, adapter: Arc<dyn Adapter>, input: SessionInput) -> Result<AdapterEnd, Ended> {
    let (reporter, reports) = Reporter::channel(REPORTS);
    let (active, last_active) = watch::channel(Instant::now());
    // Aborted when this future is dropped, so neither outlives the attempt.
    let mut recorder = JoinSet::new();
    recorder.spawn(record(attempt, reports, active));
    let end = supervise(attempt, adapter, input, reporter, last_active).await;
    let recorded = async {
        match recorder.join_next().await {
            Some(Ok(result)) => result.map_err(Ended::from),
            Some(Err(error)) => Err(crash("the recorder", &error).into()),
            None => Ok(()),
        }
    };
    if attempt.stop.reason().is_some() {
        // Waiting for space must not keep a stopped attempt; its last output is lost then.
        match tokio::time::timeout(attempt.shop.limits.stop_grace, recorded).await {
            Ok(recorded) => recorded?,
            Err(_) => tracing::warn!("output of a stopped attempt was dropped"),
        }
    } else {
        recorded.await?;
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

async fn supervise(
    attempt: &Attempt,
    adapter: Arc<dyn Adapter>,
    input: SessionInput,
    reporter: Reporter,
    last_active: watch::Receiver<Instant>,
) -> AdapterEnd {
    let (timeout, idle_timeout) = (input.timeout, input.idle_timeout);
    let deadline = Instant::now() + timeout;
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut working = JoinSet::new();
    working.spawn(async move { adapter.run(input, reporter, told).await }.in_current_span());
    // Why it was told to stop, and until when it is waited for.
    let mut stopping: Option<(Option<Failure>, Instant)> = None;
    let mut idle_from = *last_active.borrow();
    loop {
        let abandon = stopping.as_ref().map(|(_, until)| *until);
        let why = tokio::select! {
            joined = working.join_next() => {
                let end = match joined {
                    Some(Ok(end)) => end,
                    Some(Err(error)) => AdapterEnd::Failed(crash("the adapter", &error)),
                    None => AdapterEnd::Stopped,
                };
                return match (stopping, end) {
                    (Some((Some(failure), _)), _) => AdapterEnd::Failed(failure),
                    (Some((None, _)), _) => AdapterEnd::Stopped,
                    (None, end) => end,
                };
            }
            () = tokio::time::sleep_until(abandon.unwrap_or(deadline)), if abandon.is_some() => {
                tracing::error!("adapter did not stop and is abandoned");
                working.abort_all();
                continue;
            }
            () = attempt.stop.token().cancelled(), if abandon.is_none() => None,
            () = tokio::time::sleep_until(deadline), if abandon.is_none() => {
                Some(format!("it took longer than {timeout:?}"))
            }
            () = tokio::time::sleep_until(idle_from + idle_timeout), if abandon.is_none() => {
                let active = *last_active.borrow();
                // A frozen attempt cannot be active.
                idle_from = if *attempt.frozen.borrow() { Instant::now() } else { active.max(idle_from) };
                if idle_from + idle_timeout > Instant::now() {
                    continue;
                }
                Some(format!("it printed nothing and reported nothing for {idle_timeout:?}"))
            }
        };
        stop.cancel();
        let failure = why.map(|text| Failure::new(FailureKind::Timeout, text));
        stopping = Some((failure, Instant::now() + attempt.shop.limits.stop_grace + ABANDON));
    }
}

fn crash(what: &str, error: &JoinError) -> Failure {
    Failure::new(FailureKind::AdapterCrash, format!("{what} crashed: {error}"))
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
