//! What every provider's request has, and the reader of the Messages API, which enforces the
//! provider's documented rules on the way: what parses here, the provider would take. It does not
//! know scripts, caches or HTTP.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::script::ApiError;

/// The endpoint a request came to; counting tokens needs no `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Messages,
    CountTokens,
    /// OpenAI's Responses API.
    Responses,
    /// Gemini's `generateContent`, or its `streamGenerateContent`.
    Generate {
        stream: bool,
    },
    /// Gemini's `countTokens`.
    GeminiCount,
    /// Chat completions.
    Chat,
    /// Ollama's own chat.
    Ollama,
}

/// The room that a prompt has, and what becomes of one that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) tokens: u64,
    /// False: it is refused.
    pub(crate) cuts: bool,
}

/// How long a cache entry lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheTtl {
    FiveMinutes,
    OneHour,
}

/// A piece of the prompt in the order in which the model reads it: tools, system, messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) content: String,
    pub(crate) breakpoint: Option<CacheTtl>,
}

/// How a provider caches prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Prefixes that end with a breakpoint.
    #[default]
    Breakpoints,
    /// Every prefix that is long enough.
    Implicit {
        /// Tokens written are a class of their own in the bill.
        writes: bool,
    },
}

/// A request that keeps the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// How many answers of the model it holds.
    pub(crate) turn: usize,
    /// The text of the system prompt and of all user messages.
    pub(crate) prompt: String,
    pub(crate) tools: HashSet<String>,
    /// The namespaces of tools that have one.
    pub(crate) namespaces: HashMap<String, String>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) caching: Caching,
    /// Whether the caller wants what the model thought: its summary, or its sealed form.
    pub(crate) wants_thoughts: bool,
    /// Whether a stream of chat completions ends with counts of tokens.
    pub(crate) wants_counts: bool,
    /// Tokens from which on the conversation is made shorter first.
    pub(crate) compact_at: Option<u64>,
    /// How many segments stay before a summary: tools and the system prompt.
    pub(crate) head: usize,
    /// `None`: what the model has.
    pub(crate) room: Option<Room>,
}

const MAX_BREAKPOINTS: usize = 4;

const FIELDS: [&str; 21] = [
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "max_tokens",
    "mcp_servers",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_p",
];

/// The signature of a thinking block, by which it is known again.
pub(crate) fn sign(thinking: &str) -> String {
    hex::encode(Sha256::digest(thinking.as_bytes()))
}

pub(crate) fn parse(body: &Value, endpoint: Endpoint) -> Result<Request, ApiError> {
    let body = object("body", body)?;
    if let Some(unknown) = body.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(ApiError::invalid(format!("{unknown}: Extra inputs are not permitted")));
    }
    let model = string("model", body.get("model"))?;
    if endpoint == Endpoint::Messages && body.get("max_tokens").and_then(Value::as_u64).unwrap_or(0) == 0 {
        return Err(ApiError::invalid("max_tokens: Field required, greater than 0"));
    }
    let mut reader = Reader::default();
    for (index, tool) in array("tools", body.get("tools"))?.iter().enumerate() {
        reader.tool(index, object("tools", tool)?)?;
    }
    for block in blocks("system", body.get("system"))? {
        reader.system(&block)?;
    }
    reader.head = reader.segments.len();
    reader.messages(array("messages", body.get("messages"))?)?;
    // The automatic breakpoint: on the last block.
    if let Some(ttl) = cache_control("cache_control", body)?
        && let Some(last) = reader.segments.last_mut()
    {
        last.breakpoint = Some(ttl);
    }
    check_breakpoints(&reader.segments)?;
    Ok(Request {
        model: model.to_owned(),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
        turn: reader.turn,
        prompt: reader.prompt,
        tools: reader.tools,
        compact_at: compact_at(body, model)?,
        head: reader.head,
        segments: reader.segments,
        wants_thoughts: true,
        ..Request::default()
    })
}

/// Models that the page on compaction names.
const COMPACTED: [&str; 3] = ["claude-opus-4-7", "claude-opus-4-6", "claude-sonnet-4-6"];
const USUAL_TRIGGER: u64 = 150_000;
const LEAST_TRIGGER: u64 = 50_000;

/// Where the request has its conversation made shorter.
fn compact_at(body: &Map<String, Value>, model: &str) -> Result<Option<u64>, ApiError> {
    let edits = body
        .get("context_management")
        .and_then(|management| management.get("edits"));
    let edits = array("context_management.edits", edits)?;
    let Some(edit) = edits.iter().find(|edit| edit["type"] == "compact_20260112") else {
        return Ok(None);
    };
    if !COMPACTED.contains(&model) {
        return Err(ApiError::invalid(format!(
            "context_management.edits: compaction is not supported on {model}"
        )));
    }
    let Some(trigger) = edit.get("trigger") else {
        return Ok(Some(USUAL_TRIGGER));
    };
    match (trigger["type"].as_str(), trigger["value"].as_u64()) {
        (Some("input_tokens"), Some(value)) if value >= LEAST_TRIGGER => Ok(Some(value)),
        _ => Err(ApiError::invalid(format!(
            "context_management.edits.trigger: must be input_tokens, {LEAST_TRIGGER} at least"
        ))),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
}

#[derive(Debug, Default)]
struct Reader {
    segments: Vec<Segment>,
    prompt: String,
    tools: HashSet<String>,
    turn: usize,
    tool_calls: HashSet<String>,
    /// Calls of the last assistant message, not answered yet.
    unanswered: Vec<String>,
    /// How many segments come before the messages.
    head: usize,
}

impl Reader {
    fn tool(&mut self, index: usize, tool: &Map<String, Value>) -> Result<(), ApiError> {
        let name = string("tools.name", tool.get("name"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.len() > 128 || !name.chars().all(plain) {
            return Err(ApiError::invalid(format!(
                "tools.{index}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"
            )));
        }
        let custom = tool
            .get("type")
            .is_none_or(|kind| kind == "custom" || kind == &Value::Null);
        if custom && tool.get("input_schema").and_then(|schema| schema.get("type")) != Some(&Value::from("object")) {
            return Err(ApiError::invalid(format!(
                "tools.{index}.input_schema.type: Field required, must be \"object\""
            )));
        }
        if !self.tools.insert(name.to_owned()) {
            return Err(ApiError::invalid("tools: Tool names must be unique"));
        }
        self.segment("tool", tool)
    }

    fn system(&mut self, block: &Map<String, Value>) -> Result<(), ApiError> {
        self.prompt_text("system", block)?;
        self.segment("system", block)
    }

    fn messages(&mut self, messages: &[Value]) -> Result<(), ApiError> {
        if messages.is_empty() {
            return Err(ApiError::invalid("messages: at least one message is required"));
        }
        let mut previous = None;
        for (index, message) in messages.iter().enumerate() {
            let at = format!("messages.{index}");
            let message = object(&at, message)?;
            let blocks = blocks(&at, message.get("content"))?;
            if blocks.is_empty() {
                return Err(ApiError::invalid(format!("{at}: content must not be empty")));
            }
            let role = match string(&format!("{at}.role"), message.get("role"))? {
                "user" => Role::User,
                "assistant" => Role::Assistant,
                // A note to the model between turns. It takes no turn of its own.
                "system" if previous == Some(Role::User) => {
                    for block in blocks {
                        self.system(&block)?;
                    }
                    continue;
                }
                other => return Err(ApiError::invalid(format!("{at}.role: unexpected \"{other}\" here"))),
            };
            if previous == Some(role) || (previous.is_none() && role == Role::Assistant) {
                return Err(ApiError::invalid(format!(
                    "{at}: roles must alternate between \"user\" and \"assistant\", and \"user\" is first"
                )));
            }
            match role {
                Role::User => self.user(&at, &blocks)?,
                Role::Assistant => self.assistant(&at, &blocks)?,
            }
            previous = Some(role);
        }
        if previous == Some(Role::Assistant) {
            self.all_answered("the end")?;
            return Err(ApiError::invalid(
                "messages: the conversation must end with a user message",
            ));
        }
        Ok(())
    }

    fn user(&mut self, at: &str, blocks: &[Map<String, Value>]) -> Result<(), ApiError> {
        let mut results_over = false;
        for block in blocks {
            let kind = string(&format!("{at}.content.type"), block.get("type"))?;
            match kind {
                "tool_result" if results_over => {
                    return Err(ApiError::invalid(format!(
                        "{at}: tool_result blocks must come before all other content"
                    )));
                }
                "tool_result" => {
                    let id = string(&format!("{at}.tool_use_id"), block.get("tool_use_id"))?;
                    let Some(position) = self.unanswered.iter().position(|open| open == id) else {
                        return Err(ApiError::invalid(format!(
                            "{at}: unexpected tool_use_id found in tool_result blocks: {id}. Each tool_result block \
                             must have a corresponding tool_use block in the previous message."
                        )));
                    };
                    self.unanswered.remove(position);
                }
                "text" => {
                    results_over = true;
                    self.prompt_text(at, block)?;
                }
                "image" | "document" | "search_result" => results_over = true,
                other => {
                    return Err(ApiError::invalid(format!(
                        "{at}: block of type \"{other}\" in a user message"
                    )));
                }
            }
            self.segment("user", block)?;
        }
        self.all_answered(at)
    }

    fn assistant(&mut self, at: &str, blocks: &[Map<String, Value>]) -> Result<(), ApiError> {
        for block in blocks {
            match string(&format!("{at}.content.type"), block.get("type"))? {
                "text" => {
                    string(&format!("{at}.text"), block.get("text"))?;
                }
                "tool_use" => {
                    let id = string(&format!("{at}.id"), block.get("id"))?;
                    string(&format!("{at}.name"), block.get("name"))?;
                    object(&format!("{at}.input"), block.get("input").unwrap_or(&Value::Null))?;
                    if !self.tool_calls.insert(id.to_owned()) {
                        return Err(ApiError::invalid(format!("{at}: tool_use ids must be unique: {id}")));
                    }
                    self.unanswered.push(id.to_owned());
                }
                "thinking" => {
                    let thinking = string(&format!("{at}.thinking"), block.get("thinking"))?;
                    if block.get("signature").and_then(Value::as_str) != Some(&sign(thinking)) {
                        return Err(ApiError::invalid(format!("{at}: Invalid signature in thinking block")));
                    }
                }
                "redacted_thinking" => {}
                // What is before a summary is not read; one that failed changes nothing.
                "compaction" if block.get("content") == Some(&Value::Null) => continue,
                "compaction" => {
                    string(&format!("{at}.content"), block.get("content"))?;
                    self.segments.truncate(self.head);
                }
                other => {
                    return Err(ApiError::invalid(format!(
                        "{at}: block of type \"{other}\" in an assistant message"
                    )));
                }
            }
            self.segment("assistant", block)?;
        }
        self.turn += 1;
        Ok(())
    }

    fn all_answered(&self, at: &str) -> Result<(), ApiError> {
        if self.unanswered.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "{at}: tool_use ids were found without tool_result blocks immediately after: {}. Each tool_use block \
             must have a corresponding tool_result block in the next message.",
            self.unanswered.join(", ")
        )))
    }

    fn prompt_text(&mut self, at: &str, block: &Map<String, Value>) -> Result<(), ApiError> {
        let text = string(&format!("{at}.text"), block.get("text"))?;
        self.prompt.push_str(text);
        self.prompt.push('\n');
        Ok(())
    }

    fn segment(&mut self, section: &str, block: &Map<String, Value>) -> Result<(), ApiError> {
        let breakpoint = cache_control(section, block)?;
        let mut content = block.clone();
        content.remove("cache_control");
        self.segments.push(Segment {
            content: format!("{section} {}", Value::Object(content)),
            breakpoint,
        });
        Ok(())
    }
}

fn check_breakpoints(segments: &[Segment]) -> Result<(), ApiError> {
    let breakpoints: Vec<CacheTtl> = segments.iter().filter_map(|segment| segment.breakpoint).collect();
    if breakpoints.len() > MAX_BREAKPOINTS {
        return Err(ApiError::invalid(format!(
            "A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {}.",
            breakpoints.len()
        )));
    }
    if breakpoints
        .windows(2)
        .any(|pair| pair == [CacheTtl::FiveMinutes, CacheTtl::OneHour])
    {
        return Err(ApiError::invalid(
            "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block",
        ));
    }
    Ok(())
}

fn cache_control(at: &str, block: &Map<String, Value>) -> Result<Option<CacheTtl>, ApiError> {
    let Some(control) = block.get("cache_control").filter(|control| !control.is_null()) else {
        return Ok(None);
    };
    if control.get("type") != Some(&Value::from("ephemeral")) {
        return Err(ApiError::invalid(format!(
            "{at}.cache_control.type: must be \"ephemeral\""
        )));
    }
    match control.get("ttl").map(Value::as_str) {
        None | Some(Some("5m")) => Ok(Some(CacheTtl::FiveMinutes)),
        Some(Some("1h")) => Ok(Some(CacheTtl::OneHour)),
        Some(_) => Err(ApiError::invalid(format!(
            "{at}.cache_control.ttl: must be \"5m\" or \"1h\""
        ))),
    }
}

/// Content as blocks: a string is one text block.
fn blocks(at: &str, content: Option<&Value>) -> Result<Vec<Map<String, Value>>, ApiError> {
    match content {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => {
            let mut block = Map::new();
            block.insert("type".to_owned(), Value::from("text"));
            block.insert("text".to_owned(), Value::from(text.as_str()));
            Ok(vec![block])
        }
        other => array(at, other)?
            .iter()
            .map(|block| object(at, block).cloned())
            .collect(),
    }
}

pub(crate) fn object<'a>(at: &str, value: &'a Value) -> Result<&'a Map<String, Value>, ApiError> {
    value
        .as_object()
        .ok_or_else(|| ApiError::invalid(format!("{at}: Input should be an object")))
}

pub(crate) fn array<'a>(at: &str, value: Option<&'a Value>) -> Result<&'a [Value], ApiError> {
    match value {
        None => Ok(&[]),
        Some(value) => value
            .as_array()
            .map(Vec::as_slice)
            .ok_or_else(|| ApiError::invalid(format!("{at}: Input should be a list"))),
    }
}

pub(crate) fn string<'a>(at: &str, value: Option<&'a Value>) -> Result<&'a str, ApiError> {
    match value.and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(ApiError::invalid(format!("{at}: must be non-empty"))),
        None => Err(ApiError::invalid(format!("{at}: Field required, a string"))),
    }
}

#[cfg(test)]
mod tests;
