//! Tasks and their sessions.

use kage_core::id::{Digest, ProjectId, RepositoryName, SessionId, TaskId};
use kage_core::session::Session;
use kage_core::task::TaskSpec;
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{Failed, TaskHead, TaskRows};
use crate::store::sqlite::value::{get_id, get_json, id, int, json, time};

impl TaskRows for SqliteRows<'_> {
    fn insert_task(&mut self, head: &TaskHead, spec: &TaskSpec) -> Result<(), Failed> {
        let text = json("task", spec)?;
        let origin = head.origin.as_ref();
        self.insert(
            "task",
            "INSERT INTO tasks (id, project, created_by, repository, worktree, ended_at, doc) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id(head.id),
                head.project.as_str(),
                head.created_by,
                origin.map(|origin| origin.repository.as_str()),
                origin.map(|origin| origin.worktree.as_str()),
                head.ended_at.map(time),
                json("task", head)?,
            ],
        )?;
        let n = self.connection.last_insert_rowid();
        self.journal.touch(head.id);
        self.journal.numbered(head.id, n);
        self.execute(
            "INSERT INTO specs (task, spec, prompt_blob) VALUES (?1, ?2, ?3)",
            params![n, text, spec.prompt_blob.as_ref().map(Digest::as_str)],
        )
    }

    fn task(&mut self, task: TaskId) -> Result<Option<TaskHead>, Failed> {
        if let Some(head) = self.journal.recent(task).and_then(|recent| recent.head(task)) {
            return Ok(Some(head));
        }
        self.one("SELECT doc FROM tasks WHERE id = ?1", params![id(task)], |row| {
            get_json(row, 0, "task")
        })
    }

    fn task_on(&mut self, project: &ProjectId, repository: &RepositoryName) -> Result<Option<TaskId>, Failed> {
        self.one(
            "SELECT t.id FROM tasks t JOIN specs p ON p.task = t.n \
             WHERE t.project = ?1 AND json_extract(p.spec, '$.repository.name') = ?2 ORDER BY t.n LIMIT 1",
            params![project.as_str(), repository.as_str()],
            |row| get_id(row, 0),
        )
    }

    fn save_task(&mut self, head: &TaskHead) -> Result<(), Failed> {
        let n = self.number(head.id)?;
        self.execute(
            "UPDATE tasks SET ended_at = ?2, doc = ?3 WHERE n = ?1",
            params![n, head.ended_at.map(time), json("task", head)?],
        )
    }

    fn remove_task(&mut self, task: TaskId) -> Result<(), Failed> {
        let n = self.number(task)?;
        // Rows that refer to others are deleted first.
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
        self.journal.gone(task);
        Ok(())
    }

    fn insert_session(&mut self, session: &Session, position: usize) -> Result<(), Failed> {
        let n = self.number(session.task)?;
        self.insert(
            "session",
            "INSERT INTO sessions (task, id, position, doc) VALUES (?1, ?2, ?3, ?4)",
            params![n, id(session.id), int(position as u64), json("session", session)?],
        )
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
            "SELECT doc FROM sessions WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND id = ?2",
            params![id(task), id(session)],
            |row| get_json(row, 0, "session"),
        )
    }

    fn save_session(&mut self, session: &Session) -> Result<(), Failed> {
        let n = self.number(session.task)?;
        self.execute(
            "UPDATE sessions SET doc = ?3 WHERE task = ?1 AND id = ?2",
            params![n, id(session.id), json("session", session)?],
        )
    }
}
