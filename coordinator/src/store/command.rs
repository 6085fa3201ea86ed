//! What may be asked of the store, and what comes back: one type per command, one type per
//! outcome. How a command is decided is in `apply`; this file only names things.

use std::time::Duration;

use kage_core::attempt::{EndReason, StaleWriter};
use kage_core::checkpoint::Resumes;
use kage_core::deadline::Slack;
use kage_core::event::{Event, InvalidBatch};
use kage_core::fleet::Agent;
use kage_core::id::{AdapterName, AgentId, AttemptId, BootId, Digest, JobId, ProjectId, SessionId, TaskId};
use kage_core::job::{Affinity, JobKind, Subject};
use kage_core::priority::Priority;
use kage_core::recovery::Jitter;
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::{Labels, Task, TaskOrigin, TaskSpec};
use kage_core::time::Timestamp;

/// What makes a client's call one call, however often it is sent.
///
/// Unique per principal and kind of command. The same id with the same payload has the
/// outcome of the first call; with another payload it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub principal: String,
    /// The caller's own id for the call.
    pub id: String,
    /// Digest of what is asked for, the id apart.
    pub payload: Digest,
}

/// Stores a task, its sessions and their jobs.
#[derive(Debug, Clone)]
pub struct CreateTask {
    /// The caller's request id: repeating the call has no effect.
    pub request: Request,
    pub task: TaskId,
    /// What is asked for: valid, its repository and context present.
    pub spec: TaskSpec,
    /// Where it comes from, as far as the client says.
    pub origin: Option<TaskOrigin>,
    /// Fresh ids, one pair per assignment, in their order.
    pub sessions: Vec<(SessionId, JobId)>,
    /// A fresh id for the job that checks the base, when that is wanted and it can be.
    pub baseline: Option<JobId>,
    /// How many of those who may work on each assignment to pass over, because nobody has them;
    /// none where it is silent.
    pub unavailable: Vec<usize>,
    /// Why it is refused, unless an earlier call stored it: what no agent has.
    pub lacking: Option<String>,
    pub now: Timestamp,
}

impl CreateTask {
    /// The sessions as they begin, in the order of the assignments.
    pub(crate) fn begun(&self) -> Vec<Session> {
        let assignments = self.spec.assignments.iter().zip(&self.sessions).enumerate();
        let begun = assignments.map(|(position, (assignment, (session, _)))| {
            let unavailable = self.unavailable.get(position).copied().unwrap_or_default();
            self.spec.session(assignment, *session, self.task, unavailable)
        });
        begun.collect()
    }

    /// The task as it begins: created by whose call this is.
    pub(crate) fn new_task(&self) -> Task {
        let task = Task::new(self.task, self.spec.clone(), self.now);
        task.created(self.request.principal.clone(), self.origin.clone())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id: that of the first call when this one repeats it.
    pub task: TaskId,
    /// True when this call repeats an earlier one, and nothing changed.
    pub repeated: bool,
    /// What followed.
    pub changes: Changes,
}

/// Stops every session of a task that has not ended.
#[derive(Debug, Clone)]
pub struct CancelTask {
    pub request: Request,
    pub task: TaskId,
    /// The time.
    pub now: Timestamp,
}

/// Gives a waiting job to an agent that accepted it.
#[derive(Debug, Clone)]
pub struct StartAttempt {
    pub task: TaskId,
    pub job: JobId,
    pub attempt: AttemptId,
    /// The number that was offered; see [`super::Work::number`].
    pub number: u32,
    /// Hash of the token that was offered.
    pub token_hash: Digest,
    pub agent: AgentId,
    /// The agent's present start.
    pub boot: BootId,
    pub agent_name: String,
    /// From where its adapter can go on with a conversation.
    pub resumes: Resumes,
    /// Until when it may act without being heard of.
    pub lease_until: Timestamp,
    /// What it gets besides its task's limit.
    pub slack: Slack,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Start {
    /// It is live: work may begin.
    Started(Changes),
    /// The job moved on since it was offered, or the agent was started anew. Its agent is
    /// told to stop; the job may still wait.
    NotStartable,
}

/// What an agent shows when it speaks for an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub attempt: AttemptId,
    /// Hash of the token that came with the message.
    pub token_hash: Digest,
}

/// Extends the leases that an agent's heartbeat names.
#[derive(Debug, Clone)]
pub struct RenewLeases {
    pub agent: AgentId,
    /// The agent's present start.
    pub boot: BootId,
    /// The attempts that it says it runs.
    pub claims: Vec<Claim>,
    /// The new end of the leases; a lease is never shortened.
    pub lease_until: Timestamp,
    pub now: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewed {
    pub renewed: Vec<AttemptId>,
    /// These have no authority: their agent is told to stop them.
    pub refused: Vec<AttemptId>,
}

/// Stores a batch of an attempt's events and does what they ask for.
#[derive(Debug, Clone)]
pub struct AppendEvents {
    /// The attempt, and the proof of authority.
    pub claim: Claim,
    pub agent: AgentId,
    /// Consecutive events.
    pub events: Vec<Event>,
    /// A fresh id, used when the end of the attempt makes a verify job.
    pub next_job: JobId,
    /// Fresh randomness, used when the end of the attempt makes its job wait.
    pub jitter: Jitter,
    /// The time.
    pub now: Timestamp,
}

/// What became of a batch of events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Appended {
    /// Every event up to `seq` is durable.
    Acked {
        /// The last stored event.
        seq: u64,
        /// What followed.
        changes: Changes,
    },
    /// Events before the batch are missing: the sender starts again after `acked_seq`.
    Gap {
        /// The last stored event.
        acked_seq: u64,
    },
    /// The sender has no authority (any more): it stops the attempt.
    Stale(StaleWriter),
    /// No such attempt was ever started: the sender stops it.
    UnknownAttempt,
    /// The batch contradicts itself.
    Invalid(InvalidBatch),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Those of this agent that were given to another start than `boot`.
    OtherBoots { agent: AgentId, boot: BootId },
    /// Those given to this start of an agent.
    Boot { agent: AgentId, boot: BootId },
    /// These, as far as they are live.
    These(Vec<AttemptId>),
    /// Those of these whose lease ended before now: a renewed one stays.
    Expired(Vec<AttemptId>),
}

/// Takes the authority of attempts away, and decides what becomes of their jobs.
#[derive(Debug, Clone)]
pub struct EndAttempts {
    pub which: Ending,
    pub reason: EndReason,
    pub now: Timestamp,
}

/// Extends every live lease: a starting coordinator could not be heard of.
#[derive(Debug, Clone)]
pub struct ExtendAllLeases {
    /// The new end; a lease is never shortened.
    pub lease_until: Timestamp,
    pub now: Timestamp,
}

/// Stores who an agent is. A new start of it takes work again unless it is cordoned; the same
/// one drains on.
#[derive(Debug, Clone)]
pub struct RecordAgent {
    /// The agent as its Hello describes it; `draining` and `cordoned` are not looked at.
    pub agent: Agent,
}

/// Says that an agent takes no more work, or takes work again.
#[derive(Debug, Clone)]
pub struct SetDraining {
    /// Makes a client's call one call; `None` when the agent itself says so.
    pub request: Option<Request>,
    pub agent: AgentId,
    pub draining: bool,
    pub now: Timestamp,
}

/// Says that an agent is to take no new work until somebody says otherwise.
#[derive(Debug, Clone)]
pub struct SetCordoned {
    pub request: Request,
    pub agent: AgentId,
    pub cordoned: bool,
    pub now: Timestamp,
}

/// Stores that a base context is there. Its bytes are a blob, durable before.
#[derive(Debug, Clone)]
pub struct PutContext {
    pub request: Request,
    pub project: ProjectId,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub now: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextPut {
    /// False when it was stored before. A repeated call says what the first one said.
    pub created: bool,
}

/// Counts that a base context was sent to an agent.
#[derive(Debug, Clone)]
pub struct RecordContextSent {
    pub project: ProjectId,
    pub digest: Digest,
    pub agent: AgentId,
    pub bytes: u64,
}

/// Sends a session back to one of its checkpoints: what is open of it ends, and a new job
/// goes on from there, also when the session or its task was over.
#[derive(Debug, Clone)]
pub struct RestoreSession {
    pub request: Request,
    pub task: TaskId,
    pub session: SessionId,
    /// Number of the checkpoint.
    pub checkpoint: u32,
    /// Whether ignored files that were made since go, too.
    pub complete: bool,
    pub next_job: JobId,
    pub now: Timestamp,
}

/// Says that a session is about to be sent back, and that what it did is to be kept before.
/// The agent is asked by the caller.
#[derive(Debug, Clone)]
pub struct PrepareRestore {
    /// That of the [`RestoreSession`] which follows.
    pub request: Request,
    pub task: TaskId,
    pub session: SessionId,
    pub now: Timestamp,
}

/// What is to be done before a session is sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestorePrepared {
    /// Nothing: this call has sent it back.
    Done,
    /// A checkpoint with a larger number is to be had, however often the call is repeated: one.
    Saves {
        /// The last checkpoint before the first such call.
        after: u32,
    },
}

/// Says that a checkpoint of a session is asked for. The agent is asked by the caller.
///
/// It comes back with the number of the last checkpoint before the first such call: one that
/// was asked for and has a larger number is the answer to it.
#[derive(Debug, Clone)]
pub struct RequestCheckpoint {
    pub request: Request,
    pub task: TaskId,
    pub session: SessionId,
    pub now: Timestamp,
}

/// Forgets a task that ended, with everything that is stored of it.
///
/// What it left in files goes afterwards, because no row names it any more.
#[derive(Debug, Clone)]
pub struct DropTask {
    /// Makes a client's call one call; `None` when the coordinator itself makes room.
    pub request: Option<Request>,
    pub task: TaskId,
    pub now: Timestamp,
}

/// How long a request can be repeated, at least: 7 days.
pub const REQUEST_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What followed from a command: whom to wake, whom to tell.
///
/// It is handed out after the commit. Two callers may get theirs in another order than
/// their commands were committed, so it is a reason to look, not a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Changes {
    /// Jobs that wait now.
    pub queued: Vec<QueuedJob>,
    /// Jobs that waited and do no longer, because they were cancelled.
    pub withdrawn: Vec<JobId>,
    /// Attempts that are live now.
    pub begun: Vec<BegunAttempt>,
    /// Attempts whose agent is to be told to stop. They keep their authority until it did.
    pub stop: Vec<StopAttempt>,
    /// Attempts that lost their authority.
    pub ended: Vec<EndedAttempt>,
    /// What sessions came to that have ended now.
    pub over: Vec<SessionStateKind>,
    /// Tasks that have something new to show: events, or a state.
    pub tasks: Vec<TaskId>,
}

impl Changes {
    /// Notes whether a session that had this state has ended by what was done to it.
    pub(super) fn note_end(&mut self, before: SessionStateKind, session: &Session) {
        let now = session.state.kind();
        if now.is_terminal() && !before.is_terminal() {
            self.over.push(now);
        }
    }
}

/// A job that may be offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    pub job: JobId,
    pub task: TaskId,
    /// What it is about.
    pub subject: Subject,
    pub project: ProjectId,
    pub kind: JobKind,
    pub adapter: AdapterName,
    /// Labels that its agent must carry: the task's and the session's.
    pub requirements: Labels,
    pub priority: Priority,
    /// Not to be started before.
    pub not_before: Timestamp,
    /// When it began to wait, this time.
    pub queued_at: Timestamp,
    /// Where it had best be.
    pub affinity: Affinity,
}

/// An attempt that began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BegunAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Who has it.
    pub agent: AgentId,
    /// How long it may be live.
    pub allowed: Duration,
}

/// An attempt that is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Who has it.
    pub agent: AgentId,
    /// Whether the session's next attempt goes on in its worktree.
    pub keep_worktree: bool,
}

/// An attempt that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Who had it.
    pub agent: AgentId,
    /// Why.
    pub reason: EndReason,
}
