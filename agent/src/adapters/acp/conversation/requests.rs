//! What an agent asks of us: permission before it does something, and to be served.

use std::mem::take;

use serde_json::Value;

use super::{ClientCall, Conversation, Effect, MAX_QUESTIONS, Pending, Question, Stage};
use crate::adapters::acp::log::{ToolCall, activity};
use crate::adapters::acp::permission::{Decision, unanswered};
use crate::adapters::acp::rpc::{RequestId, RpcError, code};
use crate::adapters::cli::manifest::acp::Service;
use crate::process::excerpt::one_line;

impl Conversation {
    /// A question is decided.
    pub(in crate::adapters::acp) fn decided(&mut self, number: u32, decision: Decision) -> Vec<Effect> {
        if let Some(pending) = self.questions.remove(&number) {
            match decision {
                Decision::Allow => self.open(&pending.call),
                Decision::Deny => {
                    self.denied = Some(pending.about.clone());
                    self.tell(activity(&format!("denied: {}", pending.about)));
                    self.close(&pending.call);
                }
            }
            self.answer(&pending.id, Ok(decision.outcome(&pending.choices)));
        }
        take(&mut self.effects)
    }

    /// The agent's request was carried out, or could not be.
    pub(in crate::adapters::acp) fn served(&mut self, id: &RequestId, result: Result<Value, RpcError>) -> Vec<Effect> {
        self.answer(id, result);
        take(&mut self.effects)
    }

    /// Nobody answers any more what was asked.
    pub(super) fn withdraw(&mut self) {
        let pending = take(&mut self.questions);
        if !pending.is_empty() {
            self.effects.push(Effect::Withdrawn);
        }
        for (_, pending) in pending {
            self.answer(&pending.id, Ok(unanswered()));
        }
    }

    pub(super) fn requested(&mut self, id: RequestId, method: String, params: Value) {
        let service = match method.as_str() {
            "session/request_permission" => return self.question(id, &params),
            "fs/read_text_file" | "fs/write_text_file" => Service::Files,
            "terminal/create" | "terminal/output" | "terminal/wait_for_exit" | "terminal/kill" | "terminal/release" => {
                Service::Terminal
            }
            other => {
                let error = RpcError::new(
                    code::UNKNOWN_METHOD,
                    format!("{} is not known here", one_line(other, 80)),
                );
                return self.answer(&id, Err(error));
            }
        };
        if self.plan.rule.serves(service) && self.stage == Stage::Prompting && !self.cancelled {
            self.effects.push(Effect::Serve(id, ClientCall { method, params }));
        } else {
            let error = RpcError::new(code::UNKNOWN_METHOD, format!("{method} was not offered"));
            self.answer(&id, Err(error));
        }
    }

    pub(super) fn question(&mut self, id: RequestId, params: &Value) {
        let asked = params.get("toolCall").and_then(|call| self.call(call));
        let choices = params.get("options").and_then(Value::as_array).into_iter().flatten();
        let choices = choices
            .filter_map(|choice| serde_json::from_value(choice.clone()).ok())
            .collect();
        if self.cancelled || self.is_over() || self.questions.len() >= MAX_QUESTIONS {
            return self.answer(&id, Ok(unanswered()));
        }
        let call = asked.unwrap_or_default();
        let about = self
            .calls
            .get(&call)
            .map_or_else(|| "something that it does not name".to_owned(), ToolCall::line);
        let about = one_line(&about, 200);
        self.question += 1;
        let number = self.question;
        self.questions.insert(
            number,
            Pending {
                id,
                choices,
                call,
                about: about.clone(),
            },
        );
        self.effects.push(Effect::Ask(Question { number, about }));
    }
}
