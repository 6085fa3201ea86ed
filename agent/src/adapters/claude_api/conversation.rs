//! What is sent: tools, system, messages, in that order, with cache breakpoints.
//!
//! What all sessions of a task share comes first and is the same bytes in each: tool
//! definitions, then the system text, then the base. A breakpoint ends it. Two more are at
//! the last two messages of the user, so that each call reads what the one before wrote.

use kage_core::prompt::Prompt;
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::stream::{Block, Message};
use crate::adapters::tools;

/// What the model is told before anything else. The same for every session, so it names
/// no path, model or session.
const SYSTEM: &str = "You are a software engineer working alone on one task in a git worktree. \
Use the tools to look at the code, change it and check your change; all paths are relative to the root of the worktree. \
Nobody can answer questions, so decide sensibly yourself. Change only what the task needs, do not commit, \
and do not weaken tests to make them pass. When the task is done, say in one or two sentences what you did.";

/// How many messages of the user end with a breakpoint.
const RECENT: usize = 2;
/// What a model hears that had ended its turn.
const GO_ON: &str = "The session was interrupted here. Go on with the task.";

/// What a tool gave.
#[derive(Debug, Clone)]
pub(super) struct ToolAnswer {
    pub(super) id: String,
    pub(super) text: String,
    pub(super) is_error: bool,
}

#[derive(Debug, Clone)]
enum Sent {
    User(Vec<Value>),
    /// The model's own blocks, as they came.
    Assistant(Vec<Block>),
}

/// A conversation as it will be sent.
#[derive(Debug, Clone)]
pub(super) struct Conversation {
    model: String,
    max_tokens: u32,
    tools: Box<RawValue>,
    system: Vec<Value>,
    messages: Vec<Sent>,
    /// Lines of the user's that the transcript does not have yet.
    unwritten: Vec<String>,
}

/// Why what was said cannot be gone on from.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// A line is no message.
    #[error("line {line} is no message: {source}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It does not begin with the prompt.
    #[error("it does not begin with a message of the user")]
    Beginning,
}

/// A message as the transcript has it.
#[derive(Deserialize)]
struct Line<'a> {
    role: Role,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

/// The answer to a tool call of which nobody knows how it went.
fn interrupted(id: String) -> ToolAnswer {
    ToolAnswer {
        id,
        text: "interrupted, outcome unknown".to_owned(),
        is_error: true,
    }
}

fn breakpoint(block: &mut Value) {
    block["cache_control"] = json!({"type": "ephemeral"});
}

impl Conversation {
    /// A conversation that begins with this prompt.
    pub(super) fn new(model: String, max_tokens: u32, prompt: &Prompt) -> Self {
        let mut system = vec![json!({"type": "text", "text": SYSTEM})];
        if !prompt.shared.trim().is_empty() {
            system.push(json!({"type": "text", "text": prompt.shared}));
        }
        if let Some(last) = system.last_mut() {
            breakpoint(last);
        }
        let mut conversation = Self {
            model,
            max_tokens,
            tools: to_raw_value(&tools::definitions()).expect("JSON values always serialise"),
            system,
            messages: Vec::new(),
            unwritten: Vec::new(),
        };
        conversation.user(&prompt.own);
        conversation
    }

    /// The conversation that these lines of a transcript are, to be gone on with: a tool
    /// that was called and not answered gets an answer, and the model is told `note`.
    ///
    /// # Errors
    /// When the lines are no conversation.
    pub(super) fn go_on(mut self, said: &[u8], note: &str) -> Result<Self, Unreadable> {
        self.messages.clear();
        self.unwritten.clear();
        let mut paused = false;
        let lines = said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for (at, line) in lines.enumerate() {
            let unreadable = |source| Unreadable::Line { line: at + 1, source };
            let line: Line<'_> = serde_json::from_slice(line).map_err(unreadable)?;
            match line.role {
                Role::User => {
                    let blocks = serde_json::from_str(line.content.get()).map_err(unreadable)?;
                    self.append(blocks);
                }
                Role::Assistant => {
                    let blocks = serde_json::from_str::<Vec<Block>>(line.content.get()).map_err(unreadable)?;
                    self.said(blocks);
                    paused = line.stop_reason.as_deref() == Some("pause_turn");
                }
            }
        }
        if !matches!(self.messages.first(), Some(Sent::User(_))) {
            return Err(Unreadable::Beginning);
        }
        if let Some(Sent::Assistant(blocks)) = self.messages.last() {
            let open: Vec<ToolAnswer> = blocks.iter().filter_map(Block::tool_call_id).map(interrupted).collect();
            if !open.is_empty() {
                self.tool_results(open);
            } else if note.is_empty() && !paused {
                self.user(GO_ON);
            }
        }
        if !note.is_empty() {
            self.user(note);
        }
        Ok(self)
    }

    /// Appends what the model said, as far as the provider takes it back.
    pub(super) fn assistant(&mut self, message: &Message) {
        self.said(message.blocks.clone());
    }

    fn said(&mut self, mut blocks: Vec<Block>) {
        blocks.retain(Block::can_be_sent);
        if !blocks.is_empty() {
            self.messages.push(Sent::Assistant(blocks));
        }
    }

    /// Appends the answers to the model's tool calls.
    pub(super) fn tool_results(&mut self, answers: Vec<ToolAnswer>) {
        let block = |answer: ToolAnswer| {
            let mut block = json!({
                "type": "tool_result",
                "tool_use_id": answer.id,
                // The provider refuses text without a word.
                "content": if answer.text.trim().is_empty() { "[empty]" } else { &answer.text },
            });
            if answer.is_error {
                block["is_error"] = Value::Bool(true);
            }
            block
        };
        self.tell(answers.into_iter().map(block).collect());
    }

    /// Appends words of the user.
    pub(super) fn user(&mut self, text: &str) {
        self.tell(vec![json!({"type": "text", "text": text})]);
    }

    /// Appends blocks of the user, which the transcript does not have.
    fn tell(&mut self, blocks: Vec<Value>) {
        let line = json!({"role": "user", "content": blocks});
        self.unwritten.push(line.to_string());
        self.append(blocks);
    }

    fn append(&mut self, mut blocks: Vec<Value>) {
        let blank = |block: &Value| block["text"].as_str().is_some_and(|text| text.trim().is_empty());
        blocks.retain(|block| !blank(block));
        if blocks.is_empty() {
            return;
        }
        match self.messages.last_mut() {
            // Roles alternate.
            Some(Sent::User(before)) => before.extend(blocks),
            Some(Sent::Assistant(_)) | None => self.messages.push(Sent::User(blocks)),
        }
    }

    /// Lines for the transcript: messages of the user that it does not have yet.
    pub(super) fn unwritten(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unwritten)
    }

    /// The body of the next request.
    pub(super) fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            model: &'a str,
            max_tokens: u32,
            stream: bool,
            tools: &'a RawValue,
            system: &'a [Value],
            messages: Messages<'a>,
        }
        let body = Body {
            model: &self.model,
            max_tokens: self.max_tokens,
            stream: true,
            tools: &self.tools,
            system: &self.system,
            messages: Messages(&self.messages),
        };
        serde_json::to_vec(&body).expect("JSON values and raw JSON always serialise")
    }
}

struct Messages<'a>(&'a [Sent]);

impl Serialize for Messages<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct One<'a, C: Serialize + ?Sized> {
            role: &'static str,
            content: &'a C,
        }
        let users = self.0.iter().filter(|message| matches!(message, Sent::User(_))).count();
        let mut user = 0;
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for message in self.0 {
            match message {
                Sent::User(blocks) => {
                    user += 1;
                    let mut blocks = blocks.clone();
                    if user + RECENT > users
                        && let Some(last) = blocks.last_mut()
                    {
                        breakpoint(last);
                    }
                    list.serialize_element(&One {
                        role: "user",
                        content: &blocks,
                    })?;
                }
                Sent::Assistant(blocks) => list.serialize_element(&One {
                    role: "assistant",
                    content: blocks,
                })?,
            }
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(own: &str) -> Prompt {
        Prompt {
            shared: "the base".to_owned(),
            own: own.to_owned(),
        }
    }

    fn answer(id: &str) -> ToolAnswer {
        ToolAnswer {
            id: id.to_owned(),
            text: "done".to_owned(),
            is_error: false,
        }
    }

    #[test]
    fn sessions_share_their_bytes_up_to_their_own_part() {
        let body = |own| String::from_utf8(Conversation::new("m".to_owned(), 10, &prompt(own)).body()).unwrap();
        let (one, two) = (body("first"), body("second"));
        let split = one.find("first").unwrap();
        assert_eq!(one[..split], two[..split]);
        assert!(one[..split].contains("the base"));
    }

    #[test]
    fn breakpoints_end_the_base_and_the_last_two_user_messages() {
        let mut conversation = Conversation::new("m".to_owned(), 10, &prompt("task"));
        for id in ["a", "b", "c"] {
            let called = format!(r#"[{{"type":"tool_use","id":"{id}"}}]"#);
            conversation.said(serde_json::from_str(&called).unwrap());
            conversation.tool_results(vec![answer(id), answer("last")]);
        }
        let body: Value = serde_json::from_slice(&conversation.body()).unwrap();
        let marked = |value: &Value| value.get("cache_control").is_some();
        assert_eq!(
            body["system"]
                .as_array()
                .unwrap()
                .iter()
                .map(marked)
                .collect::<Vec<_>>(),
            [false, true]
        );
        let messages = body["messages"].as_array().unwrap();
        let marks: Vec<Vec<bool>> = messages
            .iter()
            .filter(|message| message["role"] == "user")
            .map(|message| message["content"].as_array().unwrap().iter().map(marked).collect())
            .collect();
        assert_eq!(
            marks,
            [vec![false], vec![false, false], vec![false, true], vec![false, true]]
        );
    }

    #[test]
    fn nothing_blank_is_sent() {
        let mut conversation = Conversation::new("m".to_owned(), 10, &prompt("task"));
        let said = r#"[{"type":"text","text":"\n\n"},{"type":"tool_use","id":"a"}]"#;
        conversation.said(serde_json::from_str(said).unwrap());
        conversation.tool_results(vec![ToolAnswer {
            text: " \n".to_owned(),
            ..answer("a")
        }]);
        conversation.user(" \t");
        conversation.said(serde_json::from_str(r#"[{"type":"text","text":" "}]"#).unwrap());
        let body: Value = serde_json::from_slice(&conversation.body()).unwrap();
        let messages = body["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 3, "{messages:?}");
        assert_eq!(messages[1]["content"], json!([{"type": "tool_use", "id": "a"}]));
        assert_eq!(messages[2]["content"].as_array().unwrap().len(), 1);
        assert_eq!(messages[2]["content"][0]["content"], "[empty]");
    }

    #[test]
    fn the_transcript_gets_each_user_message_once() {
        let mut conversation = Conversation::new("m".to_owned(), 10, &prompt("task"));
        assert_eq!(conversation.unwritten().len(), 1);
        assert_eq!(conversation.unwritten().len(), 0);
        conversation.tool_results(vec![answer("a")]);
        let lines = conversation.unwritten();
        assert!(lines.len() == 1 && lines[0].contains("\"tool_use_id\":\"a\"") && !lines[0].contains("cache_control"));
    }
}
