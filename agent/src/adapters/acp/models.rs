//! How an agent is asked for a model: as an option of the session, or in the older way. Both tell which there are.

use serde_json::{Value, json};

use crate::process::excerpt::one_line;

/// What there is to do for a model.
#[derive(Debug, PartialEq)]
pub(super) enum Chosen {
    /// The session has it, or the agent offers no choice.
    Present,
    Ask {
        method: &'static str,
        params: Value,
    },
    /// The reason for people.
    NotOffered(String),
}

/// Chooses among what the answer to `session/new` or `session/load` offers.
pub(super) fn choose(session: &str, model: &str, opened: &Value) -> Chosen {
    let options = opened
        .get("configOptions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let is_model = |option: &&Value| {
        ["category", "id"]
            .iter()
            .any(|key| option.get(*key) == Some(&json!("model")))
    };
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    if let Some(option) = options.into_iter().find(is_model) {
        let offered = values(option);
        return pick(model, &offered, text(option, "currentValue"), |value| Chosen::Ask {
            method: "session/set_config_option",
            params: json!({"sessionId": session, "configId": option.get("id"), "value": value}),
        });
    }
    let Some(models) = opened.get("models").filter(|models| models.is_object()) else {
        return Chosen::Present;
    };
    let list = models
        .get("availableModels")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let offered: Vec<_> = list.filter_map(|entry| text(entry, "modelId")).collect();
    pick(model, &offered, text(models, "currentModelId"), |value| Chosen::Ask {
        method: "session/set_model",
        params: json!({"sessionId": session, "modelId": value}),
    })
}

/// The values of an option, which may be in groups.
fn values(option: &Value) -> Vec<String> {
    let list = |value: &Value| {
        value
            .get("options")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let entries = list(option).into_iter().flat_map(|entry| match list(&entry) {
        group if group.is_empty() => vec![entry],
        group => group,
    });
    let named = entries.filter_map(|entry| Some(entry.get("value")?.as_str()?.to_owned()));
    named.collect()
}

fn pick(model: &str, offered: &[String], current: Option<String>, ask: impl FnOnce(&str) -> Chosen) -> Chosen {
    if current.as_deref() == Some(model) {
        return Chosen::Present;
    }
    let bare = |name: &str| name.rsplit_once('/').map(|(_, name)| name.to_owned());
    let exactly = offered.iter().find(|value| *value == model);
    let found = exactly.or_else(|| offered.iter().find(|value| bare(value).as_deref() == Some(model)));
    match found {
        Some(value) => ask(value),
        None => Chosen::NotOffered(format!(
            "the agent does not offer the model {model}; it has {}",
            one_line(&offered.join(", "), 300)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_asked_for_in_the_way_that_the_agent_offers() {
        let option = json!({"configOptions": [
            {"id": "mode", "category": "mode", "currentValue": "m", "options": [{"value": "m"}]},
            {"id": "which", "category": "model", "type": "select", "currentValue": "a/one",
             "options": [{"value": "a/one"}, {"group": "b", "options": [{"value": "b/two"}]}]}]});
        assert_eq!(choose("s", "a/one", &option), Chosen::Present);
        for name in ["b/two", "two"] {
            let asked = Chosen::Ask {
                method: "session/set_config_option",
                params: json!({"sessionId": "s", "configId": "which", "value": "b/two"}),
            };
            assert_eq!(choose("s", name, &option), asked);
        }
        let older = json!({"models": {"currentModelId": "x", "availableModels": [{"modelId": "x"}, {"modelId": "y"}]}});
        assert_eq!(choose("s", "x", &older), Chosen::Present);
        assert_eq!(
            choose("s", "y", &older),
            Chosen::Ask {
                method: "session/set_model",
                params: json!({"sessionId": "s", "modelId": "y"})
            }
        );
        for offers in [&option, &older] {
            assert!(matches!(choose("s", "three", offers), Chosen::NotOffered(text) if text.contains("three")));
        }
        assert_eq!(
            choose("s", "any", &json!({"sessionId": "s", "models": null})),
            Chosen::Present
        );
    }
}
