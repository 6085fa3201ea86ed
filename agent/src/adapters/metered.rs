//! What an adapter says of the provider that its program calls, so that the agent can call it in the program's
//! place and count ([`crate::gateway`]), and what its program gets instead of the key. It owns the data alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kage_core::call::AccountName;
use kage_core::failure::Failure;
use kage_core::id::AdapterName;
use kage_core::time::Timestamp;
use kage_core::usage::{PicoUsd, Usage};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

/// The dialect in which a program calls its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeteredWire {
    /// Anthropic's Messages.
    Messages,
    /// OpenAI's Responses.
    Responses,
    /// Chat completions, of OpenAI and of many others.
    Chat,
    /// Gemini's `generateContent`.
    Gemini,
}

/// A provider, and the key for it.
#[derive(Clone)]
pub struct MeteredProvider {
    pub wire: MeteredWire,
    /// The account that pays.
    pub account: AccountName,
    /// The address that the program would have; what it asks for is below it.
    pub address: Url,
    /// The real key.
    pub key: String,
    /// What stands before a model's name where its price is looked up; `None`: nothing.
    pub seller: Option<AdapterName>,
}

/// Without the key.
impl std::fmt::Debug for MeteredProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeteredProvider")
            .field("wire", &self.wire)
            .field("address", &self.address.as_str())
            .finish_non_exhaustive()
    }
}

/// What a session's program gets instead of its provider and the key.
#[derive(Debug, Clone)]
pub struct GatewayPass {
    /// In the place of the provider's address.
    pub address: String,
    /// In the place of the key; good for this session's gateway alone.
    pub key: String,
    /// Why calls are refused, once they are.
    pub refusing: watch::Receiver<Option<Failure>>,
    /// Cancelled when a program that is refused its calls goes on and on.
    pub enough: CancellationToken,
    pub own_count: OwnCount,
    pub asked_wait: AskedWait,
}

/// How long the provider asked to wait when it last refused a call. Programs that give up at once do not pass it
/// on.
#[derive(Debug, Clone, Default)]
pub struct AskedWait(Arc<Mutex<Option<(Timestamp, Duration)>>>);

impl AskedWait {
    /// A call was refused `now`, with a wait or without one.
    pub fn refused(&self, wait: Option<Duration>, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = wait.map(|wait| (now, wait));
    }

    /// A call was answered: there is nothing to wait for.
    pub fn answered(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What is left of the wait.
    #[must_use]
    pub fn left(&self, now: Timestamp) -> Option<Duration> {
        let asked = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.map(|(since, wait)| wait.saturating_sub(now.since(since)))
    }
}

/// What a program counted itself, beside the gateway.
#[derive(Debug, Clone, Default)]
pub struct OwnCount(Arc<Mutex<ProgramCount>>);

/// Tokens, and the money that a program says they cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgramCount {
    pub usage: Usage,
    /// `None`: it named none.
    pub reported: Option<PicoUsd>,
}

impl OwnCount {
    /// Adds what the program reports.
    pub fn add(&self, usage: Usage, reported: Option<PicoUsd>) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.usage += usage;
        if let Some(more) = reported {
            count.reported = Some(count.reported.unwrap_or_default().saturating_add(more));
        }
    }

    /// What it reported so far.
    #[must_use]
    pub fn get(&self) -> ProgramCount {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
