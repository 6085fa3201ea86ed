//! Checkpoints: the whole worktree of a session as a commit, with the position in its conversation.
//! This file defines a checkpoint, which one a session resumes, and what has to be fetched for
//! that. It takes and stores none.
//!
//! ```text
//!   base <- 1 baseline <- 2 files changed <- 3 files changed      (attempt 1, lost)
//!                                        \
//!                                         <- 4 files changed ...  (attempt 2, from 2)
//! ```
//! Every checkpoint has one parent: the base of the task or a checkpoint of the same session. Its
//! pack holds the objects that the parent lacks. Its segment holds the conversation's growth since
//! the parent; a segment from position 0 begins a new conversation.

use serde::{Deserialize, Serialize};

use crate::id::{AdapterName, Digest, Oid, SessionId};
use crate::time::Timestamp;

mod worktree_choice;
mod resumes;
mod words;

pub use resumes::Resumes;
pub use words::{CheckpointReason, Safety};
pub use worktree_choice::WorktreeChoice;

#[cfg(test)]
mod tests;

/// The longest note of a checkpoint, in bytes.
pub const MAX_NOTE: usize = 1000;

/// A part of a conversation: messages of an API, or lines of a program's session file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscriptSegment {
    /// Blob of the entries.
    pub blob: Digest,
    /// The position before its first entry; 0 begins a conversation.
    pub from: u64,
    /// The position after its last entry.
    pub to: u64,
}

/// A checkpoint, as reported by the agent that took it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenCheckpoint {
    /// The commit; the base itself when nothing differs from it.
    pub commit: Oid,
    /// Its parent: the base, or a checkpoint of the session.
    pub parent: Oid,
    /// Its tree: equal trees are equal files.
    pub tree: Oid,
    /// Why it was taken.
    pub reason: CheckpointReason,
    /// The note of the person who asked for it, [`MAX_NOTE`] bytes at most.
    pub note: String,
    /// Paths that differ from the parent.
    pub files_changed: u64,
    /// Blob of the objects that the parent lacks, as a thin pack; `None` when the commit is the
    /// parent.
    pub pack: Option<Digest>,
    /// The conversation's growth since the parent.
    pub transcript: Option<TranscriptSegment>,
    /// Model calls of the attempt that were answered when it was taken; `None` when the agent
    /// cannot tell. The report is sent later than that, so the events before it give another
    /// number.
    #[serde(default)]
    pub calls: Option<u32>,
    /// The newest message that its session was told while it worked and that the conversation has up to
    /// here, by its number; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub told: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl TakenCheckpoint {
    /// True when its files are those of `base`: nothing differs from it, or nothing was done yet.
    /// The tree can still differ, because a commit has the files as they are on the disk, and git
    /// may check out other line endings than the base has.
    #[must_use]
    pub fn is_base(&self, base: &Oid) -> bool {
        self.commit == *base || (self.reason == CheckpointReason::Baseline && self.parent == *base)
    }
}

/// A checkpoint that the coordinator holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The session that it belongs to.
    pub session: SessionId,
    /// Its number within the session, from 1, which people type.
    pub number: u32,
    /// Number of the attempt that took it.
    pub attempt: u32,
    /// The adapter that worked.
    pub adapter: AdapterName,
    /// Name of the agent that took it.
    pub agent: String,
    /// The agent's report.
    pub taken: TakenCheckpoint,
    /// The position in the conversation.
    pub position: u64,
    /// Model calls of the session that were answered when it was taken.
    pub calls: u32,
    /// Verify's result on its files.
    pub safety: Safety,
    /// By the agent's clock.
    pub taken_at: Timestamp,
    /// When the coordinator stored it.
    pub stored_at: Timestamp,
}

/// What an attempt needs to resume a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The checkpoint.
    pub commit: Oid,
    /// Its tree, to check the assembled commit.
    pub tree: Oid,
    /// Its number within the session.
    pub number: u32,
    /// Packs to apply over the base, in this order.
    pub packs: Vec<Digest>,
    /// The conversation's segments, in this order, without gaps.
    pub segments: Vec<TranscriptSegment>,
    /// The position in the conversation: the end of the last segment, or 0.
    pub position: u64,
    /// Model calls that were answered after the checkpoint and have to be made again.
    pub repeated_calls: u32,
    /// What happened since, in one sentence for the model; empty when the model need not know.
    pub note: String,
    /// A new instruction for the model; empty when it is only to continue.
    pub instruction: String,
    /// True when the conversation up to `position` has the instruction already; it is sent only if
    /// it does not.
    pub instruction_known: bool,
    /// The instruction for a new conversation, with what the one up to `position` has already; empty:
    /// the same.
    pub instruction_anew: String,
    /// The worktree to resume in.
    #[serde(rename = "footing")]
    pub worktree: WorktreeChoice,
}

/// An attempt that resumed a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumption {
    /// Number of the attempt.
    pub attempt: u32,
    /// Number of the checkpoint.
    pub number: u32,
    /// The checkpoint.
    pub commit: Oid,
    /// The position in the conversation; 0 when the attempt began a new one.
    pub position: u64,
    /// Model calls that had to be made again.
    pub repeated_calls: u32,
}

impl Resumption {
    /// One line for people: "attempt 2 went on from checkpoint 3; 1 model call made again".
    #[must_use]
    pub fn words(&self) -> String {
        let calls = match self.repeated_calls {
            0 => "no model call made again".to_owned(),
            1 => "1 model call made again".to_owned(),
            n => format!("{n} model calls made again"),
        };
        let conversation = if self.position == 0 {
            " with a new conversation"
        } else {
            ""
        };
        format!(
            "attempt {} continued from checkpoint {}{conversation}; {calls}",
            self.attempt, self.number
        )
    }
}

/// The checkpoint that a session stands on, by both its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number within the session.
    pub number: u32,
    /// Its commit.
    pub commit: Oid,
    /// The worktree in which the next attempt resumes it: a new one, unless a person sent the
    /// session back to it while it ran.
    #[serde(rename = "footing", default, skip_serializing_if = "WorktreeChoice::is_new")]
    pub worktree: WorktreeChoice,
}

impl Head {
    /// The names of a checkpoint.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            number: checkpoint.number,
            commit: checkpoint.taken.commit.clone(),
            worktree: WorktreeChoice::New,
        }
    }
}

/// The points to which a session can go back. `None`: only the base.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Points {
    /// The checkpoint that it stands on, half-done edits included.
    pub newest: Option<Head>,
    /// True when a conversation is stored with the newest.
    pub talked: bool,
    /// The newest one that was taken between two steps.
    pub settled: Option<Head>,
    /// The newest one whose files passed verify.
    pub safe: Option<Head>,
    /// True when the files of the newest are not those that the session began with.
    pub changed: bool,
}

impl Points {
    /// The points of a session that stands on `head`; `all` are its checkpoints.
    #[must_use]
    pub fn of(head: Option<&Head>, all: &[Checkpoint]) -> Self {
        let number = head.map(|head| head.number);
        let Some(newest) = all.iter().find(|checkpoint| Some(checkpoint.number) == number) else {
            return Self::default();
        };
        let line = line(newest, all);
        let first = |fits: fn(&Checkpoint) -> bool| line.iter().find(|checkpoint| fits(checkpoint));
        Self {
            newest: Some(Head::of(newest)),
            talked: newest.position > 0,
            settled: first(|checkpoint| checkpoint.taken.reason.is_settled()).map(|found| Head::of(found)),
            safe: first(|checkpoint| checkpoint.safety == Safety::Safe).map(|found| Head::of(found)),
            changed: first_files(&line).is_none_or(|first| first.taken.tree != newest.taken.tree),
        }
    }

    /// True when edits may be half done in the newest.
    #[must_use]
    pub fn half_done(&self) -> bool {
        self.newest != self.settled
    }
}

/// Why a checkpoint cannot be assembled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// There is no such checkpoint.
    #[error("the session has no checkpoint {0}")]
    Unknown(u32),
    /// A parent is neither the base nor a checkpoint.
    #[error("checkpoint {number} follows {parent}, which is neither the base nor a checkpoint of the session")]
    UnknownParent {
        /// The checkpoint whose parent it is.
        number: u32,
        /// The parent.
        parent: Oid,
    },
    /// The conversation has a gap.
    #[error("the conversation of checkpoint {number} continues at {from}, and its parent's ends at {end}")]
    Gap {
        /// The checkpoint whose segment begins wrong.
        number: u32,
        /// Where the segment begins.
        from: u64,
        /// Where it should begin.
        end: u64,
    },
}

/// The packs and segments from the base to a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Packs in order.
    pub packs: Vec<Digest>,
    /// The conversation in order, without that of an older adapter.
    pub segments: Vec<TranscriptSegment>,
}

impl Chain {
    /// The chain of `checkpoint` over `base`; `all` are the session's checkpoints.
    ///
    /// # Errors
    /// When a link is missing.
    pub fn of(checkpoint: &Checkpoint, all: &[Checkpoint], base: &Oid) -> Result<Self, BrokenChain> {
        let line = line(checkpoint, all);
        let first = line.last().copied().unwrap_or(checkpoint);
        if first.taken.commit != *base && first.taken.parent != *base {
            return Err(BrokenChain::UnknownParent {
                number: first.number,
                parent: first.taken.parent.clone(),
            });
        }
        let mut chain = Self::default();
        let mut end = 0;
        let mut adapter = &first.adapter;
        for checkpoint in line.into_iter().rev() {
            chain.packs.extend(checkpoint.taken.pack.clone());
            if checkpoint.adapter != *adapter {
                // This adapter cannot continue another adapter's conversation.
                (adapter, end) = (&checkpoint.adapter, 0);
                chain.segments.clear();
            }
            let Some(segment) = &checkpoint.taken.transcript else {
                continue;
            };
            if segment.from == 0 {
                chain.segments.clear();
            } else if segment.from != end {
                return Err(BrokenChain::Gap {
                    number: checkpoint.number,
                    from: segment.from,
                    end,
                });
            }
            end = segment.to;
            chain.segments.push(segment.clone());
        }
        Ok(chain)
    }

    /// The position in the conversation after it.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.to)
    }
}

impl Resume {
    /// What an attempt of `adapter` needs to resume checkpoint `head` over `base`, when `calls`
    /// model calls were answered so far; `all` are the session's checkpoints.
    ///
    /// It cannot use the conversation of another adapter, so it begins a new one.
    ///
    /// # Errors
    /// When the checkpoint cannot be assembled.
    pub fn of(
        head: &Head,
        all: &[Checkpoint],
        base: &Oid,
        adapter: &AdapterName,
        calls: u32,
    ) -> Result<Self, BrokenChain> {
        let checkpoint = all
            .iter()
            .find(|checkpoint| checkpoint.number == head.number)
            .ok_or(BrokenChain::Unknown(head.number))?;
        let mut chain = Chain::of(checkpoint, all, base)?;
        if checkpoint.adapter != *adapter {
            chain.segments.clear();
        }
        Ok(Self {
            commit: checkpoint.taken.commit.clone(),
            tree: checkpoint.taken.tree.clone(),
            number: checkpoint.number,
            position: chain.position(),
            packs: chain.packs,
            segments: chain.segments,
            repeated_calls: calls.saturating_sub(checkpoint.calls),
            note: String::new(),
            instruction: String::new(),
            instruction_known: false,
            instruction_anew: String::new(),
            worktree: head.worktree,
        })
    }
}

/// True when the conversation that `adapter` continues at `head` grew after checkpoint `from`;
/// `all` are the session's checkpoints.
#[must_use]
pub fn talked_since(head: &Head, from: u32, all: &[Checkpoint], adapter: &AdapterName) -> bool {
    let Some(newest) = all.iter().find(|checkpoint| checkpoint.number == head.number) else {
        return false;
    };
    newest.position > 0
        && line(newest, all)
            .iter()
            .take_while(|checkpoint| checkpoint.adapter == *adapter)
            .any(|checkpoint| checkpoint.number > from && checkpoint.taken.transcript.is_some())
}

/// The checkpoint of the files that the session began with, which a disk may have with other line
/// endings than the base; `None` when none was taken. `line` is newest first.
fn first_files<'a>(line: &[&'a Checkpoint]) -> Option<&'a Checkpoint> {
    let first = line.last().copied()?;
    (first.taken.reason == CheckpointReason::Baseline || first.taken.commit == first.taken.parent).then_some(first)
}

/// What a result is made of that nobody claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The files that the session began with: a checkpoint, or the base.
    pub from: Oid,
    /// The checkpoint that it stands on.
    pub to: Oid,
    /// Packs to apply over the base, in this order, for both to be there.
    pub packs: Vec<Digest>,
}

impl Work {
    /// The work of a session that stands on `head`; `all` are its checkpoints. `None` without a
    /// checkpoint.
    ///
    /// # Errors
    /// When the checkpoint cannot be assembled.
    pub fn of(head: Option<&Head>, all: &[Checkpoint], base: &Oid) -> Result<Option<Self>, BrokenChain> {
        let Some(head) = head else { return Ok(None) };
        let newest = all
            .iter()
            .find(|checkpoint| checkpoint.number == head.number)
            .ok_or(BrokenChain::Unknown(head.number))?;
        let from = first_files(&line(newest, all)).map_or(base, |first| &first.taken.commit);
        Ok(Some(Self {
            from: from.clone(),
            to: newest.taken.commit.clone(),
            packs: Chain::of(newest, all, base)?.packs,
        }))
    }
}

/// `from` and its ancestors, newest first.
pub(crate) fn line<'a>(from: &'a Checkpoint, all: &'a [Checkpoint]) -> Vec<&'a Checkpoint> {
    let mut line = vec![from];
    let mut at = from;
    // Numbers fall from one to the next, so this ends. Checkpoints that share a commit, because
    // nothing had changed, differ by their number.
    while let Some(parent) = parent(at, all) {
        line.push(parent);
        at = parent;
    }
    line
}

/// The parent of `at` among all checkpoints of its session; `None`: the base.
#[must_use]
pub fn parent<'a>(at: &Checkpoint, all: &'a [Checkpoint]) -> Option<&'a Checkpoint> {
    all.iter()
        .filter(|other| other.number < at.number && other.taken.commit == at.taken.parent)
        .max_by_key(|other| other.number)
}
