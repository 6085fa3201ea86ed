//! Failures, in classes that recovery can decide on.
//!
//! Failures are classified where they arise; this file holds the classes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// The classes of failure.
    pub enum FailureKind: "a kind of failure" {
        /// The provider asked to slow down (HTTP 429).
        RateLimited = "rate_limited" ("rate limited"),
        /// The provider has no capacity now (HTTP 529, 503).
        Overloaded = "overloaded" ("provider overloaded"),
        /// The connection failed or was cut.
        Network = "network",
        /// A time limit passed: of the attempt, or without any output.
        Timeout = "timeout" ("time-out"),
        /// The limit of a plan or an account is used up until it resets.
        QuotaExhausted = "quota_exhausted" ("quota exhausted"),
        /// The key or login is missing or refused.
        Auth = "auth" ("not authorised"),
        /// The access token that the session was given ended while it ran; the login itself is fine.
        TokenExpired = "token_expired" ("access token expired"),
        /// The provider rejects the request itself.
        InvalidRequest = "invalid_request" ("invalid request"),
        /// The model itself refused to work on the task.
        ModelRefused = "model_refused" ("model refused"),
        /// The conversation no longer fits the model.
        ContextOverflow = "context_overflow" ("context overflow"),
        /// The task's context was not available.
        ContextUnavailable = "context_unavailable" ("context unavailable"),
        /// The repository or worktree is damaged.
        CorruptedState = "corrupted_state" ("corrupted state"),
        /// The work itself is wrong: verify failed.
        LogicError = "logic_error" ("logic error"),
        /// It reached the turn limit of an attempt before it was done, which says nothing about the
        /// work.
        TurnLimit = "turn_limit" ("turn limit"),
        /// The adapter reported success, but nothing had changed.
        NoChange = "no_change" ("no change"),
        /// The files that it made are more than a result may have.
        ResultTooLarge = "result_too_large" ("result too large"),
        /// The files that it changed have a key or another secret of its own.
        SecretFound = "secret_found" ("secret in the files"),
        /// What its agent sent is no result of the session; the coordinator does not take it.
        ResultRefused = "result_refused" ("result refused"),
        /// The adapter's program ended unexpectedly.
        AdapterCrash = "adapter_crash" ("adapter crashed"),
        /// The adapter cannot be started on this agent.
        AdapterUnavailable = "adapter_unavailable" ("adapter unavailable"),
        /// The agent's machine has no free space on a disk.
        DiskFull = "disk_full" ("disk full"),
        /// The agent's machine could not start a program, or had no memory for it.
        MachineBusy = "machine_busy" ("machine without room"),
        /// The command that prepares a session's worktree failed, before the session's work.
        SetupFailed = "setup_failed" ("setup failed"),
        /// The agent was lost, restarted or drained.
        AgentLost = "agent_lost" ("agent lost"),
        /// The money or token limit is reached.
        BudgetExceeded = "budget_exceeded" ("budget exceeded"),
        /// A person asked for it to stop.
        Cancelled = "cancelled",
        /// None of the above.
        Unknown = "unknown",
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

    /// Whether it is waited out, and is no failed attempt: a limit that is used up, or one for which the
    /// provider asks to wait as for those.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let long = self.retry_after.is_some_and(|wait| wait >= HELD);
        self.kind == FailureKind::QuotaExhausted || (self.kind == FailureKind::RateLimited && long)
    }
}

/// From this wait on a rate limit is that of an hour or of a day, and says nothing about the work.
const HELD: Duration = Duration::from_secs(10 * 60);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}
