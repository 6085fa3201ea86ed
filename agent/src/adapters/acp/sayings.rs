//! What people say while an agent works. An agent that announces it takes a message into its turn; the protocol
//! itself has no such way, so for others it is the prompt of the next turn, and counts as told when the agent has
//! begun to answer that.

use std::collections::{BTreeMap, VecDeque};
use std::mem::take;

use crate::adapters::hearing::Said;

/// The messages of a session, those before the turn and those of it.
#[derive(Debug, Default)]
pub(super) struct Sayings {
    waiting: VecDeque<Said>,
    /// Of requests that put them into the turn, by their numbers.
    steering: BTreeMap<u64, Said>,
    /// Of the turn that was asked for and is not answered yet.
    asked: Vec<u32>,
}

impl Sayings {
    pub(super) fn add(&mut self, said: Said) {
        self.waiting.push_back(said);
    }

    /// A request asks the agent to take it into its turn.
    pub(super) fn steer(&mut self, request: u64, said: Said) {
        self.steering.insert(request, said);
    }

    /// The agent took it, whose number is returned; or it waits for the next turn.
    pub(super) fn steered(&mut self, request: u64, taken: bool) -> Option<u32> {
        let said = self.steering.remove(&request)?;
        if taken {
            return Some(said.number);
        }
        self.waiting.push_back(said);
        None
    }

    /// Whether the agent did not say yet what it does with one.
    pub(super) fn is_steering(&self) -> bool {
        !self.steering.is_empty()
    }

    /// The texts of the next turn; empty: nobody said anything.
    pub(super) fn next_turn(&mut self) -> Vec<String> {
        let said: Vec<_> = self.waiting.drain(..).collect();
        self.asked = said.iter().map(|said| said.number).collect();
        said.iter().map(Said::for_model).collect()
    }

    /// The agent answers: the numbers of what it was told by that.
    pub(super) fn answered(&mut self) -> Vec<u32> {
        take(&mut self.asked)
    }
}
