//! Decisions on calls as tables, and against a naive model with every interleaving.

use proptest::prelude::*;

use super::*;
use crate::call::OutputBounds;
use crate::usage::Usage;

const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
/// A dollar.
const USD: i64 = 1_000_000_000_000;

fn tokens(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn ask(model: &str, input: u64, most: u32) -> Ask {
    Ask {
        account: "anthropic/a".parse().unwrap(),
        model: model.to_owned(),
        free: false,
        prefix: None,
        input,
        output: OutputBounds::of(tokens(most), false),
    }
}

fn money(usd: i64) -> Limit {
    Limit {
        money: Some(PicoUsd(usd)),
        tokens: None,
    }
}

fn used(scope: BudgetScope, limit: Limit, spent: i64, held: &[(i64, u64)]) -> BudgetUse {
    let held = held.iter().map(|(money, until)| Held {
        money: PicoUsd(*money),
        tokens: 0,
        until: Timestamp::from_millis(NOW.as_millis() + until),
    });
    let mut tally = Tally::default();
    tally.add(PicoUsd(spent), 0);
    BudgetUse {
        rule: BudgetRule { scope, limit },
        spent: tally,
        held: held.collect(),
    }
}

fn on(ask: &Ask, budgets: &[BudgetUse]) -> Decision {
    decide(ask, CallCost::of(ask, PriceTable::builtin(), NOW), budgets, NOW)
}

/// The tokens of an answer that was granted, and what is held back for it.
fn granted(decision: &Decision) -> (u32, i64) {
    match decision {
        Decision::Granted { output, money, .. } => (output.get(), money.0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_limit_nothing_is_held_back() {
    let ask = ask("claude-opus-5-5", 1_000, 128_000);
    assert_eq!(on(&ask, &[]), Decision::Unlimited);
    let none = used(BudgetScope::Task, Limit::default(), USD, &[]);
    assert_eq!(on(&ask, &[none]), Decision::Unlimited);
}

#[test]
fn an_answer_is_as_long_as_fits_and_never_shorter_than_one_has_to_be() {
    // 8 USD per million tokens written to the dearest cache, 20 per million of output.
    let ask = ask("claude-opus-5-5", 10_000, 128_000);
    let input = 10_000 * 8_000_000;
    for (left, expected) in [
        (USD, 16_384),
        (input + 16_384 * 20_000_000, 16_384),
        (input + 16_383 * 20_000_000, 16_383),
        (input + 4_096 * 20_000_000, 4_096),
    ] {
        let (output, held) = granted(&on(&ask, &[used(BudgetScope::Task, money(left), 0, &[])]));
        assert_eq!(
            (output, held),
            (expected, input + i64::from(expected) * 20_000_000),
            "{left}"
        );
    }
    let short = used(BudgetScope::Task, money(input + 4_096 * 20_000_000 - 1), 0, &[]);
    assert!(matches!(on(&ask, &[short]), Decision::Refused { .. }));
    // One that was cut is asked again with more.
    let long = Ask {
        output: OutputBounds::of(tokens(128_000), true),
        ..ask
    };
    let wide = used(BudgetScope::Task, money(10 * USD), 0, &[]);
    assert_eq!(granted(&on(&long, &[wide])).0, 128_000);
}

/// LiteLLM PR#40002: reserved at the base price, and the tier above it was billed.
#[test]
fn a_request_is_bounded_by_the_tier_and_the_cache_write_price_that_it_can_reach() {
    let table = PriceTable::parse(
        r#"
        [[price]]
        model = "tiered"
        provider = "p"
        input = "2"
        output = "10"
        cache_read = "0.2"
        cache_write_5m = "2.5"
        long_context = 272000
        long_input = "4"
        long_output = "15"
        "#,
    )
    .unwrap();
    for (input, per_input, per_output) in [
        (1_000, 2_500_000, 10_000_000),
        (272_000, 2_500_000, 10_000_000),
        // A write costs as much more as uncached input does: 2.5 x 2.
        (272_001, 5_000_000, 15_000_000),
    ] {
        let expected = CallCost::Priced {
            input: i128::from(input) * per_input,
            output: per_output,
        };
        assert_eq!(CallCost::of(&ask("tiered", input, 9), &table, NOW), expected, "{input}");
    }
}

#[test]
fn a_call_waits_for_what_others_may_give_back_and_fails_when_nobody_can() {
    let ask = ask("claude-opus-5-5", 10_000, 128_000);
    let need = 10_000 * 8_000_000 + 4_096 * 20_000_000;
    let cap = money(2 * need);
    let cases = [
        // Spent, held by others and until when, whether it waits.
        (0, vec![(need + 1, 1)], Some(true)),
        (0, vec![(need, 1)], None),
        // Nothing more is heard of that call: it counts whole.
        (0, vec![(need + 1, 0)], Some(false)),
        (need, vec![(1, 1)], Some(true)),
        (need + 1, vec![(1, 1)], Some(false)),
        (need + 1, vec![], Some(false)),
    ];
    for (spent, held, expected) in cases {
        let decision = on(&ask, &[used(BudgetScope::Task, cap, spent, &held)]);
        let found = match decision {
            Decision::Wait { .. } => Some(true),
            Decision::Refused { .. } => Some(false),
            Decision::Granted { .. } | Decision::Unlimited => None,
        };
        assert_eq!(found, expected, "{spent} {held:?}");
    }
}

#[test]
fn every_budget_counts_and_the_narrowest_decides() {
    let ask = ask("claude-sonnet-5-5", 1_000, 64_000);
    let input = 1_000 * 4_000_000;
    let wide = used(BudgetScope::Person(BudgetPeriod::Day), money(100 * USD), 0, &[]);
    let narrow = used(BudgetScope::Session, money(input + 5_000 * 10_000_000), 0, &[]);
    assert_eq!(granted(&on(&ask, &[wide.clone(), narrow])).0, 5_000);
    let spent = used(BudgetScope::Project(BudgetPeriod::Month), money(USD), USD, &[]);
    let Decision::Refused { reason } = on(&ask, &[wide, spent]) else {
        panic!("it was not refused");
    };
    assert_eq!(
        reason,
        "the budget of the project for this month is used up: 1.00 of 1.00 USD are spent, and the next call can cost \
         0.05; raise it and run again"
    );
}

#[test]
fn an_unpriced_model_needs_a_token_cap_under_a_money_budget() {
    let ask = ask("nobody-knows-1", 1_000, 64_000);
    let budget = used(BudgetScope::Task, money(USD), 0, &[]);
    let Decision::Refused { reason } = on(&ask, std::slice::from_ref(&budget)) else {
        panic!("it was not refused");
    };
    assert!(
        reason.contains("nobody-knows-1") && reason.contains("--token-cap"),
        "{reason}"
    );
    assert_eq!(unpriced(std::slice::from_ref(&budget), "nobody-knows-1"), Some(reason));
    let cap = used(
        BudgetScope::Session,
        Limit {
            money: None,
            tokens: Some(6_000),
        },
        0,
        &[],
    );
    assert!(unpriced(&[budget.clone(), cap.clone()], "nobody-knows-1").is_none());
    assert!(unpriced(std::slice::from_ref(&cap), "nobody-knows-1").is_none());
    assert_eq!(granted(&on(&ask, &[budget.clone(), cap])), (5_000, 0));
    let free = Ask { free: true, ..ask };
    assert_eq!(granted(&on(&free, &[budget])), (16_384, 0));
}

#[test]
fn people_are_warned_before_a_budget_is_used_up_and_programs_stopped_after() {
    let ask = ask("claude-haiku-5-5", 10, 100);
    for (spent, held, warned, stopped) in [
        (84, vec![], false, false),
        (85, vec![], true, false),
        (80, vec![(5, 1)], true, false),
        (99, vec![], true, false),
    ] {
        let hundredth = USD / 100;
        let held: Vec<_> = held
            .into_iter()
            .map(|(part, until)| (part * hundredth, until))
            .collect();
        let budget = used(BudgetScope::Task, money(USD), spent * hundredth, &held);
        let Decision::Granted { warning, .. } = on(&ask, std::slice::from_ref(&budget)) else {
            panic!("{spent}");
        };
        assert_eq!(
            (warning.is_some(), passed(&[budget]).is_some()),
            (warned, stopped),
            "{spent}"
        );
    }
    assert!(passed(&[used(BudgetScope::Task, money(USD), USD, &[])]).is_some());
    assert!(passed(&[used(BudgetScope::Task, Limit::default(), USD, &[])]).is_none());
}

/// A call of the naive model.
#[derive(Debug, Clone)]
struct Open {
    held: Held,
    input: u64,
    output: u32,
}

#[derive(Debug, Clone)]
enum Step {
    Ask {
        input: u64,
        most: u32,
        cut: bool,
    },
    /// An open call ends: which, and how much of its bounds it used, in thousandths.
    End {
        which: prop::sample::Index,
        used: u32,
        class: u8,
    },
    Release {
        which: prop::sample::Index,
    },
    /// Nothing more is heard of it.
    Lose {
        which: prop::sample::Index,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => (0_u64..600_000, 1_u32..200_000, any::<bool>())
            .prop_map(|(input, most, cut)| Step::Ask { input, most, cut }),
        3 => (which(), 0_u32..=1000, 0_u8..5).prop_map(|(which, used, class)| Step::End { which, used, class }),
        1 => which().prop_map(|which| Step::Release { which }),
        1 => which().prop_map(|which| Step::Lose { which }),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens in whatever order, what providers bill is never above the limit; a call waits only
    /// while another is open; and at the end nothing is held back that a call does not account for.
    #[test]
    fn what_is_billed_never_passes_a_limit(
        steps in steps(),
        cents in 1_i64..2_000,
        model in prop::sample::select(vec!["claude-opus-5-5", "claude-fable-5-2", "gpt-6.1-sol", "claude-haiku-5-5"]),
    ) {
        let prices = PriceTable::builtin();
        let row = prices.find(model, NOW).unwrap();
        let limit = money(cents * USD / 100);
        let mut spent = Tally::default();
        let mut open: Vec<Open> = Vec::new();
        // The provider's own ledger: also what nobody heard of.
        let mut billed = 0_i128;
        let mut lost: Vec<Held> = Vec::new();
        for step in steps {
            match step {
                Step::Ask { input, most, cut } => {
                    let output = OutputBounds::of(tokens(most), cut);
                    let ask = Ask { output, ..ask(model, input, most) };
                    let held: Vec<_> = open.iter().map(|call| call.held).chain(lost.iter().copied()).collect();
                    let rule = BudgetRule { scope: BudgetScope::Task, limit };
                    let budget = BudgetUse { rule, spent, held };
                    match on(&ask, &[budget]) {
                        Decision::Granted { output, money, tokens, .. } => {
                            prop_assert!(output >= ask.output.least() && output <= ask.output.usual);
                            let until = Timestamp::from_millis(NOW.as_millis() + 1);
                            let held = Held { money, tokens, until };
                            open.push(Open { held, input, output: output.get() });
                        }
                        Decision::Wait { .. } => prop_assert!(!open.is_empty(), "it waits for nobody"),
                        Decision::Refused { .. } => {}
                        Decision::Unlimited => prop_assert!(false, "there is a limit"),
                    }
                }
                Step::End { which, used, class } if !open.is_empty() => {
                    let call = open.remove(which.index(open.len()));
                    let part = call.input * u64::from(used) / 1000;
                    let mut usage = Usage { output: u64::from(call.output) * u64::from(used) / 1000, ..Usage::default() };
                    match class {
                        0 => usage.input = part,
                        1 => usage.cache_read = part,
                        2 if row.cache_write_1h.is_some() => usage.cache_write_1h = part,
                        _ if row.cache_write_5m.is_some() => usage.cache_write_5m = part,
                        _ => usage.input = part,
                    }
                    let charge = prices.charge(crate::price::Used {
                        model,
                        usage: &usage,
                        reported: None,
                        metered: true,
                        call: Some(crate::call::CallEnd::Whole),
                    }, NOW);
                    let amount = charge.money.amount.unwrap();
                    prop_assert!(amount <= call.held.money, "{usage:?} costs more than was held back");
                    billed += i128::from(amount.0);
                    spent.add(amount, usage.total());
                }
                Step::Release { which } if !open.is_empty() => {
                    open.remove(which.index(open.len()));
                }
                Step::Lose { which } if !open.is_empty() => {
                    let call = open.remove(which.index(open.len()));
                    billed += i128::from(call.held.money.0);
                    lost.push(Held { until: NOW, ..call.held });
                }
                Step::End { .. } | Step::Release { .. } | Step::Lose { .. } => {}
            }
            prop_assert!(billed <= i128::from(cents * USD / 100));
        }
    }
}
