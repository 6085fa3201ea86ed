//! What the program of a running attempt asks whether it may do it, and what a person answered. The agent
//! decides when nobody does: a question has an end, and none outlives its attempt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;
use crate::words::words;

/// The longest description of a question that is kept, in bytes.
const MAX_ABOUT: usize = 500;
/// The most open questions of a session: an agent asks about one tool call at a time, or a few.
pub const MAX_QUESTIONS: usize = 32;
/// How long a question waits for a person unless the task says otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10 * 60);

/// The longest that a question waits.
pub const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

words! {
    /// What a program is answered that asks for permission.
    pub enum PermissionPolicy: "a policy for permissions" {
        /// It may: it works in the session's own worktree and box, like a program that does not ask.
        Allow = "allow",
        /// It may not. What it does without asking, it does.
        Deny = "deny",
        /// A person is asked, for a while; then it may not.
        Ask = "ask",
    }
}

/// A person's answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it may.
    pub allow: bool,
    /// Who answered, as the coordinator knew the caller.
    pub by: String,
}

/// A question that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its number in the attempt, from 1.
    pub number: u32,
    /// What is asked, in one line.
    pub about: String,
    /// When it came, by the coordinator's clock.
    pub asked_at: Timestamp,
    /// How long the agent waits for an answer before it denies it.
    pub wait: Duration,
    /// What a person answered and the agent did not confirm yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

impl Question {
    /// A question that came now.
    #[must_use]
    pub fn new(number: u32, about: &str, wait: Duration, now: Timestamp) -> Self {
        let end = about.floor_char_boundary(MAX_ABOUT);
        Self {
            number,
            about: about.get(..end).unwrap_or(about).to_owned(),
            asked_at: now,
            wait,
            answer: None,
        }
    }

    /// When the agent denies it.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.asked_at + self.wait
    }
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotAnswer {
    /// No such question is open.
    #[error("there is no open question {0}; `kage permit ls` lists those that wait")]
    NotOpen(u32),
    /// It has another answer.
    #[error("question {number} was {} by {by} already", if *allowed { "allowed" } else { "denied" })]
    Answered {
        /// The question.
        number: u32,
        /// What was answered.
        allowed: bool,
        /// By whom.
        by: String,
    },
}

/// The open questions of a session, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Questions(pub Vec<Question>);

impl Questions {
    /// True when nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more waits. More than [`MAX_QUESTIONS`] are not kept: their agent denies them in time.
    pub(super) fn ask(&mut self, question: Question) {
        if self.0.len() < MAX_QUESTIONS && self.0.iter().all(|open| open.number != question.number) {
            self.0.push(question);
        }
    }

    /// The agent carried a decision out.
    pub(super) fn close(&mut self, number: u32) {
        self.0.retain(|open| open.number != number);
    }

    /// Takes a person's answer. The same answer again changes nothing.
    ///
    /// # Errors
    /// When the question is not open, or has another answer.
    pub fn answer(&mut self, number: u32, answer: Answer) -> Result<(), CannotAnswer> {
        let open = self.0.iter_mut().find(|open| open.number == number);
        let open = open.ok_or(CannotAnswer::NotOpen(number))?;
        match &open.answer {
            None => open.answer = Some(answer),
            Some(before) if before.allow == answer.allow => {}
            Some(before) => {
                return Err(CannotAnswer::Answered {
                    number,
                    allowed: before.allow,
                    by: before.by.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_once_and_closed_by_its_agent() {
        let now = Timestamp::from_millis(1000);
        let mut questions = Questions::default();
        let asked = Question::new(1, &"ü".repeat(MAX_ABOUT), Duration::from_secs(2), now);
        assert_eq!(asked.about.len(), MAX_ABOUT);
        assert_eq!(asked.until(), Timestamp::from_millis(3000));
        questions.ask(asked.clone());
        questions.ask(asked);
        assert_eq!(questions.0.len(), 1, "a question that is told again is the same");
        let by = |allow, by: &str| Answer {
            allow,
            by: by.to_owned(),
        };
        assert_eq!(questions.answer(2, by(true, "ann")), Err(CannotAnswer::NotOpen(2)));
        questions.answer(1, by(true, "ann")).unwrap();
        questions.answer(1, by(true, "bob")).unwrap();
        let other = questions.answer(1, by(false, "bob")).unwrap_err();
        assert_eq!(other.to_string(), "question 1 was allowed by ann already");
        questions.close(1);
        assert!(questions.is_empty());
        for number in 0..100 {
            questions.ask(Question::new(number, "x", DEFAULT_WAIT, now));
        }
        assert_eq!(questions.0.len(), MAX_QUESTIONS);
    }
}
