//! When a call of a model may be made, besides money: first it waits for the prompt cache that another session's
//! call writes, then for its turn under the rate limits of its account.
//!
//! ```text
//!   ask ──▶ prefix gate ──▶ line of the account ──▶ Go ──started──▶ ──committed / released──▶ forgotten
//!            one writes,     fair by task, paced by
//!            others wait     what the provider tells
//! ```
//!
//! Pure, and a memory only: it is never stored. What is lost with it lets calls go, and holds none. A call is
//! known from its first question to its end, so that a repeated question keeps its place. Whoever owns the state
//! asks again for the calls in [`CallQueue::woken`], and at the times that answers name. `budget` decides
//! afterwards, on calls that may go.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::{AccountName, Ask, RateTold};
use crate::id::{CallId, Digest, SessionId, TaskId};
use crate::price::PriceTable;
use crate::time::Timestamp;
use crate::usage::Usage;

mod bucket;
mod line;
mod prefix_gate;
mod rate_limit;
#[cfg(test)]
mod tests;

use prefix_gate::{Gated, Patience, PrefixGate, PrefixKey};
use rate_limit::{AccountRate, Blocked};

/// How long a call that nobody asks about keeps its place: agents ask again at once.
const ABSENT: Duration = Duration::from_secs(3);
/// How long a call waits for its account at most: a session that would wait longer leaves its slot to others.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a call of which nothing more is heard is remembered.
const FORGOTTEN: Duration = Duration::from_secs(2 * 60 * 60);

/// A question for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallAsked {
    /// Its id.
    pub call: CallId,
    /// Turns are shared by tasks.
    pub task: TaskId,
    /// A session waits for a cache once.
    pub session: SessionId,
    /// Whether it is of the session's first attempt: later ones wait for no cache.
    pub is_first: bool,
    /// Whose limits it counts against.
    pub account: AccountName,
    /// The model: caches are of one model.
    pub model: String,
    /// What of it other sessions send too, where it waits for their cache; see [`gated_prefix`].
    pub prefix: Option<Digest>,
    /// Tokens that its input has at most.
    pub input: u64,
}

/// Whether a call may go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum CallTurn {
    /// It may be made.
    Go,
    /// Not yet.
    Wait {
        /// For people: what it waits for.
        reason: String,
        /// When to look again at the latest; `None`: when it is woken.
        until: Option<Timestamp>,
    },
    /// Not for so long that nobody waits for it. The call is forgotten.
    Held {
        /// For people: what it would wait for.
        reason: String,
        /// How long.
        wait: Duration,
    },
}

/// The prefix that a call waits for: none where the model has no cache, where the prefix is too short for it, or
/// where nothing is known of the model.
#[must_use]
pub fn gated_prefix(ask: &Ask, prices: &PriceTable, now: Timestamp) -> Option<Digest> {
    /// Where a model's own minimum is not known: no provider's usual one is higher.
    const USUAL_MINIMUM: u64 = 1_024;
    let prefix = ask.prefix.as_ref().filter(|_| !ask.free)?;
    let row = prices.find(&ask.model, now)?;
    let caches = row.cache_read.is_some();
    let is_long = prefix.tokens >= row.min_cacheable.unwrap_or(USUAL_MINIMUM);
    (caches && is_long).then(|| prefix.digest.clone())
}

/// What a call used of its account's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallUsed {
    /// Tokens that count as input; `None`: nobody counted.
    pub input: Option<u64>,
    /// Tokens of its answer; `None`: nobody counted.
    pub output: Option<u64>,
}

impl CallUsed {
    /// By what was counted of a call. Anthropic does not limit what is read from a cache (its documentation of rate
    /// limits, read 2026-11-30); others limit all input.
    #[must_use]
    pub fn of(usage: &Usage, model: &str, prices: &PriceTable, now: Timestamp) -> Self {
        let row = prices.find(model, now);
        let is_free = row.is_some_and(|row| row.provider == "anthropic");
        let read = if is_free { usage.cache_read } else { 0 };
        let input = usage.total().saturating_sub(usage.output).saturating_sub(read);
        let is_counted = usage.total() > 0;
        Self {
            input: is_counted.then_some(input),
            output: is_counted.then_some(usage.output),
        }
    }
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It waits for another one's cache.
    AtGate,
    /// It waits for its turn.
    InLine,
    /// It may be made, or is.
    Gone,
}

#[derive(Debug, Clone)]
struct QueuedCall {
    asked: CallAsked,
    place: Place,
    /// When it was asked for first.
    since: Timestamp,
    /// When nobody waited for its answer any more; `None`: somebody does.
    absent: Option<Timestamp>,
}

impl QueuedCall {
    fn key(&self) -> Option<PrefixKey> {
        self.asked.prefix.as_ref().map(|digest| PrefixKey {
            account: self.asked.account.clone(),
            model: self.asked.model.clone(),
            digest: digest.clone(),
        })
    }
}

/// The calls that wait or are made, of all accounts.
#[derive(Debug, Default)]
pub struct CallQueue {
    calls: BTreeMap<CallId, QueuedCall>,
    gate: PrefixGate,
    /// When sessions passed the gate with a prefix: what they send again waits no more.
    passed: BTreeMap<(SessionId, Digest), Timestamp>,
    accounts: BTreeMap<AccountName, AccountRate>,
    woken: Vec<CallId>,
    swept: Timestamp,
}

impl CallQueue {
    /// Asks for a call, the first time or again.
    pub fn ask(&mut self, asked: &CallAsked, now: Timestamp) -> CallTurn {
        self.sweep(now);
        let call = asked.call;
        let place = match self.calls.get_mut(&call) {
            Some(known) => {
                known.absent = None;
                known.place
            }
            None => {
                let queued = QueuedCall {
                    asked: asked.clone(),
                    place: Place::AtGate,
                    since: now,
                    absent: None,
                };
                self.calls.insert(call, queued);
                Place::AtGate
            }
        };
        match place {
            Place::Gone => CallTurn::Go,
            Place::AtGate => self.at_gate(call, now),
            Place::InLine => self.in_line(call, now),
        }
    }

    /// Nobody waits for the answer any more, or not until the call is asked for again. One that may go already is
    /// not touched.
    pub fn pause(&mut self, call: CallId, now: Timestamp) {
        let Some(queued) = self.calls.get_mut(&call) else {
            return;
        };
        queued.absent = Some(now);
        if queued.place == Place::InLine {
            let account = queued.asked.account.clone();
            if let Some(rate) = self.accounts.get_mut(&account) {
                rate.line.set_present(call, false);
            }
            self.wake_next(&account);
        }
    }

    /// The call is not made now: what it has is given back, and it asks again as if it never had.
    pub fn withdraw(&mut self, call: CallId, now: Timestamp) {
        self.released(call, &RateTold::default(), now);
    }

    /// Its answer begins. What the provider told with it holds for the account.
    pub fn started(&mut self, call: CallId, told: &RateTold, now: Timestamp) {
        let Some(queued) = self.calls.get(&call).filter(|queued| queued.place == Place::Gone) else {
            return;
        };
        let account = queued.asked.account.clone();
        if let Some(key) = queued.key()
            && self.gate.written(&key, now)
        {
            self.wake_gate(&key);
        }
        self.rate(&account).started(call, told, now);
        self.wake_next(&account);
    }

    /// It ended, and used so much.
    pub fn committed(&mut self, call: CallId, used: CallUsed, told: &RateTold, now: Timestamp) {
        let is_made = |queued: &QueuedCall| queued.place == Place::Gone;
        if !self.calls.get(&call).is_some_and(is_made) {
            // It was granted by a queue that is lost, and asks for nothing any more.
            return self.withdraw(call, now);
        }
        // Its answer began, whether that was told or not.
        self.started(call, told, now);
        if let Some(queued) = self.calls.remove(&call) {
            let asked = &queued.asked;
            self.rate(&asked.account).committed(call, asked.input, used, now);
            self.wake_next(&asked.account);
        }
    }

    /// It was not made, or was refused.
    pub fn released(&mut self, call: CallId, told: &RateTold, now: Timestamp) {
        let Some(queued) = self.calls.remove(&call) else {
            return;
        };
        if let Some(key) = queued.key()
            && self.gate.failed(&key, call, now)
        {
            self.wake_heir(&key);
        }
        let account = &queued.asked.account;
        self.rate(account).released(call, told, now);
        self.wake_next(account);
    }

    /// The calls to ask for again, each once.
    pub fn woken(&mut self) -> Vec<CallId> {
        std::mem::take(&mut self.woken)
    }

    /// How many calls wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.calls.values().filter(|call| call.place != Place::Gone).count()
    }

    fn at_gate(&mut self, call: CallId, now: Timestamp) -> CallTurn {
        let Some(queued) = self.calls.get_mut(&call) else {
            return CallTurn::Go;
        };
        if let Some(key) = queued.key() {
            let of = (queued.asked.session, key.digest.clone());
            let patience = if queued.asked.is_first && !self.passed.contains_key(&of) {
                Patience::Since(queued.since)
            } else {
                Patience::None
            };
            if let Gated::Wait { until } = self.gate.ask(&key, call, patience, now) {
                return CallTurn::Wait {
                    reason: "the first call of another session writes the prompt cache that this one reads".to_owned(),
                    until: Some(until),
                };
            }
            self.passed.insert(of, now);
        }
        queued.place = Place::InLine;
        let (account, task) = (queued.asked.account.clone(), queued.asked.task);
        self.rate(&account).line.join(task, call);
        self.in_line(call, now)
    }

    fn in_line(&mut self, call: CallId, now: Timestamp) -> CallTurn {
        let Some(queued) = self.calls.get_mut(&call) else {
            return CallTurn::Go;
        };
        let asked = &queued.asked;
        let rate = self.accounts.entry(asked.account.clone()).or_default();
        rate.line.set_present(call, true);
        let next = rate.line.next();
        let size = rate.size(asked.input);
        match rate.blocked(size, now) {
            Blocked::No if next == Some(call) => {
                rate.sent(call, size, now);
                queued.place = Place::Gone;
                if let Some(key) = queued.key() {
                    self.gate.sent(&key, call, now);
                }
                let account = queued.asked.account.clone();
                self.wake_next(&account);
                CallTurn::Go
            }
            Blocked::No => {
                // The next one may have a time of its own to look at.
                let reason = format!("calls of other sessions with the account {} come first", asked.account);
                self.woken.extend(next);
                CallTurn::Wait { reason, until: None }
            }
            Blocked::Yes { why, until } => {
                let reason = why.words(&asked.account, now);
                let wait = until.since(now);
                if wait > LONGEST_WAIT {
                    self.withdraw(call, now);
                    return CallTurn::Held { reason, wait };
                }
                let until = (next == Some(call)).then_some(until);
                CallTurn::Wait { reason, until }
            }
        }
    }

    fn rate(&mut self, account: &AccountName) -> &mut AccountRate {
        self.accounts.entry(account.clone()).or_default()
    }

    fn wake_next(&mut self, account: &AccountName) {
        let next = self.accounts.get_mut(account).and_then(|rate| rate.line.next());
        self.wake(next);
    }

    /// Everybody who waited for a prefix that is in the cache now.
    fn wake_gate(&mut self, key: &PrefixKey) {
        let waiting: Vec<CallId> = self.at(key).map(|(call, _)| call).collect();
        for call in waiting {
            self.wake(Some(call));
        }
    }

    /// Whoever waited longest writes the prefix instead.
    fn wake_heir(&mut self, key: &PrefixKey) {
        let present = self.at(key).filter(|(_, queued)| queued.absent.is_none());
        let first = present.min_by_key(|(call, queued)| (queued.since, *call));
        let first = first.map(|(call, _)| call);
        self.wake(first);
    }

    fn at<'a>(&'a self, key: &'a PrefixKey) -> impl Iterator<Item = (CallId, &'a QueuedCall)> {
        let calls = self.calls.iter().map(|(call, queued)| (*call, queued));
        calls.filter(|(_, queued)| queued.place == Place::AtGate && queued.key().as_ref() == Some(key))
    }

    fn wake(&mut self, call: Option<CallId>) {
        if let Some(call) = call
            && !self.woken.contains(&call)
        {
            self.woken.push(call);
        }
    }

    /// Gives up the places of calls that nobody asks about, and forgets what is not needed.
    fn sweep(&mut self, now: Timestamp) {
        if now.since(self.swept) < ABSENT {
            return;
        }
        self.swept = now;
        let is_lost = |queued: &QueuedCall| match queued.place {
            Place::AtGate | Place::InLine => queued.absent.is_some_and(|at| now.since(at) > ABSENT),
            Place::Gone => now.since(queued.since) > FORGOTTEN,
        };
        let calls = self.calls.iter().filter(|(_, queued)| is_lost(queued));
        let lost: Vec<CallId> = calls.map(|(call, _)| *call).collect();
        for call in lost {
            self.withdraw(call, now);
        }
        self.gate.sweep(now);
        self.passed.retain(|_, at| now.since(*at) <= FORGOTTEN);
        self.accounts.values_mut().for_each(|rate| rate.sweep(now));
    }
}
