//! Retries within limits: how long to wait, where to go, and what to say when nothing is left to
//! try.

use std::time::Duration;

use super::{Action, Confidence, Decision, FIRST_DELAY, History, Jitter, MAX_HOLDS, MAX_LOST, PROBE, escalate};
use crate::failure::Failure;
use crate::time::{Timestamp, in_words};

const MAX_DELAY: Duration = Duration::from_secs(5 * 60);
/// Attempts, including the first, at failures that a retry seldom cures.
const DOUBTFUL_ATTEMPTS: u32 = 2;

/// The input of a decision to retry.
#[derive(Clone, Copy)]
pub(super) struct Again<'a> {
    pub(super) history: History,
    pub(super) failure: &'a Failure,
    pub(super) jitter: Jitter,
    pub(super) now: Timestamp,
}

impl Again<'_> {
    /// Allows at most one retry.
    pub(super) fn once(mut self) -> Self {
        self.history.max_attempts = self.history.max_attempts.min(DOUBTFUL_ATTEMPTS);
        self
    }

    pub(super) fn here(self, first: Duration, confidence: Confidence, why: &str, otherwise: &str) -> Decision {
        let Some((at, confidence, reason)) = self.when(first, confidence, why) else {
            return self.spent(otherwise);
        };
        Decision {
            action: Action::RetryCurrent { at },
            reason,
            confidence,
        }
    }

    pub(super) fn back(self, confidence: Confidence, why: &str, otherwise: &str) -> Decision {
        let Some((at, confidence, reason)) = self.when(FIRST_DELAY, confidence, why) else {
            return self.spent(otherwise);
        };
        Decision {
            action: Action::RollbackLast { at },
            reason,
            confidence,
        }
    }

    /// Goes back to files that passed verify, if reworks are allowed.
    pub(super) fn rework(self) -> Decision {
        let History {
            safe,
            reworked,
            max_reworks,
            ..
        } = self.history;
        let why_not = match (max_reworks, safe) {
            (0, _) => {
                "the work itself is wrong; review it, and make the prompt more specific (--rework lets it try again)"
            }
            (_, false) => "the work itself is wrong, and no checkpoint passed verify; review the work",
            (_, true) if reworked >= max_reworks => {
                "the result still fails; review it, and make the prompt more specific"
            }
            (_, true) => {
                return Decision {
                    action: Action::RollbackSafe { at: self.now },
                    reason: "files that passed verify are a better start".to_owned(),
                    confidence: Confidence::Low,
                };
            }
        };
        escalate(why_not, Confidence::Medium)
    }

    /// Continues from where it stopped, once. The turns are not thrown away: without a checkpoint
    /// to resume, the same turns would only be made again.
    pub(super) fn further(self) -> Decision {
        let History {
            settled,
            half_done,
            turn_limits,
            max_attempts,
            ..
        } = self.history;
        let raise = "raise it on the agent ([adapter.claude-api] max_turns, or the adapter's own setting), or make \
                     the task smaller";
        let why_not = match (settled || half_done, max_attempts) {
            (true, 2..) if turn_limits == 0 => {
                return Decision {
                    action: Action::RetryCurrent { at: self.now },
                    reason: "reaching the turn limit is no fault, so it continues once from where it stopped"
                        .to_owned(),
                    confidence: Confidence::Medium,
                };
            }
            (true, 2..) => format!("it continued once and reached the turn limit again; {raise}"),
            (true, 0 | 1) => format!("no more attempts are allowed; {raise}"),
            (false, _) => format!("there is no checkpoint to continue from; {raise}"),
        };
        escalate(why_not, Confidence::High)
    }

    /// Switches to another adapter, when the task allows one; else does what `otherwise` says.
    pub(super) fn handed_over(self, why: &str, otherwise: impl FnOnce(Self) -> Decision) -> Decision {
        if !self.history.fallback {
            return otherwise(self);
        }
        Decision {
            action: Action::SwitchAdapter { at: self.now },
            reason: why.to_owned(),
            confidence: Confidence::High,
        }
    }

    pub(super) fn elsewhere(self, confidence: Confidence, why: &str, otherwise: &str) -> Decision {
        let Some((at, confidence, reason)) = self.when(FIRST_DELAY, confidence, why) else {
            return self.spent(otherwise);
        };
        Decision {
            action: Action::MoveAgent { at },
            reason,
            confidence,
        }
    }

    /// Leaves a machine that has no room for programs, as often as agents may be lost.
    pub(super) fn without_room(self) -> Decision {
        let lost = self.history.lost;
        if lost <= MAX_LOST {
            return Decision {
                action: Action::MoveAgent {
                    at: self.now + self.jitter.spread(FIRST_DELAY),
                },
                reason: "a machine without room for programs says nothing about the work".to_owned(),
                confidence: Confidence::High,
            };
        }
        let reason = format!(
            "{lost} times the machine had no room or an agent was lost while it ran, so it may be the cause; look at \
             processes and memory of the agents' machines"
        );
        escalate(reason, Confidence::Medium)
    }

    /// When the next attempt begins, the confidence, and the reason. `None` when no attempt is
    /// left.
    fn when(self, first: Duration, confidence: Confidence, why: &str) -> Option<(Timestamp, Confidence, String)> {
        if self.history.failed >= self.history.max_attempts {
            return None;
        }
        let doubled = |first: Duration| doubled(first, self.history.failed, MAX_DELAY);
        let (wait, confidence, reason) = match self.failure.retry_after {
            // The request says nothing about a second refusal, so the wait still grows.
            Some(asked) => (
                asked.max(doubled(FIRST_DELAY)),
                Confidence::High,
                format!("the provider asked for {} (retry-after)", in_words(asked)),
            ),
            None => (doubled(first), confidence, why.to_owned()),
        };
        Some((self.now + self.jitter.spread(wait), confidence, reason))
    }

    pub(super) fn spent(self, otherwise: &str) -> Decision {
        let reason = match self.history.failed {
            1 => format!("no more attempts are allowed; {otherwise}"),
            n => format!("{n} attempts failed; {otherwise}"),
        };
        escalate(reason, Confidence::Medium)
    }

    /// Waits until the reset, unless that is far away and another adapter may continue at once.
    pub(super) fn held(self) -> Decision {
        let near = self.failure.retry_after.is_some_and(|reset| reset <= PROBE);
        if near && self.history.held <= MAX_HOLDS {
            return self.wait();
        }
        self.handed_over(
            "its limit is used up, and another adapter can start at once",
            Self::wait,
        )
    }

    fn wait(self) -> Decision {
        if self.history.held > MAX_HOLDS {
            let reason =
                format!("the limit was still used up after {MAX_HOLDS} holds; raise it, or use another account");
            return escalate(reason, Confidence::Medium);
        }
        let (wait, confidence, reason) = match self.failure.retry_after {
            // A limit that refuses although it was reset is not asked at once again.
            Some(reset) => (
                reset.max(doubled(FIRST_DELAY, self.history.held, PROBE)),
                Confidence::High,
                "the plan's limit is used up until then; waiting costs nothing".to_owned(),
            ),
            None => {
                let every = in_words(PROBE);
                let reason = format!(
                    "the plan's limit or credit is used up and no reset time is known, so it is retried every {every}; \
                     waiting costs nothing"
                );
                (PROBE, Confidence::Medium, reason)
            }
        };
        Decision {
            action: Action::HoldUntil {
                at: self.now + self.jitter.spread(wait),
            },
            reason,
            confidence,
        }
    }
}

/// The wait after the `count`th failure, which doubles from `first` to `most`.
fn doubled(first: Duration, count: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << count.saturating_sub(1).min(16)).min(most)
}
