//! JSON-RPC 2.0, a message a line: what an agent said, and the lines for it. Lines are cut in bounded memory.

use bytes::Bytes;
use serde_json::{Value, json};

/// The longest message that is read, in bytes. Agents send whole files, before and after a change.
const LONGEST: usize = 32 << 20;

/// The codes of errors that are told.
pub(super) mod code {
    /// No such method.
    pub(in crate::adapters::acp) const UNKNOWN_METHOD: i64 = -32601;
    /// The parameters do not fit the method.
    pub(in crate::adapters::acp) const INVALID_PARAMS: i64 = -32602;
    /// It could not be done.
    pub(in crate::adapters::acp) const INTERNAL: i64 = -32603;
    /// A person has to log in first.
    pub(in crate::adapters::acp) const AUTH_REQUIRED: i64 = -32000;
    /// There is no such file.
    pub(in crate::adapters::acp) const NOT_FOUND: i64 = -32002;
}

/// What a line is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Incoming {
    /// The agent wants an answer.
    Request {
        id: RequestId,
        method: String,
        params: Value,
    },
    Notification {
        method: String,
        params: Value,
    },
    /// The answer to our request of this number.
    Answer {
        id: u64,
        result: Result<Value, RpcError>,
    },
    /// Something else that the program printed.
    NoMessage,
}

/// The agent's own id of its request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestId(Value);

/// An error, in either direction.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
    pub(super) data: Value,
}

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: Value::Null,
        }
    }

    /// Agents leave out what the standard wants.
    fn read(error: Value) -> Self {
        Self {
            code: error.get("code").and_then(Value::as_i64).unwrap_or_default(),
            message: match error.get("message") {
                Some(Value::String(message)) => message.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            },
            data: error.get("data").cloned().unwrap_or_default(),
        }
    }
}

/// Reads a line.
pub(super) fn read(line: &[u8]) -> Incoming {
    let Ok(Value::Object(mut message)) = serde_json::from_slice(line) else {
        return Incoming::NoMessage;
    };
    let method = match message.remove("method") {
        Some(Value::String(method)) => Some(method),
        Some(_) | None => None,
    };
    let id = message.remove("id").filter(|id| !id.is_null());
    let mut take = |key| message.remove(key).unwrap_or_default();
    match (method, id) {
        (Some(method), Some(id)) => Incoming::Request {
            id: RequestId(id),
            method,
            params: take("params"),
        },
        (Some(method), None) => Incoming::Notification {
            method,
            params: take("params"),
        },
        (None, Some(id)) => match id.as_u64() {
            Some(id) => Incoming::Answer {
                id,
                result: match take("error") {
                    Value::Null => Ok(take("result")),
                    error => Err(RpcError::read(error)),
                },
            },
            None => Incoming::NoMessage,
        },
        (None, None) => Incoming::NoMessage,
    }
}

/// The line of a request.
pub(super) fn request(id: u64, method: &str, params: &Value) -> Bytes {
    line(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
}

/// The line of a notification.
pub(super) fn notification(method: &str, params: &Value) -> Bytes {
    line(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
}

/// The line that answers an agent's request.
pub(super) fn answer(RequestId(id): &RequestId, result: Result<Value, RpcError>) -> Bytes {
    line(&match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(RpcError { code, message, data }) => {
            let mut error = json!({"code": code, "message": message});
            if !data.is_null() {
                error["data"] = data;
            }
            json!({"jsonrpc": "2.0", "id": id, "error": error})
        }
    })
}

fn line(message: &Value) -> Bytes {
    let mut line = message.to_string();
    line.push('\n');
    Bytes::from(line)
}

/// Cuts output into lines.
#[derive(Debug, Default)]
pub(super) struct LineCutter {
    open: Vec<u8>,
    dropped: u64,
}

/// A line, or what became of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Line(Vec<u8>),
    /// It was longer than any message; so many bytes were dropped.
    Dropped(u64),
}

impl LineCutter {
    /// Adds bytes, and returns the lines that they complete. Empty lines are left out.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Vec<Cut> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            lines.extend(self.end());
        }
        self.extend(bytes);
        lines
    }

    /// The last line, when it has no end.
    pub(super) fn end(&mut self) -> Option<Cut> {
        let line = std::mem::take(&mut self.open);
        match std::mem::take(&mut self.dropped) {
            0 if line.iter().all(u8::is_ascii_whitespace) => None,
            0 => Some(Cut::Line(line)),
            dropped => Some(Cut::Dropped(dropped)),
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.dropped > 0 || self.open.len() + bytes.len() > LONGEST {
            self.dropped += (self.open.len() + bytes.len()) as u64;
            self.open = Vec::new();
        } else {
            self.open.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(text: &str) -> Incoming {
        read(text.as_bytes())
    }

    #[test]
    fn messages_are_told_apart_and_anything_else_is_none() {
        let request = incoming(r#"{"jsonrpc":"2.0","id":"a-1","method":"fs/read_text_file","params":{"path":"x"}}"#);
        let Incoming::Request { id, method, params } = request else {
            panic!("{request:?}");
        };
        assert_eq!((method.as_str(), &params["path"]), ("fs/read_text_file", &json!("x")));
        assert_eq!(
            answer(&id, Ok(json!({}))),
            "{\"id\":\"a-1\",\"jsonrpc\":\"2.0\",\"result\":{}}\n"
        );
        assert_eq!(
            incoming(r#"{"method":"session/update"}"#),
            Incoming::Notification {
                method: "session/update".to_owned(),
                params: Value::Null
            }
        );
        assert_eq!(
            incoming(r#"{"id":3,"result":{"a":1},"error":null}"#),
            Incoming::Answer {
                id: 3,
                result: Ok(json!({"a": 1}))
            }
        );
        // As agents write errors: without a code, with an object as the message.
        assert_eq!(
            incoming(r#"{"id":3,"error":{"message":{"why":1}}}"#),
            Incoming::Answer {
                id: 3,
                result: Err(RpcError::new(0, "{\"why\":1}"))
            }
        );
        for none in [
            "",
            "Loaded 3 extensions",
            "[1]",
            "{}",
            r#"{"id":null,"error":{}}"#,
            r#"{"id":"x","result":1}"#,
        ] {
            assert_eq!(incoming(none), Incoming::NoMessage, "{none}");
        }
    }

    #[test]
    fn lines_are_the_same_in_any_slicing() {
        let text = b"{\"a\":1}\r\n\n \n{\"b\":2}\nrest";
        for step in 1..text.len() {
            let mut cutter = LineCutter::default();
            let mut lines: Vec<_> = text.chunks(step).flat_map(|chunk| cutter.push(chunk)).collect();
            lines.extend(cutter.end());
            let expected = [&b"{\"a\":1}\r"[..], b"{\"b\":2}", b"rest"].map(|line| Cut::Line(line.to_vec()));
            assert_eq!(lines, expected, "{step}");
        }
        let mut cutter = LineCutter::default();
        let long = vec![b'x'; LONGEST];
        assert_eq!(cutter.push(&long), []);
        assert_eq!(
            cutter.push(b"y\n{}\n"),
            [Cut::Dropped(LONGEST as u64 + 1), Cut::Line(b"{}".to_vec())]
        );
    }
}
