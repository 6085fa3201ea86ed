//! A conversation, independent of the provider: user messages in our own form, model messages in
//! the provider's.
//!
//! It owns the order of messages, the lines of the transcript, and how a conversation is resumed.
//! The dialect writes it in the provider's form ([`super::wire`]).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::{Answer, Item, Stop};
use super::turn::{Told, ToolAnswer, Turn};
use super::wire::Wire;

/// The message for a model that had ended its turn.
const GO_ON: &str = "The session was interrupted here. Go on with the task.";

#[derive(Debug, Clone)]
pub(super) struct Conversation {
    wire: &'static Wire,
    turns: Vec<Turn>,
    /// The provider refused images.
    imageless: bool,
    /// User messages that are not in the transcript yet.
    unwritten: Vec<String>,
}

/// Why a transcript cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// A line that is not a message.
    #[error("line {line} is not a message: {source}")]
    Line {
        /// Counted from 1.
        line: usize,
        source: serde_json::Error,
    },
    /// It does not begin with the prompt.
    #[error("it does not begin with a message of the user")]
    Beginning,
    /// Another dialect wrote it.
    #[error("it is in the form of {theirs}, and this adapter's is {ours}")]
    Dialect { theirs: String, ours: &'static str },
}

/// The dialect of lines that do not name theirs: before there was another one, none did.
const FIRST_DIALECT: &str = "messages";

/// A message as the transcript has it.
#[derive(Deserialize)]
struct Line<'a> {
    role: Role,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(default)]
    stop_reason: Option<String>,
    /// The dialect, in lines of the user.
    #[serde(default)]
    dialect: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

/// The result of a tool call whose real result is unknown.
fn interrupted(id: String) -> ToolAnswer {
    ToolAnswer {
        id,
        text: "interrupted, outcome unknown".to_owned(),
        is_error: true,
        image: None,
    }
}

impl Conversation {
    /// A conversation that begins with this prompt.
    pub(super) fn new(wire: &'static Wire, prompt: &str) -> Self {
        let mut conversation = Self {
            wire,
            turns: Vec::new(),
            imageless: false,
            unwritten: Vec::new(),
        };
        conversation.user(prompt);
        conversation
    }

    /// Restores a conversation from the lines of a transcript. Calls without a result get one, and
    /// the model gets `note`.
    ///
    /// # Errors
    /// When the lines are no conversation.
    pub(super) fn resumed(wire: &'static Wire, said: &[u8], note: &str) -> Result<Self, Unreadable> {
        let mut conversation = Self {
            wire,
            turns: Vec::new(),
            imageless: false,
            unwritten: Vec::new(),
        };
        let mut paused = false;
        let lines = said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for (at, line) in lines.enumerate() {
            let unreadable = |source| Unreadable::Line { line: at + 1, source };
            let line: Line<'_> = serde_json::from_slice(line).map_err(unreadable)?;
            let content = line.content.get();
            match line.role {
                Role::User => {
                    let theirs = line.dialect.unwrap_or_else(|| FIRST_DIALECT.to_owned());
                    if theirs != wire.name {
                        let ours = wire.name;
                        return Err(Unreadable::Dialect { theirs, ours });
                    }
                    conversation.append(serde_json::from_str(content).map_err(unreadable)?);
                }
                Role::Assistant => {
                    conversation.said(serde_json::from_str(content).map_err(unreadable)?);
                    paused = line
                        .stop_reason
                        .is_some_and(|reason| (wire.stop)(&reason) == Stop::Paused);
                }
            }
        }
        if !matches!(conversation.turns.first(), Some(Turn::User(_))) {
            return Err(Unreadable::Beginning);
        }
        if let Some(Turn::Model(items)) = conversation.turns.last() {
            let open: Vec<ToolAnswer> = items.iter().filter_map(wire.call_id).map(interrupted).collect();
            if !open.is_empty() {
                conversation.tool_results(open);
            } else if note.is_empty() && !paused {
                conversation.user(GO_ON);
            }
        }
        if !note.is_empty() {
            conversation.user(note);
        }
        Ok(conversation)
    }

    /// The messages so far. The roles alternate.
    pub(super) fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Appends an answer of the model, without the parts that the provider refuses.
    pub(super) fn model(&mut self, answer: &Answer) {
        self.said(answer.items.clone());
    }

    fn said(&mut self, mut items: Vec<Item>) {
        items.retain(self.wire.can_be_sent);
        if !items.is_empty() {
            self.turns.push(Turn::Model(items));
        }
    }

    /// Appends the answers to the model's tool calls.
    pub(super) fn tool_results(&mut self, answers: Vec<ToolAnswer>) {
        let imageless = self.imageless;
        let told = |mut answer: ToolAnswer| {
            if imageless {
                answer.hide_image();
            }
            // Providers refuse empty text.
            if answer.text.trim().is_empty() {
                "[empty]".clone_into(&mut answer.text);
            }
            Told::ToolResult(answer)
        };
        self.tell(answers.into_iter().map(told).collect());
    }

    /// Takes all images out of the conversation, those of later tool calls too. Returns whether the
    /// provider was shown any.
    pub(super) fn hide_images(&mut self) -> bool {
        if !self.wire.shows_images {
            return false;
        }
        let mut some = false;
        for turn in &mut self.turns {
            let Turn::User(told) = turn else { continue };
            for told in told {
                if let Told::ToolResult(answer) = told {
                    some |= answer.hide_image();
                }
            }
        }
        self.imageless |= some;
        some
    }

    /// Appends text of the user.
    pub(super) fn user(&mut self, text: &str) {
        self.tell(vec![Told::Text { text: text.to_owned() }]);
    }

    /// Appends content that the transcript does not have.
    fn tell(&mut self, told: Vec<Told>) {
        #[derive(Serialize)]
        struct Line<'a> {
            role: &'a str,
            content: &'a [Told],
            #[serde(skip_serializing_if = "Option::is_none")]
            dialect: Option<&'a str>,
        }
        let line = Line {
            role: "user",
            content: &told,
            dialect: Some(self.wire.name).filter(|name| *name != FIRST_DIALECT),
        };
        let line = serde_json::to_string(&line).expect("texts always serialise");
        self.unwritten.push(line);
        self.append(told);
    }

    fn append(&mut self, mut told: Vec<Told>) {
        told.retain(|told| match told {
            Told::Text { text } => !text.trim().is_empty(),
            Told::ToolResult(_) => true,
        });
        if told.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            // Roles alternate.
            Some(Turn::User(before)) => before.extend(told),
            Some(Turn::Model(_)) | None => self.turns.push(Turn::User(told)),
        }
    }

    /// User messages that the transcript does not have yet, as lines.
    pub(super) fn unwritten(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unwritten)
    }
}

#[cfg(test)]
mod tests {
    use super::super::PROVIDERS;
    use super::*;

    #[test]
    fn the_transcript_gets_each_user_message_once() {
        for provider in PROVIDERS {
            let mut conversation = Conversation::new(provider.wire, "task");
            let dialect = match provider.wire.name {
                FIRST_DIALECT => String::new(),
                name => format!(r#","dialect":"{name}""#),
            };
            assert_eq!(
                conversation.unwritten(),
                [format!(
                    r#"{{"role":"user","content":[{{"type":"text","text":"task"}}]{dialect}}}"#
                )]
            );
            assert_eq!(conversation.unwritten(), Vec::<String>::new());
            conversation.tool_results(vec![ToolAnswer {
                id: "a".to_owned(),
                text: "done".to_owned(),
                is_error: true,
                image: None,
            }]);
            let answer = r#"{"type":"tool_result","tool_use_id":"a","content":"done","is_error":true}"#;
            assert_eq!(
                conversation.unwritten(),
                [format!(r#"{{"role":"user","content":[{answer}]{dialect}}}"#)]
            );
        }
    }

    #[test]
    fn a_conversation_is_gone_on_with_by_its_own_dialect_only() {
        for one in PROVIDERS {
            let said = Conversation::new(one.wire, "task").unwritten().join("\n");
            for other in PROVIDERS {
                let resumed = Conversation::resumed(other.wire, said.as_bytes(), "");
                if one.wire.name == other.wire.name {
                    assert_eq!(resumed.unwrap().turns().len(), 1);
                } else {
                    let error = resumed.unwrap_err().to_string();
                    assert!(
                        error.contains(one.wire.name) && error.contains(other.wire.name),
                        "{error}"
                    );
                }
            }
        }
        // As it was stored before lines named their dialect.
        let old = br#"{"role":"user","content":[{"type":"text","text":"task"}]}"#;
        assert!(Conversation::resumed(super::super::messages::CLAUDE.wire, old, "").is_ok());
    }
}
