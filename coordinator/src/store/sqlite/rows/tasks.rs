//! Tasks and their sessions.

use kage_core::id::{SessionId, TaskId};
use kage_core::session::{Session, SessionStateKind, Trail};
use kage_core::task::Task;
use rusqlite::params;

use super::SqliteRows;
use crate::store::error::EngineError;
use crate::store::recent::Written;
use crate::store::rows::{Failed, TaskHead, TaskRows};
use crate::store::sqlite::record::{self, session_columns};
use crate::store::sqlite::value::{
    get_id, get_int, get_json, get_optional_json, get_optional_parsed, get_optional_time, get_parsed,
    get_session_state, get_task_state, id, int, json, task_state, time,
};

impl TaskRows for SqliteRows<'_> {
    fn insert_task(&mut self, task: &Task, _first: SessionId) -> Result<(), Failed> {
        let spec = json("task", &task.spec)?;
        self.insert(
            "task",
            "INSERT INTO tasks (id, project, state, created_at, ended_at, last_event, policy, base, created_by, \
             repository, worktree, head) \
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                id(task.id),
                task.spec.project.as_str(),
                task_state(task.state),
                time(task.created_at),
                task.ended_at.map(time),
                json("policy", &task.spec.policy)?,
                task.spec.repository.as_ref().map(|repository| repository.base.as_str()),
                task.created_by,
                task.origin.as_ref().map(|origin| origin.repository.as_str()),
                task.origin.as_ref().map(|origin| origin.worktree.as_str()),
                task.origin
                    .as_ref()
                    .and_then(|origin| origin.head.as_ref())
                    .map(|head| head.as_str()),
            ],
        )?;
        let n = self.connection.last_insert_rowid();
        self.numbered = Some((task.id, n));
        self.execute("INSERT INTO specs (task, spec) VALUES (?1, ?2)", params![n, spec])?;
        self.journal.note(Written::Task {
            task: Box::new(task.clone()),
            n,
            length: spec.len(),
        });
        Ok(())
    }

    fn task(&mut self, task: TaskId) -> Result<Option<TaskHead>, Failed> {
        if let Some(head) = self.journal.recent(task).and_then(|recent| recent.head(task)) {
            return Ok(Some(head));
        }
        self.one(
            "SELECT t.project, t.policy, t.state, t.ended_at, t.last_event, t.base, t.baseline, s.id \
             FROM tasks t JOIN sessions s ON s.task = t.n AND s.position = 0 WHERE t.id = ?1",
            params![id(task)],
            |row| {
                Ok(TaskHead {
                    id: task,
                    project: get_parsed(row, 0, "project")?,
                    policy: get_json(row, 1, "policy")?,
                    state: get_task_state(row, 2)?,
                    ended_at: get_optional_time(row, 3)?,
                    last_event: get_int(row, 4)?,
                    base: get_optional_parsed(row, 5, "commit")?,
                    baseline: get_optional_json(row, 6, "verdict")?,
                    first: get_id(row, 7)?,
                })
            },
        )
    }

    fn save_task(&mut self, task: &TaskHead) -> Result<(), Failed> {
        let n = self.number(task.id)?;
        self.execute(
            "UPDATE tasks SET state = ?2, ended_at = ?3, last_event = ?4, baseline = ?5 WHERE n = ?1",
            params![
                n,
                task_state(task.state),
                task.ended_at.map(time),
                int(task.last_event),
                task.baseline
                    .as_ref()
                    .map(|verdict| json("verdict", verdict))
                    .transpose()?,
            ],
        )?;
        self.journal.note(Written::Head {
            task: task.id,
            state: task.state,
            ended_at: task.ended_at,
            last_event: task.last_event,
            baseline: task.baseline.clone().map(Box::new),
        });
        Ok(())
    }

    fn remove_task(&mut self, task: TaskId) -> Result<(), Failed> {
        let n = self.number(task)?;
        // What points at others goes before them.
        for sql in [
            "DELETE FROM checkpoints WHERE task = ?1",
            "DELETE FROM events WHERE task = ?1",
            "DELETE FROM attempts WHERE task = ?1",
            "DELETE FROM jobs WHERE task = ?1",
            "DELETE FROM sessions WHERE task = ?1",
            "DELETE FROM specs WHERE task = ?1",
            "DELETE FROM tasks WHERE n = ?1",
        ] {
            self.execute(sql, params![n])?;
        }
        self.numbered = None;
        self.journal.note(Written::Gone(task));
        Ok(())
    }

    fn insert_session(&mut self, session: &Session, position: usize) -> Result<(), Failed> {
        let n = self.number(session.task)?;
        self.insert(
            "session",
            "INSERT INTO sessions (task, id, position, state, detail, name, adapter, model, cancel_requested, agent, \
             attempts, activity, activity_at, usage, call_retries, pending_result, started_at, ended_at, incidents, trail, ran, \
             runs_since) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
             ?22)",
            params![
                n,
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
                trail_json(session)?,
                ran(session),
                session.worked.since.map(time),
            ],
        )?;
        self.journal.note(Written::Session(Box::new(session.clone())));
        Ok(())
    }

    fn session(&mut self, task: TaskId, session: SessionId) -> Result<Option<Session>, Failed> {
        if let Some(found) = self
            .journal
            .recent(task)
            .and_then(|recent| recent.session(task, session))
        {
            return Ok(found);
        }
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
        let n = self.number(session.task)?;
        self.execute(
            "UPDATE sessions SET state = ?3, detail = ?4, cancel_requested = ?5, agent = ?6, attempts = ?7, \
             activity = ?8, activity_at = ?9, usage = ?10, call_retries = ?11, pending_result = ?12, \
             started_at = ?13, ended_at = ?14, incidents = ?15, trail = ?16, adapter = ?17, \
             model = ?18, ran = ?19, runs_since = ?20 \
             WHERE task = ?1 AND id = ?2",
            params![
                n,
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
                trail_json(session)?,
                session.adapter.as_str(),
                session.model,
                ran(session),
                session.worked.since.map(time),
            ],
        )?;
        self.journal.note(Written::Session(Box::new(session.clone())));
        Ok(())
    }

    fn session_states(&mut self, task: TaskId) -> Result<Vec<SessionStateKind>, Failed> {
        self.all(
            "SELECT DISTINCT state FROM sessions WHERE task = (SELECT n FROM tasks WHERE id = ?1)",
            params![id(task)],
            |row| get_session_state(row, 0),
        )
    }
}

/// The time of the attempts that ended, in milliseconds.
fn ran(session: &Session) -> i64 {
    i64::try_from(session.worked.ended.as_millis()).unwrap_or(i64::MAX)
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

/// Checkpoints, in short, as a column.
fn trail_json(session: &Session) -> Result<Option<String>, EngineError> {
    if session.trail == Trail::default() {
        return Ok(None);
    }
    json("trail", &session.trail).map(Some)
}

fn pending_json(session: &Session) -> Result<Option<String>, EngineError> {
    let result = session.pending_result.as_ref();
    result.map(|result| json("result", result)).transpose()
}
