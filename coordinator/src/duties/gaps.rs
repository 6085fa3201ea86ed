//! Looks after what nobody here waits for: commits of others, and of callers that went away, and
//! gaps in the feed. What a gap hides - a commit of unknown outcome, or more than a follower could
//! keep up with - may have queued a job, ended an attempt or taken a token back: everything in
//! memory that follows the store is compared with it again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId};
use tokio::time::Instant;

use super::saving;
use crate::coordinator::Coordinator;
use crate::store::{Enrolment, LiveAttempt, PersonToken, QueuedJob, ReadError};

/// The wait before a failed read of the store is retried.
const RETRY: Duration = Duration::from_secs(1);
/// The wait between two looks at what was committed. Whoever commits here looks at once.
const LOOK: Duration = Duration::from_millis(20);

/// Follows the store until a shutdown begins.
pub(crate) async fn run(coordinator: Arc<Coordinator>) {
    let arrivals = coordinator.store.arrivals();
    loop {
        tokio::select! {
            biased;
            () = coordinator.closing.cancelled() => return,
            () = arrivals.wait() => {}
        }
        coordinator.follow();
        while let Some(gaps) = coordinator.following.open_gaps() {
            match read_again(&coordinator).await {
                Ok(()) => {
                    coordinator.following.closed(gaps);
                    saving::find(&coordinator).await;
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot read what a commit of unknown outcome did"
                    );
                    pause(&coordinator, RETRY).await;
                }
            }
            if coordinator.closing.is_cancelled() {
                return;
            }
        }
        pause(&coordinator, LOOK).await;
    }
}

async fn pause(coordinator: &Coordinator, time: Duration) {
    tokio::select! {
        biased;
        () = coordinator.closing.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// Everything stored that memory follows.
struct Stored {
    queued: Vec<QueuedJob>,
    live: Vec<LiveAttempt>,
    agents: Vec<Agent>,
    enrolments: Vec<Enrolment>,
    tokens: Vec<PersonToken>,
}

async fn read_again(coordinator: &Coordinator) -> Result<(), ReadError> {
    // Before reading the store: an attempt that starts meanwhile must not be taken for one that
    // ended, and what is committed meanwhile is told again.
    let since = coordinator.store.changes();
    let (running, held) = (coordinator.board().running(), coordinator.fences.held());
    let store = &coordinator.store;
    let stored = Stored {
        queued: store.queued_jobs().await?,
        live: store.live_attempts(None).await?,
        agents: store.agents().await?,
        enrolments: store.enrolments().await?,
        tokens: store.person_tokens().await?,
    };
    coordinator.put_right(since, |coordinator| compare(coordinator, stored, &running, &held));
    Ok(())
}

fn compare(coordinator: &Coordinator, stored: Stored, running: &[(AgentId, AttemptId)], held: &[AttemptId]) {
    let Stored {
        queued,
        live,
        agents,
        enrolments,
        tokens,
    } = stored;
    tokens.iter().for_each(|token| coordinator.identities.person(token));
    enrolments
        .iter()
        .for_each(|enrolment| coordinator.identities.agent(enrolment));
    let (now, clock) = (Instant::now(), coordinator.now());
    let ids: BTreeSet<AttemptId> = live.iter().map(|live| live.attempt).collect();
    {
        let mut board = coordinator.board();
        board.resume(&live, clock, now);
        for job in queued {
            if !board.holds(job.job) {
                board.enqueue(job);
            }
        }
        for (agent, attempt) in running {
            if !ids.contains(attempt) {
                board.ended(*agent, *attempt);
            }
        }
        for (agent, attempt) in stopped(&live) {
            if !board.is_stopping(attempt) {
                board.stop(agent, attempt, now);
            }
        }
        for agent in &agents {
            let project = coordinator.identities.enrolled(agent.id);
            board.stored(agent, project.map(|enrolled| enrolled.project), now);
        }
        for enrolment in enrolments.iter().filter(|enrolment| enrolment.revoked_at.is_some()) {
            board.shut_out(enrolment.agent);
        }
    }
    for attempt in held {
        if !ids.contains(attempt) {
            coordinator.fences.close(*attempt);
        }
    }
    coordinator.topics.all_changed();
    coordinator.placeable.notify_one();
}

/// Attempts that still run although their agent has to stop them, with their agents.
pub(crate) fn stopped(live: &[LiveAttempt]) -> Vec<(AgentId, AttemptId)> {
    let stopped = live.iter().filter(|live| live.term.stop_asked.is_some());
    stopped.map(|live| (live.agent, live.attempt)).collect()
}
