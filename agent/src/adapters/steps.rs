//! The steps of an adapter: each message of its conversation, and when its tools begin and end.
//! They give a checkpoint the position in the conversation that belongs to its files. The attempt
//! takes and sends the checkpoint.
//!
//! ```text
//!   messages ─▶ tools begin ─▶ results ─▶ tools ended ─▶ messages ─▶ ...
//!               │◀────── files may change ──────▶│
//!    tools wait for a checkpoint to be taken     │     a checkpoint waits for tools
//! ```
//!
//! A checkpoint before a restore does not wait for tools: they may run for an hour, and their
//! unfinished output is what would be lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kage_core::checkpoint::CheckpointReason;
use tokio::sync::{Notify, watch};

/// The steps of one session. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Steps(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a checkpoint is requested, or may be taken now.
    wanted: Notify,
    /// The number of the last request that was dealt with.
    dealt: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// The position of the first of `lines`.
    first: u64,
    /// Messages that are in no checkpoint yet: one conversation at most.
    lines: VecDeque<Bytes>,
    /// Answered model calls; `None` when the adapter does not report them.
    answers: Option<u32>,
    /// The newest message of a person that the conversation has and this attempt was told; 0: none.
    told: u32,
    /// Tools run, so that files may be half written.
    busy: bool,
    /// At most one request; further ones join it.
    asked: Option<Asked>,
    /// The number of the last request.
    number: u64,
}

/// The purpose of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckpointRequest {
    pub(crate) reason: CheckpointReason,
    pub(crate) note: String,
}

impl CheckpointRequest {
    /// A request because files changed.
    pub(crate) const fn files_changed() -> Self {
        Self::of(CheckpointReason::FilesChanged)
    }

    /// A request for another reason, without a note.
    pub(crate) const fn of(reason: CheckpointReason) -> Self {
        Self {
            reason,
            note: String::new(),
        }
    }

    /// Joins this request with an older one. A person's note is kept. The stronger reason wins: any
    /// reason is stronger than changed files, a restore is stronger than a person's request, and
    /// the end of an attempt is the strongest.
    pub(crate) fn joined(self, older: Self) -> Self {
        const fn weight(reason: CheckpointReason) -> u8 {
            match reason {
                CheckpointReason::FilesChanged => 0,
                CheckpointReason::Baseline | CheckpointReason::Requested => 1,
                CheckpointReason::BeforeRestore => 2,
                CheckpointReason::BeforeRetry | CheckpointReason::Final => 3,
            }
        }
        Self {
            reason: if weight(older.reason) > weight(self.reason) {
                older.reason
            } else {
                self.reason
            },
            note: if self.note.is_empty() { older.note } else { self.note },
        }
    }
}

/// A requested checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) request: CheckpointRequest,
    /// The place in the conversation that belongs to it.
    pub(crate) position: u64,
    /// Model calls answered by then, if the adapter reports them.
    pub(crate) calls: Option<u32>,
    /// The newest message of a person that the conversation has by then and this attempt was told; 0: none.
    pub(crate) told: u32,
    number: u64,
}

impl Steps {
    /// The steps of a session without checkpoints.
    #[must_use]
    pub const fn unheard() -> Self {
        Self(None)
    }

    /// The steps of a session whose conversation is at position `first`.
    pub(crate) fn from(first: u64) -> Self {
        Self(Some(Arc::new(Shared {
            state: Mutex::new(State {
                first,
                lines: VecDeque::new(),
                answers: None,
                told: 0,
                busy: false,
                asked: None,
                number: 0,
            }),
            wanted: Notify::new(),
            dealt: watch::Sender::new(0),
        })))
    }

    /// A message was added to the conversation.
    pub fn message(&self, line: impl Into<Bytes>) {
        if let Some(shared) = &self.0 {
            shared.lock().lines.push_back(line.into());
        }
    }

    /// Reports that the model answered a call.
    pub fn answered(&self) {
        if let Some(shared) = &self.0 {
            let mut state = shared.lock();
            state.answers = Some(state.answers.unwrap_or(0).saturating_add(1));
        }
    }

    /// Reports that the conversation has what a person said.
    pub fn told(&self, number: u32) {
        if let Some(shared) = &self.0 {
            let mut state = shared.lock();
            state.told = state.told.max(number);
        }
    }

    /// Reports that tools are about to change files. Waits for a checkpoint that is being taken.
    pub async fn tools_begin(&self) {
        let Some(shared) = &self.0 else { return };
        let mut dealt = shared.dealt.subscribe();
        loop {
            let number = {
                let mut state = shared.lock();
                if *dealt.borrow_and_update() >= state.number {
                    state.busy = true;
                    return;
                }
                state.number
            };
            // The sender lives as long as `shared`.
            if dealt.wait_for(|dealt| *dealt >= number).await.is_err() {
                return;
            }
        }
    }

    /// Reports that tools ended and the conversation has their results: a session can resume here.
    pub fn tools_ended(&self) {
        if let Some(shared) = &self.0 {
            shared.lock().busy = false;
        }
        self.ask(CheckpointRequest::files_changed());
    }

    /// No tool runs any more, however that came.
    pub(crate) fn ended(&self) {
        if let Some(shared) = &self.0 {
            shared.lock().busy = false;
            shared.wanted.notify_one();
        }
    }

    /// Requests a checkpoint at the next point between two steps, or at once before a restore. It
    /// joins a pending request.
    pub(crate) fn ask(&self, request: CheckpointRequest) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.lock();
        state.number += 1;
        let position = state.position();
        let number = state.number;
        let request = match state.asked.take() {
            Some(before) => request.joined(before.request),
            None => request,
        };
        state.asked = Some(Asked {
            request,
            position,
            calls: state.answers,
            told: state.told,
            number,
        });
        drop(state);
        shared.wanted.notify_one();
    }

    /// Waits for a request that can be dealt with now. Cancel-safe.
    pub(crate) async fn asked(&self) -> Asked {
        let Some(shared) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            let wanted = shared.wanted.notified();
            {
                let mut state = shared.lock();
                let waits = |asked: &Asked| state.busy && asked.request.reason != CheckpointReason::BeforeRestore;
                if !state.asked.as_ref().is_some_and(waits)
                    && let Some(asked) = state.asked.take()
                {
                    return asked;
                }
            }
            wanted.await;
        }
    }

    /// True while a request waits.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.lock().asked.is_some())
    }

    /// The files of a request are safe, or will not be: tools may run.
    pub(crate) fn dealt_with(&self, asked: &Asked) {
        if let Some(shared) = &self.0 {
            shared.dealt.send_modify(|dealt| *dealt = (*dealt).max(asked.number));
        }
    }

    /// The messages between two positions, as lines.
    pub(crate) fn lines(&self, from: u64, to: u64) -> Vec<u8> {
        let Some(shared) = &self.0 else { return Vec::new() };
        let state = shared.lock();
        let place = |position: u64| usize::try_from(position.saturating_sub(state.first)).unwrap_or(usize::MAX);
        let (start, end) = (place(from), place(to));
        let mut text = Vec::new();
        for line in state.lines.iter().take(end).skip(start) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        text
    }

    /// Messages before this position are held elsewhere.
    pub(crate) fn forget(&self, position: u64) {
        if let Some(shared) = &self.0 {
            let mut state = shared.lock();
            while state.first < position && state.lines.pop_front().is_some() {
                state.first += 1;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn position(&self) -> u64 {
        self.first + self.lines.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn requested(note: &str) -> CheckpointRequest {
        CheckpointRequest {
            reason: CheckpointReason::Requested,
            note: note.to_owned(),
        }
    }

    #[tokio::test]
    async fn one_before_a_restore_does_not_wait_for_tools() {
        let steps = Steps::from(0);
        steps.message("call");
        steps.tools_begin().await;
        steps.ask(requested("look"));
        assert_eq!(steps.asked().now_or_never(), None);
        steps.ask(CheckpointRequest::of(CheckpointReason::BeforeRestore));
        let asked = steps.asked().now_or_never().unwrap();
        // Its position is after the call whose tools run.
        assert_eq!(
            (asked.request.reason, asked.request.note.as_str(), asked.position),
            (CheckpointReason::BeforeRestore, "look", 1)
        );
        steps.dealt_with(&asked);

        // The request keeps the stronger reason.
        steps.ask(CheckpointRequest::of(CheckpointReason::BeforeRestore));
        steps.ask(requested("why"));
        steps.message("result");
        steps.tools_ended();
        let asked = steps.asked().now_or_never().unwrap();
        assert_eq!(
            (asked.request.reason, asked.request.note.as_str(), asked.position),
            (CheckpointReason::BeforeRestore, "why", 2)
        );
        // But the end of the attempt is the end.
        let last = CheckpointRequest::of(CheckpointReason::Final).joined(asked.request);
        assert_eq!(last.reason, CheckpointReason::Final);
    }

    #[tokio::test]
    async fn requests_join_and_wait_for_the_end_of_a_step() {
        let steps = Steps::from(4);
        steps.message("a");
        steps.tools_begin().await;
        steps.ask(requested("look"));
        assert_eq!(steps.asked().now_or_never(), None);
        steps.message("b");
        steps.tools_ended();
        let asked = steps.asked().now_or_never().unwrap();
        assert_eq!(asked.calls, None, "nobody said so");
        assert_eq!(
            (asked.request.reason, asked.request.note.as_str(), asked.position),
            (CheckpointReason::Requested, "look", 6)
        );
        assert!(!steps.is_asked());

        // Until it is dealt with, no tool changes a file.
        assert_eq!(steps.tools_begin().now_or_never(), None);
        steps.dealt_with(&asked);
        assert_eq!(steps.tools_begin().now_or_never(), Some(()));
        steps.ask(requested("why"));
        steps.ask(CheckpointRequest::of(CheckpointReason::BeforeRetry));
        assert_eq!(steps.asked().now_or_never(), None);
        steps.ended();
        let last = steps.asked().now_or_never().unwrap();
        assert_eq!(
            (last.request.reason, last.request.note.as_str()),
            (CheckpointReason::BeforeRetry, "why")
        );
    }

    #[tokio::test]
    async fn a_step_keeps_its_place_although_messages_follow() {
        let steps = Steps::from(0);
        steps.message("a");
        steps.answered();
        steps.told(2);
        steps.tools_ended();
        steps.answered();
        steps.message("b");
        steps.told(3);
        let asked = steps.asked().await;
        assert_eq!((asked.position, asked.calls, asked.told), (1, Some(1), 2));
        assert_eq!(steps.lines(0, 1), b"a\n");
        steps.forget(1);
        steps.message("c");
        assert_eq!(steps.lines(1, 3), b"b\nc\n");
        assert_eq!(steps.lines(2, 3), b"c\n");
    }

    #[tokio::test]
    async fn without_a_listener_nothing_waits() {
        let steps = Steps::unheard();
        steps.message("a");
        steps.tools_ended();
        assert_eq!(steps.tools_begin().now_or_never(), Some(()));
        assert!(!steps.is_asked() && steps.lines(0, 1).is_empty());
    }
}
