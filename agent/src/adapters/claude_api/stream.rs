//! Puts a message together from the events of a stream. Pure: bytes come from elsewhere.
//!
//! Blocks keep every field that the provider sent, in its own bytes: thinking signatures
//! must come back exactly as they were.

use std::collections::BTreeMap;

use kage_core::failure::Failure;
use kage_core::usage::Usage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::usage;

mod events;

pub(super) use events::ApiError;
use events::{BlockDelta, BlockStart, BlockStop, Delta, ErrorEvent, Event, MessageDelta, MessageStart};

/// The most bytes of one message. The provider's own limits are far below.
const MAX_MESSAGE: usize = 32 << 20;

/// Why the model stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StopReason {
    EndTurn,
    StopSequence,
    ToolUse,
    MaxTokens,
    PauseTurn,
    Refusal,
    ContextWindow,
    Other(String),
}

impl StopReason {
    /// Whether the answer ends where there was no more room, in the middle of whatever it was.
    pub(super) const fn cuts(&self) -> bool {
        match self {
            Self::MaxTokens | Self::ContextWindow => true,
            Self::EndTurn | Self::StopSequence | Self::ToolUse | Self::PauseTurn | Self::Refusal | Self::Other(_) => {
                false
            }
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "end_turn" => Self::EndTurn,
            "stop_sequence" => Self::StopSequence,
            "tool_use" => Self::ToolUse,
            "max_tokens" => Self::MaxTokens,
            "pause_turn" => Self::PauseTurn,
            "refusal" => Self::Refusal,
            "model_context_window_exceeded" => Self::ContextWindow,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// A block of content: its fields as the provider wrote them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Block(BTreeMap<String, Box<RawValue>>);

impl Block {
    fn text(&self, field: &str) -> Option<String> {
        serde_json::from_str(self.0.get(field)?.get()).ok()
    }

    fn set(&mut self, field: &str, value: Box<RawValue>) {
        self.0.insert(field.to_owned(), value);
    }

    /// The id of the tool call that it is.
    pub(super) fn tool_call_id(&self) -> Option<String> {
        (self.text("type").as_deref() == Some("tool_use")).then(|| self.text("id"))?
    }

    /// False for what the provider would refuse to get back: text of nothing but white space,
    /// and thinking that was cut before it was signed.
    pub(super) fn can_be_sent(&self) -> bool {
        let given = |field| self.text(field).is_some_and(|text| !text.trim().is_empty());
        match self.text("type").as_deref() {
            Some("text") => given("text"),
            Some("thinking") => given("signature"),
            Some(_) | None => true,
        }
    }
}

/// A tool that the model asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToolCall<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    /// A JSON object, as the model wrote it; `None` when it broke off or is none. Such a call is
    /// never run.
    pub(super) input: Option<&'a str>,
}

/// The same, as a message keeps it.
#[derive(Debug, Clone)]
struct Call {
    id: String,
    name: String,
    input: Option<String>,
    /// No part of the input came after the block began.
    bare: bool,
}

/// A whole message.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) blocks: Vec<Block>,
    pub(super) stop_reason: StopReason,
    pub(super) usage: Usage,
    raw_stop_reason: String,
    calls: Vec<Call>,
}

impl Message {
    /// What it says in words.
    pub(super) fn text(&self) -> String {
        let texts = self.blocks.iter().filter_map(|block| block.text("text"));
        texts.collect::<Vec<_>>().join("\n").trim().to_owned()
    }

    pub(super) fn tool_calls(&self) -> impl Iterator<Item = ToolCall<'_>> {
        self.calls.iter().map(|call| ToolCall {
            id: &call.id,
            name: &call.name,
            input: call.input.as_deref(),
        })
    }

    /// Why the model stopped, as the provider wrote it.
    pub(super) fn raw_stop_reason(&self) -> &str {
        &self.raw_stop_reason
    }

    /// The message as one line of a transcript.
    pub(super) fn transcript_line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            role: &'a str,
            id: &'a str,
            model: &'a str,
            content: &'a [Block],
            stop_reason: &'a str,
            usage: &'a Usage,
        }
        let line = Line {
            role: "assistant",
            id: &self.id,
            model: &self.model,
            content: &self.blocks,
            stop_reason: &self.raw_stop_reason,
            usage: &self.usage,
        };
        serde_json::to_string(&line).expect("maps with text keys and raw JSON always serialise")
    }
}

/// What an event means for those who wait.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub(super) enum Progress {
    /// Nothing to show.
    None,
    /// A ping, or an event that is not known: the connection is there, and nothing else is said.
    Ping,
    /// The model said this.
    Text(String),
    /// The message is whole.
    Complete,
    /// The stream ended in an error.
    Failed(Failure),
}

/// A block whose end has not come yet.
#[derive(Debug, Default)]
struct Open {
    block: Block,
    /// What deltas appended, by field.
    grown: BTreeMap<&'static str, String>,
    /// Deltas that are lists of objects: citations.
    citations: Vec<Value>,
}

/// A message in the making.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    id: String,
    model: String,
    open: BTreeMap<u64, Open>,
    done: BTreeMap<u64, Block>,
    calls: BTreeMap<u64, Call>,
    stop_reason: Option<String>,
    usage: Usage,
    bytes: usize,
}

impl Assembly {
    /// Tokens counted so far: what the provider bills even when the stream is cut.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The model as the provider names it; empty before the message began.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Takes the data of one event.
    pub(super) fn event(&mut self, data: &str) -> Progress {
        self.bytes = self.bytes.saturating_add(data.len());
        if self.bytes > MAX_MESSAGE {
            return broken("the message is longer than any should be");
        }
        let event = match Event::parse(data) {
            Ok(event) => event,
            Err(error) => return broken(&format!("an event is not understood: {error}")),
        };
        match event {
            Event::MessageStart(MessageStart { message }) => {
                self.id = message.id;
                self.model = message.model;
                usage::update(&mut self.usage, &message.usage);
                Progress::None
            }
            Event::BlockStart(BlockStart { index, content_block }) => {
                let open = Open {
                    block: content_block,
                    ..Open::default()
                };
                self.open.insert(index, open);
                Progress::None
            }
            Event::BlockDelta(BlockDelta { index, delta }) => self.delta(index, delta),
            Event::BlockStop(BlockStop { index }) => {
                if let Some(open) = self.open.remove(&index) {
                    self.close(index, open, true);
                }
                Progress::None
            }
            Event::MessageDelta(MessageDelta { delta, usage }) => {
                if delta.stop_reason.is_some() {
                    self.stop_reason = delta.stop_reason;
                }
                usage::update(&mut self.usage, &usage);
                Progress::None
            }
            Event::MessageStop => Progress::Complete,
            Event::Error(ErrorEvent { error }) => Progress::Failed(error.classify(None, None, None)),
            Event::Other => Progress::Ping,
        }
    }

    fn delta(&mut self, index: u64, delta: Delta) -> Progress {
        let Some(open) = self.open.get_mut(&index) else {
            return broken("a block goes on that did not begin");
        };
        let mut grow = |field: &'static str, more: &str| open.grown.entry(field).or_default().push_str(more);
        match delta {
            Delta::Text { text } => {
                grow("text", &text);
                return Progress::Text(text);
            }
            Delta::InputJson { partial_json } => grow("input", &partial_json),
            Delta::Thinking { thinking } => grow("thinking", &thinking),
            Delta::Signature { signature } => grow("signature", &signature),
            Delta::Citations { citation } => open.citations.push(citation),
            Delta::Other => {}
        }
        Progress::None
    }

    /// Ends a block. `whole` = its own end came.
    fn close(&mut self, index: u64, mut open: Open, whole: bool) {
        let written = open.grown.remove("input").filter(|input| !input.is_empty());
        let bare = written.is_none();
        if let Some(raw) = written.and_then(|input| RawValue::from_string(input).ok()) {
            open.block.set("input", raw);
        } else if !bare {
            open.block.0.remove("input");
        }
        for (field, grown) in open.grown {
            let all = open.block.text(field).unwrap_or_default() + &grown;
            if let Ok(raw) = to_raw_value(&all) {
                open.block.set(field, raw);
            }
        }
        if !open.citations.is_empty()
            && let Ok(raw) = to_raw_value(&open.citations)
        {
            open.block.set("citations", raw);
        }
        if open.block.text("type").as_deref() == Some("tool_use") {
            let text = |field| open.block.text(field).unwrap_or_default();
            let (id, name) = (text("id"), text("name"));
            let input = open.block.0.get("input").map(|raw| raw.get().to_owned());
            let input = input.filter(|input| input.starts_with('{'));
            if input.is_none() {
                // The provider takes nothing but an object back.
                open.block
                    .set("input", RawValue::from_string("{}".to_owned()).expect("it is JSON"));
            }
            let call = Call {
                id,
                name,
                input: input.filter(|_| whole),
                bare,
            };
            self.calls.insert(index, call);
        }
        self.done.insert(index, open.block);
    }

    /// The message, once it is complete.
    pub(super) fn finish(mut self) -> Message {
        for (index, open) in std::mem::take(&mut self.open) {
            self.close(index, open, false);
        }
        let raw_stop_reason = self.stop_reason.unwrap_or_default();
        let stop_reason = StopReason::parse(&raw_stop_reason);
        if stop_reason.cuts()
            && let (Some((last, _)), Some(mut call)) = (self.done.last_key_value(), self.calls.last_entry())
            && call.key() == last
            && call.get().bare
            && call.get().input.as_deref() == Some("{}")
        {
            // It was cut before a part of its input came, which looks like a call without any.
            call.get_mut().input = None;
        }
        Message {
            id: self.id,
            model: self.model,
            blocks: self.done.into_values().collect(),
            stop_reason,
            usage: self.usage,
            raw_stop_reason,
            calls: self.calls.into_values().collect(),
        }
    }
}

fn broken(why: &str) -> Progress {
    Progress::Failed(Failure::new(
        kage_core::failure::FailureKind::Network,
        format!("the model's answer broke off: {why}"),
    ))
}

#[cfg(test)]
mod tests;
