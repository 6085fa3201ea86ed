//! Token counts of the Responses API, by billing class.

use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

/// Reads a `usage` object; `None` when it counts no input. The provider's `input_tokens` include what
/// was read from the cache and what was written to it; `output_tokens` include what was thought.
pub(in crate::adapters::api) fn parse(value: &Value) -> Option<Usage> {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
    let deep = |outer: &str, inner: &str| number(value.get(outer)?, inner);
    let input = number(value, "input_tokens")?;
    let read = deep("input_tokens_details", "cached_tokens").unwrap_or(0).min(input);
    // Models before those that bill it do not count it.
    let written = deep("input_tokens_details", "cache_write_tokens").unwrap_or(0);
    let written = written.min(input - read);
    let output = number(value, "output_tokens");
    let thought = deep("output_tokens_details", "reasoning_tokens");
    let mut unreported = Unreported::default();
    if output.is_none() {
        unreported = unreported.with(UsageClass::Output);
    }
    if thought.is_none() {
        unreported = unreported.with(UsageClass::Reasoning);
    }
    Some(Usage {
        input: input - read - written,
        cache_write_5m: written,
        cache_read: read,
        output: output.unwrap_or(0),
        reasoning: thought.unwrap_or(0),
        unreported,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_do_not_overlap_though_the_providers_do() {
        let all = json!({
            "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
            "output_tokens": 20, "output_tokens_details": {"reasoning_tokens": 7}, "total_tokens": 120,
        });
        let usage = parse(&all).unwrap();
        let classes = UsageClass::ALL.map(|class| usage.of(class));
        assert_eq!(classes, [Some(10), Some(30), Some(0), Some(60), Some(20), Some(7)]);
        assert_eq!(usage.total(), 120);

        let old = json!({"input_tokens": 5, "output_tokens": 0});
        let classes = UsageClass::ALL.map(|class| parse(&old).unwrap().of(class));
        assert_eq!(classes, [Some(5), Some(0), Some(0), Some(0), Some(0), None]);
        // What cannot be is bounded by what was counted.
        let odd = json!({"input_tokens": 5, "input_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 9}});
        let usage = parse(&odd).unwrap();
        assert_eq!((usage.input, usage.cache_read, usage.cache_write_5m), (0, 5, 0));
        assert_eq!(usage.of(UsageClass::Output), None);
        for nothing in [json!(null), json!({}), json!({"output_tokens": 3})] {
            assert_eq!(parse(&nothing), None, "{nothing}");
        }
    }
}
