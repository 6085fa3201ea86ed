//! What sessions are told to have cost, as tables and properties.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::call::CallEnd;
use crate::usage::{Unreported, UsageClass};

const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

const TABLE: &str = r#"
    [[price]]
    model = "fast-1"
    provider = "p"
    input = "2"
    output = "4"
    long_context = 1000
"#;

fn table(text: &str) -> PriceTable {
    PriceTable::parse(text).unwrap()
}

/// What an event says.
#[derive(Debug, Clone)]
struct Told {
    model: String,
    metered: bool,
    usage: Usage,
    reported: Option<i64>,
}

fn told(model: &str, metered: bool, input: u64, reported: Option<i64>) -> Told {
    let usage = Usage {
        input,
        ..Usage::default()
    };
    Told {
        model: model.to_owned(),
        metered,
        usage,
        reported,
    }
}

fn untold(mut told: Told, unreported: Unreported) -> Told {
    told.usage.unreported = unreported;
    told
}

fn accept(entries: &mut Vec<ModelUsage>, told: &Told, prices: &PriceTable, now: Timestamp) {
    let used = Used {
        model: &told.model,
        usage: &told.usage,
        reported: told.reported.map(PicoUsd),
        metered: told.metered,
        call: told.metered.then_some(CallEnd::Whole),
    };
    add(entries, used, prices, now);
}

fn accepted(all: &[Told], prices: &PriceTable) -> Vec<ModelUsage> {
    let mut entries = Vec::new();
    for told in all {
        accept(&mut entries, told, prices, NOW);
    }
    entries
}

fn amounts(entries: &[ModelUsage]) -> Vec<(Provenance, Option<i64>)> {
    let all = Costs::of(entries).all;
    all.iter().map(|m| (m.provenance, m.amount.map(|a| a.0))).collect()
}

#[test]
fn a_sum_of_known_and_unknown_says_so() {
    use Provenance as P;
    let nothing = || untold(told("", false, 0, None), Unreported::ALL);
    let output = Unreported::default().with(UsageClass::Output);
    let reasoning = Unreported::default().with(UsageClass::Reasoning);
    let (billed, unknown) = ((P::Billed, Some(4_000_000)), (P::Unknown, None));
    let cases = [
        // No figure at all.
        (vec![nothing()], vec![]),
        (vec![nothing(), nothing()], vec![]),
        (vec![told("fast-1", true, 2, None), nothing()], vec![billed, unknown]),
        (
            vec![untold(told("fast-1", false, 2, None), output)],
            vec![(P::Estimated, Some(4_000_000)), unknown],
        ),
        // Reasoning is a part of the billed output.
        (vec![untold(told("fast-1", true, 2, None), reasoning)], vec![billed]),
        // The program itself reported the cost.
        (
            vec![untold(told("fast-1", false, 2, Some(9)), output)],
            vec![(P::Reported, Some(9))],
        ),
    ];
    for (events, expected) in cases {
        assert_eq!(amounts(&accepted(&events, &table(TABLE))), expected, "{events:?}");
    }
}

#[test]
fn a_session_has_one_amount_for_each_provenance() {
    use Provenance as P;
    let cases = [
        (vec![], vec![]),
        (vec![told("other", true, 0, None)], vec![]),
        (vec![told("other", false, 0, Some(9))], vec![(P::Reported, Some(9))]),
        (
            vec![
                told("fast-1", true, 1, None),
                told("fast-1-20260101", true, 2, None),
                told("other", true, 5, None),
                told("else", true, 5, None),
                told("other", false, 5, Some(7)),
                told("else", false, 5, Some(8)),
                told("fast-1", false, 5, None),
            ],
            vec![
                (P::Billed, Some(6_000_000)),
                (P::Reported, Some(15)),
                (P::Estimated, Some(10_000_000)),
                (P::Unknown, None),
            ],
        ),
    ];
    for (events, expected) in cases {
        assert_eq!(amounts(&accepted(&events, &table(TABLE))), expected, "{events:?}");
    }
}

#[test]
fn calls_are_priced_one_by_one() {
    // Together they are above the limit of one call.
    let calls = vec![told("fast-1", true, 600, None); 3];
    let entries = accepted(&calls, &table(TABLE));
    assert_eq!(amounts(&entries), [(Provenance::Billed, Some(3_600_000_000))]);
    let long = [calls, vec![told("fast-1", true, 1001, None)]].concat();
    assert_eq!(
        amounts(&accepted(&long, &table(TABLE))),
        [
            (Provenance::Billed, Some(3_600_000_000)),
            (Provenance::Estimated, Some(2_002_000_000)),
        ]
    );
}

#[test]
fn what_was_told_without_an_amount_does_not_hide_in_one() {
    let events = [None, Some(5), None, Some(7)].map(|reported| told("m", false, 1, reported));
    let entries = accepted(&events, &table(TABLE));
    let amounts: Vec<_> = entries.iter().map(|entry| entry.reported).collect();
    assert_eq!(amounts, [None, Some(PicoUsd(12))]);
    assert!(entries.iter().all(|entry| entry.usage.input == 2));
}

#[test]
fn models_that_a_program_makes_up_are_counted_together() {
    let events = (0..100).map(|n| told(&format!("m{n}"), true, 1, None));
    let events: Vec<_> = events.chain([told("m0", true, 1, None)]).collect();
    let entries = accepted(&events, &table(TABLE));
    assert_eq!(entries.len(), MAX_MODELS + 1);
    assert_eq!(entries[0].usage.input, 2);
    assert_eq!(entries[MAX_MODELS].model, OTHER_MODELS);
    assert_eq!(entries[MAX_MODELS].usage.input, 100 - MAX_MODELS as u64);
}

/// A program under a budget could otherwise use a model for nothing after it had named 32 others.
#[test]
fn a_model_beyond_those_that_are_kept_apart_keeps_its_price() {
    let events = (0..MAX_MODELS).map(|n| told(&format!("m{n}"), true, 1, None));
    let mut entries = accepted(&events.collect::<Vec<_>>(), &table(TABLE));
    let usage = told("fast-1", true, 5, None).usage;
    let used = Used {
        model: "fast-1",
        usage: &usage,
        reported: None,
        metered: true,
        call: Some(CallEnd::Whole),
    };
    let amount = Some(PicoUsd(5 * 2_000_000));
    for _ in 0..2 {
        assert_eq!(add(&mut entries, used, &table(TABLE), NOW).money.amount, amount);
    }
    assert_eq!(entries.len(), MAX_MODELS + 1);
    assert_eq!(entries[MAX_MODELS].model, OTHER_MODELS);
    assert_eq!(entries[MAX_MODELS].money.amount, Some(PicoUsd(10 * 2_000_000)));
}

#[test]
fn a_price_that_changes_leaves_what_was_accepted_before() {
    let dearer = TABLE.replace("\"2\"", "\"3\"");
    let mut entries = accepted(&[told("fast-1", true, 5, None)], &table(TABLE));
    let before = entries.clone();
    assert_eq!(Costs::of(&entries), Costs::of(&before));
    accept(&mut entries, &told("fast-1", true, 7, None), &table(&dearer), NOW);
    assert_eq!(
        entries[0], before[0],
        "the first entry keeps its tokens, amount and row"
    );
    let row = |entry: &ModelUsage| entry.price.clone().unwrap();
    assert_ne!(row(&entries[0]), row(&entries[1]));
    assert_eq!(
        amounts(&entries),
        [(Provenance::Billed, Some(5 * 2_000_000 + 7 * 3_000_000))]
    );

    // A row that begins to hold while the session works.
    let rises = format!("{TABLE}\n[[price]]\nmodel='fast-1'\nprovider='p'\nfrom='2026-12-01'\ninput='9'\noutput='9'\n");
    let later = NOW + Duration::from_secs(365 * 86_400);
    accept(&mut entries, &told("fast-1", true, 1, None), &table(&rises), later);
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[2].money.amount, Some(PicoUsd(9_000_000)));
}

#[test]
fn what_is_stored_is_read_again() {
    let events = [told("fast-1", true, 5, Some(1)), told("other", false, 5, None)];
    let entries = accepted(&events, &table(TABLE));
    let text = serde_json::to_string(&entries).unwrap();
    assert!(text.contains(r#""price":"fast-1@always#"#), "{text}");
    assert_eq!(serde_json::from_str::<Vec<ModelUsage>>(&text).unwrap(), entries);
}

fn any_event() -> impl Strategy<Value = Told> {
    let model = prop::sample::select(vec!["fast-1", "other", "", "quick"]);
    let tokens = prop::array::uniform4(0_u64..2000);
    let reported = prop::option::of(0_i64..1_000_000);
    (model, any::<bool>(), tokens, reported, 0_u32..64).prop_map(|(model, metered, tokens, reported, unreported)| {
        let [input, output, cache_read, reasoning] = tokens;
        let usage = Usage {
            input,
            output,
            cache_read,
            reasoning,
            unreported: Unreported::from_bits(unreported),
            ..Usage::default()
        };
        Told {
            model: model.to_owned(),
            metered,
            usage,
            reported,
        }
    })
}

proptest! {
    /// However events come, and however often the table changes between them: tokens are those of the
    /// events, and each entry's amount is that of its tokens by its row.
    #[test]
    fn the_entries_are_the_sum_of_the_events(events in prop::collection::vec((any_event(), 1_u64..9), 0..60)) {
        let mut entries = Vec::new();
        let mut tokens = Usage::default();
        let mut tables = std::collections::BTreeMap::new();
        for (event, input) in &events {
            let prices = table(&TABLE.replace("\"2\"", &format!("\"{input}\"")));
            if let Some(row) = prices.find("fast-1", NOW) {
                tables.insert(row.id.clone(), row.clone());
            }
            accept(&mut entries, event, &prices, NOW);
            tokens += event.usage;
        }
        let mut total = Usage::default();
        for entry in &entries {
            total += entry.usage;
            if let Some(price) = &entry.price {
                prop_assert_eq!(tables[price].amount(&entry.usage), entry.money.amount);
            } else if entry.money.provenance == Provenance::Reported {
                prop_assert_eq!(entry.money.amount, entry.reported);
            } else {
                prop_assert_eq!(entry.money.amount, None);
            }
        }
        prop_assert_eq!(total, tokens);
    }
}
