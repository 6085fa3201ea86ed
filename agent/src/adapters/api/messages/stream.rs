//! Builds a message from the events of a stream. Pure: the caller reads the bytes.
//!
//! Blocks keep every field that the provider sent, with its exact bytes, because thinking
//! signatures must be sent back unchanged.

use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::super::answer::{Answer, Draft, Item, OpenItem, Progress, ToolCall};
use super::super::wire::Refusal;
use super::usage;

mod events;

use events::{BlockDelta, BlockStart, BlockStop, Delta, ErrorEvent, Event, MessageDelta, MessageStart, Whole};

/// Handles the data of one event.
pub(super) fn event(draft: &mut Draft, data: &str) -> Progress {
    let event = match Event::parse(data) {
        Ok(event) => event,
        Err(error) => return Progress::broken(&format!("an event is not understood: {error}")),
    };
    match event {
        Event::MessageStart(MessageStart { message }) => {
            draft.id = message.id;
            draft.model = message.model;
            count(draft, &message.usage);
            Progress::None
        }
        Event::BlockStart(BlockStart { index, content_block }) => {
            let open = OpenItem {
                item: content_block,
                ..OpenItem::default()
            };
            draft.open.insert(index, open);
            Progress::None
        }
        Event::BlockDelta(BlockDelta { index, delta }) => grow(draft, index, delta),
        Event::BlockStop(BlockStop { index }) => {
            if let Some(open) = draft.open.remove(&index) {
                close(draft, index, open, true);
            }
            Progress::None
        }
        Event::MessageDelta(MessageDelta { delta, usage }) => {
            if delta.stop_reason.is_some() {
                draft.raw_stop = delta.stop_reason;
            }
            count(draft, &usage);
            Progress::None
        }
        Event::MessageStop => Progress::Complete,
        Event::Error(ErrorEvent { error }) => Progress::Failed(Refusal::from(error).classify(None, None, None)),
        Event::Other => Progress::Ping,
    }
}

/// Reads a message that came without a stream.
pub(super) fn whole(draft: &mut Draft, body: &[u8]) -> Option<Progress> {
    let message: Whole = serde_json::from_slice(body).ok()?;
    if message.kind != "message" {
        return None;
    }
    draft.id = message.id;
    draft.model = message.model;
    draft.raw_stop = message.stop_reason;
    count(draft, &message.usage);
    for (index, item) in (0..).zip(message.content) {
        let open = OpenItem {
            item,
            ..OpenItem::default()
        };
        close(draft, index, open, true);
    }
    Some(Progress::Complete)
}

fn count(draft: &mut Draft, counts: &Value) {
    let mut usage = draft.usage;
    usage::update(&mut usage, draft.counted(counts));
    draft.usage = usage;
}

fn grow(draft: &mut Draft, index: u64, delta: Delta) -> Progress {
    let Some(open) = draft.open.get_mut(&index) else {
        return Progress::broken("a block continues that did not begin");
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
        Delta::Compaction { content } => {
            if let Some(content) = content {
                grow("content", &content);
            }
        }
        Delta::Citations { citation } => open.listed.entry("citations").or_default().push(citation),
        Delta::Other => {}
    }
    Progress::None
}

/// Ends a block. `whole` = its own end came.
fn close(draft: &mut Draft, index: u64, mut open: OpenItem, whole: bool) {
    let written = open.grown.remove("input").filter(|input| !input.is_empty());
    let bare = written.is_none();
    let mut item = open.item;
    if let Some(raw) = written.and_then(|input| RawValue::from_string(input).ok()) {
        item.set("input", raw);
    } else if !bare {
        item.remove("input");
    }
    for (field, grown) in open.grown {
        let all = item.text(field).unwrap_or_default() + &grown;
        if let Ok(raw) = to_raw_value(&all) {
            item.set(field, raw);
        }
    }
    for (field, values) in open.listed {
        if let Ok(raw) = to_raw_value(&values) {
            item.set(field, raw);
        }
    }
    if item.text("type").as_deref() == Some("tool_use") {
        let text = |field| item.text(field).unwrap_or_default();
        let (id, name) = (text("id"), text("name"));
        let input = item
            .raw("input")
            .filter(|input| input.starts_with('{'))
            .map(str::to_owned);
        if input.is_none() {
            // The provider accepts only an object in a later request.
            item.set("input", RawValue::from_string("{}".to_owned()).expect("it is JSON"));
        }
        if bare {
            draft.bare.insert(index);
        }
        let input = input.filter(|_| whole);
        draft.calls.insert(index, ToolCall { id, name, input });
    }
    draft.done.insert(index, item);
}

/// The message, once it is complete.
pub(super) fn finish(mut draft: Draft) -> Answer {
    for (index, open) in std::mem::take(&mut draft.open) {
        close(&mut draft, index, open, false);
    }
    let raw_stop = draft.raw_stop.unwrap_or_default();
    let stop = super::stop(&raw_stop);
    if stop.cuts()
        && let (Some((last, _)), Some(mut call)) = (draft.done.last_key_value(), draft.calls.last_entry())
        && call.key() == last
        && draft.bare.contains(last)
        && call.get().input.as_deref() == Some("{}")
    {
        // It was cut before a part of its input came, which looks like a call without any.
        call.get_mut().input = None;
    }
    let items: Vec<Item> = draft.done.into_values().collect();
    let texts: Vec<String> = items.iter().filter_map(|item| item.text("text")).collect();
    Answer {
        id: draft.id,
        model: draft.model,
        items,
        calls: draft.calls.into_values().collect(),
        words: texts.join("\n").trim().to_owned(),
        stop,
        raw_stop,
        usage: draft.usage,
    }
}

#[cfg(test)]
mod tests;
