//! Gemini's wire form of answers: the chunks of a stream, which are answers themselves, and errors.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{sign_call, sign_text};
use crate::cache::{CallUsage, tokens};
use crate::reply::pieces;
use crate::request::Request;
use crate::script::{ApiError, Block, Reply};

/// A reply on its way to one request.
#[derive(Debug, Clone)]
pub(crate) struct Generated {
    number: u64,
    model: String,
    /// Parts, and the tokens that each is.
    parts: Vec<(Value, u64)>,
    finish: String,
    /// The prompt is not answered.
    blocked: bool,
    usage: CallUsage,
}

impl Generated {
    pub(crate) fn new(number: u64, request: &Request, reply: &Reply, mut usage: CallUsage) -> Self {
        let mut parts = Vec::new();
        let mut is_first_call = true;
        let last = reply.blocks.len().saturating_sub(1);
        for (index, block) in reply.blocks.iter().enumerate() {
            let part = match block {
                Block::Thinking(text) => json!({"text": text, "thought": true}),
                // Only the last text is signed, as the provider does it.
                Block::Text(text) if index == last => json!({"text": text, "thoughtSignature": sign_text(number)}),
                Block::Text(text) => json!({"text": text}),
                Block::ToolUse { name, input } => {
                    let mut call = json!({"functionCall": {"name": name, "args": input}});
                    if super::needs_signatures(&request.model) {
                        call["functionCall"]["id"] = Value::from(format!("fc{number:08}{index:04}"));
                    }
                    // The first of parallel calls has the signature of all.
                    if is_first_call {
                        call["thoughtSignature"] = Value::from(sign_call(name, input));
                    }
                    is_first_call = false;
                    call
                }
            };
            let count = tokens(part.to_string().len());
            usage.output += count;
            let thought = matches!(block, Block::Thinking(_));
            if thought {
                usage.reasoning += count;
            }
            // What was thought is only shown on request.
            if !thought || request.wants_thoughts {
                parts.push((part, if thought { 0 } else { count }));
            }
        }
        Self {
            number,
            model: request.model.clone(),
            parts,
            finish: reply.stop_reason.clone().unwrap_or_else(|| "STOP".to_owned()),
            blocked: reply.stop_reason.as_deref() == Some("blocked"),
            usage,
        }
    }

    pub(crate) fn usage(&self) -> CallUsage {
        if self.blocked {
            return CallUsage {
                output: 0,
                reasoning: 0,
                ..self.usage
            };
        }
        self.usage
    }

    /// The body of a response without streaming.
    pub(crate) fn body(&self) -> Value {
        if self.blocked {
            return self.blocked_chunk();
        }
        let parts = self.parts.iter().map(|(part, _)| part.clone()).collect();
        self.chunk(parts, Some(&self.finish), self.usage.output - self.usage.reasoning)
    }

    /// The events of a streamed response, in order, ready to be sent.
    pub(crate) fn events(&self) -> Vec<Bytes> {
        if self.blocked {
            return vec![sse(&self.blocked_chunk())];
        }
        let mut events = Vec::new();
        let mut said = 0;
        for (part, count) in &self.parts {
            let Some(text) = part["text"].as_str() else {
                said += count;
                events.push(sse(&self.chunk(vec![part.clone()], None, said)));
                continue;
            };
            for piece in pieces(text) {
                let mut chunk = part.clone();
                chunk["text"] = Value::from(piece);
                if let Some(chunk) = chunk.as_object_mut() {
                    chunk.remove("thoughtSignature");
                }
                events.push(sse(&self.chunk(vec![chunk], None, said)));
            }
            said += count;
        }
        // The signature of a text comes with an empty one at the end.
        let signed = self
            .parts
            .last()
            .map(|(part, _)| part)
            .filter(|part| part["text"].is_string());
        let signature = signed.and_then(|part| part.get("thoughtSignature"));
        let last = signature.map(|signature| json!({"text": "", "thoughtSignature": signature}));
        let whole = self.usage.output - self.usage.reasoning;
        events.push(sse(&self.chunk(last.into_iter().collect(), Some(&self.finish), whole)));
        events
    }

    fn chunk(&self, parts: Vec<Value>, finish: Option<&str>, said: u64) -> Value {
        let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
        if let Some(finish) = finish {
            candidate["finishReason"] = Value::from(finish);
        }
        let mut chunk = self.envelope(said, self.usage.reasoning);
        chunk["candidates"] = json!([candidate]);
        chunk
    }

    fn blocked_chunk(&self) -> Value {
        let mut chunk = self.envelope(0, 0);
        chunk["promptFeedback"] = json!({"blockReason": "SAFETY"});
        chunk
    }

    fn envelope(&self, said: u64, thought: u64) -> Value {
        let prompt = self.usage.input + self.usage.cache_read;
        let mut usage = json!({"promptTokenCount": prompt, "totalTokenCount": prompt + said + thought});
        // Counts of nothing are left out.
        for (field, count) in [
            ("cachedContentTokenCount", self.usage.cache_read),
            ("candidatesTokenCount", said),
            ("thoughtsTokenCount", thought),
        ] {
            if count > 0 {
                usage[field] = Value::from(count);
            }
        }
        json!({"usageMetadata": usage, "modelVersion": self.model, "responseId": format!("r{:015}", self.number)})
    }
}

/// The chunk that ends a stream because of an error.
pub(crate) fn error_event(error: &ApiError) -> Bytes {
    sse(&error_body(error))
}

/// The body of an error response.
pub(crate) fn error_body(error: &ApiError) -> Value {
    let google = |kind: &str| format!("type.googleapis.com/google.rpc.{kind}");
    let mut details = Vec::new();
    if error.kind == "API_KEY_INVALID" {
        details.push(json!({"@type": google("ErrorInfo"), "reason": error.kind, "domain": "googleapis.com"}));
    }
    if let Some(quota) = &error.code {
        details.push(json!({"@type": google("QuotaFailure"), "violations": [{"quotaId": quota}]}));
    }
    if let Some(after) = error.retry_after {
        details.push(json!({"@type": google("RetryInfo"), "retryDelay": format!("{}s", after.as_secs())}));
    }
    let status = match error.status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INTERNAL",
    };
    json!({"error": {"code": error.status, "message": error.message, "status": status, "details": details}})
}

fn sse(chunk: &Value) -> Bytes {
    Bytes::from(format!("data: {chunk}\r\n\r\n"))
}
