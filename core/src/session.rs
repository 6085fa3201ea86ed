//! Sessions: one adapter working on the task, and its state.
//!
//! ```text
//!  Queued -> Running -> Claimed -> Verifying -> Verified | Rejected | Unverified
//!   ^  ^        |   \____________________________/
//!   |  \-retry--/ \--> Failed                   |   (any state before the last) -> Cancelled
//!   \------------------ rework -----------------/
//!
//!  from every state but Queued and Running -- a person's message --> Queued (`sending`)
//!
//!  on the way to Failed or Cancelled, when a checkpoint has changed files: -> Saving
//! ```
//! A session without a verify command goes from Running to Unverified; one whose rework fails goes
//! from Running to Rejected, as its result was. `job` makes the transitions, because jobs are what
//! start and end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Head, Resumes, Safety, TakenCheckpoint};
use crate::contain::Tier;
use crate::event::{Event, EventBody, ResultCommit, Verdict};
use crate::failure::FailureKind;
use crate::fallback::Fallback;
use crate::id::{AdapterName, SessionId, SessionName, TaskId};
use crate::labels::Labels;
use crate::ledger::Reservation;
use crate::price::{Charge, PriceTable, Used};
use crate::recovery::Incident;
use crate::rework::Rework;
use crate::time::Timestamp;
use crate::tool_uses::ToolUses;
use crate::usage::Usage;

mod asked;
mod checkpoints;
mod contained;
mod message;
mod question;
mod state;
mod setback;
mod spent;
mod worked;
mod turn;
mod instruction;
mod sending;
mod fork;

pub use asked::CannotVerify;
pub use checkpoints::{MAX_RESUMPTIONS, SessionCheckpoints};
pub use fork::{Fork, Successor, fork_name};
pub use instruction::{Instruction, instruction_while_working};
pub use message::{
    InvalidMessage, MAX_MESSAGE_BYTES, MAX_MESSAGES, MAX_WAITING, MessageState, Messages, SessionMessage,
    checked as checked_message,
};
pub use question::{
    Answer, CannotAnswer, DEFAULT_WAIT, MAX_QUESTIONS, MAX_WAIT, PermissionPolicy, Question, Questions,
};
pub use sending::{CannotSend, Sent};
pub use setback::Setback;
pub use spent::{Costs, MAX_MODELS, ModelCalls, ModelUsage, OTHER_MODELS};
pub use state::{SessionState, SessionStateKind, Unclaimed};
pub use turn::{Climbed, Spared};
pub use worked::Worked;

/// How many failures a session remembers.
pub const MAX_INCIDENTS: usize = 16;
/// The stored bytes of a failure's message: sessions are written often.
const MAX_INCIDENT: usize = 300;
/// How many different warnings a session remembers, the first ones.
pub const MAX_WARNINGS: usize = 16;
/// The stored bytes of a warning, which may name a host or a path, and a setting.
const MAX_WARNING: usize = 600;

/// One adapter working on the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its task.
    pub task: TaskId,
    /// Its name in the task, which also identifies its assignment.
    pub name: SessionName,
    /// The adapter that works.
    pub adapter: AdapterName,
    /// The requested model.
    pub model: Option<String>,
    /// Adapters that may still take over, the next one first.
    pub fallbacks: Vec<Fallback>,
    /// The positions from which the adapter of its last attempt can continue the conversation.
    pub resumes: Resumes,
    /// Labels that its agent must have: the task's and its own.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub requirements: Labels,
    /// Its own wall-clock limit of one attempt; `None`: the task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Its state.
    pub state: SessionState,
    /// True when a person asked for it to stop; it ends at the next occasion.
    pub cancel_requested: bool,
    /// Name of the agent that holds or last held it.
    pub agent: Option<String>,
    /// Attempts of its session job that were started.
    pub attempts: u32,
    /// The lowest tier of containment that an attempt of it worked in. `None`: none was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contained: Option<Tier>,
    /// Its last activity.
    pub activity: Option<(String, Timestamp)>,
    /// What it used and cost, by model.
    pub usage: Vec<ModelUsage>,
    /// Tools that it called; `None`: nobody told. An adapter that does not tell adds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<ToolUses>,
    /// Its model calls.
    pub calls: ModelCalls,
    /// Its last failures, oldest first, each with the decision.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// What its attempts, and verify of its result, warned of, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Its checkpoints, in short, and the one that it stands on.
    pub checkpoints: SessionCheckpoints,
    /// The setback that its model has to be told, until it was.
    pub setback: Option<Setback>,
    /// How often it reworked a result that failed.
    pub reworks: u32,
    /// The failed result that it reworks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rework: Option<Rework>,
    /// What people said to it since its task began.
    #[serde(default = "Messages::none", skip_serializing_if = "Messages::is_empty")]
    pub messages: Messages,
    /// What its running attempt asks a person.
    #[serde(default, skip_serializing_if = "Questions::is_empty")]
    pub questions: Questions,
    /// The end that it had when a message made it go on, with its result: it has that again when it
    /// comes to no newer result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands: Option<Box<SessionState>>,
    /// The session from whose files it goes on; `None`: it began at the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<Fork>,
    /// The session before it on the ladder of its task, which verify rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub climbed: Option<Box<Climbed>>,
    /// Why its task did without it; `None`: it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spared: Option<Spared>,
    /// How it had ended, while verify looks at its unfinished result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_as: Option<Unclaimed>,
    /// A result that was sent and not yet claimed.
    pub pending_result: Option<ResultCommit>,
    /// How long its attempts ran.
    #[serde(default)]
    pub worked: Worked,
    /// Start of its first attempt.
    pub started_at: Option<Timestamp>,
    /// When it reached its last state.
    pub ended_at: Option<Timestamp>,
}

impl Session {
    /// A waiting session.
    #[must_use]
    pub const fn new(
        id: SessionId,
        task: TaskId,
        name: SessionName,
        adapter: AdapterName,
        model: Option<String>,
    ) -> Self {
        Self {
            id,
            task,
            name,
            adapter,
            model,
            fallbacks: Vec::new(),
            resumes: Resumes::None,
            requirements: Labels::new(),
            timeout: None,
            state: SessionState::Queued,
            cancel_requested: false,
            agent: None,
            attempts: 0,
            contained: None,
            activity: None,
            usage: Vec::new(),
            tools: None,
            calls: ModelCalls {
                answered: 0,
                before_attempt: 0,
                repeated: 0,
            },
            incidents: Vec::new(),
            warnings: Vec::new(),
            checkpoints: SessionCheckpoints {
                taken: 0,
                head: None,
                resumptions: Vec::new(),
            },
            setback: None,
            reworks: 0,
            rework: None,
            messages: Messages::none(),
            questions: Questions(Vec::new()),
            stands: None,
            fork: None,
            climbed: None,
            spared: None,
            ended_as: None,
            pending_result: None,
            worked: Worked {
                ended: Duration::ZERO,
                since: None,
            },
            started_at: None,
            ended_at: None,
        }
    }

    /// Tokens of all models together.
    #[must_use]
    pub fn total_usage(&self) -> Usage {
        let mut total = Usage::default();
        for entry in &self.usage {
            total += entry.usage;
        }
        total
    }

    /// What it cost.
    #[must_use]
    pub fn costs(&self) -> Costs {
        Costs::of(&self.usage)
    }

    /// Adds usage that is accepted now, and returns what it cost.
    pub fn charge(&mut self, used: Used<'_>, prices: &PriceTable, now: Timestamp) -> Charge {
        spent::add(&mut self.usage, used, prices, now)
    }

    /// Adds usage of a call that nobody heard the end of, at what was held back for it.
    pub fn charge_held(&mut self, held: &Reservation) -> Charge {
        let usage = held.usage();
        let used = Used {
            model: &held.model,
            usage: &usage,
            reported: None,
            metered: true,
            call: None,
        };
        let charge = Charge {
            money: held.money(),
            price: None,
        };
        spent::add_at(&mut self.usage, used, &charge);
        charge
    }

    /// Records an event of the session, except its end. Usage is counted in [`Self::charge`], where it is
    /// not counted already.
    pub fn record(&mut self, event: &Event, now: Timestamp) {
        match &event.body {
            EventBody::Activity(summary) => self.activity = Some((summary.clone(), now)),
            EventBody::UsageRecorded { metered, tools, .. } => {
                if let Some(tools) = tools {
                    self.tools.get_or_insert_default().extend(tools);
                }
                // A program's own report may cover many calls.
                self.calls.answered = self.calls.answered.saturating_add(u32::from(*metered));
            }
            EventBody::CallRetried { failure, delay, .. } => {
                self.calls.repeated = self.calls.repeated.saturating_add(1);
                let text = format!("{failure}; trying again in {:.1} s", delay.as_secs_f64());
                self.activity = Some((text, now));
            }
            EventBody::ResultCommitted { result, .. } => self.pending_result = Some(result.clone()),
            EventBody::FilesChanged(files) => {
                if let [first, rest @ ..] = files.as_slice() {
                    let text = match rest.len() {
                        0 => format!("changed {}", first.path),
                        n => format!("changed {} and {n} more", first.path),
                    };
                    self.activity = Some((text, now));
                }
            }
            EventBody::Warning(text) => {
                let kept = &text[..text.floor_char_boundary(MAX_WARNING)];
                if self.warnings.len() < MAX_WARNINGS && !self.warnings.iter().any(|known| known == kept) {
                    self.warnings.push(kept.to_owned());
                }
                self.activity = Some((format!("warning: {text}"), now));
            }
            EventBody::CheckpointTaken(taken) => {
                self.checkpoints.take(taken);
                self.messages.keep_told(taken.told, self.checkpoints.taken);
                // The conversation has it by now, and files that changed since are not older.
                if taken.transcript.is_some() || taken.files_changed > 0 {
                    self.setback = None;
                }
            }
            EventBody::Resumed {
                commit,
                position,
                repeated_calls,
            } => {
                let at = (*position, *repeated_calls);
                if let Some(number) = self.checkpoints.resume(self.attempts, commit, at) {
                    self.activity = Some((format!("continues from checkpoint {number}"), now));
                }
            }
            EventBody::MessageTold(number) => {
                if self.messages.tell(*number, self.attempts) {
                    self.activity = Some((format!("was told message {number} while it works"), now));
                }
            }
            EventBody::PermissionAsked { number, about, wait } => {
                self.questions.ask(Question::new(*number, about, *wait, now));
                let text = format!("asks a person (`kage permit ls`): {about}");
                self.activity = Some((text, now));
            }
            EventBody::PermissionDecided { number, allowed, by } => {
                self.questions.close(*number);
                let word = if *allowed { "allowed" } else { "denied" };
                self.activity = Some((format!("question {number} is {word} {by}"), now));
            }
            EventBody::PhaseChanged(_) | EventBody::OutputTruncated { .. } | EventBody::Finished(_) => {}
        }
    }

    /// A result came from an attempt that had what people said.
    pub(crate) fn follow_messages(&mut self) {
        let head = self.checkpoints.head.as_ref().map_or(0, |head| head.number);
        self.messages.follow(head);
    }

    /// What its running attempt asks and nobody decided; nothing while none runs.
    #[must_use]
    pub fn open_questions(&self) -> &[Question] {
        match self.state {
            SessionState::Running { .. } => &self.questions.0,
            SessionState::Queued
            | SessionState::Claimed { .. }
            | SessionState::Verifying { .. }
            | SessionState::Verified { .. }
            | SessionState::Rejected { .. }
            | SessionState::Unverified { .. }
            | SessionState::Saving { .. }
            | SessionState::Failed { .. }
            | SessionState::Cancelled { .. } => &[],
        }
    }

    /// The checkpoint that was just [recorded](Self::record). `position` is that of its parent.
    #[must_use]
    pub fn checkpoint(
        &self,
        taken: TakenCheckpoint,
        position: u64,
        taken_at: Timestamp,
        stored_at: Timestamp,
    ) -> Checkpoint {
        Checkpoint {
            session: self.id,
            number: self.checkpoints.taken,
            attempt: self.attempts,
            adapter: self.adapter.clone(),
            agent: self.agent.clone().unwrap_or_default(),
            position: taken.transcript.as_ref().map_or(position, |segment| segment.to),
            calls: match taken.calls {
                Some(calls) => self.calls.before_attempt.saturating_add(calls),
                None => self.calls.answered,
            },
            taken,
            safety: Safety::Unknown,
            taken_at,
            stored_at,
        }
    }

    /// A note for its model when it resumes; empty when it can continue as if nothing had happened.
    #[must_use]
    pub fn note_to_model(&self) -> String {
        self.setback.as_ref().map(Setback::note).unwrap_or_default()
    }

    /// Makes the session wait for an attempt that resumes a checkpoint; `None`: the base. An ended
    /// session becomes open again.
    pub fn go_on_from(&mut self, head: Option<Head>) {
        self.checkpoints.head = head;
        self.setback = None;
        self.rework = None;
        self.stands = None;
        self.ended_as = None;
        self.spared = None;
        self.state = SessionState::Queued;
        self.cancel_requested = false;
        self.pending_result = None;
        self.ended_at = None;
    }

    /// Ends a session whose work was [being saved](SessionState::Saving), with the result that was
    /// made of it. False when nothing was being saved.
    pub fn saved(&mut self, unfinished: Option<ResultCommit>, now: Timestamp) -> bool {
        let SessionState::Saving { end } = &self.state else {
            return false;
        };
        self.state = end.clone().with(unfinished, None);
        self.ended_at = Some(now);
        true
    }

    /// Makes the session wait for an attempt that continues from `head`, where its result failed
    /// verify, and is told so.
    pub fn work_on(&mut self, head: Head, result: ResultCommit, verdict: Verdict) {
        let from = head.number;
        self.go_on_from(Some(head));
        self.reworks = self.reworks.saturating_add(1);
        self.rework = Some(Rework { from, result, verdict });
    }

    /// Sends it back to one of its checkpoints, because a person said so.
    pub fn send_back(&mut self, head: Head) {
        self.messages.take_back(head.number);
        self.go_on_from(Some(head));
    }

    /// Lets the next adapter take over, with its own model. `None` when there is none left.
    pub fn hand_over(&mut self) -> Option<&AdapterName> {
        if self.fallbacks.is_empty() {
            return None;
        }
        let next = self.fallbacks.remove(0);
        self.adapter = next.adapter;
        self.model = next.model;
        Some(&self.adapter)
    }

    /// How often it reached the turn limit of an attempt, as far as it remembers.
    #[must_use]
    pub fn turn_limits(&self) -> u32 {
        let of_turns = |incident: &&Incident| incident.failure.kind == FailureKind::TurnLimit;
        u32::try_from(self.incidents.iter().filter(of_turns).count()).unwrap_or(u32::MAX)
    }

    /// Records a failure with the decision, and forgets the oldest of many.
    pub fn note(&mut self, mut incident: Incident) {
        let kept = remembered(&incident.failure.message).len();
        incident.failure.message.truncate(kept);
        if self.incidents.len() >= MAX_INCIDENTS {
            self.incidents.remove(0);
        }
        self.incidents.push(incident);
    }
}

/// The start of a failure's message.
fn remembered(message: &str) -> &str {
    let end = message.floor_char_boundary(MAX_INCIDENT);
    message.get(..end).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(
            SessionId::from_random(1),
            TaskId::from_random(2),
            "one".parse().unwrap(),
            "claude-api".parse().unwrap(),
            None,
        )
    }

    #[test]
    fn tools_are_unknown_until_somebody_tells_of_them() {
        let mut session = session();
        let mut tell = |tools: Option<&[&str]>| {
            let body = EventBody::UsageRecorded {
                model: "m".to_owned(),
                usage: Usage::default(),
                reported: None,
                metered: true,
                tools: tools.map(|tools| tools.iter().copied().collect()),
                call: None,
            };
            let event = Event {
                seq: 1,
                at: Timestamp::from_millis(1),
                body,
            };
            session.record(&event, Timestamp::from_millis(1));
            let told = session.tools.as_ref();
            told.map(|tools| {
                tools
                    .iter()
                    .map(|(tool, calls)| format!("{tool} {calls}"))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(tell(None), None);
        assert_eq!(tell(Some(&[])), Some(Vec::new()), "none is known to be none");
        assert_eq!(tell(Some(&["bash", "edit"])).unwrap(), ["bash 1", "edit 1"]);
        assert_eq!(tell(None).unwrap(), ["bash 1", "edit 1"]);
        assert_eq!(tell(Some(&["bash"])).unwrap(), ["bash 2", "edit 1"]);
    }

    #[test]
    fn a_warning_is_kept_once_and_few_are() {
        let mut session = session();
        let mut warn = |text: &str| {
            let event = Event {
                seq: 1,
                at: Timestamp::from_millis(1),
                body: EventBody::Warning(text.to_owned()),
            };
            session.record(&event, Timestamp::from_millis(1));
            session.warnings.clone()
        };
        assert_eq!(warn("a host was refused"), ["a host was refused"]);
        assert_eq!(warn("another"), ["a host was refused", "another"]);
        assert_eq!(warn("a host was refused").len(), 2);
        let long = "ü".repeat(MAX_WARNING);
        for _ in 0..2 {
            let kept = warn(&long);
            assert_eq!((kept.len(), kept[2].len()), (3, MAX_WARNING));
        }
        for number in 0..100 {
            assert!(warn(&number.to_string()).len() <= MAX_WARNINGS);
        }
    }
}
