//! The interface of a provider's dialect. A dialect is a [`Wire`], a set of plain functions: they
//! write a request, read the events of an answer, and read a refusal.

use std::time::Duration;

use kage_core::failure::Failure;
use kage_core::failure_table::ProviderError;
use kage_core::time::LocalTime;
use serde_json::value::RawValue;

use super::answer::{Answer, Draft, Item, Progress, Stop};
use super::asked::Asked;
use super::turn::Turn;
use crate::adapters::tools::ToolDefinition;

/// The requests and answers of one API dialect.
#[derive(Debug)]
pub(super) struct Wire {
    /// Where requests go, below the base URL.
    pub(super) path: &'static str,
    /// The headers of a request with this key.
    pub(super) headers: fn(key: &str) -> Vec<(&'static str, String)>,
    /// The tool definitions, as every request of a session contains them.
    pub(super) tools: fn(&[ToolDefinition]) -> Box<RawValue>,
    pub(super) body: fn(&Request<'_>) -> Vec<u8>,
    /// Handles the data of one event of an answer.
    pub(super) event: fn(&mut Draft, &str) -> Progress,
    /// The answer, once it is complete.
    pub(super) finish: fn(Draft) -> Answer,
    /// Reads the body of an error response; `None` when the provider did not write it.
    pub(super) refusal: fn(&[u8]) -> Option<Refusal>,
    /// The id of the tool call that an item is.
    pub(super) call_id: fn(&Item) -> Option<String>,
    /// False for an item that the provider would refuse to get back.
    pub(super) can_be_sent: fn(&Item) -> bool,
    /// Why the model stopped, from the provider's own word.
    pub(super) stop: fn(&str) -> Stop,
}

/// The content of a model call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) asked: &'a Asked,
    /// In the form of the dialect.
    pub(super) tools: &'a RawValue,
    /// System texts, in order. Sessions of a task share them.
    pub(super) system: &'a [String],
    pub(super) turns: &'a [Turn],
}

/// A provider's description of a failed call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The provider's name of the error; may be empty.
    pub(super) kind: String,
    /// A narrower code than the type of the error.
    pub(super) code: Option<String>,
    pub(super) message: String,
}

impl Refusal {
    /// Classifies the refusal, with the HTTP status and headers.
    pub(super) fn classify(
        &self,
        status: Option<u16>,
        retry_after: Option<Duration>,
        heard: Option<LocalTime>,
    ) -> Failure {
        ProviderError {
            status,
            error_type: Some(self.kind.as_str()).filter(|kind| !kind.is_empty()),
            error_code: self.code.as_deref(),
            message: &self.message,
            retry_after,
            heard,
        }
        .classify()
    }
}
