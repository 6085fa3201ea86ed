//! What people say to a session while it works: messages for its model, and answers to what its program asks.
//! The control session puts them here, each once; the adapter takes them when it can. What an adapter did not
//! take when it ends, it was not told: the coordinator keeps it for the next attempt.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kage_core::session::{Answer, instruction_while_working};
use tokio::sync::Notify;

use crate::process::excerpt::one_line;

/// The most that waits for one session; the coordinator lets less wait.
const MAX_WAITING: usize = 256;
/// Characters of a message in the log.
const SHOWN: usize = 200;

/// What a person said to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its number in the session; they rise.
    pub number: u32,
    pub text: String,
}

impl Said {
    /// What the model is told.
    #[must_use]
    pub fn for_model(&self) -> String {
        instruction_while_working(&self.text)
    }

    /// A line of the log; the transcript has all of it.
    #[must_use]
    pub fn line(&self) -> String {
        format!("> a person says: {}", one_line(&self.text, SHOWN))
    }
}

/// What reaches a session while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Said(Said),
    /// To the question of this number.
    Answered(u32, Answer),
}

/// What people say to one session. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Hearing(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Notified when something was added.
    added: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The newest message that was put here.
    newest: u32,
    said: VecDeque<Said>,
    answers: VecDeque<(u32, Answer)>,
}

impl Hearing {
    /// Adds a message, unless it was added before.
    pub fn say(&self, said: Said) {
        let mut waiting = self.lock();
        if said.number > waiting.newest && waiting.said.len() < MAX_WAITING {
            waiting.newest = said.number;
            waiting.said.push_back(said);
            drop(waiting);
            self.0.added.notify_one();
        }
    }

    /// Adds an answer. The adapter ignores one to a question that is not open.
    pub fn answer(&self, number: u32, answer: Answer) {
        let mut waiting = self.lock();
        if waiting.answers.len() < MAX_WAITING {
            waiting.answers.push_back((number, answer));
            drop(waiting);
            self.0.added.notify_one();
        }
    }

    /// Takes the messages that wait, oldest first.
    pub fn messages(&self) -> Vec<Said> {
        self.lock().said.drain(..).collect()
    }

    /// Waits for what is said next, and takes it. Cancel-safe; for one listener.
    pub async fn next(&self) -> Heard {
        loop {
            let added = self.0.added.notified();
            if let Some(heard) = self.take() {
                return heard;
            }
            added.await;
        }
    }

    fn take(&self) -> Option<Heard> {
        let mut waiting = self.lock();
        if let Some((number, answer)) = waiting.answers.pop_front() {
            return Some(Heard::Answered(number, answer));
        }
        waiting.said.pop_front().map(Heard::Said)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every change is whole before anything can panic.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn said(number: u32) -> Said {
        Said {
            number,
            text: format!("message {number}"),
        }
    }

    #[tokio::test]
    async fn a_message_is_taken_once_however_often_it_is_handed_over() {
        let hearing = Hearing::default();
        assert_eq!(hearing.next().now_or_never(), None);
        for number in [1, 2, 1, 2, 3] {
            hearing.say(said(number));
        }
        assert_eq!(hearing.next().now_or_never(), Some(Heard::Said(said(1))));
        assert_eq!(hearing.messages(), [said(2), said(3)]);
        // After a reconnect, all that the coordinator does not know to be told.
        for number in 1..=4 {
            hearing.say(said(number));
        }
        assert_eq!(hearing.messages(), [said(4)]);
        for number in 5..1000 {
            hearing.say(said(number));
        }
        assert_eq!(hearing.messages().len(), MAX_WAITING);
    }

    #[tokio::test]
    async fn an_answer_comes_before_what_else_waits() {
        let hearing = Hearing::default();
        let answer = Answer {
            allow: true,
            by: "owner".to_owned(),
        };
        let listening = hearing.clone();
        let next = tokio::spawn(async move { listening.next().await });
        hearing.answer(7, answer.clone());
        assert_eq!(next.await.unwrap(), Heard::Answered(7, answer.clone()));
        hearing.say(said(1));
        hearing.answer(8, answer.clone());
        assert_eq!(hearing.next().await, Heard::Answered(8, answer));
        assert_eq!(hearing.next().await, Heard::Said(said(1)));
    }
}
