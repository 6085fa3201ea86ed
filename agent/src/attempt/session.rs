//! A session attempt: prepares the workspace, lets the adapter work under a watchdog, commits and
//! sends the result.
//!
//! ```text
//!   Preparing --> Setup ------> Working --> Uploading --> claimed
//!   (base, or a   (in a new     (checkpoints)  (with a repository; no change = failed)
//!    checkpoint)   worktree)
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::checkpoint::{CheckpointReason, Resume, WorktreeChoice};
use kage_core::event::{AttemptOutcome, EventBody, Phase};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::task::RepositoryRef;
use kage_core::time::in_words;
use kage_proto::convert::agent::SessionWork;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::door::NetworkUse;
use super::session_files::SessionFiles;
use super::shell::{Ran, Shell};
use super::watchdog::{Watched, crash, watch_over, within};
use super::{ABANDON, Attempt, AttemptEnded};
use crate::adapters::port::{Adapter, AdapterEnd, Beginning, Report, Reporter, SessionInput, SessionLimits};
use crate::adapters::session_file::Conversation;
use crate::adapters::steps::{CheckpointRequest, Steps};
use crate::calls::Calls;
use crate::delivery::outbox::OutboxClosed;
use crate::ground::port::{WentBack, Workspace};
use crate::process::{Environment, EnvironmentParts, Places, WorkNames};

/// Reports waiting for the recorder. When full, the adapter waits.
const REPORTS: usize = 32;
/// The longest part of a summary that becomes an activity.
const SUMMARY: usize = 500;

/// How many files that setup changed are named.
const SHOWN: usize = 10;

/// Whose the files of a worktree are.
#[derive(Clone, Copy)]
enum WorktreeOrigin {
    /// It was made for this attempt.
    Made,
    /// An earlier attempt of the session left it, set up.
    Left,
}

/// Works on a session. `asks` receives checkpoint requests from people; `place` gets the workspace,
/// which the caller removes.
pub(super) async fn run(
    attempt: &Attempt,
    work: &SessionWork,
    asks: mpsc::Receiver<CheckpointRequest>,
    place: &mut Option<Arc<dyn Workspace>>,
) -> Result<AttemptOutcome, AttemptEnded> {
    attempt.phase(Phase::Preparing).await?;
    let Some(adapter) = attempt.equipment.adapters.get(&work.adapter).cloned() else {
        let text = format!("this agent has no adapter {}", work.adapter);
        return Err(Failure::new(FailureKind::AdapterUnavailable, text).into());
    };
    if !adapter.asks_for_calls() && attempt.gateway.is_none() {
        let asking = async { attempt.gate.may_start().await.map_err(Failure::from) };
        attempt.unless_stopped(asking).await?;
    }
    let project = &attempt.work.project;
    let prepared = attempt
        .unless_stopped(async {
            let prepared = attempt.resources.contexts.prepare(project, work).await;
            prepared.map_err(|error| error.failure())
        })
        .await?;
    let mut origin = WorktreeOrigin::Left;
    if let Some(repository) = attempt.repository() {
        origin = workspace(attempt, work, repository, place).await?;
        if let (Some(place), Some(folder)) = (place.as_ref(), &repository.folder) {
            let entered = attempt.enter(place.path(), Some(folder)).await;
            entered.map_err(|error| local_failure(FailureKind::CorruptedState, chain(&error)))?;
        }
    }
    let workspace = place.as_ref();
    let scratch = attempt.resources.paths.scratch(attempt.id);
    let places = if adapter.uses_scratch() {
        attempt.places().await?
    } else {
        Places::within(&scratch)
    };
    let mut prompt = prepared.prompt;
    if !work.instruction.is_empty() {
        prompt.own.push_str("\n\n");
        prompt.own.push_str(&work.instruction);
    }
    let mut input = SessionInput {
        task: attempt.work.task,
        session: attempt.work.session,
        attempt: attempt.id,
        name: work.name.clone(),
        model: work.model.clone(),
        prompt,
        base_context: prepared.base.as_ref().map(|base| base.path.clone()),
        beginning: Beginning::New,
        conversation: Conversation::default(),
        steps: Steps::unheard(),
        worktree: workspace.map(|workspace| workspace.path().to_owned()),
        folder: attempt.repository().and_then(|repository| repository.folder.clone()),
        scratch,
        places,
        variables: attempt.variables.clone(),
        admission: attempt.admission.clone(),
        turns: attempt.resources.turns.clone(),
        calls: Calls::Gated(attempt.gate.clone()),
        limits: SessionLimits {
            timeout: work.timeout,
            idle: work.idle_timeout,
        },
        frozen: attempt.frozen.clone(),
        room: attempt.room(workspace.map(|workspace| workspace.path()), NetworkUse::Work),
        gateway: attempt.gateway.as_ref().map(|(pass, _)| pass.clone()),
    };
    let Some(workspace) = workspace else {
        attempt.phase(Phase::Working).await?;
        let end = work_on(attempt, adapter, input).await?;
        tell(attempt, end).await?;
        return Ok(AttemptOutcome::Claimed);
    };
    if let (WorktreeOrigin::Made, Some(command)) = (origin, &work.setup) {
        let began = Instant::now();
        // A session without a slot of the agent waits for its turn to compute.
        let turn = if adapter.info().slots > 0 {
            let next = async { Ok(attempt.resources.turns.next(attempt.stop.token(), || {}).await) };
            attempt.unless_stopped(next).await?
        } else {
            None
        };
        set_up(attempt, work, command, &**workspace, &input.places).await?;
        drop(turn);
        input.limits.timeout = work.timeout.saturating_sub(began.elapsed());
    }
    let mut kept = SessionFiles::begin(attempt, work, &*adapter, workspace, &mut input, asks).await?;
    let workspace = &**workspace;
    attempt.phase(Phase::Working).await?;
    let (limit, began) = (input.limits.timeout, Instant::now());
    let end = tokio::select! {
        biased;
        end = work_on(attempt, adapter, input) => end?,
        OutboxClosed = kept.watch(workspace, &attempt.recording) => return Err(AttemptEnded::Closed),
    };
    let left = limit.saturating_sub(began.elapsed());
    let time = left.max(attempt.resources.limits.slack.finishing(work.timeout));
    match tell(attempt, end).await {
        Ok(()) => finish(attempt, work, workspace, kept, time).await,
        Err(ended) => {
            let keeping = kept.finish(attempt, CheckpointReason::BeforeRetry);
            if within(time, attempt.frozen.clone(), keeping).await.is_none() {
                tracing::info!("the last checkpoint took too long");
            }
            Err(ended)
        }
    }
}

/// Takes the last checkpoint and sends the result, in this time. What earlier checkpoints have is kept
/// whatever comes.
async fn finish(
    attempt: &Attempt,
    work: &SessionWork,
    workspace: &dyn Workspace,
    mut kept: SessionFiles,
    time: Duration,
) -> Result<AttemptOutcome, AttemptEnded> {
    let mut uploaded = None;
    let finishing = async {
        kept.look(workspace, &attempt.recording).await?;
        let uploading = async { uploaded = Some(upload(attempt, work, workspace).await) };
        tokio::join!(kept.finish(attempt, CheckpointReason::Final), uploading);
        Ok::<_, OutboxClosed>(())
    };
    within(time, attempt.frozen.clone(), finishing).await.transpose()?;
    // A result that was told counts, also when the checkpoint took longer.
    uploaded.unwrap_or_else(|| {
        let text = format!(
            "its files could not be committed and sent within {}; give it more time (--timeout), or let it make fewer \
             and smaller files",
            in_words(time)
        );
        Err(Failure::new(FailureKind::Timeout, text).into())
    })?;
    Ok(AttemptOutcome::Claimed)
}

/// Prepares the workspace: from the base, or from the files of an earlier attempt.
async fn workspace(
    attempt: &Attempt,
    work: &SessionWork,
    repository: &RepositoryRef,
    place: &mut Option<Arc<dyn Workspace>>,
) -> Result<WorktreeOrigin, AttemptEnded> {
    if let Some(resume) = &work.resume {
        adopt(attempt, resume, place).await?;
    }
    if let Some(left) = place {
        left.look_for(attempt.sought.clone());
        return Ok(WorktreeOrigin::Left);
    }
    let on = attempt.on(repository);
    let making = attempt.resources.ground.for_session(&on, work.resume.as_deref());
    let made = attempt.unless_stopped(making).await?;
    made.look_for(attempt.sought.clone());
    *place = Some(made);
    Ok(WorktreeOrigin::Made)
}

/// Runs the set-up command in a new worktree. What it makes is like what a session makes: a part of the
/// result, unless git ignores it.
async fn set_up(
    attempt: &Attempt,
    work: &SessionWork,
    command: &str,
    workspace: &dyn Workspace,
    places: &Places,
) -> Result<(), AttemptEnded> {
    attempt.phase(Phase::Setup).await?;
    let environment = Environment::of(&EnvironmentParts {
        agent: &attempt.equipment.environment,
        places,
        manifest: None,
        root: false,
        task: Some(&attempt.variables),
        path: None,
        work: Some(&WorkNames {
            task: attempt.work.task,
            session: attempt.work.session,
            base_context: None,
        }),
    });
    let mut shell = Shell::new(attempt, workspace.path().to_owned(), environment, work.timeout);
    let entered = attempt.enter(workspace.path(), work.setup_folder.as_ref()).await;
    let folder = entered.map_err(|error| local_failure(FailureKind::CorruptedState, chain(&error)))?;
    let ran = shell.run(command, folder).await;
    shell.finish().await?;
    if !shell.alone
        && let Some(presence) = &attempt.presence
    {
        presence.mark_unusable();
    }
    if attempt.stop.reason().is_some() {
        return Err(attempt.stopped().into());
    }
    let problem = match ran {
        Ran::Ended(status) if status.success() => None,
        Ran::Ended(status) => {
            shell.warn_of_refusals().await?;
            let text = shell.message(&format!("setup failed with {status}"));
            Some(Failure::new(FailureKind::SetupFailed, text))
        }
        Ran::Not(why) => Some(local_failure(FailureKind::SetupFailed, format!("setup: {why}"))),
    };
    if let Some(problem) = problem {
        let text = attempt.with_missing(problem.message);
        return Err(Failure::new(problem.kind, text).into());
    }
    if work.resume.is_none() {
        let changes = attempt.unless_stopped(workspace.changes()).await?;
        let paths: Vec<_> = changes.iter().take(SHOWN).map(|change| change.path.as_str()).collect();
        if !paths.is_empty() {
            let more = if changes.len() > SHOWN { " and more" } else { "" };
            let text = format!(
                "setup changed files that git does not ignore, so they are a part of the result: {}{more}",
                paths.join(", ")
            );
            attempt.recording.post(EventBody::Warning(text)).await?;
        }
    }
    Ok(())
}

/// Continues in the worktree of the attempt before, if that is wanted and possible. Otherwise
/// `place` stays empty, and the caller makes a new worktree.
async fn adopt(attempt: &Attempt, resume: &Resume, place: &mut Option<Arc<dyn Workspace>>) -> Result<(), AttemptEnded> {
    let complete = match resume.worktree {
        WorktreeChoice::New => return Ok(()),
        WorktreeChoice::Previous => false,
        WorktreeChoice::PreviousCleaned => true,
    };
    let Some(presence) = &attempt.presence else {
        return Ok(());
    };
    let patience = attempt.resources.limits.stop_grace + 2 * ABANDON;
    let taking = async { Ok(tokio::time::timeout(patience, presence.take()).await) };
    *place = attempt.unless_stopped(taking).await?.ok().flatten();
    let Some(left) = place.as_ref() else {
        tracing::info!("the session left no worktree here");
        return Ok(());
    };
    let going_back = async { Ok(left.go_back(resume, complete).await) };
    let text = match attempt.unless_stopped(going_back).await? {
        Ok(WentBack { put_back, moved_aside }) => {
            let number = resume.number;
            EventBody::Activity(format!(
                "went back to checkpoint {number} in its worktree (put back: {put_back}, moved aside: {moved_aside})"
            ))
        }
        Err(failure) => {
            if let Some(left) = place.take() {
                left.remove().await;
            }
            let why = failure.message;
            EventBody::Warning(format!("the worktree could not be restored ({why}): making a new one"))
        }
    };
    attempt.recording.post(text).await?;
    Ok(())
}

/// Reports how the adapter's work ended.
async fn tell(attempt: &Attempt, end: AdapterEnd) -> Result<(), AttemptEnded> {
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

/// Lets the adapter work until it ends, is stopped, or takes too long. All its reports are recorded
/// when this returns.
async fn work_on(
    attempt: &Attempt,
    adapter: Arc<dyn Adapter>,
    input: SessionInput,
) -> Result<AdapterEnd, AttemptEnded> {
    let (reporter, reports) = Reporter::channel(REPORTS);
    let survival = reporter.survival();
    attempt.active.send_replace(Instant::now());
    let (active, last_active) = (attempt.active.clone(), attempt.active.subscribe());
    // Aborted when this future is dropped, so neither outlives the attempt.
    let mut recorder = JoinSet::new();
    recorder.spawn(record(attempt, reports, active));
    let stopped = attempt.stop.token();
    let grace = attempt.resources.limits.stop_grace;
    let Watched { end, abandoned } = watch_over(adapter, input, reporter, last_active, stopped, grace + ABANDON).await;
    let in_use = abandoned || survival.load(Ordering::Relaxed);
    if in_use && let Some(presence) = &attempt.presence {
        presence.mark_unusable();
    }
    let recorded = async {
        match recorder.join_next().await {
            Some(Ok(result)) => result.map_err(AttemptEnded::from),
            Some(Err(error)) => Err(crash("the recorder", &error).into()),
            None => Ok(()),
        }
    };
    // Waiting for space must not keep a stopped attempt alive; its last output is lost then.
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

async fn upload(attempt: &Attempt, work: &SessionWork, workspace: &dyn Workspace) -> Result<(), AttemptEnded> {
    attempt.phase(Phase::Uploading).await?;
    let message = format!("{}: session {} of task {}", work.adapter, work.name, attempt.work.task);
    let uploading = async {
        let warnings = attempt.warnings();
        let Some(result) = workspace.result(&warnings, &message).await? else {
            let text = "the adapter said it was done, and nothing had changed";
            return Err(Failure::new(FailureKind::NoChange, text));
        };
        let pack = workspace.send(&warnings, &result.commit, workspace.base()).await?;
        Ok((result, pack))
    };
    let (result, pack) = attempt.unless_stopped(uploading).await?;
    attempt
        .recording
        .post(EventBody::ResultCommitted { result, pack })
        .await?;
    Ok(())
}
