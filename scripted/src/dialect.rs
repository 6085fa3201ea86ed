//! The dialects side by side: whose headers, requests, answers and errors an endpoint has. What each
//! is like is in its own files.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::cache::CallUsage;
use crate::request::{Endpoint, Request};
use crate::script::{ApiError, Reply};
use crate::{chat, gemini, ollama, reply, request, responses};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Messages,
    Responses,
    Gemini,
    Chat,
    Ollama,
}

impl Endpoint {
    pub(crate) const fn dialect(self) -> Dialect {
        match self {
            Self::Messages | Self::CountTokens => Dialect::Messages,
            Self::Responses => Dialect::Responses,
            Self::Generate { .. } | Self::GeminiCount => Dialect::Gemini,
            Self::Chat => Dialect::Chat,
            Self::Ollama => Dialect::Ollama,
        }
    }

    /// Whether it only counts the tokens of a request.
    pub(crate) const fn counts(self) -> bool {
        matches!(self, Self::CountTokens | Self::GeminiCount)
    }

    pub(crate) fn parse(self, path: &str, body: &Value) -> Result<Request, ApiError> {
        match self.dialect() {
            Dialect::Messages => request::parse(body, self),
            Dialect::Responses => responses::parse(body),
            Dialect::Gemini => gemini::parse(path, body, self),
            Dialect::Chat => chat::parse(body),
            Dialect::Ollama => ollama::parse(body),
        }
    }
}

impl Dialect {
    /// The caller's key, if the headers are as the provider wants them.
    pub(crate) fn authorize(self, headers: &HeaderMap) -> Result<String, ApiError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let (key, missing) = match self {
            Self::Messages => (
                text("x-api-key").or(bearer),
                ApiError::new(401, "authentication_error", "x-api-key header is required"),
            ),
            // A server of one's own asks for no key.
            Self::Ollama => return Ok(bearer.unwrap_or_default().to_owned()),
            Self::Responses | Self::Chat => (
                bearer,
                ApiError::new(401, "invalid_request_error", "You didn't provide an API key."),
            ),
            Self::Gemini => (
                text("x-goog-api-key"),
                ApiError::new(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers."),
            ),
        };
        let key = key.filter(|key| !key.is_empty()).ok_or(missing)?;
        if self == Self::Messages && text("anthropic-version") != Some("2023-06-01") {
            return Err(ApiError::invalid("anthropic-version: header is required"));
        }
        if !text("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return Err(ApiError::invalid("content-type: must be application/json"));
        }
        Ok(key.to_owned())
    }

    /// The reply to request `number`, whose prompt was accounted for as `usage`.
    pub(crate) fn message(self, number: u64, request: &Request, reply: &Reply, usage: CallUsage) -> Message {
        match self {
            Self::Messages => Message::Messages(reply::Message::new(number, &request.model, reply, usage)),
            Self::Responses => Message::Responses(responses::reply::Response::new(number, request, reply, usage)),
            Self::Gemini => Message::Gemini(gemini::reply::Generated::new(number, request, reply, usage)),
            Self::Chat => {
                let message = reply::Message::new(number, &request.model, reply, usage);
                Message::Chat(message, request.wants_counts)
            }
            Self::Ollama => Message::Ollama(reply::Message::new(number, &request.model, reply, usage)),
        }
    }

    /// What is said of a model that no script is of.
    pub(crate) fn no_model(self, model: &str) -> ApiError {
        match self {
            Self::Ollama => ollama::no_model(model),
            Self::Messages | Self::Responses | Self::Gemini | Self::Chat => {
                ApiError::invalid(format!("no script answers this request for model {model}"))
            }
        }
    }

    /// The body of an error response.
    pub(crate) fn error_body(self, error: &ApiError, request_id: &str) -> Value {
        match self {
            Self::Messages => reply::error_body(error, request_id),
            Self::Responses => responses::reply::error_body(error),
            Self::Gemini => gemini::reply::error_body(error),
            Self::Chat => chat::error_body(error),
            Self::Ollama => ollama::error_body(error),
        }
    }

    /// The event that ends a stream because of an error.
    pub(crate) fn error_event(self, error: &ApiError) -> Bytes {
        match self {
            Self::Messages => reply::error_event(error),
            Self::Responses => responses::reply::error_event(error),
            Self::Gemini => gemini::reply::error_event(error),
            Self::Chat => chat::error_event(error),
            Self::Ollama => ollama::error_event(error),
        }
    }

    /// The answer to a request that counts tokens.
    pub(crate) fn count(self, count: u64) -> Value {
        match self {
            Self::Messages | Self::Responses | Self::Chat | Self::Ollama => json!({"input_tokens": count}),
            Self::Gemini => json!({"totalTokens": count}),
        }
    }
}

/// A reply in the form of its dialect.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Messages(reply::Message),
    Responses(responses::reply::Response),
    Gemini(gemini::reply::Generated),
    /// And whether its stream ends with counts.
    Chat(reply::Message, bool),
    Ollama(reply::Message),
}

impl Message {
    /// The same after a summary of the conversation that cost so much. Only Messages have one.
    pub(crate) fn after_summary(self, summary: &str, cost: CallUsage) -> Self {
        match self {
            Self::Messages(message) => Self::Messages(message.after_summary(summary, cost)),
            other @ (Self::Responses(_) | Self::Gemini(_) | Self::Chat(..) | Self::Ollama(_)) => other,
        }
    }

    /// What the call costs in all.
    pub(crate) fn usage(&self) -> CallUsage {
        match self {
            Self::Messages(message) | Self::Chat(message, _) | Self::Ollama(message) => message.usage(),
            Self::Responses(response) => response.usage(),
            Self::Gemini(generated) => generated.usage(),
        }
    }

    /// The body of a response without streaming.
    pub(crate) fn body(&self) -> Value {
        match self {
            Self::Messages(message) => message.body(),
            Self::Responses(response) => response.body(),
            Self::Gemini(generated) => generated.body(),
            Self::Chat(message, _) => chat::body(message),
            Self::Ollama(message) => ollama::body(message),
        }
    }

    /// The events of a streamed response, in order, ready to be sent.
    pub(crate) fn events(&self) -> Vec<Bytes> {
        match self {
            Self::Messages(message) => message.events(),
            Self::Responses(response) => response.events(),
            Self::Gemini(generated) => generated.events(),
            Self::Chat(message, counts) => chat::events(message, *counts),
            Self::Ollama(message) => ollama::events(message),
        }
    }
}
