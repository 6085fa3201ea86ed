//! What an agent says that a turn used. The protocol has counts with the answer of a turn, and leaves open what
//! they mean; the manifest says it. Some agents have theirs in `_meta`. What nobody counted is unknown, never 0.

use std::collections::BTreeMap;

use kage_core::usage::{PicoUsd, Unreported, Usage, UsageClass};
use serde_json::Value;

use crate::adapters::cli::dollars;
use crate::adapters::cli::manifest::acp::{Counts, UsageWords};

/// The counts of one session, turn after turn.
#[derive(Debug)]
pub(super) struct Meter {
    words: UsageWords,
    /// What was told in all, by model, for agents that count on.
    before: BTreeMap<String, Usage>,
    /// The cost of the session so far, as it was told last and as it was reported.
    cost: Option<PicoUsd>,
    reported: PicoUsd,
}

/// What one turn used with a model, and the cost that the agent told, if it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Used {
    /// Empty: it told none.
    pub(super) model: String,
    pub(super) usage: Usage,
    pub(super) cost: Option<PicoUsd>,
}

impl Meter {
    pub(super) fn new(words: UsageWords) -> Self {
        Self {
            words,
            before: BTreeMap::new(),
            cost: None,
            reported: PicoUsd(0),
        }
    }

    /// A `usage_update`: it has the cost of the whole session.
    pub(super) fn update(&mut self, update: &Value) {
        let Some(cost) = update.get("cost") else { return };
        if cost.get("currency").and_then(Value::as_str) == Some("USD") {
            self.cost = cost
                .get("amount")
                .and_then(Value::as_f64)
                .map(dollars::pico)
                .or(self.cost);
        }
    }

    /// The answer of a turn; at least one entry.
    pub(super) fn turn(&mut self, answer: &Value) -> Vec<Used> {
        let mut told = match self.words.counts {
            Counts::Nothing => Vec::new(),
            Counts::Turn | Counts::Session => told(answer, self.words),
        };
        if self.words.counts == Counts::Session {
            for (model, usage) in &mut told {
                let whole = *usage;
                let before = self.before.insert(model.clone(), whole).unwrap_or_default();
                *usage = whole.since(before);
            }
        }
        if told.is_empty() {
            told.push((String::new(), Usage::UNKNOWN));
        }
        let mut cost = self.spent();
        told.into_iter()
            .map(|(model, usage)| Used {
                model,
                // Nothing at all means that nobody counted.
                usage: if usage.total() == 0 { Usage::UNKNOWN } else { usage },
                // One amount for all models of the turn.
                cost: cost.take(),
            })
            .collect()
    }

    /// The cost since the last time. One of nothing says nothing: agents tell 0 for models without a price.
    fn spent(&mut self) -> Option<PicoUsd> {
        let whole = self.cost.filter(|cost| cost.0 > self.reported.0)?;
        let spent = PicoUsd(whole.0 - self.reported.0);
        self.reported = whole;
        Some(spent)
    }
}

/// The counts of an answer by model.
fn told(answer: &Value, words: UsageWords) -> Vec<(String, Usage)> {
    let models = answer.pointer("/_meta/quota/model_usage").and_then(Value::as_array);
    let by_model = models.into_iter().flatten().filter_map(|entry| {
        let model = entry.get("model").and_then(Value::as_str).unwrap_or_default();
        let counts = entry.get("token_count").unwrap_or(entry);
        Some((model.to_owned(), counted(counts, words)?))
    });
    let by_model: Vec<_> = by_model.collect();
    if !by_model.is_empty() {
        return by_model;
    }
    let places = ["/usage", "/_meta/quota/token_count"];
    let counts = places.into_iter().filter_map(|place| answer.pointer(place));
    let mut counts = counts.filter_map(|counts| counted(counts, words));
    counts.next().map(|usage| (String::new(), usage)).into_iter().collect()
}

/// The counts of an object; `None`: it has none.
fn counted(counts: &Value, words: UsageWords) -> Option<Usage> {
    let of = |names: [&str; 2]| names.into_iter().find_map(|name| counts.get(name)?.as_u64());
    let input = of(["inputTokens", "input_tokens"])?;
    let output = of(["outputTokens", "output_tokens"])?;
    let read = of(["cachedReadTokens", "cached_read_tokens"]);
    let written = of(["cachedWriteTokens", "cached_write_tokens"]);
    let thought = of(["thoughtTokens", "thought_tokens"]);
    let mut unreported = Unreported::default();
    for (class, told) in [
        (UsageClass::CacheRead, read),
        (UsageClass::CacheWrite5m, written),
        (UsageClass::Reasoning, thought),
    ] {
        if told.is_none() {
            unreported = unreported.with(class);
        }
    }
    let (read, written, thought) = (read.unwrap_or(0), written.unwrap_or(0), thought.unwrap_or(0));
    let cached = read.saturating_add(written);
    Some(Usage {
        input: match words.input_includes_cached {
            true => input.saturating_sub(cached),
            false => input,
        },
        cache_write_5m: written,
        cache_read: read,
        output: match words.output_includes_thoughts {
            true => output,
            false => output.saturating_add(thought),
        },
        reasoning: thought,
        unreported,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(counts: Counts, input_includes_cached: bool) -> UsageWords {
        UsageWords {
            counts,
            input_includes_cached,
            output_includes_thoughts: false,
        }
    }

    #[test]
    fn counts_mean_what_the_manifest_says() {
        let answer = json!({"stopReason": "end_turn", "usage": {
            "inputTokens": 100, "outputTokens": 7, "totalTokens": 0,
            "cachedReadTokens": 60, "cachedWriteTokens": 30, "thoughtTokens": 5}});
        let of = |words| Meter::new(words).turn(&answer).remove(0).usage;
        let outside = of(words(Counts::Turn, false));
        assert_eq!(
            (outside.input, outside.cache_read, outside.cache_write_5m),
            (100, 60, 30)
        );
        assert_eq!(
            (outside.output, outside.reasoning, outside.unreported),
            (12, 5, Unreported::default())
        );
        assert_eq!(of(words(Counts::Turn, true)).input, 10);
        assert_eq!(of(words(Counts::Nothing, true)), Usage::UNKNOWN);
    }

    #[test]
    fn what_is_not_told_is_unknown_and_not_zero() {
        let mut meter = Meter::new(UsageWords::default());
        for none in [
            json!({"stopReason": "end_turn"}),
            json!({"usage": {"inputTokens": 0, "outputTokens": 0}}),
        ] {
            let used = meter.turn(&none);
            assert_eq!((used.len(), used[0].usage.of(UsageClass::Input)), (1, None), "{none}");
        }
        let partly = meter
            .turn(&json!({"usage": {"inputTokens": 9, "outputTokens": 1}}))
            .remove(0)
            .usage;
        assert_eq!(partly.of(UsageClass::Input), Some(9));
        assert_eq!(partly.of(UsageClass::CacheRead), None);
    }

    #[test]
    fn models_are_told_apart_where_the_agent_does() {
        let answer = json!({"_meta": {"quota": {
            "token_count": {"input_tokens": 30, "output_tokens": 3},
            "model_usage": [
                {"model": "big", "token_count": {"input_tokens": 20, "output_tokens": 2}},
                {"model": "small", "token_count": {"input_tokens": 10, "output_tokens": 1}}]}}});
        let used = Meter::new(UsageWords::default()).turn(&answer);
        let inputs: Vec<_> = used
            .iter()
            .map(|used| (used.model.as_str(), used.usage.input))
            .collect();
        assert_eq!(inputs, [("big", 20), ("small", 10)]);
        let whole = json!({"_meta": {"quota": {"token_count": {"input_tokens": 30, "output_tokens": 3}}}});
        assert_eq!(Meter::new(UsageWords::default()).turn(&whole)[0].usage.input, 30);
    }

    #[test]
    fn a_count_of_the_session_is_reported_by_turns_and_so_is_its_cost() {
        let mut meter = Meter::new(words(Counts::Session, false));
        let turn = |input: u64| json!({"usage": {"inputTokens": input, "outputTokens": 1}});
        meter.update(&json!({"used": 5, "size": 9, "cost": {"amount": 0.5, "currency": "USD"}}));
        let first = meter.turn(&turn(10)).remove(0);
        assert_eq!((first.usage.input, first.cost), (10, Some(PicoUsd(500_000_000_000))));
        meter.update(&json!({"cost": {"amount": 0.75, "currency": "USD"}}));
        meter.update(&json!({"cost": {"amount": 9.0, "currency": "credits"}}));
        let second = meter.turn(&turn(25)).remove(0);
        assert_eq!((second.usage.input, second.cost), (15, Some(PicoUsd(250_000_000_000))));
        // Nothing more was spent: then it is not known what this one cost.
        assert_eq!(meter.turn(&turn(30)).remove(0).cost, None);
    }
}
