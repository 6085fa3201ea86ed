//! The Responses API's wire form of answers: the response object, the events of a stream, errors.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::cache::{CallUsage, tokens};
use crate::reply::pieces;
use crate::request::Request;
use crate::responses::{call_id, seal};
use crate::script::{ApiError, Block, Reply};

/// A reply on its way to one request.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    number: u64,
    model: String,
    items: Vec<Value>,
    /// Why it is incomplete; `None`: it is complete.
    incomplete: Option<String>,
    usage: CallUsage,
}

impl Response {
    pub(crate) fn new(number: u64, request: &Request, reply: &Reply, mut usage: CallUsage) -> Self {
        let refuses = reply.stop_reason.as_deref() == Some("refusal");
        let mut thought = None;
        let mut items = Vec::new();
        for (index, block) in reply.blocks.iter().enumerate() {
            let id = |kind: &str| format!("{kind}_{number:016}{index:04}");
            let item = match block {
                Block::Thinking(text) => {
                    thought = Some(text.as_str()).filter(|_| request.wants_thoughts);
                    let mut item = json!({"id": id("rs"), "type": "reasoning",
                        "summary": [{"type": "summary_text", "text": text}]});
                    if request.wants_thoughts {
                        item["encrypted_content"] = Value::from(seal(text));
                    }
                    item
                }
                Block::Text(text) => {
                    let part = if refuses {
                        json!({"type": "refusal", "refusal": text})
                    } else {
                        json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
                    };
                    json!({"id": id("msg"), "type": "message", "status": "completed", "role": "assistant",
                        "content": [part]})
                }
                Block::ToolUse { name, input } => {
                    let mut item = json!({"status": "completed", "name": name,
                        "call_id": call_id(number, index, thought)});
                    if let Value::String(text) = input {
                        item["id"] = Value::from(id("ctc"));
                        item["type"] = Value::from("custom_tool_call");
                        item["input"] = Value::from(text.as_str());
                    } else {
                        item["id"] = Value::from(id("fc"));
                        item["type"] = Value::from("function_call");
                        item["arguments"] = Value::from(input.to_string());
                    }
                    if let Some(namespace) = request.namespaces.get(name) {
                        item["namespace"] = Value::from(namespace.as_str());
                    }
                    item
                }
            };
            let count = tokens(item.to_string().len());
            usage.output += count;
            if matches!(block, Block::Thinking(_)) {
                usage.reasoning += count;
            }
            items.push(item);
        }
        Self {
            number,
            model: request.model.clone(),
            items,
            incomplete: reply.stop_reason.clone().filter(|_| !refuses),
            usage,
        }
    }

    pub(crate) fn usage(&self) -> CallUsage {
        self.usage
    }

    /// The body of a response without streaming.
    pub(crate) fn body(&self) -> Value {
        let status = if self.incomplete.is_some() {
            "incomplete"
        } else {
            "completed"
        };
        let mut whole = self.envelope(status, &self.items);
        if let Some(reason) = &self.incomplete {
            whole["incomplete_details"] = json!({"reason": reason});
        }
        let usage = &self.usage;
        let written = usage.cache_write_5m + usage.cache_write_1h;
        let input = usage.input + usage.cache_read + written;
        let mut details = json!({"cached_tokens": usage.cache_read});
        if super::bills_writes(&self.model) {
            details["cache_write_tokens"] = Value::from(written);
        }
        whole["usage"] = json!({
            "input_tokens": input,
            "input_tokens_details": details,
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": input + usage.output,
        });
        whole
    }

    fn envelope(&self, status: &str, items: &[Value]) -> Value {
        json!({
            "id": response_id(self.number), "object": "response", "created_at": 1_790_000_000 + self.number,
            "status": status, "background": false, "error": null, "incomplete_details": null,
            "model": self.model, "output": items, "parallel_tool_calls": true, "store": false, "usage": null,
        })
    }

    /// The events of a streamed response, in order, ready to be sent.
    pub(crate) fn events(&self) -> Vec<Bytes> {
        let begun = self.envelope("in_progress", &[]);
        let mut events = vec![
            json!({"type": "response.created", "response": begun}),
            json!({"type": "response.in_progress", "response": begun}),
        ];
        for (index, item) in self.items.iter().enumerate() {
            events.push(json!({"type": "response.output_item.added", "output_index": index, "item": opening(item)}));
            deltas(index, item, &mut events);
            events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
        }
        let whole = self.body();
        let end = format!("response.{}", whole["status"].as_str().unwrap_or_default());
        events.push(json!({"type": end, "response": whole}));
        let numbered = events.into_iter().enumerate().map(|(number, mut event)| {
            event["sequence_number"] = Value::from(number);
            sse(&event)
        });
        numbered.collect()
    }
}

fn response_id(number: u64) -> String {
    format!("resp_{number:016}")
}

/// An item as it begins: what grows is empty, and a thought is sealed differently until it is done.
fn opening(item: &Value) -> Value {
    let mut item = item.clone();
    for (field, empty) in [
        ("status", json!("in_progress")),
        ("summary", json!([])),
        ("content", json!([])),
        ("arguments", json!("")),
        ("input", json!("")),
        ("encrypted_content", json!(format!("{}begun==", super::SEAL))),
    ] {
        if item.get(field).is_some() {
            item[field] = empty;
        }
    }
    item
}

fn deltas(index: usize, item: &Value, events: &mut Vec<Value>) {
    let mut push = |kind: &str, more: Value| {
        let mut event = json!({"type": kind, "output_index": index, "item_id": item["id"]});
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        events.push(event);
    };
    let text_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match item["type"].as_str() {
        Some("reasoning") => {
            let text = text_of(&item["summary"][0]["text"]);
            let part = json!({"type": "summary_text", "text": ""});
            push(
                "response.reasoning_summary_part.added",
                json!({"summary_index": 0, "part": part}),
            );
            for piece in pieces(&text) {
                push(
                    "response.reasoning_summary_text.delta",
                    json!({"summary_index": 0, "delta": piece}),
                );
            }
            push(
                "response.reasoning_summary_text.done",
                json!({"summary_index": 0, "text": text}),
            );
            let part = item["summary"][0].clone();
            push(
                "response.reasoning_summary_part.done",
                json!({"summary_index": 0, "part": part}),
            );
        }
        Some("function_call") => {
            let text = text_of(&item["arguments"]);
            for piece in pieces(&text) {
                push("response.function_call_arguments.delta", json!({"delta": piece}));
            }
            push(
                "response.function_call_arguments.done",
                json!({"arguments": text, "name": item["name"]}),
            );
        }
        Some("custom_tool_call") => {
            let text = text_of(&item["input"]);
            for piece in pieces(&text) {
                push("response.custom_tool_call_input.delta", json!({"delta": piece}));
            }
            push("response.custom_tool_call_input.done", json!({"input": text}));
        }
        Some(_) | None => {
            let whole = item["content"][0].clone();
            let kind = text_of(&whole["type"]);
            let (field, name) = if kind == "refusal" {
                ("refusal", "refusal")
            } else {
                ("text", "output_text")
            };
            let text = text_of(&whole[field]);
            let mut part = whole.clone();
            part[field] = Value::from("");
            push("response.content_part.added", json!({"content_index": 0, "part": part}));
            for piece in pieces(&text) {
                push(
                    &format!("response.{name}.delta"),
                    json!({"content_index": 0, "delta": piece}),
                );
            }
            push(
                &format!("response.{name}.done"),
                json!({"content_index": 0, (field): text}),
            );
            push("response.content_part.done", json!({"content_index": 0, "part": whole}));
        }
    }
}

/// The event that ends a stream because of an error.
pub(crate) fn error_event(error: &ApiError) -> Bytes {
    let code = error.code.as_deref().unwrap_or(&error.kind);
    sse(&json!({"type": "response.failed", "response": {
        "object": "response", "status": "failed", "output": [], "usage": null,
        "error": {"code": code, "message": error.message},
    }}))
}

/// The body of an error response.
pub(crate) fn error_body(error: &ApiError) -> Value {
    json!({"error": {"message": error.message, "type": error.kind, "param": null, "code": error.code}})
}

fn sse(event: &Value) -> Bytes {
    let name = event["type"].as_str().unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {event}\n\n"))
}
