//! Ollama's own chat API: lines of JSON, whole calls, and a context window that the caller sets.
//!
//! Ollama cuts a prompt that does not fit, unless it is told not to, and older servers cut it whatever
//! they are told. So a prompt that is too large is not sent, and an answer whose count of the prompt
//! cannot be that of the prompt fails. Items of an answer are its parts: `thinking`, `text` and one for
//! each call.

use std::num::NonZeroU32;

use kage_core::failure::{Failure, FailureKind};
use kage_core::price::Effort;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer::{Answer, Draft, Item, OpenItem, Progress, Stop, ToolCall};
use super::chat::{call_id, can_be_sent, message, raw, refused, tools};
use super::frames::Framing;
use super::provider::{KeyRule, Provider};
use super::turn::{Told, Turn};
use super::wire::{Refusal, Request, Wire, no_beta};

/// The server of the same machine, unless the settings name another.
pub(super) const OLLAMA: Provider = Provider {
    name: "ollama",
    base_url: "http://127.0.0.1:11434",
    base_url_variable: "OLLAMA_HOST",
    address,
    key_variable: "OLLAMA_API_KEY",
    key: KeyRule::Never,
    program: Some("ollama"),
    model: None,
    free: costs_nothing,
    sellers: None,
    many_makers: true,
    probe: Some("/api/version"),
    wire: &WIRE,
};

static WIRE: Wire = Wire {
    name: "ollama-chat",
    framing: Framing::Lines,
    path: |_model| "/api/chat".to_owned(),
    headers,
    beta: no_beta,
    tools,
    body,
    too_large,
    shows_images: false,
    event,
    whole: |_draft, _body| None,
    ended: |_draft| false,
    finish,
    refusal,
    advice,
    call_id,
    can_be_sent,
    stop,
};

/// The room that a session has unless it is set: enough for some files, and in the memory of usual
/// machines beside a model. The server's own default is a quarter or less.
const ROOM: u32 = 32_768;
/// How long the model stays in memory: tools may run for longer than the server's own five minutes.
const KEEP_ALIVE: &str = "30m";
/// Bytes of a request for each token, at least and at most. Code and prose have 3 to 5; what is outside
/// is not a count of the same text.
const LEAST_BYTES: usize = 4;
const MOST_BYTES: u64 = 16;
/// Bytes of a request for each token above which a prompt is not sent at all: no text of a session has so
/// many, so that what may fit is tried, and the server itself refuses the rest.
const SURE_BYTES: usize = 8;
/// Prompts below are too short to be judged by their size.
const SHORT: u64 = 16_384;

/// The host of Ollama's makers.
const MAKERS: &str = "ollama.com";

/// The port when an address has none.
const PORT: u16 = 11_434;

/// An address as the server's own programs read it: scheme and port may be missing.
fn address(value: &str) -> String {
    let value = value.trim();
    if value.contains("://") {
        return value.to_owned();
    }
    let (host, path) = value.split_once('/').map_or((value, ""), |(host, path)| (host, path));
    let has_port = host.rsplit_once(':').is_some_and(|(before, port)| {
        !before.ends_with(':') && port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty()
    });
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let host = if let Some(port) = host.strip_prefix(':') {
        format!("127.0.0.1:{port}")
    } else if has_port {
        host.to_owned()
    } else {
        format!("{host}:{PORT}")
    };
    format!("http://{host}/{path}").trim_end_matches('/').to_owned()
}

/// What it runs itself costs nothing, and its makers' own servers send a bill.
fn costs_nothing(base_url: &str, model: &str) -> bool {
    let url = reqwest::Url::parse(base_url).ok();
    let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default();
    is_local(model) && host != MAKERS && !host.ends_with(".ollama.com")
}

/// Models whose name says so are run by Ollama's makers, who send a bill.
fn is_local(model: &str) -> bool {
    !model.ends_with("-cloud") && !model.ends_with(":cloud")
}

fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let key = key.map(|key| ("authorization", format!("Bearer {key}")));
    key.into_iter().collect()
}

fn room(request: &Request<'_>) -> u32 {
    request.asked.context.map_or(ROOM, NonZeroU32::get)
}

fn body(request: &Request<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Options {
        num_ctx: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        num_predict: Option<u32>,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        model: &'a str,
        stream: bool,
        keep_alive: &'static str,
        /// An error instead of a prompt that is cut.
        truncate: bool,
        /// The end of an answer instead of a conversation that is cut.
        shift: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        think: Option<&'static str>,
        options: Options,
        tools: &'a RawValue,
        messages: Vec<Item>,
    }
    let asked = request.asked;
    let body = Body {
        model: &asked.model,
        stream: true,
        keep_alive: KEEP_ALIVE,
        truncate: false,
        shift: false,
        think: asked.effort.map(|effort| match effort {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High | Effort::Xhigh | Effort::Max => "high",
        }),
        options: Options {
            num_ctx: room(request),
            num_predict: asked.output_is_known.then_some(asked.max_output.get()),
        },
        tools: request.tools,
        messages: messages(request.system, request.turns),
    };
    serde_json::to_vec(&body).expect("texts and raw JSON always serialise")
}

fn messages(system: &[String], turns: &[Turn]) -> Vec<Item> {
    let mut all = vec![message("system", &system.join("\n\n"))];
    let mut called: &[Item] = &[];
    for turn in turns {
        match turn {
            Turn::User(told) => user(told, called, &mut all),
            Turn::Model(items) => {
                called = items;
                all.extend(assistant(items));
            }
        }
    }
    all
}

#[derive(Deserialize)]
struct Function {
    #[serde(default)]
    name: String,
    arguments: Option<Box<RawValue>>,
}

fn function(item: &Item) -> Option<Function> {
    serde_json::from_str(item.raw("function")?).ok()
}

/// The results of these calls, then what the user says.
fn user(told: &[Told], called: &[Item], all: &mut Vec<Item>) {
    let mut texts = Vec::new();
    for told in told {
        match told {
            Told::ToolResult(answer) => {
                let mut message = message("tool", &answer.said_without_image());
                let call = called.iter().find(|item| call_id(item).as_ref() == Some(&answer.id));
                if let Some(function) = call.and_then(function) {
                    message.set("tool_name", raw(&function.name));
                }
                message.set("tool_call_id", raw(&answer.id));
                all.push(message);
            }
            Told::Text { text } => texts.push(text.as_str()),
        }
    }
    if !texts.is_empty() {
        all.push(message("user", &texts.join("\n\n")));
    }
}

fn assistant(items: &[Item]) -> Option<Item> {
    let of = |field: &str| -> Vec<String> { items.iter().filter_map(|item| item.text(field)).collect() };
    let (texts, thoughts) = (of("text"), of("thinking"));
    let calls: Vec<&Item> = items.iter().filter(|item| call_id(item).is_some()).collect();
    if texts.is_empty() && calls.is_empty() {
        return None;
    }
    let mut message = message("assistant", &texts.join("\n"));
    if !calls.is_empty() {
        message.set("tool_calls", raw(&calls));
        if !thoughts.is_empty() {
            message.set("thinking", raw(&thoughts.concat()));
        }
    }
    Some(message)
}

fn too_large(request: &Request<'_>, body: &[u8]) -> Option<Failure> {
    let (tokens, room) = (body.len() / SURE_BYTES, room(request));
    (tokens >= usize::try_from(room).unwrap_or(usize::MAX)).then(|| {
        let text = format!(
            "the conversation has at least {tokens} tokens, and there is room for {room} ([adapter.ollama] context): \
             set it as large as model and memory allow, or make the task or its context smaller"
        );
        Failure::new(FailureKind::ContextOverflow, text)
    })
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    model: String,
    #[serde(default)]
    created_at: String,
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    done_reason: Option<String>,
    #[serde(default)]
    prompt_eval_count: Option<u64>,
    #[serde(default)]
    eval_count: Option<u64>,
    #[serde(default)]
    error: Value,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: String,
    #[serde(default)]
    thinking: String,
    #[serde(default)]
    tool_calls: Option<Vec<Item>>,
}

/// The numbers of the parts; those of calls begin at [`CALLS`].
const THOUGHT: u64 = 0;
const TEXT: u64 = 1;
const CALLS: u64 = 10;

/// Handles a line.
fn event(draft: &mut Draft, data: &str) -> Progress {
    let line: Line = match serde_json::from_str(data) {
        Ok(line) => line,
        Err(error) => return Progress::broken(&format!("a line is not understood: {error}")),
    };
    if let Some(refusal) = refused(&line.error) {
        let mut failure = refusal.classify(None, None, None);
        if failure.kind == FailureKind::Unknown {
            // In mid-answer it is the program of the model that ended, and the server starts it again.
            failure.kind = FailureKind::Network;
        }
        return Progress::Failed(failure);
    }
    if draft.id.is_empty() {
        // There is no id; the time is one of this answer.
        draft.id = line.created_at;
    }
    if draft.model.is_empty() {
        draft.model = line.model;
    }
    let mut progress = Progress::None;
    if let Some(said) = line.message {
        append(draft, THOUGHT, "thinking", &said.thinking);
        append(draft, TEXT, "text", &said.content);
        for call in said.tool_calls.unwrap_or_default() {
            add_call(draft, call);
        }
        if !said.content.is_empty() {
            progress = Progress::Text(said.content);
        }
    }
    if !line.done {
        return progress;
    }
    // The last line has no text of its own in any version.
    draft.raw_stop = Some(line.done_reason.unwrap_or_else(|| "stop".to_owned()));
    draft.usage = usage(line.prompt_eval_count, line.eval_count);
    if let Some(failure) = cut_prompt(draft, line.prompt_eval_count) {
        return Progress::Failed(failure);
    }
    let room = room_of(draft);
    let used = line.prompt_eval_count.unwrap_or_default() + line.eval_count.unwrap_or_default();
    if draft.raw_stop.as_deref() == Some("length") && used + 1 >= room {
        draft.raw_stop = Some(FULL.to_owned());
    }
    Progress::Complete
}

/// The reason of an answer that ended because there was no more room. Ours: the server says `length`.
const FULL: &str = "context_full";

/// The counts of an answer. What the server leaves out is not known: of a prompt in its cache, older
/// ones counted nothing.
fn usage(prompt: Option<u64>, answer: Option<u64>) -> Usage {
    let mut usage = Usage::UNKNOWN;
    if let Some(prompt) = prompt {
        usage.input = prompt;
        let classes = [
            UsageClass::Input,
            UsageClass::CacheRead,
            UsageClass::CacheWrite5m,
            UsageClass::CacheWrite1h,
        ];
        let without = |unreported: Unreported, class| unreported.without(class);
        usage.unreported = classes.into_iter().fold(usage.unreported, without);
    }
    if let Some(answer) = answer {
        usage.output = answer;
        usage.unreported = usage.unreported.without(UsageClass::Output);
    }
    usage
}

fn room_of(draft: &Draft) -> u64 {
    u64::from(draft.context.map_or(ROOM, NonZeroU32::get))
}

/// The failure of an answer to a part of the prompt.
fn cut_prompt(draft: &Draft, read: Option<u64>) -> Option<Failure> {
    let read = read.filter(|read| *read > 0)?;
    let too_few = draft.sent >= SHORT && draft.sent / MOST_BYTES > read;
    // What follows on a prompt has at least its tokens and some for what was added, unless it had no room.
    let shrunk = draft.before.is_some_and(|before| {
        let added = draft.sent.saturating_sub(before.bytes) / MOST_BYTES;
        read < before.tokens && before.tokens + added >= room_of(draft)
    });
    if !too_few && !shrunk {
        return None;
    }
    let about = draft.sent / (LEAST_BYTES as u64);
    let text = format!(
        "the server cut the prompt: it read {read} tokens of about {about}. Set [adapter.ollama] context as large as \
         model and memory allow, and update the server, so that it refuses instead"
    );
    Some(Failure::new(FailureKind::ContextOverflow, text))
}

fn append(draft: &mut Draft, at: u64, field: &'static str, text: &str) {
    if text.is_empty() {
        return;
    }
    let open = draft.open.entry(at).or_insert_with(|| {
        let mut open = OpenItem::default();
        open.item.set("type", raw(field));
        open
    });
    open.grown.entry(field).or_default().push_str(text);
}

/// Adds a call, which comes whole.
fn add_call(draft: &mut Draft, mut item: Item) {
    let at = draft.calls.last_key_value().map_or(CALLS, |(last, _)| last + 1);
    let id = item.text("id").filter(|id| !id.is_empty()).unwrap_or_else(|| {
        let made = format!("call_{}_{}", draft.id, at - CALLS);
        item.set("id", raw(&made));
        made
    });
    let found = function(&item);
    let name = found.as_ref().map(|found| found.name.clone()).unwrap_or_default();
    let arguments = found.and_then(|found| found.arguments);
    let input = arguments
        .map(|raw| raw.get().to_owned())
        .filter(|raw| raw.starts_with('{'));
    if input.is_none() {
        #[derive(Serialize)]
        struct Empty<'a> {
            name: &'a str,
            arguments: serde_json::Map<String, Value>,
        }
        let arguments = serde_json::Map::new();
        item.set("function", raw(&Empty { name: &name, arguments }));
    }
    draft.calls.insert(at, ToolCall { id, name, input });
    draft.done.insert(at, item);
}

/// The answer, once it is complete.
fn finish(mut draft: Draft) -> Answer {
    for (at, open) in std::mem::take(&mut draft.open) {
        let mut item = open.item;
        for (field, grown) in open.grown {
            item.set(field, raw(&grown));
        }
        draft.done.insert(at, item);
    }
    let raw_stop = draft.raw_stop.unwrap_or_default();
    let items: Vec<Item> = draft.done.into_values().collect();
    let texts: Vec<String> = items.iter().filter_map(|item| item.text("text")).collect();
    Answer {
        id: draft.id,
        model: draft.model,
        items,
        calls: draft.calls.into_values().collect(),
        words: texts.join("\n").trim().to_owned(),
        stop: stop(&raw_stop),
        raw_stop,
        usage: draft.usage,
    }
}

fn refusal(body: &[u8]) -> Option<Refusal> {
    #[derive(Deserialize)]
    struct Body {
        error: Value,
    }
    refused(&serde_json::from_slice::<Body>(body).ok()?.error)
}

/// Says what a person does where Ollama runs.
fn advice(mut failure: Failure, model: &str) -> Failure {
    let said = failure.message.to_ascii_lowercase();
    if said.contains("not found") && said.contains("model") {
        // Another machine may have it.
        failure.kind = FailureKind::AdapterUnavailable;
        failure.message = format!("{}: on that machine, run `ollama pull {model}`", failure.message);
    } else if said.contains("cannot be reached") {
        failure.message = format!(
            "{}: is Ollama running there? Start it with `ollama serve`",
            failure.message
        );
    } else if said.contains("does not support tools") {
        failure.message = format!(
            "{}; choose a model that has `tools` in `ollama show MODEL`",
            failure.message
        );
    }
    failure
}

fn stop(reason: &str) -> Stop {
    match reason {
        "stop" => Stop::Done,
        "length" => Stop::Cut,
        FULL => Stop::NoRoom,
        _ => Stop::Other,
    }
}

#[cfg(test)]
mod tests;
