//! How each command is carried out: load rows, let core decide, save rows, say what followed.
//! Written once; the engines differ only in their rows.

use std::collections::BTreeSet;

use kage_core::attempt::{Admission, Attempt, AttemptState, EndReason};
use kage_core::event::{AttemptOutcome, EventBody, check_batch};
use kage_core::fleet::Agent;
use kage_core::id::{AttemptId, JobId};
use kage_core::job::{Affinity, Finish, Job, JobKind, JobState, Moved};
use kage_core::recovery::Jitter;
use kage_core::session::Session;
use kage_core::task::{self, Assignment, Labels, Policy, Task, TaskState};
use kage_core::time::Timestamp;

use super::command::{
    AppendEvents, Appended, CancelTask, Changes, ContextPut, CreateTask, Created, EndAttempts, EndedAttempt, Ending,
    ExtendAllLeases, PutContext, QueuedJob, REQUEST_LIFETIME, RecordAgent, RecordContextSent, RenewLeases, Renewed,
    Request, SetDraining, Start, StartAttempt, StopAttempt,
};
use super::error::{EngineError, StoreError};
use super::rows::{AttemptNote, ContextRow, Failed, JobRow, RequestKey, RequestRow, Rows, TaskHead};

/// A change to the store, with what it comes back with.
///
/// Every command is carried out whole or not at all.
pub trait Command: Send + 'static {
    /// What it comes back with.
    type Outcome: Send + 'static;

    /// Carries it out on rows that are saved or taken back together.
    ///
    /// # Errors
    /// When it may not be carried out, or the engine failed. Nothing is saved then.
    fn apply(self, rows: &mut dyn Rows) -> Result<Self::Outcome, Failed>;
}

impl Command for CreateTask {
    type Outcome = Created;

    fn apply(self, rows: &mut dyn Rows) -> Result<Created, Failed> {
        let Self {
            request,
            task: id,
            spec,
            sessions,
            now,
        } = self;
        if let Some(reply) = earlier_reply(rows, "create_task", &request)? {
            let task = reply.parse().map_err(|source| EngineError::Corrupt {
                what: "reply",
                source: Box::new(source),
            })?;
            return Ok(Created {
                task,
                repeated: true,
                changes: Changes::default(),
            });
        }
        if sessions.len() != spec.assignments.len() {
            return Err(Failed::Refused(StoreError::SessionCount {
                task: id,
                assignments: spec.assignments.len(),
                sessions: sessions.len(),
            }));
        }
        let task = Task {
            id,
            spec,
            state: TaskState::Running,
            created_at: now,
            ended_at: None,
        };
        rows.insert_task(&task)?;
        count_context_use(rows, &task)?;
        let mut changes = Changes {
            tasks: vec![id],
            ..Changes::default()
        };
        let assignments = task.spec.assignments.iter().zip(sessions).enumerate();
        for (position, (assignment, (session, job))) in assignments {
            let session = Session::new(
                session,
                id,
                assignment.name.clone(),
                assignment.adapter.clone(),
                assignment.model.clone(),
            );
            rows.insert_session(&session, position)?;
            let row = JobRow {
                job: Job::new(job, id, session.id, JobKind::Session, now),
                adapter: assignment.adapter.clone(),
                requirements: requirements(&task.spec.policy, assignment),
                queued_at: now,
            };
            rows.insert_job(&row)?;
            changes.sessions.push(session.id);
            changes.queued.extend(waiting(&row, &task.spec.project));
        }
        remember(rows, "create_task", request, id.to_string(), now)?;
        Ok(Created {
            task: id,
            repeated: false,
            changes,
        })
    }
}

impl Command for CancelTask {
    type Outcome = Changes;

    fn apply(self, rows: &mut dyn Rows) -> Result<Changes, Failed> {
        let mut changes = Changes::default();
        if earlier_reply(rows, "cancel_task", &self.request)?.is_some() {
            return Ok(changes);
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        for mut row in rows.open_jobs(self.task)? {
            let mut session = session_of(rows, &row.job)?;
            if row.job.cancel(&mut session, self.now) {
                rows.save_job(&row)?;
                changes.withdrawn.push(row.job.id);
            } else {
                session.cancel_requested = true;
                if let JobState::Leased { attempt } = row.job.state {
                    let agent = attempt_of(rows, attempt, &row.job)?.agent;
                    changes.stop.push(StopAttempt { attempt, agent });
                }
            }
            rows.save_session(&session)?;
            changes.sessions.push(session.id);
        }
        if settle(rows, &mut head, self.now)? {
            rows.save_task(&head)?;
        }
        if !changes.sessions.is_empty() {
            changes.tasks.push(self.task);
        }
        remember(rows, "cancel_task", self.request, String::new(), self.now)?;
        Ok(changes)
    }
}

impl Command for StartAttempt {
    type Outcome = Start;

    fn apply(self, rows: &mut dyn Rows) -> Result<Start, Failed> {
        // An older start of the agent may have accepted just before it died.
        if rows.agent_boot(self.agent)? != Some(self.boot) {
            return Ok(Start::NotStartable);
        }
        let Some(mut row) = rows.job(self.task, self.job)? else {
            return Ok(Start::NotStartable);
        };
        if row.job.started.checked_add(1) != Some(self.number) {
            return Ok(Start::NotStartable);
        }
        let mut session = session_of(rows, &row.job)?;
        if row
            .job
            .start(self.attempt, &mut session, &self.agent_name, self.now)
            .is_err()
        {
            return Ok(Start::NotStartable);
        }
        let attempt = Attempt {
            id: self.attempt,
            job: self.job,
            session: session.id,
            task: self.task,
            number: row.job.started,
            token_hash: self.token_hash,
            agent: self.agent,
            boot: self.boot,
            lease_until: self.lease_until,
            acked_seq: 0,
            state: AttemptState::Live,
        };
        let note = AttemptNote {
            agent_name: self.agent_name,
            job_kind: row.job.kind.as_str(),
            started_at: self.now,
        };
        rows.insert_attempt(&attempt, &note)?;
        rows.save_job(&row)?;
        rows.save_session(&session)?;
        Ok(Start::Started(Changes {
            sessions: vec![session.id],
            tasks: vec![self.task],
            ..Changes::default()
        }))
    }
}

impl Command for RenewLeases {
    type Outcome = Renewed;

    fn apply(self, rows: &mut dyn Rows) -> Result<Renewed, Failed> {
        let mut outcome = Renewed::default();
        for claim in self.claims {
            let Some(mut attempt) = rows.attempt(claim.attempt)? else {
                outcome.refused.push(claim.attempt);
                continue;
            };
            let authorised = attempt.authorise(&claim.token_hash, self.agent).is_ok();
            if !authorised || attempt.boot != self.boot {
                outcome.refused.push(claim.attempt);
                continue;
            }
            if attempt.lease_until < self.lease_until {
                attempt.lease_until = self.lease_until;
                rows.save_attempt(&attempt)?;
            }
            outcome.renewed.push(claim.attempt);
        }
        rows.save_agent_seen(self.agent, self.now)?;
        Ok(outcome)
    }
}

impl Command for AppendEvents {
    type Outcome = Appended;

    fn apply(self, rows: &mut dyn Rows) -> Result<Appended, Failed> {
        if let Err(invalid) = check_batch(&self.events) {
            return Ok(Appended::Invalid(invalid));
        }
        let Some(mut attempt) = rows.attempt(self.claim.attempt)? else {
            return Ok(Appended::UnknownAttempt);
        };
        let first = self.events.first().map_or(0, |event| event.seq);
        let admission = attempt.admit(&self.claim.token_hash, self.agent, first, self.events.len());
        let fresh = match admission {
            Admission::Accept { skip } => self.events.get(skip..).unwrap_or_default(),
            Admission::Gap { acked_seq } => return Ok(Appended::Gap { acked_seq }),
            Admission::Stale(stale) => return Ok(Appended::Stale(stale)),
        };
        if fresh.is_empty() {
            return Ok(Appended::Acked {
                seq: attempt.acked_seq,
                changes: Changes::default(),
            });
        }
        let mut changes = Changes {
            tasks: vec![attempt.task],
            ..Changes::default()
        };
        let mut head = task_of(rows, &attempt)?;
        let mut row = job_of(rows, &attempt)?;
        let before = session_of(rows, &row.job)?;
        let mut session = before.clone();
        let mut end = None;
        for event in fresh {
            head.last_event += 1;
            rows.insert_event(head.id, head.last_event, attempt.id, event)?;
            session.record(event, self.now);
            attempt.acked_seq = event.seq;
            if let EventBody::Finished(outcome) = &event.body {
                end = Some(outcome);
            }
        }
        if let Some(outcome) = end {
            let ended = End {
                attempt: &mut attempt,
                row: &mut row,
                session: &mut session,
                head: &mut head,
            };
            ended.finish(rows, outcome, self.next_job, self.jitter, self.now, &mut changes)?;
        } else if session != before {
            rows.save_session(&session)?;
        }
        if session != before {
            changes.sessions.push(session.id);
        }
        rows.save_attempt(&attempt)?;
        rows.save_task(&head)?;
        Ok(Appended::Acked {
            seq: attempt.acked_seq,
            changes,
        })
    }
}

impl Command for EndAttempts {
    type Outcome = Changes;

    fn apply(self, rows: &mut dyn Rows) -> Result<Changes, Failed> {
        let attempts = match &self.which {
            Ending::OtherBoots { agent, boot } => {
                let mut live = rows.live_attempts(*agent)?;
                live.retain(|attempt| attempt.boot != *boot);
                live
            }
            Ending::Boot { agent, boot } => {
                let mut live = rows.live_attempts(*agent)?;
                live.retain(|attempt| attempt.boot == *boot);
                live
            }
            Ending::These(ids) => load_attempts(rows, ids)?,
            Ending::Expired(ids) => {
                let mut expired = load_attempts(rows, ids)?;
                expired.retain(|attempt| attempt.lease_until <= self.now);
                expired
            }
        };
        let mut changes = Changes::default();
        let mut tasks = BTreeSet::new();
        for mut attempt in attempts {
            if !attempt.end(self.reason, self.now) {
                continue;
            }
            let mut head = task_of(rows, &attempt)?;
            let mut row = job_of(rows, &attempt)?;
            let mut session = session_of(rows, &row.job)?;
            let ended = End {
                attempt: &mut attempt,
                row: &mut row,
                session: &mut session,
                head: &mut head,
            };
            ended.lose(rows, self.reason, self.now, &mut changes)?;
            rows.save_attempt(&attempt)?;
            rows.save_task(&head)?;
            changes.sessions.push(session.id);
            tasks.insert(attempt.task);
        }
        changes.tasks.extend(tasks);
        Ok(changes)
    }
}

impl Command for ExtendAllLeases {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        rows.extend_leases(self.lease_until)
    }
}

impl Command for RecordAgent {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        let draining = rows
            .agent(self.agent.id)?
            .is_some_and(|known| known.draining && known.boot == self.agent.boot);
        rows.put_agent(&Agent { draining, ..self.agent })
    }
}

impl Command for SetDraining {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if let Some(request) = &self.request
            && earlier_reply(rows, "drain_agent", request)?.is_some()
        {
            return Ok(());
        }
        let agent = rows.agent(self.agent)?.ok_or_else(|| not_found("agent", self.agent))?;
        rows.put_agent(&Agent {
            draining: self.draining,
            ..agent
        })?;
        match self.request {
            Some(request) => remember(rows, "drain_agent", request, String::new(), self.now),
            None => Ok(()),
        }
    }
}

impl Command for PutContext {
    type Outcome = ContextPut;

    fn apply(self, rows: &mut dyn Rows) -> Result<ContextPut, Failed> {
        if let Some(reply) = earlier_reply(rows, "put_context", &self.request)? {
            return Ok(ContextPut {
                created: reply == CREATED,
            });
        }
        let known = rows.context(&self.project, &self.digest)?;
        let row = ContextRow {
            size: self.size,
            times_put: known.map_or(0, |row| row.times_put) + 1,
            sessions: known.map_or(0, |row| row.sessions),
            delta_bytes: known.map_or(0, |row| row.delta_bytes),
        };
        rows.put_context(&self.project, &self.digest, &row)?;
        let created = known.is_none();
        let reply = if created { CREATED } else { "" };
        remember(rows, "put_context", self.request, reply.to_owned(), self.now)?;
        Ok(ContextPut { created })
    }
}

impl Command for RecordContextSent {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if rows.context(&self.project, &self.digest)?.is_none() {
            return Err(not_found("context", &self.digest));
        }
        rows.add_context_sent(&self.project, &self.digest, self.agent, self.bytes)
    }
}

const CREATED: &str = "created";

/// How many old calls each new one makes the store forget: more than one, so that it never
/// falls behind, and few, so that nobody waits for it.
const FORGET: u32 = 2;

/// The rows that the end of an attempt concerns.
struct End<'a> {
    attempt: &'a mut Attempt,
    row: &'a mut JobRow,
    session: &'a mut Session,
    head: &'a mut TaskHead,
}

impl End<'_> {
    /// Ends the attempt by its own last event.
    fn finish(
        mut self,
        rows: &mut dyn Rows,
        outcome: &AttemptOutcome,
        next_job: JobId,
        jitter: Jitter,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), Failed> {
        self.attempt.end(EndReason::Finished, now);
        let agent = self.attempt.agent;
        let finish = self
            .row
            .job
            .finish(&self.head.policy, self.session, outcome, agent, jitter, now);
        match finish {
            Finish::Moved(moved) => self.moved(rows, moved, EndReason::Finished, now, changes),
            Finish::Then(kind) => {
                let mut job = Job::new(next_job, self.head.id, self.session.id, kind, now);
                // Whoever did the work had best not judge it.
                job.affinity = Affinity {
                    prefer: None,
                    avoid: Some(agent),
                };
                let next = JobRow {
                    job,
                    adapter: self.row.adapter.clone(),
                    requirements: self.row.requirements.clone(),
                    queued_at: now,
                };
                rows.insert_job(&next)?;
                changes.queued.extend(waiting(&next, &self.head.project));
                self.moved(rows, Moved::Over, EndReason::Finished, now, changes)
            }
        }
    }

    /// Ends the attempt because its agent lost its authority.
    fn lose(
        mut self,
        rows: &mut dyn Rows,
        reason: EndReason,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), Failed> {
        let agent = self.attempt.agent;
        let moved = self.row.job.lose(&self.head.policy, self.session, reason, agent, now);
        self.moved(rows, moved, reason, now, changes)
    }

    fn moved(
        &mut self,
        rows: &mut dyn Rows,
        moved: Moved,
        reason: EndReason,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), Failed> {
        changes.ended.push(EndedAttempt {
            attempt: self.attempt.id,
            agent: self.attempt.agent,
            reason,
        });
        if moved == Moved::Requeued {
            self.row.queued_at = now;
            changes.queued.extend(waiting(self.row, &self.head.project));
        }
        rows.save_job(self.row)?;
        rows.save_session(self.session)?;
        if self.session.state.is_terminal() {
            settle(rows, self.head, now)?;
        }
        Ok(())
    }
}

/// Ends the task when every session has ended. True when that changed it.
fn settle(rows: &mut dyn Rows, head: &mut TaskHead, now: Timestamp) -> Result<bool, Failed> {
    if head.state.is_terminal() {
        return Ok(false);
    }
    let states = rows.session_states(head.id)?;
    let Some(state) = task::settle(&head.policy, states) else {
        return Ok(false);
    };
    head.state = state;
    head.ended_at = Some(now);
    Ok(true)
}

/// The job as the dispatcher sees it, while it waits.
pub(super) fn waiting(row: &JobRow, project: &kage_core::id::ProjectId) -> Option<QueuedJob> {
    let JobState::Queued { not_before } = row.job.state else {
        return None;
    };
    Some(QueuedJob {
        job: row.job.id,
        task: row.job.task,
        session: row.job.session,
        project: project.clone(),
        kind: row.job.kind.clone(),
        adapter: row.adapter.clone(),
        requirements: row.requirements.clone(),
        not_before,
        queued_at: row.queued_at,
        affinity: row.job.affinity,
    })
}

/// What the task and the session require together; the session's word counts where both speak.
fn requirements(policy: &Policy, assignment: &Assignment) -> Labels {
    let mut labels = policy.requirements.clone();
    labels.extend(assignment.requirements.clone());
    labels
}

fn count_context_use(rows: &mut dyn Rows, task: &Task) -> Result<(), Failed> {
    let Some(digest) = &task.spec.context_base else {
        return Ok(());
    };
    let project = &task.spec.project;
    let mut row = rows
        .context(project, digest)?
        .ok_or_else(|| not_found("context", digest))?;
    for assignment in &task.spec.assignments {
        row.sessions += 1;
        row.delta_bytes += assignment.context_delta.as_ref().map_or(0, |delta| delta.len() as u64);
    }
    rows.put_context(project, digest, &row)
}

/// The reply to an earlier call with this id, if there was one.
pub(super) fn earlier_reply(
    rows: &mut dyn Rows,
    method: &'static str,
    request: &Request,
) -> Result<Option<String>, Failed> {
    match rows.request(&request_key(method, request))? {
        None => Ok(None),
        Some(row) if row.payload == request.payload => Ok(Some(row.reply)),
        Some(_) => Err(Failed::Refused(StoreError::RequestConflict { id: request.id.clone() })),
    }
}

pub(super) fn remember(
    rows: &mut dyn Rows,
    method: &'static str,
    request: Request,
    reply: String,
    now: Timestamp,
) -> Result<(), Failed> {
    let key = request_key(method, &request);
    let row = RequestRow {
        payload: request.payload,
        reply,
        at: now,
    };
    rows.insert_request(&key, &row)?;
    let lifetime = u64::try_from(REQUEST_LIFETIME.as_millis()).unwrap_or(u64::MAX);
    let before = Timestamp::from_millis(now.as_millis().saturating_sub(lifetime));
    rows.forget_requests(before, FORGET)
}

fn request_key(method: &'static str, request: &Request) -> RequestKey {
    RequestKey {
        principal: request.principal.clone(),
        method,
        id: request.id.clone(),
    }
}

fn load_attempts(rows: &mut dyn Rows, ids: &[AttemptId]) -> Result<Vec<Attempt>, Failed> {
    let mut attempts = Vec::with_capacity(ids.len());
    for id in BTreeSet::from_iter(ids) {
        attempts.extend(rows.attempt(*id)?);
    }
    Ok(attempts)
}

fn task_of(rows: &mut dyn Rows, attempt: &Attempt) -> Result<TaskHead, Failed> {
    let dangling = EngineError::Dangling {
        job: attempt.job,
        what: "task",
    };
    rows.task(attempt.task)?.ok_or(Failed::Engine(dangling))
}

fn job_of(rows: &mut dyn Rows, attempt: &Attempt) -> Result<JobRow, Failed> {
    let dangling = EngineError::Dangling {
        job: attempt.job,
        what: "row",
    };
    rows.job(attempt.task, attempt.job)?.ok_or(Failed::Engine(dangling))
}

fn session_of(rows: &mut dyn Rows, job: &Job) -> Result<Session, Failed> {
    let dangling = EngineError::Dangling {
        job: job.id,
        what: "session",
    };
    rows.session(job.task, job.session)?.ok_or(Failed::Engine(dangling))
}

fn attempt_of(rows: &mut dyn Rows, attempt: AttemptId, job: &Job) -> Result<Attempt, Failed> {
    let dangling = EngineError::Dangling {
        job: job.id,
        what: "attempt",
    };
    rows.attempt(attempt)?.ok_or(Failed::Engine(dangling))
}

pub(super) fn not_found(what: &'static str, id: impl std::fmt::Display) -> Failed {
    Failed::Refused(StoreError::NotFound {
        what,
        id: id.to_string(),
    })
}
