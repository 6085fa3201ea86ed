//! Handles commits with an unknown outcome: such a commit may have queued a job or ended an attempt
//! or a task, and its caller was told neither. Everything in memory that follows the store is
//! compared with it again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kage_core::id::{AgentId, AttemptId};
use tokio::time::Instant;

use crate::coordinator::Coordinator;
use crate::store::{LiveAttempt, ReadError};

/// The wait before a failed read of the store is retried.
const RETRY: Duration = Duration::from_secs(1);

/// Corrects memory after each commit of unknown outcome, until a shutdown begins.
pub(crate) async fn run(coordinator: Arc<Coordinator>) {
    loop {
        tokio::select! {
            biased;
            () = coordinator.closing.cancelled() => return,
            () = coordinator.store.doubted() => {}
        }
        while let Err(error) = compare(&coordinator).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot read what a commit of unknown outcome did"
            );
            tokio::select! {
                biased;
                () = coordinator.closing.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

async fn compare(coordinator: &Coordinator) -> Result<(), ReadError> {
    // Before reading the store: an attempt that starts meanwhile must not be taken for one that
    // ended.
    let (running, held) = (coordinator.board().running(), coordinator.fences.held());
    let queued = coordinator.store.queued_jobs().await?;
    let live = coordinator.store.live_attempts(None).await?;
    let stopped = stopped(&live);
    let now = Instant::now();
    coordinator.board().resume(&live, coordinator.now(), now);
    let live: BTreeSet<AttemptId> = live.iter().map(|live| live.attempt).collect();
    {
        let mut board = coordinator.board();
        for job in queued {
            if !board.holds(job.job) {
                board.enqueue(job);
            }
        }
        for (agent, attempt) in running {
            if !live.contains(&attempt) {
                board.ended(agent, attempt);
            }
        }
        for (agent, attempt) in stopped {
            board.stop(agent, attempt, now);
        }
    }
    for attempt in held {
        if !live.contains(&attempt) {
            coordinator.fences.close(attempt);
        }
    }
    coordinator.topics.all_changed();
    coordinator.placeable.notify_one();
    Ok(())
}

/// Attempts that still run although their agent has to stop them, with their agents.
pub(crate) fn stopped(live: &[LiveAttempt]) -> Vec<(AgentId, AttemptId)> {
    let stopped = live.iter().filter(|live| live.term.stop_asked.is_some());
    stopped.map(|live| (live.agent, live.attempt)).collect()
}
