//! What to do about a failure: again, elsewhere, later, or not at all, and why.
//!
//! ```text
//!   worth repeating -----------> RetryCurrent   (after a wait, or when the provider said)
//!   files not to be trusted ---> RollbackLast   (to the last checkpoint between two steps)
//!   verify failed -------------> Rework         (from the session's own last checkpoint)
//!   the adapter gives it up ---> RollbackSafe   (to the last one on which verify passed)
//!   the machine's fault -------> MoveAgent
//!   a limit is used up --------> HoldUntil      (its reset; nothing runs, nothing costs)
//!   the adapter cannot go on -----> SwitchAdapter  (when the task names another one)
//!   no cure, or tried enough --> Escalate       (and what a person should do)
//! ```
//! Whatever is repeated goes on from the newest checkpoint when it does not say otherwise,
//! and from the base when there is none.
//!
//! It decides about attempts. Single model calls are repeated by adapters, a few times.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};
use crate::time::{Timestamp, in_words};

mod again;
#[cfg(test)]
mod tests;

use again::Again;

/// What was tried so far, the failure to decide on included, and what may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// Attempts that ended by a failure of their own.
    pub failed: u32,
    /// Attempts that ended because their agent was lost, restarted or drained.
    pub lost: u32,
    /// Attempts that ended because a limit was used up.
    pub held: u32,
    /// How many attempts may fail.
    pub max_attempts: u32,
    /// Attempts before this one that ended because they had made as many turns as one may.
    pub turn_limits: u32,
    /// True when there is a checkpoint that was taken between two steps.
    pub settled: bool,
    /// True when edits may be half done in the newest checkpoint.
    pub half_done: bool,
    /// True when there is a checkpoint on whose files verify passed.
    pub safe: bool,
    /// How often it worked on because its work did not pass.
    pub reworked: u32,
    /// How often somebody said that it may.
    pub max_reworks: u32,
    /// True when another adapter may take the session over.
    pub fallback: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// The same job again.
    RetryCurrent {
        /// Not before this time.
        at: Timestamp,
    },
    /// The same job again, from the last checkpoint that was taken between two steps.
    RollbackLast {
        /// Not before this time.
        at: Timestamp,
    },
    /// The session again, from the last checkpoint on whose files verify passed.
    RollbackSafe {
        /// Not before this time.
        at: Timestamp,
    },
    /// The session again, from its own last checkpoint, told what verify said of its result.
    Rework {
        /// Not before this time.
        at: Timestamp,
        /// Number of the checkpoint.
        from: u32,
    },
    /// The same job again, on another agent if one fits.
    MoveAgent {
        /// Not before this time.
        at: Timestamp,
    },
    /// The same job again, by the next adapter that the task allows, from the files of the
    /// newest checkpoint and with a new conversation.
    SwitchAdapter {
        /// Not before this time.
        at: Timestamp,
    },
    /// The same job again when a limit was reset. Nothing runs until then.
    HoldUntil {
        /// The reset, or the next time to look.
        at: Timestamp,
    },
    /// Nothing more by itself: the reason says what a person should do.
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

    /// What is done, seen from `now`: "again after 12 s".
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
            Self::Rework { from, .. } => format!("going on from checkpoint {from} with verify's output"),
            Self::MoveAgent { at } => format!("again {}, on another agent if one fits", after(at)),
            Self::SwitchAdapter { at } => format!("again {}, with another adapter", after(at)),
            Self::HoldUntil { at } => format!("held until {}", at.to_minute(now)),
            Self::Escalate => "given up".to_owned(),
        }
    }
}

/// How sure a decision is to be the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// The failure is not understood; this is the cheapest thing that may help.
    Low,
    /// It usually helps.
    Medium,
    /// The failure says what to do.
    High,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Decision {
    /// What to do.
    #[serde(flatten)]
    pub action: Action,
    /// Why; when it is given up, what a person should do. A clause that follows a colon.
    pub reason: String,
    /// How sure that is.
    pub confidence: Confidence,
}

/// A random part of waits, so that what failed together does not come back together.
/// Waits only grow by it, by a quarter and [`MOST_JITTER`] at most: nobody comes before they
/// were asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter(u32);

impl Jitter {
    /// Waits stay as they are.
    pub const NONE: Self = Self(0);
    /// Waits grow as much as they may.
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

/// A failure of an attempt, and what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// When.
    pub at: Timestamp,
    /// True when it was an attempt to check the result.
    pub verify: bool,
    /// Number of the attempt within its job.
    pub attempt: u32,
    /// Name of the agent that worked on the session, if it was no check.
    pub agent: Option<String>,
    /// What went wrong.
    pub failure: Failure,
    /// What followed.
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

/// Lost attempts that are made good before a job counts as one that kills agents.
pub const MAX_LOST: u32 = 5;
/// Holds of one job before a person has to look.
pub const MAX_HOLDS: u32 = 32;
/// A used-up limit is tried again so often when nobody said when it resets.
pub const PROBE: Duration = Duration::from_secs(15 * 60);
/// The longest wait that is kept when a provider asks for it: a weekly limit and a day.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// The wait before the second attempt; it doubles from one to the next.
pub const FIRST_DELAY: Duration = Duration::from_secs(2);
/// The same where a provider is short of capacity, and adapters have repeated calls before.
pub const CAPACITY_DELAY: Duration = Duration::from_secs(15);
/// Verify attempts that may end without a decision before the session counts as unverified.
pub const MAX_ERRORED_VERDICTS: u32 = 2;

/// How often a session whose result fails verify works on when nobody said how often: most of
/// what can be repaired is by the first look at the output, and each time costs as a session does.
pub const DEFAULT_REWORKS: u32 = 1;

/// The most that chance adds to a wait: whoever waits for days need not wait for hours more.
pub const MOST_JITTER: Duration = Duration::from_secs(60);

/// Decides what to do about `failure`, which `history` already counts.
///
/// A lost agent and a used-up limit have limits of their own: they say nothing about the
/// work. What a repetition cannot cure (a refused key, an invalid request, wrong work) is
/// never repeated.
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
        Kind::RateLimited => again.here(
            CAPACITY_DELAY,
            Medium,
            "limits of a rate pass by themselves",
            "run fewer sessions at once on this account, or raise its limit",
        ),
        Kind::Overloaded => again.here(
            CAPACITY_DELAY,
            Medium,
            "the provider's capacity comes back by itself",
            "run it again later, or with another model",
        ),
        Kind::Network => again.here(
            FIRST_DELAY,
            Medium,
            "a cut connection usually comes back",
            "see whether the agent's machine reaches the provider and the coordinator",
        ),
        Kind::ContextUnavailable => again.here(
            FIRST_DELAY,
            Medium,
            "what is missing is fetched anew",
            "send the context or the prompt again with a new run",
        ),
        Kind::Timeout => again.once().here(
            FIRST_DELAY,
            Low,
            "a program that hung once need not hang again; a second time it is the task",
            "give it more time (--timeout, --idle-timeout) or a smaller task",
        ),
        Kind::AdapterCrash if history.half_done && history.settled => again.back(
            Medium,
            "it crashed in the middle of edits, so those are taken back",
            "read what the program wrote: kage logs",
        ),
        // One crash may be anybody's; from the second on, the machine is suspected.
        Kind::AdapterCrash if history.failed <= 1 => again.here(
            FIRST_DELAY,
            Medium,
            "a crash is often not repeated",
            "read what the program wrote: kage logs",
        ),
        Kind::AdapterCrash => again.elsewhere(
            Medium,
            "it crashed again, which may be this machine",
            "read what the program wrote: kage logs",
        ),
        Kind::CorruptedState if history.settled => again.back(
            High,
            "what was stored before is whole, and a worktree made anew from it as well",
            "look at the repository in the agent's state folder",
        ),
        Kind::CorruptedState => again.elsewhere(
            Medium,
            "another machine has a mirror and a worktree of its own",
            "look at the repository in the agent's state folder",
        ),
        Kind::AdapterUnavailable if history.failed >= history.max_attempts => again
            .handed_over("it is not in working order on any machine that was tried", |again| {
                again.spent("kage doctor on the agent's machine says what the adapter lacks")
            }),
        Kind::AdapterUnavailable => again.elsewhere(
            High,
            "another machine may have the adapter in working order",
            "kage doctor on the agent's machine says what the adapter lacks",
        ),
        Kind::DiskFull => again.elsewhere(
            High,
            "another machine has room, and this one may get some meanwhile",
            "make room on the agent's machine",
        ),
        Kind::Unknown => again.once().elsewhere(
            Low,
            "nobody knows this failure, so it is tried once more, elsewhere",
            "read what was written (kage logs), and teach Kage the words of it in failures.toml",
        ),
        Kind::QuotaExhausted => again.held(),
        Kind::AgentLost if history.lost <= MAX_LOST => Decision {
            action: Action::RetryCurrent { at: now },
            reason: "losing an agent says nothing about the work".to_owned(),
            confidence: High,
        },
        Kind::AgentLost => {
            let lost = history.lost;
            let reason = format!("{lost} agents were lost with it, so it may be what ends them; look at their logs");
            escalate(reason, Medium)
        }
        Kind::Auth => again.handed_over("no repetition cures a key or login that is refused", |_| {
            escalate(
                "no repetition cures a key or login that is refused; set it on the agent and run again",
                High,
            )
        }),
        Kind::InvalidRequest => escalate(
            "the same request would be refused again; check model, settings and prompt",
            High,
        ),
        Kind::ContextOverflow => escalate(
            "it would grow too long again; give it a smaller task or context, or a model with a larger window",
            High,
        ),
        Kind::LogicError => again.rework(),
        Kind::TurnLimit => again.further(),
        Kind::NoChange => escalate(
            "it did nothing and said it was done; read what it wrote (kage logs), and say more in the prompt",
            Medium,
        ),
        Kind::BudgetExceeded => escalate("what it may cost is spent; raise the limit and run again", High),
        Kind::Cancelled => escalate("it was asked to stop", High),
    }
}

/// Decides what to do when verify came to no decision for the `errored`th time: that is
/// nobody's failure, and what it lacked another agent may have.
pub fn decide_errored(errored: u32, now: Timestamp) -> Decision {
    if errored < MAX_ERRORED_VERDICTS {
        return Decision {
            action: Action::MoveAgent { at: now },
            reason: "another machine may have what set-up and verify need".to_owned(),
            confidence: Confidence::Medium,
        };
    }
    escalate(
        "set-up and verify cannot be run; look at their output (kage logs) and at what they need",
        Confidence::Medium,
    )
}

/// What is known where a result failed verify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rejection {
    /// How often the session worked on already because its work did not pass.
    pub reworked: u32,
    /// How often it may; `None` = nobody said.
    pub max_reworks: Option<u32>,
    /// True when its adapter can go on with the conversation, which is kept.
    pub resumes: bool,
    /// Number of its last checkpoint.
    pub last: Option<u32>,
    /// True when verify fails on the task's base as well.
    pub base_fails: bool,
}

/// Decides what to do about a result that failed verify: the session goes on from where it
/// stopped, as often as it may. Whether verify passed on the base says nothing about that: where
/// it fails, a result that passes is what the task is for.
pub fn decide_rejected(rejection: Rejection, now: Timestamp) -> Decision {
    let usual = if rejection.resumes { DEFAULT_REWORKS } else { 0 };
    let most = rejection.max_reworks.unwrap_or(usual);
    let why_not = match (rejection.last, rejection.max_reworks) {
        (Some(from), _) if rejection.reworked < most => {
            return Decision {
                action: Action::Rework { at: now, from },
                reason: "told what failed, it may do better".to_owned(),
                confidence: Confidence::Medium,
            };
        }
        (None, _) if rejection.reworked < most => "no checkpoint is there to go on from; read what it did",
        _ if rejection.reworked > 0 => "the work is still wrong; read it, and say more in the prompt",
        (_, None) => {
            "its adapter cannot go on with the conversation; read the work, or let a new one see what failed (--rework 1)"
        }
        (_, Some(_)) => "the work is wrong; read it, and say more in the prompt (--rework lets it try again)",
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
