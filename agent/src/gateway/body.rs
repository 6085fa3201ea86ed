//! Rewrites how long the answer of a call may be, and leaves every other value of the request as its bytes are. Pure.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::adapters::metered::MeteredWire;

type Fields = BTreeMap<String, Box<RawValue>>;

/// The least that a model may think by the rules of Messages.
const LEAST_THOUGHT: u64 = 1024;

/// The request with at most so many tokens for each of its answers; as it was when it is no JSON object.
pub(super) fn limit_output(wire: MeteredWire, body: &Bytes, most: NonZeroU32) -> Bytes {
    let Ok(mut fields) = serde_json::from_slice::<Fields>(body) else {
        return body.clone();
    };
    let most = u64::from(most.get());
    match wire {
        MeteredWire::Messages => {
            set(&mut fields, "max_tokens", most);
            if let Some(thinking) = fields.get("thinking") {
                let limited = limit_thinking(thinking, most);
                if let Some(limited) = limited {
                    fields.insert("thinking".to_owned(), limited);
                }
            }
        }
        MeteredWire::Responses => set(&mut fields, "max_output_tokens", most),
        MeteredWire::Chat => {
            let old = fields.contains_key("max_tokens") && !fields.contains_key("max_completion_tokens");
            set(
                &mut fields,
                if old { "max_tokens" } else { "max_completion_tokens" },
                most,
            );
        }
        MeteredWire::Gemini => {
            // Google reads either spelling, and not both.
            let other = fields.remove("generation_config");
            let config = fields.remove("generationConfig").or(other);
            let mut config: Fields = config
                .and_then(|raw| serde_json::from_str(raw.get()).ok())
                .unwrap_or_default();
            config.remove("max_output_tokens");
            set(&mut config, "maxOutputTokens", most);
            let config = to_raw_value(&config).expect("raw JSON always serialises");
            fields.insert("generationConfig".to_owned(), config);
        }
    }
    Bytes::from(serde_json::to_vec(&fields).expect("raw JSON always serialises"))
}

fn set(fields: &mut Fields, name: &str, value: u64) {
    fields.insert(
        name.to_owned(),
        to_raw_value(&value).expect("a number always serialises"),
    );
}

/// A model has to be able to answer after its thoughts. `None`: it is already.
fn limit_thinking(thinking: &RawValue, most: u64) -> Option<Box<RawValue>> {
    let mut fields: Fields = serde_json::from_str(thinking.get()).ok()?;
    let budget: u64 = fields.get("budget_tokens")?.get().parse().ok()?;
    if budget < most {
        return None;
    }
    set(&mut fields, "budget_tokens", (most / 2).max(LEAST_THOUGHT));
    to_raw_value(&fields).ok()
}

/// How many tokens a request lets its model think.
pub(super) fn thinking(wire: MeteredWire, body: &[u8]) -> u64 {
    #[derive(Default, Deserialize)]
    struct Call {
        #[serde(default)]
        thinking: Thinking,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Thinking {
        budget_tokens: u64,
    }
    match wire {
        MeteredWire::Messages => {
            serde_json::from_slice::<Call>(body)
                .unwrap_or_default()
                .thinking
                .budget_tokens
        }
        MeteredWire::Responses | MeteredWire::Chat | MeteredWire::Gemini => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_the_length_of_the_answer_changes() {
        use MeteredWire::{Chat, Gemini, Messages, Responses};
        let most = NonZeroU32::new(4096).unwrap();
        for (wire, before, after) in [
            (
                Messages,
                json!({"max_tokens": 32000, "a": [1]}),
                json!({"max_tokens": 4096, "a": [1]}),
            ),
            (
                Messages,
                json!({"max_tokens": 32000, "thinking": {"type": "enabled", "budget_tokens": 31999}}),
                json!({"max_tokens": 4096, "thinking": {"type": "enabled", "budget_tokens": 2048}}),
            ),
            (
                Messages,
                json!({"max_tokens": 32000, "thinking": {"type": "adaptive"}}),
                json!({"max_tokens": 4096, "thinking": {"type": "adaptive"}}),
            ),
            (
                Responses,
                json!({"input": "x"}),
                json!({"input": "x", "max_output_tokens": 4096}),
            ),
            (Chat, json!({"max_tokens": 9}), json!({"max_tokens": 4096})),
            (Chat, json!({}), json!({"max_completion_tokens": 4096})),
            (
                Gemini,
                json!({"contents": []}),
                json!({"contents": [], "generationConfig": {"maxOutputTokens": 4096}}),
            ),
            (
                Gemini,
                json!({"generationConfig": {"topP": 1, "maxOutputTokens": 65000}}),
                json!({"generationConfig": {"topP": 1, "maxOutputTokens": 4096}}),
            ),
            (
                Gemini,
                json!({"generation_config": {"candidate_count": 2, "max_output_tokens": 65000}}),
                json!({"generationConfig": {"candidate_count": 2, "maxOutputTokens": 4096}}),
            ),
        ] {
            let limited = limit_output(wire, &Bytes::from(before.to_string()), most);
            let limited: Value = serde_json::from_slice(&limited).unwrap();
            assert_eq!(limited, after, "{before}");
        }
        // Numbers and texts keep their bytes.
        let odd = Bytes::from_static(br#"{"n":1.0e5,"t":"\u00e9\/","max_tokens":5}"#);
        let limited = limit_output(Messages, &odd, most);
        let text = std::str::from_utf8(&limited).unwrap();
        assert!(
            text.contains(r#""n":1.0e5"#) && text.contains(r#""t":"\u00e9\/""#),
            "{text}"
        );
        let none = Bytes::from_static(b"not json");
        assert_eq!(limit_output(Messages, &none, most), none);
    }
}
