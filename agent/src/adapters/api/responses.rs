//! OpenAI's Responses API: a list of items, of which the model's own ones are sent back as they came.
//!
//! Nothing is stored at the provider. Thoughts come sealed and go back byte for byte, before the call
//! that they led to. Prefixes are cached without being asked for: tools and instructions come first,
//! with the same bytes in every session of a task, and the task is the key by which the provider
//! routes to its caches. [`stream`] reads answers, [`usage`] counts tokens.

mod stream;
pub(super) mod usage;

use std::borrow::Cow;

use kage_core::price::Effort;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::answer::{Item, Stop};
use super::frames::Framing;
use super::provider::{KeyRule, Provider, as_given, never_free};
use super::turn::{Told, ToolAnswer, Turn};
use super::wire::{Refusal, Request, Wire, always_fits, no_advice, no_beta};
use crate::adapters::tools::ToolDefinition;

/// The provider's own service.
pub(super) const OPENAI: Provider = Provider {
    name: "openai",
    base_url: "https://api.openai.com/v1",
    base_url_variable: "OPENAI_BASE_URL",
    address: as_given,
    key_variable: "OPENAI_API_KEY",
    key: KeyRule::Always,
    program: None,
    model: Some("gpt-6.1-sol"),
    free: never_free,
    sellers: Some(&["api.openai.com"]),
    many_makers: false,
    probe: None,
    wire: &WIRE,
};

static WIRE: Wire = Wire {
    name: "responses",
    framing: Framing::Events,
    path: |_model| "/responses".to_owned(),
    headers,
    beta: no_beta,
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

fn headers(key: Option<&str>) -> Vec<(&'static str, String)> {
    let bearer = key.map(|key| ("authorization", format!("Bearer {key}")));
    bearer.into_iter().collect()
}

fn tools(definitions: &[ToolDefinition]) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Tool<'a> {
        r#type: &'static str,
        name: &'a str,
        description: &'a str,
        parameters: &'a serde_json::Value,
        /// Strict schemas have no optional fields, and these have.
        strict: bool,
    }
    let tools: Vec<Tool<'_>> = definitions
        .iter()
        .map(|definition| Tool {
            r#type: "function",
            name: definition.name,
            description: definition.description,
            parameters: &definition.input,
            strict: false,
        })
        .collect();
    to_raw_value(&tools).expect("JSON values always serialise")
}

/// Models that do not think: they refuse to be asked for their thoughts.
const THOUGHTLESS: [&str; 3] = ["gpt-3", "gpt-4", "chatgpt-4"];

#[derive(Serialize)]
struct Reasoning {
    effort: &'static str,
}

fn body(request: &Request<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        model: &'a str,
        store: bool,
        stream: bool,
        include: &'static [&'static str],
        prompt_cache_key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        max_output_tokens: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning: Option<Reasoning>,
        tools: &'a RawValue,
        instructions: String,
        input: Vec<Input<'a>>,
    }
    let asked = request.asked;
    let thinks = !THOUGHTLESS.iter().any(|prefix| asked.model.starts_with(prefix));
    let body = Body {
        model: &asked.model,
        store: false,
        stream: true,
        include: if thinks { &["reasoning.encrypted_content"] } else { &[] },
        prompt_cache_key: request.task,
        max_output_tokens: asked.output_is_known.then_some(asked.max_output.get()),
        reasoning: asked.effort.map(|effort| Reasoning {
            effort: Effort::as_str(effort),
        }),
        tools: request.tools,
        instructions: request.system.join("\n\n"),
        input: input(request.turns),
    };
    serde_json::to_vec(&body).expect("texts and raw JSON always serialise")
}

/// An item of a request.
#[derive(Serialize)]
#[serde(untagged)]
enum Input<'a> {
    /// The model's own, as it came.
    Item(&'a Item),
    Message {
        role: &'static str,
        content: Vec<Part<'a>>,
    },
    Output {
        r#type: &'static str,
        call_id: &'a str,
        output: Output<'a>,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    InputText { text: &'a str },
    InputImage { image_url: String },
}

/// What a tool gave: a text, or a text and an image.
#[derive(Serialize)]
#[serde(untagged)]
enum Output<'a> {
    Text(Cow<'a, str>),
    Parts([Part<'a>; 2]),
}

impl<'a> Output<'a> {
    fn new(answer: &'a ToolAnswer) -> Self {
        // There is no field that says that a call failed.
        let Some(image) = &answer.image else {
            return Self::Text(answer.said());
        };
        let image_url = format!("data:{};base64,{}", image.media_type, image.data);
        Self::Parts([Part::InputText { text: &answer.text }, Part::InputImage { image_url }])
    }
}

fn input(turns: &[Turn]) -> Vec<Input<'_>> {
    let mut input = Vec::new();
    for turn in turns {
        match turn {
            Turn::User(told) => {
                let mut content = Vec::new();
                for told in told {
                    match told {
                        Told::Text { text } => content.push(Part::InputText { text }),
                        Told::ToolResult(answer) => input.push(Input::Output {
                            r#type: "function_call_output",
                            call_id: &answer.id,
                            output: Output::new(answer),
                        }),
                    }
                }
                if !content.is_empty() {
                    input.push(Input::Message { role: "user", content });
                }
            }
            Turn::Model(items) => {
                // A thought that led to nothing is refused.
                let led = items
                    .iter()
                    .rposition(|item| !is_thought(item))
                    .map_or(0, |last| last + 1);
                input.extend(items[..led].iter().map(Input::Item));
            }
        }
    }
    input
}

fn is_thought(item: &Item) -> bool {
    item.text("type").as_deref() == Some("reasoning")
}

/// The provider's error object, in a stream or as a whole answer.
#[derive(Debug, Default, Deserialize)]
struct ApiError {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    code: Option<Code>,
    #[serde(default)]
    message: Option<String>,
}

/// Some servers that speak the dialect have numbers for codes.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Code {
    Word(String),
    Number(i64),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self {
            kind: error.kind.unwrap_or_default(),
            code: error.code.map(|code| match code {
                Code::Word(word) => word,
                Code::Number(number) => number.to_string(),
            }),
            message: error.message.unwrap_or_default(),
            ..Self::default()
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
    (item.text("type").as_deref() == Some("function_call")).then(|| item.text("call_id"))?
}

/// A thought that was cut before it was sealed is refused.
fn can_be_sent(item: &Item) -> bool {
    !is_thought(item) || item.text("encrypted_content").is_some_and(|sealed| !sealed.is_empty())
}

fn stop(reason: &str) -> Stop {
    match reason {
        "completed" => Stop::Done,
        "max_output_tokens" => Stop::Cut,
        "content_filter" | "refusal" => Stop::Refused,
        _ => Stop::Other,
    }
}

#[cfg(test)]
mod tests;
