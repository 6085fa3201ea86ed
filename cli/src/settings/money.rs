//! Amounts of dollars as people write them, on the command line and in files.

use kage_core::usage::PicoUsd;
use serde::{Deserialize, Deserializer};

/// The most decimal places: an amount with more is less than a pico-dollar.
const PLACES: usize = 12;

/// Reads an amount: `2.50`, `$2.50` or `3`.
pub(crate) fn dollars(text: &str) -> Result<PicoUsd, String> {
    let refused = || format!("{text:?} is not an amount of dollars such as 2.50");
    let plain = text.trim().trim_start_matches('$');
    let (whole, part) = plain.split_once('.').unwrap_or((plain, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > PLACES {
        return Err(refused());
    }
    let whole = whole
        .parse::<i64>()
        .ok()
        .and_then(|whole| whole.checked_mul(1_000_000_000_000));
    let part = format!("{part:0<PLACES$}").parse::<i64>().ok();
    let sum = whole.zip(part).and_then(|(whole, part)| whole.checked_add(part));
    sum.map(PicoUsd).ok_or_else(refused)
}

/// The same in a file.
pub(crate) fn written_dollars<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PicoUsd>, D::Error> {
    let text = String::deserialize(from)?;
    dollars(&text).map(Some).map_err(serde::de::Error::custom)
}

/// A number of tokens in a file.
pub(crate) fn written_tokens<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let number = i64::deserialize(from)?;
    let refused = |_| serde::de::Error::custom(format!("{number} is not a number of tokens"));
    u64::try_from(number).map(Some).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_amounts_exactly() {
        for (text, pico) in [
            ("2.50", 2_500_000_000_000),
            ("$2.5", 2_500_000_000_000),
            ("0", 0),
            ("3", 3_000_000_000_000),
            ("0.000000000001", 1),
            ("9223372", 9_223_372_000_000_000_000),
        ] {
            assert_eq!(dollars(text), Ok(PicoUsd(pico)), "{text}");
        }
        for text in [
            "",
            "-1",
            "+1",
            ".5",
            "1.",
            "1e3",
            "1,50",
            "two",
            "0.0000000000001",
            "9223373",
            "$",
        ] {
            assert!(dollars(text).unwrap_err().contains("such as 2.50"), "{text}");
        }
    }
}
