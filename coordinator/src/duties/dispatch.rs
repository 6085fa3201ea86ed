//! The dispatcher: one task that places jobs whenever the board changes, sends the offers, and
//! handles deadlines. `kage_core::placement` decides which job goes to which agent.

use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::{AttemptState, EndReason};
use kage_core::cause::chain;
use kage_core::checkpoint::{Checkpoint, Resume};
use kage_core::context::{Context, Delta, overridden};
use kage_core::id::{AgentId, AttemptId, AttemptToken, Digest, OfferId, ProjectId};
use kage_core::job::{JobKind, JobState};
use kage_core::protect::left_alone;
use kage_core::session::Session;
use kage_core::task::TaskSpec;
use kage_core::time::Timestamp;
use kage_proto::convert::agent::{AttemptKey, PromptText, SessionWork, VerifyWork, Work, WorkKind};
use kage_proto::v1;
use tokio::time::{Instant, MissedTickBehavior};

use crate::board::{self, Late, Offered, Pick};
use crate::coordinator::Coordinator;
use crate::store::{self, AttemptView, EndAttempts, Ending};

/// The wait after the store failed at something that must be done.
const RETRY: Duration = Duration::from_secs(1);

/// Places jobs until a shutdown begins.
pub(crate) async fn run(coordinator: Arc<Coordinator>) {
    let mut tick = tokio::time::interval(board::tick(&coordinator.timings));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next: Option<Timestamp> = None;
    loop {
        let wait = next.map_or(Duration::MAX, |at| at.since(coordinator.now()));
        tokio::select! {
            // Deadlines before placing, of which there may always be more.
            biased;
            () = coordinator.closing.cancelled() => return,
            _ = tick.tick() => {
                if !pass_time(&coordinator) {
                    continue;
                }
            }
            () = coordinator.placeable.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let placed = coordinator.board().place(coordinator.now(), Instant::now());
        next = placed.next;
        for pick in placed.picks {
            let id = OfferId::from_random(coordinator.random());
            coordinator.board().prepare(id, pick.clone(), Instant::now());
            coordinator.tasks.spawn(offer(Arc::clone(&coordinator), id, pick));
        }
    }
}

/// True when jobs went back to the queue.
fn pass_time(coordinator: &Arc<Coordinator>) -> bool {
    let due = coordinator.board().due(Instant::now());
    for (agent, boot, reason) in due.lost {
        tracing::warn!(%agent, ?reason, "agent lost");
        let which = Ending::Boot { agent, boot };
        coordinator.tasks.spawn(end(Arc::clone(coordinator), which, reason));
    }
    for late in due.late {
        let Late { attempt, agent, reason } = late;
        tracing::warn!(%agent, %attempt, ?reason, "an agent did not end an attempt");
        coordinator.tasks.spawn(end_late(Arc::clone(coordinator), late));
    }
    if !due.expired.is_empty() {
        coordinator.tasks.spawn(expire(Arc::clone(coordinator), due.expired));
    }
    due.requeued
}

/// Ends attempts. Retries until the store has done it, because nothing else would.
pub(crate) async fn end(coordinator: Arc<Coordinator>, which: Ending, reason: EndReason) {
    loop {
        let command = EndAttempts {
            which: which.clone(),
            reason,
            now: coordinator.now(),
        };
        match coordinator.apply(command).await {
            Ok(()) => return,
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot end attempts"),
        }
        tokio::select! {
            biased;
            () = coordinator.closing.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Ends an attempt past its deadline, and tells its agent.
async fn end_late(coordinator: Arc<Coordinator>, late: Late) {
    let Late { attempt, agent, reason } = late;
    end(Arc::clone(&coordinator), Ending::These(vec![attempt]), reason).await;
    let stop = board::stop_message(attempt, "it took too long, and the coordinator ended it");
    coordinator.board().tell(agent, stop);
}

/// Ends attempts with expired leases, and forgets those that had ended before.
async fn expire(coordinator: Arc<Coordinator>, expired: Vec<(AgentId, AttemptId)>) {
    let which = Ending::Expired(expired.iter().map(|(_, attempt)| *attempt).collect());
    end(Arc::clone(&coordinator), which, EndReason::AgentSilent).await;
    for (agent, attempt) in expired {
        let view = coordinator.store.attempt(attempt).await;
        let over = |view: &AttemptView| matches!(view.attempt.state, AttemptState::Ended { .. });
        if matches!(&view, Ok(view) if view.as_ref().is_none_or(over)) {
            coordinator.board().ended(agent, attempt);
            coordinator.placeable.notify_one();
        }
    }
}

/// Reads a job's task and session, and offers the job.
async fn offer(coordinator: Arc<Coordinator>, id: OfferId, pick: Pick) {
    let (task, job) = (pick.job.task, pick.job.job);
    let work = match coordinator.store.work(task, job).await {
        Ok(Some(work)) if matches!(work.job.state, JobState::Queued { .. }) => work,
        Ok(_) => {
            // It moved on: the change has been reported, or will be.
            coordinator.board().drop_offer(id);
            coordinator.placeable.notify_one();
            return;
        }
        Err(error) => {
            // The offer's deadline puts the job back into the queue.
            tracing::error!(%task, %job, error = &error as &dyn std::error::Error, "cannot read a job");
            return;
        }
    };
    let attempt = AttemptId::from_random(coordinator.random());
    let token = AttemptToken::from_random(coordinator.random());
    let offered = Offered {
        attempt,
        token_hash: token.hash(),
        number: work.number,
    };
    let mut work = describe(work);
    let reads = coordinator.board().context_deltas(pick.agent);
    speak_older(&coordinator, &mut work, reads).await;
    let message = v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Offer(Box::new(v1::Offer {
            offer_id: id.to_string(),
            key: Some(AttemptKey { attempt, token }.into()),
            work: Some(work.into()),
        }))),
    };
    coordinator.board().send(id, offered, message, Instant::now());
}

/// Writes the session's context delta in a version that the agent reads. Where that cannot be done, because the
/// base is lost, the agent learns so when it fetches the base.
async fn speak_older(coordinator: &Coordinator, work: &mut Work, reads: u32) {
    let WorkKind::Session(session) = &mut work.kind else {
        return;
    };
    let (Some(digest), Some(text)) = (&session.context_base, &session.context_delta) else {
        return;
    };
    // CreateTask accepted only deltas that parse.
    let Ok(delta) = Delta::parse(text.as_bytes()) else {
        return;
    };
    if delta.version() <= reads {
        return;
    }
    match in_version_1(coordinator, &work.project, digest, delta).await {
        Ok(delta) => session.context_delta = delta,
        Err(why) => tracing::warn!(%digest, why, "a context delta cannot be written for an older agent"),
    }
}

async fn in_version_1(
    coordinator: &Coordinator,
    project: &ProjectId,
    base: &Digest,
    delta: Delta,
) -> Result<Option<String>, String> {
    let content = coordinator.blobs.read(project, base).await;
    let content = content.map_err(|error| chain(&error))?;
    // A context may be large.
    let written = tokio::task::spawn_blocking(move || {
        let base = Context::parse(&content).map_err(|error| chain(&error))?;
        let delta = delta.in_version_1(&base).map_err(|error| chain(&error))?;
        Ok(delta.map(|delta| delta.canonical()))
    });
    written.await.map_err(|error| chain(&error)).flatten()
}

fn describe(work: store::Work) -> Work {
    let store::Work {
        spec,
        session,
        job,
        number,
        checkpoints,
    } = work;
    let kind = match job.kind {
        JobKind::Session => {
            let overridden = overridden_members(&spec);
            let resume = resume(&spec, &session, &checkpoints);
            let delta = spec
                .assignment(session.assignment())
                .and_then(|a| a.context_delta.clone());
            // What was said is told all the same where no checkpoint can be resumed.
            let instruction = match &resume {
                Some(_) => None,
                None => session.instruction(&[], &spec.verify_in_session().unwrap_or_default()),
            };
            WorkKind::Session(SessionWork {
                name: session.name,
                adapter: session.adapter,
                model: session.model,
                prompt: spec
                    .prompt_blob
                    .map_or(PromptText::Inline(spec.prompt), PromptText::Blob),
                context_base: spec.context_base,
                context_delta: delta,
                overridden,
                resume: resume.map(Box::new),
                timeout: session.timeout.unwrap_or(spec.policy.timeout),
                idle_timeout: spec.policy.idle_timeout,
                setup: spec.policy.session_setup,
                setup_folder: spec.policy.session_setup_folder,
                instruction: instruction.map_or_else(String::new, |told| told.for_new_conversation().to_owned()),
                results: spec.policy.results,
                permissions: spec.policy.permissions,
                mcp: spec.policy.mcp,
            })
        }
        JobKind::Verify { commit } => WorkKind::Verify(VerifyWork {
            commit,
            left_alone: left_alone(&spec),
            policy: spec.policy.verify,
        }),
    };
    Work {
        task: job.task,
        session: session.id,
        attempt: number,
        project: spec.project,
        repository: spec.repository,
        environment: spec.environment,
        contain: spec.policy.contain,
        kind,
    }
}

fn resume(spec: &TaskSpec, session: &Session, checkpoints: &[Checkpoint]) -> Option<Resume> {
    let (head, repository) = (session.checkpoints.head.as_ref()?, spec.repository.as_ref()?);
    let calls = session.calls.answered;
    match Resume::of(head, checkpoints, &repository.base, &session.adapter, calls) {
        Ok(resume) => {
            let command = spec.verify_in_session().unwrap_or_default();
            let mut resume = Resume {
                note: session.note_to_model(),
                ..resume
            };
            if let Some(told) = session.instruction(checkpoints, &command) {
                resume.instruction = told.text;
                resume.instruction_known = told.known;
                resume.instruction_anew = told.anew;
            }
            Some(resume)
        }
        Err(broken) => {
            let (session, error) = (session.id, &broken as &dyn std::error::Error);
            tracing::error!(%session, error, "a checkpoint cannot be assembled; the session starts from the base");
            None
        }
    }
}

/// The same for every session of a task, so that all of them render the same shared prefix.
fn overridden_members(spec: &TaskSpec) -> Vec<String> {
    let deltas: Vec<_> = spec
        .assignments
        .iter()
        .filter_map(|assignment| assignment.context_delta.as_deref())
        // CreateTask accepted only deltas that parse.
        .filter_map(|delta| Delta::parse(delta.as_bytes()).ok())
        .collect();
    overridden(&deltas).iter().map(ToString::to_string).collect()
}
