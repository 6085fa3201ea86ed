//! The tools of an agent, as it tells of them: which run, and what is shown of them.

use std::mem::take;

use serde_json::Value;

use super::{Conversation, Effect, MAX_CALLS};
use crate::adapters::acp::log::{ToolCall, readable};
use crate::process::excerpt::one_line;

impl Conversation {
    pub(super) fn tool_call(&mut self, update: &Value) {
        let Some(id) = self.call(update) else { return };
        let status = update.get("status").and_then(Value::as_str);
        let mut reports = Vec::new();
        let ended = matches!(status, Some("completed" | "failed"));
        if let Some(call) = self.calls.get_mut(&id) {
            call.show(ended, &mut reports);
        }
        if status == Some("failed") {
            ToolCall::failed(update, &mut reports);
        }
        self.tell_all(reports);
        if ended {
            self.close(&id);
        } else {
            self.open(&id);
        }
    }

    /// The call that an update is about; its id.
    pub(super) fn call(&mut self, update: &Value) -> Option<String> {
        let id = update.get("toolCallId")?.as_str()?.to_owned();
        if !self.calls.contains_key(&id) {
            if self.calls.len() >= MAX_CALLS {
                self.calls.retain(|_, call| call.open);
            }
            if self.calls.len() >= MAX_CALLS {
                return None;
            }
            self.happened = true;
            let mut reports = Vec::new();
            self.speech.next(&mut reports);
            self.tell_all(reports);
        }
        let is_new = !self.calls.contains_key(&id);
        let call = self.calls.entry(id.clone()).or_default();
        call.update(update);
        if is_new {
            self.tools.add(call.name(), 1);
        }
        Some(id)
    }

    pub(super) fn open(&mut self, id: &str) {
        let others = self.calls.values().any(|call| call.open);
        if let Some(call) = self.calls.get_mut(id).filter(|call| !call.open) {
            call.open = true;
            if !others {
                self.effects.push(Effect::ToolsBegin);
            }
        }
    }

    pub(super) fn close(&mut self, id: &str) {
        let was_open = self.calls.get_mut(id).is_some_and(|call| take(&mut call.open));
        if was_open && self.calls.values().all(|call| !call.open) {
            self.effects.push(Effect::ToolsEnd);
        }
    }

    pub(super) fn plan_told(&mut self, update: &Value) {
        let entries = update.get("entries").and_then(Value::as_array).into_iter().flatten();
        let current = entries
            .filter(|entry| entry.get("status").and_then(Value::as_str) == Some("in_progress"))
            .find_map(|entry| entry.get("content")?.as_str());
        if let Some(current) = current {
            self.tell(readable(&format!("plan: {}", one_line(current, 200))));
        }
    }
}
