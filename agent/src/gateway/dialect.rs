//! What a gateway has to know of each dialect: which requests are calls of a model and which other ones programs
//! need besides, where the key is, and in which words a call is refused so that real programs give up. Pure.

use std::num::NonZeroU32;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::elsewhere::Content;
use crate::adapters::metered::MeteredWire;

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// It calls a model, and its answer is in this dialect.
    Call(MeteredWire),
    /// It costs nothing, and programs need it.
    Free,
    /// It is not for this provider, or it costs what nobody counts.
    Unknown,
}

/// What is done with a request of this path, below the provider's address.
pub(super) fn route(wire: MeteredWire, method: &Method, path: &str) -> Route {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let is_post = method == Method::POST;
    let is_read = method == Method::GET || method == Method::HEAD;
    match (wire, parts.as_slice()) {
        (MeteredWire::Messages, ["v1", "messages"]) if is_post => Route::Call(wire),
        (MeteredWire::Messages, ["v1", "messages", "count_tokens"]) if is_post => Route::Free,
        (MeteredWire::Messages, ["v1", "models"] | ["v1", "models", _]) if is_read => Route::Free,
        // One address serves both, and the program chooses.
        (MeteredWire::Responses | MeteredWire::Chat, ["responses"] | ["responses", "compact"]) if is_post => {
            Route::Call(MeteredWire::Responses)
        }
        (MeteredWire::Responses | MeteredWire::Chat, ["chat", "completions"]) if is_post => {
            Route::Call(MeteredWire::Chat)
        }
        (MeteredWire::Responses | MeteredWire::Chat, ["models"] | ["models", ..]) if is_read => Route::Free,
        (MeteredWire::Gemini, ["v1" | "v1beta" | "v1alpha", "models"]) if is_read => Route::Free,
        (MeteredWire::Gemini, ["v1" | "v1beta" | "v1alpha", "models", model]) => match model.rsplit_once(':') {
            Some((_, "generateContent" | "streamGenerateContent")) if is_post => Route::Call(wire),
            Some((_, "countTokens")) if is_post => Route::Free,
            None if is_read => Route::Free,
            Some(_) | None => Route::Unknown,
        },
        (MeteredWire::Messages | MeteredWire::Responses | MeteredWire::Chat | MeteredWire::Gemini, _) => Route::Unknown,
    }
}

/// What a call says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Empty when it is not told.
    pub(super) model: String,
    /// The most tokens of the answer, where the request limits them.
    pub(super) output: Option<u64>,
    /// How many answers it asks for. Each may be so long.
    pub(super) answers: NonZeroU32,
    /// Why nobody can say what it costs at most, if nobody can.
    pub(super) unbounded: Option<&'static str>,
    /// Bytes of the request.
    pub(super) bytes: u64,
}

impl Asked {
    /// The most tokens of each answer, where the request has a limit that limits.
    pub(super) fn limit(&self) -> Option<NonZeroU32> {
        let output = self.output.and_then(|output| u32::try_from(output).ok());
        output.and_then(NonZeroU32::new)
    }
}

/// The most answers to one request. Providers have lower limits.
const MOST_ANSWERS: NonZeroU32 = const { NonZeroU32::new(128).unwrap() };
/// Service tiers whose prices are those of the table.
const PRICED_TIERS: [&str; 4] = ["auto", "default", "standard", "standard_only"];

/// Reads a call. A request that is not understood is the provider's to refuse, unless its cost has to be bounded.
pub(super) fn asked(wire: MeteredWire, path: &str, body: &[u8]) -> Asked {
    #[derive(Default, Deserialize)]
    struct Call {
        #[serde(default)]
        model: Option<String>,
        #[serde(default)]
        max_tokens: Option<u64>,
        #[serde(default)]
        max_completion_tokens: Option<u64>,
        #[serde(default)]
        max_output_tokens: Option<u64>,
        #[serde(default)]
        n: Option<u32>,
        #[serde(default)]
        previous_response_id: Option<IgnoredAny>,
        #[serde(default)]
        conversation: Option<IgnoredAny>,
        #[serde(default)]
        prompt: Option<IgnoredAny>,
        /// Of Messages and chat completions, of Responses, and of Gemini.
        #[serde(default)]
        messages: Content,
        #[serde(default)]
        input: Content,
        #[serde(default)]
        contents: Content,
        #[serde(default)]
        speed: Option<String>,
        #[serde(default, alias = "serviceTier")]
        service_tier: Option<String>,
        // Google reads either spelling.
        #[serde(default, alias = "cachedContent")]
        cached_content: Option<IgnoredAny>,
        #[serde(default, rename = "generationConfig", alias = "generation_config")]
        generation: Option<Generation>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Generation {
        #[serde(alias = "maxOutputTokens")]
        max_output_tokens: Option<u64>,
        #[serde(alias = "candidateCount")]
        candidate_count: Option<u32>,
    }
    let read = serde_json::from_slice::<Call>(body);
    let is_understood = read.is_ok();
    let call = read.unwrap_or_default();
    let generation = call.generation.unwrap_or_default();
    let answers = match wire {
        MeteredWire::Chat => call.n,
        MeteredWire::Gemini => generation.candidate_count,
        MeteredWire::Messages | MeteredWire::Responses => None,
    };
    let answers = answers.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    let is_priced = |tier: &String| PRICED_TIERS.iter().any(|priced| tier.eq_ignore_ascii_case(priced));
    let is_stored = call.previous_response_id.is_some()
        || call.conversation.is_some()
        || call.cached_content.is_some()
        || (wire == MeteredWire::Responses && call.prompt.is_some());
    let contents = [call.messages, call.input, call.contents];
    let unbounded = if !is_understood {
        Some("the request is not understood by the gateway of a session, which has to bound its cost")
    } else if is_stored {
        Some(
            "the gateway of a session bounds the cost of a request by its bytes: previous_response_id, conversation, \
             prompt and cachedContent are not supported; send the content itself",
        )
    } else if contents.iter().any(|content| content.is_elsewhere) {
        Some(
            "the gateway of a session bounds the cost of a request by its bytes: links, ids of files and references \
             to items are not supported; send the content itself",
        )
    } else if !call.service_tier.iter().chain(&call.speed).all(is_priced) {
        Some("the gateway of a session supports the default service tier and the standard speed only")
    } else if answers > MOST_ANSWERS {
        Some("the gateway of a session supports at most 128 answers to a request")
    } else {
        None
    };
    let model = match wire {
        MeteredWire::Gemini => {
            let last = path.rsplit('/').next().unwrap_or_default();
            last.split(':').next().map(str::to_owned)
        }
        MeteredWire::Messages | MeteredWire::Responses | MeteredWire::Chat => call.model,
    };
    let output = match wire {
        MeteredWire::Messages => call.max_tokens,
        MeteredWire::Responses => call.max_output_tokens,
        MeteredWire::Chat => call.max_completion_tokens.or(call.max_tokens),
        MeteredWire::Gemini => generation.max_output_tokens,
    };
    Asked {
        model: model.unwrap_or_default(),
        output,
        answers,
        unbounded,
        bytes: body.len() as u64,
    }
}

/// The headers in which keys are sent.
const KEYS: [HeaderName; 3] = [
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("api-key"),
];
/// The part of a query in which Gemini takes its key.
const KEY_QUERY: &str = "key";

/// Puts `real` in the place of the key `dummy`, wherever a program sent that: in a header or the query, which is
/// returned as it is then. `None`: it was sent nowhere.
pub(super) fn exchange(
    headers: &mut HeaderMap,
    query: Option<&str>,
    dummy: &str,
    real: &str,
) -> Option<Option<String>> {
    let mut found = false;
    for name in KEYS {
        if let Some(value) = headers.get_mut(&name)
            && is_same(value.as_bytes(), dummy.as_bytes())
        {
            *value = secret(real)?;
            found = true;
        }
    }
    if let Some(value) = headers.get_mut(AUTHORIZATION) {
        let sent = value.as_bytes();
        let (scheme, token) = sent.split_at_checked("Bearer ".len()).unwrap_or_default();
        if scheme.eq_ignore_ascii_case(b"Bearer ") && is_same(token.trim_ascii(), dummy.as_bytes()) {
            *value = secret(&format!("Bearer {real}"))?;
            found = true;
        }
    }
    let query = query.map(|query| {
        let parts = query.split('&').map(|part| match part.split_once('=') {
            Some((KEY_QUERY, value)) if is_same(value.as_bytes(), dummy.as_bytes()) => {
                found = true;
                let real: String = url::form_urlencoded::byte_serialize(real.as_bytes()).collect();
                format!("{KEY_QUERY}={real}")
            }
            Some(_) | None => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("&")
    });
    found.then_some(query)
}

/// Compares without an end at the first difference.
fn is_same(sent: &[u8], key: &[u8]) -> bool {
    let differences = sent.iter().zip(key).fold(0, |all, (a, b)| all | (a ^ b));
    sent.len() == key.len() && differences == 0
}

fn secret(value: &str) -> Option<http::HeaderValue> {
    let mut value = http::HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Why a gateway answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The key is not this session's.
    Key,
    /// It is no request for this provider.
    NotFound,
    TooLarge,
    /// The provider cannot be reached.
    Unreachable,
    /// The session's budget is used up.
    Budget,
    /// Its cost has no bound.
    Invalid,
}

/// Status and body of an answer of the gateway itself, as the provider would have it.
pub(super) fn rejection(wire: MeteredWire, why: Rejection, message: &str) -> (StatusCode, String) {
    let status = match why {
        Rejection::Key => StatusCode::UNAUTHORIZED,
        Rejection::NotFound => StatusCode::NOT_FOUND,
        Rejection::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Rejection::Unreachable => StatusCode::BAD_GATEWAY,
        Rejection::Invalid => StatusCode::BAD_REQUEST,
        // Each is what programs of that dialect do not repeat.
        Rejection::Budget => match wire {
            MeteredWire::Messages => StatusCode::BAD_REQUEST,
            MeteredWire::Responses | MeteredWire::Gemini => StatusCode::TOO_MANY_REQUESTS,
            MeteredWire::Chat => StatusCode::PAYMENT_REQUIRED,
        },
    };
    let kind = match (wire, why) {
        (MeteredWire::Messages, Rejection::Budget | Rejection::Invalid) => "invalid_request_error",
        (MeteredWire::Messages, Rejection::Key) => "authentication_error",
        (MeteredWire::Messages, Rejection::NotFound) => "not_found_error",
        (MeteredWire::Messages, Rejection::TooLarge) => "request_too_large",
        (MeteredWire::Messages, Rejection::Unreachable) => "api_error",
        (MeteredWire::Gemini, Rejection::Budget) => "RESOURCE_EXHAUSTED",
        (MeteredWire::Gemini, Rejection::Key) => "UNAUTHENTICATED",
        (MeteredWire::Gemini, Rejection::NotFound) => "NOT_FOUND",
        (MeteredWire::Gemini, Rejection::TooLarge | Rejection::Invalid) => "INVALID_ARGUMENT",
        (MeteredWire::Gemini, Rejection::Unreachable) => "UNAVAILABLE",
        (MeteredWire::Responses | MeteredWire::Chat, Rejection::Budget) => "insufficient_quota",
        (MeteredWire::Responses | MeteredWire::Chat, Rejection::Unreachable) => "server_error",
        (
            MeteredWire::Responses | MeteredWire::Chat,
            Rejection::Key | Rejection::NotFound | Rejection::TooLarge | Rejection::Invalid,
        ) => "invalid_request_error",
    };
    let code = match why {
        Rejection::Key => "invalid_api_key",
        Rejection::NotFound => "not_found",
        Rejection::TooLarge => "request_too_large",
        Rejection::Unreachable => "server_error",
        Rejection::Budget => "insufficient_quota",
        Rejection::Invalid => "unsupported_value",
    };
    let body = match wire {
        MeteredWire::Messages => json!({"type": "error", "error": {"type": kind, "message": message}}),
        MeteredWire::Responses | MeteredWire::Chat => {
            json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
        }
        MeteredWire::Gemini => {
            let mut error = json!({"code": status.as_u16(), "message": message, "status": kind});
            if why == Rejection::Budget {
                // A limit of the day is one that its program does not wait for.
                error["details"] = json!([{
                    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                    "violations": [{"quotaMetric": "kage/budget", "quotaId": "KageBudgetPerDay"}],
                }]);
            }
            json!({"error": error})
        }
    };
    (status, body.to_string())
}

/// What programs are told of a budget that is used up. Of each provider they know words for that, which name the
/// cause to them.
pub(super) fn budget_message(wire: MeteredWire, why: &str) -> String {
    match wire {
        MeteredWire::Messages => format!("Your credit balance is too low to go on: {why}"),
        MeteredWire::Responses | MeteredWire::Chat | MeteredWire::Gemini => {
            format!("You exceeded your current quota, please check your plan and billing details: {why}")
        }
    }
}

#[cfg(test)]
mod tests;
