//! Ollama's own chat API: its rules of a request, and the lines of its answers. A prompt that has no
//! room is refused, or cut without a word when the request does not say otherwise, as the real server
//! does.

use std::collections::HashSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::chat::tool_name;
use crate::reply::{Message, pieces};
use crate::request::{Request, Room, Segment, array, object, string};
use crate::script::ApiError;

const FIELDS: [&str; 10] = [
    "format",
    "keep_alive",
    "messages",
    "model",
    "options",
    "shift",
    "stream",
    "think",
    "tools",
    "truncate",
];

/// The room of a request that asks for none.
const ROOM: u64 = 4096;

pub(crate) fn parse(body: &Value) -> Result<Request, ApiError> {
    let body = object("body", body)?;
    if let Some(unknown) = body.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        // The real server ignores it, which hides mistakes.
        return Err(ApiError::invalid(format!("unknown field {unknown}")));
    }
    let model = string("model", body.get("model"))?;
    let mut reader = Reader::default();
    for (index, tool) in array("tools", body.get("tools"))?.iter().enumerate() {
        let tool = object("tools", tool)?;
        reader.tools.insert(tool_name(index, tool)?);
        reader.segment(tool);
    }
    reader.messages(array("messages", body.get("messages"))?)?;
    let asked = body.get("options").and_then(|options| options.get("num_ctx"));
    Ok(Request {
        model: model.to_owned(),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or(true),
        turn: reader.turn,
        prompt: reader.prompt,
        tools: reader.tools,
        segments: reader.segments,
        room: Some(Room {
            tokens: asked.and_then(Value::as_u64).unwrap_or(ROOM),
            cuts: body.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        }),
        ..Request::default()
    })
}

#[derive(Default)]
struct Reader {
    segments: Vec<Segment>,
    prompt: String,
    tools: HashSet<String>,
    turn: usize,
    /// Ids and names of calls without a result.
    unanswered: Vec<(String, String)>,
}

impl Reader {
    fn segment(&mut self, value: &Map<String, Value>) {
        self.segments.push(Segment {
            content: Value::Object(value.clone()).to_string(),
            breakpoint: None,
        });
    }

    fn messages(&mut self, messages: &[Value]) -> Result<(), ApiError> {
        let mut last = "";
        for (index, message) in messages.iter().enumerate() {
            let at = format!("messages[{index}]");
            let message = object(&at, message)?;
            let role = string(&format!("{at}.role"), message.get("role"))?;
            if role != "tool" {
                self.all_answered(&at)?;
            }
            match role {
                "system" | "user" => {
                    self.prompt
                        .push_str(string(&format!("{at}.content"), message.get("content"))?);
                    self.prompt.push('\n');
                }
                "assistant" => self.assistant(&at, message)?,
                "tool" => self.result(&at, message)?,
                other => return Err(ApiError::invalid(format!("invalid role: {other}"))),
            }
            self.segment(message);
            last = role;
        }
        self.all_answered("the end")?;
        match last {
            "user" | "tool" => Ok(()),
            _ => Err(ApiError::invalid("the last message is one of the user or of a tool")),
        }
    }

    fn assistant(&mut self, at: &str, message: &Map<String, Value>) -> Result<(), ApiError> {
        for call in array(&format!("{at}.tool_calls"), message.get("tool_calls"))? {
            let function = object(at, call.get("function").unwrap_or(&Value::Null))?;
            let name = string(&format!("{at}.function.name"), function.get("name"))?;
            if !function.get("arguments").is_some_and(Value::is_object) {
                return Err(ApiError::invalid(
                    "json: cannot unmarshal string into Go struct field .arguments of type api.ToolCallFunctionArguments",
                ));
            }
            let id = string(&format!("{at}.id"), call.get("id"))?;
            self.unanswered.push((id.to_owned(), name.to_owned()));
        }
        self.turn += 1;
        Ok(())
    }

    fn result(&mut self, at: &str, message: &Map<String, Value>) -> Result<(), ApiError> {
        string(&format!("{at}.content"), message.get("content"))?;
        let name = string(&format!("{at}.tool_name"), message.get("tool_name"))?;
        let id = string(&format!("{at}.tool_call_id"), message.get("tool_call_id"))?;
        let found = self
            .unanswered
            .iter()
            .position(|(open, called)| open == id && called == name);
        let Some(position) = found else {
            return Err(ApiError::invalid(format!(
                "{at}: no call {id} of {name} waits for a result"
            )));
        };
        self.unanswered.remove(position);
        Ok(())
    }

    fn all_answered(&self, at: &str) -> Result<(), ApiError> {
        match self.unanswered.first() {
            None => Ok(()),
            Some((id, name)) => Err(ApiError::invalid(format!(
                "{at}: the call {id} of {name} has no result"
            ))),
        }
    }
}

/// The tokens that a model reads of a prompt of so many.
///
/// # Errors
/// When the prompt has no room, and must not be cut.
pub(crate) fn fitted(prompt: u64, room: Room) -> Result<u64, ApiError> {
    if prompt < room.tokens {
        Ok(prompt)
    } else if room.cuts {
        Ok(room.tokens / 2)
    } else {
        Err(ApiError::invalid("the input length exceeds the context length"))
    }
}

/// What the server says of a model that it does not have.
pub(crate) fn no_model(model: &str) -> ApiError {
    let message = format!("model '{model}' not found, try pulling it first");
    ApiError::new(404, "not_found_error", message)
}

fn line(message: &Message, said: Value) -> Bytes {
    let mut line = json!({
        "model": message.model(),
        "created_at": format!("2026-11-30T00:00:00.{:09}Z", message.number()),
        "done": false,
    });
    if let (Some(line), Value::Object(said)) = (line.as_object_mut(), said) {
        line.extend(said);
    }
    Bytes::from(format!("{line}\n"))
}

fn call(block: &Value) -> Value {
    json!({"id": block["id"], "function": {"index": 0, "name": block["name"], "arguments": block["input"]}})
}

/// The last line of an answer.
fn end(message: &Message) -> Value {
    let usage = message.usage();
    json!({
        "message": {"role": "assistant", "content": ""},
        "done": true,
        "done_reason": match message.stop_reason() {
            "end_turn" | "tool_use" => "stop",
            "max_tokens" => "length",
            other => other,
        },
        "total_duration": 5_191_566_416_u64,
        "prompt_eval_count": usage.input,
        "eval_count": usage.output,
    })
}

/// The lines of an answer, ready to be sent.
pub(crate) fn events(message: &Message) -> Vec<Bytes> {
    let said = |field: &str, value: Value| {
        let mut said = json!({"role": "assistant", "content": ""});
        said[field] = value;
        line(message, json!({"message": said}))
    };
    let mut lines = Vec::new();
    for block in message.blocks() {
        let text_of = |field: &str| block[field].as_str().unwrap_or_default().to_owned();
        match block["type"].as_str() {
            Some("tool_use") => lines.push(said("tool_calls", json!([call(block)]))),
            Some("thinking") => {
                let thoughts = text_of("thinking");
                lines.extend(pieces(&thoughts).map(|piece| said("thinking", Value::from(piece))));
            }
            Some(_) | None => {
                let text = text_of("text");
                lines.extend(pieces(&text).map(|piece| said("content", Value::from(piece))));
            }
        }
    }
    lines.push(line(message, end(message)));
    lines
}

/// The body of a response without a stream.
pub(crate) fn body(message: &Message) -> Value {
    let of = |kind: &'static str, field: &str| -> String {
        let blocks = message.blocks().iter().filter(move |block| block["type"] == kind);
        blocks.filter_map(|block| block[field].as_str()).collect()
    };
    let calls: Vec<Value> = message
        .blocks()
        .iter()
        .filter(|block| block["type"] == "tool_use")
        .map(call)
        .collect();
    let mut all = end(message);
    all["model"] = Value::from(message.model());
    all["message"] = json!({
        "role": "assistant", "content": of("text", "text"), "thinking": of("thinking", "thinking"), "tool_calls": calls,
    });
    all
}

/// The body of an error response, and the line that ends a stream with an error.
pub(crate) fn error_body(error: &ApiError) -> Value {
    json!({"error": error.message})
}

pub(crate) fn error_event(error: &ApiError) -> Bytes {
    Bytes::from(format!("{}\n", error_body(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Value {
        let call = |id: &str| json!({"id": id, "function": {"name": "bash", "arguments": {}}});
        json!({
            "model": "m", "truncate": false, "options": {"num_ctx": 9000},
            "tools": [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}],
            "messages": [
                {"role": "system", "content": "base"},
                {"role": "user", "content": "do it"},
                {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b")]},
                {"role": "tool", "tool_name": "bash", "tool_call_id": "a", "content": "x"},
                {"role": "tool", "tool_name": "bash", "tool_call_id": "b", "content": "y"},
            ],
        })
    }

    #[test]
    fn a_conversation_that_keeps_the_rules_is_read() {
        let request = parse(&conversation()).unwrap();
        assert_eq!((request.turn, request.stream), (1, true));
        let room = request.room.unwrap();
        assert_eq!((room.tokens, room.cuts), (9000, false));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 5] = [
            (
                |body| body["messages"][2]["tool_calls"][0]["function"]["arguments"] = json!("{}"),
                "cannot unmarshal",
            ),
            (|body| body["messages"][4]["tool_call_id"] = json!("a"), "no call a"),
            (
                |body| body["messages"][4]["tool_name"] = json!("list"),
                "no call b of list",
            ),
            (
                |body| body["messages"].as_array_mut().unwrap().truncate(4),
                "the call b of bash has no result",
            ),
            (|body| body["max_tokens"] = json!(5), "unknown field max_tokens"),
        ];
        for (change, words) in cases {
            let mut body = conversation();
            change(&mut body);
            let error = parse(&body).expect_err(words);
            assert!(error.message.contains(words), "{words}: {}", error.message);
        }
    }

    #[test]
    fn a_prompt_without_room_is_cut_or_refused() {
        let room = |cuts| Room { tokens: 100, cuts };
        assert_eq!(fitted(99, room(true)), Ok(99));
        assert_eq!(fitted(100, room(true)), Ok(50));
        assert!(
            fitted(100, room(false))
                .unwrap_err()
                .message
                .contains("exceeds the context length")
        );
    }
}
