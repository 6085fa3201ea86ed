//! Gemini's `generateContent`: contents of parts, of which the model's own ones are sent back as they
//! came, with the signatures of thoughts on them.
//!
//! Prefixes are cached without being asked for: instruction and tools come first, with the same bytes
//! in every session of a task. [`stream`] reads answers, [`usage`] counts tokens.

mod stream;
mod usage;

use std::borrow::Cow;
use std::time::Duration;

use kage_core::price::Effort;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::answer::{Item, Stop};
use super::frames::Framing;
use super::provider::{KeyRule, Provider, as_given, never_free};
use super::turn::{Told, ToolAnswer, Turn};
use super::wire::{Refusal, Request, Wire, always_fits, no_advice, no_beta};
use crate::adapters::tools::ToolDefinition;
use crate::adapters::tools::image::Image;

/// The provider's own service.
pub(super) const GEMINI: Provider = Provider {
    name: "gemini-api",
    base_url: "https://generativelanguage.googleapis.com",
    base_url_variable: "GOOGLE_GEMINI_BASE_URL",
    address: as_given,
    key_variable: "GEMINI_API_KEY",
    key: KeyRule::Always,
    program: None,
    model: Some("gemini-4-argon"),
    free: never_free,
    sellers: Some(&["generativelanguage.googleapis.com"]),
    many_makers: false,
    probe: None,
    wire: &WIRE,
};

static WIRE: Wire = Wire {
    name: "gemini",
    framing: Framing::Events,
    path,
    headers,
    beta: no_beta,
    tools,
    body,
    too_large: always_fits,
    shows_images: true,
    event: stream::event,
    whole: stream::whole,
    // The last chunk has the reason; nothing follows it.
    ended: |draft| draft.raw_stop.is_some(),
    finish: stream::finish,
    refusal,
    advice: no_advice,
    call_id,
    can_be_sent,
    stop,
};

/// The field of a function call with the id that it has here, where the provider gave none. It is not
/// sent.
const OWN_ID: &str = "kageCallId";

fn path(model: &str) -> String {
    let mut name = String::new();
    for byte in model.strip_prefix("models/").unwrap_or(model).bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("/v1beta/models/{name}:streamGenerateContent?alt=sse")
}

fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    key.map(|key| ("x-goog-api-key", key.to_owned())).into_iter().collect()
}

fn tools(definitions: &[ToolDefinition]) -> Box<RawValue> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Function<'a> {
        name: &'a str,
        description: &'a str,
        parameters_json_schema: &'a serde_json::Value,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Tools<'a> {
        function_declarations: Vec<Function<'a>>,
    }
    let functions = definitions.iter().map(|definition| Function {
        name: definition.name,
        description: definition.description,
        parameters_json_schema: &definition.input,
    });
    let tools = [Tools {
        function_declarations: functions.collect(),
    }];
    to_raw_value(&tools).expect("JSON values always serialise")
}

#[derive(Serialize)]
struct Text<'a> {
    text: &'a str,
}

#[derive(Serialize)]
struct Instruction<'a> {
    parts: Vec<Text<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Generation {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_config: Option<Thoughts>,
}

/// The most tokens of an answer of any model there is. Price tables know larger numbers, which are refused.
const MAX_OUTPUT: u32 = 65_536;

/// How much the model thinks: a level, or tokens for models that know no levels.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Thoughts {
    ThinkingLevel(&'static str),
    ThinkingBudget(u32),
}

fn thoughts(model: &str, effort: Effort) -> Thoughts {
    if !model.starts_with("gemini-2") {
        return Thoughts::ThinkingLevel(match effort {
            Effort::Low => "low",
            Effort::Medium => "medium",
            // The highest level that there is.
            Effort::High | Effort::Xhigh | Effort::Max => "high",
        });
    }
    // What the provider itself makes of these levels for such models.
    Thoughts::ThinkingBudget(match effort {
        Effort::Low => 1024,
        Effort::Medium => 8192,
        Effort::High | Effort::Xhigh | Effort::Max => 24_576,
    })
}

fn body(request: &Request<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        system_instruction: Instruction<'a>,
        tools: &'a RawValue,
        generation_config: Generation,
        contents: Vec<Content<'a>>,
    }
    let asked = request.asked;
    let body = Body {
        system_instruction: Instruction {
            parts: request.system.iter().map(|text| Text { text }).collect(),
        },
        tools: request.tools,
        generation_config: Generation {
            max_output_tokens: asked.output_is_known.then_some(asked.max_output.get().min(MAX_OUTPUT)),
            thinking_config: asked.effort.map(|effort| thoughts(&asked.model, effort)),
        },
        contents: contents(request.turns),
    };
    serde_json::to_vec(&body).expect("texts and raw JSON always serialise")
}

#[derive(Serialize)]
struct Content<'a> {
    role: &'static str,
    parts: Vec<Part<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    /// The model's own, as it came.
    Item(Item),
    Text(Text<'a>),
    Response {
        #[serde(rename = "functionResponse")]
        response: FunctionResponse<'a>,
    },
    Image {
        #[serde(rename = "inlineData")]
        image: Blob<'a>,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Blob<'a> {
    mime_type: &'a str,
    data: &'a str,
}

#[derive(Serialize)]
struct FunctionResponse<'a> {
    /// Only where the call had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    name: String,
    response: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome<'a> {
    Output(Cow<'a, str>),
    Error(Cow<'a, str>),
}

fn contents(turns: &[Turn]) -> Vec<Content<'_>> {
    let mut contents = Vec::new();
    let mut before: &[Item] = &[];
    for turn in turns {
        match turn {
            Turn::User(told) => {
                let parts = told.iter().map(|told| match told {
                    Told::Text { text } => Part::Text(Text { text }),
                    Told::ToolResult(answer) => Part::Response {
                        response: response(answer, before),
                    },
                });
                // Images follow the answers: not every model takes them inside of one.
                let images = told.iter().filter_map(|told| match told {
                    Told::Text { .. } => None,
                    Told::ToolResult(answer) => answer.image.as_ref().filter(|image| is_shown(image)),
                });
                let images = images.map(|image| Part::Image {
                    image: Blob {
                        mime_type: &image.media_type,
                        data: &image.data,
                    },
                });
                contents.push(Content {
                    role: "user",
                    parts: parts.chain(images).collect(),
                });
            }
            Turn::Model(items) => {
                before = items;
                let parts = items.iter().map(|item| {
                    let mut item = item.clone();
                    item.remove(OWN_ID);
                    Part::Item(item)
                });
                contents.push(Content {
                    role: "model",
                    parts: parts.collect(),
                });
            }
        }
    }
    contents
}

/// Whether the provider takes an image of this kind.
fn is_shown(image: &Image) -> bool {
    image.media_type != "image/gif"
}

/// The answer to a call of the content before it.
fn response<'a>(answer: &'a ToolAnswer, before: &[Item]) -> FunctionResponse<'a> {
    let called = before.iter().find(|item| call_id(item).as_ref() == Some(&answer.id));
    let call = called.and_then(function_call);
    let hidden = answer.image.as_ref().is_some_and(|image| !is_shown(image));
    let text = if hidden {
        Cow::Owned(format!("{} (this model is not shown images of this kind)", answer.text))
    } else {
        Cow::Borrowed(answer.text.as_str())
    };
    FunctionResponse {
        id: call
            .as_ref()
            .and_then(|call| call.id.as_ref())
            .map(|_| answer.id.as_str()),
        name: call.map(|call| call.name).unwrap_or_default(),
        response: if answer.is_error {
            Outcome::Error(text)
        } else {
            Outcome::Output(text)
        },
    }
}

/// A call as the provider writes it.
#[derive(Debug, Deserialize)]
struct FunctionCall {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Option<Box<RawValue>>,
}

fn function_call(item: &Item) -> Option<FunctionCall> {
    let mut call: FunctionCall = serde_json::from_str(item.raw("functionCall")?).ok()?;
    call.id = call.id.filter(|id| !id.is_empty());
    Some(call)
}

fn call_id(item: &Item) -> Option<String> {
    function_call(item)?.id.or_else(|| item.text(OWN_ID))
}

/// The provider's error object, in a stream or as a whole answer.
#[derive(Debug, Default, Deserialize)]
struct ApiError {
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    message: String,
    /// Its class, such as `RESOURCE_EXHAUSTED`.
    #[serde(default)]
    status: String,
    #[serde(default)]
    details: Vec<Detail>,
}

/// The fields of the kinds of details that say something here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Detail {
    /// Of an `ErrorInfo`.
    reason: Option<String>,
    /// Of a `RetryInfo`: seconds with an `s`.
    retry_delay: Option<String>,
    /// Of a `QuotaFailure`.
    violations: Vec<Violation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Violation {
    quota_id: String,
}

/// The code of a limit that passes: whatever its words say of quotas, the account is not used up.
const PASSES: &str = "rate_limit_exceeded";
const SPENT: &str = "insufficient_quota";

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let details = error.details;
        // It is sent as an invalid argument.
        let refused_key = details
            .iter()
            .any(|detail| detail.reason.as_deref() == Some("API_KEY_INVALID"));
        let quotas: Vec<&str> = details
            .iter()
            .flat_map(|detail| &detail.violations)
            .map(|violation| violation.quota_id.as_str())
            .collect();
        let lasts = quotas.iter().any(|quota| quota.contains("PerDay"));
        let wait = details
            .iter()
            .find_map(|detail| seconds(detail.retry_delay.as_deref()?));
        Self {
            kind: if refused_key {
                "authentication_error".to_owned()
            } else {
                error.status
            },
            code: match (lasts, quotas.is_empty() && wait.is_none()) {
                (true, _) => Some(SPENT.to_owned()),
                (false, false) => Some(PASSES.to_owned()),
                (false, true) => None,
            },
            status: error.code,
            message: error.message,
            // The wait of a limit by the day is that of another limit.
            retry_after: wait.filter(|_| !lasts),
        }
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn refusal(body: &[u8]) -> Option<Refusal> {
    Some(api_error(body)?.into())
}

/// An error, alone or, when no stream had begun, in a list.
fn api_error(body: &[u8]) -> Option<ApiError> {
    #[derive(Deserialize)]
    struct Body {
        error: ApiError,
    }
    if is_list(body) {
        let list: Vec<Body> = serde_json::from_slice(body).ok()?;
        return Some(list.into_iter().next()?.error);
    }
    Some(serde_json::from_slice::<Body>(body).ok()?.error)
}

/// Asked first: a list may be read as an object whose fields have no names.
fn is_list(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"[")
}

/// Empty text is refused unless it has a signature, and a thought without one says nothing.
fn can_be_sent(item: &Item) -> bool {
    if item.raw("thoughtSignature").is_some() {
        return true;
    }
    let is_blank = item.text("text").is_some_and(|text| text.trim().is_empty());
    item.raw("thought") != Some("true") && !is_blank
}

/// What a stop reason of a prompt that is not answered begins with; its own word follows.
const BLOCKED: &str = "blocked: ";

fn stop(reason: &str) -> Stop {
    match reason {
        "STOP" => Stop::Done,
        "MAX_TOKENS" => Stop::Cut,
        "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "MALFORMED_RESPONSE" => Stop::BrokenCall,
        "SAFETY" | "RECITATION" | "LANGUAGE" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" => Stop::Refused,
        blocked if blocked.starts_with(BLOCKED) => Stop::Refused,
        _ => Stop::Other,
    }
}

#[cfg(test)]
mod tests;
