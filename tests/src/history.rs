//! What clients, watchers, agents and programs saw, in the order in which they saw it, and
//! what has to be true of it whatever was cut, killed or filled up meanwhile. Pure: whoever
//! records a history and reads the end of it is elsewhere (`chaos`).
//!
//! A call is answered `Done`, `Refused` or `Unknown`; what is unknown may have happened or
//! not, but never half and never twice. The invariants:
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
    /// Id of the task.
    pub task: String,
    /// Name of the session.
    pub session: String,
    /// "session", "verify" or "baseline".
    pub job: String,
}

/// One stream of output of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamKey {
    /// The job.
    pub job: JobKey,
    /// Number of the attempt.
    pub attempt: u32,
    /// Number of the stream on the wire.
    pub stream: i32,
}

/// What a client asks for. Calls of one request id are the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A task, that only this request has the prompt of.
    Create {
        /// The request id.
        request: String,
        /// The prompt.
        prompt: String,
        /// How many sessions it is to have.
        sessions: usize,
    },
    /// The end of a task.
    Cancel {
        /// The request id.
        request: String,
        /// Id of the task.
        task: String,
    },
    /// Bytes by digest, or a commit.
    Store {
        /// What names them.
        name: String,
    },
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done and durable. A created task's id, else nothing.
    Done(String),
    /// It was not done.
    Refused(String),
    /// It may have been done.
    Unknown(String),
}

/// What an agent delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Events up to this number.
    Events(u64),
    /// Bytes at an offset of a stream.
    Output {
        /// Number of the stream.
        stream: i32,
        /// Of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// What a watcher was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// A task as it was.
    Task(Box<v1::Task>),
    /// An event.
    Event(v1::SessionEvent),
    /// Output.
    Output(v1::OutputChunk),
}

/// Something that happened, as one of those outside saw it.
#[expect(clippy::large_enum_variant, reason = "most lines are the large ones")]
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A client called.
    Called(u64, Call),
    /// It was answered.
    Answered(u64, Answer),
    /// A watcher of a task was sent something.
    Saw(String, Sight),
    /// An agent was given an attempt.
    Granted {
        /// Id of the attempt.
        attempt: String,
        /// Its job.
        job: JobKey,
        /// Its number.
        number: u32,
        /// Its token.
        token: String,
    },
    /// An agent sent something of an attempt.
    Sent(String, Write),
    /// Events up to a number are durable, it was told.
    AckedEvents(String, u64),
    /// Bytes before an offset of a stream are durable, it was told.
    AckedOutput(String, i32, u64),
    /// An agent was told that an attempt has no authority.
    Rejected(String),
    /// A program began to work in a worktree.
    Began {
        /// The program.
        program: String,
        /// The worktree.
        worktree: String,
    },
    /// A program ended.
    Ended(String),
}

/// A line of a history.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Client, watcher, agent or machine. Every watcher of a task is one of its own.
    pub who: String,
    /// What.
    pub what: What,
}

/// Everything that was seen, in the order in which it was written down.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The lines.
    pub entries: Vec<Entry>,
}

/// A task at the end, read anew from its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalTask {
    /// The task.
    pub task: v1::Task,
    /// Its events, in the task's order.
    pub events: Vec<v1::SessionEvent>,
    /// Its output.
    pub output: BTreeMap<StreamKey, Vec<u8>>,
    /// Its checkpoints, as they are listed.
    pub checkpoints: Vec<v1::Checkpoint>,
}

/// Something that the API lists as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// A commit, or a digest.
    pub name: String,
    /// Why it cannot be had whole; `None` = it can.
    pub missing: Option<String>,
}

/// A line that a daemon logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which daemon.
    pub daemon: String,
    /// The line.
    pub line: String,
}

/// The end, as the public API tells it, and what is left on the machines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Final {
    /// Every task.
    pub tasks: Vec<FinalTask>,
    /// What is listed as stored.
    pub listed: Vec<Listed>,
    /// Programs that still run although everything ended.
    pub survivors: Vec<String>,
    /// Lines about trouble: errors and panics.
    pub said: Vec<Said>,
    /// What was broken on purpose: a part of the words that tell of it, and whether somebody
    /// must have said them.
    pub broken: Vec<(String, bool)>,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// What is wrong.
    pub text: String,
}

/// Everything that is wrong with a history and its end.
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
    /// Writes a line down.
    pub fn add(&mut self, who: &str, what: What) {
        let who = who.to_owned();
        self.entries.push(Entry { who, what });
    }

    /// What those of one kind saw, with its place.
    fn each(&self) -> impl Iterator<Item = (usize, &str, &What)> {
        let entries = self.entries.iter().enumerate();
        entries.map(|(at, entry)| (at, entry.who.as_str(), &entry.what))
    }

    /// Calls with their answers. One without an answer is unknown.
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

    /// The attempts that agents were given, by id: place, job and number.
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
    /// The job of an event.
    fn job(&self, event: &v1::SessionEvent) -> JobKey {
        JobKey {
            task: self.task.id.clone(),
            session: event.session.clone(),
            job: event.job().as_str().to_owned(),
        }
    }
}

/// The events of a session and of checks of its results. The check of the base is listed with
/// the first session, and is none of its doing.
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

/// The task of an id at the end.
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
