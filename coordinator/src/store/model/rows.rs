//! The loads and saves of commands on the model.

use std::collections::{BTreeMap, BTreeSet};

use kage_core::attempt::Attempt;
use kage_core::base_verdict::{BaseKey, KeptVerdict};
use kage_core::budget::{Held, ScopeKey, Tally};
use kage_core::checkpoint::{Checkpoint, Safety};
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{
    AdapterName, AgentId, AttemptId, BootId, CallId, Digest, JobId, Oid, ProjectId, RepositoryName, SessionId, TaskId,
    TokenId,
};
use kage_core::job::JobState;
use kage_core::ledger::{CallRow, Reservation};
use kage_core::session::Session;
use kage_core::task::TaskSpec;
use kage_core::time::Timestamp;

use super::{AttemptRow, Model, TaskRow};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::rows::{
    AdmissionRows, AgentRows, AttemptNote, AttemptRows, BaseVerdictRows, CallRows, CheckpointRows, ContextRow,
    ContextRows, Failed, JobRow, JobRows, RequestKey, RequestRow, RequestRows, Rows, TaskHead, TaskRows,
};

impl Rows for Model {}

impl RequestRows for Model {
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
}

impl TaskRows for Model {
    fn insert_task(&mut self, head: &TaskHead, spec: &TaskSpec) -> Result<(), Failed> {
        let order = next(&self.task_order.rows);
        let row = TaskRow {
            order,
            head: head.clone(),
            spec: spec.clone(),
        };
        self.tasks.insert(head.id, row, "task")?;
        self.task_order.put(order, head.id);
        Ok(())
    }

    fn task(&mut self, id: TaskId) -> Result<Option<TaskHead>, Failed> {
        Ok(self.tasks.get(&id).map(|row| row.head.clone()))
    }

    fn task_on(&mut self, project: &ProjectId, repository: &RepositoryName) -> Result<Option<TaskId>, Failed> {
        let tasks = self.task_order.rows.values().filter_map(|id| self.tasks.get(id));
        let on = tasks.filter(|row| row.head.project == *project);
        let mut on = on.filter(|row| row.spec.repository.as_ref().is_some_and(|of| of.name == *repository));
        Ok(on.next().map(|row| row.head.id))
    }

    fn save_task(&mut self, head: &TaskHead) -> Result<(), Failed> {
        if let Some(row) = self.tasks.get(&head.id) {
            let row = TaskRow {
                head: head.clone(),
                ..row.clone()
            };
            self.tasks.put(head.id, row);
        }
        Ok(())
    }

    fn remove_task(&mut self, id: TaskId) -> Result<(), Failed> {
        if let Some(order) = self.tasks.get(&id).map(|row| row.order) {
            self.task_order.remove(&order);
        }
        self.tasks.remove(&id);
        self.sessions.remove_where(|(task, _), _| *task == id);
        self.jobs.remove_where(|(task, _), _| *task == id);
        self.attempts.remove_where(|_, row| row.attempt.task == id);
        self.events.remove_where(|(task, _), _| *task == id);
        self.checkpoints.remove_where(|(task, _, _), _| *task == id);
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
}

impl JobRows for Model {
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
}

impl AttemptRows for Model {
    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed> {
        let last = self.attempts.rows.values().map(|row| row.order).max();
        let order = last.map_or(0, |last| last + 1);
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

    fn extend_leases(&mut self, until: Timestamp, now: Timestamp) -> Result<(), Failed> {
        let live: Vec<_> = self.live().into_iter().cloned().collect();
        for mut attempt in live {
            attempt.renew(until, now);
            self.save_attempt(&attempt)?;
        }
        Ok(())
    }

    fn insert_event(&mut self, task: TaskId, pos: u64, attempt: AttemptId, event: &Event) -> Result<(), Failed> {
        self.events.insert((task, pos), (attempt, event.clone()), "event")
    }
}

impl CheckpointRows for Model {
    fn insert_checkpoint(&mut self, task: TaskId, checkpoint: &Checkpoint) -> Result<(), Failed> {
        let key = (task, checkpoint.session, checkpoint.number);
        self.checkpoints.insert(key, checkpoint.clone(), "checkpoint")
    }

    fn checkpoints(&mut self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, Failed> {
        Ok(self.checkpoints_of(task, session).cloned().collect())
    }

    fn position(
        &mut self,
        task: TaskId,
        session: SessionId,
        commit: &Oid,
    ) -> Result<Option<(u64, AdapterName)>, Failed> {
        let found = self.checkpoints_of(task, session).filter(|c| c.taken.commit == *commit);
        Ok(found
            .last()
            .map(|checkpoint| (checkpoint.position, checkpoint.adapter.clone())))
    }

    fn base_trees(&mut self, task: TaskId, base: &Oid) -> Result<Vec<Oid>, Failed> {
        let of_base = self.of_task(task).filter(|checkpoint| checkpoint.taken.is_base(base));
        let trees = of_base.map(|checkpoint| checkpoint.taken.tree.clone());
        Ok(BTreeSet::from_iter(trees).into_iter().collect())
    }

    fn safety(&mut self, task: TaskId, tree: &Oid) -> Result<Safety, Failed> {
        let known = self
            .with_tree(task, tree)
            .find(|checkpoint| checkpoint.safety != Safety::Unknown);
        Ok(known.map_or(Safety::Unknown, |checkpoint| checkpoint.safety))
    }

    fn save_safety(&mut self, task: TaskId, tree: &Oid, safety: Safety) -> Result<(), Failed> {
        let found: Vec<_> = self.with_tree(task, tree).cloned().collect();
        for mut checkpoint in found {
            checkpoint.safety = safety;
            let key = (task, checkpoint.session, checkpoint.number);
            self.checkpoints.put(key, checkpoint);
        }
        Ok(())
    }
}

impl Model {
    pub(super) fn of_task(&self, task: TaskId) -> impl Iterator<Item = &Checkpoint> {
        let first = (task, SessionId::from_random(0), 0);
        let last = (task, SessionId::from_random(u128::MAX), u32::MAX);
        let all = self.checkpoints.rows.range(first..=last);
        all.map(|(_, checkpoint)| checkpoint)
    }

    fn with_tree(&self, task: TaskId, tree: &Oid) -> impl Iterator<Item = &Checkpoint> {
        self.of_task(task)
            .filter(move |checkpoint| checkpoint.taken.tree == *tree)
    }
}

impl BaseVerdictRows for Model {
    fn base_verdicts(&mut self, key: &BaseKey) -> Result<Vec<KeptVerdict>, Failed> {
        let all = self.base_verdicts.rows.values();
        Ok(all.filter(|kept| kept.key == *key).cloned().collect())
    }

    fn put_base_verdict(&mut self, kept: &KeptVerdict) -> Result<(), Failed> {
        let key = (kept.key.clone(), kept.machine.clone());
        self.base_verdicts.put(key, kept.clone());
        Ok(())
    }

    fn forget_base_verdicts(&mut self, before: Timestamp) -> Result<(), Failed> {
        self.base_verdicts.remove_where(|_, kept| kept.decided_at < before);
        Ok(())
    }
}

impl CallRows for Model {
    fn has_call(&mut self, attempt: AttemptId, name: &str) -> Result<bool, Failed> {
        Ok(self.call_names.get(&(attempt, name.to_owned())).is_some())
    }

    fn insert_call(&mut self, row: &CallRow) -> Result<(), Failed> {
        let n = next(&self.calls.rows);
        self.call_names.insert((row.attempt, row.name.clone()), n, "call")?;
        self.calls.put(n, row.clone());
        Ok(())
    }

    fn reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<Option<Reservation>, Failed> {
        Ok(self.reservations.get(&(attempt, call)).cloned())
    }

    fn reservations_of(&mut self, attempt: AttemptId) -> Result<Vec<Reservation>, Failed> {
        let all = self.reservations.rows.values();
        Ok(all.filter(|held| held.attempt == attempt).cloned().collect())
    }

    fn put_reservation(&mut self, reservation: &Reservation) -> Result<(), Failed> {
        let key = (reservation.attempt, reservation.call);
        self.reservations.put(key, reservation.clone());
        Ok(())
    }

    fn remove_reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<(), Failed> {
        self.reservations.remove(&(attempt, call));
        Ok(())
    }

    fn used_of(&mut self, scope: &ScopeKey) -> Result<(Tally, Vec<Held>), Failed> {
        let counts = |row: &CallRow| match scope {
            ScopeKey::Session(task, session) => row.task == *task && row.session == *session,
            ScopeKey::Task(task) => row.task == *task,
            ScopeKey::Person(person, since) => row.person.as_ref() == Some(person) && row.at >= *since,
            ScopeKey::Project(project, since) => row.project == *project && row.at >= *since,
        };
        let is_held = |held: &&Reservation| match scope {
            ScopeKey::Session(task, session) => held.task == *task && held.session == *session,
            ScopeKey::Task(task) => held.task == *task,
            ScopeKey::Person(person, _) => held.person.as_ref() == Some(person),
            ScopeKey::Project(project, _) => held.project == *project,
        };
        let mut tally = Tally::default();
        for row in self.calls.rows.values().filter(|row| counts(row)) {
            tally.add(row.amount(), row.usage.total());
        }
        let held = self.reservations.rows.values().filter(is_held);
        Ok((tally, held.map(|held| held.held).collect()))
    }
}

impl AgentRows for Model {
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
}

impl AdmissionRows for Model {
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
}

impl ContextRows for Model {
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

/// The next number after the last one.
fn next<V>(rows: &BTreeMap<u64, V>) -> u64 {
    rows.last_key_value().map_or(1, |(last, _)| last + 1)
}
