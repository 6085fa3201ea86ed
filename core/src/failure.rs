//! What went wrong, as a class that recovery can decide on.
//!
//! Failures are classified where they arise; this file holds the classes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The provider asked to slow down (HTTP 429).
    RateLimited,
    /// The provider has no capacity now (HTTP 529, 503).
    Overloaded,
    /// The connection failed or was cut.
    Network,
    /// A time limit passed: of the attempt, or without any output.
    Timeout,
    /// A plan's or an account's limit is used up until it resets.
    QuotaExhausted,
    /// The key or login is missing or refused.
    Auth,
    /// The provider says that the request itself is wrong.
    InvalidRequest,
    /// The conversation no longer fits the model.
    ContextOverflow,
    /// The task's context could not be had.
    ContextUnavailable,
    /// The repository or worktree is not what it should be.
    CorruptedState,
    /// The work itself is wrong: verify failed.
    LogicError,
    /// It made as many turns as one attempt may, and was not done: says nothing about the work.
    TurnLimit,
    /// The adapter said it was done, and nothing had changed.
    NoChange,
    /// The adapter's program ended in a way it should not.
    AdapterCrash,
    /// The adapter cannot be started on this agent.
    AdapterUnavailable,
    /// The agent's machine has no room left on a disk.
    DiskFull,
    /// The agent was lost, restarted or drained.
    AgentLost,
    /// The money or token limit is reached.
    BudgetExceeded,
    /// Someone asked for it to stop.
    Cancelled,
    /// None of the above.
    Unknown,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RateLimited => "rate limited",
            Self::Overloaded => "provider overloaded",
            Self::Network => "network",
            Self::Timeout => "time-out",
            Self::QuotaExhausted => "quota exhausted",
            Self::Auth => "not authorised",
            Self::InvalidRequest => "invalid request",
            Self::ContextOverflow => "context overflow",
            Self::ContextUnavailable => "context unavailable",
            Self::CorruptedState => "corrupted state",
            Self::LogicError => "logic error",
            Self::TurnLimit => "turn limit",
            Self::NoChange => "no change",
            Self::AdapterCrash => "adapter crashed",
            Self::AdapterUnavailable => "adapter unavailable",
            Self::DiskFull => "disk full",
            Self::AgentLost => "agent lost",
            Self::BudgetExceeded => "budget exceeded",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        })
    }
}

/// One failure: its class and the words to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What recovery decides on.
    pub kind: FailureKind,
    /// One sentence for people; names what to do where something can be done.
    pub message: String,
    /// How long the provider asked to wait; of a used-up quota, until it resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without a wait.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}
