//! The rows of SQLite, inside the savepoint of one command. Every statement is prepared once
//! per connection.

use kage_core::attempt::Attempt;
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, BootId, Digest, JobId, ProjectId, SessionId, TaskId, TokenId};
use kage_core::job::JobKind;
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::Task;
use kage_core::time::Timestamp;
use rusqlite::{Connection, ErrorCode, Params, Row, params};

use super::record::{
    self, agent_columns, attempt_columns, enrolment_columns, job_columns, join_token_columns, person_token_columns,
    session_columns,
};
use super::value::{
    attempt_state, failed, get, get_id, get_int, get_json, get_optional_time, get_parsed, get_session_state,
    get_task_state, get_time, id, int, json, task_state, time,
};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::error::{EngineError, StoreError};
use crate::store::rows::{AttemptNote, ContextRow, Failed, JobRow, RequestKey, RequestRow, Rows, TaskHead};

/// The rows behind a connection that is inside a transaction.
#[derive(Debug)]
pub(in crate::store) struct SqliteRows<'a> {
    connection: &'a Connection,
}

impl<'a> SqliteRows<'a> {
    /// Rows behind this connection.
    pub(in crate::store) const fn new(connection: &'a Connection) -> Self {
        Self { connection }
    }

    fn execute(&self, sql: &str, params: impl Params) -> Result<(), Failed> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params))
            .map_err(failed)?;
        Ok(())
    }

    fn insert(&self, what: &'static str, sql: &str, params: impl Params) -> Result<(), Failed> {
        let result = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params));
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_taken(&error) => Err(Failed::Refused(StoreError::IdTaken { what })),
            Err(error) => Err(Failed::Engine(failed(error))),
        }
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, EngineError>,
    ) -> Result<Option<T>, Failed> {
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params).map_err(failed)?;
        match rows.next().map_err(failed)? {
            Some(row) => Ok(Some(read(row)?)),
            None => Ok(None),
        }
    }

    fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Row<'_>) -> Result<T, EngineError>,
    ) -> Result<Vec<T>, Failed> {
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params).map_err(failed)?;
        let mut values = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            values.push(read(row)?);
        }
        Ok(values)
    }
}

/// True when a row with this key is there already.
fn is_taken(error: &rusqlite::Error) -> bool {
    let unique = [
        rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
        rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE,
        rusqlite::ffi::SQLITE_CONSTRAINT_ROWID,
    ];
    error
        .sqlite_error()
        .is_some_and(|e| e.code == ErrorCode::ConstraintViolation && unique.contains(&e.extended_code))
}

/// `usage` as a column: nothing is cheaper than an empty list.
fn usage_json(session: &Session) -> Result<Option<String>, EngineError> {
    if session.usage.is_empty() {
        return Ok(None);
    }
    json("usage", &session.usage).map(Some)
}

/// The failures of a session as a column.
fn incidents_json(session: &Session) -> Result<Option<String>, EngineError> {
    if session.incidents.is_empty() {
        return Ok(None);
    }
    json("incidents", &session.incidents).map(Some)
}

fn pending_json(session: &Session) -> Result<Option<String>, EngineError> {
    let result = session.pending_result.as_ref();
    result.map(|result| json("result", result)).transpose()
}

impl Rows for SqliteRows<'_> {
    fn request(&mut self, key: &RequestKey) -> Result<Option<RequestRow>, Failed> {
        self.one(
            "SELECT payload, reply, at FROM requests WHERE principal = ?1 AND method = ?2 AND id = ?3",
            params![key.principal, key.method, key.id],
            |row| {
                Ok(RequestRow {
                    payload: get_parsed(row, 0, "digest")?,
                    reply: get(row, 1)?,
                    at: get_time(row, 2)?,
                })
            },
        )
    }

    fn insert_request(&mut self, key: &RequestKey, row: &RequestRow) -> Result<(), Failed> {
        self.insert(
            "request",
            "INSERT INTO requests (principal, method, id, payload, reply, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                key.principal,
                key.method,
                key.id,
                row.payload.as_str(),
                row.reply,
                time(row.at)
            ],
        )
    }

    fn forget_requests(&mut self, before: Timestamp, limit: u32) -> Result<(), Failed> {
        self.execute(
            "DELETE FROM requests WHERE n IN (SELECT n FROM requests ORDER BY n LIMIT ?2) AND at < ?1",
            params![time(before), limit],
        )
    }

    fn insert_task(&mut self, task: &Task) -> Result<(), Failed> {
        self.insert(
            "task",
            "INSERT INTO tasks (id, project, state, created_at, ended_at, last_event, policy) \
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)",
            params![
                id(task.id),
                task.spec.project.as_str(),
                task_state(task.state),
                time(task.created_at),
                task.ended_at.map(time),
                json("policy", &task.spec.policy)?,
            ],
        )?;
        self.execute(
            "INSERT INTO specs (task, spec) VALUES (?1, ?2)",
            params![self.connection.last_insert_rowid(), json("task", &task.spec)?],
        )
    }

    fn task(&mut self, task: TaskId) -> Result<Option<TaskHead>, Failed> {
        self.one(
            "SELECT project, policy, state, ended_at, last_event FROM tasks WHERE id = ?1",
            params![id(task)],
            |row| {
                Ok(TaskHead {
                    id: task,
                    project: get_parsed(row, 0, "project")?,
                    policy: get_json(row, 1, "policy")?,
                    state: get_task_state(row, 2)?,
                    ended_at: get_optional_time(row, 3)?,
                    last_event: get_int(row, 4)?,
                })
            },
        )
    }

    fn save_task(&mut self, task: &TaskHead) -> Result<(), Failed> {
        self.execute(
            "UPDATE tasks SET state = ?2, ended_at = ?3, last_event = ?4 WHERE id = ?1",
            params![
                id(task.id),
                task_state(task.state),
                task.ended_at.map(time),
                int(task.last_event)
            ],
        )
    }

    fn insert_session(&mut self, session: &Session, position: usize) -> Result<(), Failed> {
        self.insert(
            "session",
            "INSERT INTO sessions (task, id, position, state, detail, name, adapter, model, cancel_requested, agent, \
             attempts, activity, activity_at, usage, call_retries, pending_result, started_at, ended_at, incidents) \
             VALUES ((SELECT n FROM tasks WHERE id = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, \
             ?15, ?16, ?17, ?18, ?19)",
            params![
                id(session.task),
                id(session.id),
                int(position as u64),
                session.state.kind().as_str(),
                json("session state", &session.state)?,
                session.name.as_str(),
                session.adapter.as_str(),
                session.model,
                session.cancel_requested,
                session.agent,
                session.attempts,
                session.activity.as_ref().map(|(text, _)| text),
                session.activity.as_ref().map(|(_, at)| time(*at)),
                usage_json(session)?,
                session.call_retries,
                pending_json(session)?,
                session.started_at.map(time),
                session.ended_at.map(time),
                incidents_json(session)?,
            ],
        )
    }

    fn session(&mut self, task: TaskId, session: SessionId) -> Result<Option<Session>, Failed> {
        self.one(
            concat!(
                "SELECT ",
                session_columns!(),
                " FROM sessions s WHERE s.task = (SELECT n FROM tasks WHERE id = ?1) AND s.id = ?2"
            ),
            params![id(task), id(session)],
            |row| record::session(row, task),
        )
    }

    fn save_session(&mut self, session: &Session) -> Result<(), Failed> {
        self.execute(
            "UPDATE sessions SET state = ?3, detail = ?4, cancel_requested = ?5, agent = ?6, attempts = ?7, \
             activity = ?8, activity_at = ?9, usage = ?10, call_retries = ?11, pending_result = ?12, \
             started_at = ?13, ended_at = ?14, incidents = ?15 \
             WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND id = ?2",
            params![
                id(session.task),
                id(session.id),
                session.state.kind().as_str(),
                json("session state", &session.state)?,
                session.cancel_requested,
                session.agent,
                session.attempts,
                session.activity.as_ref().map(|(text, _)| text),
                session.activity.as_ref().map(|(_, at)| time(*at)),
                usage_json(session)?,
                session.call_retries,
                pending_json(session)?,
                session.started_at.map(time),
                session.ended_at.map(time),
                incidents_json(session)?,
            ],
        )
    }

    fn session_states(&mut self, task: TaskId) -> Result<Vec<SessionStateKind>, Failed> {
        self.all(
            "SELECT DISTINCT state FROM sessions WHERE task = (SELECT n FROM tasks WHERE id = ?1)",
            params![id(task)],
            |row| get_session_state(row, 0),
        )
    }

    fn insert_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        let (state, attempt, not_before) = record::job_state(row.job.state);
        let verifies = match &row.job.kind {
            JobKind::Session => None,
            JobKind::Verify { commit } => Some(commit.as_str()),
        };
        let requirements = if row.requirements.is_empty() {
            None
        } else {
            Some(json("labels", &row.requirements)?)
        };
        self.insert(
            "job",
            "INSERT INTO jobs (task, id, state, session, verifies, attempt, not_before, started, failed, lost, \
             prefer, avoid, adapter, requirements, queued_at, held) \
             VALUES ((SELECT n FROM tasks WHERE id = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, \
             ?15, ?16)",
            params![
                id(row.job.task),
                id(row.job.id),
                state,
                id(row.job.session),
                verifies,
                attempt,
                not_before,
                row.job.started,
                row.job.failed,
                row.job.lost,
                row.job.affinity.prefer.map(id),
                row.job.affinity.avoid.map(id),
                row.adapter.as_str(),
                requirements,
                time(row.queued_at),
                row.job.held,
            ],
        )
    }

    fn job(&mut self, task: TaskId, job: JobId) -> Result<Option<JobRow>, Failed> {
        self.one(
            concat!(
                "SELECT ",
                job_columns!(),
                " FROM jobs j WHERE j.task = (SELECT n FROM tasks WHERE id = ?1) AND j.id = ?2"
            ),
            params![id(task), id(job)],
            |row| record::job(row, task),
        )
    }

    fn save_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        let (state, attempt, not_before) = record::job_state(row.job.state);
        self.execute(
            "UPDATE jobs SET state = ?3, attempt = ?4, not_before = ?5, started = ?6, failed = ?7, lost = ?8, \
             prefer = ?9, avoid = ?10, queued_at = ?11, held = ?12 \
             WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND id = ?2",
            params![
                id(row.job.task),
                id(row.job.id),
                state,
                attempt,
                not_before,
                row.job.started,
                row.job.failed,
                row.job.lost,
                row.job.affinity.prefer.map(id),
                row.job.affinity.avoid.map(id),
                time(row.queued_at),
                row.job.held,
            ],
        )
    }

    fn open_jobs(&mut self, task: TaskId) -> Result<Vec<JobRow>, Failed> {
        self.all(
            concat!(
                "SELECT ",
                job_columns!(),
                // The key of the table is the way in: `+` keeps the index of all open jobs out of it.
                " FROM jobs j WHERE j.task = (SELECT n FROM tasks WHERE id = ?1) AND +j.state < 2 ORDER BY j.id"
            ),
            params![id(task)],
            |row| record::job(row, task),
        )
    }

    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed> {
        let (ended_at, end_reason) = attempt_state(attempt.state);
        self.insert(
            "attempt",
            "INSERT INTO attempts (id, task, job, number, session, token_hash, agent, boot, lease_until, acked_seq, \
             ended_at, end_reason, agent_name, job_kind, started_at) \
             VALUES (?1, (SELECT n FROM tasks WHERE id = ?2), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                id(attempt.id),
                id(attempt.task),
                id(attempt.job),
                attempt.number,
                id(attempt.session),
                attempt.token_hash.as_str(),
                id(attempt.agent),
                id(attempt.boot),
                time(attempt.lease_until),
                int(attempt.acked_seq),
                ended_at,
                end_reason,
                note.agent_name,
                note.job_kind,
                time(note.started_at),
            ],
        )
    }

    fn attempt(&mut self, attempt: AttemptId) -> Result<Option<Attempt>, Failed> {
        self.one(
            concat!(
                "SELECT ",
                attempt_columns!(),
                " FROM attempts a JOIN tasks t ON t.n = a.task WHERE a.id = ?1"
            ),
            params![id(attempt)],
            record::attempt,
        )
    }

    fn save_attempt(&mut self, attempt: &Attempt) -> Result<(), Failed> {
        let (ended_at, end_reason) = attempt_state(attempt.state);
        self.execute(
            "UPDATE attempts SET lease_until = ?2, acked_seq = ?3, ended_at = ?4, end_reason = ?5 WHERE id = ?1",
            params![
                id(attempt.id),
                time(attempt.lease_until),
                int(attempt.acked_seq),
                ended_at,
                end_reason
            ],
        )
    }

    fn live_attempts(&mut self, agent: AgentId) -> Result<Vec<Attempt>, Failed> {
        self.all(
            concat!(
                "SELECT ",
                attempt_columns!(),
                " FROM attempts a JOIN tasks t ON t.n = a.task WHERE a.agent = ?1 AND a.ended_at IS NULL ORDER BY a.n"
            ),
            params![id(agent)],
            record::attempt,
        )
    }

    fn extend_leases(&mut self, until: Timestamp) -> Result<(), Failed> {
        self.execute(
            "UPDATE attempts SET lease_until = ?1 WHERE ended_at IS NULL AND lease_until < ?1",
            params![time(until)],
        )
    }

    fn insert_event(&mut self, task: TaskId, pos: u64, attempt: AttemptId, event: &Event) -> Result<(), Failed> {
        self.insert(
            "event",
            "INSERT INTO events (task, pos, attempt, event) VALUES ((SELECT n FROM tasks WHERE id = ?1), ?2, \
             (SELECT n FROM attempts WHERE id = ?3), ?4)",
            params![id(task), int(pos), id(attempt), json("event", event)?],
        )
    }

    fn agent_boot(&mut self, agent: AgentId) -> Result<Option<BootId>, Failed> {
        self.one("SELECT boot FROM agents WHERE id = ?1", params![id(agent)], |row| {
            get_id(row, 0)
        })
    }

    fn agent(&mut self, agent: AgentId) -> Result<Option<Agent>, Failed> {
        self.one(
            concat!("SELECT ", agent_columns!(), " FROM agents WHERE id = ?1"),
            params![id(agent)],
            record::agent,
        )
    }

    fn put_agent(&mut self, agent: &Agent) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO agents (",
                agent_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
            ),
            params![
                id(agent.id),
                agent.name,
                id(agent.boot),
                json("labels", &agent.labels)?,
                json("adapters", &agent.adapters)?,
                agent.slots,
                agent.pid,
                agent.version,
                agent.draining,
                time(agent.seen_at),
            ],
        )
    }

    fn save_agent_seen(&mut self, agent: AgentId, at: Timestamp) -> Result<(), Failed> {
        self.execute(
            "UPDATE agents SET seen_at = ?2 WHERE id = ?1",
            params![id(agent), time(at)],
        )
    }

    fn join_token(&mut self, token: TokenId) -> Result<Option<JoinTokenRow>, Failed> {
        self.one(
            concat!("SELECT ", join_token_columns!(), " FROM join_tokens WHERE id = ?1"),
            params![id(token)],
            record::join_token,
        )
    }

    fn put_join_token(&mut self, token: TokenId, row: &JoinTokenRow) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO join_tokens (id, ",
                join_token_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
            ),
            params![
                id(token),
                row.secret.as_str(),
                row.project.as_str(),
                json("labels", &row.labels)?,
                time(row.expires_at),
                row.used.as_ref().map(|(agent, _)| id(*agent)),
                row.used.as_ref().map(|(_, key)| key.as_str()),
            ],
        )
    }

    fn forget_join_tokens(&mut self, before: Timestamp) -> Result<(), Failed> {
        self.execute("DELETE FROM join_tokens WHERE expires_at < ?1", params![time(before)])
    }

    fn enrolment(&mut self, agent: AgentId) -> Result<Option<Enrolment>, Failed> {
        self.one(
            concat!("SELECT ", enrolment_columns!(), " FROM enrolments WHERE agent = ?1"),
            params![id(agent)],
            record::enrolment,
        )
    }

    fn put_enrolment(&mut self, enrolment: &Enrolment) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO enrolments (",
                enrolment_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5)"
            ),
            params![
                id(enrolment.agent),
                enrolment.project.as_str(),
                json("labels", &enrolment.labels)?,
                time(enrolment.enrolled_at),
                enrolment.revoked_at.map(time),
            ],
        )
    }

    fn person_token(&mut self, token: TokenId) -> Result<Option<PersonToken>, Failed> {
        self.one(
            concat!("SELECT ", person_token_columns!(), " FROM person_tokens WHERE id = ?1"),
            params![id(token)],
            record::person_token,
        )
    }

    fn put_person_token(&mut self, token: &PersonToken) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO person_tokens (",
                person_token_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
            ),
            params![
                id(token.id),
                token.hash.as_str(),
                token.role.as_str(),
                token.name,
                time(token.created_at),
                token.revoked_at.map(time),
            ],
        )
    }

    fn context(&mut self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextRow>, Failed> {
        self.one(
            "SELECT size, times_put, sessions, delta_bytes FROM contexts WHERE project = ?1 AND digest = ?2",
            params![project.as_str(), digest.as_str()],
            |row| {
                Ok(ContextRow {
                    size: get_int(row, 0)?,
                    times_put: get_int(row, 1)?,
                    sessions: get_int(row, 2)?,
                    delta_bytes: get_int(row, 3)?,
                })
            },
        )
    }

    fn put_context(&mut self, project: &ProjectId, digest: &Digest, row: &ContextRow) -> Result<(), Failed> {
        self.execute(
            "INSERT INTO contexts (project, digest, size, times_put, sessions, delta_bytes) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET size = excluded.size, \
             times_put = excluded.times_put, sessions = excluded.sessions, delta_bytes = excluded.delta_bytes",
            params![
                project.as_str(),
                digest.as_str(),
                int(row.size),
                int(row.times_put),
                int(row.sessions),
                int(row.delta_bytes)
            ],
        )
    }

    fn add_context_sent(
        &mut self,
        project: &ProjectId,
        digest: &Digest,
        agent: AgentId,
        bytes: u64,
    ) -> Result<(), Failed> {
        self.execute(
            "INSERT INTO contexts_sent (project, digest, agent, times, bytes) VALUES (?1, ?2, ?3, 1, ?4) \
             ON CONFLICT DO UPDATE SET times = times + 1, bytes = bytes + excluded.bytes",
            params![project.as_str(), digest.as_str(), id(agent), int(bytes)],
        )
    }
}
