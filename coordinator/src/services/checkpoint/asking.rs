//! Asking the agent of a running session for a checkpoint, and waiting until it is stored.

use std::time::Duration;

use kage_core::checkpoint::{Checkpoint, CheckpointReason};
use kage_core::session::SessionState;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_response::Message;
use tokio::time::{Instant, timeout};

use super::subject::Subject;
use crate::coordinator::Coordinator;
use crate::services::read_error;

/// Time limit of a requested checkpoint: it may wait for the end of a step, and has to be sent.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long an agent may be disconnected before a waiting caller is told: as long as a reconnect
/// takes.
pub(super) const AWAY: Duration = Duration::from_secs(5);
/// How often an agent that was away is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A checkpoint with a waiting caller.
pub(super) struct Wanted {
    /// It has a larger number than this.
    pub(super) after: u32,
    pub(super) reason: CheckpointReason,
    pub(super) note: String,
    /// How long its agent may be away.
    pub(super) away: Duration,
}

/// The outcome of a wait.
pub(super) enum Waited {
    /// It is stored; the session as it is with it.
    Stored(Box<(Subject, Checkpoint)>),
    /// The session does not run, so no agent can take it.
    NotRunning,
    /// The agent is not connected.
    Away,
    /// It did not arrive in time.
    Late,
}

impl Wanted {
    /// Asks each attempt that runs meanwhile, once, and waits.
    pub(super) async fn wait(&self, coordinator: &Coordinator, subject: &Subject) -> Result<Waited, ApiError> {
        let (task, name) = (subject.view.task.id, subject.session.name.as_str());
        // Before the first look, so that nothing is missed.
        let mut news = coordinator.topics.subscribe(task);
        let begun = Instant::now();
        let mut asked = None;
        loop {
            let subject = Subject::of(coordinator, task, name).await?;
            if let Some(taken) = subject.all.iter().find(|found| self.is(found)).cloned() {
                return Ok(Waited::Stored(Box::new((subject, taken))));
            }
            let SessionState::Running { attempt } = subject.session.state else {
                return Ok(Waited::NotRunning);
            };
            // A later attempt does not know the requests of an earlier one.
            if asked != Some(attempt) {
                let live = coordinator.store.attempt(attempt).await.map_err(read_error)?;
                let order = v1::ConnectResponse {
                    message: Some(Message::TakeCheckpoint(v1::TakeCheckpoint {
                        attempt_id: attempt.to_string(),
                        note: self.note.clone(),
                        reason: v1::CheckpointReason::from(self.reason).into(),
                    })),
                };
                let told = live.is_some_and(|live| coordinator.board().tell(live.attempt.agent, order));
                asked = told.then_some(attempt);
            }
            if asked.is_none() && begun.elapsed() >= self.away {
                return Ok(Waited::Away);
            }
            if begun.elapsed() >= PATIENCE {
                return Ok(Waited::Late);
            }
            // Without news, check again after this time.
            timeout(AGAIN, news.changed()).await.ok();
        }
    }

    /// True if this checkpoint is the requested one. One taken before a restore also answers a
    /// plain request, because the agent takes both together.
    fn is(&self, checkpoint: &Checkpoint) -> bool {
        let reason = checkpoint.taken.reason;
        checkpoint.number > self.after
            && (reason == self.reason
                || (self.reason == CheckpointReason::Requested && reason == CheckpointReason::BeforeRestore))
    }
}
