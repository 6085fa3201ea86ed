//! State events: what an attempt tells about itself, numbered from 1.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Safety, TakenCheckpoint};
use crate::failure::Failure;
use crate::id::{Digest, Oid};
use crate::time::Timestamp;
use crate::usage::{PicoUsd, Usage};

/// What part of its work an attempt is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fetching the base and making the workspace.
    Preparing,
    /// Running the task's set-up command.
    Setup,
    /// The adapter works.
    Working,
    /// The verify command runs.
    Verifying,
    /// The result is committed and sent.
    Uploading,
}

/// How a file differs from the base commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Not in the base.
    Added,
    /// Other content, mode or type.
    Modified,
    /// Gone.
    Deleted,
    /// As in the base again, after it was reported changed.
    Reverted,
}

/// One changed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Relative to the worktree; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// How it differs.
    pub kind: ChangeKind,
    /// Lines added; 0 for binary files.
    pub added: u64,
    /// Lines removed; 0 for binary files.
    pub removed: u64,
}

/// The size of a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffStat {
    /// Files that differ.
    pub files: u32,
    /// Lines added.
    pub added: u64,
    /// Lines removed.
    pub removed: u64,
}

/// The most paths a [`ResultCommit`] lists.
pub const MAX_RESULT_PATHS: usize = 1000;

/// The most paths that a [`Verdict`] says were restored: each is read whenever its session is.
/// What is not listed counts as if it had decided.
pub const MAX_RESTORED: usize = 200;

/// A commit that a session wants to land. Its parent is the task's base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultCommit {
    /// The commit.
    pub commit: Oid,
    /// Its tree, which tells the checkpoints that have the same files.
    #[serde(default)]
    pub tree: Option<Oid>,
    /// How much it changes.
    pub diff: DiffStat,
    /// Changed paths, sorted, [`MAX_RESULT_PATHS`] at most.
    pub paths: Vec<String>,
    /// Those of them that it deletes.
    pub deleted: Vec<String>,
}

/// What verify decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// The command ended with 0.
    Passed,
    /// The command ended with anything else: the session's fault.
    Failed,
    /// The command could not be run: not the session's fault.
    Errored,
}

impl VerdictKind {
    /// What it says about the files that were checked.
    #[must_use]
    pub const fn safety(self) -> Safety {
        match self {
            Self::Passed => Safety::Safe,
            Self::Failed => Safety::Unsafe,
            Self::Errored => Safety::Unknown,
        }
    }
}

/// What verify decided, where, and how long that took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The decision.
    pub kind: VerdictKind,
    /// Exit code of the deciding command, when it ran and was not killed.
    pub exit_code: Option<i32>,
    /// One sentence.
    pub message: String,
    /// Setup and verify together.
    pub duration: Duration,
    /// Name of the agent that ran it.
    pub agent: String,
    /// Operating system and architecture of that machine.
    pub environment: String,
    /// Paths that were taken from the base before the commands ran although the result has
    /// them otherwise, sorted, [`MAX_RESTORED`] at most: what the result did to them was not
    /// checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restored: Vec<String>,
    /// Beginning and end of what the deciding command wrote, of one that failed; empty once it
    /// is decided that nobody goes on from there. The logs have all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

impl Verdict {
    /// The same, as it is kept where nobody goes on from it.
    #[must_use]
    pub fn without_output(self) -> Self {
        Self {
            output: String::new(),
            ..self
        }
    }

    /// No decision, and nobody who made it.
    #[must_use]
    pub const fn errored(message: String) -> Self {
        Self {
            kind: VerdictKind::Errored,
            exit_code: None,
            message,
            duration: Duration::ZERO,
            agent: String::new(),
            environment: String::new(),
            restored: Vec::new(),
            output: String::new(),
        }
    }
}

/// The streams of output that an attempt has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// What the program wrote to standard output.
    Stdout,
    /// What the program wrote to standard error.
    Stderr,
    /// The provider's raw messages, a JSON object per line.
    Transcript,
}

impl OutputStream {
    /// Every stream.
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Stderr, Self::Transcript];

    /// The name used in paths and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Transcript => "transcript",
        }
    }
}

/// How an attempt ended, as its agent saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// A session job: the adapter ended well; the result came before.
    Claimed,
    /// A verify job: this is the verdict.
    Verdict(Verdict),
    /// It failed.
    Failed(Failure),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventBody {
    /// The attempt is at another part of its work.
    PhaseChanged(Phase),
    /// One line for people.
    Activity(String),
    /// Tokens used since the last such event.
    UsageRecorded {
        /// As the provider names it.
        model: String,
        /// What was used.
        usage: Usage,
        /// What the program says it cost.
        reported: Option<PicoUsd>,
        /// True when the tokens come from metered API responses.
        metered: bool,
    },
    /// A model call failed and will be made again.
    CallRetried {
        /// Why.
        failure: Failure,
        /// The wait before the next call.
        delay: Duration,
        /// The number of the call that failed, from 1.
        attempt: u32,
    },
    /// Files differ from the base in another way than before.
    FilesChanged(Vec<FileChange>),
    /// Output passed its cap.
    OutputTruncated {
        /// Which stream.
        stream: OutputStream,
        /// Its length; later bytes were dropped.
        at: u64,
    },
    /// Something a person should know, and that stops nothing.
    Warning(String),
    /// The result is ready; its objects are in this thin pack against the base.
    ResultCommitted {
        /// The result.
        result: ResultCommit,
        /// Blob of the pack.
        pack: Digest,
    },
    /// A checkpoint was taken. It is told only when its blobs are on the coordinator.
    CheckpointTaken(TakenCheckpoint),
    /// The attempt goes on from a checkpoint: its files are there.
    Resumed {
        /// The checkpoint.
        commit: Oid,
        /// The place in the conversation; 0 when a new one begins.
        position: u64,
        /// Model calls that have to be made again.
        repeated_calls: u32,
    },
    /// The attempt ended. Always the last event.
    Finished(AttemptOutcome),
}

/// One numbered event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Consecutive within the attempt, from 1.
    pub seq: u64,
    /// By the agent's clock; for showing only.
    pub at: Timestamp,
    /// What happened.
    pub body: EventBody,
}

/// Why a batch of events is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBatch {
    /// There is nothing in it.
    #[error("the batch has no events")]
    Empty,
    /// Numbers are missing, repeated or out of order inside the batch.
    #[error("event {0} does not follow the one before it")]
    NotConsecutive(u64),
    /// A checkpoint of an attempt that only checks.
    #[error("event {0} is one of sessions, and the attempt checks a result")]
    NotOfThisJob(u64),
    /// A checkpoint that nobody could ever put together.
    #[error("event {0} tells of a checkpoint that follows neither the base nor a checkpoint of its session")]
    UnknownParent(u64),
    /// Something comes after the last event.
    #[error("event {0} comes after the event that ended the attempt")]
    AfterEnd(u64),
}

/// Checks that a batch is consecutive and ends where its attempt ends.
///
/// # Errors
/// Says what is wrong with the first event that is.
pub fn check_batch(events: &[Event]) -> Result<(), InvalidBatch> {
    if events.is_empty() {
        return Err(InvalidBatch::Empty);
    }
    for pair in events.windows(2) {
        let [before, event] = pair else { continue };
        if before.seq.checked_add(1) != Some(event.seq) {
            return Err(InvalidBatch::NotConsecutive(event.seq));
        }
        if matches!(before.body, EventBody::Finished(_)) {
            return Err(InvalidBatch::AfterEnd(event.seq));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, body: EventBody) -> Event {
        Event {
            seq,
            at: Timestamp::from_millis(1),
            body,
        }
    }

    #[test]
    fn batches_are_consecutive_and_end_with_the_end() {
        let note = |seq| event(seq, EventBody::Activity("x".to_owned()));
        let end = |seq| event(seq, EventBody::Finished(AttemptOutcome::Claimed));
        let cases = [
            (vec![], Err(InvalidBatch::Empty)),
            (vec![note(4)], Ok(())),
            (vec![note(4), note(5), end(6)], Ok(())),
            (vec![note(4), note(6)], Err(InvalidBatch::NotConsecutive(6))),
            (vec![note(4), note(4)], Err(InvalidBatch::NotConsecutive(4))),
            (vec![end(4), note(5)], Err(InvalidBatch::AfterEnd(5))),
            (vec![note(u64::MAX), note(0)], Err(InvalidBatch::NotConsecutive(0))),
        ];
        for (events, expected) in cases {
            assert_eq!(check_batch(&events), expected, "{events:?}");
        }
    }
}
