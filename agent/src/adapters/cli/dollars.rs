//! Dollars as programs write them.

use kage_core::usage::PicoUsd;

/// Dollars to the nearest of their twelve places. No cost is negative.
pub(in crate::adapters) fn pico(dollars: f64) -> PicoUsd {
    if !dollars.is_finite() || dollars < 0.0 {
        return PicoUsd(0);
    }
    // The shortest decimal for this number is what the program wrote, or computed.
    let text = format!("{dollars}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let places: String = part.chars().chain(std::iter::repeat('0')).take(12).collect();
    let up = part.as_bytes().get(12).is_some_and(|next| *next >= b'5');
    let down: i64 = format!("{whole}{places}").parse().unwrap_or(i64::MAX);
    PicoUsd(down.saturating_add(i64::from(up)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_exact_and_rounded_at_the_last_place() {
        for (dollars, pico_dollars) in [
            (0.090_874_5, 90_874_500_000),
            (1e-7, 100_000),
            (12.0, 12_000_000_000_000),
            (0.000_000_000_000_4, 0),
            (0.000_000_000_000_5, 1),
            (0.999_999_999_999_9, 1_000_000_000_000),
            (f64::NAN, 0),
            (-3.0, 0),
            (1e30, i64::MAX),
        ] {
            assert_eq!(pico(dollars), PicoUsd(pico_dollars), "{dollars}");
        }
    }
}
