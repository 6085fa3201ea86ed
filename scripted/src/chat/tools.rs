//! Tools of chat completions: functions, and tools that take free text.

use serde_json::{Map, Value};

use crate::request::{object, string};
use crate::script::ApiError;

/// Checks a tool that takes free text, or a text that a grammar has.
pub(super) fn custom(index: usize, tool: &Map<String, Value>) -> Result<(), ApiError> {
    let at = format!("tools[{index}].custom");
    let custom = object(&at, tool.get("custom").unwrap_or(&Value::Null))?;
    string(&format!("{at}.name"), custom.get("name"))?;
    if let Some(other) = custom
        .keys()
        .find(|key| !["name", "description", "format"].contains(&key.as_str()))
    {
        return Err(ApiError::invalid(format!("Unknown parameter: '{at}.{other}'.")));
    }
    let Some(format) = custom.get("format") else {
        return Ok(());
    };
    let at = format!("{at}.format");
    let format = object(&at, format)?;
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(()),
        Some("grammar") => {
            let at = format!("{at}.grammar");
            let grammar = object(&at, format.get("grammar").unwrap_or(&Value::Null))?;
            string(&format!("{at}.definition"), grammar.get("definition"))?;
            match grammar.get("syntax").and_then(Value::as_str) {
                Some("lark" | "regex") => Ok(()),
                Some(_) | None => Err(ApiError::invalid(format!("Invalid value: '{at}.syntax'."))),
            }
        }
        Some(_) | None => Err(ApiError::invalid(format!("Invalid value: '{at}.type'."))),
    }
}

/// The name of a tool that is a function.
pub(crate) fn tool_name(index: usize, tool: &Map<String, Value>) -> Result<String, ApiError> {
    let function = object("tools.function", tool.get("function").unwrap_or(&Value::Null))?;
    let name = string("tools.function.name", function.get("name"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    // A function without parameters takes none.
    let parameters = function.get("parameters");
    let is_object = parameters.is_none_or(|schema| schema.get("type") == Some(&Value::from("object")));
    if tool.get("type") == Some(&Value::from("function")) && name.len() <= 64 && name.chars().all(plain) && is_object {
        Ok(name.to_owned())
    } else {
        Err(ApiError::invalid(format!(
            "Invalid schema for function '{name}' (tools.{index})"
        )))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_of_free_text_are_taken_as_they_are_documented() {
        let told = |tool: Value| {
            let tool = json!({"type": "custom", "custom": tool});
            custom(1, tool.as_object().unwrap()).map_err(|error| error.message)
        };
        let grammar =
            |syntax: &str| json!({"type": "grammar", "grammar": {"syntax": syntax, "definition": "start: x"}});
        for format in [json!({"type": "text"}), grammar("lark"), grammar("regex")] {
            assert_eq!(told(json!({"name": "patch", "format": format})), Ok(()));
        }
        assert_eq!(told(json!({"name": "patch", "description": "x"})), Ok(()));
        for (tool, words) in [
            (json!(null), "tools[1].custom"),
            (json!({"description": "x"}), "tools[1].custom.name"),
            (json!({"name": "patch", "parameters": {}}), "custom.parameters"),
            (
                json!({"name": "patch", "format": grammar("yacc")}),
                "format.grammar.syntax",
            ),
            (json!({"name": "patch", "format": {"type": "json"}}), "format.type"),
        ] {
            let refused = told(tool).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
