//! State events: an attempt's reports about itself, numbered from 1.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call::CallRef;
use crate::checkpoint::{Safety, TakenCheckpoint};
use crate::contain::Tier;
use crate::failure::Failure;
use crate::id::{Digest, Oid};
use crate::left_out::LeftOut;
use crate::test_counts::TestTally;
use crate::time::Timestamp;
use crate::tool_uses::ToolUses;
use crate::usage::{PicoUsd, Usage};
use crate::words::words;

words! {
    /// The part of its work that an attempt is at.
    pub enum Phase: "a phase of an attempt" {
        /// Fetching the base and preparing the workspace.
        Preparing = "preparing",
        /// Running the task's set-up command.
        Setup = "setup",
        /// The adapter works.
        Working = "working",
        /// The verify command runs.
        Verifying = "verifying",
        /// The result is committed and sent.
        Uploading = "uploading",
    }
}

words! {
    /// How a file differs from the base commit.
    pub enum ChangeKind: "a kind of change" {
        /// Not in the base.
        Added = "added",
        /// Other content, mode or type.
        Modified = "modified",
        /// Deleted from the worktree.
        Deleted = "deleted",
        /// As in the base again, after it was reported as changed.
        Reverted = "reverted",
    }
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

/// The most restored paths that a [`Verdict`] lists: each is read whenever its session is. Restored
/// paths beyond that count as if they had influenced the verdict.
pub const MAX_RESTORED: usize = 200;

/// A commit that a session wants to land. Its parent is the task's base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultCommit {
    /// The commit.
    pub commit: Oid,
    /// Its tree, which identifies the checkpoints with the same files.
    #[serde(default)]
    pub tree: Option<Oid>,
    /// The size of the change.
    pub diff: DiffStat,
    /// Changed paths, sorted, [`MAX_RESULT_PATHS`] at most.
    pub paths: Vec<String>,
    /// The deleted ones of `paths`.
    pub deleted: Vec<String>,
    /// The largest files that it adds or changes, from [`LARGE_BYTES`] on, the largest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large: Vec<LargeFile>,
    /// What the session's worktree had and the result leaves out, as far as it could be missed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A file of a result, with its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeFile {
    /// Its path.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A file from this size on is worth a look before it becomes a part of a history: a person's own
/// untracked files of more are not sent either.
pub const LARGE_BYTES: u64 = 5 << 20;

/// The most files that a [`ResultCommit`] names as large, and as left out: each is read whenever its
/// session is.
pub const MAX_ODD_FILES: usize = 20;

words! {
    /// The decision of verify.
    pub enum VerdictKind: "a verdict" {
        /// The command ended with 0.
        Passed = "passed",
        /// The command ended with another code: the session's fault.
        Failed = "failed",
        /// The command could not run: not the session's fault.
        Errored = "errored",
    }
}

impl VerdictKind {
    /// What it tells about the files that were checked.
    #[must_use]
    pub const fn safety(self) -> Safety {
        match self {
            Self::Passed => Safety::Safe,
            Self::Failed => Safety::Unsafe,
            Self::Errored => Safety::Unknown,
        }
    }
}

words! {
    /// What verify said without the change that it had passed.
    pub enum WithoutChange: "an outcome of verify without the change" {
        /// It failed, so it depends on the change.
        Failed = "failed",
        /// It passed: it says nothing about the change.
        Passed = "passed",
        /// The result changes nothing but tests and protected files.
        NothingElse = "nothing_else" ("there was nothing to take out"),
        /// It could not be run so.
        NotRun = "not_run" ("could not be run"),
    }
}

/// The decision of verify, its place and its duration.
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
    /// The tier of containment that it ran in. The coordinator writes it, from what it stored with the
    /// attempt: a report of its agent says nothing.
    #[serde(default, skip_serializing_if = "Tier::is_lowest")]
    pub contained: Tier,
    /// A digest of what that machine brought to the check: the environment of its commands and the
    /// programs in its PATH. Only a check of the base has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Digest>,
    /// Paths that were restored from the base before the commands ran because the result changed
    /// them, sorted, [`MAX_RESTORED`] at most: the result's changes to them were not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restored: Vec<String>,
    /// What verify's output tells of its tests. `None`: verify did not run, or its agent does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<TestTally>,
    /// What verify said when the result's change was taken out, its tests apart. `None`: nobody asked, or
    /// it had not passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_change: Option<WithoutChange>,
    /// Beginning and end of the deciding command's output, if it failed; empty once it is decided
    /// that the session does not go on from there. The logs have all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

impl Verdict {
    /// The same verdict for a session that does not go on.
    #[must_use]
    pub fn without_output(self) -> Self {
        Self {
            output: String::new(),
            ..self
        }
    }

    /// True when its output told how many tests ran.
    #[must_use]
    pub fn has_counts(&self) -> bool {
        self.tests.as_ref().is_some_and(|tests| !tests.suites.is_empty())
    }

    /// A verdict without a decision, from no agent.
    #[must_use]
    pub const fn errored(message: String) -> Self {
        Self {
            kind: VerdictKind::Errored,
            exit_code: None,
            message,
            duration: Duration::ZERO,
            agent: String::new(),
            environment: String::new(),
            contained: Tier::T0,
            machine: None,
            restored: Vec::new(),
            tests: None,
            without_change: None,
            output: String::new(),
        }
    }
}

words! {
    /// The output streams of an attempt.
    #[derive(PartialOrd, Ord)]
    pub enum OutputStream: "a stream of output" {
        /// What the program wrote to standard output.
        Stdout = "stdout",
        /// What the program wrote to standard error.
        Stderr = "stderr",
        /// The provider's raw messages, a JSON object per line.
        Transcript = "transcript",
    }
}

/// How an attempt ended, as its agent saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// A session job: the adapter ended successfully; the result came before.
    Claimed,
    /// A verify job: this is the verdict.
    Verdict(Verdict),
    /// It failed.
    Failed(Failure),
}

/// The content of an event.
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
        /// The cost that the program reports.
        reported: Option<PicoUsd>,
        /// True when the tokens come from metered API responses.
        metered: bool,
        /// Tools called since the last event that tells of them; `None`: the program does not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tools: Option<ToolUses>,
        /// The call; `None`: a program reports for calls of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        call: Option<CallRef>,
    },
    /// A model call failed and will be repeated.
    CallRetried {
        /// The failure.
        failure: Failure,
        /// The wait before the next call.
        delay: Duration,
        /// The number of the call that failed, from 1.
        attempt: u32,
    },
    /// Files changed since the last such event.
    FilesChanged(Vec<FileChange>),
    /// Output exceeded its limit.
    OutputTruncated {
        /// The stream.
        stream: OutputStream,
        /// Its length; later bytes were dropped.
        at: u64,
    },
    /// Information for people that stops nothing.
    Warning(String),
    /// The result is ready; its objects are in this thin pack against the base.
    ResultCommitted {
        /// The result.
        result: ResultCommit,
        /// Blob of the pack.
        pack: Digest,
    },
    /// A checkpoint was taken. It is reported only when its blobs are on the coordinator.
    CheckpointTaken(TakenCheckpoint),
    /// The attempt resumed a checkpoint: its files are there.
    Resumed {
        /// The checkpoint.
        commit: Oid,
        /// The position in the conversation; 0 when a new one begins.
        position: u64,
        /// Model calls that have to be repeated.
        repeated_calls: u32,
    },
    /// Its model was told what a person said while it works: the message of this number.
    MessageTold(u32),
    /// Its program asks a person whether it may do something.
    PermissionAsked {
        /// Of the question, from 1 in the attempt.
        number: u32,
        /// What it wants to do, in one line.
        about: String,
        /// How long it waits for an answer; then it may not.
        wait: Duration,
    },
    /// A question was answered, or its time is over.
    PermissionDecided {
        /// Of the question.
        number: u32,
        /// Whether it may.
        allowed: bool,
        /// Who decided, in words after "is allowed": "by owner", "because nobody answered in 10m".
        by: String,
    },
    /// The attempt ended. Always the last event.
    Finished(AttemptOutcome),
}

impl EventBody {
    /// Writes the tier of the attempt into its verdict, whatever its agent says there.
    pub fn ran_in(&mut self, tier: Tier) {
        if let Self::Finished(AttemptOutcome::Verdict(verdict)) = self {
            verdict.contained = tier;
        }
    }

    /// Whether nothing follows it in its attempt.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Finished(_))
    }

    /// Whether only an attempt on the task may report it, and none that verifies.
    #[must_use]
    pub const fn is_of_sessions(&self) -> bool {
        matches!(
            self,
            Self::CheckpointTaken(_)
                | Self::Resumed { .. }
                | Self::ResultCommitted { .. }
                | Self::MessageTold(_)
                | Self::PermissionAsked { .. }
                | Self::PermissionDecided { .. }
        )
    }
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

/// Why a batch of events is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBatch {
    /// The batch is empty.
    #[error("the batch has no events")]
    Empty,
    /// Numbers are missing, repeated or out of order inside the batch.
    #[error("event {0} does not follow the one before it")]
    NotConsecutive(u64),
    /// A checkpoint of an attempt that only verifies.
    #[error("event {0} belongs to a session, but the attempt only verifies")]
    NotOfThisJob(u64),
    /// A checkpoint that could never be assembled.
    #[error("event {0} tells of a checkpoint that follows neither the base nor a checkpoint of its session")]
    UnknownParent(u64),
    /// An event after the last one.
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
        if before.body.is_last() {
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
