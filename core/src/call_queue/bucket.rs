//! One limit of an account, as far as its provider told: how much may be used now, and when there is more. In
//! millionths of a unit, so that every sum is exact.

use std::time::Duration;

use crate::call::LimitTold;
use crate::time::Timestamp;

const UNIT: i128 = 1_000_000;
/// The periods that providers limit, in seconds; the first one is taken where nothing tells.
const PERIODS: [i128; 4] = [60, 1, 60 * 60, 24 * 60 * 60];
/// The part of a limit that is left unused: what was sent a moment ago may arrive after what is sent now.
const MARGIN: i128 = 50;

/// How a limit becomes free again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refill {
    /// All of it within so many seconds, evenly.
    Even(i128),
    /// All of it at a time.
    At(Timestamp),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    limit: i128,
    level: i128,
    refill: Refill,
    at: Timestamp,
}

impl Bucket {
    /// What a provider told first. `unseen`: what was sent and may not be counted in it.
    pub(super) fn new(told: LimitTold, unseen: u64, now: Timestamp) -> Option<Self> {
        // Neither how much there will be nor when.
        if told.limit.is_none() && told.reset.is_none() {
            return None;
        }
        let mut bucket = Self {
            limit: UNIT,
            level: 0,
            refill: Refill::Even(PERIODS[0]),
            at: now,
        };
        bucket.learn(told, now);
        bucket.level = units(told.remaining) - units(unseen);
        Some(bucket)
    }

    /// What a provider tells is the truth, except for what it may not have seen yet.
    pub(super) fn told(&mut self, told: LimitTold, unseen: u64, now: Timestamp) {
        self.advance(now);
        self.learn(told, now);
        let most = units(told.remaining);
        self.level = self.level.clamp(most - units(unseen), most);
    }

    /// Whether a call of this size fits now; otherwise when it does.
    pub(super) fn fits(&mut self, size: u64, now: Timestamp) -> Result<(), Timestamp> {
        self.advance(now);
        // What is larger than the limit goes when all of it is free.
        let need = (units(size) + self.margin()).min(self.limit);
        let missing = need - self.level;
        if missing <= 0 {
            return Ok(());
        }
        Err(match self.refill {
            Refill::At(at) => at,
            Refill::Even(seconds) => {
                let millis = (missing * seconds * 1_000 + self.limit - 1) / self.limit;
                now + Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
            }
        })
    }

    pub(super) fn take(&mut self, size: u64) {
        self.level -= units(size);
    }

    pub(super) fn give_back(&mut self, size: u64, now: Timestamp) {
        self.advance(now);
        self.level = (self.level + units(size)).min(self.limit);
    }

    /// When the limit as a whole is free again, where that is one time.
    pub(super) const fn reset(&self) -> Option<Timestamp> {
        match self.refill {
            Refill::At(at) => Some(at),
            Refill::Even(_) => None,
        }
    }

    /// The part of the limit that a size is, in millionths.
    pub(super) fn share(&self, size: u64) -> u64 {
        u64::try_from(units(size) * UNIT / self.limit).unwrap_or(u64::MAX)
    }

    fn margin(&self) -> i128 {
        let part = self.limit / MARGIN;
        let margin = match self.refill {
            // As much as fills in 1.2 seconds: of a limit of a day 2 % would be half an hour.
            Refill::Even(seconds) => part.min(self.limit * 6 / (5 * seconds)),
            Refill::At(_) => part,
        };
        margin / UNIT * UNIT
    }

    fn advance(&mut self, now: Timestamp) {
        let passed = now.since(self.at).as_millis();
        self.at = now;
        match self.refill {
            Refill::Even(seconds) => {
                let passed = i128::try_from(passed).unwrap_or(i128::MAX >> 64).min(1 << 40);
                self.level = (self.level + self.limit * passed / (1_000 * seconds)).min(self.limit);
            }
            Refill::At(at) if at <= now => {
                self.level = self.limit;
                // Of the next window nothing is known but that it is not longer than the usual one.
                self.refill = Refill::Even(PERIODS[0]);
            }
            Refill::At(_) => {}
        }
    }

    fn learn(&mut self, told: LimitTold, now: Timestamp) {
        let known = told.limit.map_or(self.limit, units);
        self.limit = known.max(units(told.remaining)).max(UNIT);
        let used = self.limit - units(told.remaining);
        let Some(reset) = told.reset else {
            return;
        };
        // Of a limit that is nearly whole, rounded numbers tell nothing.
        if told.limit.is_some() && used * 10 < self.limit && used < self.limit {
            return;
        }
        let left = self.limit * i128::try_from(reset.as_millis()).unwrap_or(0);
        // Where it fills evenly, the part that is missing needs that part of the period.
        let is_even = |seconds: &&i128| {
            let due = used * **seconds * 1_000;
            (due - left).abs() * 4 <= left
        };
        let even = PERIODS.iter().find(is_even).filter(|_| told.limit.is_some());
        self.refill = even.map_or(Refill::At(now + reset), |seconds| Refill::Even(*seconds));
    }
}

fn units(size: u64) -> i128 {
    i128::from(size) * UNIT
}
