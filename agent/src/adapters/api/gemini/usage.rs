//! Token counts of Gemini, by billing class.

use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

/// Reads a `usageMetadata` object; `None` when it counts no prompt. `promptTokenCount` includes what
/// was read from the cache; thoughts are counted beside the candidates, and what tools of the provider
/// put into the prompt beside the prompt. Counts of nothing are left out. In an answer that has not
/// ended, `ended` is false: more output may be on the bill than was counted.
pub(super) fn parse(value: &Value, ended: bool) -> Option<Usage> {
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let prompt = number("promptTokenCount")?;
    let count = |key| number(key).unwrap_or(0);
    let read = count("cachedContentTokenCount").min(prompt);
    let thought = count("thoughtsTokenCount");
    let unreported = Unreported::default();
    Some(Usage {
        input: (prompt - read).saturating_add(count("toolUsePromptTokenCount")),
        cache_read: read,
        output: count("candidatesTokenCount").saturating_add(thought),
        reasoning: thought,
        unreported: if ended {
            unreported
        } else {
            unreported.with(UsageClass::Output).with(UsageClass::Reasoning)
        },
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
            "promptTokenCount": 100, "cachedContentTokenCount": 60, "toolUsePromptTokenCount": 4,
            "candidatesTokenCount": 20, "thoughtsTokenCount": 7, "totalTokenCount": 131,
        });
        let usage = parse(&all, true).unwrap();
        let classes = UsageClass::ALL.map(|class| usage.of(class));
        assert_eq!(classes, [Some(44), Some(0), Some(0), Some(60), Some(27), Some(7)]);
        assert_eq!(usage.total(), 131);

        let begun = parse(&json!({"promptTokenCount": 5}), false).unwrap();
        let classes = UsageClass::ALL.map(|class| begun.of(class));
        assert_eq!(classes, [Some(5), Some(0), Some(0), Some(0), None, None]);
        assert_eq!(parse(&json!({}), true), None);
        assert_eq!(parse(&json!(null), true), None);
    }
}
