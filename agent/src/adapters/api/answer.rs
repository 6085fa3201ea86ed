//! An answer of a model, independent of the provider: its items as received, its tool calls, the
//! reason for its end, and its usage. Pure.
//!
//! Items keep every field that the provider sent, with the exact bytes of each value, because
//! signed content must be sent back unchanged. The dialect interprets the fields.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use kage_core::call::BilledInput;
use kage_core::failure::{Failure, FailureKind};
use kage_core::usage::Usage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// The most bytes of one answer. The providers' own limits are far below.
pub(super) const MAX_ANSWER: usize = 32 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    Done,
    /// Waits for the results of its tool calls.
    Tools,
    /// It used up the tokens of an answer.
    Cut,
    /// It wrote calls that its own provider could not read, and threw away.
    BrokenCall,
    /// The provider paused a long answer; sending it back continues it.
    Paused,
    Refused,
    /// The conversation no longer fits.
    NoRoom,
    /// A reason that the dialect does not know.
    Other,
}

impl Stop {
    /// True when the answer was cut at a length limit.
    pub(super) const fn cuts(&self) -> bool {
        match self {
            Self::Cut | Self::NoRoom => true,
            Self::Done | Self::Tools | Self::BrokenCall | Self::Paused | Self::Refused | Self::Other => false,
        }
    }
}

/// A part of an answer: a JSON object, its fields as the provider wrote them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Item(BTreeMap<String, Box<RawValue>>);

impl Item {
    pub(super) fn text(&self, field: &str) -> Option<String> {
        serde_json::from_str(self.raw(field)?).ok()
    }

    /// A field as it was written.
    pub(super) fn raw(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(|raw| raw.get())
    }

    /// Whether this is its only field.
    pub(super) fn has_only(&self, field: &str) -> bool {
        self.0.len() == 1 && self.0.contains_key(field)
    }

    pub(super) fn set(&mut self, field: &str, value: Box<RawValue>) {
        self.0.insert(field.to_owned(), value);
    }

    pub(super) fn remove(&mut self, field: &str) {
        self.0.remove(field);
    }

    /// The names of its fields.
    pub(super) fn fields(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

/// A tool that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub(super) id: String,
    pub(super) name: String,
    /// A JSON object as the model wrote it; `None` when it is incomplete or invalid. Such a call is
    /// never run.
    pub(super) input: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) items: Vec<Item>,
    pub(super) calls: Vec<ToolCall>,
    /// Its text.
    pub(super) words: String,
    pub(super) stop: Stop,
    /// Why the model stopped, as the provider wrote it.
    pub(super) raw_stop: String,
    pub(super) usage: Usage,
}

impl Answer {
    /// The answer as a line of a transcript.
    pub(super) fn transcript_line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            role: &'a str,
            id: &'a str,
            model: &'a str,
            content: &'a [Item],
            stop_reason: &'a str,
            usage: &'a Usage,
        }
        let line = Line {
            role: "assistant",
            id: &self.id,
            model: &self.model,
            content: &self.items,
            stop_reason: &self.raw_stop,
            usage: &self.usage,
        };
        serde_json::to_string(&line).expect("maps with text keys and raw JSON always serialise")
    }
}

/// What an event says about progress.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub(super) enum Progress {
    None,
    /// A ping or an unknown event: the connection works, and nothing else is known.
    Ping,
    Text(String),
    Complete,
    /// The stream ended in an error.
    Failed(Failure),
}

impl Progress {
    /// The stream makes no sense any more.
    pub(super) fn broken(why: &str) -> Self {
        let message = format!("the model's answer broke off: {why}");
        Self::Failed(Failure::new(FailureKind::Network, message))
    }
}

/// An item that is not complete yet.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenItem {
    pub(super) item: Item,
    /// Text that was appended, by field.
    pub(super) grown: BTreeMap<&'static str, String>,
    /// Values that were appended to a list, by field.
    pub(super) listed: BTreeMap<&'static str, Vec<Value>>,
}

/// An answer in the making. The dialect fills it, event by event, and makes the [`Answer`] of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) id: String,
    /// The model as the provider names it; empty before the answer began.
    pub(super) model: String,
    pub(super) open: BTreeMap<u64, OpenItem>,
    pub(super) done: BTreeMap<u64, Item>,
    pub(super) calls: BTreeMap<u64, ToolCall>,
    /// Calls that began and have no input yet.
    pub(super) bare: BTreeSet<u64>,
    pub(super) raw_stop: Option<String>,
    /// Tokens counted so far; the provider bills them even when the stream is cut.
    pub(super) usage: Usage,
    /// The highest counts so far, in the provider's own form.
    pub(super) counts: Value,
    /// Bytes of the request.
    pub(super) sent: u64,
    /// The room that the request asked for.
    pub(super) context: Option<NonZeroU32>,
    /// The request before in the same conversation.
    pub(super) before: Option<BilledInput>,
    bytes: usize,
}

impl Draft {
    /// The answer to a request of so many bytes, which asked for this room.
    pub(super) fn of(sent: usize, context: Option<NonZeroU32>) -> Self {
        Self {
            sent: sent as u64,
            context,
            ..Self::default()
        }
    }

    /// The request that this is the answer to, if its prompt was counted.
    pub(super) fn billed(&self) -> Option<BilledInput> {
        let tokens = self.usage.total().saturating_sub(self.usage.output);
        (tokens > 0).then_some(BilledInput {
            bytes: self.sent,
            tokens,
        })
    }

    /// Whether anything of the answer came, so that it is on a bill.
    pub(super) fn began(&self) -> bool {
        !self.model.is_empty() || !self.open.is_empty() || !self.done.is_empty() || !self.usage.is_zero()
    }

    /// Takes the provider's counts of the answer so far, and returns the highest of each. Counts of an answer
    /// only rise: one that is lower, or is not there any more, is one that the sender forgot.
    pub(super) fn counted(&mut self, counts: &Value) -> &Value {
        raise(&mut self.counts, counts);
        &self.counts
    }

    /// Forgets what the answer says, and keeps what was counted of it.
    pub(super) fn forget(&mut self) {
        self.open.values_mut().for_each(|open| *open = OpenItem::default());
        self.done.clear();
        self.calls.clear();
        self.bare.clear();
        self.bytes = 0;
    }

    /// What was used, if the answer broke off here: providers count as they write, and tell it at the end. The
    /// output is at least as many tokens as the text that came has, at four bytes each.
    pub(super) fn used_so_far(&self) -> Usage {
        const BYTES_PER_TOKEN: u64 = 4;
        let growing = self.open.values().flat_map(|open| open.grown.values());
        let growing: usize = growing.map(String::len).sum();
        let whole = self.done.values().flat_map(|item| item.0.values());
        let whole: usize = whole.map(|raw| raw.get().len()).sum();
        let written = (growing + whole) as u64;
        Usage {
            output: self.usage.output.max(written.div_ceil(BYTES_PER_TOKEN)),
            ..self.usage
        }
    }

    /// Handles the data of one frame, unless the answer is too long.
    pub(super) fn event(&mut self, read: fn(&mut Self, &str) -> Progress, data: &str) -> Progress {
        self.bytes = self.bytes.saturating_add(data.len());
        if self.bytes > MAX_ANSWER {
            return Progress::broken("it is longer than any should be");
        }
        read(self, data)
    }
}

/// Raises each number of `all` to that of `new`.
fn raise(all: &mut Value, new: &Value) {
    match (all, new) {
        (Value::Object(all), Value::Object(new)) => {
            for (name, value) in new {
                raise(all.entry(name.as_str()).or_insert(Value::Null), value);
            }
        }
        (all @ Value::Null, new) => all.clone_from(new),
        (all @ Value::Number(_), new @ Value::Number(_)) => {
            if new.as_f64() > all.as_f64() {
                all.clone_from(new);
            }
        }
        // Parts are added, and told again whole.
        (Value::Array(all), Value::Array(new)) if new.len() >= all.len() => all.clone_from(new),
        // Another kind of value is nothing that is counted.
        (_, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_only_rise() {
        let mut draft = Draft::default();
        for (counts, highest) in [
            (json!(null), json!(null)),
            (
                json!({"a": 3, "deep": {"b": 7}, "c": null}),
                json!({"a": 3, "deep": {"b": 7}, "c": null}),
            ),
            (
                json!({"a": 0, "deep": {"b": 9}}),
                json!({"a": 3, "deep": {"b": 9}, "c": null}),
            ),
            (json!({"deep": null, "c": 1}), json!({"a": 3, "deep": {"b": 9}, "c": 1})),
            (json!("odd"), json!({"a": 3, "deep": {"b": 9}, "c": 1})),
        ] {
            assert_eq!(*draft.counted(&counts), highest, "{counts}");
        }
    }
}
