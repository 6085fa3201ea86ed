//! The Messages API: tools, system and messages in that order, with cache breakpoints, and an
//! answer in blocks.
//!
//! The part that all sessions of a task share comes first, with the same bytes in each: tool
//! definitions, the system text, the base. A breakpoint ends it. The last two user messages have
//! breakpoints too, so that each call reads the cache entry that the previous one wrote, however many blocks came
//! since: the provider looks back at most 20 from a breakpoint, and one is where the entry ends. A breakpoint below
//! the model's minimum is ignored by the provider, and costs nothing. [`stream`]
//! reads answers, [`usage`] counts tokens.

mod stream;
pub(in crate::adapters) mod usage;

use kage_core::price::Thinking;
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::answer::{Item, Stop};
use super::asked::Asked;
use super::frames::Framing;
use super::pauses::CacheLife;
use super::provider::{KeyRule, Provider, as_given, never_free};
use super::turn::{Told, Turn};
use super::wire::{Refusal, Request, Wire, always_fits, no_advice};
use crate::adapters::tools::ToolDefinition;

/// The provider's own service.
pub(super) const CLAUDE: Provider = Provider {
    name: "claude-api",
    base_url: "https://api.anthropic.com",
    base_url_variable: "ANTHROPIC_BASE_URL",
    address: as_given,
    key_variable: "ANTHROPIC_API_KEY",
    key: KeyRule::AlwaysTheUsual,
    program: None,
    model: Some("claude-sonnet-5-5"),
    free: never_free,
    sellers: None,
    many_makers: false,
    probe: None,
    wire: &WIRE,
};

static WIRE: Wire = Wire {
    name: "messages",
    framing: Framing::Events,
    path: |_model| "/v1/messages".to_owned(),
    headers,
    beta,
    tools,
    body,
    too_large: always_fits,
    shows_images: true,
    event: stream::event,
    whole: stream::whole,
    // Its streams say when they are over.
    ended: |_draft| false,
    finish: stream::finish,
    refusal,
    advice: no_advice,
    call_id,
    can_be_sent,
    stop,
};

/// How many messages of the user end with a breakpoint.
const RECENT: usize = 2;

fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let mut headers = vec![("anthropic-version", "2023-06-01".to_owned())];
    headers.extend(key.map(|key| ("x-api-key", key.to_owned())));
    headers
}

fn beta(asked: &Asked) -> Option<(&'static str, &'static str)> {
    asked.compact_at.map(|_| ("anthropic-beta", "compact-2026-01-12"))
}

fn tools(definitions: &[ToolDefinition]) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Tool<'a> {
        name: &'a str,
        description: &'a str,
        input_schema: &'a Value,
    }
    let tool = |definition: &'_ ToolDefinition| {
        to_raw_value(&Tool {
            name: definition.name,
            description: definition.description,
            input_schema: &definition.input,
        })
    };
    let tools: Result<Vec<_>, _> = definitions.iter().map(tool).collect();
    tools
        .and_then(|tools| to_raw_value(&tools))
        .expect("JSON values always serialise")
}

/// A part of a user message, and whether a cached prefix ends with it.
#[derive(Serialize)]
struct Part<T> {
    #[serde(flatten)]
    said: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<Ephemeral>,
}

/// The end of a cached prefix.
#[derive(Clone, Copy, Serialize)]
#[serde(tag = "type", rename = "ephemeral")]
struct Ephemeral {
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<&'static str>,
}

impl From<CacheLife> for Ephemeral {
    fn from(life: CacheLife) -> Self {
        Self {
            ttl: match life {
                // What they have without a word.
                CacheLife::FiveMinutes => None,
                CacheLife::OneHour => Some("1h"),
            },
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "text")]
struct Text<'a> {
    text: &'a str,
}

impl<T> Part<T> {
    fn new(said: T, ends_prefix: Option<Ephemeral>) -> Self {
        Self {
            said,
            cache_control: ends_prefix,
        }
    }
}

/// Content of the user, in the provider's form.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content<'a> {
    Text {
        text: &'a str,
    },
    ToolResult {
        tool_use_id: &'a str,
        content: Shown<'a>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
}

/// What a tool gave: a text, or a text and an image.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Text(&'a str),
    Blocks([Block<'a>; 2]),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Block<'a> {
    Text { text: &'a str },
    Image { source: Source<'a> },
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "base64")]
struct Source<'a> {
    media_type: &'a str,
    data: &'a str,
}

impl<'a> Content<'a> {
    fn new(told: &'a Told) -> Self {
        match told {
            Told::Text { text } => Self::Text { text },
            Told::ToolResult(answer) => Self::ToolResult {
                tool_use_id: &answer.id,
                content: match &answer.image {
                    None => Shown::Text(&answer.text),
                    Some(image) => Shown::Blocks([
                        Block::Text { text: &answer.text },
                        Block::Image {
                            source: Source {
                                media_type: &image.media_type,
                                data: &image.data,
                            },
                        },
                    ]),
                },
                is_error: answer.is_error,
            },
        }
    }
}

/// The model decides itself how much it thinks. Tokens of thoughts count as output.
#[derive(Serialize)]
#[serde(tag = "type", rename = "adaptive")]
struct Adaptive {}

/// The provider makes the conversation shorter when its prompt has as many tokens: it answers with a summary first,
/// and leaves out what is before that in later requests.
#[derive(Serialize)]
struct ContextManagement {
    edits: [Compact; 1],
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "compact_20260112")]
struct Compact {
    trigger: InputTokens,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "input_tokens")]
struct InputTokens {
    value: u64,
}

#[derive(Serialize)]
struct OutputConfig {
    effort: &'static str,
}

fn body(request: &Request<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        model: &'a str,
        max_tokens: u32,
        stream: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        thinking: Option<Adaptive>,
        #[serde(skip_serializing_if = "Option::is_none")]
        output_config: Option<OutputConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        context_management: Option<ContextManagement>,
        tools: &'a RawValue,
        system: Vec<Part<Text<'a>>>,
        messages: Messages<'a>,
    }
    let last = request.system.len().saturating_sub(1);
    let system = request.system.iter().enumerate();
    let mark = Ephemeral::from(request.cache);
    let system = system.map(|(at, text)| Part::new(Text { text }, (at == last).then_some(mark)));
    let body = Body {
        model: &request.asked.model,
        max_tokens: request.asked.max_output.get(),
        stream: true,
        thinking: request.asked.thinking.map(|Thinking::Adaptive| Adaptive {}),
        output_config: request.asked.effort.map(|effort| OutputConfig {
            effort: effort.as_str(),
        }),
        context_management: request.asked.compact_at.map(|value| ContextManagement {
            edits: [Compact {
                trigger: InputTokens { value },
            }],
        }),
        tools: request.tools,
        system: system.collect(),
        messages: Messages(request.turns, mark),
    };
    serde_json::to_vec(&body).expect("texts and raw JSON always serialise")
}

struct Messages<'a>(&'a [Turn], Ephemeral);

impl Serialize for Messages<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct One<C> {
            role: &'static str,
            content: C,
        }
        let users = self.0.iter().filter(|turn| matches!(turn, Turn::User(_))).count();
        let mut user = 0;
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for turn in self.0 {
            match turn {
                Turn::User(told) => {
                    user += 1;
                    let recent = user + RECENT > users;
                    let last = told.len() - 1;
                    let parts = told.iter().enumerate();
                    let mark = |at| (recent && at == last).then_some(self.1);
                    let parts = parts.map(|(at, told)| Part::new(Content::new(told), mark(at)));
                    list.serialize_element(&One {
                        role: "user",
                        content: parts.collect::<Vec<_>>(),
                    })?;
                }
                Turn::Model(items) => list.serialize_element(&One {
                    role: "assistant",
                    content: items,
                })?,
            }
        }
        list.end()
    }
}

/// The provider's error object, in a stream or as a whole answer.
#[derive(Debug, Default, Deserialize)]
struct ApiError {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Option<Value>,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let code = error.details.as_ref().and_then(|details| details.get("error_code"));
        Self {
            code: code.and_then(Value::as_str).map(str::to_owned),
            kind: error.kind,
            status: None,
            message: error.message,
            retry_after: None,
        }
    }
}

fn refusal(body: &[u8]) -> Option<Refusal> {
    #[derive(Deserialize)]
    struct Body {
        error: ApiError,
    }
    Some(serde_json::from_slice::<Body>(body).ok()?.error.into())
}

fn call_id(item: &Item) -> Option<String> {
    (item.text("type").as_deref() == Some("tool_use")).then(|| item.text("id"))?
}

/// Text of nothing but white space is refused, thinking that was cut before it was signed, and a summary without a
/// text. (One that is `null` failed; the provider takes it back.)
fn can_be_sent(item: &Item) -> bool {
    let given = |field| item.text(field).is_some_and(|text| !text.trim().is_empty());
    match item.text("type").as_deref() {
        Some("text") => given("text"),
        Some("thinking") => given("signature"),
        Some("compaction") => item.raw("content") == Some("null") || given("content"),
        Some(_) | None => true,
    }
}

fn stop(reason: &str) -> Stop {
    match reason {
        "end_turn" | "stop_sequence" => Stop::Done,
        "tool_use" => Stop::Tools,
        "max_tokens" => Stop::Cut,
        "pause_turn" => Stop::Paused,
        "refusal" => Stop::Refused,
        "model_context_window_exceeded" => Stop::NoRoom,
        _ => Stop::Other,
    }
}

#[cfg(test)]
mod tests;
