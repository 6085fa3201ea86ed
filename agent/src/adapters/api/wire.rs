//! The interface of a provider's dialect. A dialect is a [`Wire`], a set of plain functions: they
//! write a request, read the frames of an answer, and read a refusal.

use std::time::Duration;

use kage_core::failure::Failure;
use kage_core::failure_table::ProviderError;
use kage_core::time::LocalTime;
use serde_json::value::RawValue;

use super::answer::{Answer, Draft, Item, Progress, Stop};
use super::asked::Asked;
use super::frames::Framing;
use super::pauses::CacheLife;
use super::turn::Turn;
use crate::adapters::tools::ToolDefinition;

/// The requests and answers of one API dialect.
#[derive(Debug)]
pub(super) struct Wire {
    /// Its name in stored conversations: no other dialect goes on with them.
    pub(super) name: &'static str,
    pub(super) framing: Framing,
    /// Where requests for a model go, below the base URL.
    pub(super) path: fn(model: &str) -> String,
    /// The headers of a request with this key, if there is one.
    pub(super) headers: fn(key: Option<&str>) -> Vec<(&'static str, String)>,
    /// A header that calls with these parameters need besides, whose values are a list.
    pub(super) beta: fn(&Asked) -> Option<(&'static str, &'static str)>,
    /// The tool definitions, as every request of a session contains them.
    pub(super) tools: fn(&[ToolDefinition]) -> Box<RawValue>,
    pub(super) body: fn(&Request<'_>) -> Vec<u8>,
    /// Why a request is not to be made: the provider would answer it without saying that it left
    /// a part of it out. See [`always_fits`].
    pub(super) too_large: fn(&Request<'_>, body: &[u8]) -> Option<Failure>,
    /// Whether it has a form for the images of tools.
    pub(super) shows_images: bool,
    /// Handles the data of one frame of an answer.
    pub(super) event: fn(&mut Draft, &str) -> Progress,
    /// Reads an answer that came as one JSON value though a stream was asked for; `None` when it is
    /// no answer.
    pub(super) whole: fn(&mut Draft, &[u8]) -> Option<Progress>,
    /// Whether an answer is whole when its stream ends without having said so. If it is, its calls are
    /// in the draft.
    pub(super) ended: fn(&mut Draft) -> bool,
    /// The answer, once it is complete.
    pub(super) finish: fn(Draft) -> Answer,
    /// Reads the body of an error response; `None` when the provider did not write it.
    pub(super) refusal: fn(&[u8]) -> Option<Refusal>,
    /// Adds to a failed call for a model what a person does about it. See [`no_advice`].
    pub(super) advice: fn(Failure, model: &str) -> Failure,
    /// The id of the tool call that an item is.
    pub(super) call_id: fn(&Item) -> Option<String>,
    /// False for an item that the provider would refuse to get back.
    pub(super) can_be_sent: fn(&Item) -> bool,
    /// Why the model stopped, from the provider's own word.
    pub(super) stop: fn(&str) -> Stop,
}

/// For [`Wire::too_large`]: the provider refuses what does not fit.
pub(super) fn always_fits(_request: &Request<'_>, _body: &[u8]) -> Option<Failure> {
    None
}

/// For [`Wire::beta`]: there is nothing that needs one.
pub(super) fn no_beta(_asked: &Asked) -> Option<(&'static str, &'static str)> {
    None
}

/// For [`Wire::advice`]: the provider's own words are enough.
pub(super) fn no_advice(failure: Failure, _model: &str) -> Failure {
    failure
}

/// The content of a model call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) asked: &'a Asked,
    /// The same for all sessions of a task and for no others: providers that route by a key of their
    /// prompt caches get it.
    pub(super) task: &'a str,
    /// In the form of the dialect.
    pub(super) tools: &'a RawValue,
    /// System texts, in order. Sessions of a task share them.
    pub(super) system: &'a [String],
    pub(super) turns: &'a [Turn],
    /// How long what it writes to a prompt cache has to live, where the provider is told that.
    pub(super) cache: CacheLife,
}

/// A provider's description of a failed call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The provider's name of the error; may be empty.
    pub(super) kind: String,
    /// A narrower code than the type of the error.
    pub(super) code: Option<String>,
    /// The status that its body tells, for errors in answers that began well.
    pub(super) status: Option<u16>,
    pub(super) message: String,
    /// The wait that it asks for in the body.
    pub(super) retry_after: Option<Duration>,
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
            status: status.filter(|status| *status != 200).or(self.status),
            error_type: Some(self.kind.as_str()).filter(|kind| !kind.is_empty()),
            error_code: self.code.as_deref(),
            message: &self.message,
            retry_after: retry_after.or(self.retry_after),
            heard,
        }
        .classify()
    }
}
