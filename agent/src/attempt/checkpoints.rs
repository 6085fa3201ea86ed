//! The checkpoints of one session attempt: the one owner of what the next one follows.
//!
//! ```text
//!   Steps::asked ─▶ committing (durable here) ─▶ ready ─▶ sending (blobs, then the event)
//!                        ▲ at most one               ▲ at most one, a newer replaces it
//! ```
//!
//! Only committing keeps the session's tools waiting; sending goes on beside them. A
//! checkpoint that cannot be taken or sent is a warning, and the session goes on.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::EventBody;
use kage_core::id::{Oid, ProjectId};
use kage_git::{GitError, Mirror, Worktree};

use super::transcript::{Mark, Transcript};
use crate::adapters::steps::{Asked, CheckpointRequest, Steps};
use crate::delivery::mask::Masker;
use crate::delivery::outbox::OutboxClosed;
use crate::delivery::recorder::Recording;
use crate::ground::blobs::{BlobError, Blobs};
use crate::ground::workspace::Healer;

/// Why a checkpoint was not taken or sent.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error("a checkpoint could not be taken")]
    Take(#[source] GitError),
    #[error("the conversation could not be read")]
    Transcript(#[source] std::io::Error),
    #[error("a checkpoint could not be packed")]
    Pack(#[source] GitError),
    #[error("a checkpoint could not be sent")]
    Send(#[source] BlobError),
    #[error("the agent ends")]
    Closed,
}

/// What the checkpoints of an attempt are made with.
#[derive(Clone)]
pub(super) struct CheckpointParts {
    pub(super) project: ProjectId,
    pub(super) mirror: Mirror,
    pub(super) tree: Arc<Worktree>,
    pub(super) blobs: Blobs,
    pub(super) masker: Masker,
    pub(super) recording: Recording,
    /// Heals the mirror.
    pub(super) healer: Healer,
    /// What every checkpoint's commit says.
    pub(super) title: String,
}

/// A checkpoint as what the next one follows.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) commit: Oid,
    /// Where the conversation is.
    pub(super) mark: Mark,
}

/// A checkpoint that is durable here.
#[derive(Debug)]
struct Local {
    taken: TakenCheckpoint,
    /// What the conversation gained, when it did.
    segment: Option<(u64, Vec<u8>)>,
    place: Place,
}

impl Local {
    /// What it was wanted for.
    fn request(&self) -> CheckpointRequest {
        CheckpointRequest {
            reason: self.taken.reason,
            note: self.taken.note.clone(),
        }
    }

    /// Makes it the answer to what an older one was wanted for, as well.
    fn answers(&mut self, older: &Self) {
        let CheckpointRequest { reason, note } = self.request().joined(older.request());
        self.taken.reason = reason;
        self.taken.note = note;
    }
}

/// What comes next.
enum Input {
    Asked(Asked),
    Committed(Asked, Option<Box<Local>>),
    Sent(bool),
}

pub(super) struct Checkpoints {
    parts: CheckpointParts,
    steps: Steps,
    transcript: Transcript,
    /// The newest that the coordinator was told of.
    told: Place,
    /// The newest that is told or being sent.
    tip: Place,
    committing: Option<BoxFuture<'static, (Asked, Option<Box<Local>>)>>,
    ready: Option<Box<Local>>,
    sending: Option<BoxFuture<'static, bool>>,
}

impl Checkpoints {
    /// The checkpoints that follow `place`: the base, or what the attempt goes on from.
    pub(super) fn new(parts: CheckpointParts, steps: Steps, transcript: Transcript, place: Place) -> Self {
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

    /// Takes the first one. When this returns, the session's first step may change files.
    pub(super) async fn baseline(&mut self) {
        self.steps.ask(CheckpointRequest::of(CheckpointReason::Baseline));
        while self.steps.is_asked() || self.committing.is_some() {
            let input = self.input().await;
            self.take(input);
        }
    }

    /// Takes what is asked for until it is dropped.
    pub(super) async fn run(&mut self) -> ! {
        loop {
            let input = self.input().await;
            self.take(input);
        }
    }

    /// Takes a last one and returns when it is told, or cannot be.
    pub(super) async fn finish(&mut self, reason: CheckpointReason) {
        self.steps.ask(CheckpointRequest::of(reason));
        self.steps.ended();
        while self.steps.is_asked() || self.committing.is_some() || self.sending.is_some() {
            let input = self.input().await;
            self.take(input);
        }
    }

    /// Waits for what comes next. Cancel-safe: what is under way stays in `self`.
    async fn input(&mut self) -> Input {
        let free = self.committing.is_none();
        tokio::select! {
            biased;
            (asked, local) = under_way(&mut self.committing) => Input::Committed(asked, local),
            told = under_way(&mut self.sending) => Input::Sent(told),
            asked = self.steps.asked(), if free => Input::Asked(asked),
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Asked(asked) => {
                let committing = commit(
                    self.parts.clone(),
                    self.steps.clone(),
                    self.transcript.clone(),
                    self.tip.clone(),
                    asked,
                );
                self.committing = Some(Box::pin(committing));
            }
            Input::Committed(asked, local) => {
                self.committing = None;
                self.steps.dealt_with(&asked);
                match local {
                    Some(mut local) if local.taken.parent == self.tip.commit => {
                        // It has all that the one before it has, and answers for it.
                        if let Some(replaced) = self.ready.take() {
                            local.answers(&replaced);
                        }
                        self.ready = Some(local);
                    }
                    Some(astray) => self.again(astray),
                    None => {}
                }
            }
            Input::Sent(told) => {
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
        // A commit under way follows the tip, which must stay what it was.
        if self.sending.is_none()
            && self.committing.is_none()
            && let Some(local) = self.ready.take()
        {
            self.tip = local.place.clone();
            self.sending = Some(Box::pin(send(self.parts.clone(), *local)));
        }
    }

    /// Takes one again that follows what could not be sent: nobody has what it leans on.
    fn again(&self, astray: Box<Local>) {
        self.steps.ask(astray.request());
    }
}

/// The outcome of what is under way; never ready when nothing is.
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
    parent: Place,
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
    parent: Place,
    asked: &Asked,
) -> Result<Option<Local>, CheckpointError> {
    // First what was said, then the files: what the conversation has done is in them.
    let gained = transcript
        .since(steps, parent.mark, asked.position)
        .await
        .map_err(CheckpointError::Transcript)?;
    let anyway = match asked.request.reason {
        // Somebody waits for it.
        CheckpointReason::Requested | CheckpointReason::BeforeRestore => true,
        // What was said since would have to be said again.
        CheckpointReason::BeforeRetry | CheckpointReason::Final => !gained.bytes.is_empty(),
        CheckpointReason::Baseline | CheckpointReason::FilesChanged => false,
    };
    let message = parts.title.clone();
    let taking = async || {
        let message = message.clone();
        if anyway {
            parts.tree.checkpoint(&parent.commit, message).await
        } else {
            parts.tree.checkpoint_changes(&parent.commit, message).await
        }
    };
    let taken = parts.healer.steady(&parts.recording, taking).await;
    let taken = taken.map_err(CheckpointError::Take)?;
    if taken.commit == parent.commit && asked.request.reason != CheckpointReason::Baseline {
        return Ok(None);
    }
    let place = Place {
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
        },
        segment: (!gained.bytes.is_empty()).then_some((gained.from, gained.bytes)),
        place,
    }))
}

async fn send(parts: CheckpointParts, local: Local) -> bool {
    let sent = try_send(&parts, local).await;
    told_or_none(&parts, sent).await.is_some()
}

/// Sends what a checkpoint needs, then tells of it.
async fn try_send(parts: &CheckpointParts, local: Local) -> Result<(), CheckpointError> {
    let Local {
        mut taken,
        segment,
        place,
    } = local;
    if taken.commit != taken.parent {
        let have = std::slice::from_ref(&taken.parent);
        let packing = || parts.mirror.thin_pack(&taken.commit, have);
        let pack = parts.healer.steady(&parts.recording, packing).await;
        let pack = pack.map_err(CheckpointError::Pack)?;
        let put = parts.blobs.put_file(&parts.project, pack.path()).await;
        taken.pack = Some(put.map_err(CheckpointError::Send)?);
    }
    if let Some((from, bytes)) = segment {
        // What holds a secret is kept without it, although it is another conversation then.
        let bytes = Bytes::from(parts.masker.bytes(bytes));
        let blob = parts.blobs.put(&parts.project, bytes).await;
        taken.transcript = Some(TranscriptSegment {
            blob: blob.map_err(CheckpointError::Send)?,
            from,
            to: place.mark.position,
        });
    }
    let told = parts.recording.post(EventBody::CheckpointTaken(taken)).await;
    told.map_err(|OutboxClosed| CheckpointError::Closed)
}

/// What was done; when it failed, people are told.
async fn told_or_none<T>(parts: &CheckpointParts, done: Result<T, CheckpointError>) -> Option<T> {
    let error = match done {
        Ok(done) => return Some(done),
        Err(error) => error,
    };
    let why = chain(&error);
    tracing::warn!(error = why, "no checkpoint");
    match error {
        CheckpointError::Closed => {}
        CheckpointError::Take(_)
        | CheckpointError::Transcript(_)
        | CheckpointError::Pack(_)
        | CheckpointError::Send(_) => {
            let warning = EventBody::Warning(format!("no checkpoint: {why}"));
            if parts.recording.post(warning).await.is_err() {
                tracing::debug!("the agent ends");
            }
        }
    }
    None
}
