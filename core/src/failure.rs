//! Failures, in classes that recovery can decide on.
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
    /// The limit of a plan or an account is used up until it resets.
    QuotaExhausted,
    /// The key or login is missing or refused.
    Auth,
    /// The provider rejects the request itself.
    InvalidRequest,
    /// The conversation no longer fits the model.
    ContextOverflow,
    /// The task's context was not available.
    ContextUnavailable,
    /// The repository or worktree is damaged.
    CorruptedState,
    /// The work itself is wrong: verify failed.
    LogicError,
    /// It reached the turn limit of an attempt before it was done, which says nothing about the
    /// work.
    TurnLimit,
    /// The adapter reported success, but nothing had changed.
    NoChange,
    /// The adapter's program ended unexpectedly.
    AdapterCrash,
    /// The adapter cannot be started on this agent.
    AdapterUnavailable,
    /// The agent's machine has no free space on a disk.
    DiskFull,
    /// The agent was lost, restarted or drained.
    AgentLost,
    /// The money or token limit is reached.
    BudgetExceeded,
    /// A person asked for it to stop.
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

/// One failure: its class and the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub kind: FailureKind,
    /// One sentence for people; says what to do where something can be done.
    pub message: String,
    /// How long the provider asked to wait; for a used-up quota, until it resets.
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
