//! The checkpoints of one session attempt; this file alone decides which checkpoint the next one
//! follows.
//!
//! ```text
//!   Steps::asked ─▶ committing (durable here) ─▶ ready ─▶ sending (blobs, then the event)
//!                        ▲ at most one               ▲ at most one, a newer replaces it
//! ```
//!
//! Only committing keeps the session's tools waiting; sending goes on beside them. A
//! checkpoint that cannot be taken or sent is a warning, and the session continues.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::EventBody;
use kage_core::failure::Failure;
use kage_core::id::{Oid, ProjectId};

use super::transcript::{Mark, Transcript};
use crate::adapters::steps::{Asked, CheckpointRequest, Steps};
use crate::delivery::mask::Masker;
use crate::delivery::outbox::OutboxClosed;
use crate::delivery::recorder::Recording;
use crate::ground::port::{Ground, TakeWhen, Warnings, Workspace};

#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error("a checkpoint could not be taken: {0}")]
    Take(String),
    #[error("the conversation could not be read")]
    Transcript(#[source] std::io::Error),
    #[error("a checkpoint could not be sent: {0}")]
    Send(String),
    #[error("the agent ends")]
    Closed,
}

#[derive(Clone)]
pub(super) struct CheckpointParts {
    pub(super) project: ProjectId,
    pub(super) workspace: Arc<dyn Workspace>,
    pub(super) ground: Arc<dyn Ground>,
    pub(super) warnings: Warnings,
    pub(super) masker: Masker,
    pub(super) recording: Recording,
    /// The last warning about a checkpoint: the same again and again tells nothing.
    pub(super) told: Arc<Mutex<String>>,
    /// The message of every checkpoint's commit.
    pub(super) title: String,
}

/// A checkpoint as the parent of the next one.
#[derive(Debug, Clone)]
pub(super) struct ParentCheckpoint {
    pub(super) commit: Oid,
    /// The position of the conversation.
    pub(super) mark: Mark,
}

/// A checkpoint that is durable on this machine.
#[derive(Debug)]
struct Local {
    taken: TakenCheckpoint,
    /// The conversation's new part, if it grew.
    segment: Option<(u64, Vec<u8>)>,
    place: ParentCheckpoint,
}

impl Local {
    fn request(&self) -> CheckpointRequest {
        CheckpointRequest {
            reason: self.taken.reason,
            note: self.taken.note.clone(),
        }
    }

    /// Makes it the answer to the requests of an older checkpoint as well.
    fn answers(&mut self, older: &Self) {
        let CheckpointRequest { reason, note } = self.request().joined(older.request());
        self.taken.reason = reason;
        self.taken.note = note;
    }
}

enum CheckpointInput {
    Asked(Asked),
    Committed(Asked, Option<Box<Local>>),
    Sent(bool),
}

pub(super) struct Checkpoints {
    parts: CheckpointParts,
    steps: Steps,
    transcript: Transcript,
    /// The newest that was reported to the coordinator.
    told: ParentCheckpoint,
    /// The newest that is reported or being sent.
    tip: ParentCheckpoint,
    committing: Option<BoxFuture<'static, (Asked, Option<Box<Local>>)>>,
    ready: Option<Box<Local>>,
    sending: Option<BoxFuture<'static, bool>>,
}

impl Checkpoints {
    /// The checkpoints that follow `place`: the base, or the checkpoint that the attempt resumes.
    pub(super) fn new(parts: CheckpointParts, steps: Steps, transcript: Transcript, place: ParentCheckpoint) -> Self {
        Self {
            parts,
            steps,
            transcript,
            told: place.clone(),
            tip: place,
            committing: None,
            ready: None,
            sending: None,
        }
    }

    /// Takes the first checkpoint. When this returns, the session's first step may change files.
    pub(super) async fn baseline(&mut self) {
        self.steps.ask(CheckpointRequest::of(CheckpointReason::Baseline));
        while self.steps.is_asked() || self.committing.is_some() {
            let input = self.input().await;
            self.take(input);
        }
    }

    /// Takes the requested checkpoints until it is dropped.
    pub(super) async fn run(&mut self) -> ! {
        loop {
            let input = self.input().await;
            self.take(input);
        }
    }

    /// Takes a last checkpoint and returns when it is reported, or cannot be.
    pub(super) async fn finish(&mut self, reason: CheckpointReason) {
        self.steps.ask(CheckpointRequest::of(reason));
        self.steps.ended();
        while self.steps.is_asked() || self.committing.is_some() || self.sending.is_some() {
            let input = self.input().await;
            self.take(input);
        }
    }

    /// Waits for the next input. Cancel-safe: work in progress stays in `self`.
    async fn input(&mut self) -> CheckpointInput {
        let free = self.committing.is_none();
        tokio::select! {
            biased;
            (asked, local) = under_way(&mut self.committing) => CheckpointInput::Committed(asked, local),
            told = under_way(&mut self.sending) => CheckpointInput::Sent(told),
            asked = self.steps.asked(), if free => CheckpointInput::Asked(asked),
        }
    }

    fn take(&mut self, input: CheckpointInput) {
        match input {
            CheckpointInput::Asked(asked) => {
                let committing = commit(
                    self.parts.clone(),
                    self.steps.clone(),
                    self.transcript.clone(),
                    self.tip.clone(),
                    asked,
                );
                self.committing = Some(Box::pin(committing));
            }
            CheckpointInput::Committed(asked, local) => {
                self.committing = None;
                self.steps.dealt_with(&asked);
                match local {
                    Some(mut local) if local.taken.parent == self.tip.commit => {
                        // It contains all of the one before, and answers its requests.
                        if let Some(replaced) = self.ready.take() {
                            local.answers(&replaced);
                        }
                        self.ready = Some(local);
                    }
                    Some(astray) => self.again(astray),
                    None => {}
                }
            }
            CheckpointInput::Sent(told) => {
                self.sending = None;
                if told {
                    self.steps.forget(self.tip.mark.position);
                    self.told = self.tip.clone();
                } else {
                    self.tip = self.told.clone();
                    if let Some(astray) = self.ready.take() {
                        self.again(astray);
                    }
                }
            }
        }
        // A commit in progress follows the tip, so the tip must stay the same.
        if self.sending.is_none()
            && self.committing.is_none()
            && let Some(local) = self.ready.take()
        {
            self.tip = local.place.clone();
            self.sending = Some(Box::pin(send(self.parts.clone(), *local)));
        }
    }

    /// Takes a checkpoint again after its parent could not be sent: the coordinator lacks what it
    /// builds on.
    fn again(&self, astray: Box<Local>) {
        self.steps.ask(astray.request());
    }
}

/// The outcome of the work in progress; never ready when there is none.
async fn under_way<T>(work: &mut Option<BoxFuture<'static, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

async fn commit(
    parts: CheckpointParts,
    steps: Steps,
    transcript: Transcript,
    parent: ParentCheckpoint,
    asked: Asked,
) -> (Asked, Option<Box<Local>>) {
    let made = try_commit(&parts, &steps, &transcript, parent, &asked).await;
    let local = told_or_none(&parts, made).await.flatten();
    (asked, local.map(Box::new))
}

async fn try_commit(
    parts: &CheckpointParts,
    steps: &Steps,
    transcript: &Transcript,
    parent: ParentCheckpoint,
    asked: &Asked,
) -> Result<Option<Local>, CheckpointError> {
    // The conversation first, then the files: what the conversation has done is in the files.
    let gained = transcript
        .since(steps, parent.mark, asked.position)
        .await
        .map_err(CheckpointError::Transcript)?;
    let anyway = match asked.request.reason {
        // Somebody waits for it.
        CheckpointReason::Requested | CheckpointReason::BeforeRestore => true,
        // Anything said after the checkpoint would have to be said again.
        CheckpointReason::BeforeRetry | CheckpointReason::Final => !gained.bytes.is_empty(),
        CheckpointReason::Baseline | CheckpointReason::FilesChanged => false,
    };
    let when = if anyway { TakeWhen::Anyway } else { TakeWhen::Changed };
    let taking = parts
        .workspace
        .checkpoint(&parts.warnings, &parent.commit, &parts.title, when);
    let taken = taking.await.map_err(|failure| CheckpointError::Take(failure.message))?;
    if taken.commit == parent.commit && asked.request.reason != CheckpointReason::Baseline {
        return Ok(None);
    }
    let place = ParentCheckpoint {
        commit: taken.commit.clone(),
        mark: gained.to,
    };
    Ok(Some(Local {
        taken: TakenCheckpoint {
            commit: taken.commit,
            parent: parent.commit,
            tree: taken.tree,
            reason: asked.request.reason,
            note: asked.request.note.clone(),
            files_changed: taken.files_changed,
            pack: None,
            transcript: None,
            calls: asked.calls,
            told: asked.told,
        },
        segment: (!gained.bytes.is_empty()).then_some((gained.from, gained.bytes)),
        place,
    }))
}

async fn send(parts: CheckpointParts, local: Local) -> bool {
    let sent = try_send(&parts, local).await;
    told_or_none(&parts, sent).await.is_some()
}

/// Sends the objects and conversation of a checkpoint, then reports it.
async fn try_send(parts: &CheckpointParts, local: Local) -> Result<(), CheckpointError> {
    let Local {
        mut taken,
        segment,
        place,
    } = local;
    if taken.commit != taken.parent {
        let sending = parts.workspace.send(&parts.warnings, &taken.commit, &taken.parent);
        taken.pack = Some(sending.await.map_err(not_sent)?);
    }
    if let Some((from, bytes)) = segment {
        // A conversation that contains a secret is stored with the secret masked, although that
        // changes the conversation.
        let bytes = Bytes::from(parts.masker.bytes(bytes));
        let blob = parts.ground.put(&parts.project, bytes).await;
        taken.transcript = Some(TranscriptSegment {
            blob: blob.map_err(not_sent)?,
            from,
            to: place.mark.position,
        });
    }
    let told = parts.recording.post(EventBody::CheckpointTaken(taken)).await;
    told.map_err(|OutboxClosed| CheckpointError::Closed)
}

fn not_sent(failure: Failure) -> CheckpointError {
    CheckpointError::Send(failure.message)
}

/// The result; a failure is reported to people as a warning.
async fn told_or_none<T>(parts: &CheckpointParts, done: Result<T, CheckpointError>) -> Option<T> {
    let error = match done {
        Ok(done) => {
            parts.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return Some(done);
        }
        Err(error) => error,
    };
    let why = chain(&error);
    tracing::warn!(error = why, "no checkpoint");
    match error {
        CheckpointError::Closed => {}
        CheckpointError::Take(_) | CheckpointError::Transcript(_) | CheckpointError::Send(_) => {
            let text = format!("no checkpoint: {why}");
            let before = std::mem::replace(
                &mut *parts.told.lock().unwrap_or_else(PoisonError::into_inner),
                text.clone(),
            );
            if before == text {
                return None;
            }
            let warning = EventBody::Warning(text);
            if parts.recording.post(warning).await.is_err() {
                tracing::debug!("the agent ends");
            }
        }
    }
    None
}
