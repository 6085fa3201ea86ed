//! Reads a price table from its file, exactly: prices are decimal text and never floats. `price`
//! owns the meaning of the rows.

use std::collections::BTreeMap;

use jiff::civil::Date;
use serde::Deserialize;

use super::{Effort, LongPrices, PriceId, PriceRow, Thinking};
use crate::id::Digest;
use crate::time::Timestamp;
use crate::usage::PicoUsd;

/// Why a text is not a price table.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPrices {
    /// It is not TOML of the right shape.
    #[error("the price table is not valid")]
    Toml(#[source] Box<toml::de::Error>),
    /// A price is not a decimal number of dollars.
    #[error("{field} of {model} is {text:?}, not a decimal number of at most {PLACES} places")]
    Price {
        /// The model.
        model: String,
        /// The name of the price.
        field: &'static str,
        /// The given text.
        text: String,
    },
    /// The start of a row is not a day.
    #[error("from of {model} is {text:?}, not a day like 2026-01-31")]
    From {
        /// The model.
        model: String,
        /// The given text.
        text: String,
    },
    /// Two rows of a model begin on the same day.
    #[error("{model} has two prices that begin at the same time")]
    Duplicate {
        /// The model.
        model: String,
    },
}

/// By model; each list is sorted by `from`.
type Rows = BTreeMap<String, Vec<PriceRow>>;

pub(super) fn read(text: &str) -> Result<(Rows, BTreeMap<String, String>), InvalidPrices> {
    let file: TableFile = toml::from_str(text).map_err(|e| InvalidPrices::Toml(Box::new(e)))?;
    let mut rows = Rows::new();
    for entry in file.price {
        let (model, row) = entry.into_row()?;
        let list = rows.entry(model.clone()).or_default();
        match list.binary_search_by_key(&row.from, |other| other.from) {
            Ok(_) => return Err(InvalidPrices::Duplicate { model }),
            Err(at) => list.insert(at, row),
        }
    }
    Ok((rows, file.aliases))
}

/// The most decimal places of a price per million tokens: one more would be less than a pico-dollar
/// per token.
const PLACES: usize = 6;

/// Pico-dollars per token from the decimal text of dollars per million tokens.
pub(super) fn per_token(text: &str) -> Option<PicoUsd> {
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
    #[serde(default)]
    compacts: bool,
    thinking: Option<Thinking>,
    efforts: Option<Vec<Effort>>,
    long_context: Option<u64>,
    long_input: Option<String>,
    long_output: Option<String>,
    long_cache_read: Option<String>,
    source: Option<String>,
}

/// The day in the name of a row that has none.
const ALWAYS: &str = "always";
/// The digits of the digest in a row's name: only the rows of one model and day have to differ.
const DIGITS: usize = 8;

/// The source of a row without one: a user's file.
const USER: &str = "user";

impl RowFile {
    fn id(&self) -> PriceId {
        let optional = |price: &Option<String>| price.clone().unwrap_or_default();
        let mut figures = vec![
            self.input.clone(),
            self.output.clone(),
            optional(&self.cache_read),
            optional(&self.cache_write_5m),
            optional(&self.cache_write_1h),
            self.long_context.map_or_else(String::new, |limit| limit.to_string()),
        ];
        // Rows without them keep the names that they had before there were any.
        let long = [&self.long_input, &self.long_output, &self.long_cache_read];
        if long.iter().any(|price| price.is_some()) {
            figures.extend(long.map(optional));
        }
        let digest = Digest::of(figures.join(" ").as_bytes());
        let from = self.from.as_deref().unwrap_or(ALWAYS);
        PriceId(format!("{}@{from}#{}", self.model, &digest.as_str()[..DIGITS]))
    }

    fn into_row(self) -> Result<(String, PriceRow), InvalidPrices> {
        let id = self.id();
        let model = self.model;
        let price = |field, text: &str| {
            per_token(text).ok_or_else(|| InvalidPrices::Price {
                model: model.clone(),
                field,
                text: text.to_owned(),
            })
        };
        let optional = |field, text: Option<&String>| text.map(|text| price(field, text)).transpose();
        let from = self.from.as_ref().map(|text| {
            midnight(text).ok_or_else(|| InvalidPrices::From {
                model: model.clone(),
                text: text.clone(),
            })
        });
        let row = PriceRow {
            id,
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
            compacts: self.compacts,
            thinking: self.thinking,
            efforts: self.efforts,
            long_context: self.long_context,
            long_prices: LongPrices {
                input: optional("long_input", self.long_input.as_ref())?,
                output: optional("long_output", self.long_output.as_ref())?,
                cache_read: optional("long_cache_read", self.long_cache_read.as_ref())?,
            },
            source: self.source.unwrap_or_else(|| USER.to_owned()),
        };
        Ok((model, row))
    }
}

/// The first instant of a day, in UTC.
pub(super) fn midnight(day: &str) -> Option<Timestamp> {
    let day: Date = day.parse().ok()?;
    let start = day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    u64::try_from(start.as_millisecond()).ok().map(Timestamp::from_millis)
}
