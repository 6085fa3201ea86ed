//! What to do about a failure: try again, and when, or give up.

use std::time::Duration;

use crate::failure::{Failure, FailureKind};

/// What was tried so far, and what may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Attempts that ended by a failure of their own.
    pub failed: u32,
    /// Attempts that ended because their agent was lost, restarted or drained.
    pub lost: u32,
    /// How many attempts may fail.
    pub max_attempts: u32,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Try again after this delay.
    Retry(Duration),
    /// No further attempt makes sense.
    GiveUp,
}

/// Lost attempts that are made good before a job counts as one that kills agents.
pub const MAX_LOST: u32 = 5;
/// The wait before the second attempt; it doubles from one to the next.
pub const FIRST_DELAY: Duration = Duration::from_secs(2);
const MAX_DELAY: Duration = Duration::from_secs(5 * 60);

/// Decides whether a job is tried again after `failure`, which `history` already counts.
///
/// Losing an agent has a limit of its own. What a repetition cannot cure (a refused
/// key, an invalid request, a used-up quota, wrong work) is never retried by itself.
pub fn decide(history: History, failure: &Failure) -> Decision {
    match failure.kind {
        FailureKind::AgentLost if history.lost <= MAX_LOST => Decision::Retry(Duration::ZERO),
        FailureKind::RateLimited
        | FailureKind::Overloaded
        | FailureKind::Network
        | FailureKind::AdapterCrash
        | FailureKind::CorruptedState
        | FailureKind::ContextUnavailable
            if history.failed < history.max_attempts =>
        {
            let doubled = FIRST_DELAY.saturating_mul(1 << history.failed.saturating_sub(1).min(16));
            Decision::Retry(doubled.min(MAX_DELAY).max(failure.retry_after.unwrap_or_default()))
        }
        FailureKind::AgentLost
        | FailureKind::RateLimited
        | FailureKind::Overloaded
        | FailureKind::Network
        | FailureKind::AdapterCrash
        | FailureKind::CorruptedState
        | FailureKind::ContextUnavailable
        | FailureKind::Timeout
        | FailureKind::QuotaExhausted
        | FailureKind::Auth
        | FailureKind::InvalidRequest
        | FailureKind::ContextOverflow
        | FailureKind::LogicError
        | FailureKind::NoChange
        | FailureKind::AdapterUnavailable
        | FailureKind::BudgetExceeded
        | FailureKind::Cancelled
        | FailureKind::Unknown => Decision::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(failed: u32, lost: u32) -> History {
        History {
            failed,
            lost,
            max_attempts: 3,
        }
    }

    #[test]
    fn decides_by_kind_and_history() {
        let seconds = Duration::from_secs;
        let cases = [
            (FailureKind::AgentLost, history(0, 1), Decision::Retry(Duration::ZERO)),
            (FailureKind::AgentLost, history(0, MAX_LOST + 1), Decision::GiveUp),
            (FailureKind::Network, history(1, 0), Decision::Retry(seconds(2))),
            (FailureKind::Network, history(2, 0), Decision::Retry(seconds(4))),
            (FailureKind::Network, history(3, 0), Decision::GiveUp),
            (FailureKind::Auth, history(1, 0), Decision::GiveUp),
            (FailureKind::NoChange, history(1, 0), Decision::GiveUp),
        ];
        for (kind, history, expected) in cases {
            assert_eq!(
                decide(history, &Failure::new(kind, "x")),
                expected,
                "{kind} {history:?}"
            );
        }
    }

    #[test]
    fn obeys_retry_after() {
        let mut failure = Failure::new(FailureKind::RateLimited, "x");
        failure.retry_after = Some(Duration::from_secs(90));
        assert_eq!(
            decide(history(1, 0), &failure),
            Decision::Retry(Duration::from_secs(90))
        );
    }
}
