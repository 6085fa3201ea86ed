//! The rows of one command: fetched before it decides, decided in memory, written together. A
//! distant engine needs two round trips for a command, whatever it decides. A row that a command
//! reads without naming it is fetched on demand, and counted.
//!
//! ```text
//!   reads() --prefetch--> Unit <--load, save-- apply
//!                          \--flush--> Rows: SQLite | model, and what changed
//! ```

use std::collections::{BTreeSet, HashMap};

use kage_core::attempt::Attempt;
use kage_core::base_verdict::{BaseKey, KeptVerdict};
use kage_core::budget::{BudgetRule, Held, ScopeKey, Tally};
use kage_core::checkpoint::{Checkpoint, Safety};
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{
    AdapterName, AgentId, AttemptId, BootId, CallId, Digest, JobId, Oid, ProjectId, RepositoryName, SessionId, TaskId,
    TokenId,
};
use kage_core::job::{JobState, Subject};
use kage_core::ledger::{CallRow, Reservation};
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::TaskSpec;
use kage_core::time::Timestamp;

use super::admission::{Enrolment, JoinTokenRow, PersonToken};
use super::command::Request;
use super::rows::{
    AdmissionRows, AgentRows, AttemptNote, AttemptRows, BaseVerdictRows, CallRows, CheckpointRows, ContextRow,
    ContextRows, Failed, JobRow, JobRows, RequestKey, RequestRow, RequestRows, Rows, TaskHead, TaskRows,
};

mod flush;
mod rows;

/// What a command reads: the key of a row, or one of a closed set of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A call made before.
    Request(RequestKey),
    /// A call made before, and the token that it made.
    JoinTokenOf(RequestKey),
    /// A call made before, and the token that it made.
    PersonTokenOf(RequestKey),
    Task(TaskId),
    /// Whether a task works on a repository.
    TaskOn(ProjectId, RepositoryName),
    Session(TaskId, SessionId),
    /// A job with its task and its session.
    Job(TaskId, JobId),
    /// A task with its open jobs, and their sessions and live attempts, and the checkpoints of those
    /// sessions that wait.
    OpenJobs(TaskId),
    Attempt(AttemptId),
    /// An attempt with its job, session and task, and the parents and trees of these checkpoints.
    /// Also these calls of it, and the rows that its end concerns, when it `ends`.
    Reporting {
        attempt: AttemptId,
        checkpoints: Vec<(Oid, Oid)>,
        calls: Vec<CallId>,
        ends: bool,
    },
    /// An attempt with its job, session and task, one of its calls, and what was used of the task's budgets
    /// and of these.
    Calling {
        attempt: AttemptId,
        call: CallId,
        rules: Vec<BudgetRule>,
        now: Timestamp,
    },
    /// What was used of the budgets of an attempt's task, and of these.
    Budgets {
        attempt: AttemptId,
        rules: Vec<BudgetRule>,
        now: Timestamp,
    },
    /// These attempts with everything that their end concerns.
    Ending(Vec<AttemptId>),
    /// The live attempts of an agent with everything that their end concerns.
    EndingOf(AgentId),
    Checkpoints(TaskId, SessionId),
    /// The kept verdicts of a check of a base, and whether their agents are shut out.
    BaseVerdicts(BaseKey),
    /// The present start of an agent.
    Boot(AgentId),
    Agent(AgentId),
    /// A join token, and the agent that used it with this key.
    JoinToken(TokenId, Digest),
    JoinTokenRow(TokenId),
    Enrolment(AgentId),
    PersonToken(TokenId),
    Context(ProjectId, Digest),
}

impl Key {
    /// A call of this kind that was made before.
    pub(super) fn request(method: &'static str, request: &Request) -> Self {
        Self::Request(RequestKey::of(method, request))
    }
}

/// A row that was changed and is not written yet. Its last form is written, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    Task(TaskId),
    Session(TaskId, SessionId),
    Job(TaskId, JobId),
    Attempt(AttemptId),
}

/// Any other write, in order.
#[derive(Debug)]
enum Write {
    Request(RequestKey, RequestRow),
    ForgetRequests(Timestamp, u32),
    Task(Box<TaskHead>, Box<TaskSpec>),
    RemoveTask(TaskId),
    Session(Box<Session>, usize),
    Job(Box<JobRow>),
    Attempt(Box<Attempt>, AttemptNote),
    ExtendLeases(Timestamp, Timestamp),
    Event(TaskId, u64, AttemptId, Box<Event>),
    Checkpoint(TaskId, Box<Checkpoint>),
    Safety(TaskId, Oid, Safety),
    BaseVerdict(Box<KeptVerdict>),
    ForgetBaseVerdicts(Timestamp),
    Call(Box<CallRow>),
    Reservation(Box<Reservation>),
    RemoveReservation(AttemptId, CallId),
    Agent(Box<Agent>),
    AgentSeen(AgentId, Timestamp),
    JoinToken(TokenId, JoinTokenRow),
    ForgetJoinTokens(Timestamp),
    Enrolment(Enrolment),
    PersonToken(PersonToken),
    Context(ProjectId, Digest, ContextRow),
    ContextSent(ProjectId, Digest, AgentId, u64),
}

pub(super) struct Unit<'a> {
    engine: &'a mut dyn Rows,
    requests: HashMap<RequestKey, Option<RequestRow>>,
    tasks: HashMap<TaskId, Option<TaskHead>>,
    tasks_on: HashMap<(ProjectId, RepositoryName), Option<TaskId>>,
    sessions: HashMap<(TaskId, SessionId), Option<Session>>,
    jobs: HashMap<(TaskId, JobId), Option<JobRow>>,
    /// The jobs that were open when they were fetched, and new ones.
    open_jobs: HashMap<TaskId, BTreeSet<JobId>>,
    attempts: HashMap<AttemptId, Option<Attempt>>,
    live_attempts: HashMap<AgentId, Vec<AttemptId>>,
    checkpoints: HashMap<(TaskId, SessionId), Vec<Checkpoint>>,
    positions: HashMap<(TaskId, SessionId, Oid), Option<(u64, AdapterName)>>,
    base_trees: HashMap<(TaskId, Oid), Vec<Oid>>,
    safeties: HashMap<(TaskId, Oid), Safety>,
    base_verdicts: HashMap<BaseKey, Vec<KeptVerdict>>,
    calls: HashMap<(AttemptId, String), bool>,
    reservations: HashMap<(AttemptId, CallId), Option<Reservation>>,
    reservations_of: HashMap<AttemptId, Vec<Reservation>>,
    used: HashMap<ScopeKey, (Tally, Vec<Held>)>,
    boots: HashMap<AgentId, Option<BootId>>,
    agents: HashMap<AgentId, Option<Agent>>,
    join_tokens: HashMap<TokenId, Option<JoinTokenRow>>,
    enrolments: HashMap<AgentId, Option<Enrolment>>,
    person_tokens: HashMap<TokenId, Option<PersonToken>>,
    contexts: HashMap<(ProjectId, Digest), Option<ContextRow>>,
    writes: Vec<Write>,
    changed: BTreeSet<Changed>,
    /// Where sessions stood that were saved since.
    stood: HashMap<SessionId, SessionStateKind>,
    deciding: bool,
    fetches: u32,
}

impl<'a> Unit<'a> {
    /// The unit of a command that reads these, which are here when this returns.
    pub(super) fn prefetch(engine: &'a mut dyn Rows, keys: &[Key]) -> Result<Self, Failed> {
        let mut unit = Self {
            engine,
            requests: HashMap::new(),
            tasks: HashMap::new(),
            tasks_on: HashMap::new(),
            sessions: HashMap::new(),
            jobs: HashMap::new(),
            open_jobs: HashMap::new(),
            attempts: HashMap::new(),
            live_attempts: HashMap::new(),
            checkpoints: HashMap::new(),
            positions: HashMap::new(),
            base_trees: HashMap::new(),
            safeties: HashMap::new(),
            base_verdicts: HashMap::new(),
            calls: HashMap::new(),
            reservations: HashMap::new(),
            reservations_of: HashMap::new(),
            used: HashMap::new(),
            boots: HashMap::new(),
            agents: HashMap::new(),
            join_tokens: HashMap::new(),
            enrolments: HashMap::new(),
            person_tokens: HashMap::new(),
            contexts: HashMap::new(),
            writes: Vec::new(),
            changed: BTreeSet::new(),
            stood: HashMap::new(),
            deciding: false,
            fetches: 0,
        };
        for key in keys {
            unit.fetch(key)?;
        }
        unit.deciding = true;
        Ok(unit)
    }

    /// How many rows the command read without naming them.
    pub(super) const fn fetches(&self) -> u32 {
        self.fetches
    }

    /// Loading means fetching: what was loaded once is here.
    fn fetch(&mut self, key: &Key) -> Result<(), Failed> {
        match key {
            Key::Request(key) => drop(self.request(key)?),
            Key::JoinTokenOf(key) => {
                let made = self.request(key)?.and_then(|row| row.reply.parse().ok());
                if let Some(token) = made {
                    self.join_token(token)?;
                }
            }
            Key::PersonTokenOf(key) => {
                let made = self.request(key)?.and_then(|row| row.reply.parse().ok());
                if let Some(token) = made {
                    self.person_token(token)?;
                }
            }
            Key::Task(task) => drop(self.task(*task)?),
            Key::TaskOn(project, repository) => {
                self.task_on(project, repository)?;
            }
            Key::Session(task, session) => drop(self.session(*task, *session)?),
            Key::Job(task, job) => drop(self.with_session(*task, *job)?),
            Key::OpenJobs(task) => {
                self.task(*task)?;
                for row in self.open_jobs(*task)? {
                    let session = match row.job.subject {
                        Subject::Session(session) => self.session(*task, session)?,
                        Subject::Base => None,
                    };
                    match row.job.state {
                        JobState::Leased { attempt } => {
                            self.attempt(attempt)?;
                            self.reservations_of(attempt)?;
                        }
                        JobState::Queued { .. } | JobState::Later { .. } | JobState::Done => {
                            if let Some(session) = session.filter(|session| session.checkpoints.head.is_some()) {
                                self.checkpoints(*task, session.id)?;
                            }
                        }
                    }
                }
            }
            Key::Attempt(attempt) => drop(self.attempt(*attempt)?),
            Key::Reporting {
                attempt,
                checkpoints,
                calls,
                ends,
            } => {
                self.fetch_reporting(*attempt, checkpoints, *ends)?;
                for call in calls {
                    self.fetch_call(*attempt, *call)?;
                }
            }
            Key::Calling {
                attempt,
                call,
                rules,
                now,
            } => {
                self.fetch_call(*attempt, *call)?;
                self.fetch_budgets(*attempt, rules, *now)?;
            }
            Key::Budgets { attempt, rules, now } => self.fetch_budgets(*attempt, rules, *now)?,
            Key::Ending(attempts) => self.fetch_ending(attempts)?,
            Key::EndingOf(agent) => {
                let live = self.live_attempts(*agent)?;
                let ids: Vec<_> = live.iter().map(|attempt| attempt.id).collect();
                self.fetch_ending(&ids)?;
            }
            Key::Checkpoints(task, session) => drop(self.checkpoints(*task, *session)?),
            Key::BaseVerdicts(key) => {
                for kept in self.base_verdicts(key)? {
                    self.enrolment(kept.agent)?;
                }
            }
            Key::Boot(agent) => drop(self.agent_boot(*agent)?),
            Key::Agent(agent) => drop(self.agent(*agent)?),
            Key::JoinToken(token, key) => {
                let used = self.join_token(*token)?.map(|row| row.used).unwrap_or_default();
                if let Some(used) = used.iter().find(|used| used.key == *key) {
                    self.enrolment(used.agent)?;
                }
            }
            Key::JoinTokenRow(token) => drop(self.join_token(*token)?),
            Key::Enrolment(agent) => drop(self.enrolment(*agent)?),
            Key::PersonToken(token) => drop(self.person_token(*token)?),
            Key::Context(project, digest) => drop(self.context(project, digest)?),
        }
        Ok(())
    }

    /// A job, its task and the session that it is about or listed with.
    fn with_session(
        &mut self,
        task: TaskId,
        job: JobId,
    ) -> Result<Option<(TaskHead, JobRow, Option<Session>)>, Failed> {
        let (Some(head), Some(row)) = (self.task(task)?, self.job(task, job)?) else {
            return Ok(None);
        };
        let session = self.session(task, row.job.subject.session().unwrap_or(head.first))?;
        Ok(Some((head, row, session)))
    }

    fn fetch_reporting(&mut self, attempt: AttemptId, told: &[(Oid, Oid)], ends: bool) -> Result<(), Failed> {
        let Some(found) = self.attempt(attempt)? else {
            return Ok(());
        };
        self.with_session(found.task, found.job)?;
        for (parent, tree) in told {
            self.position(found.task, found.session, parent)?;
            self.safety(found.task, tree)?;
        }
        if ends {
            if !told.is_empty() {
                self.checkpoints(found.task, found.session)?;
            }
            self.fetch_ending(&[attempt])?;
        }
        Ok(())
    }

    fn fetch_call(&mut self, attempt: AttemptId, call: CallId) -> Result<(), Failed> {
        self.has_call(attempt, &call.to_string())?;
        self.reservation(attempt, call)?;
        Ok(())
    }

    fn fetch_budgets(&mut self, attempt: AttemptId, rules: &[BudgetRule], now: Timestamp) -> Result<(), Failed> {
        let Some(found) = self.attempt(attempt)? else {
            return Ok(());
        };
        let Some((head, _, _)) = self.with_session(found.task, found.job)? else {
            return Ok(());
        };
        for rule in head.policy.budget.rules().chain(rules.iter().copied()) {
            let of = (head.id, found.session);
            let key = rule.scope.key(of, &head.project, head.person(), now);
            if let Some(key) = key {
                self.used_of(&key)?;
            }
        }
        Ok(())
    }

    /// The rows that the end of attempts concerns: checkpoints that their sessions can go back to,
    /// the base if it was checked, and the check of the base if the task may end too.
    fn fetch_ending(&mut self, attempts: &[AttemptId]) -> Result<(), Failed> {
        let mut ending: HashMap<TaskId, usize> = HashMap::new();
        for id in attempts {
            let Some(attempt) = self.attempt(*id)? else { continue };
            *ending.entry(attempt.task).or_default() += 1;
            self.reservations_of(attempt.id)?;
            let Some((head, row, session)) = self.with_session(attempt.task, attempt.job)? else {
                continue;
            };
            if let Some(session) = session.filter(|session| session.checkpoints.head.is_some()) {
                self.checkpoints(attempt.task, session.id)?;
            }
            if let (Subject::Base, Some(base)) = (row.job.subject, &head.base) {
                self.base_trees(attempt.task, base)?;
            }
        }
        for (task, ends) in ending {
            let head = self.task(task)?;
            if head.as_ref().is_some_and(|head| !head.policy.course.is_race()) {
                self.fetch(&Key::OpenJobs(task))?;
            }
            let open = head.map_or(0, |head| head.open_sessions());
            if open as usize > ends {
                continue;
            }
            for row in self.open_jobs(task)? {
                if let (Subject::Base, JobState::Leased { attempt }) = (row.job.subject, row.job.state) {
                    self.attempt(attempt)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::model::Model;

    #[test]
    fn what_was_not_named_is_fetched_once_and_counted() {
        let mut model = Model::default();
        let (named, other) = (TaskId::from_random(1), TaskId::from_random(2));
        let mut unit = Unit::prefetch(&mut model, &[Key::OpenJobs(named)]).unwrap();
        assert!(unit.task(named).unwrap().is_none() && unit.open_jobs(named).unwrap().is_empty());
        assert_eq!(unit.fetches(), 0);
        for _ in 0..2 {
            assert!(unit.task(other).unwrap().is_none());
            assert_eq!(unit.fetches(), 1);
        }
        unit.open_jobs(other).unwrap();
        assert_eq!(unit.fetches(), 2);
    }
}
