//! Tokens by billing class, and money with its provenance.
//!
//! Prices are in `price`; this file only counts.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Tokens by billing class. The classes do not overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Input that was neither read from nor written to a prompt cache.
    pub input: u64,
    /// Input written to a cache that lives five minutes.
    pub cache_write_5m: u64,
    /// Input written to a cache that lives an hour.
    pub cache_write_1h: u64,
    /// Input read from a cache.
    pub cache_read: u64,
    /// Everything the model wrote, reasoning included.
    pub output: u64,
    /// The part of `output` that the provider reports as reasoning.
    pub reasoning: u64,
}

impl Usage {
    /// True when nothing was used.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// All tokens, each counted once.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input
            .saturating_add(self.cache_write_5m)
            .saturating_add(self.cache_write_1h)
            .saturating_add(self.cache_read)
            .saturating_add(self.output)
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, rhs: Self) {
        self.input = self.input.saturating_add(rhs.input);
        self.cache_write_5m = self.cache_write_5m.saturating_add(rhs.cache_write_5m);
        self.cache_write_1h = self.cache_write_1h.saturating_add(rhs.cache_write_1h);
        self.cache_read = self.cache_read.saturating_add(rhs.cache_read);
        self.output = self.output.saturating_add(rhs.output);
        self.reasoning = self.reasoning.saturating_add(rhs.reasoning);
    }
}

/// An amount of US dollars, in 10^-12 dollars: exact for every published token price.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PicoUsd(pub i64);

impl PicoUsd {
    /// The sum, or the largest amount there is.
    #[must_use]
    pub const fn saturating_add(self, rhs: Self) -> Self {
        Self(self.0.saturating_add(rhs.0))
    }
}

impl fmt::Display for PicoUsd {
    /// Dollars with as many places as it takes to be exact, two at least.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let abs = self.0.unsigned_abs();
        let (whole, part) = (abs / 1_000_000_000_000, abs % 1_000_000_000_000);
        let digits = format!("{part:012}");
        let digits = digits.trim_end_matches('0');
        write!(f, "{sign}{whole}.{digits:0<2}")
    }
}

/// Where an amount comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provenance {
    /// Metered API usage times a row of the price table.
    Billed,
    /// The program that made the calls said so.
    Reported,
    /// Computed from something less exact than a meter.
    Estimated,
    /// Tokens were used and no price is known for them.
    Unknown,
}

/// An amount of one provenance. Amounts of different provenance are never summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// `None` exactly when the provenance is [`Provenance::Unknown`].
    pub amount: Option<PicoUsd>,
    /// Where the amount comes from.
    pub provenance: Provenance,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_prints_exactly() {
        let cases = [
            (0, "0.00"),
            (1, "0.000000000001"),
            (1_500_000_000_000, "1.50"),
            (12_345_000_000, "0.012345"),
            (-250_000_000_000, "-0.25"),
        ];
        for (pico, text) in cases {
            assert_eq!(PicoUsd(pico).to_string(), text);
        }
    }
}
