//! Scripts: what the scripted model says, as plain data. It owns the vocabulary only; the
//! server decides which turn a request is at.
//!
//! A turn is found by counting the assistant messages of a request, so any number of
//! conversations may follow one script at once, and a call repeated after a fault meets
//! the same turn again. Faults are used up, in order, by whichever call comes first.

use std::time::Duration;

use serde_json::Value;

/// What one model, prompt or key is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// What recorded requests and complaints call it.
    pub name: String,
    /// Which requests it answers. The first script that matches is taken.
    pub matcher: Matcher,
    /// Answers by turn: a request with `n` assistant messages gets `turns[n]`.
    pub turns: Vec<Turn>,
}

impl Script {
    /// A script for the requests that `matcher` picks.
    #[must_use]
    pub fn new(name: impl Into<String>, matcher: Matcher, turns: impl IntoIterator<Item = Turn>) -> Self {
        Self {
            name: name.into(),
            matcher,
            turns: turns.into_iter().collect(),
        }
    }
}

/// Picks requests. What is `None` matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    /// Compared exactly.
    pub model: Option<String>,
    /// Text that occurs in the system prompt or in a user message.
    pub marker: Option<String>,
    /// The exact API key or bearer token.
    pub api_key: Option<String>,
}

impl Matcher {
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn model(model: impl Into<String>) -> Self {
        Self {
            model: Some(model.into()),
            ..Self::default()
        }
    }

    /// Requests whose system prompt or user messages contain a text.
    #[must_use]
    pub fn marker(marker: impl Into<String>) -> Self {
        Self {
            marker: Some(marker.into()),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn api_key(api_key: impl Into<String>) -> Self {
        Self {
            api_key: Some(api_key.into()),
            ..Self::default()
        }
    }

    /// Whether a request of this model, text and key is meant.
    #[must_use]
    pub fn matches(&self, model: &str, prompt: &str, api_key: &str) -> bool {
        self.model.as_deref().is_none_or(|wanted| wanted == model)
            && self.marker.as_deref().is_none_or(|wanted| prompt.contains(wanted))
            && self.api_key.as_deref().is_none_or(|wanted| wanted == api_key)
    }
}

/// One answer, and what goes wrong before it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Each is met once, in order, by the calls that reach this turn.
    pub faults: Vec<Fault>,
    /// What every later call at this turn gets.
    pub reply: Reply,
}

impl Turn {
    /// A turn that ends the conversation with a text.
    #[must_use]
    pub fn say(text: impl Into<String>) -> Self {
        Reply::new([Block::Text(text.into())]).into()
    }

    /// A turn that calls one tool.
    #[must_use]
    pub fn call(tool: impl Into<String>, input: Value) -> Self {
        Reply::new([Block::tool(tool, input)]).into()
    }

    /// Adds a fault that is met before the reply.
    #[must_use]
    pub fn after(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    #[must_use]
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.reply.delay = delay;
        self
    }

    /// Waits before every event of a streamed response.
    #[must_use]
    pub fn paced(mut self, pace: Duration) -> Self {
        self.reply.pace = pace;
        self
    }
}

impl From<Reply> for Turn {
    fn from(reply: Reply) -> Self {
        Self {
            faults: Vec::new(),
            reply,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub blocks: Vec<Block>,
    /// Overrides the stop reason, which is otherwise the provider's word for "called tools" or "done".
    /// It is the provider's own word: `max_tokens`, or of an answer that is incomplete
    /// `max_output_tokens`, or `MAX_TOKENS`. `refusal` is a refusal of the Responses API, and
    /// `blocked` a prompt that Gemini does not answer.
    pub stop_reason: Option<String>,
    /// From the request to the begin of the response.
    pub delay: Duration,
    /// Time before every event of a streamed response.
    pub pace: Duration,
}

impl Reply {
    #[must_use]
    pub fn new(blocks: impl IntoIterator<Item = Block>) -> Self {
        Self {
            blocks: blocks.into_iter().collect(),
            stop_reason: None,
            delay: Duration::ZERO,
            pace: Duration::ZERO,
        }
    }
}

/// A content block of a reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// Reasoning. The server signs it and wants it back unchanged.
    Thinking(String),
    Text(String),
    /// A call of a tool that the request must offer.
    ToolUse {
        /// The tool's name as the request spells it.
        name: String,
        /// An object; of a custom tool of the Responses API, which takes free text, a string.
        input: Value,
    },
}

impl Block {
    #[must_use]
    pub fn tool(name: impl Into<String>, input: Value) -> Self {
        Self::ToolUse {
            name: name.into(),
            input,
        }
    }
}

/// What goes wrong instead of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    Error(ApiError),
    /// Status 200 and the turn's reply, but the connection is cut after so many events (without
    /// streaming: after half of the body).
    Cut {
        /// Events that are sent before the cut.
        after_events: usize,
    },
    /// As `Cut`, when only the last event is missing: where that one has no counts, everything was told.
    CutBeforeLast,
    /// Status 200 and the turn's reply, but after so many events an `error` event ends the stream
    /// (without streaming: the error response).
    ErrorEvent {
        /// Events that are sent before the error.
        after_events: usize,
        error: ApiError,
    },
    /// No answer at all, until the caller gives up.
    Hang,
}

impl Fault {
    /// 429 with a `retry-after` header in whole seconds.
    #[must_use]
    pub fn rate_limited(retry_after: Duration) -> Self {
        Self::Error(ApiError {
            retry_after: Some(retry_after),
            ..ApiError::new(429, "rate_limit_error", "this request would exceed your rate limit")
        })
    }

    /// HTTP status 529.
    #[must_use]
    pub fn overloaded() -> Self {
        Self::Error(ApiError::new(529, "overloaded_error", "Overloaded"))
    }
}

/// An error as the provider words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    /// `error.type`. A Gemini error has the word of its status instead; only `API_KEY_INVALID` makes
    /// a difference there.
    pub kind: String,
    /// `error.message`.
    pub message: String,
    /// `error.code` of the Responses API; the quota of a Gemini error, as
    /// `GenerateRequestsPerDayPerProjectPerModel`.
    pub code: Option<String>,
    /// The `retry-after` header, in whole seconds; `RetryInfo` of a Gemini error.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error without a `retry-after` header.
    #[must_use]
    pub fn new(status: u16, kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: kind.into(),
            message: message.into(),
            code: None,
            retry_after: None,
        }
    }

    /// The error with a narrower code than its type.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// HTTP status 400, `invalid_request_error`.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }
}
