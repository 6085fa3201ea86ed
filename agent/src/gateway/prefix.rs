//! What of a program's request other sessions of the same program send too: its tools and its instructions, as they
//! stand there. Nothing of it is kept but a digest.

use kage_core::call::Prefix;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::adapters::api::shared_prefix;
use crate::adapters::metered::MeteredWire;

/// The beginning of a request. `None`: it has none that is known here.
pub(super) fn prefix(wire: MeteredWire, body: &[u8]) -> Option<Prefix> {
    #[derive(Deserialize)]
    struct Beginning<'a> {
        #[serde(default, borrow)]
        tools: Option<&'a RawValue>,
        #[serde(default, borrow)]
        system: Option<&'a RawValue>,
        #[serde(default, borrow)]
        instructions: Option<&'a RawValue>,
        #[serde(default, borrow, rename = "systemInstruction", alias = "system_instruction")]
        system_instruction: Option<&'a RawValue>,
        #[serde(default, borrow)]
        messages: Option<&'a RawValue>,
    }
    let call: Beginning<'_> = serde_json::from_slice(body).ok()?;
    let said = match wire {
        MeteredWire::Messages => call.system.into_iter().collect(),
        MeteredWire::Responses => call.instructions.into_iter().collect(),
        MeteredWire::Gemini => call.system_instruction.into_iter().collect(),
        MeteredWire::Chat => call.messages.map_or_else(Vec::new, instructions),
    };
    let parts: Vec<&str> = call.tools.into_iter().chain(said).map(RawValue::get).collect();
    (!parts.is_empty()).then(|| shared_prefix(&format!("{wire:?}"), parts))
}

/// The messages before the first one of a person.
fn instructions(messages: &RawValue) -> Vec<&RawValue> {
    #[derive(Deserialize)]
    struct Message<'a> {
        role: &'a str,
    }
    let messages: Vec<&RawValue> = serde_json::from_str(messages.get()).unwrap_or_default();
    let is_instruction = |message: &&RawValue| {
        let message = serde_json::from_str::<Message<'_>>(message.get());
        message.is_ok_and(|message| matches!(message.role, "system" | "developer"))
    };
    messages.into_iter().take_while(is_instruction).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(wire: MeteredWire, body: &Value) -> Option<Prefix> {
        prefix(wire, body.to_string().as_bytes())
    }

    #[test]
    fn what_differs_after_the_instructions_is_no_part_of_it() {
        let tools = json!([{"name": "look"}]);
        let request = |field: &str, system: &str, asks: &str| {
            if field == "messages" {
                let said = [("system", system), ("user", asks), ("developer", asks)];
                let said = said.map(|(role, content)| json!({"role": role, "content": content}));
                return json!({"tools": tools, "messages": said});
            }
            let said = json!([{"role": "user", "content": asks}]);
            json!({"tools": tools, field: system, "messages": said, "input": asks, "contents": [asks]})
        };
        for (wire, field) in [
            (MeteredWire::Messages, "system"),
            (MeteredWire::Responses, "instructions"),
            (MeteredWire::Gemini, "systemInstruction"),
            (MeteredWire::Gemini, "system_instruction"),
            (MeteredWire::Chat, "messages"),
        ] {
            let system = "be careful ".repeat(1_000);
            let one = of(wire, &request(field, &system, "one")).unwrap();
            assert_eq!(of(wire, &request(field, &system, "two")).unwrap(), one, "{wire:?}");
            assert!((2_000..4_000).contains(&one.tokens), "{wire:?}: {}", one.tokens);
            let other = of(wire, &request(field, "be careless", "one")).unwrap();
            assert_ne!(other.digest, one.digest, "{wire:?}");
        }
    }

    #[test]
    fn what_has_no_beginning_has_no_prefix() {
        for wire in [
            MeteredWire::Messages,
            MeteredWire::Responses,
            MeteredWire::Chat,
            MeteredWire::Gemini,
        ] {
            for body in ["", "[]", "{}", "nonsense", r#"{"messages": 7}"#, r#"{"messages": [1]}"#] {
                assert_eq!(prefix(wire, body.as_bytes()), None, "{wire:?} {body}");
            }
        }
    }
}
