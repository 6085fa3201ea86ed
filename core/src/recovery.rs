//! What to do about a failure: retry, move, wait, or give up, and why.
//!
//! ```text
//!   worth repeating -----------> RetryCurrent   (after a wait, or when the provider said)
//!   files not to be trusted ---> RollbackLast   (to the last checkpoint between two steps)
//!   verify failed -------------> Rework         (from the session's own last checkpoint)
//!   the adapter gives it up ---> RollbackSafe   (to the last one on which verify passed)
//!   the machine's fault -------> MoveAgent
//!   a limit is used up --------> HoldUntil      (its reset; nothing runs, nothing costs)
//!   the adapter cannot continue --> SwitchAdapter  (when the task names another one)
//!   no cure, or tried enough --> Escalate       (and what a person should do)
//! ```
//! Unless the action says otherwise, a retry resumes the newest checkpoint, or starts from the base
//! when there is none.
//!
//! It decides about attempts. Adapters repeat single model calls a few times.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};
use crate::time::{Timestamp, in_words};
use crate::words::words;

mod again;
#[cfg(test)]
mod tests;

use again::Again;

/// The earlier attempts, including the failure to decide on, and the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// Attempts that ended by a failure of their own.
    pub failed: u32,
    /// Attempts that ended because their agent was lost, restarted or drained, or its machine had no
    /// room for programs.
    pub lost: u32,
    /// Attempts that ended because a limit was used up.
    pub held: u32,
    /// Attempts that ended because their access token did.
    pub expired: u32,
    /// How many attempts may fail.
    pub max_attempts: u32,
    /// Earlier attempts that ended because they reached the turn limit.
    pub turn_limits: u32,
    /// True when there is a checkpoint that was taken between two steps.
    pub settled: bool,
    /// True when edits may be half done in the newest checkpoint.
    pub half_done: bool,
    /// True when there is a checkpoint whose files passed verify.
    pub safe: bool,
    /// How often the session reworked a result that failed.
    pub reworked: u32,
    /// How often it may.
    pub max_reworks: u32,
    /// True when another adapter may take over the session.
    pub fallback: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Retry the job.
    RetryCurrent {
        /// Not before this time.
        at: Timestamp,
    },
    /// Retry the job, from the last checkpoint that was taken between two steps.
    RollbackLast {
        /// Not before this time.
        at: Timestamp,
    },
    /// Retry the session, from the last checkpoint whose files passed verify.
    RollbackSafe {
        /// Not before this time.
        at: Timestamp,
    },
    /// Continue the session from its own last checkpoint, with verify's output.
    Rework {
        /// Not before this time.
        at: Timestamp,
        /// Number of the checkpoint.
        from: u32,
    },
    /// Retry the job, on another agent if one fits.
    MoveAgent {
        /// Not before this time.
        at: Timestamp,
    },
    /// Retry the job with the next adapter that the task allows, from the files of the newest
    /// checkpoint and with a new conversation.
    SwitchAdapter {
        /// Not before this time.
        at: Timestamp,
    },
    /// Retry the job when a limit was reset. Nothing runs until then.
    HoldUntil {
        /// The reset, or the next time to check.
        at: Timestamp,
    },
    /// Do nothing more: the reason says what a person should do.
    Escalate,
}

impl Action {
    /// The earliest time of the next attempt; `None` when there is none.
    #[must_use]
    pub const fn next_attempt(self) -> Option<Timestamp> {
        match self {
            Self::RetryCurrent { at }
            | Self::RollbackLast { at }
            | Self::RollbackSafe { at }
            | Self::Rework { at, .. }
            | Self::MoveAgent { at }
            | Self::SwitchAdapter { at }
            | Self::HoldUntil { at } => Some(at),
            Self::Escalate => None,
        }
    }

    /// The action, seen from `now`: "again after 12 s".
    #[must_use]
    pub fn words(self, now: Timestamp) -> String {
        let after = |at: Timestamp| match at.since(now) {
            Duration::ZERO => "at once".to_owned(),
            wait => format!("after {}", in_words(wait)),
        };
        match self {
            Self::RetryCurrent { at } => format!("again {}", after(at)),
            Self::RollbackLast { at } => format!("back to the last checkpoint between two steps, again {}", after(at)),
            Self::RollbackSafe { at } => format!("back to the last safe checkpoint, again {}", after(at)),
            Self::Rework { from, .. } => format!("continues from checkpoint {from} with verify's output"),
            Self::MoveAgent { at } => format!("again {}, on another agent if one fits", after(at)),
            Self::SwitchAdapter { at } => format!("again {}, with another adapter", after(at)),
            Self::HoldUntil { at } => format!("held until {}", at.to_minute(now)),
            Self::Escalate => "given up".to_owned(),
        }
    }
}

words! {
    /// The likelihood that a decision is right.
    #[derive(PartialOrd, Ord)]
    pub enum Confidence: "a word for how sure a decision is" {
        /// The failure is not understood; this is the cheapest attempt at a cure.
        Low = "low",
        /// It usually helps.
        Medium = "medium",
        /// The failure itself says what to do.
        High = "high",
    }
}

/// An action and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Decision {
    /// What to do.
    #[serde(flatten)]
    pub action: Action,
    /// The reason; when the job is given up, what a person should do. A clause that follows a
    /// colon.
    pub reason: String,
    /// The likelihood that the action is right.
    pub confidence: Confidence,
}

/// A random part of waits, so that simultaneous failures are not retried at the same moment. Waits
/// only grow by it, by a quarter and [`MOST_JITTER`] at most: no retry comes before the time that
/// was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter(u32);

impl Jitter {
    /// Waits stay as they are.
    pub const NONE: Self = Self(0);
    /// Waits grow by the maximum.
    pub const MOST: Self = Self(u32::MAX);

    /// A jitter from random bits.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
    pub const fn from_random(bits: u128) -> Self {
        Self(bits as u32)
    }

    fn spread(self, wait: Duration) -> Duration {
        let most = (wait / 4).min(MOST_JITTER).as_millis();
        let more = most * u128::from(self.0) / u128::from(u32::MAX);
        wait.saturating_add(Duration::from_millis(u64::try_from(more).unwrap_or(u64::MAX)))
    }
}

/// A failure of an attempt, and the decision about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// When it happened.
    pub at: Timestamp,
    /// True for an attempt to verify the result.
    pub verify: bool,
    /// Number of the attempt within its job.
    pub attempt: u32,
    /// Name of the agent that worked on the session; `None` for a verify attempt.
    pub agent: Option<String>,
    /// What went wrong.
    pub failure: Failure,
    /// The decision.
    pub decision: Decision,
}

impl Incident {
    /// One line for people: "attempt 1: rate limited: HTTP 429: slow down; again after 12 s: ...".
    #[must_use]
    pub fn words(&self) -> String {
        let done = self.decision.action.words(self.at);
        format!("{}; {done}: {}", self.what(), self.decision.reason)
    }

    /// Why the next attempt has not begun. `None` when its time has come, or there is none.
    #[must_use]
    pub fn waiting(&self, now: Timestamp) -> Option<String> {
        self.decision.action.next_attempt().filter(|at| *at > now)?;
        let next = self.decision.action.words(now);
        Some(format!("{next}: {} ({})", self.decision.reason, self.what()))
    }

    fn what(&self) -> String {
        let job = if self.verify { "verify attempt" } else { "attempt" };
        let place = match (&self.agent, self.decision.action) {
            (Some(agent), Action::MoveAgent { .. }) => format!(" on {agent}"),
            (Some(_) | None, _) => String::new(),
        };
        format!("{job} {}{place}: {}", self.attempt, self.failure)
    }
}

/// Lost attempts that are replaced before the job itself is suspected to kill agents.
pub const MAX_LOST: u32 = 5;
/// Attempts of one job whose access token may end while they run. Tokens live for hours, so that more
/// say that something else is wrong.
pub const MAX_EXPIRED: u32 = 16;
/// Holds of one job before a person has to look.
pub const MAX_HOLDS: u32 = 32;
/// The interval of retries of a used-up limit with an unknown reset.
pub const PROBE: Duration = Duration::from_secs(15 * 60);
/// The longest wait that is accepted when a provider asks for it: a weekly limit and a day.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// The wait before the second attempt; it doubles with each further one.
pub const FIRST_DELAY: Duration = Duration::from_secs(2);
/// The first wait when a provider lacks capacity, after the adapter repeated calls itself.
pub const CAPACITY_DELAY: Duration = Duration::from_secs(15);
/// Verify attempts that may end without a decision before the session counts as unverified.
pub const MAX_ERRORED_VERDICTS: u32 = 2;

/// The default number of reworks after a failed verify: most repairs succeed at the first look at
/// the output, and each rework costs as much as a session.
pub const DEFAULT_REWORKS: u32 = 1;

/// The most that chance adds to a wait: a wait of days need not grow by hours.
pub const MOST_JITTER: Duration = Duration::from_secs(60);

/// Decides what to do about `failure`, which `history` already counts.
///
/// A lost agent, an access token that ended and a used-up limit have limits of their own: they say
/// nothing about the work. A machine without room counts as a lost agent.
/// Failures that a retry cannot cure (a refused key, an invalid request, wrong work) are never
/// retried.
pub fn decide(history: History, failure: &Failure, jitter: Jitter, now: Timestamp) -> Decision {
    use Confidence::{High, Low, Medium};
    use FailureKind as Kind;

    let again = Again {
        history,
        failure,
        jitter,
        now,
    };
    if let Some(wait) = failure.retry_after.filter(|wait| *wait > LONGEST_WAIT) {
        let asked = format!(
            "the provider asks to wait for {}, which is longer than Kage waits",
            in_words(wait)
        );
        let otherwise = format!("{asked}; use another account or adapter");
        return again.handed_over(&asked, |_| escalate(otherwise, High));
    }
    match failure.kind {
        Kind::RateLimited if failure.is_held() => again.held(),
        Kind::RateLimited => again.here(
            CAPACITY_DELAY,
            Medium,
            "rate limits reset by themselves",
            "run fewer sessions at once on this account, or raise its limit",
        ),
        Kind::Overloaded => again.here(
            CAPACITY_DELAY,
            Medium,
            "an overload usually passes by itself",
            "run it again later, or with another model",
        ),
        Kind::Network => again.here(
            FIRST_DELAY,
            Medium,
            "connection failures usually pass by themselves",
            "check that the agent's machine can reach the provider and the coordinator",
        ),
        Kind::ContextUnavailable => again.here(
            FIRST_DELAY,
            Medium,
            "the missing context or prompt is fetched again",
            "start a new run, which sends the context and the prompt again",
        ),
        Kind::Timeout => again.once().here(
            FIRST_DELAY,
            Low,
            "it hung once, so it is retried; if it hangs again, the task is probably the cause",
            "give it more time (--timeout, --idle-timeout) or a smaller task",
        ),
        Kind::AdapterCrash if history.half_done && history.settled => again.back(
            Medium,
            "it crashed during edits, so the unfinished edits are undone",
            "read the program's output: kage logs",
        ),
        // One crash may be an accident; from the second on, the machine is suspected.
        Kind::AdapterCrash if history.failed <= 1 => again.here(
            FIRST_DELAY,
            Medium,
            "most crashes do not repeat",
            "read the program's output: kage logs",
        ),
        Kind::AdapterCrash => again.elsewhere(
            Medium,
            "it crashed again; the machine may be the cause",
            "read the program's output: kage logs",
        ),
        Kind::CorruptedState if history.settled => again.back(
            High,
            "earlier checkpoints are intact, and a new worktree is made from one of them",
            "check the repository in the agent's state folder",
        ),
        Kind::CorruptedState => again.elsewhere(
            Medium,
            "another machine has its own mirror and worktree",
            "check the repository in the agent's state folder",
        ),
        Kind::AdapterUnavailable if history.failed >= history.max_attempts => again
            .handed_over("the adapter works on none of the machines that were tried", |again| {
                again.spent("run kage doctor on the agent's machine to see what the adapter lacks")
            }),
        Kind::AdapterUnavailable => again.elsewhere(
            High,
            "the adapter may work on another machine",
            "run kage doctor on the agent's machine to see what the adapter lacks",
        ),
        Kind::DiskFull => again.elsewhere(
            High,
            "another machine may have free disk space, or this one may get some",
            "free disk space on the agent's machine",
        ),
        Kind::MachineBusy => again.without_room(),
        Kind::SetupFailed => again.elsewhere(
            Medium,
            "the set-up command may work on another machine",
            "read the set-up command's output: kage logs; then mend it, or what it needs on the agent's machine",
        ),
        Kind::Unknown => again.once().elsewhere(
            Low,
            "unknown failure: trying once more on another agent",
            "read the output (kage logs), and add its wording to failures.toml so that Kage knows it next time",
        ),
        Kind::QuotaExhausted => again.held(),
        Kind::AgentLost if history.lost <= MAX_LOST => Decision {
            action: Action::RetryCurrent { at: now },
            reason: "losing an agent says nothing about the work".to_owned(),
            confidence: High,
        },
        Kind::AgentLost => {
            let lost = history.lost;
            let reason =
                format!("{lost} agents were lost while they ran it, so it may be the cause; look at their logs");
            escalate(reason, Medium)
        }
        Kind::Auth => again.handed_over(
            "the provider rejected the key or login, and retrying will not help",
            |_| {
                escalate(
                    "the provider rejected the key or login; fix it on the agent and run again, retrying will not help",
                    High,
                )
            },
        ),
        Kind::TokenExpired if history.expired <= MAX_EXPIRED => Decision {
            action: Action::RetryCurrent { at: now },
            reason: "an access token that ended says nothing about the work; the next attempt gets a new one"
                .to_owned(),
            confidence: High,
        },
        Kind::TokenExpired => {
            let expired = history.expired;
            escalate(
                format!(
                    "{expired} access tokens ended while it ran; check the clock of the agent's machine, and log in again"
                ),
                Medium,
            )
        }
        Kind::InvalidRequest => escalate(
            "the same request would be refused again; check model, settings and prompt",
            High,
        ),
        Kind::ModelRefused => escalate(
            "the model would refuse the same task again; word the prompt differently, or use another model",
            High,
        ),
        Kind::ContextOverflow => escalate(
            "the context would overflow again; use a smaller task or context, or a model with a larger window",
            High,
        ),
        Kind::LogicError => again.rework(),
        Kind::TurnLimit => again.further(),
        Kind::NoChange => escalate(
            "it changed nothing and reported success; read its output (kage logs), and make the prompt more specific",
            Medium,
        ),
        Kind::ResultTooLarge => escalate(
            "another attempt would make the same files; ignore them (.gitignore), or raise the limits \
             (max_new_mib, max_new_files)",
            High,
        ),
        Kind::SecretFound => escalate(
            "another attempt would have the same secret to write; say in the prompt that it is read from the \
             environment, or ignore the file (.gitignore)",
            High,
        ),
        Kind::ResultRefused => escalate(
            "the same result would be refused again; if its files are the reason, change the prompt, and else look at \
             the agent that sent it: its version, its log, and whether it is yours",
            High,
        ),
        Kind::BudgetExceeded => escalate("the budget is spent; raise the limit and run again", High),
        Kind::Cancelled => escalate("it was asked to stop", High),
    }
}

/// Decides what to do when verify came to no decision for the `errored`th time: the session did not
/// cause that, and another agent may have what this one lacked.
pub fn decide_errored(errored: u32, now: Timestamp) -> Decision {
    if errored < MAX_ERRORED_VERDICTS {
        return Decision {
            action: Action::MoveAgent { at: now },
            reason: "another machine may have what set-up and verify need".to_owned(),
            confidence: Confidence::Medium,
        };
    }
    escalate(
        "set-up or verify cannot run; check their output (kage logs) and what they need",
        Confidence::Medium,
    )
}

/// The facts about a result that failed verify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rejection {
    /// How often the session reworked a failed result already.
    pub reworked: u32,
    /// How often it may; `None`: not specified.
    pub max_reworks: Option<u32>,
    /// True when its adapter can continue the stored conversation.
    pub resumes: bool,
    /// Number of its last checkpoint.
    pub last: Option<u32>,
    /// True when verify fails on the task's base as well.
    pub base_fails: bool,
}

/// Decides what to do about a result that failed verify: the session continues from where it
/// stopped, as often as it may. Whether verify passed on the base does not matter: where it fails,
/// a result that passes is the purpose of the task.
pub fn decide_rejected(rejection: Rejection, now: Timestamp) -> Decision {
    let usual = if rejection.resumes { DEFAULT_REWORKS } else { 0 };
    let most = rejection.max_reworks.unwrap_or(usual);
    let why_not = match (rejection.last, rejection.max_reworks) {
        (Some(from), _) if rejection.reworked < most => {
            return Decision {
                action: Action::Rework { at: now, from },
                reason: "knowing what failed, the session may fix it".to_owned(),
                confidence: Confidence::Medium,
            };
        }
        (None, _) if rejection.reworked < most => {
            "there is no checkpoint to continue from; read its output (kage logs)"
        }
        _ if rejection.reworked > 0 => "the result still fails; review it, and make the prompt more specific",
        (_, None) => {
            "its adapter cannot continue the conversation; review the work, or let a new one start with the failure as its message (--rework 1)"
        }
        (_, Some(_)) => "the result fails; review it, and make the prompt more specific (--rework lets it try again)",
    };
    let base = match rejection.base_fails {
        true => "; verify fails on the base as well (kage logs --base)",
        false => "",
    };
    escalate(format!("{why_not}{base}"), Confidence::Medium)
}

fn escalate(reason: impl Into<String>, confidence: Confidence) -> Decision {
    Decision {
        action: Action::Escalate,
        reason: reason.into(),
        confidence,
    }
}
