//! Reads a request of Gemini's `generateContent` and enforces the documented rules of a conversation:
//! function calls are answered in the next content, as many as there were, and signatures of thoughts
//! come back unchanged on the parts that they came with. Fields of a request that are not known are
//! accepted. It does not know scripts, caches or HTTP.

pub(crate) mod reply;

use serde_json::{Map, Value};

use crate::request::{Caching, Endpoint, Request, Segment, array, object, sign, string};
use crate::script::ApiError;

/// The signature that stands for none, for calls that no model made.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

/// The signature of the part with a function call.
fn sign_call(name: &str, args: &Value) -> String {
    format!("Ec{}+/==", sign(&format!("{name} {args}")))
}

/// The signature of a text in an answer.
fn sign_text(number: u64) -> String {
    format!("Et{number:08}{}+/==", sign(&format!("text {number}")))
}

/// Models that want signatures back, not only take them.
fn needs_signatures(model: &str) -> bool {
    !model.starts_with("gemini-1") && !model.starts_with("gemini-2")
}

/// Reads a request to a path such as `/v1beta/models/MODEL:generateContent`.
pub(crate) fn parse(path: &str, body: &Value, endpoint: Endpoint) -> Result<Request, ApiError> {
    let call = path
        .split('?')
        .next()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or_default();
    let model = call.split(':').next().unwrap_or_default();
    let body = object("body", body)?;
    let counts = endpoint == Endpoint::GeminiCount;
    let body = match body.get("generateContentRequest") {
        Some(inner) if counts => object("generateContentRequest", inner)?,
        _ => body,
    };
    let thinks = body
        .get("generationConfig")
        .and_then(|config| config.get("thinkingConfig"));
    let mut reader = Reader {
        request: Request {
            model: model.to_owned(),
            stream: endpoint == Endpoint::Generate { stream: true },
            caching: Caching::Implicit { writes: false },
            wants_thoughts: thinks.is_some_and(|config| config.get("includeThoughts") == Some(&Value::from(true))),
            ..Request::default()
        },
        open: None,
        last: None,
    };
    for tools in array("tools", body.get("tools"))? {
        for tool in array("tools.functionDeclarations", tools.get("functionDeclarations"))? {
            let name = string("tools.functionDeclarations.name", tool.get("name"))?;
            if !reader.request.tools.insert(name.to_owned()) {
                return Err(ApiError::invalid(format!(
                    "Duplicate function declaration found: {name}"
                )));
            }
        }
        reader.segment("tools", tools);
    }
    if let Some(instruction) = body.get("systemInstruction").or_else(|| body.get("system_instruction")) {
        for part in array("systemInstruction.parts", instruction.get("parts"))? {
            reader.says(part.get("text").and_then(Value::as_str).unwrap_or_default());
            reader.segment("system", part);
        }
    }
    let contents = array("contents", body.get("contents"))?;
    if contents.is_empty() {
        return Err(ApiError::invalid(
            "* GenerateContentRequest.contents: contents is not specified",
        ));
    }
    // In a count any part of a conversation may stand alone.
    if counts {
        contents.iter().for_each(|content| reader.segment("content", content));
        return Ok(reader.request);
    }
    reader.contents(contents)?;
    Ok(reader.request)
}

/// A function call that the next content answers.
#[derive(Debug)]
struct OpenCall {
    name: String,
    id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Model,
}

#[derive(Debug)]
struct Reader {
    request: Request,
    /// The calls of the last content of the model.
    open: Option<Vec<OpenCall>>,
    last: Option<Role>,
}

impl Reader {
    fn contents(&mut self, contents: &[Value]) -> Result<(), ApiError> {
        // The present turn begins with the last words of the user.
        let is_words = |content: &Value| {
            let parts = content.get("parts").and_then(Value::as_array);
            role(content) == Some(Role::User)
                && parts.is_some_and(|parts| parts.iter().all(|part| part.get("functionResponse").is_none()))
        };
        let present = contents.iter().rposition(is_words).unwrap_or(0);
        for (index, content) in contents.iter().enumerate() {
            let at = format!("contents[{index}]");
            let Some(role) = role(content) else {
                return Err(ApiError::invalid("Please use a valid role: user, model."));
            };
            let parts = array(&format!("{at}.parts"), content.get("parts"))?;
            if parts.is_empty() {
                return Err(ApiError::invalid(format!(
                    "* GenerateContentRequest.{at}.parts: contents.parts must not be empty."
                )));
            }
            match role {
                Role::User => self.user(&at, parts)?,
                Role::Model => self.model(&at, parts, index > present)?,
            }
            self.last = Some(role);
            self.segment("content", content);
        }
        if self.last == Some(Role::Model) {
            return Err(ApiError::invalid(
                "Please ensure that the conversation ends with a user role or a function response.",
            ));
        }
        Ok(())
    }

    fn user(&mut self, at: &str, parts: &[Value]) -> Result<(), ApiError> {
        let mut open = self.open.take().unwrap_or_default();
        for part in parts {
            let part = object(at, part)?;
            if let Some(text) = part.get("text").and_then(Value::as_str) {
                self.says(text);
            } else if let Some(answer) = part.get("functionResponse") {
                let name = string(&format!("{at}.functionResponse.name"), answer.get("name"))?;
                object(
                    &format!("{at}.functionResponse.response"),
                    answer.get("response").unwrap_or(&Value::Null),
                )?;
                let id = answer.get("id").and_then(Value::as_str);
                let by_id = open
                    .iter()
                    .position(|call| call.id.is_some() && call.id.as_deref() == id);
                let found = by_id.or_else(|| open.iter().position(|call| call.name == name));
                let Some(found) = found else {
                    return Err(ApiError::invalid(counts_differ()));
                };
                open.remove(found);
            } else {
                one_of(at, part, &["inlineData", "inline_data", "fileData", "file_data"])?;
            }
        }
        if open.is_empty() {
            Ok(())
        } else {
            Err(ApiError::invalid(counts_differ()))
        }
    }

    fn model(&mut self, at: &str, parts: &[Value], present: bool) -> Result<(), ApiError> {
        if self.last != Some(Role::Model) {
            self.request.turn += 1;
        }
        let mut calls = Vec::new();
        for part in parts {
            let part = object(at, part)?;
            let signature = part.get("thoughtSignature").and_then(Value::as_str);
            let signed = |genuine: bool| match signature {
                Some(_) if !genuine => Err(ApiError::invalid("Corrupted thought signature.")),
                Some(_) | None => Ok(()),
            };
            if let Some(call) = part.get("functionCall") {
                let name = string(&format!("{at}.functionCall.name"), call.get("name"))?;
                let args = call.get("args").cloned().unwrap_or_else(|| Value::Object(Map::new()));
                let expected = sign_call(name, &args);
                signed(signature.is_some_and(|given| given == expected || given == NO_SIGNATURE))?;
                if calls.is_empty() && present && signature.is_none() && needs_signatures(&self.request.model) {
                    return Err(ApiError::invalid(
                        "Function call is missing a thought_signature in functionCall parts. This is required for \
                         tools to work correctly, and missing thought_signature may lead to degraded model \
                         performance.",
                    ));
                }
                let id = call.get("id").and_then(Value::as_str).map(str::to_owned);
                calls.push(OpenCall {
                    name: name.to_owned(),
                    id,
                });
            } else {
                one_of(
                    at,
                    part,
                    &["text", "inlineData", "executableCode", "codeExecutionResult"],
                )?;
                let number = signature.and_then(|given| given.strip_prefix("Et")?.get(..8)?.parse().ok());
                signed(number.is_some_and(|number| signature == Some(&sign_text(number))))?;
            }
        }
        if !calls.is_empty() && self.last != Some(Role::User) {
            return Err(ApiError::invalid(
                "Please ensure that function call turn comes immediately after a user turn or after a function \
                 response turn.",
            ));
        }
        self.open = Some(calls);
        Ok(())
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

fn role(content: &Value) -> Option<Role> {
    match content.get("role").and_then(Value::as_str) {
        None | Some("user" | "function") => Some(Role::User),
        Some("model") => Some(Role::Model),
        Some(_) => None,
    }
}

fn one_of(at: &str, part: &Map<String, Value>, fields: &[&str]) -> Result<(), ApiError> {
    if fields.iter().any(|field| part.contains_key(*field)) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "* GenerateContentRequest.{at}.parts.data: required oneof field 'data' must have one initialized field"
    )))
}

fn counts_differ() -> &'static str {
    "Please ensure that the number of function response parts is equal to the number of function call parts of the \
     function call turn."
}

#[cfg(test)]
mod tests;
