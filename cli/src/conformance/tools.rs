//! What the model of the check can do with a program: which of the tools that its first call offers runs a
//! command, in the form of each provider.

use kage_scripted::Turn;
use serde_json::{Value, json};

/// How many answers of the model the program made up before the task.
pub(super) fn examples(body: &Value) -> usize {
    let messages = body["messages"].as_array().or_else(|| body["contents"].as_array());
    let is_answer = |message: &&Value| message["role"] == "assistant" || message["role"] == "model";
    messages.map_or(0, |messages| messages.iter().filter(is_answer).count())
}

/// An answer by which the program writes this file.
pub(super) fn write(family: &str, body: &Value, file: &str) -> Option<Turn> {
    let command = format!("echo made > {file}");
    match family {
        // It has no tools: its answers are files.
        "aider" => return Some(Turn::say(format!("I write it.\n\n{file}\n```\nmade\n```\n"))),
        // Its tool takes a program.
        "codex" => {
            let call = json!({ "cmd": command });
            let program = format!("const r = await tools.exec_command({call}); text(r);");
            return Some(Turn::call("exec", Value::from(program)));
        }
        _ => {}
    }
    let mut tools = Vec::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        match tool["functionDeclarations"].as_array() {
            Some(declared) => tools.extend(declared),
            None => tools.push(tool.get("function").unwrap_or(tool)),
        }
    }
    tools.into_iter().find_map(|tool| call(tool, &command))
}

/// A call of this tool, if it runs commands.
fn call(tool: &Value, command: &str) -> Option<Turn> {
    let name = tool["name"].as_str()?;
    let plain = name.to_lowercase();
    if !["bash", "shell", "exec", "run", "command", "terminal"]
        .iter()
        .any(|word| plain.contains(word))
    {
        return None;
    }
    let schema = ["parameters", "input_schema", "parametersJsonSchema"]
        .iter()
        .find_map(|key| tool.get(key))?;
    let properties = schema["properties"].as_object()?;
    let mut input = serde_json::Map::new();
    let (key, value) = ["command", "cmd", "commands"].iter().find_map(|key| {
        let property = properties.get(*key)?;
        let is_list = property["type"] == "array";
        Some((
            (*key).to_owned(),
            if is_list { json!([command]) } else { json!(command) },
        ))
    })?;
    input.insert(key, value);
    // The others that it needs: what they are for does not matter here.
    for required in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let property = &properties.get(required)?["type"];
        input.entry(required).or_insert_with(|| match property.as_str() {
            Some("boolean") => json!(false),
            Some("number" | "integer") => json!(1),
            Some(_) | None => json!("the check"),
        });
    }
    Some(Turn::call(name, Value::Object(input)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_runs_commands_is_found_in_every_form() {
        let schema = json!({"type": "object", "properties": {"command": {"type": "string"}, "quiet": {"type": "boolean"}},
            "required": ["command", "quiet"]});
        let expected = Turn::call("bash", json!({"command": "echo made > f", "quiet": false}));
        let forms = [
            json!({"tools": [{"type": "function", "function": {"name": "read"}},
                {"type": "function", "function": {"name": "bash", "parameters": schema}}]}),
            json!({"tools": [{"name": "bash", "input_schema": schema}]}),
            json!({"tools": [{"type": "function", "name": "bash", "parameters": schema}]}),
            json!({"tools": [{"functionDeclarations": [{"name": "ls"}, {"name": "bash", "parametersJsonSchema": schema}]}]}),
        ];
        for body in forms {
            assert_eq!(write("", &body, "f"), Some(expected.clone()), "{body}");
        }
        let list = json!({"properties": {"commands": {"type": "array"}}});
        let body = json!({"tools": [{"function": {"name": "run_commands", "parameters": list}}]});
        assert_eq!(
            write("", &body, "f"),
            Some(Turn::call("run_commands", json!({"commands": ["echo made > f"]})))
        );
        assert_eq!(
            write(
                "",
                &json!({"tools": [{"name": "read_file", "input_schema": schema}]}),
                "f"
            ),
            None
        );
        assert_eq!(write("", &json!({}), "f"), None);
    }

    #[test]
    fn examples_are_answers_that_the_model_never_gave() {
        let body = json!({"messages": [{"role": "user"}, {"role": "assistant"}, {"role": "user"}]});
        assert_eq!(examples(&body), 1);
        assert_eq!(examples(&json!({"contents": [{"role": "model"}, {"role": "user"}]})), 1);
        assert_eq!(examples(&json!({"input": []})), 0);
    }
}
