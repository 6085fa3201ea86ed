//! Attempts, and the events that they deliver.

use kage_core::attempt::{Attempt, AttemptState};
use kage_core::event::Event;
use kage_core::id::{AgentId, AttemptId, TaskId};
use kage_core::time::Timestamp;
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{AttemptNote, AttemptRows, Failed};
use crate::store::sqlite::value::{get_json, id, int, json};

impl AttemptRows for SqliteRows<'_> {
    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed> {
        let n = self.number(attempt.task)?;
        self.insert(
            "attempt",
            "INSERT INTO attempts (id, task, job, number, agent, live, note, doc) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id(attempt.id),
                n,
                id(attempt.job),
                attempt.number,
                id(attempt.agent),
                attempt.state == AttemptState::Live,
                json("attempt", note)?,
                json("attempt", attempt)?,
            ],
        )
    }

    fn attempt(&mut self, attempt: AttemptId) -> Result<Option<Attempt>, Failed> {
        if let Some(found) = self.journal.ever().attempt(attempt)
            && self.journal.recent(found.attempt.task).is_some()
        {
            return Ok(Some(found.attempt));
        }
        self.one("SELECT doc FROM attempts WHERE id = ?1", params![id(attempt)], |row| {
            get_json(row, 0, "attempt")
        })
    }

    fn save_attempt(&mut self, attempt: &Attempt) -> Result<(), Failed> {
        let live = attempt.state == AttemptState::Live;
        self.journal.touch(attempt.task);
        self.execute(
            "UPDATE attempts SET live = ?2, doc = ?3 WHERE id = ?1",
            params![id(attempt.id), live, json("attempt", attempt)?],
        )
    }

    fn live_attempts(&mut self, agent: AgentId) -> Result<Vec<Attempt>, Failed> {
        self.all(
            "SELECT doc FROM attempts WHERE agent = ?1 AND live = 1 ORDER BY n",
            params![id(agent)],
            |row| get_json(row, 0, "attempt"),
        )
    }

    fn extend_leases(&mut self, until: Timestamp, now: Timestamp) -> Result<(), Failed> {
        let live: Vec<Attempt> = self.all("SELECT doc FROM attempts WHERE live = 1 ORDER BY n", params![], |row| {
            get_json(row, 0, "attempt")
        })?;
        for mut attempt in live {
            attempt.renew(until, now);
            self.save_attempt(&attempt)?;
        }
        Ok(())
    }

    fn insert_event(&mut self, task: TaskId, pos: u64, attempt: AttemptId, event: &Event) -> Result<(), Failed> {
        let text = json("event", event)?;
        let n = self.number(task)?;
        self.insert(
            "event",
            "INSERT INTO events (task, pos, attempt, event) \
             VALUES (?1, ?2, (SELECT n FROM attempts WHERE id = ?3), ?4)",
            params![n, int(pos), id(attempt), text],
        )
    }
}
