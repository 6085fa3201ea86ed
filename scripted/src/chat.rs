//! Chat completions: the rules of a request that OpenAI and strict servers of the same form enforce,
//! and the wire form of answers. What parses here, they would take. Thoughts come back
//! with calls and without them they do not; `deepseek-` models refuse calls without theirs.

mod content;
mod tools;

use std::collections::HashSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use self::content::Speaker;
pub(crate) use self::tools::tool_name;
use crate::cache::CallUsage;
use crate::reply::{Message, pieces};
use crate::request::{Caching, Request, Segment, array, object, string};
use crate::script::ApiError;

const FIELDS: [&str; 24] = [
    "frequency_penalty",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "n",
    "parallel_tool_calls",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "response_format",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "user",
    "verbosity",
];

/// Models that know `max_completion_tokens` only.
fn is_new(model: &str) -> bool {
    ["o1", "o3", "o4", "gpt-5", "gpt-6"]
        .iter()
        .any(|prefix| model.starts_with(prefix))
}

/// Whether the model refuses calls without the thoughts that led to them.
fn wants_thoughts(model: &str) -> bool {
    model.starts_with("deepseek-")
}

pub(crate) fn parse(body: &Value) -> Result<Request, ApiError> {
    let body = object("body", body)?;
    if let Some(unknown) = body.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(ApiError::invalid(format!(
            "Unrecognized request argument supplied: {unknown}"
        )));
    }
    let model = string("model", body.get("model"))?;
    if is_new(model) && body.contains_key("max_tokens") {
        return Err(ApiError::invalid(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        ));
    }
    let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    let options = body.get("stream_options");
    if options.is_some() && !stream {
        return Err(ApiError::invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        ));
    }
    let mut reader = Reader::new(model);
    for (index, tool) in array("tools", body.get("tools"))?.iter().enumerate() {
        reader.tool(index, object("tools", tool)?)?;
    }
    reader.messages(array("messages", body.get("messages"))?)?;
    Ok(Request {
        model: model.to_owned(),
        stream,
        turn: reader.turn,
        prompt: reader.prompt,
        tools: reader.tools,
        segments: reader.segments,
        caching: Caching::Implicit { writes: false },
        wants_counts: options.and_then(|options| options.get("include_usage")) == Some(&Value::Bool(true)),
        ..Request::default()
    })
}

struct Reader {
    thoughtful: bool,
    segments: Vec<Segment>,
    prompt: String,
    tools: HashSet<String>,
    turn: usize,
    called: HashSet<String>,
    unanswered: Vec<String>,
}

impl Reader {
    fn new(model: &str) -> Self {
        Self {
            thoughtful: wants_thoughts(model),
            segments: Vec::new(),
            prompt: String::new(),
            tools: HashSet::new(),
            turn: 0,
            called: HashSet::new(),
            unanswered: Vec::new(),
        }
    }

    fn segment(&mut self, value: &Map<String, Value>) {
        self.segments.push(Segment {
            content: Value::Object(value.clone()).to_string(),
            breakpoint: None,
        });
    }

    fn tool(&mut self, index: usize, tool: &Map<String, Value>) -> Result<(), ApiError> {
        match tool.get("type").and_then(Value::as_str) {
            // No script calls those.
            Some("custom") => tools::custom(index, tool)?,
            Some(_) | None => drop(self.tools.insert(tool_name(index, tool)?)),
        }
        self.segment(tool);
        Ok(())
    }

    fn messages(&mut self, messages: &[Value]) -> Result<(), ApiError> {
        let mut last = "";
        for (index, message) in messages.iter().enumerate() {
            let at = format!("messages.[{index}]");
            let message = object(&at, message)?;
            let role = string(&format!("{at}.role"), message.get("role"))?;
            if role != "tool" {
                self.all_answered()?;
            }
            match role {
                "system" | "developer" if index == 0 => self.said(&at, message, Speaker::Plain)?,
                "user" => self.said(&at, message, Speaker::User)?,
                "assistant" if index > 0 => self.assistant(&at, message)?,
                "tool" => self.result(&at, message)?,
                other => return Err(ApiError::invalid(format!("{at}.role: unexpected '{other}' here"))),
            }
            self.segment(message);
            last = role;
        }
        self.all_answered()?;
        match last {
            "user" | "tool" => Ok(()),
            _ => Err(ApiError::invalid(
                "the last message must be one of the user or of a tool",
            )),
        }
    }

    fn said(&mut self, at: &str, message: &Map<String, Value>, speaker: Speaker) -> Result<(), ApiError> {
        self.prompt
            .push_str(&content::text(at, message.get("content"), speaker)?);
        self.prompt.push('\n');
        Ok(())
    }

    fn assistant(&mut self, at: &str, message: &Map<String, Value>) -> Result<(), ApiError> {
        const KNOWN: [&str; 8] = [
            "role",
            "content",
            "refusal",
            "tool_calls",
            "reasoning_content",
            "reasoning",
            "reasoning_details",
            "name",
        ];
        if let Some(other) = message.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(ApiError::invalid(format!("{at}: property '{other}' is unsupported")));
        }
        let refusal = message.get("refusal").filter(|refusal| !refusal.is_null());
        if refusal.is_some_and(|refusal| !refusal.is_string()) {
            return Err(ApiError::invalid(format!("{at}.refusal: must be a string or null")));
        }
        let calls = array(&format!("{at}.tool_calls"), message.get("tool_calls"))?;
        // It may be missing or null where there are calls.
        let text = match message.get("content") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            some => content::text(at, some, Speaker::Assistant)?,
        };
        if calls.is_empty() && text.is_empty() && refusal.is_none() {
            return Err(ApiError::invalid(format!(
                "{at}: an assistant message needs content or tool_calls"
            )));
        }
        let thoughts = message.get("reasoning_content").and_then(Value::as_str);
        if self.thoughtful && !calls.is_empty() && thoughts.is_none() {
            return Err(ApiError::invalid(
                "Missing `reasoning_content` field in the assistant message",
            ));
        }
        if calls.is_empty() && thoughts.is_some() {
            return Err(ApiError::invalid(format!(
                "{at}: property 'reasoning_content' is unsupported here"
            )));
        }
        for call in calls {
            let call = object(at, call)?;
            let id = string(&format!("{at}.tool_calls.id"), call.get("id"))?;
            if call.get("type") != Some(&Value::from("function")) {
                return Err(ApiError::invalid(format!("{at}.tool_calls.type: must be 'function'")));
            }
            let function = object(at, call.get("function").unwrap_or(&Value::Null))?;
            string(&format!("{at}.function.name"), function.get("name"))?;
            let arguments = string(&format!("{at}.function.arguments"), function.get("arguments"))?;
            if serde_json::from_str::<Map<String, Value>>(arguments).is_err() {
                return Err(ApiError::invalid(format!(
                    "{at}: arguments are no JSON object: {arguments}"
                )));
            }
            if !self.called.insert(id.to_owned()) {
                return Err(ApiError::invalid(format!(
                    "{at}: Duplicate value for 'tool_call_id': {id}"
                )));
            }
            self.unanswered.push(id.to_owned());
        }
        self.turn += 1;
        Ok(())
    }

    fn result(&mut self, at: &str, message: &Map<String, Value>) -> Result<(), ApiError> {
        let id = string(&format!("{at}.tool_call_id"), message.get("tool_call_id"))?;
        content::text(at, message.get("content"), Speaker::Plain)?;
        let Some(position) = self.unanswered.iter().position(|open| open == id) else {
            return Err(ApiError::invalid(format!(
                "{at}: messages with role 'tool' must be a response to a preceding message with 'tool_calls': {id}"
            )));
        };
        self.unanswered.remove(position);
        Ok(())
    }

    fn all_answered(&self) -> Result<(), ApiError> {
        if self.unanswered.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each \
             'tool_call_id'. The following tool_call_ids did not have response messages: {}",
            self.unanswered.join(", ")
        )))
    }
}

/// The counts of a call as this form has them: tokens from the cache are in those of the prompt.
fn usage(usage: CallUsage) -> Value {
    let prompt = usage.input + usage.cache_read;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

fn finish_reason(message: &Message) -> Value {
    Value::from(match message.stop_reason() {
        "end_turn" => "stop",
        "tool_use" => "tool_calls",
        "max_tokens" => "length",
        other => other,
    })
}

fn chunk(message: &Message, choices: Value, usage: Value) -> Bytes {
    let chunk = json!({
        "id": format!("chatcmpl-{:016}", message.number()),
        "object": "chat.completion.chunk",
        "model": message.model(),
        "choices": choices,
        "usage": usage,
    });
    Bytes::from(format!("data: {chunk}\n\n"))
}

/// The events of a stream, ready to be sent.
pub(crate) fn events(message: &Message, counts: bool) -> Vec<Bytes> {
    let delta = |delta: Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
        chunk(message, choices, Value::Null)
    };
    let mut events = vec![delta(json!({"role": "assistant", "content": ""}))];
    let mut calls = 0;
    for block in message.blocks() {
        let text_of = |field: &str| block[field].as_str().unwrap_or_default().to_owned();
        match block["type"].as_str() {
            Some("tool_use") => {
                let function = json!({"name": block["name"], "arguments": ""});
                let begin = json!({"index": calls, "id": block["id"], "type": "function", "function": function});
                events.push(delta(json!({"tool_calls": [begin]})));
                let input = block["input"].to_string();
                events.extend(pieces(&input).map(|piece| {
                    let part = json!({"index": calls, "function": {"arguments": piece}});
                    delta(json!({"tool_calls": [part]}))
                }));
                calls += 1;
            }
            Some("thinking") => {
                let thoughts = text_of("thinking");
                events.extend(pieces(&thoughts).map(|piece| delta(json!({"reasoning_content": piece}))));
            }
            Some(_) | None => {
                let text = text_of("text");
                events.extend(pieces(&text).map(|piece| delta(json!({"content": piece}))));
            }
        }
    }
    let end = json!([{"index": 0, "delta": {}, "finish_reason": finish_reason(message)}]);
    events.push(chunk(message, end, Value::Null));
    if counts {
        events.push(chunk(message, json!([]), usage(message.usage())));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    events
}

/// The body of a response without a stream.
pub(crate) fn body(message: &Message) -> Value {
    let of = |kind: &'static str| message.blocks().iter().filter(move |block| block["type"] == kind);
    let joined =
        |kind: &'static str, field: &str| -> String { of(kind).filter_map(|block| block[field].as_str()).collect() };
    let calls: Vec<Value> = of("tool_use")
        .map(|block| {
            let function = json!({"name": block["name"], "arguments": block["input"].to_string()});
            json!({"id": block["id"], "type": "function", "function": function})
        })
        .collect();
    let mut said = json!({"role": "assistant", "content": joined("text", "text")});
    let thoughts = joined("thinking", "thinking");
    if !thoughts.is_empty() {
        said["reasoning_content"] = Value::from(thoughts);
    }
    if !calls.is_empty() {
        said["tool_calls"] = Value::from(calls);
    }
    json!({
        "id": format!("chatcmpl-{:016}", message.number()),
        "object": "chat.completion",
        "model": message.model(),
        "choices": [{"index": 0, "message": said, "finish_reason": finish_reason(message)}],
        "usage": usage(message.usage()),
    })
}

/// The body of an error response.
pub(crate) fn error_body(error: &ApiError) -> Value {
    json!({"error": {"message": error.message, "type": error.kind, "param": null, "code": error.code}})
}

/// The event that ends a stream with an error.
pub(crate) fn error_event(error: &ApiError) -> Bytes {
    Bytes::from(format!("data: {}\n\n", error_body(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Value {
        let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "bash", "arguments": "{}"}});
        json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true},
            "tools": [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}],
            "messages": [
                {"role": "system", "content": "base"},
                {"role": "user", "content": "do it"},
                {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b")]},
                {"role": "tool", "tool_call_id": "b", "content": "x"},
                {"role": "tool", "tool_call_id": "a", "content": "y"},
                {"role": "user", "content": "go on"},
            ],
        })
    }

    #[test]
    fn a_conversation_that_keeps_the_rules_is_read() {
        let request = parse(&conversation()).unwrap();
        assert_eq!(
            (request.turn, request.wants_counts, request.segments.len()),
            (1, true, 7)
        );
        assert_eq!(request.prompt, "base\ndo it\ngo on\n");
    }

    #[test]
    fn messages_are_texts_or_lists_of_parts() {
        let part = |text: &str| json!([{"type": "text", "text": text}]);
        let mut body = conversation();
        body["messages"][0]["content"] = part("base");
        body["messages"][1]["content"] = json!([{"type": "text", "text": "do "}, {"type": "text", "text": "it"}]);
        (body["messages"][2]["content"], body["messages"][2]["refusal"]) = (Value::Null, Value::Null);
        body["messages"][3]["content"] = part("x");
        let request = parse(&body).unwrap();
        assert_eq!(request.prompt, "base\ndo it\ngo on\n");
        body["messages"][2] = json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]});
        body["messages"].as_array_mut().unwrap().drain(3..5);
        assert_eq!(parse(&body).unwrap().turn, 1);
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_its_words() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 13] = [
            (
                |body| {
                    body["messages"][3]["content"] = json!([{"type": "image_url", "image_url": {"url": "https://x"}}])
                },
                "Supported values are: 'text'",
            ),
            (
                |body| body["messages"][2] = json!({"role": "assistant", "content": [], "tool_calls": []}),
                "empty array",
            ),
            (
                |body| body["messages"][2]["refusal"] = json!(7),
                "must be a string or null",
            ),
            (
                |body| body["messages"][4]["tool_call_id"] = json!("b"),
                "must be a response",
            ),
            (
                |body| body["messages"][4] = json!({"role": "user", "content": "no"}),
                "did not have response messages: a",
            ),
            (
                |body| body["messages"][2]["tool_calls"][1]["id"] = json!("a"),
                "Duplicate value",
            ),
            (
                |body| body["messages"][2]["tool_calls"][0]["function"]["arguments"] = json!("{\"a"),
                "no JSON object",
            ),
            (
                |body| body["messages"][2]["cache_control"] = json!({}),
                "'cache_control'",
            ),
            (
                |body| body["messages"][2] = json!({"role": "assistant", "content": "x", "reasoning_content": "hm"}),
                "unsupported here",
            ),
            (
                |body| body["model"] = json!("deepseek-x"),
                "Missing `reasoning_content`",
            ),
            (|body| body["stream"] = json!(false), "stream_options"),
            (
                |body| (body["model"], body["max_tokens"]) = (json!("gpt-6-sol"), json!(1)),
                "max_completion_tokens",
            ),
            (|body| body["num_ctx"] = json!(1), "num_ctx"),
        ];
        for (change, words) in cases {
            let mut body = conversation();
            change(&mut body);
            let error = parse(&body).expect_err(words);
            assert!(error.message.contains(words), "{words}: {}", error.message);
        }
    }
}
