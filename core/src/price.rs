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
                // Each product fits, 64 bits by 63; the sum of five need not.
                sum = sum.checked_add(i128::from(tokens) * i128::from(price?.0))?;
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
    use proptest::prelude::*;

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
        // Pico-dollars per token: input, output, cache read, cache write 5m, cache write 1h.
        let cases = [
            (
                "claude-opus-5-5",
                [4_000_000, 20_000_000, 200_000, 5_000_000, 8_000_000],
            ),
            (
                "claude-sonnet-5-5",
                [2_000_000, 10_000_000, 100_000, 2_500_000, 4_000_000],
            ),
            ("claude-haiku-5-5", [100_000, 500_000, 10_000, 125_000, 200_000]),
            (
                "claude-fable-5-2",
                [8_000_000, 40_000_000, 200_000, 10_000_000, 16_000_000],
            ),
            (
                "claude-opus-4-8",
                [5_000_000, 25_000_000, 500_000, 6_250_000, 10_000_000],
            ),
            (
                "claude-sonnet-5",
                [2_000_000, 10_000_000, 200_000, 2_500_000, 4_000_000],
            ),
            (
                "claude-sonnet-4-5",
                [3_000_000, 15_000_000, 300_000, 3_750_000, 6_000_000],
            ),
            (
                "claude-haiku-4-5",
                [1_000_000, 5_000_000, 100_000, 1_250_000, 2_000_000],
            ),
        ];
        for (model, prices) in cases {
            for (class, pico) in prices.into_iter().enumerate() {
                let mut tokens = [0; 5];
                tokens[class] = 3;
                let [input, output, read, write_5m, write_1h] = tokens;
                let money = PriceTable::builtin().price(model, &usage(input, output, read, write_5m, write_1h), NOW);
                assert_eq!(money, billed(3 * pico), "{model} class {class}");
            }
        }
    }

    #[test]
    fn every_built_in_row_is_complete_and_every_alias_leads_somewhere() {
        let table = PriceTable::builtin();
        assert!(table.rows.len() >= 45, "{}", table.rows.len());
        for (model, rows) in &table.rows {
            for row in rows {
                assert!(row.input.0 > 0 && row.output >= row.input, "{model}");
                assert!(
                    row.cache_read.is_none_or(|read| read.0 > 0 && read < row.input),
                    "{model}"
                );
                assert!(row.cache_write_5m.is_none_or(|write| write > row.input), "{model}");
                assert!(
                    row.cache_write_1h.is_none_or(|write| Some(write) > row.cache_write_5m),
                    "{model}"
                );
                let caches = row.provider != "anthropic" || row.cache_write_1h.is_some();
                assert!(caches && row.min_cacheable != Some(0), "{model}");
                assert!(["litellm", "cli"].contains(&row.source.as_str()), "{model}");
            }
        }
        for (alias, model) in &table.aliases {
            assert!(table.rows.contains_key(model), "{alias}");
        }
    }

    const TABLE: &str = r#"
        [aliases]
        quick = "fast-1"

        [[price]]
        model = "fast-1"
        provider = "p"
        from = "2026-06-01"
        input = "2"
        output = "4"
        long_context = 1000
        source = "test"

        [[price]]
        model = "fast-1"
        provider = "p"
        input = "1"
        output = "3"
        source = "test"

        [[price]]
        model = "new-1-20260701"
        provider = "p"
        from = "2026-07-01"
        input = "7"
        output = "8"
        source = "test"
    "#;

    fn billed(pico: i64) -> Money {
        Money {
            amount: Some(PicoUsd(pico)),
            provenance: Provenance::Billed,
        }
    }

    #[test]
    fn a_name_is_exact_then_an_alias_then_without_its_date() {
        let table = PriceTable::parse(TABLE).unwrap();
        let at = midnight("2026-07-01").unwrap();
        let cases = [
            ("fast-1", Some(2_000_000)),
            ("quick", Some(2_000_000)),
            ("fast-1-20260301", Some(2_000_000)),
            ("fast-1-2026-03-01", Some(2_000_000)),
            ("quick-20260301", Some(2_000_000)),
            ("new-1-20260701", Some(7_000_000)),
            ("new-1", None),
            ("fast-1-2026030", None),
            ("fast-1-latest", None),
            ("fast-1-2026-3-01", None),
            ("-20260301", None),
            ("Fast-1", None),
            ("fäst-20260301", None),
            ("", None),
        ];
        for (model, input) in cases {
            let found = table.find(model, at).map(|row| row.input.0);
            assert_eq!(found, input, "{model:?}");
        }
    }

    #[test]
    fn the_row_of_the_day_holds() {
        let table = PriceTable::parse(TABLE).unwrap();
        let june = midnight("2026-06-01").unwrap();
        let before = Timestamp::from_millis(june.as_millis() - 1);
        let cases = [
            ("fast-1", Timestamp::from_millis(0), Some(1_000_000)),
            ("fast-1", before, Some(1_000_000)),
            ("fast-1", june, Some(2_000_000)),
            ("fast-1", NOW, Some(2_000_000)),
            // Nothing is known of the time before the first row.
            ("new-1-20260701", june, None),
        ];
        for (model, at, input) in cases {
            assert_eq!(table.find(model, at).map(|row| row.input.0), input, "{model} {at}");
        }
    }

    #[test]
    fn what_has_no_price_is_unknown_and_never_nothing() {
        let table = PriceTable::parse(TABLE).unwrap();
        let cases = [
            ("other", usage(1, 0, 0, 0, 0), UNKNOWN),
            // The row has no such class.
            ("fast-1", usage(1, 1, 1, 0, 0), UNKNOWN),
            ("fast-1", usage(1, 1, 0, 0, 1), UNKNOWN),
            // More than can be counted.
            ("fast-1", usage(u64::MAX, u64::MAX, 0, 0, 0), UNKNOWN),
            ("fast-1", usage(1, 1, 0, 0, 0), billed(6_000_000)),
            ("fast-1", usage(1000, 0, 0, 0, 0), billed(2_000_000_000)),
            // Some request may have passed the limit above which it costs more.
            (
                "fast-1",
                usage(1001, 0, 0, 0, 0),
                Money {
                    amount: Some(PicoUsd(2_002_000_000)),
                    provenance: Provenance::Estimated,
                },
            ),
        ];
        for (model, usage, expected) in cases {
            assert_eq!(table.price(model, &usage, NOW), expected, "{model} {usage:?}");
        }
    }

    #[test]
    fn an_overlay_replaces_every_row_of_the_models_it_names() {
        let own = r#"
            [aliases]
            quick = "new-1-20260701"

            [[price]]
            model = "fast-1"
            provider = "me"
            input = "0.5"
            output = "0.5"
            source = "contract"
        "#;
        let table = PriceTable::parse(TABLE)
            .unwrap()
            .overlay(PriceTable::parse(own).unwrap());
        let input = |model| table.find(model, NOW).map(|row| row.input.0);
        assert_eq!(input("fast-1"), Some(500_000));
        assert_eq!(input("quick"), Some(7_000_000));
        assert_eq!(input("new-1-20260701"), Some(7_000_000));
    }

    #[test]
    fn a_bad_table_says_what_is_wrong() {
        let row = |rest: &str| format!("[[price]]\nmodel = 'm'\nprovider = 'p'\nsource = 's'\n{rest}");
        let cases = [
            (row("input = 1.5\noutput = '1'"), "the price table is not valid"),
            (
                row("input = '1'\noutput = '1'\nmultiplier = 2"),
                "the price table is not valid",
            ),
            (
                row("input = '1'\noutput = '1,5'"),
                "output of m is \"1,5\", not a decimal number of at most 6 places",
            ),
            (
                row("input = '1'\noutput = '1'\nfrom = 'June'"),
                "from of m is \"June\", not a day like 2026-01-31",
            ),
            (
                row("input = '1'\noutput = '1'\n") + &row("input = '2'\noutput = '1'"),
                "m has two prices that begin at the same time",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(PriceTable::parse(&text).unwrap_err().to_string(), message);
        }
    }

    fn entry(model: &str, metered: bool, input: u64, reported: Option<i64>) -> ModelUsage {
        ModelUsage {
            model: model.to_owned(),
            metered,
            usage: usage(input, 0, 0, 0, 0),
            reported: reported.map(PicoUsd),
        }
    }

    #[test]
    fn a_session_has_one_amount_for_each_provenance() {
        use Provenance as P;
        let table = PriceTable::parse(TABLE).unwrap();
        let cases = [
            (vec![], vec![]),
            (vec![entry("other", true, 0, None)], vec![]),
            (vec![entry("fast-1", true, 2, None)], vec![(P::Billed, Some(4_000_000))]),
            // What a metered program says of itself counts for nothing.
            (
                vec![entry("fast-1", true, 2, Some(1))],
                vec![(P::Billed, Some(4_000_000))],
            ),
            (vec![entry("other", true, 2, Some(1))], vec![(P::Unknown, None)]),
            (vec![entry("other", false, 2, Some(9))], vec![(P::Reported, Some(9))]),
            (vec![entry("fast-1", false, 2, Some(9))], vec![(P::Reported, Some(9))]),
            (vec![entry("other", false, 0, Some(9))], vec![(P::Reported, Some(9))]),
            (
                vec![entry("fast-1", false, 2, None)],
                vec![(P::Estimated, Some(4_000_000))],
            ),
            (vec![entry("other", false, 2, None)], vec![(P::Unknown, None)]),
            (
                vec![
                    entry("fast-1", true, 1, None),
                    entry("fast-1-20260101", true, 2, None),
                    entry("other", true, 5, None),
                    entry("else", true, 5, None),
                    entry("other", false, 5, Some(7)),
                    entry("else", false, 5, Some(8)),
                    entry("fast-1", false, 5, None),
                ],
                vec![
                    (P::Billed, Some(6_000_000)),
                    (P::Reported, Some(15)),
                    (P::Estimated, Some(10_000_000)),
                    (P::Unknown, None),
                ],
            ),
        ];
        for (entries, expected) in cases {
            let money = session_money(&entries, &table, NOW);
            let money: Vec<_> = money.iter().map(|m| (m.provenance, m.amount.map(|a| a.0))).collect();
            assert_eq!(money, expected, "{entries:?}");
        }
    }

    proptest! {
        /// Splitting usage over events changes nothing: the price of a sum is the sum of prices.
        #[test]
        fn prices_are_additive(
            a in prop::array::uniform5(0_u64..1 << 30),
            b in prop::array::uniform5(0_u64..1 << 30),
        ) {
            let row = PriceTable::builtin().find("claude-sonnet-5-5", NOW).unwrap();
            let [first, second] = [a, b].map(|[i, o, r, w5, w1]| usage(i, o, r, w5, w1));
            let mut both = first;
            both += second;
            let sum = row.amount(&first).unwrap().0 + row.amount(&second).unwrap().0;
            prop_assert_eq!(row.amount(&both), Some(PicoUsd(sum)));
        }

        /// What is taken is taken exactly.
        #[test]
        fn decimals_keep_every_digit(whole in 0_u32..1_000_000, part in 0_u32..1_000_000) {
            let text = format!("{whole}.{part:06}");
            let pico = i64::from(whole) * 1_000_000 + i64::from(part);
            prop_assert_eq!(per_token(&text), Some(PicoUsd(pico)));
        }
    }
}
