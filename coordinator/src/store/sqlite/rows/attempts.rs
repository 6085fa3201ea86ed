//! Attempts, and the events that they deliver.

use kage_core::attempt::Attempt;
use kage_core::event::Event;
use kage_core::id::{AgentId, AttemptId, TaskId};
use kage_core::time::Timestamp;
use rusqlite::params;

use super::SqliteRows;
use crate::store::recent::Written;
use crate::store::rows::{AttemptNote, AttemptRows, Failed};
use crate::store::sqlite::record::{self, attempt_columns};
use crate::store::sqlite::value::{attempt_state, id, int, json, time};

impl AttemptRows for SqliteRows<'_> {
    fn insert_attempt(&mut self, attempt: &Attempt, note: &AttemptNote) -> Result<(), Failed> {
        let (ended_at, end_reason) = attempt_state(attempt.state);
        let n = self.number(attempt.task)?;
        self.insert(
            "attempt",
            "INSERT INTO attempts (id, task, job, number, session, token_hash, agent, boot, lease_until, acked_seq, \
             ended_at, end_reason, agent_name, job_kind, started_at, ends_by, stop_asked, heard_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            params![
                id(attempt.id),
                n,
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
                note.job.as_str(),
                time(note.started_at),
                time(attempt.ends_by),
                attempt.stop_asked.map(time),
                time(attempt.heard_at),
            ],
        )?;
        self.journal
            .note(Written::Started(Box::new(attempt.clone()), note.clone()));
        Ok(())
    }

    fn attempt(&mut self, attempt: AttemptId) -> Result<Option<Attempt>, Failed> {
        if let Some(found) = self.journal.ever().attempt(attempt)
            && self.journal.recent(found.attempt.task).is_some()
        {
            return Ok(Some(found.attempt));
        }
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
            "UPDATE attempts SET lease_until = ?2, acked_seq = ?3, ended_at = ?4, end_reason = ?5, ends_by = ?6, \
             stop_asked = ?7, heard_at = ?8 WHERE id = ?1",
            params![
                id(attempt.id),
                time(attempt.lease_until),
                int(attempt.acked_seq),
                ended_at,
                end_reason,
                time(attempt.ends_by),
                attempt.stop_asked.map(time),
                time(attempt.heard_at),
            ],
        )?;
        self.journal.note(Written::Attempt(Box::new(attempt.clone())));
        Ok(())
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

    fn extend_leases(&mut self, until: Timestamp, now: Timestamp) -> Result<(), Failed> {
        self.execute(
            "UPDATE attempts SET lease_until = ?1, ends_by = ends_by + max(?2 - lease_until, 0) \
             WHERE ended_at IS NULL AND lease_until < ?1",
            params![time(until), time(now)],
        )?;
        self.journal.note(Written::Leases);
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
        )?;
        self.journal.note(Written::Event {
            task,
            pos,
            attempt,
            event: Box::new(event.clone()),
            length: text.len(),
        });
        Ok(())
    }
}
