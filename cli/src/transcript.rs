//! A conversation as people read it: what was said, the calls of tools with their results, edits as diffs.
//! It reads the lines that adapters report, whichever provider or program wrote them, and prints nothing.

use serde_json::Value;

use crate::terminal::{Ink, Painted};

/// Lines of a tool's result that are shown; `--raw` has all of them.
const RESULT_LINES: usize = 20;
/// Characters of such a line, and of what a call was given.
const LINE: usize = 300;

/// Makes whole lines of pieces.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that a piece completes, without their ends.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        self.begun.extend_from_slice(piece);
        let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.begun.split_off(end + 1);
        let whole = std::mem::replace(&mut self.begun, rest);
        whole[..end].split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    /// A last line without an end.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        (!self.begun.is_empty()).then_some(self.begun)
    }
}

/// What one line of a transcript says. Lines that say nothing to people give no text; what is no message
/// is told as it is.
pub(crate) fn told(line: &[u8]) -> Painted {
    let mut out = Painted::default();
    match serde_json::from_slice::<Value>(line) {
        Ok(value) => message(&value, &mut out),
        Err(_) => said(&String::from_utf8_lossy(line), Ink::Plain, "", &mut out),
    }
    out
}

fn message(value: &Value, out: &mut Painted) {
    let text = |field: &str| value[field].as_str();
    // `claude --output-format stream-json` wraps the messages of the provider.
    if value["message"].is_object() {
        return message(&value["message"], out);
    }
    match (text("type"), text("role")) {
        (Some("item.completed"), _) => part(&value["item"], Ink::Plain, out),
        // codex tells the beginning of an item, too.
        (Some("item.started" | "item.updated"), _) => {}
        (Some("text" | "tool_use" | "reasoning"), None) if value["part"].is_object() => {
            part(&value["part"], Ink::Plain, out);
        }
        (_, Some(role)) => {
            let ink = if role == "user" { Ink::Strong } else { Ink::Plain };
            match &value["content"] {
                Value::String(words) => said(words, ink, "", out),
                Value::Array(parts) => parts.iter().for_each(|it| part(it, ink, out)),
                _ => {}
            }
        }
        _ => part(value, Ink::Plain, out),
    }
}

fn part(value: &Value, ink: Ink, out: &mut Painted) {
    let text = |field: &str| value[field].as_str();
    let first = |fields: &[&str]| fields.iter().find_map(|field| text(field));
    match text("type").unwrap_or_default() {
        "text" | "output_text" | "agent_message" | "content" => {
            said(first(&["text", "content"]).unwrap_or_default(), ink, "", out);
        }
        "thinking" | "reasoning" | "thought" => {
            let words = first(&["thinking", "text", "reasoning"]);
            let words = words.or_else(|| value["summary"][0]["text"].as_str());
            said(words.unwrap_or_default(), Ink::Faint, "· ", out);
        }
        "tool_use" | "function_call" | "function" | "tool" => call(value, out),
        "tool_result" | "function_call_output" => {
            let failed = value["is_error"] == true || text("status") == Some("error");
            let output = ["content", "output"].map(|field| words_of(&value[field])).concat();
            result(&output, failed, out);
        }
        "command_execution" => {
            said(text("command").unwrap_or_default(), Ink::Notice, "$ ", out);
            let failed = value["exit_code"].as_i64().is_some_and(|code| code != 0);
            result(text("aggregated_output").unwrap_or_default(), failed, out);
        }
        "file_change" => {
            for change in value["changes"].as_array().into_iter().flatten() {
                let kind = change["kind"].as_str().unwrap_or("change");
                let path = change["path"].as_str().unwrap_or_default();
                said(&format!("{kind} {path}"), Ink::Notice, "> ", out);
            }
        }
        "message" => match &value["content"] {
            Value::Array(parts) => parts.iter().for_each(|it| part(it, ink, out)),
            other => said(&words_of(other), ink, "", out),
        },
        _ => untyped(value, ink, out),
    }
}

/// Parts of dialects that have no types: chat completions, Ollama and Gemini.
fn untyped(value: &Value, ink: Ink, out: &mut Painted) {
    if value["functionCall"].is_object() {
        return call(&value["functionCall"], out);
    }
    if value["functionResponse"].is_object() {
        return result(&words_of(&value["functionResponse"]["response"]), false, out);
    }
    if value["function"].is_object() {
        return call(value, out);
    }
    let thought = value["thought"] == true;
    for field in ["text", "content"] {
        if let Some(words) = value[field].as_str() {
            said(words, if thought { Ink::Faint } else { ink }, "", out);
        }
    }
    for called in value["tool_calls"].as_array().into_iter().flatten() {
        call(called, out);
    }
}

/// A call of a tool: its command, its edit as a diff, or its name and what it was given.
fn call(value: &Value, out: &mut Painted) {
    let function = &value["function"];
    let named = [&value["name"], &function["name"], &value["tool_name"], &value["tool"]];
    let name = named.iter().find_map(|name| name.as_str()).unwrap_or("tool");
    let state = &value["state"];
    let given = [
        &value["input"],
        &value["arguments"],
        &function["arguments"],
        &value["args"],
        &value["parameters"],
        &state["input"],
    ];
    let given = given.into_iter().find(|given| !given.is_null()).unwrap_or(&Value::Null);
    // Some dialects have the JSON as a text.
    let parsed = given.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let given = parsed.as_ref().unwrap_or(given);
    let first = |fields: &[&str]| fields.iter().find_map(|field| given[*field].as_str());
    let path = first(&["path", "file_path", "filePath", "absolute_path"]);
    if let Some(command) = first(&["command", "cmd"]) {
        said(command, Ink::Notice, "$ ", out);
    } else if let (Some(path), Some(old), Some(new)) = (
        path,
        first(&["old", "old_string", "oldString", "old_str"]),
        first(&["new", "new_string", "newString", "new_str"]),
    ) {
        said(&format!("{name} {path}"), Ink::Notice, "> ", out);
        said(old, Ink::Bad, "  -", out);
        said(new, Ink::Good, "  +", out);
    } else if let (Some(path), Some(content)) = (path, first(&["content", "file_text"])) {
        said(&format!("{name} {path}"), Ink::Notice, "> ", out);
        shortened(content, Ink::Good, "  +", out);
    } else {
        let words = match given {
            Value::Null => String::new(),
            given => short(&given.to_string()),
        };
        said(format!("{name} {words}").trim_end(), Ink::Notice, "> ", out);
    }
    if let Some(output) = state["output"].as_str() {
        result(output, state["status"] == "error", out);
    }
}

fn result(text: &str, failed: bool, out: &mut Painted) {
    shortened(text, if failed { Ink::Bad } else { Ink::Faint }, "  | ", out);
}

/// The beginning of a text, and how much more there is.
fn shortened(text: &str, ink: Ink, before: &str, out: &mut Painted) {
    let text = text.trim_end();
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().take(RESULT_LINES) {
        said(&short(line), ink, before, out);
    }
    if lines.len() > RESULT_LINES {
        said(
            &format!("… {} more lines", lines.len() - RESULT_LINES),
            Ink::Faint,
            before,
            out,
        );
    }
}

fn short(line: &str) -> String {
    match line.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// A text with something in front of each of its lines.
fn said(text: &str, ink: Ink, before: &str, out: &mut Painted) {
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    for line in text.lines() {
        out.push(ink, format!("{before}{line}"));
        out.push(Ink::Plain, "\n");
    }
}

/// The words of a value that is a text or parts with texts.
fn words_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        Value::Null => String::new(),
        Value::Object(fields) => match fields.get("output").and_then(Value::as_str) {
            Some(output) => output.to_owned(),
            None => value.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> String {
        lines.iter().map(|line| told(line.as_bytes()).text()).collect()
    }

    #[test]
    fn a_conversation_with_a_provider_is_read_like_one_between_people() {
        insta::assert_snapshot!(read(&[
            r#"{"role":"user","content":[{"type":"text","text":"mend the sum"}],"dialect":"messages"}"#,
            r#"{"role":"assistant","id":"m","model":"x","content":[{"type":"thinking","thinking":"it adds"},{"type":"text","text":"I look."},{"type":"tool_use","id":"1","name":"bash","input":{"command":"cat add.sh\nls"}}]}"#,
            r#"{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"add() { echo 0; }\n"}]}"#,
            r#"{"role":"assistant","content":[{"type":"tool_use","id":"2","name":"edit","input":{"path":"add.sh","old":"echo 0;","new":"echo $(($1 + $2));"}}]}"#,
            r#"{"role":"user","content":[{"type":"tool_result","tool_use_id":"2","is_error":true,"content":"not found"}]}"#,
        ]), @r#"
        mend the sum
        · it adds
        I look.
        $ cat add.sh
        $ ls
          | add() { echo 0; }
        > edit add.sh
          -echo 0;
          +echo $(($1 + $2));
          | not found
        "#);
    }

    #[test]
    fn programs_are_read_whatever_they_print() {
        insta::assert_snapshot!(read(&[
            r#"{"type":"system","subtype":"init","session_id":"0"}"#,
            r#"{"type":"assistant","message":{"role":"assistant","content":[{"type":"tool_use","name":"Write","input":{"file_path":"/w/a.txt","content":"one\ntwo\n"}}]}}"#,
            r#"{"type":"user","message":{"role":"user","content":[{"type":"tool_result","content":[{"type":"text","text":"written"}]}]}}"#,
            r#"{"type":"item.started","item":{"type":"command_execution","command":"ls"}}"#,
            r#"{"type":"item.completed","item":{"type":"command_execution","command":"ls","aggregated_output":"a\nb\n","exit_code":2}}"#,
            r#"{"type":"item.completed","item":{"type":"file_change","changes":[{"path":"a","kind":"add"}]}}"#,
            r#"{"type":"item.completed","item":{"type":"agent_message","text":"done"}}"#,
            r#"{"type":"tool_use","part":{"tool":"bash","state":{"status":"completed","input":{"command":"true"},"output":"fine"}}}"#,
            "no JSON at all",
        ]), @r#"
        > Write /w/a.txt
          +one
          +two
          | written
        $ ls
          | a
          | b
        > add a
        done
        no JSON at all
        "#);
    }

    #[test]
    fn other_dialects_have_their_own_words_for_the_same() {
        insta::assert_snapshot!(read(&[
            r#"{"role":"assistant","content":[{"type":"reasoning","summary":[{"text":"hm"}]},{"type":"message","content":[{"type":"output_text","text":"words"}]},{"type":"function_call","name":"read","arguments":"{\"path\":\"a\"}"}]}"#,
            r#"{"role":"assistant","content":[{"type":"function","function":{"name":"bash","arguments":"{\"command\":\"pwd\"}"}}]}"#,
            r#"{"role":"assistant","content":[{"text":"hello"},{"functionCall":{"name":"list","args":{"path":"."}}}]}"#,
            r#"{"role":"assistant","content":[{"content":"hi","tool_calls":[{"function":{"name":"list","arguments":{"path":"."}}}]}]}"#,
        ]), @r#"
        · hm
        words
        > read {"path":"a"}
        $ pwd
        hello
        > list {"path":"."}
        hi
        > list {"path":"."}
        "#);
    }

    #[test]
    fn long_results_are_shortened() {
        let long = (0..30).map(|line| format!("line {line}\n")).collect::<String>();
        let line = serde_json::json!({"role": "user", "content": [{"type": "tool_result", "content": long}]});
        let text = told(line.to_string().as_bytes()).text();
        assert_eq!(text.lines().count(), RESULT_LINES + 1);
        assert!(text.ends_with("  | … 10 more lines\n"), "{text}");
    }

    proptest! {
        #[test]
        fn lines_are_whole_however_they_are_cut(text in "[a-z\n]{0,60}", cuts in prop::collection::vec(0usize..60, 0..6)) {
            let mut lines = Lines::default();
            let mut told = Vec::new();
            let mut from = 0;
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= text.len()).collect();
            cuts.extend([text.len()]);
            cuts.sort_unstable();
            for cut in cuts {
                told.extend(lines.take(&text.as_bytes()[from..cut]));
                from = cut;
            }
            told.extend(lines.finish());
            let told: Vec<_> = told.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
            prop_assert_eq!(told, text.lines().map(str::to_owned).collect::<Vec<_>>());
        }

        #[test]
        fn any_line_can_be_read(line in prop::collection::vec(any::<u8>(), 0..80), json in "[\\[\\]{}:,\"a-z0-9 ]{0,60}") {
            told(&line);
            told(json.as_bytes());
        }
    }
}
