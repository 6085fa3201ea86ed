//! The conversation with an agent: which message follows which, and what is told of it. Pure: messages and
//! decisions in, effects out; whoever drives it reads, writes and waits.
//!
//! ```text
//!   initialize ─▶ (authenticate) ─▶ session/new ─┬─▶ (model) ─▶ session/prompt ─▶ the turn ends ─▶ over
//!                                └▶ session/load ┘
//!                                    │ not there: session/new
//! ```

use std::collections::BTreeMap;
use std::mem::take;

use bytes::Bytes;
use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::tool_uses::ToolUses;
use kage_core::usage::Usage;
use serde_json::{Value, json};

use super::failures::{Judge, of_reason};
use super::log::{Speech, ToolCall, activity, readable};
use super::models;
use super::permission::{Choice, Decision, unanswered};
use super::rpc::{self, Incoming, RequestId, RpcError, code};
use super::usage::{Meter, Used};
use crate::adapters::cli::manifest::acp::{AcpRule, Service};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

/// The version of the protocol that is spoken.
const VERSION: u64 = 1;
/// Questions that wait for a person at the same time; more of them are not answered.
const MAX_QUESTIONS: usize = 32;
/// Calls of tools that are remembered; more of them may not be open.
const MAX_CALLS: usize = 1000;

/// What a session is about.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) rule: AcpRule,
    /// Where the agent works.
    pub(super) cwd: String,
    pub(super) prompt: String,
    /// The conversation to go on with; its agent has it.
    pub(super) resumed: Option<Resumed>,
    /// The model to ask for, unless the command does it.
    pub(super) model: Option<String>,
}

/// A conversation of an earlier attempt.
#[derive(Debug, Clone)]
pub(super) struct Resumed {
    pub(super) id: String,
    /// The prompt for a new conversation, where the old one cannot be had.
    pub(super) anew: String,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
#[must_use]
pub(super) enum Effect {
    Send(Bytes),
    Tell(Report),
    /// A tool begins to change files; what follows waits until a checkpoint in progress is taken.
    ToolsBegin,
    ToolsEnd,
    /// A decision about it comes by [`Conversation::decided`].
    Ask(Question),
    /// The agent wants something done for it.
    Serve(RequestId, ClientCall),
    /// The agent's id of the conversation.
    Conversation(String),
    /// Nothing more is said.
    Over(Ending),
}

/// How a conversation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    Done(String),
    Failed(Failure),
    /// It was cancelled, and the agent has said so.
    Cancelled,
    /// The turn ended well, and nothing happened in it.
    Nothing,
}

/// What an agent asks before it does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) number: u64,
    /// In one line.
    pub(super) about: String,
}

/// A request for something that an agent may be served with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClientCall {
    pub(super) method: String,
    pub(super) params: Value,
}

#[derive(Debug)]
struct Pending {
    id: RequestId,
    choices: Vec<Choice>,
    call: String,
    about: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Initializing,
    Authenticating,
    Loading,
    Opening,
    Choosing,
    Prompting,
    Over,
}

#[derive(Debug)]
pub(super) struct Conversation {
    plan: Plan,
    stage: Stage,
    /// The number of the last request.
    asked: u64,
    session: String,
    can_load: bool,
    calls: BTreeMap<String, ToolCall>,
    questions: BTreeMap<u64, Pending>,
    question: u64,
    speech: Speech,
    tools: ToolUses,
    meter: Meter,
    /// Something was said or done in this turn.
    happened: bool,
    /// A permission was refused in this turn.
    denied: Option<String>,
    cancelled: bool,
    /// A turn ran whose usage was not told.
    unmeasured: bool,
    effects: Vec<Effect>,
}

impl Conversation {
    /// Begins it.
    pub(super) fn begin(plan: Plan) -> (Self, Vec<Effect>) {
        let mut conversation = Self {
            meter: Meter::new(plan.rule.usage),
            plan,
            stage: Stage::Initializing,
            asked: 0,
            session: String::new(),
            can_load: false,
            calls: BTreeMap::new(),
            questions: BTreeMap::new(),
            question: 0,
            speech: Speech::default(),
            tools: ToolUses::default(),
            happened: false,
            denied: None,
            cancelled: false,
            unmeasured: false,
            effects: Vec::new(),
        };
        let serves = |service| conversation.plan.rule.serves(service);
        let (files, terminal) = (serves(Service::Files), serves(Service::Terminal));
        let params = json!({
            "protocolVersion": VERSION,
            "clientCapabilities": {
                "fs": {"readTextFile": files, "writeTextFile": files},
                "terminal": terminal,
            },
            "clientInfo": {"name": "kage", "title": "Kage Bunshin", "version": env!("CARGO_PKG_VERSION")},
        });
        conversation.request(Stage::Initializing, "initialize", &params);
        let effects = take(&mut conversation.effects);
        (conversation, effects)
    }

    /// Whether nothing more is said.
    fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// A message of the agent's.
    pub(super) fn hear(&mut self, incoming: Incoming, judge: Judge<'_>) -> Vec<Effect> {
        match incoming {
            Incoming::Answer { id, result } if id == self.asked && !self.is_over() => match result {
                Ok(result) => self.answered(&result),
                Err(error) => self.refused(&error, judge),
            },
            // To a request that nobody waits for any more.
            Incoming::Answer { .. } => {}
            Incoming::Notification { method, params } if method == "session/update" => self.update(&params),
            Incoming::Notification { .. } => {}
            Incoming::Request { id, method, params } => self.requested(id, method, params),
            Incoming::NoMessage => {}
        }
        take(&mut self.effects)
    }

    /// A question is decided.
    pub(super) fn decided(&mut self, number: u64, decision: Decision) -> Vec<Effect> {
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
    pub(super) fn served(&mut self, id: &RequestId, result: Result<Value, RpcError>) -> Vec<Effect> {
        self.answer(id, result);
        take(&mut self.effects)
    }

    /// Ends the turn early. The agent may take a moment to say so.
    pub(super) fn cancel(&mut self) -> Vec<Effect> {
        if !take_once(&mut self.cancelled) {
            return Vec::new();
        }
        for (_, pending) in take(&mut self.questions) {
            self.answer(&pending.id, Ok(unanswered()));
        }
        match self.stage {
            Stage::Prompting => {
                let params = json!({"sessionId": self.session});
                self.effects
                    .push(Effect::Send(rpc::notification("session/cancel", &params)));
            }
            Stage::Initializing | Stage::Authenticating | Stage::Loading | Stage::Opening | Stage::Choosing => {
                self.end(Ending::Cancelled);
            }
            Stage::Over => {}
        }
        take(&mut self.effects)
    }

    /// Nothing more can be heard: tells what is left to be told.
    pub(super) fn cut(&mut self) -> Vec<Effect> {
        self.turn_ends();
        if self.stage == Stage::Prompting || self.unmeasured {
            self.used(vec![unknown()]);
        }
        self.stage = Stage::Over;
        take(&mut self.effects)
    }

    fn request(&mut self, stage: Stage, method: &str, params: &Value) {
        self.asked += 1;
        self.stage = stage;
        self.effects
            .push(Effect::Send(rpc::request(self.asked, method, params)));
    }

    fn answer(&mut self, id: &RequestId, result: Result<Value, RpcError>) {
        self.effects.push(Effect::Send(rpc::answer(id, result)));
    }

    fn tell(&mut self, report: Report) {
        self.effects.push(Effect::Tell(report));
    }

    fn tell_all(&mut self, reports: Vec<Report>) {
        self.effects.extend(reports.into_iter().map(Effect::Tell));
    }

    fn end(&mut self, ending: Ending) {
        self.stage = Stage::Over;
        self.effects.push(Effect::Over(ending));
    }

    fn fail(&mut self, kind: FailureKind, text: String) {
        self.end(Ending::Failed(Failure::new(kind, text)));
    }

    fn answered(&mut self, result: &Value) {
        match self.stage {
            Stage::Initializing => self.initialized(result),
            Stage::Authenticating => self.open_session(),
            Stage::Loading => {
                let id = self.plan.resumed.as_ref().map(|resumed| resumed.id.clone());
                self.opened(id.unwrap_or_default(), result);
            }
            Stage::Opening => match result.get("sessionId").and_then(Value::as_str) {
                Some(id) if !id.is_empty() => self.opened(id.to_owned(), result),
                Some(_) | None => self.fail(
                    FailureKind::AdapterCrash,
                    "the agent made a session without an id".to_owned(),
                ),
            },
            Stage::Choosing => self.prompt(),
            Stage::Prompting => self.turn_ended(result),
            Stage::Over => {}
        }
    }

    fn refused(&mut self, error: &RpcError, judge: Judge<'_>) {
        let doing = match self.stage {
            Stage::Initializing => "to begin",
            Stage::Authenticating => "the authentication",
            Stage::Loading => return self.open_anew(&one_line(&error.message, 200)),
            Stage::Opening => "a session",
            Stage::Choosing => "the model",
            Stage::Prompting => "the prompt",
            Stage::Over => return,
        };
        if self.stage == Stage::Prompting {
            self.turn_ends();
            self.used(vec![unknown()]);
            if self.cancelled {
                // Some agents take their own end for an error.
                return self.end(Ending::Cancelled);
            }
        }
        let failure = judge.error(doing, error);
        self.end(Ending::Failed(failure));
    }

    fn initialized(&mut self, result: &Value) {
        let version = result.get("protocolVersion").and_then(Value::as_u64);
        if version != Some(VERSION) {
            let told = version.map_or("no version".to_owned(), |version| format!("version {version}"));
            let text = format!("the agent speaks {told} of the Agent Client Protocol, and version {VERSION} is needed");
            return self.fail(FailureKind::AdapterUnavailable, text);
        }
        self.can_load = result.pointer("/agentCapabilities/loadSession") == Some(&Value::Bool(true));
        match self.plan.rule.authenticate.clone() {
            Some(way) => self.request(Stage::Authenticating, "authenticate", &json!({"methodId": way})),
            None => self.open_session(),
        }
    }

    fn open_session(&mut self) {
        let Some(resumed) = &self.plan.resumed else {
            return self.new_session();
        };
        if !self.can_load {
            return self.open_anew("it says that it cannot");
        }
        self.session = resumed.id.clone();
        let params = json!({"sessionId": resumed.id, "cwd": self.plan.cwd, "mcpServers": []});
        self.request(Stage::Loading, "session/load", &params);
    }

    /// A new conversation instead of one that is gone.
    fn open_anew(&mut self, why: &str) {
        if let Some(Resumed { anew, .. }) = self.plan.resumed.take() {
            self.plan.prompt = anew;
        }
        let text = format!("the agent does not load the conversation ({why}): starting a new one");
        self.tell(Report::Event(EventBody::Warning(text)));
        self.new_session();
    }

    fn new_session(&mut self) {
        let params = json!({"cwd": self.plan.cwd, "mcpServers": []});
        self.request(Stage::Opening, "session/new", &params);
    }

    fn opened(&mut self, id: String, result: &Value) {
        self.effects.push(Effect::Conversation(id.clone()));
        self.session = id;
        let Some(model) = self.plan.model.clone() else {
            return self.prompt();
        };
        match models::choose(&self.session, &model, result) {
            models::Chosen::Present => self.prompt(),
            models::Chosen::Ask { method, params } => self.request(Stage::Choosing, method, &params),
            models::Chosen::NotOffered(text) => self.fail(FailureKind::InvalidRequest, text),
        }
    }

    fn prompt(&mut self) {
        self.unmeasured = true;
        let prompt = take(&mut self.plan.prompt);
        let params = json!({"sessionId": self.session, "prompt": [{"type": "text", "text": prompt}]});
        self.request(Stage::Prompting, "session/prompt", &params);
    }

    fn turn_ended(&mut self, result: &Value) {
        self.turn_ends();
        let used = self.meter.turn(result);
        self.used(used);
        let reason = result.get("stopReason").and_then(Value::as_str).unwrap_or_default();
        if self.cancelled {
            return self.end(Ending::Cancelled);
        }
        if let ("cancelled", Some(about)) = (reason, self.denied.take()) {
            let text = format!("the agent ended its turn because it was denied: {about}");
            return self.fail(FailureKind::ModelRefused, text);
        }
        if let Some(failure) = of_reason(reason) {
            return self.end(Ending::Failed(failure));
        }
        let ending = match self.happened {
            true => Ending::Done(self.speech.words().to_owned()),
            false => Ending::Nothing,
        };
        self.end(ending);
    }

    /// No tool runs any more, and nothing more is said in this turn.
    fn turn_ends(&mut self) {
        let mut reports = Vec::new();
        self.speech.show(&mut reports);
        let mut open = false;
        for (_, mut call) in take(&mut self.calls) {
            open |= call.open;
            call.show(true, &mut reports);
        }
        self.tell_all(reports);
        if open {
            self.effects.push(Effect::ToolsEnd);
        }
        for (_, pending) in take(&mut self.questions) {
            self.answer(&pending.id, Ok(unanswered()));
        }
    }

    fn used(&mut self, used: Vec<Used>) {
        self.unmeasured = false;
        for Used { model, usage, cost } in used {
            // The first one has all tools.
            let tools = Some(take(&mut self.tools));
            self.tell(Report::Event(EventBody::UsageRecorded {
                model,
                usage,
                reported: cost,
                metered: false,
                tools,
                call: None,
            }));
        }
    }

    fn update(&mut self, params: &Value) {
        // What an agent tells while it loads was told by an earlier attempt.
        if self.stage != Stage::Prompting {
            return;
        }
        let Some(update) = params.get("update") else { return };
        match update.get("sessionUpdate").and_then(Value::as_str) {
            Some("agent_message_chunk") => {
                let part = update
                    .pointer("/content/text")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                self.happened |= !part.trim().is_empty();
                let mut reports = Vec::new();
                self.speech.push(part, &mut reports);
                self.tell_all(reports);
            }
            Some("tool_call" | "tool_call_update") => self.tool_call(update),
            Some("usage_update") => self.meter.update(update),
            Some("plan") => self.plan_told(update),
            Some(_) | None => {}
        }
    }

    fn tool_call(&mut self, update: &Value) {
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
    fn call(&mut self, update: &Value) -> Option<String> {
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

    fn open(&mut self, id: &str) {
        let others = self.calls.values().any(|call| call.open);
        if let Some(call) = self.calls.get_mut(id).filter(|call| !call.open) {
            call.open = true;
            if !others {
                self.effects.push(Effect::ToolsBegin);
            }
        }
    }

    fn close(&mut self, id: &str) {
        let was_open = self.calls.get_mut(id).is_some_and(|call| take(&mut call.open));
        if was_open && self.calls.values().all(|call| !call.open) {
            self.effects.push(Effect::ToolsEnd);
        }
    }

    fn plan_told(&mut self, update: &Value) {
        let entries = update.get("entries").and_then(Value::as_array).into_iter().flatten();
        let current = entries
            .filter(|entry| entry.get("status").and_then(Value::as_str) == Some("in_progress"))
            .find_map(|entry| entry.get("content")?.as_str());
        if let Some(current) = current {
            self.tell(readable(&format!("plan: {}", one_line(current, 200))));
        }
    }

    fn requested(&mut self, id: RequestId, method: String, params: Value) {
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

    fn question(&mut self, id: RequestId, params: &Value) {
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

fn unknown() -> Used {
    Used {
        model: String::new(),
        usage: Usage::UNKNOWN,
        cost: None,
    }
}

/// Sets a flag; true the first time.
fn take_once(flag: &mut bool) -> bool {
    !std::mem::replace(flag, true)
}

#[cfg(test)]
mod tests;
