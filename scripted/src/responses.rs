//! Reads a request of OpenAI's Responses API and enforces the documented rules of a conversation:
//! every call is answered exactly once, and sealed reasoning comes back as it was given, before the
//! call that it led to. Fields of a request that are not known are accepted. It does not know
//! scripts, caches or HTTP.

pub(crate) mod reply;

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::request::{Caching, Request, Segment, array, object, string};
use crate::script::ApiError;

/// What a sealed thought begins with.
const SEAL: &str = "gAAAAAB";

/// A thought as only the provider can read it.
pub(crate) fn seal(thought: &str) -> String {
    let digest = crate::request::sign(thought);
    format!("{SEAL}{digest}+/{}==", hex::encode(thought))
}

/// The beginning of the digest in a sealed thought that this provider made.
fn unseal(sealed: &str) -> Option<&str> {
    let (digest, thought) = sealed.strip_prefix(SEAL)?.split_once("+/")?;
    let thought = hex::decode(thought.strip_suffix("==")?).ok()?;
    let thought = String::from_utf8(thought).ok()?;
    (crate::request::sign(&thought) == digest).then(|| mark(digest))
}

/// The part of a thought's digest that is in the ids of the calls that it led to.
fn mark(digest: &str) -> &str {
    &digest[..8]
}

/// The id of a call, with the thought before it.
pub(crate) fn call_id(number: u64, index: usize, thought: Option<&str>) -> String {
    let digest = thought.map(crate::request::sign);
    let mark = digest
        .as_deref()
        .map_or_else(String::new, |digest| format!("r{}", mark(digest)));
    format!("call_{number:012}{index:04}{mark}")
}

pub(crate) fn parse(body: &Value) -> Result<Request, ApiError> {
    let body = object("body", body)?;
    let model = string("model", body.get("model"))?;
    let number = |field: &str| body.get(field).and_then(Value::as_u64);
    if number("max_output_tokens").is_some_and(|tokens| tokens < 16) {
        return Err(ApiError::invalid(
            "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16.",
        ));
    }
    if body.get("previous_response_id").is_some_and(|id| !id.is_null()) {
        return Err(
            ApiError::invalid("Previous response not found: nothing is stored here.")
                .with_code("previous_response_not_found"),
        );
    }
    let included = array("include", body.get("include"))?;
    let mut reader = Reader {
        request: Request {
            model: model.to_owned(),
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            caching: Caching::Implicit {
                writes: bills_writes(model),
            },
            wants_thoughts: included.iter().any(|field| field == "reasoning.encrypted_content"),
            ..Request::default()
        },
        ..Reader::default()
    };
    reader.tools(array("tools", body.get("tools"))?, None)?;
    if let Some(instructions) = body.get("instructions").and_then(Value::as_str) {
        reader.says(instructions);
        reader.segment("instructions", &Value::from(instructions));
    }
    match body.get("input") {
        Some(Value::String(text)) if !text.is_empty() => {
            reader.says(text);
            reader.segment("input", &Value::from(text.as_str()));
        }
        input => reader.items(array("input", input)?)?,
    }
    Ok(reader.request)
}

/// Models from here on bill what is written to the cache.
fn bills_writes(model: &str) -> bool {
    ["gpt-5.6", "gpt-6"].iter().any(|prefix| model.starts_with(prefix))
}

#[derive(Debug, Default)]
struct Reader {
    request: Request,
    /// Calls so far, and whether they are of a custom tool.
    calls: HashSet<(String, bool)>,
    unanswered: Vec<(String, bool)>,
    /// Marks of the thoughts of the present answer.
    thoughts: HashSet<String>,
    /// The id of a thought that nothing followed yet.
    loose: Option<String>,
    /// The last item was the model's.
    in_answer: bool,
}

impl Reader {
    fn tools(&mut self, tools: &[Value], namespace: Option<&str>) -> Result<(), ApiError> {
        for (index, tool) in tools.iter().enumerate() {
            let at = format!("tools[{index}]");
            let tool = object(&at, tool)?;
            let kind = string(&format!("{at}.type"), tool.get("type"))?;
            if kind == "namespace" {
                let name = string(&format!("{at}.name"), tool.get("name"))?;
                self.tools(array(&at, tool.get("tools"))?, Some(name))?;
                continue;
            }
            if matches!(kind, "function" | "custom") {
                let name = string(&format!("{at}.name"), tool.get("name"))?;
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if !name.chars().all(plain) {
                    return Err(ApiError::invalid(format!(
                        "Invalid '{at}.name': string does not match pattern. Expected a string that matches the \
                         pattern '^[a-zA-Z0-9_-]+$'."
                    )));
                }
                if kind == "function"
                    && !tool
                        .get("parameters")
                        .is_none_or(|schema| schema.is_object() || schema.is_null())
                {
                    return Err(ApiError::invalid(format!(
                        "Invalid '{at}.parameters': expected an object."
                    )));
                }
                self.request.tools.insert(name.to_owned());
                if let Some(namespace) = namespace {
                    self.request.namespaces.insert(name.to_owned(), namespace.to_owned());
                }
            }
            if namespace.is_none() {
                self.segment("tool", &Value::Object(tool.clone()));
            }
        }
        Ok(())
    }

    fn items(&mut self, items: &[Value]) -> Result<(), ApiError> {
        if items.is_empty() {
            return Err(ApiError::invalid(
                "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation_id' must be provided.",
            ));
        }
        for (index, item) in items.iter().enumerate() {
            let at = format!("input[{index}]");
            let content = object(&at, item)?;
            // Messages need not say that they are.
            let kind = content.get("type").and_then(Value::as_str).unwrap_or("message");
            self.item(&at, kind, content)?;
            self.segment("input", item);
        }
        self.answered()?;
        if self.in_answer {
            self.end_of_answer()?;
        }
        Ok(())
    }

    fn item(&mut self, at: &str, kind: &str, item: &Map<String, Value>) -> Result<(), ApiError> {
        match kind {
            "message" => match string(&format!("{at}.role"), item.get("role"))? {
                "assistant" => {
                    self.of_model();
                    self.loose = None;
                    Ok(())
                }
                "user" | "system" | "developer" => {
                    self.answered()?;
                    self.of_user()?;
                    self.message(at, item)
                }
                role => Err(ApiError::invalid(format!("Invalid value: '{role}' at {at}.role."))),
            },
            "additional_tools" => self.tools(array(at, item.get("tools"))?, None),
            "reasoning" => self.reasoning(at, item),
            "function_call" | "custom_tool_call" => self.call(at, kind == "custom_tool_call", item),
            "function_call_output" | "custom_tool_call_output" => {
                self.output(at, kind == "custom_tool_call_output", item)
            }
            "item_reference" => {
                let id = string(&format!("{at}.id"), item.get("id"))?;
                Err(ApiError::new(404, "invalid_request_error", not_stored(id)))
            }
            // What a program asks of the answers from here on.
            "configuration_update" => Ok(()),
            // Calls that the provider carries out itself, and what else there may be.
            _ => {
                self.of_model();
                self.loose = None;
                Ok(())
            }
        }
    }

    fn message(&mut self, at: &str, item: &Map<String, Value>) -> Result<(), ApiError> {
        match item.get("content") {
            Some(Value::String(text)) => self.says(text),
            content => {
                for part in array(at, content)? {
                    let part = object(at, part)?;
                    match string(&format!("{at}.content.type"), part.get("type"))? {
                        "input_text" => self.says(part.get("text").and_then(Value::as_str).unwrap_or_default()),
                        "input_image" | "input_file" => {}
                        other => {
                            return Err(ApiError::invalid(format!(
                                "Invalid value: '{other}' at {at}.content. Supported values are: 'input_text', \
                                 'input_image', and 'input_file'."
                            )));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn reasoning(&mut self, at: &str, item: &Map<String, Value>) -> Result<(), ApiError> {
        self.of_model();
        array(&format!("{at}.summary"), item.get("summary"))?;
        let id = item.get("id").and_then(Value::as_str).unwrap_or("rs_?");
        let Some(sealed) = item.get("encrypted_content").and_then(Value::as_str) else {
            return Err(ApiError::new(404, "invalid_request_error", not_stored(id)));
        };
        let mark = unseal(sealed).ok_or_else(|| {
            ApiError::invalid(format!(
                "The encrypted content for item {id} could not be verified. Reason: Encrypted content could not be \
                 decrypted or parsed."
            ))
            .with_code("invalid_encrypted_content")
        })?;
        self.thoughts.insert(mark.to_owned());
        self.loose = Some(id.to_owned());
        Ok(())
    }

    fn call(&mut self, at: &str, custom: bool, item: &Map<String, Value>) -> Result<(), ApiError> {
        self.of_model();
        self.loose = None;
        let id = string(&format!("{at}.call_id"), item.get("call_id"))?.to_owned();
        string(&format!("{at}.name"), item.get("name"))?;
        let field = if custom { "input" } else { "arguments" };
        let Some(text) = item.get(field).and_then(Value::as_str) else {
            return Err(ApiError::invalid(format!(
                "Missing required parameter: '{at}.{field}'."
            )));
        };
        if !custom && serde_json::from_str::<Map<String, Value>>(text).is_err() {
            return Err(ApiError::invalid(format!(
                "Invalid '{at}.arguments': expected a JSON object."
            )));
        }
        let marked = id.strip_prefix("call_").and_then(|rest| rest.split_once('r'));
        if let Some((_, mark)) = marked.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
            && !self.thoughts.contains(mark)
        {
            return Err(ApiError::invalid(format!(
                "Item '{id}' of type 'function_call' was provided without its required 'reasoning' item."
            )));
        }
        if !self.calls.insert((id.clone(), custom)) {
            return Err(ApiError::invalid(format!("Duplicate item found with call_id {id}.")));
        }
        self.unanswered.push((id, custom));
        Ok(())
    }

    fn output(&mut self, at: &str, custom: bool, item: &Map<String, Value>) -> Result<(), ApiError> {
        self.of_user()?;
        let id = string(&format!("{at}.call_id"), item.get("call_id"))?;
        let Some(known) = self.unanswered.iter().position(|call| call.0 == id && call.1 == custom) else {
            return Err(ApiError::invalid(format!(
                "No tool call found for function call output with call_id {id}."
            )));
        };
        self.unanswered.swap_remove(known);
        match item.get("output") {
            Some(Value::String(_) | Value::Array(_)) => Ok(()),
            _ => Err(ApiError::invalid(format!("Missing required parameter: '{at}.output'."))),
        }
    }

    /// All calls must have their outputs by now.
    fn answered(&self) -> Result<(), ApiError> {
        match self.unanswered.first() {
            None => Ok(()),
            Some((id, _)) => Err(ApiError::invalid(format!(
                "No tool output found for function call {id}."
            ))),
        }
    }

    fn of_model(&mut self) {
        if !self.in_answer {
            self.request.turn += 1;
            self.thoughts.clear();
        }
        self.in_answer = true;
    }

    fn of_user(&mut self) -> Result<(), ApiError> {
        if self.in_answer {
            self.end_of_answer()?;
        }
        self.in_answer = false;
        Ok(())
    }

    fn end_of_answer(&mut self) -> Result<(), ApiError> {
        match self.loose.take() {
            None => Ok(()),
            Some(id) => Err(ApiError::invalid(format!(
                "Item '{id}' of type 'reasoning' was provided without its required following item."
            ))),
        }
    }

    fn says(&mut self, text: &str) {
        self.request.prompt.push_str(text);
        self.request.prompt.push('\n');
    }

    fn segment(&mut self, section: &str, content: &Value) {
        self.request.segments.push(Segment {
            content: format!("{section} {content}"),
            breakpoint: None,
        });
    }
}

fn not_stored(id: &str) -> String {
    format!("Item with id '{id}' not found. Items are not persisted when `store` is set to false.")
}

#[cfg(test)]
mod tests;
