//! The store in memory: the yardstick that the databases are compared with, and what a
//! simulation runs on. It forgets everything when it is dropped.

use std::collections::{BTreeMap, BTreeSet};

use kage_core::attempt::{Attempt, AttemptState};
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, BootId, Digest, JobId, ProjectId, SessionId, TaskId, TokenId};
use kage_core::job::JobState;
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::Task;
use kage_core::time::Timestamp;

use super::admission::{Enrolment, JoinTokenRow, PersonToken};
use super::apply::waiting;
use super::command::QueuedJob;
use super::error::{EngineError, StoreError};
use super::query::{
    AttemptView, ContextSent, ContextStats, Counts, LiveAttempt, PageToken, Reads, TaskEvent, TaskPage, TaskView, Work,
};
use super::rows::{AttemptNote, ContextRow, Failed, JobRow, RequestKey, RequestRow, Rows, TaskHead};

/// Rows by key, and what it takes to undo the command that is being carried out.
#[derive(Debug)]
struct Table<K, V> {
    rows: BTreeMap<K, V>,
    undo: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            undo: Vec::new(),
        }
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    fn put(&mut self, key: K, value: V) {
        let old = self.rows.insert(key.clone(), value);
        self.undo.push((key, old));
    }

    fn insert(&mut self, key: K, value: V, what: &'static str) -> Result<(), Failed> {
        if self.rows.contains_key(&key) {
            return Err(Failed::Refused(StoreError::IdTaken { what }));
        }
        self.put(key, value);
        Ok(())
    }

    fn remove(&mut self, key: &K) {
        if let Some(old) = self.rows.remove(key) {
            self.undo.push((key.clone(), Some(old)));
        }
    }

    fn keep(&mut self) {
        self.undo.clear();
    }

    fn take_back(&mut self) {
        for (key, old) in self.undo.drain(..).rev() {
            match old {
                Some(value) => {
                    self.rows.insert(key, value);
                }
                None => {
                    self.rows.remove(&key);
                }
            }
        }
    }
}

/// A task and its place in the order of creation.
#[derive(Debug, Clone)]
struct TaskRow {
    order: u64,
    task: Task,
    last_event: u64,
}

#[derive(Debug, Clone)]
struct AttemptRow {
    order: u64,
    attempt: Attempt,
    note: AttemptNote,
}

/// Everything that is stored.
#[derive(Debug, Default)]
pub(super) struct Model {
    tasks: Table<TaskId, TaskRow>,
    task_order: Table<u64, TaskId>,
    sessions: Table<(TaskId, SessionId), (usize, Session)>,
    jobs: Table<(TaskId, JobId), JobRow>,
    attempts: Table<AttemptId, AttemptRow>,
    events: Table<(TaskId, u64), (AttemptId, Event)>,
    agents: Table<AgentId, Agent>,
    join_tokens: Table<TokenId, JoinTokenRow>,
    enrolments: Table<AgentId, Enrolment>,
    person_tokens: Table<TokenId, PersonToken>,
    contexts: Table<(ProjectId, Digest), ContextRow>,
    sent: Table<(ProjectId, Digest, AgentId), (u64, u64)>,
    requests: Table<RequestKey, (u64, RequestRow)>,
    request_order: Table<u64, RequestKey>,
}

macro_rules! each_table {
    ($model:ident, $action:ident) => {
        $model.tasks.$action();
        $model.task_order.$action();
        $model.sessions.$action();
        $model.jobs.$action();
        $model.attempts.$action();
        $model.events.$action();
        $model.agents.$action();
        $model.join_tokens.$action();
        $model.enrolments.$action();
        $model.person_tokens.$action();
        $model.contexts.$action();
        $model.sent.$action();
        $model.requests.$action();
        $model.request_order.$action();
    };
}

impl Model {
    /// Keeps what was written since the last decision.
    pub(super) fn keep(&mut self) {
        each_table!(self, keep);
    }

    /// Takes it back.
    pub(super) fn take_back(&mut self) {
        each_table!(self, take_back);
    }

    fn session_rows(&self, task: TaskId) -> impl Iterator<Item = &(usize, Session)> {
        let first = (task, SessionId::from_random(0));
        let last = (task, SessionId::from_random(u128::MAX));
        self.sessions.rows.range(first..=last).map(|(_, row)| row)
    }

    fn sessions_of(&self, task: TaskId) -> Vec<&Session> {
        let mut sessions: Vec<_> = self.session_rows(task).collect();
        sessions.sort_by_key(|(position, _)| *position);
        sessions.into_iter().map(|(_, session)| session).collect()
    }

    fn view(&self, row: &TaskRow) -> TaskView {
        TaskView {
            task: row.task.clone(),
            sessions: self.sessions_of(row.task.id).into_iter().cloned().collect(),
            last_event: row.last_event,
        }
    }

    fn live(&self) -> Vec<&Attempt> {
        let mut live: Vec<_> = self
            .attempts
            .rows
            .values()
            .filter(|row| row.attempt.state == AttemptState::Live)
            .collect();
        live.sort_by_key(|row| row.order);
        live.into_iter().map(|row| &row.attempt).collect()
    }

    fn attempt_view(&self, row: &AttemptRow) -> Result<AttemptView, EngineError> {
        let key = (row.attempt.task, row.attempt.session);
        let (_, session) = self.sessions.get(&key).ok_or(EngineError::Dangling {
            job: row.attempt.job,
            what: "session",
        })?;
        Ok(AttemptView {
            attempt: row.attempt.clone(),
            agent_name: row.note.agent_name.clone(),
            job_kind: row.note.job_kind,
            session_name: session.name.clone(),
            started_at: row.note.started_at,
        })
    }
}

fn live_attempt(attempt: &Attempt) -> LiveAttempt {
    LiveAttempt {
        attempt: attempt.id,
        job: attempt.job,
        session: attempt.session,
        task: attempt.task,
        agent: attempt.agent,
        boot: attempt.boot,
        lease_until: attempt.lease_until,
    }
}

/// The number after the last one.
fn next<V>(rows: &BTreeMap<u64, V>) -> u64 {
    rows.last_key_value().map_or(1, |(last, _)| last + 1)
}

impl Rows for Model {
    fn request(&mut self, key: &RequestKey) -> Result<Option<RequestRow>, Failed> {
        Ok(self.requests.get(key).map(|(_, row)| row.clone()))
    }

    fn insert_request(&mut self, key: &RequestKey, row: &RequestRow) -> Result<(), Failed> {
        let order = next(&self.request_order.rows);
        self.requests.insert(key.clone(), (order, row.clone()), "request")?;
        self.request_order.put(order, key.clone());
        Ok(())
    }

    fn forget_requests(&mut self, before: Timestamp, limit: u32) -> Result<(), Failed> {
        let oldest: Vec<_> = self
            .request_order
            .rows
            .iter()
            .take(limit as usize)
            .map(|(order, key)| (*order, key.clone()))
            .collect();
        for (order, key) in oldest {
            if self.requests.get(&key).is_some_and(|(_, row)| row.at < before) {
                self.requests.remove(&key);
                self.request_order.remove(&order);
            }
        }
        Ok(())
    }

    fn insert_task(&mut self, task: &Task) -> Result<(), Failed> {
        let order = next(&self.task_order.rows);
        let row = TaskRow {
            order,
            task: task.clone(),
            last_event: 0,
        };
        self.tasks.insert(task.id, row, "task")?;
        self.task_order.put(order, task.id);
        Ok(())
    }

    fn task(&mut self, id: TaskId) -> Result<Option<TaskHead>, Failed> {
        Ok(self.tasks.get(&id).map(|row| TaskHead {
            id,
            project: row.task.spec.project.clone(),
            policy: row.task.spec.policy.clone(),
            state: row.task.state,
            ended_at: row.task.ended_at,
            last_event: row.last_event,
        }))
    }

    fn save_task(&mut self, head: &TaskHead) -> Result<(), Failed> {
        if let Some(row) = self.tasks.get(&head.id) {
            let mut row = row.clone();
            row.task.state = head.state;
            row.task.ended_at = head.ended_at;
            row.last_event = head.last_event;
            self.tasks.put(head.id, row);
        }
        Ok(())
    }

    fn insert_session(&mut self, session: &Session, position: usize) -> Result<(), Failed> {
        let key = (session.task, session.id);
        self.sessions.insert(key, (position, session.clone()), "session")
    }

    fn session(&mut self, task: TaskId, id: SessionId) -> Result<Option<Session>, Failed> {
        Ok(self.sessions.get(&(task, id)).map(|(_, session)| session.clone()))
    }

    fn save_session(&mut self, session: &Session) -> Result<(), Failed> {
        let key = (session.task, session.id);
        if let Some((position, _)) = self.sessions.get(&key) {
            let position = *position;
            self.sessions.put(key, (position, session.clone()));
        }
        Ok(())
    }

    fn session_states(&mut self, task: TaskId) -> Result<Vec<SessionStateKind>, Failed> {
        let states = self.session_rows(task).map(|(_, session)| session.state.kind());
        Ok(BTreeSet::from_iter(states).into_iter().collect())
    }

    fn insert_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        self.jobs.insert((row.job.task, row.job.id), row.clone(), "job")
    }

    fn job(&mut self, task: TaskId, id: JobId) -> Result<Option<JobRow>, Failed> {
        Ok(self.jobs.get(&(task, id)).cloned())
    }

    fn save_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        self.jobs.put((row.job.task, row.job.id), row.clone());
        Ok(())
    }

    fn open_jobs(&mut self, task: TaskId) -> Result<Vec<JobRow>, Failed> {
        let first = (task, JobId::from_random(0));
        let last = (task, JobId::from_random(u128::MAX));
        let rows = self.jobs.rows.range(first..=last).map(|(_, row)| row);
        Ok(rows.filter(|row| row.job.state != JobState::Done).cloned().collect())
    }

    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed> {
        let order = self.attempts.rows.len() as u64;
        let row = AttemptRow {
            order,
            attempt: attempt.clone(),
            note: note.clone(),
        };
        self.attempts.insert(attempt.id, row, "attempt")
    }

    fn attempt(&mut self, id: AttemptId) -> Result<Option<Attempt>, Failed> {
        Ok(self.attempts.get(&id).map(|row| row.attempt.clone()))
    }

    fn save_attempt(&mut self, attempt: &Attempt) -> Result<(), Failed> {
        if let Some(row) = self.attempts.get(&attempt.id) {
            let row = AttemptRow {
                attempt: attempt.clone(),
                ..row.clone()
            };
            self.attempts.put(attempt.id, row);
        }
        Ok(())
    }

    fn live_attempts(&mut self, agent: AgentId) -> Result<Vec<Attempt>, Failed> {
        let live = self.live().into_iter();
        Ok(live.filter(|attempt| attempt.agent == agent).cloned().collect())
    }

    fn extend_leases(&mut self, until: Timestamp) -> Result<(), Failed> {
        let live: Vec<_> = self.live().into_iter().cloned().collect();
        for mut attempt in live {
            attempt.lease_until = attempt.lease_until.max(until);
            self.save_attempt(&attempt)?;
        }
        Ok(())
    }

    fn insert_event(&mut self, task: TaskId, pos: u64, attempt: AttemptId, event: &Event) -> Result<(), Failed> {
        self.events.insert((task, pos), (attempt, event.clone()), "event")
    }

    fn agent_boot(&mut self, id: AgentId) -> Result<Option<BootId>, Failed> {
        Ok(self.agents.get(&id).map(|agent| agent.boot))
    }

    fn agent(&mut self, id: AgentId) -> Result<Option<Agent>, Failed> {
        Ok(self.agents.get(&id).cloned())
    }

    fn put_agent(&mut self, agent: &Agent) -> Result<(), Failed> {
        self.agents.put(agent.id, agent.clone());
        Ok(())
    }

    fn save_agent_seen(&mut self, id: AgentId, at: Timestamp) -> Result<(), Failed> {
        if let Some(agent) = self.agents.get(&id) {
            let agent = Agent {
                seen_at: at,
                ..agent.clone()
            };
            self.agents.put(id, agent);
        }
        Ok(())
    }

    fn join_token(&mut self, id: TokenId) -> Result<Option<JoinTokenRow>, Failed> {
        Ok(self.join_tokens.get(&id).cloned())
    }

    fn put_join_token(&mut self, id: TokenId, row: &JoinTokenRow) -> Result<(), Failed> {
        self.join_tokens.put(id, row.clone());
        Ok(())
    }

    fn forget_join_tokens(&mut self, before: Timestamp) -> Result<(), Failed> {
        let rows = self.join_tokens.rows.iter();
        let old: Vec<_> = rows
            .filter(|(_, row)| row.expires_at < before)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.join_tokens.remove(&id);
        }
        Ok(())
    }

    fn enrolment(&mut self, agent: AgentId) -> Result<Option<Enrolment>, Failed> {
        Ok(self.enrolments.get(&agent).cloned())
    }

    fn put_enrolment(&mut self, enrolment: &Enrolment) -> Result<(), Failed> {
        self.enrolments.put(enrolment.agent, enrolment.clone());
        Ok(())
    }

    fn person_token(&mut self, id: TokenId) -> Result<Option<PersonToken>, Failed> {
        Ok(self.person_tokens.get(&id).cloned())
    }

    fn put_person_token(&mut self, token: &PersonToken) -> Result<(), Failed> {
        self.person_tokens.put(token.id, token.clone());
        Ok(())
    }

    fn context(&mut self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextRow>, Failed> {
        Ok(self.contexts.get(&(project.clone(), digest.clone())).copied())
    }

    fn put_context(&mut self, project: &ProjectId, digest: &Digest, row: &ContextRow) -> Result<(), Failed> {
        self.contexts.put((project.clone(), digest.clone()), *row);
        Ok(())
    }

    fn add_context_sent(
        &mut self,
        project: &ProjectId,
        digest: &Digest,
        agent: AgentId,
        bytes: u64,
    ) -> Result<(), Failed> {
        let key = (project.clone(), digest.clone(), agent);
        let (times, total) = self.sent.get(&key).copied().unwrap_or_default();
        self.sent.put(key, (times + 1, total + bytes));
        Ok(())
    }
}

impl Reads for Model {
    fn task(&self, id: TaskId) -> Result<Option<TaskView>, EngineError> {
        Ok(self.tasks.get(&id).map(|row| self.view(row)))
    }

    fn tasks(&self, project: &ProjectId, after: Option<PageToken>, limit: u32) -> Result<TaskPage, EngineError> {
        let below = after.map_or(u64::MAX, |token| token.0);
        let mut tasks = Vec::new();
        let mut next = None;
        for id in self.task_order.rows.range(..below).rev().map(|(_, id)| id) {
            let Some(row) = self.tasks.get(id) else { continue };
            if row.task.spec.project != *project {
                continue;
            }
            if tasks.len() == limit as usize {
                next = Some(PageToken(row.order + 1));
                break;
            }
            tasks.push(self.view(row));
        }
        Ok(TaskPage { tasks, next })
    }

    fn tasks_with_prefix(&self, prefix: &str) -> Result<Vec<TaskId>, EngineError> {
        let ids = self.tasks.rows.keys();
        Ok(ids
            .filter(|id| id.to_string().starts_with(prefix))
            .take(2)
            .copied()
            .collect())
    }

    fn work(&self, task: TaskId, job: JobId) -> Result<Option<Work>, EngineError> {
        let (Some(task), Some(row)) = (self.tasks.get(&task), self.jobs.get(&(task, job))) else {
            return Ok(None);
        };
        let key = (row.job.task, row.job.session);
        let (_, session) = self
            .sessions
            .get(&key)
            .ok_or(EngineError::Dangling { job, what: "session" })?;
        Ok(Some(Work {
            spec: task.task.spec.clone(),
            session: session.clone(),
            job: row.job.clone(),
            number: row.job.started + 1,
        }))
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, EngineError> {
        let mut queued = Vec::new();
        for row in self.jobs.rows.values() {
            let task = self.tasks.get(&row.job.task).ok_or(EngineError::Dangling {
                job: row.job.id,
                what: "task",
            })?;
            queued.extend(waiting(row, &task.task.spec.project));
        }
        queued.sort_by_key(|job| (job.queued_at, job.job));
        Ok(queued)
    }

    fn attempt(&self, id: AttemptId) -> Result<Option<AttemptView>, EngineError> {
        self.attempts.get(&id).map(|row| self.attempt_view(row)).transpose()
    }

    fn attempts_of(&self, task: TaskId) -> Result<Vec<AttemptView>, EngineError> {
        let mut rows: Vec<_> = self
            .attempts
            .rows
            .values()
            .filter(|row| row.attempt.task == task)
            .collect();
        rows.sort_by_key(|row| row.order);
        rows.into_iter().map(|row| self.attempt_view(row)).collect()
    }

    fn live_attempts(&self, agent: Option<AgentId>) -> Result<Vec<LiveAttempt>, EngineError> {
        let live = self.live().into_iter();
        Ok(live
            .filter(|attempt| agent.is_none_or(|agent| attempt.agent == agent))
            .map(live_attempt)
            .collect())
    }

    fn expired(&self, now: Timestamp) -> Result<Vec<LiveAttempt>, EngineError> {
        let live = self.live().into_iter();
        Ok(live
            .filter(|attempt| attempt.lease_until <= now)
            .map(live_attempt)
            .collect())
    }

    fn events(&self, task: TaskId, after: u64, limit: u32) -> Result<Vec<TaskEvent>, EngineError> {
        let after = (task, after.saturating_add(1));
        let rows = self.events.rows.range(after..=(task, u64::MAX)).take(limit as usize);
        let mut events = Vec::new();
        for ((_, pos), (attempt, event)) in rows {
            let Some(row) = self.attempts.get(attempt) else {
                continue;
            };
            let view = self.attempt_view(row)?;
            events.push(TaskEvent {
                pos: *pos,
                attempt: *attempt,
                number: view.attempt.number,
                job_kind: view.job_kind,
                session: view.attempt.session,
                session_name: view.session_name,
                agent_name: view.agent_name,
                event: event.clone(),
            });
        }
        Ok(events)
    }

    fn agents(&self) -> Result<Vec<Agent>, EngineError> {
        let mut agents: Vec<_> = self.agents.rows.values().cloned().collect();
        agents.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(agents)
    }

    fn enrolments(&self) -> Result<Vec<Enrolment>, EngineError> {
        Ok(self.enrolments.rows.values().cloned().collect())
    }

    fn person_tokens(&self) -> Result<Vec<PersonToken>, EngineError> {
        let mut tokens: Vec<_> = self.person_tokens.rows.values().cloned().collect();
        tokens.sort_by_key(|token| (token.created_at, token.id));
        Ok(tokens)
    }

    fn context_size(&self, project: &ProjectId, digest: &Digest) -> Result<Option<u64>, EngineError> {
        let key = (project.clone(), digest.clone());
        Ok(self.contexts.get(&key).map(|row| row.size))
    }

    fn context_stats(&self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextStats>, EngineError> {
        let Some(row) = self.contexts.get(&(project.clone(), digest.clone())) else {
            return Ok(None);
        };
        let sent = self.sent.rows.iter();
        let sent = sent
            .filter(|((owner, name, _), _)| owner == project && name == digest)
            .map(|((_, _, agent), (times, bytes))| ContextSent {
                agent: *agent,
                agent_name: self
                    .agents
                    .get(agent)
                    .map(|agent| agent.name.clone())
                    .unwrap_or_default(),
                times: *times,
                bytes: *bytes,
            })
            .collect();
        Ok(Some(ContextStats {
            size: row.size,
            times_put: row.times_put,
            sessions: row.sessions,
            delta_bytes: row.delta_bytes,
            sent,
        }))
    }

    fn counts(&self) -> Result<Counts, EngineError> {
        let mut counts = Counts::default();
        for row in self.jobs.rows.values() {
            match row.job.state {
                JobState::Queued { .. } => counts.queued += 1,
                JobState::Leased { .. } => counts.leased += 1,
                JobState::Done => {}
            }
        }
        Ok(counts)
    }
}
