//! Prices of model tokens, as data, and what usage costs by them.
//!
//! The table is a TOML file (`core/data/prices.toml` documents the format): a built-in one,
//! over which a user may lay another. All arithmetic is in whole pico-dollars. Nothing
//! here knows a cache multiplier or a model name. Counting tokens is `usage`'s business.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::civil::Date;
use serde::Deserialize;

use crate::session::ModelUsage;
use crate::time::Timestamp;
use crate::usage::{Money, PicoUsd, Provenance, Usage};

/// What one model costs from one day on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceRow {
    /// Whom one pays.
    pub provider: String,
    /// When the row begins to hold; `None` = it always did.
    pub from: Option<Timestamp>,
    /// One token of uncached input.
    pub input: PicoUsd,
    /// One token of output, reasoning included.
    pub output: PicoUsd,
    /// One token read from a cache; `None` = there is no such class.
    pub cache_read: Option<PicoUsd>,
    /// One token written to a five-minute cache; `None` = there is no such class.
    pub cache_write_5m: Option<PicoUsd>,
    /// One token written to a one-hour cache; `None` = there is no such class.
    pub cache_write_1h: Option<PicoUsd>,
    /// The shortest prefix, in tokens, that the provider caches.
    pub min_cacheable: Option<u64>,
    /// The most input tokens that the model takes.
    pub context_window: Option<u64>,
    /// The most output tokens that the model gives.
    pub max_output: Option<u64>,
    /// Input tokens above which one request costs more than the row says.
    pub long_context: Option<u64>,
    /// Where the figures were read.
    pub source: String,
}

/// Why a text is not a price table.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPrices {
    /// It is not TOML of the right shape.
    #[error("the price table is not valid")]
    Toml(#[source] Box<toml::de::Error>),
    /// A price is not a decimal number of dollars.
    #[error("{field} of {model} is {text:?}, not a decimal number of at most {PLACES} places")]
    Price {
        /// Whose price.
        model: String,
        /// Which price.
        field: &'static str,
        /// What was given.
        text: String,
    },
    /// A first day is not a day.
    #[error("from of {model} is {text:?}, not a day like 2026-01-31")]
    From {
        /// Whose price.
        model: String,
        /// What was given.
        text: String,
    },
    /// Two rows of a model begin on the same day.
    #[error("{model} has two prices that begin at the same time")]
    Duplicate {
        /// Whose prices.
        model: String,
    },
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
        let file: TableFile = toml::from_str(text).map_err(|e| InvalidPrices::Toml(Box::new(e)))?;
        let mut rows = BTreeMap::<String, Vec<PriceRow>>::new();
        for entry in file.price {
            let (model, row) = entry.into_row()?;
            let list = rows.entry(model.clone()).or_default();
            match list.binary_search_by_key(&row.from, |other| other.from) {
                Ok(_) => return Err(InvalidPrices::Duplicate { model }),
                Err(at) => list.insert(at, row),
            }
        }
        Ok(Self {
            rows,
            aliases: file.aliases,
        })
    }

    /// Lays `other` over this table. All rows of each model that `other` names are replaced,
    /// so that an override without a date is not hidden by a dated row.
    #[must_use]
    pub fn overlay(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.aliases.extend(other.aliases);
        self
    }

    /// The row that holds for a model at a time. A name is taken as it is, else as an alias,
    /// else without a dated suffix (`-20260131` or `-2026-01-31`).
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

    /// What metered usage of a model costs: billed, estimated when requests may have passed
    /// the row's long-context limit, or unknown.
    #[must_use]
    pub fn price(&self, model: &str, usage: &Usage, at: Timestamp) -> Money {
        let Some((row, amount)) = self
            .find(model, at)
            .and_then(|row| row.amount(usage).map(|amount| (row, amount)))
        else {
            return UNKNOWN;
        };
        let input = usage.total().saturating_sub(usage.output);
        let provenance = if row.long_context.is_some_and(|limit| input > limit) {
            Provenance::Estimated
        } else {
            Provenance::Billed
        };
        Money {
            amount: Some(amount),
            provenance,
        }
    }
}

impl PriceRow {
    /// What this usage costs. `None` when it has tokens of a class without a price, or
    /// when the amount is beyond what can be counted.
    #[must_use]
    pub fn amount(&self, usage: &Usage) -> Option<PicoUsd> {
        let classes = [
            (usage.input, Some(self.input)),
            (usage.output, Some(self.output)),
            (usage.cache_read, self.cache_read),
            (usage.cache_write_5m, self.cache_write_5m),
            (usage.cache_write_1h, self.cache_write_1h),
        ];
        let mut sum = 0_i128;
        for (tokens, price) in classes {
            if tokens > 0 {
                // Below 2^64 * 2^63, and five of them below 2^130 only in theory: checked.
                sum = sum.checked_add(i128::from(tokens).checked_mul(i128::from(price?.0))?)?;
            }
        }
        i64::try_from(sum).ok().map(PicoUsd)
    }
}

const UNKNOWN: Money = Money {
    amount: None,
    provenance: Provenance::Unknown,
};

/// What a session cost: one [`Money`] for each provenance that occurs, in the order of
/// [`Provenance`]. Usage that is zero and without a reported amount costs nothing and is left out.
#[must_use]
pub fn session_money(usage: &[ModelUsage], prices: &PriceTable, at: Timestamp) -> Vec<Money> {
    let mut sums = BTreeMap::<Provenance, Option<PicoUsd>>::new();
    for entry in usage {
        if entry.usage.is_zero() && entry.reported.is_none() {
            continue;
        }
        let money = entry_money(entry, prices, at);
        let sum = sums.entry(money.provenance).or_insert(money.amount.map(|_| PicoUsd(0)));
        *sum = sum.zip(money.amount).map(|(a, b)| a.saturating_add(b));
    }
    sums.into_iter()
        .map(|(provenance, amount)| Money { amount, provenance })
        .collect()
}

fn entry_money(entry: &ModelUsage, prices: &PriceTable, at: Timestamp) -> Money {
    if let (false, Some(amount)) = (entry.metered, entry.reported) {
        return Money {
            amount: Some(amount),
            provenance: Provenance::Reported,
        };
    }
    let priced = prices.price(&entry.model, &entry.usage, at);
    match (entry.metered, priced.amount) {
        (true, _) | (_, None) => priced,
        (false, amount @ Some(_)) => Money {
            amount,
            provenance: Provenance::Estimated,
        },
    }
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

/// Places after the point that a price per million tokens may have: one more would be less
/// than a pico-dollar per token.
const PLACES: usize = 6;

/// Pico-dollars per token from the decimal text of dollars per million tokens.
fn per_token(text: &str) -> Option<PicoUsd> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > PLACES {
        return None;
    }
    let whole = whole.parse::<i64>().ok()?.checked_mul(1_000_000)?;
    let part = format!("{part:0<PLACES$}").parse::<i64>().ok()?;
    whole.checked_add(part).map(PicoUsd)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    price: Vec<RowFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RowFile {
    model: String,
    provider: String,
    from: Option<String>,
    input: String,
    output: String,
    cache_read: Option<String>,
    cache_write_5m: Option<String>,
    cache_write_1h: Option<String>,
    min_cacheable: Option<u64>,
    context_window: Option<u64>,
    max_output: Option<u64>,
    long_context: Option<u64>,
    source: String,
}

impl RowFile {
    fn into_row(self) -> Result<(String, PriceRow), InvalidPrices> {
        let model = self.model;
        let price = |field, text: &str| {
            per_token(text).ok_or_else(|| InvalidPrices::Price {
                model: model.clone(),
                field,
                text: text.to_owned(),
            })
        };
        let optional = |field, text: Option<&String>| text.map(|text| price(field, text)).transpose();
        let from = self.from.map(|text| {
            midnight(&text).ok_or_else(|| InvalidPrices::From {
                model: model.clone(),
                text,
            })
        });
        let row = PriceRow {
            from: from.transpose()?,
            input: price("input", &self.input)?,
            output: price("output", &self.output)?,
            cache_read: optional("cache_read", self.cache_read.as_ref())?,
            cache_write_5m: optional("cache_write_5m", self.cache_write_5m.as_ref())?,
            cache_write_1h: optional("cache_write_1h", self.cache_write_1h.as_ref())?,
            provider: self.provider,
            min_cacheable: self.min_cacheable,
            context_window: self.context_window,
            max_output: self.max_output,
            long_context: self.long_context,
            source: self.source,
        };
        Ok((model, row))
    }
}

/// The first instant of a day, in UTC.
fn midnight(day: &str) -> Option<Timestamp> {
    let day: Date = day.parse().ok()?;
    let start = day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    u64::try_from(start.as_millisecond()).ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn usage(input: u64, output: u64, cache_read: u64, cache_write_5m: u64, cache_write_1h: u64) -> Usage {
        Usage {
            input,
            cache_write_5m,
            cache_write_1h,
            cache_read,
            output,
            reasoning: output,
        }
    }

    #[test]
    fn decimals_become_pico_dollars_exactly() {
        let cases = [
            ("4", Some(4_000_000)),
            ("0.2", Some(200_000)),
            ("0.0028", Some(2_800)),
            ("15.625", Some(15_625_000)),
            ("0.000001", Some(1)),
            ("0.0000001", None),
            ("1e-6", None),
            ("-1", None),
            ("+1", None),
            (".5", None),
            ("5.", None),
            ("", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(per_token(text), expected.map(PicoUsd), "{text:?}");
        }
    }

    #[test]
    fn the_built_in_table_prices_every_class() {
        // Per million tokens: input, output, cache read, cache write 5m, cache write 1h.
        let cases = [
            ("claude-opus-5-5", [4.0, 20.0, 0.2, 5.0, 8.0]),
            ("claude-sonnet-5-5", [2.0, 10.0, 0.1, 2.5, 4.0]),
            ("claude-haiku-5-5", [0.1, 0.5, 0.01, 0.125, 0.2]),
            ("claude-fable-5-2", [8.0, 40.0, 0.2, 10.0, 16.0]),
            ("claude-opus-4-8", [5.0, 25.0, 0.5, 6.25, 10.0]),
            ("claude-sonnet-5", [2.0, 10.0, 0.2, 2.5, 4.0]),
            ("claude-sonnet-4-5", [3.0, 15.0, 0.3, 3.75, 6.0]),
            ("claude-haiku-4-5", [1.0, 5.0, 0.1, 1.25, 2.0]),
        ];
        for (model, dollars) in cases {
            for (class, expected) in dollars.into_iter().enumerate() {
                let mut tokens = [0; 5];
                tokens[class] = 1_000_000;
                let [input, output, read, write_5m, write_1h] = tokens;
                let money = PriceTable::builtin().price(model, &usage(input, output, read, write_5m, write_1h), NOW);
                assert_eq!(money.provenance, Provenance::Billed, "{model}");
                assert_eq!(
                    money.amount.unwrap().0,
                    (expected * 1e12_f64).round() as i64,
                    "{model} class {class}"
                );
            }
        }
    }
}
