//! Counts an answer that passes by on its way to a program, whatever the pieces are that it comes in. What it
//! says is read by the dialect, like an answer to the agent itself, and forgotten with each frame: only the
//! counts stay.
//!
//! ```text
//!   bytes -> frames -> the dialect's draft -> highest counts, model, id, how it ended
//!        \-> one JSON value, where no stream was asked for
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream};
use kage_core::call::AccountName;
use kage_core::failure::FailureKind;
use kage_core::id::AdapterName;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;
use url::Url;

use super::answer::{Draft, MAX_ANSWER, Progress};
use super::frames::{Frames, Opening, opening};
use super::provider::Provider;
use super::wire::Wire;
use super::{chat, gemini, messages, responses};
use crate::adapters::metered::{MeteredProvider, MeteredWire};

/// How far an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerEnd {
    /// It was not at its end.
    Cut,
    Whole,
    /// The provider says in the answer that it failed.
    Failed(FailureKind),
}

/// Bytes of what a model writes that are a token, roughly.
const BYTES_PER_TOKEN: u64 = 4;

/// What was counted of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted {
    /// As the provider names it; empty when the answer did not begin.
    pub(crate) model: String,
    /// The provider's name of the answer; may be empty.
    pub(crate) id: String,
    /// What is on the bill at least. Classes that are not wholly known are marked as such.
    pub(crate) usage: Usage,
    pub(crate) end: AnswerEnd,
}

/// An answer that is being counted.
pub(crate) struct Counting {
    metered: MeteredWire,
    wire: &'static Wire,
    draft: Draft,
    /// Bytes of the texts that grew in a stream.
    written: u64,
    end: AnswerEnd,
    form: Form,
}

/// What the body of the answer is.
enum Form {
    /// Not known yet; the white space that came so far.
    Unknown(Vec<u8>),
    Stream {
        feed: Feed,
        frames: Frames<'static, Feed>,
    },
    /// One JSON value, of which this came.
    Json(Vec<u8>),
    /// Nothing that could be counted.
    Other,
}

impl Counting {
    pub(crate) fn new(wire: MeteredWire) -> Self {
        Self {
            metered: wire,
            wire: provider_of(wire).wire,
            draft: Draft::default(),
            written: 0,
            end: AnswerEnd::Cut,
            form: Form::Unknown(Vec::new()),
        }
    }

    /// Takes the next bytes of the answer.
    pub(crate) fn take(&mut self, bytes: &Bytes) {
        match &mut self.form {
            Form::Unknown(head) => {
                head.extend_from_slice(bytes);
                let head = std::mem::take(head);
                self.form = match opening(self.wire.framing, &head) {
                    None if head.len() > MAX_ANSWER => Form::Other,
                    None => Form::Unknown(head),
                    Some(Opening::Frames) => {
                        let feed = Feed::default();
                        let frames = Frames::new(self.wire.framing, feed.clone());
                        feed.push(&Bytes::from(head));
                        Form::Stream { feed, frames }
                    }
                    Some(Opening::Json) => Form::Json(head),
                    Some(Opening::Page) => Form::Other,
                };
                self.read();
            }
            Form::Stream { feed, .. } => {
                feed.push(bytes);
                self.read();
            }
            Form::Json(body) if body.len() + bytes.len() > MAX_ANSWER => self.form = Form::Other,
            Form::Json(body) => body.extend_from_slice(bytes),
            Form::Other => {}
        }
    }

    /// The body ended.
    pub(crate) fn finish(&mut self) {
        match &mut self.form {
            Form::Stream { feed, .. } => {
                // Some servers leave out what ends their last event.
                feed.push(&Bytes::from_static(b"\n\n"));
                feed.lock().ended = true;
                self.read();
                if self.end == AnswerEnd::Cut && (self.wire.ended)(&mut self.draft) {
                    self.end = AnswerEnd::Whole;
                }
            }
            Form::Json(body) => {
                let body = std::mem::take(body);
                self.form = Form::Other;
                self.read_whole(&body);
            }
            Form::Unknown(_) | Form::Other => {}
        }
        self.draft.forget();
    }

    /// Reads the frames that are complete.
    fn read(&mut self) {
        let Form::Stream { feed, frames } = &mut self.form else {
            return;
        };
        if feed.lock().unfinished > MAX_ANSWER {
            self.form = Form::Other;
            return;
        }
        while let Some(Some(frame)) = frames.next().now_or_never() {
            // A line that is none of a frame's is left out; it ends no count.
            let Ok(Some(data)) = frame else {
                continue;
            };
            match self.draft.event(self.wire.event, &data) {
                Progress::Complete => self.end = AnswerEnd::Whole,
                // An answer that was whole stays it, and what is no JSON tells of no failure.
                Progress::Failed(failure) if self.end == AnswerEnd::Cut && is_json(&data) => {
                    self.end = AnswerEnd::Failed(failure.kind);
                }
                Progress::Failed(_) | Progress::None | Progress::Ping | Progress::Text(_) => {}
            }
            let grown = self.draft.open.values().flat_map(|open| open.grown.values());
            let grown: usize = grown.map(String::len).sum();
            self.written = self.written.saturating_add(grown as u64);
            self.draft.forget();
        }
    }

    fn read_whole(&mut self, body: &[u8]) {
        match (self.wire.whole)(&mut self.draft, body) {
            Some(Progress::Failed(failure)) => self.end = AnswerEnd::Failed(failure.kind),
            Some(_) => self.end = AnswerEnd::Whole,
            // Another object of the provider with counts in it, such as a conversation that was made shorter.
            None => {
                if self.metered == MeteredWire::Responses
                    && let Ok(value) = serde_json::from_slice::<Value>(body)
                    && let Some(usage) = value.get("usage").and_then(responses::usage::parse)
                {
                    self.draft.usage = usage;
                    let model = value.get("model").and_then(Value::as_str);
                    self.draft.model = model.unwrap_or_default().to_owned();
                    self.end = AnswerEnd::Whole;
                }
            }
        }
    }

    /// What was counted so far.
    pub(crate) fn counted(&self) -> Counted {
        let draft = &self.draft;
        let mut usage = draft.usage;
        if usage.is_zero() {
            // Nothing was used by a call that was refused; one that was answered has used something.
            usage = Usage::UNKNOWN;
        } else if self.end != AnswerEnd::Whole {
            let open = Unreported::default()
                .with(UsageClass::Output)
                .with(UsageClass::Reasoning);
            usage.unreported = usage.unreported.union(open);
        }
        Counted {
            model: draft.model.clone(),
            id: draft.id.clone(),
            usage,
            end: self.end,
        }
    }

    /// Tokens that the text of a stream has so far, at four bytes each: providers count as they write, and tell it
    /// at the end.
    pub(crate) const fn written(&self) -> u64 {
        self.written.div_ceil(BYTES_PER_TOKEN)
    }

    /// Whether the answer was cut because it may have been no longer.
    pub(crate) fn was_limited(&self) -> bool {
        self.draft
            .raw_stop
            .as_deref()
            .is_some_and(|reason| (self.wire.stop)(reason).cuts())
    }

    /// Whether anything of an answer came, so that it is on a bill.
    pub(crate) fn began(&self) -> bool {
        self.end == AnswerEnd::Whole || self.draft.began()
    }
}

fn is_json(data: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(data).is_ok()
}

/// The provider that is usually behind a dialect.
fn provider_of(wire: MeteredWire) -> Provider {
    match wire {
        MeteredWire::Messages => messages::CLAUDE,
        MeteredWire::Responses => responses::OPENAI,
        MeteredWire::Chat => chat::CHAT,
        MeteredWire::Gemini => gemini::GEMINI,
    }
}

/// The provider at an address, for a program that speaks this dialect. Account and prices are those of calls that
/// the agent makes there itself.
pub(crate) fn metered(wire: MeteredWire, adapter: &AdapterName, address: Url, key: String) -> MeteredProvider {
    let provider = provider_of(wire);
    let base = address.as_str().trim_end_matches('/');
    let host = address.host_str().unwrap_or_default();
    let is_known = provider.sellers.is_none_or(|sellers| sellers.contains(&host));
    MeteredProvider {
        wire,
        account: AccountName::of_key(provider.name, base, Some(&key)),
        seller: (!is_known).then(|| adapter.clone()),
        address,
        key,
    }
}

/// Pieces of a body that wait to be framed. Nobody is woken: whoever adds one polls.
#[derive(Debug, Clone, Default)]
struct Feed(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<Bytes>,
    /// Bytes of a line that has not ended.
    unfinished: usize,
    ended: bool,
}

impl Feed {
    /// Adds bytes, at most a line in each piece: a line that is refused takes the rest of its piece with it.
    fn push(&self, bytes: &Bytes) {
        let mut waiting = self.lock();
        let mut rest = bytes.clone();
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            waiting.unfinished = 0;
            waiting.pieces.push_back(rest.split_to(end + 1));
        }
        if !rest.is_empty() {
            waiting.unfinished = waiting.unfinished.saturating_add(rest.len());
            waiting.pieces.push_back(rest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream for Feed {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut waiting = self.lock();
        match waiting.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(piece))),
            None if waiting.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests;
