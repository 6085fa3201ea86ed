//! Whether a call may be made under the budgets that it counts against, and how long its answer may be.
//!
//! There are no counters. What is spent is the sum of the rows of calls that ended; what is held back is
//! the sum of the reservations of calls that did not. A reservation is the most that its call can cost, so
//! that what is spent never passes a limit, whatever the calls of other sessions do meanwhile.
//!
//! ```text
//!   fits in what is left -----------------------------> Granted, with the answer that fits
//!   would fit if others cost less than they hold back -> Wait
//!   cannot fit any more ------------------------------> Refused
//! ```
//!
//! Pure. The store asks this inside the transaction that writes the reservation; prices are `price`'s.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::call::Ask;
use crate::price::PriceTable;
use crate::time::Timestamp;
use crate::usage::PicoUsd;

mod scope;
#[cfg(test)]
mod tests;

pub use scope::{BudgetPeriod, BudgetRule, BudgetScope, ScopeKey};

/// The part of a limit, in percent, from which on people are warned.
const WARNED_AT: i128 = 85;

/// How much may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Money; `None`: any amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money: Option<PicoUsd>,
    /// Tokens of all classes together; `None`: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

impl Limit {
    /// True when it limits nothing.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.money.is_none() && self.tokens.is_none()
    }
}

/// The budgets that a task is created with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskBudget {
    /// Of all its sessions together.
    #[serde(default, skip_serializing_if = "Limit::is_none")]
    pub task: Limit,
    /// Of each session.
    #[serde(default, skip_serializing_if = "Limit::is_none")]
    pub session: Limit,
}

impl TaskBudget {
    /// True when it limits nothing.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.task.is_none() && self.session.is_none()
    }

    /// Its limits, as rules.
    pub fn rules(&self) -> impl Iterator<Item = BudgetRule> + use<> {
        let rules = [(BudgetScope::Session, self.session), (BudgetScope::Task, self.task)];
        let rules = rules.into_iter().filter(|(_, limit)| !limit.is_none());
        rules.map(|(scope, limit)| BudgetRule { scope, limit })
    }
}

/// Money and tokens, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// In pico-dollars: wide enough for any number of rows.
    pub money: i128,
    /// Tokens of all classes.
    pub tokens: u128,
}

impl Tally {
    /// Adds amounts of one row.
    pub fn add(&mut self, money: PicoUsd, tokens: u64) {
        self.money += i128::from(money.0);
        self.tokens += u128::from(tokens);
    }

    fn plus(self, other: Self) -> Self {
        Self {
            money: self.money + other.money,
            tokens: self.tokens + other.tokens,
        }
    }
}

/// What is held back for a call that did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The most that it can cost; 0 where its price is not known.
    pub money: PicoUsd,
    /// The most tokens that it can use.
    pub tokens: u64,
    /// Until when others wait for its end. It counts after that, too.
    pub until: Timestamp,
}

/// What was used of one budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetUse {
    /// Which budget.
    pub rule: BudgetRule,
    /// Calls that ended.
    pub spent: Tally,
    /// Calls that did not.
    pub held: Vec<Held>,
}

/// How much one call can use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallCost {
    /// It costs nothing.
    Free,
    /// Its input costs so much at most, and each token of its answer so much.
    Priced {
        /// Of all tokens of input.
        input: i128,
        /// Of one token of output.
        output: i128,
    },
    /// The price is not known.
    Unpriced,
}

impl CallCost {
    /// The most that a call can cost by the prices of now.
    #[must_use]
    pub fn of(ask: &Ask, prices: &PriceTable, now: Timestamp) -> Self {
        if ask.free {
            return Self::Free;
        }
        let Some(row) = prices.find(&ask.model, now) else {
            return Self::Unpriced;
        };
        let dearest = row.dearest(ask.input);
        Self::Priced {
            input: i128::from(ask.input) * i128::from(dearest.input.0),
            output: i128::from(dearest.output.0),
        }
    }

    fn with_output(self, tokens: u32) -> i128 {
        match self {
            Self::Free | Self::Unpriced => 0,
            Self::Priced { input, output } => input + output * i128::from(tokens),
        }
    }
}

/// Whether a call may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Nothing limits it, and nothing is held back for it.
    Unlimited,
    /// It may be made.
    Granted {
        /// The tokens that its answer may have.
        output: NonZeroU32,
        /// The most that it can cost.
        money: PicoUsd,
        /// The most tokens that it can use.
        tokens: u64,
        /// How far the fullest budget is used up, when people are to be warned.
        warning: Option<String>,
    },
    /// Calls of others hold back what it needs.
    Wait {
        /// Of which budget.
        scope: BudgetScope,
        /// For people.
        reason: String,
    },
    /// It does not fit any more, whatever happens.
    Refused {
        /// For people: why, and what to do.
        reason: String,
    },
}

/// Decides on a call that counts against these budgets.
pub fn decide(ask: &Ask, cost: CallCost, budgets: &[BudgetUse], now: Timestamp) -> Decision {
    if budgets.iter().all(|budget| budget.rule.limit.is_none()) {
        return Decision::Unlimited;
    }
    if cost == CallCost::Unpriced
        && let Some(reason) = unpriced(budgets, &ask.model)
    {
        return Decision::Refused { reason };
    }
    let least = ask.output.least().get();
    let mut output = ask.output.usual.get();
    let mut waits = None;
    for budget in budgets {
        let limit = budget.rule.limit;
        let (firm, open) = budget.sums(now);
        let is_outstanding = open != Tally::default();
        if let Some(money) = limit.money {
            let left = i128::from(money.0) - firm.money;
            let need = cost.with_output(least);
            // A call that costs nothing spends nothing of what was passed already.
            if need > 0 && need > left {
                return Decision::Refused {
                    reason: budget.used_up(firm, &format!("the next call can cost {}", Dollars(need))),
                };
            }
            if need > 0 && need > left - open.money && is_outstanding {
                waits.get_or_insert(budget);
            }
            if let CallCost::Priced { input, output: each } = cost
                && each > 0
            {
                let fits = (left - open.money - input) / each;
                output = output.min(u32::try_from(fits.max(0)).unwrap_or(u32::MAX));
            }
        }
        if let Some(tokens) = limit.tokens {
            let left = u128::from(tokens).saturating_sub(firm.tokens);
            let need = u128::from(ask.input) + u128::from(least);
            if need > left {
                return Decision::Refused {
                    reason: budget.used_up(firm, &format!("the next call can use {need} tokens")),
                };
            }
            let now_left = left.saturating_sub(open.tokens);
            if need > now_left && is_outstanding {
                waits.get_or_insert(budget);
            }
            let fits = now_left.saturating_sub(u128::from(ask.input));
            output = output.min(u32::try_from(fits).unwrap_or(u32::MAX));
        }
    }
    if let Some(budget) = waits {
        return Decision::Wait {
            scope: budget.rule.scope,
            reason: budget.waits(),
        };
    }
    // What fits nowhere was refused, and what has to wait waits.
    let output = NonZeroU32::new(output.max(least)).unwrap_or(ask.output.least());
    let money = i64::try_from(cost.with_output(output.get())).unwrap_or(i64::MAX);
    Decision::Granted {
        output,
        money: PicoUsd(money),
        tokens: ask.input.saturating_add(u64::from(output.get())),
        warning: budgets.iter().find_map(|budget| budget.warning(now)),
    }
}

/// Why a model without a price may not be used: a budget limits money, and none limits tokens.
#[must_use]
pub fn unpriced(budgets: &[BudgetUse], model: &str) -> Option<String> {
    if budgets.iter().any(|budget| budget.rule.limit.tokens.is_some()) {
        return None;
    }
    let budget = budgets.iter().find(|budget| budget.rule.limit.money.is_some())?;
    Some(format!(
        "the price of {model} is not known, so the budget of {} cannot hold; give a token cap too (--token-cap), or \
         the model's price in a price file",
        budget.rule.scope
    ))
}

/// Whether a budget is passed by what was used: programs that are not metered are stopped then.
#[must_use]
pub fn passed(budgets: &[BudgetUse]) -> Option<String> {
    budgets.iter().find_map(|budget| {
        let limit = budget.rule.limit;
        let money = limit
            .money
            .is_some_and(|money| budget.spent.money >= i128::from(money.0));
        let tokens = limit
            .tokens
            .is_some_and(|tokens| budget.spent.tokens >= u128::from(tokens));
        (money || tokens).then(|| budget.used_up(budget.spent, "the program reports what it uses only afterwards"))
    })
}

impl BudgetUse {
    /// What counts whatever happens, and what may still turn out to be less.
    fn sums(&self, now: Timestamp) -> (Tally, Tally) {
        let (mut firm, mut open) = (self.spent, Tally::default());
        for held in &self.held {
            let sum = if held.until > now { &mut open } else { &mut firm };
            sum.add(held.money, held.tokens);
        }
        (firm, open)
    }

    fn waits(&self) -> String {
        format!(
            "other calls hold back what is left of the budget of {}",
            self.rule.scope
        )
    }

    fn used_up(&self, firm: Tally, next: &str) -> String {
        let BudgetRule { scope, limit } = self.rule;
        let money = limit
            .money
            .map(|money| format!("{} of {} USD", Dollars(firm.money), Dollars(money.0.into())));
        let tokens = limit.tokens.map(|tokens| format!("{} of {tokens} tokens", firm.tokens));
        let used: Vec<_> = [money, tokens].into_iter().flatten().collect();
        format!(
            "the budget of {scope} is used up: {} are spent, and {next}; raise it and run again",
            used.join(" and ")
        )
    }

    /// That it is nearly used up.
    fn warning(&self, now: Timestamp) -> Option<String> {
        let (firm, open) = self.sums(now);
        let used = firm.plus(open);
        let BudgetRule { scope, limit } = self.rule;
        let money = limit.money.map(|money| (used.money, i128::from(money.0)));
        let tokens = limit
            .tokens
            .map(|tokens| (i128::try_from(used.tokens).unwrap_or(i128::MAX), i128::from(tokens)));
        let is_near = |(used, most): &(i128, i128)| used.saturating_mul(100) >= most.saturating_mul(WARNED_AT);
        let near = money.into_iter().chain(tokens).any(|both| is_near(&both));
        near.then(|| format!("{WARNED_AT} % of the budget of {scope} are used or held back"))
    }
}

/// An amount that may be more than [`PicoUsd`] has room for, in cents, rounded up.
struct Dollars(i128);

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CENT: i128 = 10_000_000_000;
        let cents = (self.0.max(0) + CENT - 1) / CENT;
        write!(f, "{}.{:02}", cents / 100, cents % 100)
    }
}
