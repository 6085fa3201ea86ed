//! What may be asked of the store, and what comes back: one type per command, one type per
//! outcome. How a command is decided is in `apply`; this file only names things.

use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::{EndReason, StaleWriter};
use kage_core::base_verdict::{BaseKey, KeptVerdict};
use kage_core::budget::{BudgetRule, ScopeKey};
use kage_core::call::{Ask, Spent};
use kage_core::checkpoint::Resumes;
use kage_core::contain::Tier;
use kage_core::deadline::Slack;
use kage_core::event::{Event, InvalidBatch, ResultCommit};
use kage_core::fallback::{AdapterLacks, TaskLacks};
use kage_core::fleet::Agent;
use kage_core::id::{
    AdapterName, AgentId, AttemptId, BootId, CallId, Digest, JobId, Oid, ProjectId, RepositoryName, SessionId, TaskId,
};
use kage_core::job::{Affinity, JobKind, Subject};
use kage_core::price::PriceTable;
use kage_core::priority::Priority;
use kage_core::recovery::Jitter;
use kage_core::session::{Session, Successor};
use kage_core::task::{Labels, Task, TaskEnvironment, TaskOrigin, TaskSpec};
use kage_core::time::Timestamp;

/// Identifies a client's call, however often it is sent.
///
/// Unique per principal and kind of command. The same id with the same payload has the
/// outcome of the first call; with another payload it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub principal: String,
    /// The caller's own id for the call.
    pub id: String,
    /// Digest of the request, without its id.
    pub payload: Digest,
}

/// Stores a task, its sessions and their jobs.
#[derive(Debug, Clone)]
pub struct CreateTask {
    /// The caller's request id: repeating the call has no effect.
    pub request: Request,
    pub task: TaskId,
    /// The valid task; its repository and context exist.
    pub spec: TaskSpec,
    /// The origin of the task, if the client sent it.
    pub origin: Option<TaskOrigin>,
    /// Fresh ids, one pair per assignment, in their order.
    pub sessions: Vec<(SessionId, JobId)>,
    /// A fresh id for the job that checks the base, when that is wanted and it can be.
    pub baseline: Option<JobId>,
    /// What the machines bring on which that job could run now, as their agents say
    /// ([`Agent::machine`]).
    pub machines: Vec<Digest>,
    /// What the agents lack for it.
    pub lacks: TaskLacks,
    /// True when a task that no agent can do waits for one. Otherwise it is refused, unless an earlier
    /// call stored it.
    pub waits_for_agent: bool,
    /// So many sessions of the project wait, which is as many as may. The task is refused, unless an earlier
    /// call stored it.
    pub queue_full: Option<u32>,
    /// In words: the project has as much stored as it may have. The task is refused, unless an earlier call
    /// stored it.
    pub project_full: Option<String>,
    pub now: Timestamp,
}

impl CreateTask {
    /// By which a verdict on the base is kept, if one may be taken instead of the job that checks
    /// it.
    pub(super) fn base_key(&self) -> Option<BaseKey> {
        let (base, names) = (self.spec.checked_base()?, self.spec.names());
        let asked = self.baseline.is_some()
            && !self.spec.fresh_baseline
            && !self.machines.is_empty()
            && self.spec.environment == TaskEnvironment::default();
        asked.then(|| BaseKey::of(&self.spec.project, base, names, &self.spec.policy.verify))
    }

    /// The sessions as they begin, in the order of the assignments.
    pub(crate) fn begun(&self) -> Vec<Session> {
        let assignments = self.spec.assignments.iter().zip(&self.sessions).enumerate();
        let begun = assignments.map(|(position, (assignment, (session, _)))| {
            let nothing = AdapterLacks::default();
            let lacks = self.lacks.sessions.get(position).unwrap_or(&nothing);
            self.spec.session(assignment, *session, self.task, lacks)
        });
        begun.collect()
    }

    /// The new task, created by the caller.
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
    /// The verdict on its base that it took from an earlier task, instead of a job.
    pub baseline: Option<KeptVerdict>,
}

/// Stops every session of a task that has not ended.
#[derive(Debug, Clone)]
pub struct CancelTask {
    pub request: Request,
    pub task: TaskId,
    pub now: Timestamp,
}

/// Ends a session whose work is being saved.
#[derive(Debug, Clone)]
pub struct SaveWork {
    /// Which task.
    pub task: TaskId,
    /// Which session of it.
    pub session: SessionId,
    /// The checkpoint that the result was made of.
    pub of: Oid,
    /// The result, which can be fetched, or `None` when the work comes to nothing; why there is none.
    pub made: Result<Option<ResultCommit>, String>,
    /// The time.
    pub now: Timestamp,
}

/// Decides which result of a task is to be landed, or takes that back.
#[derive(Debug, Clone)]
pub struct SelectResult {
    /// Makes it one call; it is this caller's word.
    pub request: Request,
    pub task: TaskId,
    /// Whose result; `None` = nobody's word counts any more.
    pub session: Option<SessionId>,
    pub now: Timestamp,
}

/// Asks for verify of a result that nothing checked.
#[derive(Debug, Clone)]
pub struct VerifyResult {
    /// Makes it one call.
    pub request: Request,
    /// Which task.
    pub task: TaskId,
    /// Whose result.
    pub session: SessionId,
    /// The id of the verify job.
    pub next_job: JobId,
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
    /// From which points its adapter can resume a conversation.
    pub resumes: Resumes,
    /// The tier of containment that this start of the agent reported.
    pub contained: Tier,
    /// Until when it may act without being heard of.
    pub lease_until: Timestamp,
    /// The extra time besides its task's limit.
    pub slack: Slack,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Start {
    /// It is live: work may begin.
    Started,
    /// The job moved on since it was offered, or the agent was started anew. Its agent is
    /// told to stop; the job may still wait.
    NotStartable,
}

/// An agent's proof of authority over an attempt.
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
    /// Attempts without authority: their agent is told to stop them.
    pub refused: Vec<AttemptId>,
}

/// Stores a batch of an attempt's events and carries out their consequences.
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
    /// By which usage is priced.
    pub prices: Arc<PriceTable>,
    /// The budgets of persons and projects, which programs that report their usage are held to.
    pub rules: Vec<BudgetRule>,
    pub now: Timestamp,
}

/// Asks for a call of a model.
#[derive(Debug, Clone)]
pub struct ReserveCall {
    /// The attempt, and the proof of authority.
    pub claim: Claim,
    /// Who speaks; `None`: whoever has the attempt's token.
    pub agent: Option<AgentId>,
    pub call: CallId,
    pub ask: Ask,
    /// The budgets of persons and projects; those of the task come with it.
    pub rules: Vec<BudgetRule>,
    /// By which the most that it can cost is computed.
    pub prices: Arc<PriceTable>,
    /// Until when others wait for its end.
    pub held_until: Timestamp,
    pub now: Timestamp,
}

/// Whether a call may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Reserved {
    /// Nothing limits it, and nothing is held back for it.
    Unlimited,
    /// It may be made, with so many tokens of output.
    Granted { output: u32, warning: Option<String> },
    /// Others hold back what it needs.
    Wait {
        /// For people.
        reason: String,
        /// Of which budget.
        scope: ScopeKey,
    },
    /// It does not fit any more.
    Refused(String),
    /// The sender has no authority (any more).
    Stale(String),
}

/// Tells what a call used.
#[derive(Debug, Clone)]
pub struct CommitCall {
    /// The attempt, and the proof of authority.
    pub claim: Claim,
    /// Who speaks; `None`: whoever has the attempt's token.
    pub agent: Option<AgentId>,
    pub call: CallId,
    pub spent: Spent,
    /// By which it is priced.
    pub prices: Arc<PriceTable>,
    pub now: Timestamp,
}

/// Gives back what is held for a call of which nothing is on a bill.
#[derive(Debug, Clone)]
pub struct ReleaseCall {
    /// The attempt, and the proof of authority.
    pub claim: Claim,
    /// Who speaks; `None`: whoever has the attempt's token.
    pub agent: Option<AgentId>,
    pub call: CallId,
    pub now: Timestamp,
}

/// Asks whether a program may start that makes its calls without asking.
#[derive(Debug, Clone)]
pub struct AskToStart {
    /// The attempt, and the proof of authority.
    pub claim: Claim,
    /// Who speaks; `None`: whoever has the attempt's token.
    pub agent: Option<AgentId>,
    /// The budgets of persons and projects; those of the task come with it.
    pub rules: Vec<BudgetRule>,
    pub now: Timestamp,
}

/// Whether such a program may start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum MayStart {
    Yes,
    /// A budget is used up already.
    No(String),
    /// The sender has no authority (any more).
    Stale(String),
}

/// What became of what was held for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallSettled {
    /// It is settled now.
    Settled,
    /// Nothing was held for it, or is any more.
    Nothing,
    /// The sender has no authority (any more).
    Stale(String),
}

/// The outcome of a batch of events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Appended {
    /// Every event up to `seq` is durable.
    Acked {
        /// The last stored event.
        seq: u64,
    },
    /// Events before the batch are missing: the sender starts again after `acked_seq`.
    Gap {
        /// The last stored event.
        acked_seq: u64,
    },
    /// The sender has no authority (any more): it stops the attempt.
    Stale(StaleWriter),
    /// The attempt was never started; the sender stops it.
    UnknownAttempt,
    /// The batch contradicts itself.
    Invalid(InvalidBatch),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The attempts of this agent that were given to another start than `boot`.
    OtherBoots { agent: AgentId, boot: BootId },
    /// The attempts of this start of an agent.
    Boot { agent: AgentId, boot: BootId },
    /// These, as far as they are live.
    These(Vec<AttemptId>),
    /// Those of the attempts whose lease ended before now; a renewed one stays.
    Expired(Vec<AttemptId>),
}

/// Ends the authority of attempts, and decides what happens to their jobs.
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

/// Stores an agent's data. A new start of it takes work again unless it is cordoned; the same start
/// continues to drain.
#[derive(Debug, Clone)]
pub struct RecordAgent {
    /// The agent as its Hello describes it; `draining` and `cordoned` are not looked at.
    pub agent: Agent,
}

/// Stops an agent from taking work, or lets it take work again.
#[derive(Debug, Clone)]
pub struct SetDraining {
    /// Identifies a client's call; `None` when the agent itself asks.
    pub request: Option<Request>,
    pub agent: AgentId,
    pub draining: bool,
    pub now: Timestamp,
}

/// Gives an agent no new work until the opposite is set.
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
    /// False when it was stored before. A repeated call gets the reply of the first one.
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

/// Sends a session back to one of its checkpoints: its open jobs end, and a new job continues from
/// there, even if the session or its task had ended.
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

/// Says to a session what to do next. One that does not run waits for an attempt afterwards, even if it
/// or its task had ended.
#[derive(Debug, Clone)]
pub struct SendMessage {
    /// Makes it one call; it is this caller's word.
    pub request: Request,
    pub task: TaskId,
    pub session: SessionId,
    /// The words, checked.
    pub text: String,
    pub next_job: JobId,
    pub now: Timestamp,
}

/// Adds a session to a task that goes on from a checkpoint of another one.
#[derive(Debug, Clone)]
pub struct ForkSession {
    /// Makes it one call; the fork is this caller's wish.
    pub request: Request,
    pub task: TaskId,
    /// The session whose files they are.
    pub session: SessionId,
    /// Number of the checkpoint; `None`: the one that it stands on.
    pub checkpoint: Option<u32>,
    /// The new session.
    pub next: Successor,
    /// What it is told, checked; `None`: nothing more than the other one.
    pub text: Option<String>,
    /// How many sessions the task has, as the caller knew when it chose the name.
    pub beside: usize,
    /// What the agents lack for its adapters.
    pub lacks: AdapterLacks,
    /// What the agents lack for the check of its result; `None`: some agent could do it, or there is none.
    pub lacks_verify: Option<String>,
    /// True when a session that no agent can do waits for one.
    pub waits_for_agent: bool,
    pub next_job: JobId,
    pub now: Timestamp,
}

/// Prepares a restore: the session's work so far must be saved first. The caller asks the agent.
#[derive(Debug, Clone)]
pub struct PrepareRestore {
    /// That of the [`RestoreSession`] which follows.
    pub request: Request,
    pub task: TaskId,
    pub session: SessionId,
    pub now: Timestamp,
}

/// What must happen before a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestorePrepared {
    /// Nothing: this call has sent it back.
    Done,
    /// A checkpoint with a larger number must come first: one, however often the call is repeated.
    Saves {
        /// The last checkpoint before the first such call.
        after: u32,
    },
}

/// Records the request of a checkpoint. The caller asks the agent.
///
/// Returns the number of the last checkpoint before the first such call: a requested one with a
/// larger number is the answer.
#[derive(Debug, Clone)]
pub struct RequestCheckpoint {
    pub request: Request,
    pub task: TaskId,
    pub session: SessionId,
    pub now: Timestamp,
}

/// Forgets a task that ended, with everything that is stored of it.
///
/// Its files are removed afterwards, because no row names them any more.
#[derive(Debug, Clone)]
pub struct DropTask {
    /// Identifies a client's call; `None` when the coordinator itself makes room.
    pub request: Option<Request>,
    pub task: TaskId,
    pub now: Timestamp,
}

/// Decides that a repository may go, because no task that is kept works on it, or did.
///
/// It is taken away by the caller, who keeps new tasks and pushes from it until it is gone.
#[derive(Debug, Clone)]
pub struct DeleteRepository {
    /// Makes it one call.
    pub request: Request,
    pub project: ProjectId,
    pub repository: RepositoryName,
    /// Whether there is one.
    pub present: bool,
    pub now: Timestamp,
}

/// What is to become of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum RepositoryFate {
    Goes,
    /// An earlier call has done it; tasks work on one of the same name that was pushed since.
    Stays,
}

/// How long a request can be repeated, at least: 7 days.
pub const REQUEST_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A job that may be offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    pub job: JobId,
    pub task: TaskId,
    pub subject: Subject,
    pub project: ProjectId,
    pub kind: JobKind,
    pub adapter: AdapterName,
    /// Labels that its agent must carry: the task's and the session's.
    pub requirements: Labels,
    /// The lowest tier of containment that its agent may have.
    pub contain: Tier,
    pub priority: Priority,
    /// Not to be started before.
    pub not_before: Timestamp,
    /// When it began to wait, this time.
    pub queued_at: Timestamp,
    /// Where it had best be.
    pub affinity: Affinity,
}

impl QueuedJob {
    /// The adapter that it needs; `None`: it needs none.
    pub(crate) fn needs(&self) -> Option<&AdapterName> {
        self.kind.is_of_adapter().then_some(&self.adapter)
    }
}
