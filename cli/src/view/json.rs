//! Tasks as JSON has them, with what belongs to them and is a message of its own.

use kage_proto::json::JsonMessage;
use kage_proto::v1;
use prost::{Message, Name};
use serde::Serialize;

/// A task with the comparison of its sessions and what verify did for each of its results, as JSON has them.
#[derive(Debug, Serialize)]
pub struct ComparedJson {
    #[serde(flatten)]
    task: JsonMessage,
    report: JsonMessage,
    verifications: Vec<Verification>,
}

impl ComparedJson {
    /// All of them, as they are now.
    #[must_use]
    pub fn of(task: &v1::Task, report: &v1::Report, verifications: Vec<Verification>) -> Self {
        Self {
            task: JsonMessage::of(task),
            report: JsonMessage::of(report),
            verifications,
        }
    }
}

/// A task with what verify did for each of its results, as JSON has them.
#[derive(Debug, Serialize)]
pub struct ShownJson {
    #[serde(flatten)]
    task: JsonMessage,
    verifications: Vec<Verification>,
}

impl ShownJson {
    /// Both, as they are now.
    #[must_use]
    pub fn of(task: &v1::Task, verifications: Vec<Verification>) -> Self {
        Self {
            task: JsonMessage::of(task),
            verifications,
        }
    }
}

/// What verify did for a result: everything that is needed to do it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Name of the session whose result it was.
    pub session: String,
    /// The commit that was checked, in a clean checkout.
    pub commit: String,
    /// The command that prepared the checkout; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup: Option<String>,
    pub command: String,
    /// The folder of the checkout in which it ran; `.` is the top.
    pub folder: String,
    /// In a word, as of `Verdict.kind`.
    pub verdict: &'static str,
    /// Null when no command ended by itself.
    pub exit_code: Option<i32>,
    /// One sentence, for people.
    pub message: String,
    /// The end of the output of setup and verify; absent: there was none, or it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
    /// Name of the agent that ran it.
    pub agent: String,
    pub duration_ms: u64,
}

/// A message about a session, as JSON has it: with the task that the session is of.
#[derive(Debug, Serialize)]
pub struct OfTaskJson<'a> {
    task_id: &'a str,
    #[serde(flatten)]
    message: JsonMessage,
}

impl<'a> OfTaskJson<'a> {
    /// The message, of this task.
    #[must_use]
    pub fn of<M: Message + Name>(task_id: &'a str, message: &M) -> Self {
        Self {
            task_id,
            message: JsonMessage::of(message),
        }
    }
}
