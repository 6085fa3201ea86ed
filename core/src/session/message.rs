//! What people said to a session after its task began, in order, and what became of each: it waits for
//! the next attempt, an attempt has it, a result follows it, or it was taken back. Texts are kept for
//! conversations that begin anew; `instruction` says which of them a model is told.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The longest message, in bytes: an instruction; longer texts belong into the task or a file of it.
pub const MAX_MESSAGE_BYTES: usize = 32 << 10;
/// The most messages that wait for one attempt.
pub const MAX_WAITING: usize = 16;
/// How many messages a session remembers.
pub const MAX_MESSAGES: usize = 32;
/// The texts that a session keeps, in bytes: sessions are written often.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// How much of a message a report shows, in bytes.
const MAX_SHOWN: usize = 100;

/// Why a message is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// It says nothing.
    #[error("is empty")]
    Empty,
    /// It is longer than an instruction.
    #[error("has {0} bytes; at most {MAX_MESSAGE_BYTES} are taken: put a long text into a file of the repository")]
    TooLong(usize),
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MessageState {
    /// The next attempt gets it.
    Waiting,
    /// A running attempt was told, and no checkpoint has that in its conversation yet: an attempt that goes
    /// on from one is told again.
    Told {
        /// Number of the attempt.
        attempt: u32,
    },
    /// An attempt got it, and has no result yet.
    Given {
        /// Number of the attempt.
        attempt: u32,
        /// Number of the checkpoint that it began from; 0: the base.
        from: u32,
    },
    /// A result came from an attempt that had it.
    Followed {
        /// Number of the attempt that first got it.
        attempt: u32,
        /// Number of the checkpoint that it began from; 0: the base.
        from: u32,
    },
    /// The session was sent back to a checkpoint before it.
    TakenBack,
}

/// What a person said to a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMessage {
    /// Its number in the session, from 1.
    pub number: u32,
    /// The words, as they were sent.
    pub text: String,
    /// The caller that sent it, as the coordinator knew it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What became of it.
    pub state: MessageState,
}

impl SessionMessage {
    /// One line for people: "message 2 from owner: "and the docs" (attempt 3 followed it)".
    #[must_use]
    pub fn words(&self) -> String {
        let state = match self.state {
            MessageState::Waiting => "waits for the next attempt".to_owned(),
            MessageState::Told { attempt } => format!("attempt {attempt} was told while it worked"),
            MessageState::Given { attempt, .. } => format!("attempt {attempt} was told"),
            MessageState::Followed { attempt: 0, .. } => "its files follow it".to_owned(),
            MessageState::Followed { attempt, .. } => format!("attempt {attempt} followed it"),
            MessageState::TakenBack => "taken back with its files".to_owned(),
        };
        let first = self.text.trim().lines().next().unwrap_or_default();
        let end = first.floor_char_boundary(MAX_SHOWN);
        let more = if end < self.text.trim().len() { "…" } else { "" };
        format!(
            "message {} from {}: \"{}{more}\" ({state})",
            self.number,
            self.by,
            first.get(..end).unwrap_or(first)
        )
    }

    /// True until a result follows it.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        match self.state {
            MessageState::Waiting | MessageState::Told { .. } | MessageState::Given { .. } => true,
            MessageState::Followed { .. } | MessageState::TakenBack => false,
        }
    }
}

/// The messages of a session, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// How many were sent; the last one has this number.
    pub sent: u32,
    /// The last of them, and all that are not followed yet.
    pub kept: Vec<SessionMessage>,
    /// How often the session had reworked a result when a message last made it go on: what was asked
    /// for since may be reworked as often as the task.
    pub reworks_before: u32,
}

impl Messages {
    /// Those of a session to which nothing was said.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            sent: 0,
            kept: Vec::new(),
            reworks_before: 0,
        }
    }

    /// True when nothing was said.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.sent == 0
    }

    /// True when the next attempt has something to be told.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waiting().next().is_some()
    }

    /// Those that wait, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &SessionMessage> {
        self.kept
            .iter()
            .filter(|message| message.state == MessageState::Waiting)
    }

    /// True when no more may wait.
    #[must_use]
    pub(super) fn is_full_for(&self, text: &str) -> bool {
        let open = || self.kept.iter().filter(|message| message.is_open());
        let bytes: usize = open().map(|message| message.text.len()).sum();
        self.waiting().count() >= MAX_WAITING || open().count() >= MAX_MESSAGES || bytes + text.len() > MAX_TEXT_BYTES
    }

    /// One more waits. The oldest that are done with are forgotten, when it is too much.
    pub(super) fn add(&mut self, text: String, by: String, at: Timestamp) -> u32 {
        self.sent = self.sent.saturating_add(1);
        self.kept.push(SessionMessage {
            number: self.sent,
            text,
            by,
            at,
            state: MessageState::Waiting,
        });
        let too_much = |kept: &[SessionMessage]| {
            kept.len() > MAX_MESSAGES || kept.iter().map(|message| message.text.len()).sum::<usize>() > MAX_TEXT_BYTES
        };
        while too_much(&self.kept) {
            let Some(done) = self.kept.iter().position(|message| !message.is_open()) else {
                break;
            };
            self.kept.remove(done);
        }
        self.sent
    }

    /// An attempt that begins from a checkpoint gets all that waits.
    pub(crate) fn give(&mut self, attempt: u32, from: u32) {
        for message in &mut self.kept {
            if matches!(message.state, MessageState::Waiting | MessageState::Told { .. }) {
                message.state = MessageState::Given { attempt, from };
            }
        }
    }

    /// A running attempt was told a message. False when it does not wait: the attempt was told before.
    pub(super) fn tell(&mut self, number: u32, attempt: u32) -> bool {
        let waits = |message: &&mut SessionMessage| message.number == number && message.state == MessageState::Waiting;
        let Some(message) = self.kept.iter_mut().find(waits) else {
            return false;
        };
        message.state = MessageState::Told { attempt };
        true
    }

    /// A checkpoint has the conversation in which a running attempt was told the messages up to a number.
    pub(super) fn keep_told(&mut self, told: u32, checkpoint: u32) {
        for message in &mut self.kept {
            if let MessageState::Told { attempt } = message.state
                && message.number <= told
            {
                let from = checkpoint.saturating_sub(1);
                message.state = MessageState::Given { attempt, from };
            }
        }
    }

    /// A result came from an attempt that had what was given or told. `head` is the number of the checkpoint
    /// that the session stands on; 0: the base.
    pub(crate) fn follow(&mut self, head: u32) {
        for message in &mut self.kept {
            match message.state {
                MessageState::Given { attempt, from } => message.state = MessageState::Followed { attempt, from },
                MessageState::Told { attempt } => message.state = MessageState::Followed { attempt, from: head },
                MessageState::Waiting | MessageState::Followed { .. } | MessageState::TakenBack => {}
            }
        }
    }

    /// The session goes back to a checkpoint: the results that followed what was said later are not
    /// in its files.
    pub(super) fn take_back(&mut self, to: u32) {
        for message in &mut self.kept {
            if let MessageState::Followed { from, .. } = message.state
                && from >= to
            {
                message.state = MessageState::TakenBack;
            }
        }
    }

    /// The session goes back to a checkpoint to do its work once more: what its files no longer follow is
    /// told again.
    pub(crate) fn reopen(&mut self, to: u32) {
        for message in &mut self.kept {
            if let MessageState::Followed { from, .. } = message.state
                && from >= to
            {
                message.state = MessageState::Waiting;
            }
        }
    }

    /// Nothing waits any more: what nobody was told in time is taken back.
    pub(super) fn drop_open(&mut self) {
        for message in &mut self.kept {
            if message.is_open() {
                message.state = MessageState::TakenBack;
            }
        }
    }

    /// Those for a session that goes on from the files of a checkpoint of this one: what these follow,
    /// and what is to be told again.
    pub(super) fn for_fork(&self, at: u32) -> Self {
        let mut kept = self.kept.clone();
        kept.retain(|message| match message.state {
            MessageState::Told { .. } | MessageState::Given { .. } | MessageState::Followed { .. } => true,
            MessageState::Waiting | MessageState::TakenBack => false,
        });
        for message in &mut kept {
            // No attempt of that session had it.
            message.state = match message.state {
                MessageState::Told { .. } | MessageState::Given { .. } => MessageState::Waiting,
                MessageState::Followed { from, .. } if from >= at => MessageState::Waiting,
                MessageState::Followed { .. } => MessageState::Followed { attempt: 0, from: 0 },
                other @ (MessageState::Waiting | MessageState::TakenBack) => other,
            };
        }
        Self {
            sent: self.sent,
            kept,
            reworks_before: 0,
        }
    }
}

/// The text, if a session may get it.
///
/// # Errors
/// When it is empty or too long.
pub fn checked(text: String) -> Result<String, InvalidMessage> {
    if text.trim().is_empty() {
        return Err(InvalidMessage::Empty);
    }
    if text.len() > MAX_MESSAGE_BYTES {
        return Err(InvalidMessage::TooLong(text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1);

    fn said(messages: &mut Messages, text: &str) -> u32 {
        assert!(!messages.is_full_for(text), "{text:.20}");
        messages.add(text.to_owned(), "owner".to_owned(), NOW)
    }

    #[test]
    fn what_is_sent_waits_is_given_and_is_followed() {
        let mut messages = Messages::none();
        assert!(messages.is_empty() && !messages.waits());
        assert_eq!((said(&mut messages, "one"), said(&mut messages, "two")), (1, 2));
        messages.give(2, 5);
        assert_eq!(said(&mut messages, "three"), 3);
        assert!(messages.waits());
        messages.follow(0);
        let states: Vec<_> = messages.kept.iter().map(|message| message.state).collect();
        let followed = MessageState::Followed { attempt: 2, from: 5 };
        assert_eq!(states, [followed, followed, MessageState::Waiting]);
        // One that was given again keeps its first attempt.
        messages.give(3, 7);
        messages.take_back(6);
        assert_eq!(messages.kept[0].state, followed, "checkpoint 6 has it");
        messages.take_back(5);
        assert_eq!(messages.kept[0].state, MessageState::TakenBack);
        assert_eq!(messages.kept[2].state, MessageState::Given { attempt: 3, from: 7 });
    }

    #[test]
    fn what_a_running_attempt_was_told_is_told_again_until_a_checkpoint_has_it() {
        let mut messages = Messages::none();
        for text in ["one", "two", "three"] {
            said(&mut messages, text);
        }
        assert!(messages.tell(1, 4) && messages.tell(2, 4));
        assert!(!messages.tell(1, 4), "it was told once");
        assert!(!messages.tell(9, 4), "there is no such message");
        assert!(messages.waits(), "the third waits for the next attempt");
        messages.keep_told(1, 8);
        let states: Vec<_> = messages.kept.iter().map(|message| message.state).collect();
        let given = MessageState::Given { attempt: 4, from: 7 };
        assert_eq!(
            states,
            [given, MessageState::Told { attempt: 4 }, MessageState::Waiting]
        );
        assert!(messages.kept[1].words().contains("attempt 4 was told while it worked"));
        // A result that came from it follows both; an attempt after a lost one is given the rest.
        let mut lost = messages.clone();
        messages.follow(8);
        assert_eq!(messages.kept[1].state, MessageState::Followed { attempt: 4, from: 8 });
        assert_eq!(messages.kept[2].state, MessageState::Waiting);
        lost.give(5, 8);
        let again = MessageState::Given { attempt: 5, from: 8 };
        assert_eq!(lost.kept[0].state, given);
        assert_eq!((lost.kept[1].state, lost.kept[2].state), (again, again));
    }

    #[test]
    fn little_is_kept_and_nothing_that_waits_is_forgotten() {
        let mut messages = Messages::none();
        for n in 0..100 {
            said(&mut messages, &format!("{n}"));
            messages.give(n, n);
            messages.follow(0);
        }
        assert_eq!((messages.sent, messages.kept.len()), (100, MAX_MESSAGES));
        for _ in 0..MAX_WAITING {
            said(&mut messages, "wait");
        }
        assert!(messages.is_full_for("x"));
        messages.give(100, 100);
        let long = "x".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(said(&mut messages, &long), 117);
        assert!(
            messages.is_full_for(&long),
            "all of it would go along with the next offer"
        );
        messages.give(101, 100);
        messages.follow(0);
        said(&mut messages, &long);
        let bytes: usize = messages.kept.iter().map(|message| message.text.len()).sum();
        assert!(bytes <= MAX_TEXT_BYTES && messages.kept.last().unwrap().text == long);
    }

    #[test]
    fn a_message_says_something_and_is_taken_as_it_is() {
        assert_eq!(checked(" \n".to_owned()), Err(InvalidMessage::Empty));
        let long = "x".repeat(MAX_MESSAGE_BYTES + 1);
        assert_eq!(checked(long.clone()), Err(InvalidMessage::TooLong(long.len())));
        let odd = "\u{1b}[31mred\u{202e}\r\n".to_owned();
        assert_eq!(checked(odd.clone()), Ok(odd));
    }
}
