//! The port that every metered call of a model goes through, whoever makes it: an API loop here, or a
//! program whose calls are forwarded. Before the call it is reserved, which may wait; after it, what it
//! used is told.
//!
//! ```text
//!   Calls::reserve -> Granted --started--> --commit--> CallRef (goes into the event UsageRecorded)
//!                        |   \-----release-----------> nothing of it is on a bill
//!                        \---------- dropped: nobody knows; under a budget it counts whole
//! ```
//!
//! What may be spent is decided by the coordinator, which knows all sessions of all agents. This room has
//! no rule of its own, except that without an answer of the coordinator no call is made.

use std::num::NonZeroU32;
use std::time::Duration;

use kage_core::call::{Ask, CallRef, RateTold, Spent};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::CallId;

mod gate;
mod rates;

pub use gate::{Connect, Gate, GateClient};
pub use rates::{asked_wait, told};

/// The calls of one attempt.
#[derive(Debug, Clone)]
pub enum Calls {
    /// Nobody limits them. What they use is told by events alone.
    Unlimited,
    /// The coordinator says when each may be made.
    Gated(Gate),
}

/// Why a call is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CallRefused {
    pub kind: FailureKind,
    /// For people: why, and what to do.
    pub reason: String,
    /// How long it may not be made, where that is all.
    pub retry_after: Option<Duration>,
}

impl From<CallRefused> for Failure {
    fn from(refused: CallRefused) -> Self {
        Self {
            retry_after: refused.retry_after,
            ..Self::new(refused.kind, refused.reason)
        }
    }
}

/// A call that may be made, once.
#[derive(Debug)]
#[must_use = "a granted call that is dropped counts whole"]
pub struct Granted {
    id: CallId,
    ask: Ask,
    output: NonZeroU32,
    warning: Option<String>,
    /// Who has to be told; `None`: nobody.
    gate: Option<Gate>,
}

impl Calls {
    /// Waits until a call may be made. `waits` is told the reason at each delay: the work goes on, it
    /// does not hang. Cancel-safe: whoever stops waiting makes no call, and what the coordinator granted or is
    /// about to grant by then is released.
    ///
    /// # Errors
    /// When it may never be made.
    pub async fn reserve(&self, ask: Ask, waits: impl FnMut(&str) + Send) -> Result<Granted, CallRefused> {
        match self {
            Self::Unlimited => Ok(Granted {
                id: CallId::from_random(rand::random()),
                output: ask.output.most,
                ask,
                warning: None,
                gate: None,
            }),
            Self::Gated(gate) => gate.reserve(ask, waits).await,
        }
    }
}

impl Granted {
    /// The tokens that the request has to ask for at most.
    #[must_use]
    pub const fn output(&self) -> NonZeroU32 {
        self.output
    }

    /// What people are to be told, once: a budget is nearly used up.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The answer begins. Does not wait.
    pub fn started(&self, told: RateTold) {
        if let Some(gate) = &self.gate {
            gate.started(self.id, &told);
        }
    }

    /// The call used this. Does not wait: the event that the caller reports with this reference tells the
    /// same, and counts if it comes first.
    #[must_use = "the event UsageRecorded has it"]
    pub fn commit(self, spent: Spent, told: &RateTold) -> CallRef {
        let call = CallRef {
            id: self.id,
            account: self.ask.account.clone(),
            end: spent.end,
            request: spent.request.clone(),
        };
        if let Some(gate) = &self.gate {
            gate.commit(self.id, spent, told);
        }
        call
    }

    /// The call was not made, or was refused before it cost anything. Does not wait.
    pub fn release(self, told: &RateTold) {
        if let Some(gate) = &self.gate {
            gate.release(self.id, told);
        }
    }
}
