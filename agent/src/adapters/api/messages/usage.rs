//! Token counts of the Messages API, by billing class.

use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

/// Reads a `usage` object. The provider's `input_tokens` excludes everything cached.
pub(in crate::adapters) fn parse(value: &Value) -> Option<Usage> {
    let mut usage = Usage::default();
    update(&mut usage, value).then_some(usage)
}

fn told(usage: &mut Usage, class: UsageClass) {
    usage.unreported = usage.unreported.without(class);
}

/// Merges a later `usage` object. Its counts are totals, and it omits counts that did not change. Some
/// servers say 0 at the start and the totals at the end, others the reverse, so of each count the largest is
/// taken: a total never falls. False when it is not an object.
pub(super) fn update(usage: &mut Usage, value: &Value) -> bool {
    let Some(object) = value.as_object() else {
        return false;
    };
    if *usage == Usage::default() {
        // No count has been reported yet.
        usage.unreported = Unreported::ALL;
    }
    let number = |key: &str| object.get(key).and_then(Value::as_u64);
    let deep = |outer: &str, inner: &str| object.get(outer)?.get(inner)?.as_u64();
    if let Some(input) = number("input_tokens") {
        usage.input = usage.input.max(input);
        told(usage, UsageClass::Input);
        // The provider leaves classes out that nothing was cached in.
        told(usage, UsageClass::CacheRead);
        told(usage, UsageClass::CacheWrite5m);
        told(usage, UsageClass::CacheWrite1h);
    }
    if let Some(read) = number("cache_read_input_tokens") {
        usage.cache_read = usage.cache_read.max(read);
    }
    let hour = deep("cache_creation", "ephemeral_1h_input_tokens");
    let five = deep("cache_creation", "ephemeral_5m_input_tokens");
    let hour = hour.unwrap_or_default().max(usage.cache_write_1h);
    let five = five.unwrap_or_default().max(usage.cache_write_5m);
    if let Some(written) = number("cache_creation_input_tokens") {
        // Cache writes without a stated lifetime live for five minutes.
        let written = written.max(usage.cache_write_5m + usage.cache_write_1h);
        usage.cache_write_1h = hour.min(written);
        usage.cache_write_5m = written - usage.cache_write_1h;
    } else {
        usage.cache_write_1h = hour;
        usage.cache_write_5m = five;
    }
    if let Some(output) = number("output_tokens") {
        usage.output = usage.output.max(output);
        told(usage, UsageClass::Output);
    }
    if let Some(parts) = object.get("iterations").and_then(Value::as_array) {
        // What a conversation costs to be made shorter is in none of the counts above.
        let mut all = Usage::default();
        parts.iter().filter_map(parse).for_each(|part| all += part);
        usage.input = usage.input.max(all.input);
        usage.cache_read = usage.cache_read.max(all.cache_read);
        usage.cache_write_5m = usage.cache_write_5m.max(all.cache_write_5m);
        usage.cache_write_1h = usage.cache_write_1h.max(all.cache_write_1h);
        usage.output = usage.output.max(all.output);
    }
    if let Some(thinking) = deep("output_tokens_details", "thinking_tokens") {
        usage.reasoning = usage.reasoning.max(thinking);
        told(usage, UsageClass::Reasoning);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_are_told_apart() {
        let cases = [
            (json!({"input_tokens": 5, "output_tokens": 7}), (5, 0, 0, 0, 7)),
            (
                json!({"input_tokens": 1, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 9, "output_tokens": 0}),
                (1, 30, 0, 9, 0),
            ),
            (
                json!({"cache_creation_input_tokens": 30,
                       "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}}),
                (0, 10, 20, 0, 0),
            ),
            (
                json!({"cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}}),
                (0, 10, 20, 0, 0),
            ),
        ];
        for (value, classes) in cases {
            let u = parse(&value).unwrap();
            assert_eq!(
                (u.input, u.cache_write_5m, u.cache_write_1h, u.cache_read, u.output),
                classes,
                "{value}"
            );
        }
        assert_eq!(parse(&json!(null)), None);
        // Omitted counts are unknown.
        let told = |value| UsageClass::ALL.map(|class| parse(&value).unwrap().of(class));
        assert_eq!(told(json!({})), [None; 6]);
        let output = json!({"input_tokens": 5, "output_tokens": 0});
        assert_eq!(told(output), [Some(5), Some(0), Some(0), Some(0), Some(0), None]);
    }

    #[test]
    fn later_counts_are_totals_and_keep_what_they_leave_out() {
        let mut usage = parse(
            &json!({"input_tokens": 5, "cache_creation_input_tokens": 8, "output_tokens": 1,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 8}}),
        )
        .unwrap();
        update(
            &mut usage,
            &json!({"output_tokens": 40, "output_tokens_details": {"thinking_tokens": 12}}),
        );
        update(
            &mut usage,
            &json!({"cache_creation_input_tokens": 8, "output_tokens": 41}),
        );
        let expected = Usage {
            input: 5,
            cache_write_1h: 8,
            output: 41,
            reasoning: 12,
            ..Usage::default()
        };
        assert_eq!(usage, expected);
    }

    /// platform.claude.com/docs/en/build-with-claude/compaction: the counts on top leave the summary out.
    #[test]
    fn a_summary_of_the_conversation_is_on_the_bill() {
        let whole = json!({"input_tokens": 23_000, "output_tokens": 1000, "iterations": [
            {"type": "compaction", "input_tokens": 80_000, "cache_read_input_tokens": 100_000, "output_tokens": 3500,
             "cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_5m_input_tokens": 10,
             "ephemeral_1h_input_tokens": 20}},
            {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
        ]});
        let start = json!({"input_tokens": 23_000, "output_tokens": 1, "iterations": []});
        let expected = Usage {
            input: 103_000,
            cache_read: 100_000,
            cache_write_5m: 10,
            cache_write_1h: 20,
            output: 4500,
            ..Usage::default()
        };
        assert_eq!(after(&start, &whole), expected);
        // One part alone is what is on top.
        let one = json!({"input_tokens": 5, "output_tokens": 7, "iterations": [
            {"type": "message", "input_tokens": 5, "output_tokens": 7}]});
        assert_eq!(after(&one, &json!({})).total(), 12);
    }

    /// The usage after a start and a delta.
    fn after(start: &Value, delta: &Value) -> Usage {
        let mut usage = parse(start).unwrap();
        update(&mut usage, delta);
        Usage {
            unreported: Unreported::default(),
            ..usage
        }
    }

    /// one-api-pro#13: `message_start` and `message_delta` were added, which doubled everything.
    #[test]
    fn a_start_and_a_delta_are_not_added() {
        let start = json!({"input_tokens": 100, "cache_read_input_tokens": 40, "output_tokens": 1});
        let delta = json!({"input_tokens": 100, "cache_read_input_tokens": 40, "output_tokens": 50});
        let expected = Usage {
            input: 100,
            cache_read: 40,
            output: 50,
            ..Usage::default()
        };
        assert_eq!(after(&start, &delta), expected);
    }

    /// paseo#4294: zeros at the start, and the totals in the delta; and the reverse, of servers that repeat
    /// nothing but the output.
    #[test]
    fn zeros_at_either_end_take_nothing_away() {
        let zeros = json!({"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
            "output_tokens": 0});
        let totals = json!({"input_tokens": 100, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 30,
            "output_tokens": 50});
        let expected = Usage {
            input: 100,
            cache_read: 40,
            cache_write_5m: 30,
            output: 50,
            ..Usage::default()
        };
        assert_eq!(after(&zeros, &totals), expected);
        assert_eq!(after(&totals, &zeros), expected);
    }

    /// CLIProxyAPI#5617 and litellm PR#34498 lost the cache's counts of streams, cmux PR#11283 its writes.
    #[test]
    fn what_was_written_to_a_cache_survives_a_delta_that_does_not_say_so() {
        let start = json!({"input_tokens": 3, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 40,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}});
        let expected = Usage {
            input: 3,
            cache_write_5m: 10,
            cache_write_1h: 20,
            cache_read: 40,
            output: 9,
            ..Usage::default()
        };
        for delta in [
            json!({"output_tokens": 9}),
            json!({"output_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}),
            json!({"output_tokens": 9, "cache_creation_input_tokens": 30}),
            json!({"output_tokens": 9, "cache_creation": {"ephemeral_5m_input_tokens": 0}}),
        ] {
            assert_eq!(after(&start, &delta), expected, "{delta}");
        }
    }
}
