//! What a session used and cost, by model. Usage is priced once, when it is accepted, and kept with
//! its amount and the row of the price table: a table that changes later changes nothing that was
//! said. Tokens and amounts are sums of the accepted events, so each entry is exact.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::price::{Charge, PriceId, PriceTable, Used};
use crate::time::Timestamp;
use crate::usage::{Money, PicoUsd, Provenance, Usage};

/// A session's usage of one model, by one way of counting and one price. Usage with a reported
/// amount is kept apart from usage without one, as a run that broke off leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUsage {
    /// As the provider names it.
    pub model: String,
    /// True when the tokens come from metered API responses.
    pub metered: bool,
    /// Tokens.
    pub usage: Usage,
    /// The cost that the program reported.
    pub reported: Option<PicoUsd>,
    /// What it cost, by the prices of when it was accepted.
    pub money: Money,
    /// The price row with which that was computed; `None`: with none.
    pub price: Option<PriceId>,
}

/// A session's model calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCalls {
    /// Those that were answered, as far as they are reported one by one.
    pub answered: u32,
    /// Those of them that were answered before its last attempt.
    pub before_attempt: u32,
    /// Those that failed and were made again.
    pub repeated: u32,
}

/// How many entries a session's usage is kept in. More than a few are models that a program
/// invented, and the row is written with every event.
pub const MAX_MODELS: usize = 32;
/// The name for the usage of models beyond [`MAX_MODELS`]. It costs what each of them costs.
pub const OTHER_MODELS: &str = "other models";

/// Prices usage that is accepted now, and adds it to the entries of a session. Returns what it cost.
pub(super) fn add(entries: &mut Vec<ModelUsage>, used: Used<'_>, prices: &PriceTable, now: Timestamp) -> Charge {
    let charge = prices.charge(used, now);
    add_at(entries, used, &charge);
    charge
}

/// Adds usage that costs this much whatever it is priced at.
pub(super) fn add_at(entries: &mut Vec<ModelUsage>, used: Used<'_>, charge: &Charge) {
    if add_charged(entries, used, charge.clone()) {
        return;
    }
    let other = Used {
        model: OTHER_MODELS,
        ..used
    };
    if !add_charged(entries, other, charge.clone()) {
        entries.push(entry(other, charge.clone()));
    }
}

/// False when that would be one entry too many.
fn add_charged(entries: &mut Vec<ModelUsage>, used: Used<'_>, charge: Charge) -> bool {
    let is_full = entries.len() >= MAX_MODELS;
    let same = |entry: &&mut ModelUsage| {
        entry.model == used.model
            && entry.metered == used.metered
            // Usage reported without an amount is not free: it has a price of its own.
            && entry.reported.is_some() == used.reported.is_some()
            && entry.money.provenance == charge.money.provenance
            && entry.price == charge.price
    };
    match entries.iter_mut().find(same) {
        Some(entry) => {
            entry.usage += *used.usage;
            entry.reported = sum(entry.reported, used.reported);
            entry.money.amount = sum(entry.money.amount, charge.money.amount);
        }
        None if is_full => return false,
        None => entries.push(entry(used, charge)),
    }
    true
}

fn entry(used: Used<'_>, charge: Charge) -> ModelUsage {
    ModelUsage {
        model: used.model.to_owned(),
        metered: used.metered,
        usage: *used.usage,
        reported: used.reported,
        money: charge.money,
        price: charge.price,
    }
}

fn sum(one: Option<PicoUsd>, other: Option<PicoUsd>) -> Option<PicoUsd> {
    one.zip(other).map(|(a, b)| a.saturating_add(b))
}

/// What a session cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Costs {
    /// All of it, one amount per provenance.
    pub all: Vec<Money>,
    /// The same for each entry, in its order.
    pub by_model: Vec<Vec<Money>>,
}

impl Costs {
    /// What these entries cost.
    #[must_use]
    pub fn of(entries: &[ModelUsage]) -> Self {
        let each = entries.iter().map(|entry| total(std::slice::from_ref(entry)));
        Self {
            all: total(entries),
            by_model: each.collect(),
        }
    }
}

/// One [`Money`] for each provenance that occurs, in the order of [`Provenance`]. Usage that is zero
/// and without a reported amount costs nothing and is left out. Unreported usage makes the sum one
/// of a known and an unknown part; alone it gives no figure.
fn total(entries: &[ModelUsage]) -> Vec<Money> {
    let mut sums = BTreeMap::<Provenance, Option<PicoUsd>>::new();
    let mut unknown = false;
    for entry in entries {
        if entry.usage.is_zero() && entry.reported.is_none() {
            continue;
        }
        let untold = entry.reported.is_none() && entry.usage.unreported.of_the_bill();
        unknown |= untold;
        if untold && entry.usage.total() == 0 {
            continue;
        }
        let money = entry.money;
        let so_far = sums.entry(money.provenance).or_insert(money.amount.map(|_| PicoUsd(0)));
        *so_far = sum(*so_far, money.amount);
    }
    if unknown && !sums.is_empty() {
        sums.insert(Provenance::Unknown, None);
    }
    sums.into_iter()
        .map(|(provenance, amount)| Money { amount, provenance })
        .collect()
}

#[cfg(test)]
mod tests;
