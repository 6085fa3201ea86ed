//! The store's reads, and their bounds. Reads see committed data and never wait for writes.

use std::collections::BTreeSet;

use kage_core::attempt::Attempt;
use kage_core::checkpoint::Checkpoint;
use kage_core::deadline::Term;
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{
    AdapterName, AgentId, AttemptId, BootId, Digest, JobId, ProjectId, RepositoryId, RepositoryName, SessionId,
    SessionName, TaskId, TokenId, WorktreeId,
};
use kage_core::job::{Job, JobType, Subject};
use kage_core::ledger::{CallRow, CostTable, CostsBy, Reservation};
use kage_core::session::Session;
use kage_core::task::{Labels, Task, TaskOrigin, TaskSpec, TaskState};
use kage_core::time::Timestamp;

use super::admission::{Enrolment, JoinTokenRow, PersonToken};
use super::command::QueuedJob;
use super::error::EngineError;
use super::rows::{AttemptNote, TaskHead};

/// A task with its sessions, in the order of its assignments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    pub task: Task,
    pub sessions: Vec<Session>,
    /// Position of its last event: everything up to it is reflected in the sessions.
    pub last_event: u64,
}

/// The result of a person's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Named {
    One(TaskId),
    NotFound,
    /// More than one.
    Ambiguous,
}

/// Shortest prefix of a task's id that is looked up.
pub const MIN_PREFIX: usize = 4;

/// The requested tasks. Every set field has to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    pub project: ProjectId,
    /// Where they came from.
    pub repository: Option<RepositoryId>,
    /// Where they came from, more closely.
    pub worktree: Option<WorktreeId>,
    pub created_by: Option<String>,
    /// The state is one of these; `None`: any.
    pub states: Option<Vec<TaskState>>,
    /// The name of the repository that they work on.
    pub works_on: Option<RepositoryName>,
    /// Labels that each of them has.
    pub labels: Labels,
    /// When they were created: at the earliest.
    pub created_from: Option<Timestamp>,
    /// When they were created: before this.
    pub created_before: Option<Timestamp>,
    pub order: TaskOrder,
}

/// How many tasks a project has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectCounts {
    pub project: ProjectId,
    pub tasks: u64,
    /// Tasks that have not ended.
    pub open: u64,
}

/// The order of a list of tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TaskOrder {
    #[default]
    NewestFirst,
    OldestFirst,
}

impl TaskFilter {
    #[must_use]
    pub fn all(project: &ProjectId) -> Self {
        Self {
            project: project.clone(),
            ..Self::default()
        }
    }

    /// True if the task matches.
    #[must_use]
    pub(super) fn takes(&self, task: &TaskHead, spec: &TaskSpec) -> bool {
        let origin = task.origin.as_ref();
        self.fits(spec, task.state, task.created_at, task.created_by.as_ref(), origin)
    }

    /// Whether it is one of them.
    #[must_use]
    pub(crate) fn takes_task(&self, task: &Task) -> bool {
        let origin = task.origin.as_ref();
        self.fits(
            &task.spec,
            task.state,
            task.created_at,
            task.created_by.as_ref(),
            origin,
        )
    }

    fn fits(
        &self,
        spec: &TaskSpec,
        state: TaskState,
        created_at: Timestamp,
        creator: Option<&String>,
        origin: Option<&TaskOrigin>,
    ) -> bool {
        let Self {
            project,
            repository,
            worktree,
            created_by,
            states,
            works_on,
            labels,
            created_from,
            created_before,
            order: _,
        } = self;
        spec.project == *project
            && (repository.is_none() || repository.as_ref() == origin.map(|origin| &origin.repository))
            && (worktree.is_none() || worktree.as_ref() == origin.map(|origin| &origin.worktree))
            && (created_by.is_none() || created_by.as_ref() == creator)
            && states.as_ref().is_none_or(|states| states.contains(&state))
            && (works_on.is_none() || works_on.as_ref() == spec.repository.as_ref().map(|repository| &repository.name))
            && labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
            && created_from.is_none_or(|from| created_at >= from)
            && created_before.is_none_or(|before| created_at < before)
    }
}

/// One page of tasks, in the order of their filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPage {
    pub tasks: Vec<TaskView>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<PageToken>,
}

/// Where a page of tasks begins. Tasks stored later never shift it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageToken(pub(super) u64);

impl std::fmt::Display for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "t{:x}", self.0)
    }
}

/// A text that no page of tasks came with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the page token is invalid")]
pub struct InvalidPageToken;

impl std::str::FromStr for PageToken {
    type Err = InvalidPageToken;

    fn from_str(text: &str) -> Result<Self, InvalidPageToken> {
        let digits = text.strip_prefix('t').ok_or(InvalidPageToken)?;
        let token = u64::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|_| InvalidPageToken)?;
        // One spelling only, and only numbers that a row can have.
        (token.to_string() == text && i64::try_from(token.0).is_ok())
            .then_some(token)
            .ok_or(InvalidPageToken)
    }
}

/// The content of a job's offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    pub spec: TaskSpec,
    pub session: Session,
    pub job: Job,
    /// The number that the next attempt has.
    pub number: u32,
    /// The session's checkpoints, oldest first, when it resumes one.
    pub checkpoints: Vec<Checkpoint>,
}

/// An attempt, with the data that its events and files are shown with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptView {
    pub attempt: Attempt,
    /// Name of the agent that has or had it.
    pub agent_name: String,
    pub job: JobType,
    pub session_name: SessionName,
    pub started_at: Timestamp,
}

impl AttemptView {
    /// An attempt, shown with this.
    pub(super) fn of(attempt: Attempt, note: AttemptNote) -> Self {
        Self {
            attempt,
            agent_name: note.agent_name,
            job: note.job,
            session_name: note.session_name,
            started_at: note.started_at,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    pub task: TaskId,
    /// The position of the last event that the watcher got.
    pub after: u64,
    /// How many events to read at most.
    pub limit: u32,
    pub attempts: bool,
}

/// Everything that a watcher does not know yet. The events may be newer than the task.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    pub view: TaskView,
    /// Its attempts, in the order they were started; empty when they were not asked for.
    pub attempts: Vec<AttemptView>,
    /// Its next events, in order.
    pub events: Vec<TaskEvent>,
}

/// An event of a task, with its place among all events of the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEvent {
    /// Consecutive within the task, from 1.
    pub pos: u64,
    /// The attempt that reported it.
    pub attempt: AttemptId,
    /// Number of that attempt in its job.
    pub number: u32,
    pub job: JobType,
    pub session: SessionId,
    pub session_name: SessionName,
    pub agent_name: String,
    pub event: Event,
}

impl TaskEvent {
    /// An event at this position, reported by an attempt.
    pub(super) fn of(pos: u64, event: Event, by: &AttemptView) -> Self {
        Self {
            pos,
            attempt: by.attempt.id,
            number: by.attempt.number,
            job: by.job,
            session: by.attempt.session,
            session_name: by.session_name.clone(),
            agent_name: by.agent_name.clone(),
            event,
        }
    }
}

/// An attempt that has authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveAttempt {
    pub attempt: AttemptId,
    pub job: JobId,
    pub subject: Subject,
    pub task: TaskId,
    /// The adapter that works; `None`: a command does.
    pub adapter: Option<AdapterName>,
    pub agent: AgentId,
    pub boot: BootId,
    pub lease_until: Timestamp,
    /// Until when it may be live.
    pub term: Term,
}

impl LiveAttempt {
    /// A live attempt, shown with this.
    pub(super) fn of(attempt: &Attempt, note: &AttemptNote) -> Self {
        Self {
            adapter: note.adapter.clone(),
            attempt: attempt.id,
            job: attempt.job,
            subject: note.subject(attempt.session),
            task: attempt.task,
            agent: attempt.agent,
            boot: attempt.boot,
            lease_until: attempt.lease_until,
            term: Term {
                started_at: note.started_at,
                ends_by: attempt.ends_by,
                stop_asked: attempt.stop_asked,
            },
        }
    }
}

/// How often a base context was stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextStats {
    /// In bytes.
    pub size: u64,
    /// How many times it was put.
    pub times_put: u64,
    pub sessions: u64,
    pub delta_bytes: u64,
    /// To whom it was sent, by agent.
    pub sent: Vec<ContextSent>,
}

/// How many times a base context was sent to one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextSent {
    pub agent: AgentId,
    /// The agent's name; empty when it was never recorded.
    pub agent_name: String,
    pub times: u64,
    pub bytes: u64,
}

/// The present numbers of jobs by type, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([JobCounts; JobType::ALL.len()]);

impl Counts {
    #[must_use]
    pub const fn of(&self, job: JobType) -> JobCounts {
        self.0[job as usize]
    }

    pub const fn of_mut(&mut self, job: JobType) -> &mut JobCounts {
        &mut self.0[job as usize]
    }

    /// The number of open jobs of all types.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.0
            .iter()
            .map(|counts| counts.later + counts.queued + counts.leased)
            .sum()
    }
}

/// Jobs of a kind that are not done, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs whose session's turn has not come.
    pub later: u64,
    pub queued: u64,
    pub leased: u64,
}

/// An ended task and its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedTask {
    pub task: TaskId,
    pub project: ProjectId,
    pub ended_at: Timestamp,
    /// Its attempts, whose output files have their ids; sorted.
    pub attempts: Vec<AttemptId>,
    /// The packs and segments of its checkpoints, each once, sorted.
    pub blobs: Vec<Digest>,
}

/// Every file that rows name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InFiles {
    /// Attempts, whose output files have their ids.
    pub attempts: BTreeSet<AttemptId>,
    /// Sessions, whose results have their ids.
    pub sessions: BTreeSet<SessionId>,
    /// Blobs of checkpoints, contexts and long prompts.
    pub blobs: BTreeSet<(ProjectId, Digest)>,
}

/// Every read, once per engine.
pub(super) trait Reads {
    fn task(&self, id: TaskId) -> Result<Option<TaskView>, EngineError>;
    fn tasks(&self, filter: &TaskFilter, after: Option<PageToken>, limit: u32) -> Result<TaskPage, EngineError>;
    /// `prefix` is lower-case hex, 4 to 32 digits.
    fn tasks_with_prefix(&self, prefix: &str) -> Result<Vec<TaskId>, EngineError>;
    fn work(&self, task: TaskId, job: JobId) -> Result<Option<Work>, EngineError>;
    /// Oldest first.
    fn checkpoints(&self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, EngineError>;
    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, EngineError>;
    fn attempt(&self, id: AttemptId) -> Result<Option<AttemptView>, EngineError>;
    fn attempts_of(&self, task: TaskId) -> Result<Vec<AttemptView>, EngineError>;
    fn live_attempts(&self, agent: Option<AgentId>) -> Result<Vec<LiveAttempt>, EngineError>;
    fn events(&self, task: TaskId, after: u64, limit: u32) -> Result<Vec<TaskEvent>, EngineError>;
    fn agents(&self) -> Result<Vec<Agent>, EngineError>;
    /// By name.
    fn projects(&self) -> Result<Vec<ProjectCounts>, EngineError>;
    /// Revoked ones included.
    fn enrolments(&self) -> Result<Vec<Enrolment>, EngineError>;
    fn join_token(&self, token: TokenId) -> Result<Option<JoinTokenRow>, EngineError>;
    /// Revoked ones included; oldest first.
    fn person_tokens(&self) -> Result<Vec<PersonToken>, EngineError>;
    fn context_size(&self, project: &ProjectId, digest: &Digest) -> Result<Option<u64>, EngineError>;
    fn context_stats(&self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextStats>, EngineError>;
    fn counts(&self) -> Result<Counts, EngineError>;
    /// The one that ended first, first.
    fn ended(&self) -> Result<Vec<EndedTask>, EngineError>;
    fn in_files(&self) -> Result<InFiles, EngineError>;
    /// Rows of the ledger with larger numbers than `after`, in the order in which they were written.
    fn calls(&self, filter: &CallFilter, after: u64, limit: u32) -> Result<Vec<(u64, CallRow)>, EngineError>;
    /// What rows of the ledger add up to.
    fn costs(&self, filter: &CallFilter, by: CostsBy) -> Result<CostTable, EngineError>;
    /// By attempt and call.
    fn reservations(&self) -> Result<Vec<Reservation>, EngineError>;
}

/// Which rows of the ledger are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallFilter {
    /// Of this project.
    pub project: Option<ProjectId>,
    /// Of this task.
    pub task: Option<TaskId>,
    /// Accepted at this time or later.
    pub since: Option<Timestamp>,
    /// Accepted before this time.
    pub until: Option<Timestamp>,
}

impl CallFilter {
    /// Whether a row is asked for.
    #[must_use]
    pub fn takes(&self, row: &CallRow) -> bool {
        self.project.as_ref().is_none_or(|project| row.project == *project)
            && self.task.is_none_or(|task| row.task == task)
            && self.since.is_none_or(|since| row.at >= since)
            && self.until.is_none_or(|until| row.at < until)
    }
}
