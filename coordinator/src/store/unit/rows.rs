//! The loads and saves of a command on its unit.

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

use super::{Changed, Unit, Write};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::rows::{
    AdmissionRows, AgentRows, AttemptNote, AttemptRows, BaseVerdictRows, CallRows, CheckpointRows, ContextRow,
    ContextRows, Failed, JobRow, JobRows, RequestKey, RequestRow, RequestRows, Rows, TaskHead, TaskRows,
};

/// The value of a key; otherwise it is fetched, and counted once the command decides.
macro_rules! known {
    ($unit:ident . $rows:ident [$key:expr], $fetch:expr) => {{
        let key = $key;
        if let Some(found) = $unit.$rows.get(&key) {
            return Ok(found.clone());
        }
        $unit.fetches += u32::from($unit.deciding);
        let found = $fetch?;
        $unit.$rows.insert(key, found.clone());
        Ok(found)
    }};
}

impl Rows for Unit<'_> {}

impl RequestRows for Unit<'_> {
    fn request(&mut self, key: &RequestKey) -> Result<Option<RequestRow>, Failed> {
        known!(self.requests[key.clone()], self.engine.request(key))
    }

    fn insert_request(&mut self, key: &RequestKey, row: &RequestRow) -> Result<(), Failed> {
        self.requests.insert(key.clone(), Some(row.clone()));
        self.writes.push(Write::Request(key.clone(), row.clone()));
        Ok(())
    }

    fn forget_requests(&mut self, before: Timestamp, limit: u32) -> Result<(), Failed> {
        self.writes.push(Write::ForgetRequests(before, limit));
        Ok(())
    }
}

impl TaskRows for Unit<'_> {
    fn insert_task(&mut self, head: &TaskHead, spec: &TaskSpec) -> Result<(), Failed> {
        self.tasks.insert(head.id, Some(head.clone()));
        self.writes
            .push(Write::Task(Box::new(head.clone()), Box::new(spec.clone())));
        Ok(())
    }

    fn task(&mut self, id: TaskId) -> Result<Option<TaskHead>, Failed> {
        known!(self.tasks[id], self.engine.task(id))
    }

    fn task_on(&mut self, project: &ProjectId, repository: &RepositoryName) -> Result<Option<TaskId>, Failed> {
        known!(
            self.tasks_on[(project.clone(), repository.clone())],
            self.engine.task_on(project, repository)
        )
    }

    fn save_task(&mut self, task: &TaskHead) -> Result<(), Failed> {
        self.tasks.insert(task.id, Some(task.clone()));
        self.changed.insert(Changed::Task(task.id));
        Ok(())
    }

    fn remove_task(&mut self, id: TaskId) -> Result<(), Failed> {
        self.tasks.insert(id, None);
        self.writes.push(Write::RemoveTask(id));
        Ok(())
    }

    fn insert_session(&mut self, session: &Session, position: usize) -> Result<(), Failed> {
        self.sessions.insert((session.task, session.id), Some(session.clone()));
        self.writes.push(Write::Session(Box::new(session.clone()), position));
        Ok(())
    }

    fn session(&mut self, task: TaskId, id: SessionId) -> Result<Option<Session>, Failed> {
        known!(self.sessions[(task, id)], self.engine.session(task, id))
    }

    fn save_session(&mut self, session: &Session) -> Result<(), Failed> {
        let known = self.sessions.insert((session.task, session.id), Some(session.clone()));
        if self.changed.insert(Changed::Session(session.task, session.id))
            && let Some(before) = known.flatten()
        {
            self.stood.insert(session.id, before.state.kind());
        }
        Ok(())
    }
}

impl JobRows for Unit<'_> {
    fn insert_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        self.jobs.insert((row.job.task, row.job.id), Some(row.clone()));
        if let Some(open) = self.open_jobs.get_mut(&row.job.task) {
            open.insert(row.job.id);
        }
        self.writes.push(Write::Job(Box::new(row.clone())));
        Ok(())
    }

    fn job(&mut self, task: TaskId, id: JobId) -> Result<Option<JobRow>, Failed> {
        known!(self.jobs[(task, id)], self.engine.job(task, id))
    }

    fn save_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        self.jobs.insert((row.job.task, row.job.id), Some(row.clone()));
        self.changed.insert(Changed::Job(row.job.task, row.job.id));
        Ok(())
    }

    fn open_jobs(&mut self, task: TaskId) -> Result<Vec<JobRow>, Failed> {
        if !self.open_jobs.contains_key(&task) {
            self.fetches += u32::from(self.deciding);
            let fetched = self.engine.open_jobs(task)?;
            self.open_jobs
                .insert(task, fetched.iter().map(|row| row.job.id).collect());
            for row in fetched {
                // The command's own version takes precedence.
                self.jobs.entry((task, row.job.id)).or_insert(Some(row));
            }
        }
        let open = self.open_jobs.get(&task).into_iter().flatten();
        let rows = open.filter_map(|id| self.jobs.get(&(task, *id))?.as_ref());
        Ok(rows.filter(|row| row.job.state != JobState::Done).cloned().collect())
    }
}

impl AttemptRows for Unit<'_> {
    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed> {
        self.attempts.insert(attempt.id, Some(attempt.clone()));
        self.writes
            .push(Write::Attempt(Box::new(attempt.clone()), note.clone()));
        Ok(())
    }

    fn attempt(&mut self, id: AttemptId) -> Result<Option<Attempt>, Failed> {
        known!(self.attempts[id], self.engine.attempt(id))
    }

    fn save_attempt(&mut self, attempt: &Attempt) -> Result<(), Failed> {
        self.attempts.insert(attempt.id, Some(attempt.clone()));
        self.changed.insert(Changed::Attempt(attempt.id));
        Ok(())
    }

    fn live_attempts(&mut self, agent: AgentId) -> Result<Vec<Attempt>, Failed> {
        if !self.live_attempts.contains_key(&agent) {
            self.fetches += u32::from(self.deciding);
            let fetched = self.engine.live_attempts(agent)?;
            self.live_attempts
                .insert(agent, fetched.iter().map(|attempt| attempt.id).collect());
            for attempt in fetched {
                self.attempts.entry(attempt.id).or_insert(Some(attempt));
            }
        }
        let live = self.live_attempts.get(&agent).into_iter().flatten();
        Ok(live.filter_map(|id| self.attempts.get(id)?.clone()).collect())
    }

    fn extend_leases(&mut self, until: Timestamp, now: Timestamp) -> Result<(), Failed> {
        self.writes.push(Write::ExtendLeases(until, now));
        Ok(())
    }

    fn insert_event(&mut self, task: TaskId, pos: u64, attempt: AttemptId, event: &Event) -> Result<(), Failed> {
        self.writes
            .push(Write::Event(task, pos, attempt, Box::new(event.clone())));
        Ok(())
    }
}

impl CheckpointRows for Unit<'_> {
    fn insert_checkpoint(&mut self, task: TaskId, checkpoint: &Checkpoint) -> Result<(), Failed> {
        let (session, taken) = (checkpoint.session, &checkpoint.taken);
        let position = Some((checkpoint.position, checkpoint.adapter.clone()));
        self.positions.insert((task, session, taken.commit.clone()), position);
        if let Some(all) = self.checkpoints.get_mut(&(task, session)) {
            all.push(checkpoint.clone());
        }
        if let Some(known) = self.safeties.get_mut(&(task, taken.tree.clone()))
            && *known == Safety::Unknown
        {
            *known = checkpoint.safety;
        }
        for ((of, base), trees) in &mut self.base_trees {
            if *of == task && taken.is_base(base) && !trees.contains(&taken.tree) {
                trees.push(taken.tree.clone());
            }
        }
        self.writes.push(Write::Checkpoint(task, Box::new(checkpoint.clone())));
        Ok(())
    }

    fn checkpoints(&mut self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, Failed> {
        known!(
            self.checkpoints[(task, session)],
            self.engine.checkpoints(task, session)
        )
    }

    fn position(
        &mut self,
        task: TaskId,
        session: SessionId,
        commit: &Oid,
    ) -> Result<Option<(u64, AdapterName)>, Failed> {
        known!(
            self.positions[(task, session, commit.clone())],
            self.engine.position(task, session, commit)
        )
    }

    fn base_trees(&mut self, task: TaskId, base: &Oid) -> Result<Vec<Oid>, Failed> {
        known!(
            self.base_trees[(task, base.clone())],
            self.engine.base_trees(task, base)
        )
    }

    fn safety(&mut self, task: TaskId, tree: &Oid) -> Result<Safety, Failed> {
        known!(self.safeties[(task, tree.clone())], self.engine.safety(task, tree))
    }

    fn save_safety(&mut self, task: TaskId, tree: &Oid, safety: Safety) -> Result<(), Failed> {
        self.safeties.insert((task, tree.clone()), safety);
        let of_task = self.checkpoints.iter_mut().filter(|((of, _), _)| *of == task);
        for checkpoint in of_task.flat_map(|(_, all)| all) {
            if checkpoint.taken.tree == *tree {
                checkpoint.safety = safety;
            }
        }
        self.writes.push(Write::Safety(task, tree.clone(), safety));
        Ok(())
    }
}

impl BaseVerdictRows for Unit<'_> {
    fn base_verdicts(&mut self, key: &BaseKey) -> Result<Vec<KeptVerdict>, Failed> {
        known!(self.base_verdicts[key.clone()], self.engine.base_verdicts(key))
    }

    fn put_base_verdict(&mut self, kept: &KeptVerdict) -> Result<(), Failed> {
        // Whoever asks for them again in this command gets what the engine has by then.
        self.base_verdicts.remove(&kept.key);
        self.writes.push(Write::BaseVerdict(Box::new(kept.clone())));
        Ok(())
    }

    fn forget_base_verdicts(&mut self, before: Timestamp) -> Result<(), Failed> {
        self.writes.push(Write::ForgetBaseVerdicts(before));
        Ok(())
    }
}

impl CallRows for Unit<'_> {
    fn has_call(&mut self, attempt: AttemptId, name: &str) -> Result<bool, Failed> {
        known!(
            self.calls[(attempt, name.to_owned())],
            self.engine.has_call(attempt, name)
        )
    }

    fn insert_call(&mut self, row: &CallRow) -> Result<(), Failed> {
        self.calls.insert((row.attempt, row.name.clone()), true);
        // Whoever asks for sums again in this command has added it already.
        self.writes.push(Write::Call(Box::new(row.clone())));
        Ok(())
    }

    fn reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<Option<Reservation>, Failed> {
        known!(
            self.reservations[(attempt, call)],
            self.engine.reservation(attempt, call)
        )
    }

    fn reservations_of(&mut self, attempt: AttemptId) -> Result<Vec<Reservation>, Failed> {
        if !self.reservations_of.contains_key(&attempt) {
            self.fetches += u32::from(self.deciding);
            let found = self.engine.reservations_of(attempt)?;
            self.reservations_of.insert(attempt, found);
        }
        let mut found = self.reservations_of.get(&attempt).cloned().unwrap_or_default();
        // The command's own version takes precedence.
        found.retain(|held| !matches!(self.reservations.get(&(attempt, held.call)), Some(None)));
        Ok(found)
    }

    fn put_reservation(&mut self, reservation: &Reservation) -> Result<(), Failed> {
        let key = (reservation.attempt, reservation.call);
        self.reservations.insert(key, Some(reservation.clone()));
        self.writes.push(Write::Reservation(Box::new(reservation.clone())));
        Ok(())
    }

    fn remove_reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<(), Failed> {
        self.reservations.insert((attempt, call), None);
        self.writes.push(Write::RemoveReservation(attempt, call));
        Ok(())
    }

    fn used_of(&mut self, scope: &ScopeKey) -> Result<(Tally, Vec<Held>), Failed> {
        known!(self.used[scope.clone()], self.engine.used_of(scope))
    }
}

impl AgentRows for Unit<'_> {
    fn agent_boot(&mut self, id: AgentId) -> Result<Option<BootId>, Failed> {
        known!(self.boots[id], self.engine.agent_boot(id))
    }

    fn agent(&mut self, id: AgentId) -> Result<Option<Agent>, Failed> {
        known!(self.agents[id], self.engine.agent(id))
    }

    fn put_agent(&mut self, agent: &Agent) -> Result<(), Failed> {
        self.boots.insert(agent.id, Some(agent.boot));
        self.agents.insert(agent.id, Some(agent.clone()));
        self.writes.push(Write::Agent(Box::new(agent.clone())));
        Ok(())
    }

    fn save_agent_seen(&mut self, id: AgentId, at: Timestamp) -> Result<(), Failed> {
        self.writes.push(Write::AgentSeen(id, at));
        Ok(())
    }
}

impl AdmissionRows for Unit<'_> {
    fn join_token(&mut self, id: TokenId) -> Result<Option<JoinTokenRow>, Failed> {
        known!(self.join_tokens[id], self.engine.join_token(id))
    }

    fn put_join_token(&mut self, id: TokenId, row: &JoinTokenRow) -> Result<(), Failed> {
        self.join_tokens.insert(id, Some(row.clone()));
        self.writes.push(Write::JoinToken(id, row.clone()));
        Ok(())
    }

    fn forget_join_tokens(&mut self, before: Timestamp) -> Result<(), Failed> {
        self.writes.push(Write::ForgetJoinTokens(before));
        Ok(())
    }

    fn enrolment(&mut self, agent: AgentId) -> Result<Option<Enrolment>, Failed> {
        known!(self.enrolments[agent], self.engine.enrolment(agent))
    }

    fn put_enrolment(&mut self, enrolment: &Enrolment) -> Result<(), Failed> {
        self.enrolments.insert(enrolment.agent, Some(enrolment.clone()));
        self.writes.push(Write::Enrolment(enrolment.clone()));
        Ok(())
    }

    fn person_token(&mut self, id: TokenId) -> Result<Option<PersonToken>, Failed> {
        known!(self.person_tokens[id], self.engine.person_token(id))
    }

    fn put_person_token(&mut self, token: &PersonToken) -> Result<(), Failed> {
        self.person_tokens.insert(token.id, Some(token.clone()));
        self.writes.push(Write::PersonToken(token.clone()));
        Ok(())
    }
}

impl ContextRows for Unit<'_> {
    fn context(&mut self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextRow>, Failed> {
        known!(
            self.contexts[(project.clone(), digest.clone())],
            self.engine.context(project, digest)
        )
    }

    fn put_context(&mut self, project: &ProjectId, digest: &Digest, row: &ContextRow) -> Result<(), Failed> {
        self.contexts.insert((project.clone(), digest.clone()), Some(*row));
        self.writes.push(Write::Context(project.clone(), digest.clone(), *row));
        Ok(())
    }

    fn add_context_sent(
        &mut self,
        project: &ProjectId,
        digest: &Digest,
        agent: AgentId,
        bytes: u64,
    ) -> Result<(), Failed> {
        self.writes
            .push(Write::ContextSent(project.clone(), digest.clone(), agent, bytes));
        Ok(())
    }
}
