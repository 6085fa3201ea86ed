//! Prices as tables and properties.

use proptest::prelude::*;

use super::file::{midnight, per_token};
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
        ..Usage::default()
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
            let usage = usage(input, output, read, write_5m, write_1h);
            let money = PriceTable::builtin().charge(metered(model, &usage), NOW).money;
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

fn metered<'a>(model: &'a str, usage: &'a Usage) -> Used<'a> {
    Used {
        model,
        usage,
        reported: None,
        metered: true,
        call: Some(CallEnd::Whole),
    }
}

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
        // The time before the first row is unknown.
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
        ("other", usage(1, 0, 0, 0, 0), Charge::UNKNOWN.money),
        // The row has no such class.
        ("fast-1", usage(1, 1, 1, 0, 0), Charge::UNKNOWN.money),
        ("fast-1", usage(1, 1, 0, 0, 1), Charge::UNKNOWN.money),
        // Too large to be represented.
        ("fast-1", usage(u64::MAX, u64::MAX, 0, 0, 0), Charge::UNKNOWN.money),
        ("fast-1", usage(1, 1, 0, 0, 0), billed(6_000_000)),
        ("fast-1", usage(1000, 0, 0, 0, 0), billed(2_000_000_000)),
        // Some request may have exceeded the limit above which it costs more.
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
        let charge = table.charge(metered(model, &usage), NOW);
        assert_eq!(charge.money, expected, "{model} {usage:?}");
        assert_eq!(charge.price.is_some(), expected.amount.is_some());
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
fn an_overlay_keeps_what_is_known_of_a_model() {
    let own = r#"
        [[price]]
        model = "claude-sonnet-5-5"
        provider = "me"
        input = "1"
        output = "1"

        [[price]]
        model = "claude-opus-5-5"
        provider = "me"
        input = "1"
        output = "1"
        max_output = 5
        efforts = []
    "#;
    let table = PriceTable::builtin().clone().overlay(PriceTable::parse(own).unwrap());
    let row = |model| table.find(model, NOW).unwrap();
    let sonnet = row("claude-sonnet-5-5");
    assert_eq!((sonnet.input.0, sonnet.max_output), (1_000_000, Some(128_000)));
    assert_eq!(sonnet.thinking, Some(Thinking::Adaptive));
    assert_eq!(sonnet.efforts.as_ref().map(Vec::len), Some(5));
    let opus = row("claude-opus-5-5");
    assert_eq!((opus.max_output, &opus.efforts), (Some(5), &Some(Vec::new())));
}

#[test]
fn every_model_of_the_messages_api_says_how_much_it_gives_and_how_it_is_asked() {
    for (model, rows) in &PriceTable::builtin().rows {
        for row in rows.iter().filter(|row| row.provider == "anthropic") {
            assert!(row.max_output.is_some() && row.efforts.is_some(), "{model}");
        }
    }
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

#[test]
fn a_program_s_own_report_counts_when_nothing_is_metered() {
    use Provenance as P;
    let table = PriceTable::parse(TABLE).unwrap();
    let row = &table.find("fast-1", NOW).unwrap().id;
    let cases = [
        // A metered program's own report is ignored.
        (("fast-1", true, Some(1)), (P::Billed, Some(4_000_000), Some(row))),
        (("other", true, Some(1)), (P::Unknown, None, None)),
        // Unless it costs nothing: a server of one's own has models that others sell.
        (("fast-1", true, Some(0)), (P::Free, Some(0), None)),
        (("other", true, Some(0)), (P::Free, Some(0), None)),
        (("other", false, Some(9)), (P::Reported, Some(9), None)),
        (("fast-1", false, Some(9)), (P::Reported, Some(9), None)),
        (("fast-1", false, None), (P::Estimated, Some(4_000_000), Some(row))),
        (("other", false, None), (P::Unknown, None, None)),
    ];
    for ((model, metered, reported), (provenance, amount, price)) in cases {
        let used = Used {
            model,
            usage: &usage(2, 0, 0, 0, 0),
            reported: reported.map(PicoUsd),
            metered,
            call: metered.then_some(CallEnd::Whole),
        };
        let money = Money {
            amount: amount.map(PicoUsd),
            provenance,
        };
        let price = price.cloned();
        assert_eq!(table.charge(used, NOW), Charge { money, price }, "{used:?}");
    }
}

#[test]
fn a_row_is_named_after_its_model_its_day_and_its_figures() {
    let table = PriceTable::parse(TABLE).unwrap();
    let name = |table: &PriceTable, at| table.find("quick-20260301", at).unwrap().id.to_string();
    let (dated, always) = (name(&table, NOW), name(&table, Timestamp::from_millis(0)));
    assert!(dated.starts_with("fast-1@2026-06-01#"), "{dated}");
    assert!(always.starts_with("fast-1@always#"), "{always}");
    assert_eq!(dated.len(), "fast-1@2026-06-01#".len() + 8);
    let again = PriceTable::parse(TABLE).unwrap();
    assert_eq!(name(&again, NOW), dated, "the same row has the same name");
    let other = PriceTable::parse(&TABLE.replace("output = \"4\"", "output = \"5\"")).unwrap();
    assert_ne!(name(&other, NOW), dated, "a corrected price is another row");
    assert_eq!(name(&other, Timestamp::from_millis(0)), always);
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

    /// Every accepted price is represented exactly.
    #[test]
    fn decimals_keep_every_digit(whole in 0_u32..1_000_000, part in 0_u32..1_000_000) {
        let text = format!("{whole}.{part:06}");
        let pico = i64::from(whole) * 1_000_000 + i64::from(part);
        prop_assert_eq!(per_token(&text), Some(PicoUsd(pico)));
    }
}
