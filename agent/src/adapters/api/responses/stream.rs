//! Builds an answer from the events of a stream. Pure: the caller reads the bytes.
//!
//! An item is complete when its own `done` event came, and then it is kept as it was written: a
//! thought is sealed differently while it grows. The last event has all items once more, of which
//! those are taken whose `done` did not come.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::super::answer::{Answer, Draft, Item, OpenItem, Progress, ToolCall};
use super::super::wire::Refusal;
use super::{ApiError, usage};

/// What every event has; the rest by its type. Not a tagged enum: raw JSON does not survive one.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
}

#[derive(Deserialize)]
struct ItemEvent {
    output_index: u64,
    item: Item,
}

#[derive(Deserialize)]
struct Delta {
    output_index: u64,
    delta: String,
}

#[derive(Deserialize)]
struct ResponseEvent {
    response: Response,
}

/// The response object, at its begin or its end.
#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    error: Option<ApiError>,
    #[serde(default)]
    incomplete_details: Option<Incomplete>,
    #[serde(default)]
    output: Option<Vec<Item>>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct Incomplete {
    #[serde(default)]
    reason: Option<String>,
}

/// An error in a stream: its fields, or an object with them.
#[derive(Deserialize)]
struct ErrorEvent {
    #[serde(default)]
    error: Option<ApiError>,
    #[serde(default)]
    code: Option<super::Code>,
    #[serde(default)]
    message: Option<String>,
}

/// Handles the data of one event.
pub(super) fn event(draft: &mut Draft, data: &str) -> Progress {
    // The end of a stream, for servers that have it from another dialect.
    if data.trim() == "[DONE]" {
        return Progress::Ping;
    }
    let read = serde_json::from_str::<Event<'_>>(data).and_then(|event| handle(draft, event.kind, data));
    read.unwrap_or_else(|error| Progress::broken(&format!("an event is not understood: {error}")))
}

fn handle(draft: &mut Draft, kind: &str, data: &str) -> serde_json::Result<Progress> {
    match kind {
        "response.created" | "response.in_progress" | "response.queued" => {
            let ResponseEvent { response } = serde_json::from_str(data)?;
            begin(draft, &response);
        }
        "response.output_item.added" => {
            let ItemEvent { output_index, item } = serde_json::from_str(data)?;
            let open = OpenItem {
                item,
                ..OpenItem::default()
            };
            draft.open.insert(output_index, open);
        }
        "response.output_item.done" => {
            let ItemEvent { output_index, item } = serde_json::from_str(data)?;
            draft.open.remove(&output_index);
            close(draft, output_index, item);
        }
        "response.output_text.delta" | "response.refusal.delta" => {
            let text = grow(draft, "text", serde_json::from_str(data)?);
            return Ok(Progress::Text(text));
        }
        "response.function_call_arguments.delta" => {
            grow(draft, "arguments", serde_json::from_str(data)?);
        }
        "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
            let ResponseEvent { response } = serde_json::from_str(data)?;
            return Ok(end(draft, response));
        }
        "error" => {
            let ErrorEvent { error, code, message } = serde_json::from_str(data)?;
            let error = error.unwrap_or(ApiError {
                kind: None,
                code,
                message,
            });
            return Ok(failed(error));
        }
        // Parts of summaries, of calls that the provider makes itself, and what is newer than this.
        kind if kind.starts_with("response.") => {}
        _ => return Ok(Progress::Ping),
    }
    Ok(Progress::None)
}

/// Reads a response that came without a stream.
pub(super) fn whole(draft: &mut Draft, body: &[u8]) -> Option<Progress> {
    #[derive(Deserialize)]
    struct Kind {
        object: String,
    }
    let kind: Kind = serde_json::from_slice(body).ok()?;
    if kind.object != "response" {
        return None;
    }
    let response: Response = serde_json::from_slice(body).ok()?;
    begin(draft, &response);
    Some(end(draft, response))
}

fn begin(draft: &mut Draft, response: &Response) {
    if let Some(id) = &response.id {
        draft.id.clone_from(id);
    }
    if let Some(model) = &response.model {
        draft.model.clone_from(model);
    }
}

fn grow(draft: &mut Draft, field: &'static str, Delta { output_index, delta }: Delta) -> String {
    let open = draft.open.entry(output_index).or_default();
    open.grown.entry(field).or_default().push_str(&delta);
    delta
}

fn end(draft: &mut Draft, response: Response) -> Progress {
    begin(draft, &response);
    if let Some(usage) = usage::parse(draft.counted(&response.usage)) {
        draft.usage = usage;
    }
    if let Some(error) = response.error {
        return failed(error);
    }
    for (index, item) in (0..).zip(response.output.unwrap_or_default()) {
        if !draft.done.contains_key(&index) {
            draft.open.remove(&index);
            close(draft, index, item);
        }
    }
    let status = response.status.unwrap_or_default();
    let why = response.incomplete_details.and_then(|details| details.reason);
    draft.raw_stop = match status.as_str() {
        "incomplete" => why.or(Some(status)),
        _ => Some(status),
    };
    Progress::Complete
}

/// An error in a stream has no status of its own: its code says what it is.
fn failed(error: ApiError) -> Progress {
    let mut refusal = Refusal::from(error);
    if refusal.kind.is_empty() {
        refusal.kind = refusal.code.clone().unwrap_or_default();
    }
    Progress::Failed(refusal.classify(None, None, None))
}

/// Keeps a complete item.
fn close(draft: &mut Draft, index: u64, mut item: Item) {
    if item.text("type").as_deref() == Some("function_call") {
        let text = |field| item.text(field).unwrap_or_default();
        let (id, name, input) = (text("call_id"), text("name"), text("arguments"));
        let is_cut = item.text("status").is_some_and(|status| status == "incomplete");
        let input = Some(input).filter(|input| !is_cut && is_object(input));
        if input.is_none() {
            item.set("arguments", raw("{}"));
        }
        draft.calls.insert(index, ToolCall { id, name, input });
    }
    draft.done.insert(index, item);
}

fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok()
}

fn raw(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("a text always serialises")
}

/// Ends an item whose end did not come: a text as far as it came, or a call that is not run.
fn close_cut(draft: &mut Draft, index: u64, open: OpenItem) {
    let mut item = open.item;
    match item.text("type").as_deref() {
        Some("function_call") => {
            item.set("status", raw("incomplete"));
            close(draft, index, item);
        }
        Some("message") => {
            let text = open.grown.get("text").cloned().unwrap_or_default();
            if !text.trim().is_empty() {
                let content = serde_json::json!([{"type": "output_text", "text": text, "annotations": []}]);
                item.set("content", to_raw_value(&content).expect("JSON values always serialise"));
                item.set("status", raw("incomplete"));
                close(draft, index, item);
            }
        }
        // Thoughts are not sealed before their end.
        Some(_) | None => {}
    }
}

/// The answer, once it is complete.
pub(super) fn finish(mut draft: Draft) -> Answer {
    for (index, open) in std::mem::take(&mut draft.open) {
        close_cut(&mut draft, index, open);
    }
    let items: Vec<Item> = draft.done.into_values().collect();
    let (mut texts, mut refused) = (Vec::new(), false);
    for part in items.iter().filter_map(|item| item.raw("content")) {
        for part in serde_json::from_str::<Vec<Part>>(part).unwrap_or_default() {
            refused |= part.refusal.is_some();
            texts.extend(part.text.or(part.refusal));
        }
    }
    let mut raw_stop = draft.raw_stop.unwrap_or_default();
    if refused && raw_stop == "completed" {
        "refusal".clone_into(&mut raw_stop);
    }
    Answer {
        id: draft.id,
        model: draft.model,
        items,
        calls: draft.calls.into_values().collect(),
        words: texts.join("\n").trim().to_owned(),
        stop: super::stop(&raw_stop),
        raw_stop,
        usage: draft.usage,
    }
}

/// A part of a message.
#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[cfg(test)]
mod tests;
