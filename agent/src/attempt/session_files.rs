//! Care for a session's files while its adapter works: changes are reported, and checkpoints taken,
//! from the first one before the first step to the last one before the attempt's end.

use std::sync::Arc;

use kage_core::checkpoint::CheckpointReason;
use kage_core::event::EventBody;
use kage_proto::convert::agent::SessionWork;
use tokio::sync::mpsc;

use super::changes::{Burst, Changes};
use super::checkpoints::{CheckpointParts, Checkpoints, ParentCheckpoint};
use super::resumed::{self, Begun};
use super::transcript::Transcript;
use super::{Attempt, AttemptEnded};
use crate::adapters::port::{Adapter, SessionInput};
use crate::adapters::steps::{CheckpointRequest, Steps};
use crate::delivery::live::StopReason;
use crate::delivery::outbox::OutboxClosed;
use crate::delivery::recorder::Recording;
use crate::ground::port::Workspace;

pub(super) struct SessionFiles {
    changes: Changes,
    checkpoints: Checkpoints,
    steps: Steps,
    /// `None`: the adapter reports its steps.
    burst: Option<Burst>,
    asks: mpsc::Receiver<CheckpointRequest>,
}

impl SessionFiles {
    /// Starts at the base with a first checkpoint, or at the checkpoint that the attempt resumes.
    /// Sets in `input` the start of the conversation and the receiver of its steps.
    pub(super) async fn begin(
        attempt: &Attempt,
        work: &SessionWork,
        adapter: &dyn Adapter,
        workspace: &Arc<dyn Workspace>,
        input: &mut SessionInput,
        asks: mpsc::Receiver<CheckpointRequest>,
    ) -> Result<Self, AttemptEnded> {
        let base = workspace.base();
        let begun = match &work.resume {
            Some(resume) => resumed::begin(attempt, adapter, input, resume).await?,
            None => Begun::default(),
        };
        let steps = Steps::from(begun.mark.position);
        let place = ParentCheckpoint {
            commit: work.resume.as_ref().map_or(base, |resume| &resume.commit).clone(),
            mark: begun.mark,
        };
        let parts = CheckpointParts {
            project: attempt.work.project.clone(),
            workspace: Arc::clone(workspace),
            ground: Arc::clone(&attempt.resources.ground),
            warnings: attempt.warnings(),
            masker: attempt.recording.masker.clone(),
            recording: attempt.recording.clone(),
            told: Arc::default(),
            title: format!("checkpoint of session {} of task {}", work.name, attempt.work.task),
        };
        let transcript = adapter.session_file(input).map_or(Transcript::Told, Transcript::File);
        let mut kept = Self {
            changes: Changes::new(attempt.sought.clone()),
            checkpoints: Checkpoints::new(parts, steps.clone(), transcript, place),
            burst: (!adapter.tells_steps()).then(|| Burst::new(steps.clone())),
            steps: steps.clone(),
            asks,
        };
        match &work.resume {
            Some(resume) => {
                if begun.mark.position == 0 {
                    let summary = resumed::summary(&**workspace, resume).await;
                    input.prompt.own.push_str(&summary);
                }
                let resumed = EventBody::Resumed {
                    commit: resume.commit.clone(),
                    position: begun.mark.position,
                    repeated_calls: resume.repeated_calls,
                };
                attempt.recording.post(resumed).await?;
            }
            None => {
                let first = kept.checkpoints.baseline();
                let first = async {
                    first.await;
                    Ok(())
                };
                attempt.unless_stopped(first).await?;
            }
        }
        input.beginning = begun.beginning;
        input.steps = steps;
        Ok(kept)
    }

    /// Reports changes and takes checkpoints until it is dropped; returns only when the agent ends.
    pub(super) async fn watch(&mut self, workspace: &dyn Workspace, recording: &Recording) -> OutboxClosed {
        tokio::select! {
            biased;
            closed = self.changes.watch(workspace, recording, self.burst.as_mut()) => closed,
            never = self.checkpoints.run() => never,
            never = relay(&mut self.asks, &self.steps) => match never {},
        }
    }

    /// Reports the changes since the last look.
    pub(super) async fn look(&mut self, workspace: &dyn Workspace, recording: &Recording) -> Result<(), OutboxClosed> {
        self.changes.look(workspace, recording).await.map(drop)
    }

    /// Takes the last checkpoint, if the attempt still may.
    pub(super) async fn finish(&mut self, attempt: &Attempt, reason: CheckpointReason) {
        let finishing = self.checkpoints.finish(reason);
        let finished = match attempt.stop.reason() {
            None => attempt.stop.token().run_until_cancelled(finishing).await.is_some(),
            // Another agent resumes from it.
            Some(StopReason::HandedBack) => {
                let grace = attempt.resources.limits.stop_grace;
                tokio::time::timeout(grace, finishing).await.is_ok()
            }
            // The coordinator would not accept it.
            Some(StopReason::Ordered(_) | StopReason::Detached) => false,
        };
        if !finished {
            tracing::info!("the attempt ends without a last checkpoint");
        }
    }
}

/// Forwards checkpoint requests from people.
async fn relay(asks: &mut mpsc::Receiver<CheckpointRequest>, steps: &Steps) -> std::convert::Infallible {
    while let Some(request) = asks.recv().await {
        steps.ask(request);
    }
    // The senders are gone, so no request can come.
    std::future::pending().await
}
