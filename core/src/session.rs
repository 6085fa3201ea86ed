//! Sessions: one adapter working on the task, and what is known of it.
//!
//! ```text
//!  Queued -> Running -> Claimed -> Verifying -> Verified | Rejected | Unverified
//!   ^  ^        |   \____________________________/
//!   |  \-retry--/ \--> Failed                   |   (any state before the last) -> Cancelled
//!   \------------------ rework -----------------/
//! ```
//! A session without a verify command goes from Running to Unverified; one whose rework ends
//! badly goes from Running to Rejected, as its result was. The moves are
//! made in `job`, because jobs are what start and end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Footing, Head, Resumes, Resumption, Safety, TakenCheckpoint, talked_since};
use crate::event::{Event, EventBody, ResultCommit, Verdict};
use crate::failure::{Failure, FailureKind};
use crate::fallback::Fallback;
use crate::id::{AdapterName, SessionId, SessionName, TaskId};
use crate::recovery::Incident;
use crate::rework::Rework;
use crate::task::Labels;
use crate::time::Timestamp;
use crate::usage::{PicoUsd, Usage};

mod state;
mod worked;

pub use state::{SessionState, SessionStateKind};
pub use worked::Worked;

/// What a session used of one model, by one way of counting: what a program put an amount on
/// is apart from what it did not, as a run that broke off leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUsage {
    /// As the provider names it.
    pub model: String,
    /// True when the tokens come from metered API responses.
    pub metered: bool,
    /// Tokens.
    pub usage: Usage,
    /// What the program said it cost.
    pub reported: Option<PicoUsd>,
}

/// How many models a session's usage is kept apart for. More than a few are names that a
/// program made up, and the row is written with every event.
pub const MAX_MODELS: usize = 32;
/// What the usage of models beyond [`MAX_MODELS`] is counted as; nothing has that price.
pub const OTHER_MODELS: &str = "other models";

/// How many failures a session remembers.
pub const MAX_INCIDENTS: usize = 16;
/// How many bytes of a failure's message it remembers: sessions are written often.
const MAX_INCIDENT: usize = 300;

/// How many times of going on from a checkpoint a session remembers.
pub const MAX_RESUMPTIONS: usize = 16;

/// Why a session's model cannot go on as if nothing had happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Setback {
    /// Its files are older than what it did to them, since edits were half done.
    Unfinished,
    /// They are older, since what it did then failed the checks.
    Wrong {
        /// What the checks said.
        message: String,
    },
    /// Another adapter left them.
    HandedOver,
}

impl Setback {
    /// Work that failed its checks.
    #[must_use]
    pub fn wrong(failure: &Failure) -> Self {
        Self::Wrong {
            message: remembered(&failure.message).to_owned(),
        }
    }
}

/// What a session has of checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// Checkpoints that were taken; the last one has this number.
    pub taken: u32,
    /// The checkpoint that it stands on; `None` = the base.
    pub head: Option<Head>,
    /// What its model has to know of that, until it does.
    pub setback: Option<Setback>,
    /// Model calls that were answered, as far as they are told one by one.
    pub calls: u32,
    /// Those of them that were answered before its last attempt.
    pub calls_before: u32,
    /// Its last attempts that went on from a checkpoint, oldest first.
    pub resumptions: Vec<Resumption>,
    /// How often it worked on because its work did not pass.
    pub reworks: u32,
    /// What it works on once more, since its result failed verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rework: Option<Rework>,
    /// From where the adapter of its last attempt can go on with the conversation.
    #[serde(default)]
    pub resumes: Resumes,
    /// Adapters that may still take it over, the next one first.
    #[serde(default)]
    pub fallbacks: Vec<Fallback>,
}

/// One adapter working on the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its task.
    pub task: TaskId,
    /// Its name in the task, which also finds its assignment.
    pub name: SessionName,
    /// Who works.
    pub adapter: AdapterName,
    /// The model asked for.
    pub model: Option<String>,
    /// Labels that its agent must carry: the task's and its own.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub requirements: Labels,
    /// Where it stands.
    pub state: SessionState,
    /// Someone asked for it to stop; it ends at the next occasion.
    pub cancel_requested: bool,
    /// Name of the agent that holds or last held it.
    pub agent: Option<String>,
    /// Attempts of its session job that were started.
    pub attempts: u32,
    /// The last thing it did.
    pub activity: Option<(String, Timestamp)>,
    /// What it used, by model.
    pub usage: Vec<ModelUsage>,
    /// Model calls that were made again.
    pub call_retries: u32,
    /// Its last failures, oldest first, each with what was decided about it.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// Its checkpoints, in short.
    #[serde(default)]
    pub trail: Trail,
    /// A result that was sent and not yet claimed.
    pub pending_result: Option<ResultCommit>,
    /// How long its attempts ran.
    #[serde(default)]
    pub worked: Worked,
    /// Start of its first attempt.
    pub started_at: Option<Timestamp>,
    /// When it came to its last state.
    pub ended_at: Option<Timestamp>,
}

impl Session {
    /// A session that waits.
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
            requirements: Labels::new(),
            state: SessionState::Queued,
            cancel_requested: false,
            agent: None,
            attempts: 0,
            activity: None,
            usage: Vec::new(),
            call_retries: 0,
            incidents: Vec::new(),
            trail: Trail {
                taken: 0,
                head: None,
                setback: None,
                calls: 0,
                calls_before: 0,
                resumptions: Vec::new(),
                reworks: 0,
                rework: None,
                resumes: Resumes::None,
                fallbacks: Vec::new(),
            },
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

    /// Takes in what an event says about the session, its end apart.
    pub fn record(&mut self, event: &Event, now: Timestamp) {
        match &event.body {
            EventBody::Activity(summary) => self.activity = Some((summary.clone(), now)),
            EventBody::UsageRecorded {
                model,
                usage,
                reported,
                metered,
            } => {
                // What a program tells of itself may be many calls in one.
                self.trail.calls = self.trail.calls.saturating_add(u32::from(*metered));
                self.add_usage(model, *metered, *usage, *reported);
            }
            EventBody::CallRetried { failure, delay, .. } => {
                self.call_retries = self.call_retries.saturating_add(1);
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
            EventBody::Warning(text) => self.activity = Some((format!("warning: {text}"), now)),
            EventBody::CheckpointTaken(taken) => {
                self.trail.taken = self.trail.taken.saturating_add(1);
                self.trail.head = Some(Head {
                    number: self.trail.taken,
                    commit: taken.commit.clone(),
                    footing: Footing::Anew,
                });
                // The conversation holds it by now, and files that changed since are not older.
                if taken.transcript.is_some() || taken.files_changed > 0 {
                    self.trail.setback = None;
                }
            }
            EventBody::Resumed {
                commit,
                position,
                repeated_calls,
            } => {
                let head = self.trail.head.as_ref().filter(|head| head.commit == *commit);
                if let Some(number) = head.map(|head| head.number) {
                    if self.trail.resumptions.len() >= MAX_RESUMPTIONS {
                        self.trail.resumptions.remove(0);
                    }
                    self.trail.resumptions.push(Resumption {
                        attempt: self.attempts,
                        number,
                        commit: commit.clone(),
                        position: *position,
                        repeated_calls: *repeated_calls,
                    });
                    self.activity = Some((format!("goes on from checkpoint {number}"), now));
                }
            }
            EventBody::PhaseChanged(_) | EventBody::OutputTruncated { .. } | EventBody::Finished(_) => {}
        }
    }

    /// The checkpoint that was just [recorded](Self::record). `position` is that of its
    /// parent.
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
            number: self.trail.taken,
            attempt: self.attempts,
            adapter: self.adapter.clone(),
            agent: self.agent.clone().unwrap_or_default(),
            position: taken.transcript.as_ref().map_or(position, |segment| segment.to),
            calls: match taken.calls {
                Some(calls) => self.trail.calls_before.saturating_add(calls),
                None => self.trail.calls,
            },
            taken,
            safety: Safety::Unknown,
            taken_at,
            stored_at,
        }
    }

    /// What its model has to know when it goes on; empty when it can go on as if nothing had
    /// happened.
    #[must_use]
    pub fn note_to_model(&self) -> String {
        match &self.trail.setback {
            Some(Setback::Wrong { message }) => format!(
                "The files are as they were at an earlier point, because what was done since did not pass the \
                 project's checks: {message}"
            ),
            Some(Setback::HandedOver) => {
                "The files are as another tool left them, which was at the same task and could not go on: do what is \
                 left of it."
                    .to_owned()
            }
            Some(Setback::Unfinished) => "The files are as they were before the last, unfinished step.".to_owned(),
            None => String::new(),
        }
    }

    /// Makes the session wait for an attempt that goes on from a checkpoint; `None` = from
    /// the base. That it was over is taken back.
    pub fn go_on_from(&mut self, head: Option<Head>) {
        self.trail.head = head;
        self.trail.setback = None;
        self.trail.rework = None;
        self.state = SessionState::Queued;
        self.cancel_requested = false;
        self.pending_result = None;
        self.ended_at = None;
    }

    /// Makes the session wait for an attempt that goes on from `head`, where its result failed
    /// verify, and is told so.
    pub fn work_on(&mut self, head: Head, result: ResultCommit, verdict: Verdict) {
        let from = head.number;
        self.go_on_from(Some(head));
        self.trail.reworks = self.trail.reworks.saturating_add(1);
        self.trail.rework = Some(Rework { from, result, verdict });
    }

    /// What its model is to do now, and whether the conversation that it goes on with has that
    /// already; `None` when it is to go on. `all` are the session's checkpoints, and `command` is
    /// the verify command.
    #[must_use]
    pub fn instruction(&self, all: &[Checkpoint], command: &str) -> Option<(String, bool)> {
        let (rework, head) = (self.trail.rework.as_ref()?, self.trail.head.as_ref()?);
        let known = talked_since(head, rework.from, all, &self.adapter);
        Some((rework.instruction(command), known))
    }

    /// Lets the next adapter take over, with its own model. `None` when there is none left.
    pub fn hand_over(&mut self) -> Option<&AdapterName> {
        if self.trail.fallbacks.is_empty() {
            return None;
        }
        let next = self.trail.fallbacks.remove(0);
        self.adapter = next.adapter;
        self.model = next.model;
        Some(&self.adapter)
    }

    /// How often it reached the limit of an attempt's turns, as far as it remembers.
    #[must_use]
    pub fn turn_limits(&self) -> u32 {
        let of_turns = |incident: &&Incident| incident.failure.kind == FailureKind::TurnLimit;
        u32::try_from(self.incidents.iter().filter(of_turns).count()).unwrap_or(u32::MAX)
    }

    /// Keeps a failure and what was decided about it, and forgets the oldest of many.
    pub fn note(&mut self, mut incident: Incident) {
        let kept = remembered(&incident.failure.message).len();
        incident.failure.message.truncate(kept);
        if self.incidents.len() >= MAX_INCIDENTS {
            self.incidents.remove(0);
        }
        self.incidents.push(incident);
    }

    fn add_usage(&mut self, model: &str, metered: bool, usage: Usage, reported: Option<PicoUsd>) {
        let known = |model: &str| {
            let same = |entry: &ModelUsage| {
                // What was told without an amount is not free: it has a price of its own.
                entry.model == model && entry.metered == metered && entry.reported.is_some() == reported.is_some()
            };
            self.usage.iter().position(same)
        };
        let (model, index) = match known(model) {
            None if self.usage.len() >= MAX_MODELS => (OTHER_MODELS, known(OTHER_MODELS)),
            index => (model, index),
        };
        let found = index.and_then(|index| self.usage.get_mut(index));
        match found {
            Some(entry) => {
                entry.usage += usage;
                entry.reported = entry.reported.zip(reported).map(|(a, b)| a.saturating_add(b));
            }
            None => self.usage.push(ModelUsage {
                model: model.to_owned(),
                metered,
                usage,
                reported,
            }),
        }
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
    fn what_was_told_without_an_amount_does_not_hide_in_one() {
        let mut session = session();
        let usage = Usage {
            input: 1,
            ..Usage::default()
        };
        for reported in [None, Some(PicoUsd(5)), None, Some(PicoUsd(7))] {
            session.add_usage("m", false, usage, reported);
        }
        let amounts: Vec<_> = session.usage.iter().map(|entry| entry.reported).collect();
        assert_eq!(amounts, [None, Some(PicoUsd(12))]);
        assert!(session.usage.iter().all(|entry| entry.usage.input == 2));
    }

    #[test]
    fn models_that_a_program_makes_up_are_counted_together() {
        let mut session = session();
        let usage = Usage {
            input: 1,
            ..Usage::default()
        };
        for n in 0..100 {
            session.add_usage(&format!("m{n}"), true, usage, None);
        }
        session.add_usage("m0", true, usage, None);
        assert_eq!(session.usage.len(), MAX_MODELS + 1);
        assert_eq!(session.usage[0].usage.input, 2);
        assert_eq!(session.usage[MAX_MODELS].model, OTHER_MODELS);
        assert_eq!(session.usage[MAX_MODELS].usage.input, 100 - MAX_MODELS as u64);
    }
}
