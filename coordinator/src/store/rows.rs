//! The rows that commands load and save: the port that every engine implements. The functions are
//! small and decide nothing; each works in the transaction of one command.

use std::collections::BTreeMap;

use kage_core::attempt::Attempt;
use kage_core::base_verdict::{BaseKey, KeptVerdict};
use kage_core::budget::{Held, ScopeKey, Tally};
use kage_core::checkpoint::{Checkpoint, Safety};
use kage_core::contain::Tier;
use kage_core::event::{Event, Verdict};
use kage_core::fleet::Agent;
use kage_core::id::{
    AdapterName, AgentId, AttemptId, BootId, CallId, Digest, JobId, Oid, ProjectId, RepositoryName, SessionId,
    SessionName, TaskId, TokenId,
};
use kage_core::job::{Job, JobType, Subject};
use kage_core::ledger::{CallRow, Reservation};
use kage_core::priority::Priority;
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::{Labels, Policy, Selection, Task, TaskOrigin, TaskSpec, TaskState};
use kage_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::admission::{Enrolment, JoinTokenRow, PersonToken};
use super::command::Request;
use super::error::{EngineError, StoreError};

/// Why a command ends without an outcome. Its writes are undone.
#[derive(Debug)]
pub enum Failed {
    /// It may not be carried out.
    Refused(StoreError),
    Engine(EngineError),
}

impl From<EngineError> for Failed {
    fn from(source: EngineError) -> Self {
        Self::Engine(source)
    }
}

/// A task without its spec: the parts that change, and those that decide. The prompt is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskHead {
    pub id: TaskId,
    pub project: ProjectId,
    pub policy: Policy,
    pub state: TaskState,
    pub created_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub created_by: Option<String>,
    /// Whose budgets its calls count against, where that is told by another name than `created_by`: that of the
    /// token, which all tokens of a person share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// The working tree that it came from.
    pub origin: Option<TaskOrigin>,
    /// Position of its last event.
    pub last_event: u64,
    /// The commit that its sessions start from; `None` = no repository.
    pub base: Option<Oid>,
    /// The commit with the names that go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Oid>,
    /// The verdict of verify on the base; `None`: none yet.
    pub baseline: Option<Verdict>,
    /// When that was decided, if it was for an earlier task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_kept_since: Option<Timestamp>,
    /// Its first session, which the check of that commit is listed with.
    pub first: SessionId,
    /// How many of its sessions stand where; those that are many do not have to be looked at.
    pub standing: BTreeMap<SessionStateKind, u32>,
    /// Which result is to be landed by somebody's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selection>,
}

impl TaskHead {
    /// Whose budgets its calls count against.
    #[must_use]
    pub fn person(&self) -> Option<&str> {
        self.person.as_deref().or(self.created_by.as_deref())
    }

    /// That of a task that begins with these sessions; `first` is the first of them.
    #[must_use]
    pub fn new(task: &Task, first: SessionId, sessions: &[Session]) -> Self {
        let mut head = Self {
            id: task.id,
            project: task.spec.project.clone(),
            policy: task.spec.policy.clone(),
            state: task.state,
            created_at: task.created_at,
            ended_at: task.ended_at,
            created_by: task.created_by.clone(),
            person: None,
            origin: task.origin.clone(),
            last_event: 0,
            base: (task.spec.repository.as_ref()).map(|repository| repository.base.clone()),
            names: task.spec.names().cloned(),
            baseline: task.baseline.clone(),
            baseline_kept_since: task.baseline_kept_since,
            first,
            standing: BTreeMap::new(),
            selection: task.selection.clone(),
        };
        for session in sessions {
            *head.standing.entry(session.state.kind()).or_default() += 1;
        }
        head
    }

    #[must_use]
    pub fn with(&self, spec: TaskSpec) -> Task {
        Task {
            id: self.id,
            spec,
            state: self.state,
            created_at: self.created_at,
            ended_at: self.ended_at,
            baseline: self.baseline.clone(),
            baseline_kept_since: self.baseline_kept_since,
            created_by: self.created_by.clone(),
            origin: self.origin.clone(),
            selection: self.selection.clone(),
        }
    }

    /// How many of its sessions have not ended.
    #[must_use]
    pub fn open_sessions(&self) -> u32 {
        let open = self.standing.iter().filter(|(state, _)| !state.is_terminal());
        open.map(|(_, count)| count).sum()
    }

    /// Counts a session's change of state. True if the states differ.
    pub fn session_moved(&mut self, before: SessionStateKind, now: SessionStateKind) -> bool {
        if before == now {
            return false;
        }
        if let Some(count) = self.standing.get_mut(&before) {
            *count -= 1;
            if *count == 0 {
                self.standing.remove(&before);
            }
        }
        *self.standing.entry(now).or_default() += 1;
        true
    }

    /// What verify found about the base.
    #[must_use]
    pub fn base_safety(&self) -> Safety {
        self.baseline
            .as_ref()
            .map_or(Safety::Unknown, |verdict| verdict.kind.safety())
    }
}

/// A job, and the data for placing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    pub job: Job,
    pub adapter: AdapterName,
    pub requirements: Labels,
    /// The lowest tier of containment that its agent may have.
    #[serde(default, skip_serializing_if = "Tier::is_lowest")]
    pub contain: Tier,
    pub priority: Priority,
    /// When it began to wait, this time.
    pub queued_at: Timestamp,
}

impl JobRow {
    /// The row of a waiting job. `session` is its session, or the one with which the check of the
    /// base is listed.
    #[must_use]
    pub fn of(job: Job, session: &Session, policy: &Policy, now: Timestamp) -> Self {
        let requirements = match job.subject {
            Subject::Session(_) => &session.requirements,
            Subject::Base => &policy.requirements,
        };
        Self {
            adapter: session.adapter.clone(),
            requirements: requirements.clone(),
            contain: policy.contain,
            priority: policy.priority,
            queued_at: now,
            job,
        }
    }
}

/// Data that is shown with an attempt, and never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptNote {
    pub agent_name: String,
    pub job: JobType,
    pub session_name: SessionName,
    pub started_at: Timestamp,
    /// The adapter that works; `None`: a command does, or it was not recorded yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterName>,
}

impl AttemptNote {
    /// The subject of the attempt, given the session that it is listed with.
    #[must_use]
    pub const fn subject(&self, session: SessionId) -> Subject {
        self.job.subject(session)
    }
}

/// A client's call, as it is found again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    pub principal: String,
    pub method: &'static str,
    /// The caller's request id.
    pub id: String,
}

impl RequestKey {
    /// That of a call of this kind.
    pub(super) fn of(method: &'static str, request: &Request) -> Self {
        Self {
            principal: request.principal.clone(),
            method,
            id: request.id.clone(),
        }
    }
}

/// What a client's call asked for, and what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// Digest of the request.
    pub payload: Digest,
    /// The data of the reply.
    pub reply: String,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextRow {
    /// In bytes.
    pub size: u64,
    /// How many times it was put.
    pub times_put: u64,
    pub sessions: u64,
    pub delta_bytes: u64,
}

/// The rows of one engine, inside the transaction of one command.
///
/// `insert_*` refuses an id that is in use; `save_*` replaces a row that was loaded before.
pub trait Rows:
    RequestRows
    + TaskRows
    + JobRows
    + AttemptRows
    + CheckpointRows
    + BaseVerdictRows
    + AgentRows
    + AdmissionRows
    + CallRows
    + ContextRows
{
}

pub trait RequestRows {
    fn request(&mut self, key: &RequestKey) -> Result<Option<RequestRow>, Failed>;
    fn insert_request(&mut self, key: &RequestKey, row: &RequestRow) -> Result<(), Failed>;
    /// Removes those of the `limit` oldest calls that were made before `before`.
    fn forget_requests(&mut self, before: Timestamp, limit: u32) -> Result<(), Failed>;
}

pub trait TaskRows {
    fn insert_task(&mut self, head: &TaskHead, spec: &TaskSpec) -> Result<(), Failed>;
    /// A task without its spec.
    fn task(&mut self, id: TaskId) -> Result<Option<TaskHead>, Failed>;
    /// One of the tasks whose repository is this one.
    fn task_on(&mut self, project: &ProjectId, repository: &RepositoryName) -> Result<Option<TaskId>, Failed>;
    /// Saves everything that changes.
    fn save_task(&mut self, task: &TaskHead) -> Result<(), Failed>;
    /// Forgets a task with its sessions, jobs, attempts, events and checkpoints.
    fn remove_task(&mut self, id: TaskId) -> Result<(), Failed>;
    /// Stores a session at its place among the task's sessions.
    fn insert_session(&mut self, session: &Session, position: usize) -> Result<(), Failed>;
    fn session(&mut self, task: TaskId, id: SessionId) -> Result<Option<Session>, Failed>;
    /// Saves everything that changes.
    fn save_session(&mut self, session: &Session) -> Result<(), Failed>;
}

/// Jobs and their attempts.
pub trait JobRows {
    fn insert_job(&mut self, row: &JobRow) -> Result<(), Failed>;
    fn job(&mut self, task: TaskId, id: JobId) -> Result<Option<JobRow>, Failed>;
    /// Saves everything that changes.
    fn save_job(&mut self, row: &JobRow) -> Result<(), Failed>;
    /// The jobs of a task that are not over, by id.
    fn open_jobs(&mut self, task: TaskId) -> Result<Vec<JobRow>, Failed>;
}

/// Leased executions, and the events that they deliver.
pub trait AttemptRows {
    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed>;
    fn attempt(&mut self, id: AttemptId) -> Result<Option<Attempt>, Failed>;
    /// Saves lease, last event and state.
    fn save_attempt(&mut self, attempt: &Attempt) -> Result<(), Failed>;
    /// The live attempts of an agent, oldest first.
    fn live_attempts(&mut self, agent: AgentId) -> Result<Vec<Attempt>, Failed>;
    /// Extends every live lease that ends earlier, as [`Attempt::renew`] does.
    fn extend_leases(&mut self, until: Timestamp, now: Timestamp) -> Result<(), Failed>;
    /// Stores an event at its position in the task.
    fn insert_event(&mut self, task: TaskId, pos: u64, attempt: AttemptId, event: &Event) -> Result<(), Failed>;
}

/// Checkpoints. Their packs and segments are blobs that were durable before.
pub trait CheckpointRows {
    fn insert_checkpoint(&mut self, task: TaskId, checkpoint: &Checkpoint) -> Result<(), Failed>;
    /// The checkpoints of a session, oldest first.
    fn checkpoints(&mut self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, Failed>;
    /// The conversation and the position in it at a session's newest checkpoint of this commit.
    fn position(
        &mut self,
        task: TaskId,
        session: SessionId,
        commit: &Oid,
    ) -> Result<Option<(u64, AdapterName)>, Failed>;
    /// The trees of the task's checkpoints that have the files of its base, each once.
    fn base_trees(&mut self, task: TaskId, base: &Oid) -> Result<Vec<Oid>, Failed>;
    /// What verify found about these files in any session of the task.
    fn safety(&mut self, task: TaskId, tree: &Oid) -> Result<Safety, Failed>;
    /// Saves that with every checkpoint of the task that has these files.
    fn save_safety(&mut self, task: TaskId, tree: &Oid, safety: Safety) -> Result<(), Failed>;
}

/// Verdicts on bases, kept for later tasks.
pub trait BaseVerdictRows {
    /// Those of a check, one of each kind of machine, by machine.
    fn base_verdicts(&mut self, key: &BaseKey) -> Result<Vec<KeptVerdict>, Failed>;
    /// Stores one, in place of an older one of its key and machine.
    fn put_base_verdict(&mut self, kept: &KeptVerdict) -> Result<(), Failed>;
    /// Forgets those that were decided before.
    fn forget_base_verdicts(&mut self, before: Timestamp) -> Result<(), Failed>;
}

/// The ledger of calls, and what is held back for those that did not end.
pub trait CallRows {
    /// Whether the ledger has a row of this name of an attempt.
    fn has_call(&mut self, attempt: AttemptId, name: &str) -> Result<bool, Failed>;
    fn insert_call(&mut self, row: &CallRow) -> Result<(), Failed>;
    fn reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<Option<Reservation>, Failed>;
    /// By call.
    fn reservations_of(&mut self, attempt: AttemptId) -> Result<Vec<Reservation>, Failed>;
    fn put_reservation(&mut self, reservation: &Reservation) -> Result<(), Failed>;
    fn remove_reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<(), Failed>;
    /// What the rows of a scope add up to, and what is held back in it now. What is held back counts
    /// whenever it was granted: its row will be of the time when it is settled.
    fn used_of(&mut self, scope: &ScopeKey) -> Result<(Tally, Vec<Held>), Failed>;
}

pub trait AgentRows {
    /// The present start of an agent.
    fn agent_boot(&mut self, id: AgentId) -> Result<Option<BootId>, Failed>;
    fn agent(&mut self, id: AgentId) -> Result<Option<Agent>, Failed>;
    fn put_agent(&mut self, agent: &Agent) -> Result<(), Failed>;
    /// Notes when an agent was last heard of.
    fn save_agent_seen(&mut self, id: AgentId, at: Timestamp) -> Result<(), Failed>;
}

/// Join tokens, joined agents and people's tokens.
pub trait AdmissionRows {
    fn join_token(&mut self, id: TokenId) -> Result<Option<JoinTokenRow>, Failed>;
    /// Stores or replaces a join token.
    fn put_join_token(&mut self, id: TokenId, row: &JoinTokenRow) -> Result<(), Failed>;
    /// Forgets the join tokens that ended before.
    fn forget_join_tokens(&mut self, before: Timestamp) -> Result<(), Failed>;
    fn enrolment(&mut self, agent: AgentId) -> Result<Option<Enrolment>, Failed>;
    /// Stores or replaces an agent that joined.
    fn put_enrolment(&mut self, enrolment: &Enrolment) -> Result<(), Failed>;
    fn person_token(&mut self, id: TokenId) -> Result<Option<PersonToken>, Failed>;
    /// Stores or replaces a token of a person.
    fn put_person_token(&mut self, token: &PersonToken) -> Result<(), Failed>;
}

pub trait ContextRows {
    fn context(&mut self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextRow>, Failed>;
    /// Stores or replaces a base context.
    fn put_context(&mut self, project: &ProjectId, digest: &Digest, row: &ContextRow) -> Result<(), Failed>;
    /// Counts another sending of a base context.
    fn add_context_sent(
        &mut self,
        project: &ProjectId,
        digest: &Digest,
        agent: AgentId,
        bytes: u64,
    ) -> Result<(), Failed>;
}
