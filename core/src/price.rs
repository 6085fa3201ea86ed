//! Prices of model tokens, as data, and the cost of usage.
//!
//! The table is a TOML file (`core/data/prices.toml` documents the format): a built-in one that a
//! user's file can override. All arithmetic is in whole pico-dollars. Nothing here knows a cache
//! multiplier or a model name. `price::file` reads the file; `usage` counts tokens; `session` keeps
//! what its usage cost when it was accepted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::call::CallEnd;
use crate::time::Timestamp;
use crate::usage::{Money, PicoUsd, Provenance, Usage};
use crate::words::words;

mod file;
#[cfg(test)]
mod tests;

pub use file::InvalidPrices;

/// The name of a price row: the model, the day from which it holds, and a digest of its prices, so
/// that a row with other figures has another name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PriceId(String);

impl fmt::Display for PriceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The prices of a model from one day on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceRow {
    /// Its name.
    pub id: PriceId,
    /// The company that sends the bill.
    pub provider: String,
    /// The start of the row's validity; `None`: always.
    pub from: Option<Timestamp>,
    /// One token of uncached input.
    pub input: PicoUsd,
    /// One token of output, reasoning included.
    pub output: PicoUsd,
    /// One token read from a cache; `None`: the class does not exist.
    pub cache_read: Option<PicoUsd>,
    /// One token written to a five-minute cache; `None`: the class does not exist.
    pub cache_write_5m: Option<PicoUsd>,
    /// One token written to a one-hour cache; `None`: the class does not exist.
    pub cache_write_1h: Option<PicoUsd>,
    /// The shortest prefix, in tokens, that the provider caches.
    pub min_cacheable: Option<u64>,
    /// The most input tokens that the model accepts.
    pub context_window: Option<u64>,
    /// The most output tokens of one answer, including thinking.
    pub max_output: Option<u64>,
    /// True when the provider makes a conversation of this model shorter where a request asks for that.
    pub compacts: bool,
    /// How a request may ask the model to think.
    pub thinking: Option<Thinking>,
    /// Levels of effort that a request may ask for, least first; empty: the model has no such
    /// control; `None`: unknown.
    pub efforts: Option<Vec<Effort>>,
    /// Input tokens above which one request costs more than the row says.
    pub long_context: Option<u64>,
    /// What one token costs above that.
    pub long_prices: LongPrices,
    /// The source of the figures; `user` for a row without one.
    pub source: String,
}

/// Prices of a request with more input than [`PriceRow::long_context`]; `None`: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LongPrices {
    /// One token of uncached input.
    pub input: Option<PicoUsd>,
    /// One token of output, reasoning included.
    pub output: Option<PicoUsd>,
    /// One token read from a cache.
    pub cache_read: Option<PicoUsd>,
}

/// The most that the tokens of a call can cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DearestPrices {
    /// One token of input, in the dearest class and tier that it can reach.
    pub input: PicoUsd,
    /// One token of output.
    pub output: PicoUsd,
}

/// How a model may be asked to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thinking {
    /// The model decides how much it thinks.
    Adaptive,
}

words! {
    /// How much a model does for an answer: thoughts, calls of tools, words.
    #[derive(PartialOrd, Ord)]
    pub enum Effort: "an effort" {
        /// The least.
        Low = "low",
        /// Between the least and the usual default of models.
        Medium = "medium",
        /// The usual default of models.
        High = "high",
        /// More than that.
        Xhigh = "xhigh",
        /// As much as it can.
        Max = "max",
    }
}

/// Prices by model and date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceTable {
    /// By model; each list is sorted by `from`.
    rows: BTreeMap<String, Vec<PriceRow>>,
    /// Other names of models.
    aliases: BTreeMap<String, String>,
}

static BUILTIN: LazyLock<PriceTable> = LazyLock::new(|| {
    PriceTable::parse(include_str!("../data/prices.toml")).expect("the tests parse the built-in price table")
});

impl PriceTable {
    /// The table that comes with the program.
    #[must_use]
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// Reads a table.
    ///
    /// # Errors
    /// Says the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidPrices> {
        let (rows, aliases) = file::read(text)?;
        Ok(Self { rows, aliases })
    }

    /// Merges `other` over this table. All rows of each model that `other` names are replaced,
    /// so that an override without a date is not hidden by a dated row. Abilities of the model
    /// that a row of `other` does not state are taken from the newest row here.
    #[must_use]
    pub fn overlay(mut self, mut other: Self) -> Self {
        for (model, rows) in &mut other.rows {
            if let Some(known) = self.rows.get(model).and_then(|rows| rows.last()) {
                rows.iter_mut().for_each(|row| row.fill_abilities(known));
            }
        }
        self.rows.extend(other.rows);
        self.aliases.extend(other.aliases);
        self
    }

    /// The row of a model at a time. The name is looked up as it is, else as an alias, else without
    /// a dated suffix (`-20260131` or `-2026-01-31`).
    #[must_use]
    pub fn find(&self, model: &str, at: Timestamp) -> Option<&PriceRow> {
        let rows = self
            .named(model)
            .or_else(|| without_date(model).and_then(|plain| self.named(plain)))?;
        rows.iter().rev().find(|row| row.from.is_none_or(|from| from <= at))
    }

    fn named(&self, model: &str) -> Option<&Vec<PriceRow>> {
        self.rows
            .get(model)
            .or_else(|| self.aliases.get(model).and_then(|name| self.rows.get(name)))
    }

    /// The cost of usage that is accepted now. Metered usage is billed by the row of its model, or
    /// estimated when it may have exceeded the row's long-context limit. Otherwise a program's own
    /// report counts, and without one the row gives an estimate. Metered usage that was reported to
    /// cost nothing is free, whatever a table says of a model of that name.
    #[must_use]
    pub fn charge(&self, used: Used<'_>, now: Timestamp) -> Charge {
        if let (false, Some(amount)) = (used.metered, used.reported) {
            return Charge {
                money: Money {
                    amount: Some(amount),
                    provenance: Provenance::Reported,
                },
                price: None,
            };
        }
        if let (true, Some(PicoUsd(0))) = (used.metered, used.reported) {
            return Charge::FREE;
        }
        let Some(row) = self.find(used.model, now) else {
            return Charge::UNKNOWN;
        };
        let (amount, exact) = match (row.is_long(used.usage), used.call) {
            (true, Some(_)) => (row.long_amount(used.usage), row.has_long_prices(used.usage)),
            // A sum of many requests, which may all be short.
            (true, None) => (row.amount(used.usage), false),
            (false, _) => (row.amount(used.usage), true),
        };
        let Some(amount) = amount else {
            return Charge::UNKNOWN;
        };
        let provenance = if used.metered && exact && used.call != Some(CallEnd::Cut) {
            Provenance::Billed
        } else {
            Provenance::Estimated
        };
        Charge {
            money: Money {
                amount: Some(amount),
                provenance,
            },
            price: Some(row.id.clone()),
        }
    }
}

/// Usage to be priced.
#[derive(Debug, Clone, Copy)]
pub struct Used<'a> {
    /// As the provider names it.
    pub model: &'a str,
    /// Tokens.
    pub usage: &'a Usage,
    /// The cost that the program reported; of metered usage, 0 when it is known to cost nothing.
    pub reported: Option<PicoUsd>,
    /// True when the tokens come from metered API responses.
    pub metered: bool,
    /// The end of the call, for usage of one: of one that broke off, more may have been written than was told.
    pub call: Option<CallEnd>,
}

/// What usage cost, and by which row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The amount.
    pub money: Money,
    /// The row that it was computed with; `None`: with none.
    pub price: Option<PriceId>,
}

impl Charge {
    /// Tokens of a server that sends no bill.
    const FREE: Self = Self {
        money: Money {
            amount: Some(PicoUsd(0)),
            provenance: Provenance::Free,
        },
        price: None,
    };

    /// Tokens without a price.
    const UNKNOWN: Self = Self {
        money: Money {
            amount: None,
            provenance: Provenance::Unknown,
        },
        price: None,
    };
}

impl PriceRow {
    /// Takes abilities that this row does not state from another row of the same model.
    fn fill_abilities(&mut self, known: &Self) {
        self.context_window = self.context_window.or(known.context_window);
        self.max_output = self.max_output.or(known.max_output);
        self.thinking = self.thinking.or(known.thinking);
        if self.efforts.is_none() {
            self.efforts.clone_from(&known.efforts);
        }
    }

    /// The cost of this usage. `None` when it has tokens of a class without a price, or when the
    /// amount is too large.
    #[must_use]
    pub fn amount(&self, usage: &Usage) -> Option<PicoUsd> {
        sum([
            (usage.input, Some(self.input)),
            (usage.output, Some(self.output)),
            (usage.cache_read, self.cache_read),
            (usage.cache_write_5m, self.cache_write_5m),
            (usage.cache_write_1h, self.cache_write_1h),
        ])
    }

    /// Whether a request with this usage costs more than the row's ordinary prices.
    fn is_long(&self, usage: &Usage) -> bool {
        let input = usage.total().saturating_sub(usage.output);
        self.long_context.is_some_and(|limit| input > limit)
    }

    /// Whether every class of this usage has a price of its own for long requests.
    fn has_long_prices(&self, usage: &Usage) -> bool {
        let long = &self.long_prices;
        long.input.is_some()
            && long.output.is_some()
            && (usage.cache_read == 0 || long.cache_read.is_some())
            && usage.cache_write_5m == 0
            && usage.cache_write_1h == 0
    }

    /// The cost of this usage in one long request. A class without a price for that costs as much more as
    /// uncached input does.
    fn long_amount(&self, usage: &Usage) -> Option<PicoUsd> {
        let long = &self.long_prices;
        sum([
            (usage.input, Some(long.input.unwrap_or(self.input))),
            (usage.output, Some(long.output.unwrap_or(self.output))),
            (
                usage.cache_read,
                long.cache_read.or(self.cache_read.map(|price| self.longer(price))),
            ),
            (
                usage.cache_write_5m,
                self.cache_write_5m.map(|price| self.longer(price)),
            ),
            (
                usage.cache_write_1h,
                self.cache_write_1h.map(|price| self.longer(price)),
            ),
        ])
    }

    /// A price, raised as that of uncached input is for long requests, and rounded up.
    fn longer(&self, price: PicoUsd) -> PicoUsd {
        let (Some(long), usual) = (self.long_prices.input, i128::from(self.input.0)) else {
            return price;
        };
        if usual <= 0 {
            return price;
        }
        let raised = (i128::from(price.0) * i128::from(long.0) + usual - 1) / usual;
        PicoUsd(i64::try_from(raised).unwrap_or(i64::MAX)).max(price)
    }

    /// The most that a token can cost in a call with so many tokens of input at most: any of them may be
    /// written to the cache that costs most.
    #[must_use]
    pub fn dearest(&self, input: u64) -> DearestPrices {
        let writes = [self.cache_write_5m, self.cache_write_1h].into_iter().flatten();
        let usual = writes.chain(self.cache_read).fold(self.input, PicoUsd::max);
        let reaches = self.long_context.is_some_and(|limit| input > limit);
        if !reaches {
            return DearestPrices {
                input: usual,
                output: self.output,
            };
        }
        DearestPrices {
            input: self.longer(usual).max(self.long_prices.input.unwrap_or(usual)),
            output: self.long_prices.output.unwrap_or(self.output).max(self.output),
        }
    }
}

/// `None` when tokens have no price, or the sum is too large.
fn sum(classes: [(u64, Option<PicoUsd>); 5]) -> Option<PicoUsd> {
    let mut sum = 0_i128;
    for (tokens, price) in classes {
        if tokens > 0 {
            // Each product fits, 64 bits by 63; the sum of five need not.
            sum = sum.checked_add(i128::from(tokens) * i128::from(price?.0))?;
        }
    }
    i64::try_from(sum).ok().map(PicoUsd)
}

/// The name before a dated suffix, if it has one.
fn without_date(model: &str) -> Option<&str> {
    let is_date = |text: &str, pattern: &[u8]| {
        text.len() == pattern.len()
            && text
                .bytes()
                .zip(pattern)
                .all(|(b, p)| if *p == b'9' { b.is_ascii_digit() } else { b == *p })
    };
    [&b"-99999999"[..], b"-9999-99-99"].into_iter().find_map(|pattern| {
        let (name, suffix) = model.split_at_checked(model.len().checked_sub(pattern.len())?)?;
        (!name.is_empty() && is_date(suffix, pattern)).then_some(name)
    })
}
