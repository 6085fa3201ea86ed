//! What people say while an agent works: into the turn that runs, where the agent takes that, or as the next turn.

use std::mem::take;

use serde_json::{Value, json};

use super::{Conversation, Effect, STEERING, Stage, blocks};
use crate::adapters::hearing::Said;

impl Conversation {
    /// A person says something. It is put into the turn that runs, where the agent takes that, and else is told in
    /// a turn of its own.
    pub(in crate::adapters::acp) fn said(&mut self, said: Said) -> Vec<Effect> {
        if self.steers && self.stage == Stage::Prompting && !self.cancelled {
            let texts = [said.for_model()];
            let params = json!({
                "sessionId": self.session,
                "prompt": blocks(&texts),
                "_meta": {"steering": {"idleBehavior": "promptRequired"}},
            });
            let id = self.ask(STEERING, &params);
            self.sayings.steer(id, said);
        } else {
            self.sayings.add(said);
        }
        take(&mut self.effects)
    }

    /// The answer to a request that put something into the turn; or to one that nobody waits for any more.
    pub(super) fn steered(&mut self, id: u64, answer: Option<&Value>) {
        let outcome = answer.and_then(|answer| answer.get("outcome")?.as_str());
        if let Some(number) = self.sayings.steered(id, outcome == Some("injected")) {
            self.effects.push(Effect::Told(number));
        }
        if let Some(result) = self.turn_result.take_if(|_| !self.sayings.is_steering()) {
            self.turn_ended(&result);
        }
    }

    /// The agent answers the turn, so it has what it was told in it.
    pub(super) fn heard(&mut self) {
        for number in self.sayings.answered() {
            self.effects.push(Effect::Told(number));
        }
    }
}
