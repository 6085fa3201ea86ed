//! What the loop asks of a provider's dialect. A dialect is a value of [`Wire`], made of plain
//! functions: how a request is written, how the events of an answer are read, what a refusal says.

use std::time::Duration;

use kage_core::failure::Failure;
use kage_core::failure_table::ProviderError;
use kage_core::time::LocalTime;
use serde_json::value::RawValue;

use super::answer::{Answer, Draft, Item, Progress, Stop};
use super::asked::Asked;
use super::turns::Turn;
use crate::adapters::tools::ToolDefinition;

/// The requests and answers of one API dialect.
#[derive(Debug)]
pub(super) struct Wire {
    /// Where requests go, below the base URL.
    pub(super) path: &'static str,
    /// The headers of a request with this key.
    pub(super) headers: fn(key: &str) -> Vec<(&'static str, String)>,
    /// The tools, as every request of a session tells of them.
    pub(super) tools: fn(&[ToolDefinition]) -> Box<RawValue>,
    pub(super) body: fn(&Request<'_>) -> Vec<u8>,
    /// Takes the data of one event of an answer.
    pub(super) event: fn(&mut Draft, &str) -> Progress,
    /// The answer, once it is complete.
    pub(super) finish: fn(Draft) -> Answer,
    /// What the body of an answer says that is no success; `None` when it is not the provider's.
    pub(super) refusal: fn(&[u8]) -> Option<Refusal>,
    /// The id of the tool call that an item is.
    pub(super) call_id: fn(&Item) -> Option<String>,
    /// False for an item that the provider would refuse to get back.
    pub(super) can_be_sent: fn(&Item) -> bool,
    /// Why the model stopped, from the provider's own word.
    pub(super) stop: fn(&str) -> Stop,
}

/// What is asked of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) asked: &'a Asked,
    /// In the form of the dialect.
    pub(super) tools: &'a RawValue,
    /// What the model is told before anything else: one text after the other. Sessions of a task
    /// share it.
    pub(super) system: &'a [String],
    pub(super) turns: &'a [Turn],
}

/// What a provider says of a call that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The provider's word for what it is; may be empty.
    pub(super) kind: String,
    /// A narrower code than the type of the error.
    pub(super) code: Option<String>,
    pub(super) message: String,
}

impl Refusal {
    /// The failure that it is, with what HTTP says about it.
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
