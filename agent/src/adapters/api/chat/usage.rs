//! Token counts of chat completions, by billing class.

use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

/// Reads a `usage` object: the counts of the whole call, tokens from caches inside those of the
/// prompt. `None` when it counts nothing.
pub(super) fn parse(value: &Value) -> Option<Usage> {
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let deep = |outer: &str, inner: &str| value.get(outer)?.get(inner)?.as_u64();
    let (prompt, completion) = (number("prompt_tokens"), number("completion_tokens"));
    if prompt.is_none() && completion.is_none() {
        return None;
    }
    let mut usage = Usage {
        unreported: Unreported::ALL,
        ..Usage::default()
    };
    let mut told = |class| usage.unreported = usage.unreported.without(class);
    if let Some(prompt) = prompt {
        // DeepSeek and Moonshot have names of their own.
        let read = deep("prompt_tokens_details", "cached_tokens")
            .or_else(|| number("prompt_cache_hit_tokens"))
            .or_else(|| number("cached_tokens"))
            .unwrap_or_default()
            .min(prompt);
        let written = deep("prompt_tokens_details", "cache_write_tokens")
            .unwrap_or_default()
            .min(prompt - read);
        // A server that tells no classes has one price for all of the prompt.
        let classes = [
            UsageClass::Input,
            UsageClass::CacheRead,
            UsageClass::CacheWrite5m,
            UsageClass::CacheWrite1h,
        ];
        classes.into_iter().for_each(&mut told);
        usage.cache_read = read;
        usage.cache_write_5m = written;
        usage.input = prompt - read - written;
    }
    let mut told = |class| usage.unreported = usage.unreported.without(class);
    let thoughts = deep("completion_tokens_details", "reasoning_tokens");
    if let Some(completion) = completion {
        told(UsageClass::Output);
        usage.output = completion;
        // xAI counts thoughts beside the completion, as its total shows.
        let total = number("total_tokens").unwrap_or_default();
        let thoughts = thoughts.unwrap_or_default();
        if thoughts > 0 && total == prompt.unwrap_or_default() + completion + thoughts {
            usage.output += thoughts;
        }
    }
    if let Some(thoughts) = thoughts {
        usage.unreported = usage.unreported.without(UsageClass::Reasoning);
        usage.reasoning = thoughts.min(usage.output);
    }
    Some(usage)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_classes_of_each_server_are_told_apart() {
        // Input, cache write, cache read, output, reasoning.
        for (value, classes) in [
            (
                json!({"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}),
                (100, 0, 0, 7, None),
            ),
            (
                json!({"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
                    "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 16},
                    "completion_tokens_details": {"reasoning_tokens": 5}}),
                (20, 16, 64, 7, Some(5)),
            ),
            (
                json!({"prompt_tokens": 100, "completion_tokens": 7, "prompt_cache_hit_tokens": 90, "prompt_cache_miss_tokens": 10}),
                (10, 0, 90, 7, None),
            ),
            (
                json!({"prompt_tokens": 100, "completion_tokens": 7, "cached_tokens": 30, "prompt_tokens_details": null}),
                (70, 0, 30, 7, None),
            ),
            (
                json!({"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 112,
                    "completion_tokens_details": {"reasoning_tokens": 5}}),
                (100, 0, 0, 12, Some(5)),
            ),
            // More from a cache than there is.
            (
                json!({"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 64}}),
                (0, 0, 10, 1, None),
            ),
        ] {
            let usage = parse(&value).unwrap();
            let reasoning = usage.of(UsageClass::Reasoning);
            let told = (
                usage.input,
                usage.cache_write_5m,
                usage.cache_read,
                usage.output,
                reasoning,
            );
            assert_eq!(told, classes, "{value}");
            assert!(!usage.unreported.of_the_bill(), "{value}");
        }
    }

    #[test]
    fn what_is_not_counted_is_not_zero() {
        for value in [json!(null), json!({}), json!({"prompt_tokens": null}), json!("many")] {
            assert_eq!(parse(&value), None, "{value}");
        }
        let usage = parse(&json!({"completion_tokens": 0})).unwrap();
        let told = UsageClass::ALL.map(|class| usage.of(class));
        assert_eq!(told, [None, None, None, None, Some(0), None]);
    }
}
