//! Builds an answer from the chunks of a stream. Pure: the caller reads the bytes.
//!
//! Each part of an answer grows under a number of its own, so that the parts stand in the order in
//! which the next request has them, whatever the server's order was.

use serde::Deserialize;
use serde_json::Value;

use super::super::answer::{Answer, Draft, Item, OpenItem, Progress, Stop, ToolCall};
use super::{raw, refused, stop, usage};

/// The numbers of the parts; those of calls begin at [`CALLS`].
const THOUGHT: u64 = 0;
const DETAILS: u64 = 1;
const TEXT: u64 = 2;
const REFUSAL: u64 = 3;
const CALLS: u64 = 10;
/// The end of a stream.
const DONE: &str = "[DONE]";
/// The reason of an answer that is one refusal.
const REFUSED: &str = "refusal";

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    error: Value,
    /// Where Groq had its counts.
    #[serde(default)]
    x_groq: Value,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    #[serde(default, alias = "message")]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
    /// Where Moonshot has its counts.
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct Delta {
    /// A text, or the parts of one.
    #[serde(default)]
    content: Value,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    reasoning_details: Option<Vec<Value>>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Item>>,
}

/// Handles the data of one event.
pub(super) fn event(draft: &mut Draft, data: &str) -> Progress {
    let data = data.trim();
    if data == DONE {
        return if ended(draft) {
            Progress::Complete
        } else {
            Progress::broken("it ended without a reason")
        };
    }
    if data.is_empty() {
        return Progress::Ping;
    }
    match serde_json::from_str::<Chunk>(data) {
        Ok(chunk) => take(draft, chunk),
        Err(error) => Progress::broken(&format!("an event is not understood: {error}")),
    }
}

/// Reads an answer that came without a stream.
pub(super) fn whole(draft: &mut Draft, body: &[u8]) -> Option<Progress> {
    let chunk: Chunk = serde_json::from_slice(body).ok()?;
    if chunk.choices.as_ref().is_none_or(Vec::is_empty) || !chunk.error.is_null() {
        return None;
    }
    match take(draft, chunk) {
        failed @ Progress::Failed(_) => Some(failed),
        Progress::None | Progress::Ping | Progress::Text(_) | Progress::Complete => {
            draft.raw_stop.get_or_insert_with(|| "stop".to_owned());
            ended(draft).then_some(Progress::Complete)
        }
    }
}

fn take(draft: &mut Draft, chunk: Chunk) -> Progress {
    if let Some(refusal) = refused(&chunk.error) {
        return Progress::Failed(refusal.classify(None, None, None));
    }
    if let (true, Some(id)) = (draft.id.is_empty(), chunk.id) {
        draft.id = id;
    }
    if let (true, Some(model)) = (draft.model.is_empty(), chunk.model) {
        draft.model = model;
    }
    let mut progress = Progress::None;
    let mut counts = vec![chunk.usage, chunk.x_groq.get("usage").cloned().unwrap_or_default()];
    for choice in chunk.choices.unwrap_or_default() {
        if choice.index > 0 {
            continue;
        }
        counts.push(choice.usage);
        if let Some(delta) = choice.delta {
            progress = grow(draft, delta);
        }
        match choice.finish_reason.filter(|reason| !reason.is_empty()) {
            // OpenRouter's word for a provider that broke off.
            Some(reason) if reason == "error" => return Progress::broken("the provider behind the server failed"),
            Some(reason) => draft.raw_stop = Some(reason),
            None => {}
        }
    }
    // Counts are totals; some servers send them with each chunk.
    if let Some(counts) = counts.iter().find(|counts| usage::parse(counts).is_some())
        && let Some(usage) = usage::parse(draft.counted(counts))
    {
        draft.usage = usage;
    }
    progress
}

fn grow(draft: &mut Draft, delta: Delta) -> Progress {
    let thought = match (delta.reasoning_content, delta.reasoning) {
        (Some(text), _) if !text.is_empty() => Some(("reasoning_content", text)),
        (_, Some(text)) if !text.is_empty() => Some(("reasoning", text)),
        _ => None,
    };
    if let Some((field, text)) = thought {
        append(draft, THOUGHT, "reasoning", field, &text);
    }
    let details = delta.reasoning_details.unwrap_or_default();
    if !details.is_empty() {
        let open = opened(draft, DETAILS, "reasoning");
        open.listed.entry("reasoning_details").or_default().extend(details);
    }
    if let Some(text) = delta.refusal.filter(|text| !text.is_empty()) {
        append(draft, REFUSAL, "text", "text", &text);
    }
    for call in delta.tool_calls.unwrap_or_default() {
        grow_call(draft, call);
    }
    let text = match delta.content {
        Value::String(text) => text,
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    };
    if text.is_empty() {
        return Progress::None;
    }
    append(draft, TEXT, "text", "text", &text);
    Progress::Text(text)
}

fn opened<'a>(draft: &'a mut Draft, at: u64, kind: &str) -> &'a mut OpenItem {
    draft.open.entry(at).or_insert_with(|| {
        let mut open = OpenItem::default();
        open.item.set("type", raw(kind));
        open
    })
}

fn append(draft: &mut Draft, at: u64, kind: &str, field: &'static str, text: &str) {
    opened(draft, at, kind).grown.entry(field).or_default().push_str(text);
}

/// Where a part of a call belongs. Servers give an index, or only an id, or the same index to calls
/// with different ids, or nothing at all for a call that is whole.
fn place(draft: &Draft, call: &Item, named: bool) -> u64 {
    let id = call.text("id").filter(|id| !id.is_empty());
    let calls = draft.open.range(CALLS..);
    let last = calls.clone().next_back().map(|(at, _)| *at);
    let next = last.map_or(CALLS, |last| last + 1);
    let index: Option<u64> = call.raw("index").and_then(|index| index.parse().ok());
    let own = |at: u64| draft.open.get(&at).and_then(|open| open.item.text("id"));
    match (index, id) {
        (Some(index), id) => {
            let at = CALLS.saturating_add(index);
            match (own(at), id) {
                (Some(there), Some(id)) if there != id && named => next,
                _ => at,
            }
        }
        (None, Some(id)) => {
            let same = calls.clone().find(|(at, _)| own(**at).as_ref() == Some(&id));
            same.map_or(next, |(at, _)| *at)
        }
        (None, None) if named => next,
        (None, None) => last.unwrap_or(CALLS),
    }
}

fn grow_call(draft: &mut Draft, mut call: Item) {
    #[derive(Default, Deserialize)]
    struct Function {
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        arguments: Value,
    }
    let function = call
        .raw("function")
        .and_then(|function| serde_json::from_str(function).ok());
    let Function { name, arguments } = function.unwrap_or_default();
    let name = name.filter(|name| !name.is_empty());
    let at = place(draft, &call, name.is_some());
    let open = draft.open.entry(at).or_default();
    call.remove("function");
    call.remove("index");
    for field in call.fields() {
        let given = call.raw(&field).filter(|raw| !matches!(*raw, "null" | "\"\""));
        if let (None, Some(given)) = (open.item.raw(&field), given) {
            let given = serde_json::value::RawValue::from_string(given.to_owned());
            open.item.set(&field, given.expect("it was JSON"));
        }
    }
    let grown = open.grown.entry("name").or_default();
    match name {
        // Some repeat the name with each part.
        Some(name) if *grown != name => grown.push_str(&name),
        Some(_) | None => {}
    }
    let more = match arguments {
        Value::String(text) => text,
        Value::Null => String::new(),
        // Not a text, but the object itself.
        other => other.to_string(),
    };
    open.grown.entry("arguments").or_default().push_str(&more);
}

/// Whether the answer is whole; if it is, its parts are complete.
pub(super) fn ended(draft: &mut Draft) -> bool {
    let whole = draft.raw_stop.is_some();
    if whole {
        close_all(draft, true);
    }
    whole
}

fn close_all(draft: &mut Draft, whole: bool) {
    for (at, open) in std::mem::take(&mut draft.open) {
        if at >= CALLS {
            close_call(draft, at, open, whole);
            continue;
        }
        let mut item = open.item;
        for (field, grown) in open.grown {
            item.set(field, raw(&grown));
        }
        for (field, listed) in open.listed {
            item.set(field, raw(&listed));
        }
        draft.done.insert(at, item);
    }
}

fn close_call(draft: &mut Draft, at: u64, mut open: OpenItem, whole: bool) {
    #[derive(serde::Serialize)]
    struct Function<'a> {
        name: &'a str,
        arguments: &'a str,
    }
    let mut grown = |field| open.grown.remove(field).unwrap_or_default();
    let (name, arguments) = (grown("name"), grown("arguments"));
    let cut = !whole || draft.raw_stop.as_deref().is_some_and(|reason| stop(reason).cuts());
    let written = arguments.trim();
    let input = if written.is_empty() && !cut {
        Some("{}".to_owned())
    } else {
        let object = serde_json::from_str::<serde_json::Map<String, Value>>(written).is_ok();
        object.then(|| written.to_owned())
    };
    let mut item = open.item;
    let id = item.text("id").unwrap_or_else(|| {
        let made = format!("call_{}_{}", draft.id, at - CALLS);
        item.set("id", raw(&made));
        made
    });
    if item.raw("type").is_none() {
        item.set("type", raw("function"));
    }
    // Servers read the arguments of earlier calls as JSON.
    let sent = input.as_deref().unwrap_or("{}");
    item.set(
        "function",
        raw(&Function {
            name: &name,
            arguments: sent,
        }),
    );
    let input = input.filter(|_| whole);
    draft.calls.insert(at, ToolCall { id, name, input });
    draft.done.insert(at, item);
}

/// The answer, once it is complete.
pub(super) fn finish(mut draft: Draft) -> Answer {
    close_all(&mut draft, false);
    let refused = draft.done.contains_key(&REFUSAL) && !draft.done.contains_key(&TEXT);
    let raw_stop = draft.raw_stop.unwrap_or_default();
    let raw_stop = if refused { REFUSED.to_owned() } else { raw_stop };
    let items: Vec<Item> = draft.done.into_values().collect();
    let texts: Vec<String> = items.iter().filter_map(|item| item.text("text")).collect();
    Answer {
        id: draft.id,
        model: draft.model,
        items,
        calls: draft.calls.into_values().collect(),
        words: texts.join("\n").trim().to_owned(),
        stop: if refused { Stop::Refused } else { stop(&raw_stop) },
        raw_stop,
        usage: draft.usage,
    }
}

#[cfg(test)]
mod tests;
