//! The rate limits of one account, shared by all its sessions. What its provider tells with answers is the truth; in
//! between, what was sent is taken off, and what comes free again is added. While nothing is known, one call at a
//! time finds out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::CallUsed;
use super::bucket::Bucket;
use super::line::Line;
use crate::call::{AccountName, RateTold};
use crate::id::CallId;
use crate::time::Timestamp;

/// How long the call that finds out is waited for, before another one may go too.
const FINDING_OUT: Duration = Duration::from_secs(5);
/// How long a call may be on its way before its provider has counted it.
const ON_ITS_WAY: Duration = Duration::from_secs(60);
/// Nobody goes earlier than a provider asked, also by clocks that differ a little.
const LATER: Duration = Duration::from_millis(20);
/// Tokens of an answer before any was seen.
const FIRST_OUTPUT: u64 = 500;
/// The estimates of input are in parts of this.
const WHOLE: u64 = 1 << 20;
/// An estimate of input is never a smaller part of its bound than this.
const LEAST: u64 = WHOLE / 64;

/// What a call takes of each limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CallSize {
    input: u64,
    output: u64,
}

/// A call that may be made and did not end.
#[derive(Debug, Clone, Copy)]
struct Sent {
    size: CallSize,
    at: Timestamp,
    /// Its answer began: the provider counted it.
    is_seen: bool,
}

/// What holds calls back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// The provider asked.
    Asked(Timestamp),
    /// The first call finds out.
    FindingOut,
    /// A limit is used up, and free again at a time, or bit by bit.
    UsedUp(&'static str, Option<Timestamp>),
}

impl Hold {
    pub(super) fn words(self, account: &AccountName, now: Timestamp) -> String {
        match self {
            Self::Asked(until) => format!(
                "the provider asked that nobody calls with the account {account} before {}",
                second(until, now)
            ),
            Self::FindingOut => format!("the first call with the account {account} finds out about its rate limits"),
            Self::UsedUp(what, None) => {
                format!("the rate limit of {what} of the account {account} is used up, and fills again")
            }
            Self::UsedUp(what, Some(until)) => format!(
                "the rate limit of {what} of the account {account} is used up until {}",
                second(until, now)
            ),
        }
    }
}

/// A time for people: a limit is often free again within a minute.
fn second(at: Timestamp, now: Timestamp) -> String {
    let minute = at.to_minute(now);
    let seconds = at.as_millis().div_ceil(1_000) % 60;
    match minute.rsplit_once(" UTC") {
        Some((minute, _)) => format!("{minute}:{seconds:02} UTC"),
        None => minute,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Blocked {
    No,
    Yes {
        why: Hold,
        /// When to look again, unless an answer comes before.
        until: Timestamp,
    },
}

#[derive(Debug)]
pub(super) struct AccountRate {
    pub(super) line: Line,
    /// Whether an answer told what there is to know.
    is_known: bool,
    held_until: Timestamp,
    requests: Option<Bucket>,
    input: Option<Bucket>,
    output: Option<Bucket>,
    sent: BTreeMap<CallId, Sent>,
    /// The part of the bound of a call's input that counted lately.
    input_part: u64,
    /// Tokens of answers lately.
    output_mean: u64,
}

impl Default for AccountRate {
    fn default() -> Self {
        Self {
            line: Line::default(),
            is_known: false,
            held_until: Timestamp::default(),
            requests: None,
            input: None,
            output: None,
            sent: BTreeMap::new(),
            input_part: WHOLE,
            output_mean: FIRST_OUTPUT,
        }
    }
}

impl AccountRate {
    /// What a call with so many tokens of input at most takes, by what calls took lately.
    pub(super) fn size(&self, input_bound: u64) -> CallSize {
        let part = (self.input_part + self.input_part / 4).min(WHOLE);
        let input = u128::from(input_bound) * u128::from(part) / u128::from(WHOLE);
        CallSize {
            input: u64::try_from(input).unwrap_or(u64::MAX),
            output: self.output_mean,
        }
    }

    pub(super) fn blocked(&mut self, size: CallSize, now: Timestamp) -> Blocked {
        if now < self.held_until {
            return Blocked::Yes {
                why: Hold::Asked(self.held_until),
                until: self.held_until,
            };
        }
        if !self.is_known {
            let unseen = self.sent.values().filter(|sent| !sent.is_seen);
            if let Some(last) = unseen.map(|sent| sent.at).max()
                && now < last + FINDING_OUT
            {
                return Blocked::Yes {
                    why: Hold::FindingOut,
                    until: last + FINDING_OUT,
                };
            }
        }
        let limits = [
            ("requests", &mut self.requests, 1),
            ("tokens of input", &mut self.input, size.input),
            ("tokens of output", &mut self.output, size.output),
        ];
        let mut latest = None;
        for (what, bucket, size) in limits {
            let Some(bucket) = bucket else { continue };
            if let Err(until) = bucket.fits(size, now)
                && latest.is_none_or(|(last, _)| last < until)
            {
                latest = Some((until, Hold::UsedUp(what, bucket.reset())));
            }
        }
        latest.map_or(Blocked::No, |(until, why)| Blocked::Yes { why, until })
    }

    /// The call goes out.
    pub(super) fn sent(&mut self, call: CallId, size: CallSize, now: Timestamp) {
        let mut share = 0;
        let limits = [
            (&mut self.requests, 1),
            (&mut self.input, size.input),
            (&mut self.output, size.output),
        ];
        for (bucket, size) in limits {
            if let Some(bucket) = bucket {
                bucket.take(size);
                share = share.max(bucket.share(size));
            }
        }
        self.line.served(call, share);
        let sent = Sent {
            size,
            at: now,
            is_seen: false,
        };
        self.sent.insert(call, sent);
    }

    /// Its answer begins; what is told with it counts once.
    pub(super) fn started(&mut self, call: CallId, told: &RateTold, now: Timestamp) {
        let Some(sent) = self.sent.get_mut(&call) else {
            return;
        };
        if sent.is_seen {
            return;
        }
        sent.is_seen = true;
        self.is_known = true;
        self.told(told, now);
    }

    /// It ended. What its answer had counts from now on; its input was told when it began.
    pub(super) fn committed(&mut self, call: CallId, bound: u64, used: CallUsed, now: Timestamp) {
        let Some(sent) = self.sent.remove(&call) else {
            return;
        };
        if let Some(output) = used.output {
            if let Some(bucket) = &mut self.output {
                bucket.give_back(sent.size.output, now);
                bucket.take(output);
            }
            self.output_mean = (self.output_mean.saturating_mul(3).saturating_add(output)) / 4;
        }
        if let Some(input) = used.input {
            let part = u128::from(input) * u128::from(WHOLE) / u128::from(bound.max(1));
            let part = u64::try_from(part).unwrap_or(WHOLE).clamp(LEAST, WHOLE);
            self.input_part = (self.input_part * 3 + part) / 4;
        }
    }

    /// It was not made, or was refused, and took nothing.
    pub(super) fn released(&mut self, call: CallId, told: &RateTold, now: Timestamp) {
        self.line.leave(call);
        if let Some(sent) = self.sent.remove(&call) {
            let is_unseen = !sent.is_seen;
            let limits = [
                (&mut self.requests, u64::from(is_unseen)),
                (&mut self.input, if is_unseen { sent.size.input } else { 0 }),
                (&mut self.output, sent.size.output),
            ];
            for (bucket, size) in limits {
                if let Some(bucket) = bucket {
                    bucket.give_back(size, now);
                }
            }
            self.is_known |= told.requests.is_some() || told.input.is_some() || told.output.is_some();
        }
        self.told(told, now);
    }

    pub(super) fn sweep(&mut self, now: Timestamp) {
        self.line.sweep();
        self.sent.retain(|_, sent| now.since(sent.at) <= super::FORGOTTEN);
    }

    fn told(&mut self, told: &RateTold, now: Timestamp) {
        if let Some(wait) = told.retry_after {
            self.held_until = self.held_until.max(now + wait + LATER);
        }
        let (mut unseen, mut unsaid, mut requests) = (CallSize::default(), 0_u64, 0);
        for sent in self.sent.values() {
            // An answer that did not end is not in what was told of output.
            unsaid = unsaid.saturating_add(sent.size.output);
            if !sent.is_seen && now.since(sent.at) < ON_ITS_WAY {
                requests += 1;
                unseen.input = unseen.input.saturating_add(sent.size.input);
            }
        }
        let limits = [
            (&mut self.requests, told.requests, requests),
            (&mut self.input, told.input, unseen.input),
            (&mut self.output, told.output, unsaid),
        ];
        for (bucket, told, unseen) in limits {
            match (bucket.as_mut(), told) {
                (Some(bucket), Some(told)) => bucket.told(told, unseen, now),
                (None, Some(told)) => *bucket = Bucket::new(told, unseen, now),
                (_, None) => {}
            }
        }
    }
}
