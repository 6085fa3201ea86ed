//! The Messages API's wire form of answers: the message object, the events of a stream, errors.
//! It builds JSON and bytes; when they are sent is the server's business.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::cache::{CallUsage, tokens};
use crate::request::sign;
use crate::script::{ApiError, Block, Reply};

/// A reply on its way to one request.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    number: u64,
    model: String,
    blocks: Vec<Value>,
    stop_reason: String,
    usage: CallUsage,
    /// What a summary of the conversation cost, which was made before the answer.
    compacted: Option<CallUsage>,
}

impl Message {
    /// The reply to request `number`, whose prompt was accounted for as `usage`.
    pub(crate) fn new(number: u64, model: &str, reply: &Reply, mut usage: CallUsage) -> Self {
        let blocks: Vec<Value> = reply
            .blocks
            .iter()
            .enumerate()
            .map(|(index, block)| match block {
                Block::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": sign(text)}),
                Block::Text(text) => json!({"type": "text", "text": text}),
                Block::ToolUse { name, input } => {
                    json!({"type": "tool_use", "id": format!("toolu_{number:012}{index:04}"), "name": name, "input": input})
                }
            })
            .collect();
        let calls = reply.blocks.iter().any(|block| matches!(block, Block::ToolUse { .. }));
        let stop_reason = reply
            .stop_reason
            .clone()
            .unwrap_or_else(|| if calls { "tool_use" } else { "end_turn" }.to_owned());
        for (block, value) in reply.blocks.iter().zip(&blocks) {
            let count = tokens(value.to_string().len());
            usage.output += count;
            if matches!(block, Block::Thinking(_)) {
                usage.reasoning += count;
            }
        }
        Self {
            number,
            model: model.to_owned(),
            blocks,
            stop_reason,
            usage,
            compacted: None,
        }
    }

    /// The same after a summary of the conversation that cost so much.
    pub(crate) fn after_summary(mut self, summary: &str, cost: CallUsage) -> Self {
        self.blocks.insert(0, json!({"type": "compaction", "content": summary}));
        self.compacted = Some(cost);
        self
    }

    /// The counts of each part of the answer.
    fn iterations(&self) -> Value {
        let part = |kind, usage: CallUsage| {
            json!({
                "type": kind,
                "input_tokens": usage.input,
                "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": usage.cache_write_5m,
                    "ephemeral_1h_input_tokens": usage.cache_write_1h,
                },
                "cache_read_input_tokens": usage.cache_read,
                "output_tokens": usage.output,
            })
        };
        let summary = self.compacted.map(|cost| part("compaction", cost));
        summary.into_iter().chain([part("message", self.usage)]).collect()
    }

    /// What the call costs in all.
    pub(crate) fn usage(&self) -> CallUsage {
        let summary = self.compacted.unwrap_or_default();
        CallUsage {
            input: self.usage.input + summary.input,
            cache_write_5m: self.usage.cache_write_5m + summary.cache_write_5m,
            cache_write_1h: self.usage.cache_write_1h + summary.cache_write_1h,
            cache_read: self.usage.cache_read + summary.cache_read,
            output: self.usage.output + summary.output,
            reasoning: self.usage.reasoning + summary.reasoning,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// The parts of the answer.
    pub(crate) fn blocks(&self) -> &[Value] {
        &self.blocks
    }

    pub(crate) fn stop_reason(&self) -> &str {
        &self.stop_reason
    }

    /// The body of a response without streaming.
    pub(crate) fn body(&self) -> Value {
        let mut whole = self.envelope(
            Value::from(self.blocks.as_slice()),
            Value::from(self.stop_reason.as_str()),
            self.usage.output,
        );
        whole["usage"]["iterations"] = self.iterations();
        whole
    }

    /// The events of a streamed response, in order, ready to be sent.
    pub(crate) fn events(&self) -> Vec<Bytes> {
        // At its start a stream knows what the prompt costs, and one token of output.
        let opening = self.envelope(json!([]), Value::Null, 1);
        let mut events = vec![
            event("message_start", json!({"type": "message_start", "message": opening})),
            event("ping", json!({"type": "ping"})),
        ];
        for (index, block) in self.blocks.iter().enumerate() {
            let (start, deltas) = unfold(block);
            events.push(event(
                "content_block_start",
                json!({"type": "content_block_start", "index": index, "content_block": start}),
            ));
            events.extend(deltas.into_iter().map(|delta| {
                event(
                    "content_block_delta",
                    json!({"type": "content_block_delta", "index": index, "delta": delta}),
                )
            }));
            events.push(event(
                "content_block_stop",
                json!({"type": "content_block_stop", "index": index}),
            ));
        }
        events.push(event(
            "message_delta",
            json!({
                "type": "message_delta",
                "delta": {"stop_reason": self.stop_reason, "stop_sequence": null},
                "usage": {
                    "output_tokens": self.usage.output,
                    "output_tokens_details": {"thinking_tokens": self.usage.reasoning},
                    "iterations": self.iterations(),
                },
            }),
        ));
        events.push(event("message_stop", json!({"type": "message_stop"})));
        events
    }

    fn envelope(&self, content: Value, stop_reason: Value, output: u64) -> Value {
        let usage = &self.usage;
        json!({
            "id": format!("msg_{:016}", self.number),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": null,
            "usage": {
                "input_tokens": usage.input,
                "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
                "cache_read_input_tokens": usage.cache_read,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": usage.cache_write_5m,
                    "ephemeral_1h_input_tokens": usage.cache_write_1h,
                },
                "output_tokens": output,
                "service_tier": "standard",
            },
        })
    }
}

/// The `error` event that ends a stream.
pub(crate) fn error_event(error: &ApiError) -> Bytes {
    event(
        "error",
        json!({"type": "error", "error": {"type": error.kind, "message": error.message}}),
    )
}

/// The body of an error response.
pub(crate) fn error_body(error: &ApiError, request_id: &str) -> Value {
    json!({
        "type": "error",
        "error": {"type": error.kind, "message": error.message},
        "request_id": request_id,
    })
}

fn event(name: &str, data: Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// A block as it starts in a stream, and the deltas that fill it.
fn unfold(block: &Value) -> (Value, Vec<Value>) {
    let text_of = |field: &str| block[field].as_str().unwrap_or_default();
    match block["type"].as_str() {
        Some("tool_use") => {
            let mut start = block.clone();
            start["input"] = json!({});
            let input = block["input"].to_string();
            let deltas = pieces(&input).map(|piece| json!({"type": "input_json_delta", "partial_json": piece}));
            (start, deltas.collect())
        }
        Some("thinking") => {
            let deltas = pieces(text_of("thinking"))
                .map(|piece| json!({"type": "thinking_delta", "thinking": piece}))
                .chain([json!({"type": "signature_delta", "signature": block["signature"]})]);
            (
                json!({"type": "thinking", "thinking": "", "signature": ""}),
                deltas.collect(),
            )
        }
        // The summary comes at once.
        Some("compaction") => (
            json!({"type": "compaction", "content": null}),
            vec![json!({"type": "compaction_delta", "content": block["content"]})],
        ),
        Some(_) | None => {
            let deltas = pieces(text_of("text")).map(|piece| json!({"type": "text_delta", "text": piece}));
            (json!({"type": "text", "text": ""}), deltas.collect())
        }
    }
}

/// Cuts a text at character borders into pieces of some tokens, at most about 64 of them.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let size = (text.len() / 64).max(24);
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest
            .char_indices()
            .map(|(index, character)| index + character.len_utf8())
            .find(|end| *end >= size)
            .unwrap_or(rest.len());
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_text_make_it_up_again() {
        for text in ["", "a", "short", &"äöü€".repeat(100), &"x".repeat(200_000)] {
            assert_eq!(pieces(text).collect::<String>(), text);
            assert!(pieces(text).count() <= 65);
        }
    }

    #[test]
    fn a_stream_and_a_body_say_the_same() {
        let reply = Reply::new([
            Block::Thinking("let me think".to_owned()),
            Block::Text("I will do it.".to_owned()),
            Block::tool(
                "bash",
                json!({"command": "printf 'ä' > file.txt; cat file.txt; ls -la ."}),
            ),
        ]);
        let message = Message::new(7, "m", &reply, CallUsage::default());
        let body = message.body();
        let mut filled: Vec<Value> = Vec::new();
        let mut input = String::new();
        for event in message.events() {
            let event = std::str::from_utf8(&event).unwrap();
            let data: Value = serde_json::from_str(event.split_once("data: ").unwrap().1.trim()).unwrap();
            match data["type"].as_str().unwrap() {
                "content_block_start" => filled.push(data["content_block"].clone()),
                "content_block_delta" => {
                    let block = filled.last_mut().unwrap();
                    let delta = &data["delta"];
                    match delta["type"].as_str().unwrap() {
                        "input_json_delta" => {
                            input.push_str(delta["partial_json"].as_str().unwrap());
                            if let Ok(whole) = serde_json::from_str::<Value>(&input) {
                                block["input"] = whole;
                            }
                        }
                        kind => {
                            let field = kind.strip_suffix("_delta").unwrap();
                            let text = format!("{}{}", block[field].as_str().unwrap(), delta[field].as_str().unwrap());
                            block[field] = Value::from(text);
                        }
                    }
                }
                "message_delta" => {
                    assert_eq!(data["delta"]["stop_reason"], body["stop_reason"]);
                    assert_eq!(data["usage"]["output_tokens"], body["usage"]["output_tokens"]);
                }
                _ => {}
            }
        }
        assert_eq!(Value::from(filled), body["content"]);
        assert_eq!(body["stop_reason"], "tool_use");
        assert!(message.usage().reasoning > 0 && message.usage().reasoning < message.usage().output);
    }
}
