//! Chat completions as OpenAI began them and many servers speak them: vLLM, llama.cpp, LM Studio,
//! OpenRouter, DeepSeek, Groq and others.
//!
//! The servers agree on little beyond the shape, so this file sends only what all of them take, and
//! [`stream`] reads whatever any of them is known to write. The items of an answer are its parts:
//! `reasoning`, `text` and one for each call, which keeps all fields that the server gave it.
//! [`usage`] counts tokens.

mod stream;
mod usage;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::answer::{Item, Stop};
use super::frames::Framing;
use super::provider::{KeyRule, Provider, as_given, never_free};
use super::turn::{Told, Turn};
use super::wire::{Refusal, Request, Wire, always_fits, no_advice, no_beta};
use crate::adapters::tools::ToolDefinition;

/// OpenAI's own service, unless the settings name another server.
pub(super) const CHAT: Provider = Provider {
    name: "openai-chat",
    base_url: "https://api.openai.com/v1",
    base_url_variable: "OPENAI_BASE_URL",
    address: as_given,
    key_variable: "OPENAI_API_KEY",
    key: KeyRule::AtDefaultAddress,
    program: None,
    model: None,
    free: never_free,
    sellers: Some(&[
        "api.openai.com",
        "api.deepseek.com",
        "generativelanguage.googleapis.com",
    ]),
    many_makers: true,
    probe: None,
    wire: &WIRE,
};

static WIRE: Wire = Wire {
    name: "chat-completions",
    framing: Framing::Events,
    path: |_model| "/chat/completions".to_owned(),
    headers,
    beta: no_beta,
    tools,
    body,
    too_large: always_fits,
    shows_images: false,
    event: stream::event,
    whole: stream::whole,
    ended: stream::ended,
    finish: stream::finish,
    refusal,
    advice: no_advice,
    call_id,
    can_be_sent,
    stop,
};

/// The fields in which servers tell what the model thought. It is sent back in the field that it came
/// in.
const THOUGHTS: [&str; 3] = ["reasoning_content", "reasoning", "reasoning_details"];

fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let key = key.map(|key| ("authorization", format!("Bearer {key}")));
    key.into_iter().collect()
}

/// The tools as functions. Ollama's own API takes the same form.
pub(super) fn tools(definitions: &[ToolDefinition]) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Tool<'a> {
        r#type: &'a str,
        function: Function<'a>,
    }
    #[derive(Serialize)]
    struct Function<'a> {
        name: &'a str,
        description: &'a str,
        parameters: &'a Value,
    }
    let tools: Vec<_> = definitions
        .iter()
        .map(|definition| Tool {
            r#type: "function",
            function: Function {
                name: definition.name,
                description: definition.description,
                parameters: &definition.input,
            },
        })
        .collect();
    raw(&tools)
}

/// JSON of something that always has one.
pub(super) fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    to_raw_value(value).expect("texts and raw JSON always serialise")
}

/// Whether a model of OpenAI refuses `max_tokens`, which other servers know only. Thinking counts
/// within the newer name.
fn counts_completion(model: &str) -> bool {
    let name = model.rsplit_once('/').map_or(model, |(_, name)| name);
    let after = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.chars().next());
    after("o").is_some_and(|next| next.is_ascii_digit())
        || after("gpt-").is_some_and(|next| next.is_ascii_digit() && next >= '5')
}

fn body(request: &Request<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct StreamOptions {
        include_usage: bool,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        model: &'a str,
        stream: bool,
        stream_options: StreamOptions,
        #[serde(skip_serializing_if = "Option::is_none")]
        max_tokens: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        max_completion_tokens: Option<u32>,
        /// Requests with the same key go to the same cache. Only OpenAI is known to take it.
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_cache_key: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning_effort: Option<&'static str>,
        tools: &'a RawValue,
        messages: Vec<Item>,
    }
    let asked = request.asked;
    // A limit of our own making may be more than the server has room for.
    let limit = asked.output_is_known.then_some(asked.max_output.get());
    let completion = counts_completion(&asked.model);
    let body = Body {
        model: &asked.model,
        stream: true,
        stream_options: StreamOptions { include_usage: true },
        max_tokens: limit.filter(|_| !completion),
        max_completion_tokens: limit.filter(|_| completion),
        prompt_cache_key: completion.then_some(request.task),
        reasoning_effort: asked.effort.map(|effort| effort.as_str()),
        tools: request.tools,
        messages: messages(request.system, request.turns),
    };
    serde_json::to_vec(&body).expect("texts and raw JSON always serialise")
}

/// A message with a text.
pub(super) fn message(role: &str, content: &str) -> Item {
    let mut message = Item::default();
    message.set("role", raw(role));
    message.set("content", raw(content));
    message
}

fn messages(system: &[String], turns: &[Turn]) -> Vec<Item> {
    // Templates of many models know one message of the system only.
    let mut all = vec![message("system", &system.join("\n\n"))];
    for turn in turns {
        match turn {
            Turn::User(told) => user(told, &mut all),
            Turn::Model(items) => all.extend(assistant(items)),
        }
    }
    all
}

/// The results of calls right behind the calls, then what the user says, in one message.
fn user(told: &[Told], all: &mut Vec<Item>) {
    let mut texts = Vec::new();
    for told in told {
        match told {
            Told::ToolResult(answer) => {
                let mut message = message("tool", &answer.said_without_image());
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

/// The message that these items were; `None` when they say nothing.
fn assistant(items: &[Item]) -> Option<Item> {
    let texts: Vec<String> = items.iter().filter_map(|item| item.text("text")).collect();
    let calls: Vec<&Item> = items.iter().filter(|item| call_id(item).is_some()).collect();
    if texts.is_empty() && calls.is_empty() {
        return None;
    }
    let mut message = message("assistant", &texts.join("\n"));
    if calls.is_empty() {
        // What led to an answer is not wanted back, and some refuse it.
        return Some(message);
    }
    message.set("tool_calls", raw(&calls));
    // Models that think between calls go on with their thoughts, and DeepSeek refuses calls without.
    for field in THOUGHTS {
        let thought = items.iter().find_map(|item| item.raw(field));
        if let Some(thought) = thought.and_then(|thought| RawValue::from_string(thought.to_owned()).ok()) {
            message.set(field, thought);
        }
    }
    Some(message)
}

/// An error as servers write it: an object, with a code that may be a number, or a text alone.
#[derive(Debug, Default, Deserialize)]
struct ApiError {
    #[serde(default)]
    message: Value,
    #[serde(default, rename = "type")]
    kind: Value,
    #[serde(default)]
    code: Value,
}

/// The refusal in an `error` field.
pub(super) fn refused(error: &Value) -> Option<Refusal> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match error {
        Value::String(message) => Some(Refusal {
            message: message.clone(),
            ..Refusal::default()
        }),
        Value::Object(_) => {
            let error = ApiError::deserialize(error).ok()?;
            Some(Refusal {
                kind: text(&error.kind).unwrap_or_default(),
                code: text(&error.code),
                // Some have numbers of their own.
                status: error
                    .code
                    .as_u64()
                    .and_then(|code| u16::try_from(code).ok())
                    .filter(|code| (400..600).contains(code)),
                message: text(&error.message).unwrap_or_else(|| error.message.to_string()),
                retry_after: None,
            })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

fn refusal(body: &[u8]) -> Option<Refusal> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        error: Value,
        /// Servers that are made with FastAPI.
        #[serde(default)]
        detail: Value,
        /// Errors without an object around them, of older servers of vLLM.
        #[serde(default)]
        object: Option<String>,
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    // Google's servers write a list of one.
    let value = value.get(0).unwrap_or(&value);
    let body = Body::deserialize(value).ok()?;
    if body.object.as_deref() == Some("error") {
        return refused(value);
    }
    refused(&body.error).or_else(|| match &body.detail {
        Value::Null => None,
        Value::String(text) => refused(&Value::from(text.as_str())),
        other => refused(&Value::from(other.to_string())),
    })
}

pub(super) fn call_id(item: &Item) -> Option<String> {
    item.raw("function")?;
    item.text("id")
}

pub(super) fn can_be_sent(item: &Item) -> bool {
    item.text("text").is_none_or(|text| !text.trim().is_empty())
}

fn stop(reason: &str) -> Stop {
    match reason {
        "stop" | "end_turn" | "eos" => Stop::Done,
        "tool_calls" | "function_call" | "tool_use" => Stop::Tools,
        "length" | "max_tokens" => Stop::Cut,
        "content_filter" | "refusal" => Stop::Refused,
        "model_length" | "model_context_window_exceeded" => Stop::NoRoom,
        _ => Stop::Other,
    }
}

#[cfg(test)]
mod tests;
