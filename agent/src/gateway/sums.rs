//! What a gateway keeps of the calls that passed: sums, and of the last call of each model how large it was, so that
//! the next one can be bounded. No content.

use std::collections::BTreeMap;

use kage_core::call::{BilledInput, input_bound};
use kage_core::usage::Usage;

/// How many models a program may name before new ones are bounded by their bytes alone.
const MODELS: usize = 16;

/// What passed a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metered {
    /// Calls that were answered, also those whose answer broke off.
    pub answered: u64,
    /// Calls whose answer broke off, or was an error.
    pub broken: u64,
    /// Calls that the provider refused.
    pub refused: u64,
    /// Of all calls that were answered.
    pub usage: Usage,
}

/// The sums of a gateway.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) metered: Metered,
    earlier: BTreeMap<String, BilledInput>,
    /// Whether the last answer was cut at its limit.
    pub(super) was_limited: bool,
}

impl Sums {
    /// Tokens that the input of a request has at most.
    pub(super) fn bound(&self, model: &str, bytes: u64) -> u64 {
        input_bound(self.earlier.get(model).copied(), bytes)
    }

    /// Whether a call of a model was answered.
    pub(super) fn has_answered(&self, model: &str) -> bool {
        self.earlier.contains_key(model)
    }

    /// Adds a call that was answered.
    pub(super) fn answered(&mut self, model: &str, bytes: u64, usage: Usage, whole: bool) {
        self.metered.answered += 1;
        self.metered.broken += u64::from(!whole);
        self.metered.usage += usage;
        let tokens = usage.total().saturating_sub(usage.output);
        let is_known = self.earlier.contains_key(model) || self.earlier.len() < MODELS;
        if tokens > 0 && is_known {
            self.earlier.insert(model.to_owned(), BilledInput { bytes, tokens });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_bounded_by_the_last_one_of_its_model_that_was_counted() {
        let mut sums = Sums::default();
        let usage = |input| Usage {
            input,
            cache_read: 500,
            output: 70,
            ..Usage::default()
        };
        sums.answered("m", 9000, usage(1500), true);
        assert_eq!(sums.bound("m", 9400), 2400);
        assert!(sums.bound("other", 9400) >= 9400);
        // Without a count nothing is learnt.
        sums.answered("m", 20_000, Usage::UNKNOWN, false);
        assert_eq!(sums.bound("m", 9400), 2400);
        assert_eq!((sums.metered.answered, sums.metered.broken), (2, 1));
        assert_eq!(sums.metered.usage.output, 70);
    }
}
