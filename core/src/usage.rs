//! Tokens by billing class, and money with its provenance.
//!
//! `price` has the prices; this file only counts.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::words::words;

/// A class of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageClass {
    /// [`Usage::input`].
    Input,
    /// [`Usage::cache_write_5m`].
    CacheWrite5m,
    /// [`Usage::cache_write_1h`].
    CacheWrite1h,
    /// [`Usage::cache_read`].
    CacheRead,
    /// [`Usage::output`].
    Output,
    /// [`Usage::reasoning`].
    Reasoning,
}

impl UsageClass {
    /// All, in the order of their fields.
    pub const ALL: [Self; 6] = [
        Self::Input,
        Self::CacheWrite5m,
        Self::CacheWrite1h,
        Self::CacheRead,
        Self::Output,
        Self::Reasoning,
    ];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Classes whose usage was not reported, or not each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unreported(u8);

impl Unreported {
    /// No class was reported.
    pub const ALL: Self = Self(0b11_1111);

    /// The set with these bits, the lowest for the first class; unknown bits are ignored.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the mask leaves six bits")]
        Self((bits & Self::ALL.0 as u32) as u8)
    }

    /// A bit for each class, the lowest for the first.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// The set with this class added.
    #[must_use]
    pub const fn with(self, class: UsageClass) -> Self {
        Self(self.0 | class.bit())
    }

    /// The set with this class removed.
    #[must_use]
    pub const fn without(self, class: UsageClass) -> Self {
        Self(self.0 & !class.bit())
    }

    /// The classes of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set has this class.
    #[must_use]
    pub const fn contains(self, class: UsageClass) -> bool {
        self.0 & class.bit() != 0
    }

    /// Whether the billed usage is not wholly known. Reasoning is a part of the output.
    #[must_use]
    pub const fn of_the_bill(self) -> bool {
        self.without(UsageClass::Reasoning).0 != 0
    }
}

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
    /// Everything that the model wrote, including reasoning.
    pub output: u64,
    /// The part of `output` that the provider reports as reasoning.
    pub reasoning: u64,
    /// Classes whose counts are only lower bounds: 0 in one of these is not zero tokens but an
    /// unknown number.
    pub unreported: Unreported,
}

impl Usage {
    /// The usage of a program that reports none.
    pub const UNKNOWN: Self = Self {
        input: 0,
        cache_write_5m: 0,
        cache_write_1h: 0,
        cache_read: 0,
        output: 0,
        reasoning: 0,
        unreported: Unreported::ALL,
    };

    /// The tokens of a class; `None` when none were reported. If only some were reported, this is a
    /// lower bound.
    #[must_use]
    pub const fn of(&self, class: UsageClass) -> Option<u64> {
        let tokens = match class {
            UsageClass::Input => self.input,
            UsageClass::CacheWrite5m => self.cache_write_5m,
            UsageClass::CacheWrite1h => self.cache_write_1h,
            UsageClass::CacheRead => self.cache_read,
            UsageClass::Output => self.output,
            UsageClass::Reasoning => self.reasoning,
        };
        if tokens == 0 && self.unreported.contains(class) {
            return None;
        }
        Some(tokens)
    }

    /// True when it is known that nothing was used.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// False when no program can have used so many tokens.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        const MOST: u64 = 1_000_000_000_000_000;
        self.total() <= MOST && self.reasoning <= MOST
    }

    /// The tokens of this count, which goes on from `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            input: self.input.saturating_sub(before.input),
            cache_write_5m: self.cache_write_5m.saturating_sub(before.cache_write_5m),
            cache_write_1h: self.cache_write_1h.saturating_sub(before.cache_write_1h),
            cache_read: self.cache_read.saturating_sub(before.cache_read),
            output: self.output.saturating_sub(before.output),
            reasoning: self.reasoning.saturating_sub(before.reasoning),
            unreported: self.unreported,
        }
    }

    /// The larger count of each class.
    #[must_use]
    pub fn at_least(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            cache_write_5m: self.cache_write_5m.max(other.cache_write_5m),
            cache_write_1h: self.cache_write_1h.max(other.cache_write_1h),
            cache_read: self.cache_read.max(other.cache_read),
            output: self.output.max(other.output),
            reasoning: self.reasoning.max(other.reasoning),
            unreported: self.unreported,
        }
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
        // A known and an unknown count add up to a partly known one.
        self.unreported = self.unreported.union(rhs.unreported);
    }
}

/// An amount of US dollars, in 10^-12 dollars: exact for every published token price.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PicoUsd(pub i64);

impl PicoUsd {
    /// The sum, or the largest possible amount.
    #[must_use]
    pub const fn saturating_add(self, rhs: Self) -> Self {
        Self(self.0.saturating_add(rhs.0))
    }
}

impl fmt::Display for PicoUsd {
    /// Dollars with as many places as exactness needs, two at least.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let abs = self.0.unsigned_abs();
        let (whole, part) = (abs / 1_000_000_000_000, abs % 1_000_000_000_000);
        let digits = format!("{part:012}");
        let digits = digits.trim_end_matches('0');
        write!(f, "{sign}{whole}.{digits:0<2}")
    }
}

words! {
    /// The source of an amount.
    #[derive(PartialOrd, Ord)]
    pub enum Provenance: "a source of an amount" {
        /// Metered API usage times a row of the price table.
        Billed = "billed",
        /// Reported by the program that made the calls.
        Reported = "reported",
        /// Computed from something less exact than a meter.
        Estimated = "estimated",
        /// The calls cost nothing, for their server is the person's own.
        Free = "free",
        /// Tokens were used and their price is unknown.
        Unknown = "unknown",
    }
}

/// An amount of one provenance. Amounts of different provenance are never summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// `None` exactly when the provenance is [`Provenance::Unknown`].
    pub amount: Option<PicoUsd>,
    /// The source of the amount.
    pub provenance: Provenance,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_not_zero_and_stays_so_in_a_sum() {
        let known = Usage {
            input: 5,
            output: 0,
            ..Usage::default()
        };
        assert_eq!(known.of(UsageClass::Output), Some(0));
        assert!(UsageClass::ALL.iter().all(|class| Usage::UNKNOWN.of(*class).is_none()));
        assert!(!Usage::UNKNOWN.is_zero() && Usage::default().is_zero());

        let mut sum = known;
        sum += Usage::UNKNOWN;
        assert_eq!((sum.of(UsageClass::Input), sum.of(UsageClass::Output)), (Some(5), None));
        assert!(sum.unreported.of_the_bill());
        let reasoning = Unreported::default().with(UsageClass::Reasoning);
        assert!(!reasoning.of_the_bill() && reasoning.contains(UsageClass::Reasoning));
        for class in UsageClass::ALL {
            let only = Unreported::default().with(class);
            assert_eq!(Unreported::from_bits(only.bits()), only);
            assert_eq!(only.without(class), Unreported::default());
        }
        assert_eq!(Unreported::from_bits(u32::MAX), Unreported::ALL);
        // The form stored before the field existed.
        let old: Usage = serde_json::from_str(r#"{"input":5}"#).unwrap();
        assert_eq!(old, known);
    }

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
