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
use super::log::{Speech, ToolCall};
use super::models;
use super::permission::Choice;
use super::rpc::{self, Incoming, RequestId, RpcError};
use super::sayings::Sayings;
use super::usage::{Meter, Used};
use crate::adapters::cli::manifest::acp::{AcpRule, Service};
use crate::adapters::mcp::McpServers;
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

mod requests;
mod tools;
mod steering;

/// The version of the protocol that is spoken.
const VERSION: u64 = 1;
/// The request that puts something into a turn that runs. It is an extension, which agents announce in `_meta.steering`.
const STEERING: &str = "_session/steering";
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
    /// The servers that the agent gets for its model.
    pub(super) mcp: Option<McpServers>,
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
    /// Questions that were asked are answered by nobody any more.
    Withdrawn,
    /// The agent was told what a person said.
    Told(u32),
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
    pub(super) number: u32,
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
    /// The number of the last request, and of the one whose answer the stage waits for.
    last: u64,
    asked: u64,
    session: String,
    can_load: bool,
    /// The servers of the plan that the agent can reach.
    servers: Value,
    /// It takes what is said into a turn that runs.
    steers: bool,
    /// The answer of a turn that waits for what became of something that was put into it.
    turn_result: Option<Value>,
    calls: BTreeMap<String, ToolCall>,
    questions: BTreeMap<u32, Pending>,
    question: u32,
    sayings: Sayings,
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
            last: 0,
            asked: 0,
            session: String::new(),
            can_load: false,
            servers: json!([]),
            steers: false,
            turn_result: None,
            calls: BTreeMap::new(),
            questions: BTreeMap::new(),
            question: 0,
            sayings: Sayings::default(),
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
            Incoming::Answer { id, result } => self.steered(id, result.ok().as_ref()),
            Incoming::Notification { method, params } if method == "session/update" => self.update(&params),
            Incoming::Notification { .. } => {}
            Incoming::Request { id, method, params } => self.requested(id, method, params),
            Incoming::NoMessage => {}
        }
        take(&mut self.effects)
    }

    /// Ends the turn early. The agent may take a moment to say so.
    pub(super) fn cancel(&mut self) -> Vec<Effect> {
        if !take_once(&mut self.cancelled) {
            return Vec::new();
        }
        self.withdraw();
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
        self.asked = self.ask(method, params);
        self.stage = stage;
    }

    fn ask(&mut self, method: &str, params: &Value) -> u64 {
        self.last += 1;
        self.effects.push(Effect::Send(rpc::request(self.last, method, params)));
        self.last
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
        self.steers = result.pointer("/_meta/steering/supported") == Some(&Value::Bool(true));
        if let Some(mcp) = &self.plan.mcp {
            let of = result.pointer("/agentCapabilities/mcpCapabilities");
            let reaches = |kind: &str| of.and_then(|of| of.get(kind)) == Some(&Value::Bool(true));
            self.servers = mcp.for_acp(reaches);
        }
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
        let params = json!({"sessionId": resumed.id, "cwd": self.plan.cwd, "mcpServers": self.servers});
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
        let params = json!({"cwd": self.plan.cwd, "mcpServers": self.servers});
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
        let prompt = take(&mut self.plan.prompt);
        self.turn(&[prompt]);
    }

    fn turn(&mut self, texts: &[String]) {
        self.unmeasured = true;
        let params = json!({"sessionId": self.session, "prompt": blocks(texts)});
        self.request(Stage::Prompting, "session/prompt", &params);
    }

    fn turn_ended(&mut self, result: &Value) {
        if self.sayings.is_steering() && !self.cancelled {
            // Whether the turn had what was said is not known yet.
            self.turn_result = Some(result.clone());
            return;
        }
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
        if !self.happened {
            return self.end(Ending::Nothing);
        }
        self.heard();
        let next = self.sayings.next_turn();
        if next.is_empty() {
            return self.end(Ending::Done(self.speech.words().to_owned()));
        }
        let mut reports = Vec::new();
        self.speech.next(&mut reports);
        self.tell_all(reports);
        self.happened = false;
        self.turn(&next);
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
        self.withdraw();
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
        self.heard();
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
}

/// Texts as the protocol has them.
fn blocks(texts: &[String]) -> Value {
    let blocks = texts.iter().map(|text| json!({"type": "text", "text": text}));
    blocks.collect()
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
