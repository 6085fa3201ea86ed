//! Builds an answer from the chunks of a stream, each of which is an answer itself. Pure: the caller
//! reads the bytes.
//!
//! Parts are kept as they came, because a signature belongs to its part. Only pieces of plain text are
//! joined.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::super::answer::{Answer, Draft, Item, Progress, ToolCall};
use super::super::wire::Refusal;
use super::{ApiError, BLOCKED, OWN_ID, function_call, is_list, usage};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk {
    #[serde(default)]
    candidates: Vec<Candidate>,
    #[serde(default)]
    prompt_feedback: Option<Feedback>,
    #[serde(default)]
    usage_metadata: Value,
    #[serde(default)]
    model_version: Option<String>,
    #[serde(default)]
    response_id: Option<String>,
    #[serde(default)]
    error: Option<ApiError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    parts: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback {
    #[serde(default)]
    block_reason: Option<String>,
}

/// Handles the data of one event.
pub(super) fn event(draft: &mut Draft, data: &str) -> Progress {
    match serde_json::from_str::<Chunk>(data) {
        Ok(_) if is_list(data.as_bytes()) => Progress::broken("an event is a list"),
        Ok(chunk) => take(draft, chunk),
        Err(error) => Progress::broken(&format!("an event is not understood: {error}")),
    }
}

/// Reads an answer that came without a stream: one, or a list of what a stream has.
pub(super) fn whole(draft: &mut Draft, body: &[u8]) -> Option<Progress> {
    let chunks = if is_list(body) {
        serde_json::from_slice::<Vec<Chunk>>(body).ok()?
    } else {
        vec![serde_json::from_slice(body).ok()?]
    };
    let is_answer = |chunk: &Chunk| !chunk.candidates.is_empty() || chunk.prompt_feedback.is_some();
    if !chunks.iter().any(is_answer) {
        return None;
    }
    for chunk in chunks {
        if let failed @ Progress::Failed(_) = take(draft, chunk) {
            return Some(failed);
        }
    }
    draft.raw_stop.is_some().then_some(Progress::Complete)
}

fn take(draft: &mut Draft, chunk: Chunk) -> Progress {
    if let Some(error) = chunk.error {
        return Progress::Failed(Refusal::from(error).classify(None, None, None));
    }
    if let Some(id) = chunk.response_id {
        draft.id = id;
    }
    if let Some(model) = chunk.model_version {
        draft.model = model;
    }
    let mut text = String::new();
    // One is asked for.
    if let Some(candidate) = chunk.candidates.into_iter().next() {
        for part in candidate.content.map(|content| content.parts).unwrap_or_default() {
            push(draft, part, &mut text);
        }
        if let Some(reason) = candidate.finish_reason {
            draft.raw_stop = Some(reason);
        }
    }
    if let Some(reason) = chunk.prompt_feedback.and_then(|feedback| feedback.block_reason) {
        draft.raw_stop = Some(format!("{BLOCKED}{reason}"));
    }
    let ended = draft.raw_stop.is_some();
    if let Some(usage) = usage::parse(draft.counted(&chunk.usage_metadata), ended) {
        draft.usage = usage;
    }
    Progress::Text(text)
}

/// Keeps a part. `text` gets what the model said in it.
fn push(draft: &mut Draft, mut part: Item, text: &mut String) {
    let last = draft.done.last_key_value().map(|(index, _)| *index);
    let index = last.map_or(0, |last| last + 1);
    if let Some(call) = function_call(&part) {
        let id = call.id.unwrap_or_else(|| {
            // Within one answer, of which the next content of the user has the results.
            let id = format!("{}#{index}", draft.id);
            part.set(OWN_ID, raw(&id));
            id
        });
        let args = call.args.as_deref().map_or("{}", RawValue::get);
        let input = Some(args).filter(|args| args.starts_with('{')).map(str::to_owned);
        let name = call.name;
        draft.calls.insert(index, ToolCall { id, name, input });
        draft.done.insert(index, part);
        return;
    }
    let said = plain_text(&part);
    if let Some(said) = part.text("text").filter(|_| part.raw("thought") != Some("true")) {
        text.push_str(&said);
    }
    if let (Some(said), Some(before)) = (said, last.and_then(|last| draft.done.get_mut(&last)))
        && let Some(begun) = plain_text(before)
    {
        before.set("text", raw(&(begun + &said)));
        return;
    }
    draft.done.insert(index, part);
}

/// The text of a part that is nothing else.
fn plain_text(part: &Item) -> Option<String> {
    part.has_only("text").then(|| part.text("text"))?
}

fn raw(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("a text always serialises")
}

/// The answer, once it is complete.
pub(super) fn finish(draft: Draft) -> Answer {
    let items: Vec<Item> = draft.done.into_values().collect();
    let is_thought = |item: &&Item| item.raw("thought") == Some("true");
    let said = items.iter().filter(|item| !is_thought(item));
    let texts: Vec<String> = said.filter_map(|item| item.text("text")).collect();
    let raw_stop = draft.raw_stop.unwrap_or_default();
    Answer {
        id: draft.id,
        model: draft.model,
        items,
        calls: draft.calls.into_values().collect(),
        words: texts.concat().trim().to_owned(),
        stop: super::stop(&raw_stop),
        raw_stop,
        usage: draft.usage,
    }
}

#[cfg(test)]
mod tests;
