//! The observations of clients, watchers, agents and programs, in order, and the invariants that
//! hold for them whatever was cut, killed or filled up meanwhile. Pure: `chaos` records a history
//! and reads the final state.
//!
//! A call is answered `Done`, `Refused` or `Unknown`; an unknown one may have happened or not, but
//! never half and never twice. The invariants:
//!
//! | | holds |
//! |---|---|
//! | I1 | at most one attempt of a job has authority: nothing of an older one is stored after a newer one began |
//! | I2 | numbers of attempts rise, tokens are never used again |
//! | I3 | an accepted result is that of the attempt that had authority, and is accepted once |
//! | I4 | events and bytes of an attempt have no gap and no repeat; what was acknowledged is there |
//! | I5 | an end never changes |
//! | I6 | a request id has one effect, and that effect is whole |
//! | I7 | what is listed as stored can be fetched whole; checkpoints are those that were told, in order |
//! | I8 | a worktree has one owner |
//! | I9 | the sums are the sums of what was reported |
//! | I10 | decisions are on record, one after the other |
//! | I11 | nothing runs that nobody answers for |
//! | I13 | no trouble without words, and no words without trouble |

use std::collections::{BTreeMap, BTreeSet};

use kage_proto::v1;
use kage_proto::v1::event::Body;

mod attempts;
mod effects;
mod streams;
mod surroundings;

#[cfg(test)]
mod sample;

pub use streams::stream_key;
pub use surroundings::OUT_OF_ORDER;

/// A job: task, session and kind of job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobKey {
    pub task: String,
    pub session: String,
    /// "session", "verify" or "baseline".
    pub job: String,
}

/// One output stream of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamKey {
    pub job: JobKey,
    pub attempt: u32,
    /// Number of the stream on the wire.
    pub stream: i32,
}

/// A client's request. Calls with one request id are the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Creates a task with a prompt that only this request has.
    Create {
        request: String,
        prompt: String,
        sessions: usize,
    },
    Cancel {
        request: String,
        task: String,
    },
    /// Stores bytes by digest, or a commit.
    Store {
        /// The digest or commit.
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done and durable. The id of a created task, else empty.
    Done(String),
    Refused(String),
    /// The call may have taken effect.
    Unknown(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Acknowledged events, by the last number.
    Events(u64),
    /// Bytes at an offset of a stream.
    Output { stream: i32, offset: u64, bytes: Vec<u8> },
}

/// An item sent to a watcher.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// A task in its state at the time.
    Task(Box<v1::Task>),
    Event(Box<v1::SessionEvent>),
    Output(v1::OutputChunk),
}

/// An observation from outside the system.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Called(u64, Call),
    Answered(u64, Answer),
    /// A watcher of a task was sent an item.
    Saw(String, Sight),
    /// An agent was granted an attempt.
    Granted {
        attempt: String,
        job: JobKey,
        number: u32,
        token: String,
    },
    /// An agent sent data of an attempt.
    Sent(String, Write),
    /// An agent was told that events up to a number are durable.
    AckedEvents(String, u64),
    /// An agent was told that bytes before an offset of a stream are durable.
    AckedOutput(String, i32, u64),
    /// An agent was told that an attempt has no authority.
    Rejected(String),
    /// A program began to work in a worktree.
    Began {
        program: String,
        worktree: String,
    },
    Ended(String),
}

/// An observation in a history.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Client, watcher, agent or machine. Every watcher of a task has its own name.
    pub who: String,
    pub what: What,
}

/// All observations, in the order in which they were recorded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    pub entries: Vec<Observation>,
}

/// A task in its final state, read again from its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalTask {
    pub task: v1::Task,
    /// In the order of the task.
    pub events: Vec<v1::SessionEvent>,
    pub output: BTreeMap<StreamKey, Vec<u8>>,
    /// As the coordinator lists them.
    pub checkpoints: Vec<v1::Checkpoint>,
}

/// Something that the API lists as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// A commit, or a digest.
    pub name: String,
    /// Why it cannot be fetched whole; `None`: it can.
    pub missing: Option<String>,
}

/// A line that a daemon logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub daemon: String,
    pub line: String,
}

/// The final state according to the public API, and leftovers on the machines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Final {
    pub tasks: Vec<FinalTask>,
    pub listed: Vec<Listed>,
    /// Programs that still run although everything ended.
    pub survivors: Vec<String>,
    pub said: Vec<Said>,
    /// Deliberate faults: a part of the words that report them, and whether a report is required.
    pub broken: Vec<(String, bool)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

/// All violations in a history and its final state.
#[must_use]
pub fn check(history: &History, end: &Final) -> Vec<Violation> {
    let mut found = Vec::new();
    effects::check(history, end, &mut found);
    attempts::check(history, end, &mut found);
    streams::check(history, end, &mut found);
    surroundings::check(history, end, &mut found);
    found
}

impl History {
    pub fn add(&mut self, who: &str, what: What) {
        let who = who.to_owned();
        self.entries.push(Observation { who, what });
    }

    /// The observations with their observer and position.
    fn each(&self) -> impl Iterator<Item = (usize, &str, &What)> {
        let entries = self.entries.iter().enumerate();
        entries.map(|(at, entry)| (at, entry.who.as_str(), &entry.what))
    }

    /// Calls with their answers. A call without an answer is unknown.
    fn calls(&self) -> Vec<(&Call, Answer)> {
        let answers: BTreeMap<u64, &Answer> = self
            .each()
            .filter_map(|(_, _, what)| match what {
                What::Answered(op, answer) => Some((*op, answer)),
                _ => None,
            })
            .collect();
        let calls = self.each().filter_map(|(_, _, what)| match what {
            What::Called(op, call) => {
                let answer = answers.get(op).copied().cloned();
                Some((call, answer.unwrap_or_else(|| Answer::Unknown("no answer".to_owned()))))
            }
            _ => None,
        });
        calls.collect()
    }

    /// The attempts that agents were granted, by id: position, job and number.
    fn grants(&self) -> BTreeMap<&str, (usize, &JobKey, u32)> {
        let grants = self.each().filter_map(|(at, _, what)| match what {
            What::Granted {
                attempt, job, number, ..
            } => Some((attempt.as_str(), (at, job, *number))),
            _ => None,
        });
        grants.collect()
    }
}

impl FinalTask {
    fn job(&self, event: &v1::SessionEvent) -> JobKey {
        JobKey {
            task: self.task.id.clone(),
            session: event.session.clone(),
            job: event.job().as_str().to_owned(),
        }
    }
}

/// The events of a session and of the checks of its results. The check of the base is listed with
/// the first session, but does not belong to it.
fn of_session<'a>(task: &'a FinalTask, session: &'a v1::Session) -> impl Iterator<Item = &'a v1::SessionEvent> {
    let events = task.events.iter();
    events.filter(|event| event.session == session.name && event.job() != v1::JobKind::Baseline)
}

/// Number and body of an event.
fn parts(event: &v1::SessionEvent) -> (u64, Option<&Body>) {
    event
        .event
        .as_ref()
        .map_or((0, None), |event| (event.seq, event.body.as_ref()))
}

fn is_over(state: v1::TaskState) -> bool {
    match state {
        v1::TaskState::Unspecified | v1::TaskState::Running => false,
        v1::TaskState::Succeeded | v1::TaskState::Failed | v1::TaskState::Cancelled => true,
    }
}

/// The final state of a task.
fn task<'a>(end: &'a Final, id: &str) -> Option<&'a FinalTask> {
    end.tasks.iter().find(|task| task.task.id == id)
}

/// Every job that a task has events of.
fn jobs(task: &FinalTask) -> BTreeSet<JobKey> {
    task.events.iter().map(|event| task.job(event)).collect()
}

fn violation(found: &mut Vec<Violation>, invariant: &'static str, text: impl Into<String>) {
    found.push(Violation {
        invariant,
        text: text.into(),
    });
}
