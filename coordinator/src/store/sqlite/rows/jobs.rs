//! Jobs and their attempts.

use kage_core::id::{JobId, TaskId};
use kage_core::job::JobState;
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{Failed, JobRow, JobRows};
use crate::store::sqlite::value::{get_json, id, json, word};

impl JobRows for SqliteRows<'_> {
    fn insert_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        let n = self.number(row.job.task)?;
        self.insert(
            "job",
            "INSERT INTO jobs (task, id, state, type, doc) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                n,
                id(row.job.id),
                state(row.job.state),
                word("type of job", &row.job.type_of())?,
                json("job", row)?,
            ],
        )
    }

    fn job(&mut self, task: TaskId, job: JobId) -> Result<Option<JobRow>, Failed> {
        if let Some(found) = self.journal.recent(task).and_then(|recent| recent.job(task, job)) {
            return Ok(found);
        }
        self.one(
            "SELECT doc FROM jobs WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND id = ?2",
            params![id(task), id(job)],
            |row| get_json(row, 0, "job"),
        )
    }

    fn save_job(&mut self, row: &JobRow) -> Result<(), Failed> {
        let n = self.number(row.job.task)?;
        self.execute(
            "UPDATE jobs SET state = ?3, doc = ?4 WHERE task = ?1 AND id = ?2",
            params![n, id(row.job.id), state(row.job.state), json("job", row)?],
        )
    }

    fn open_jobs(&mut self, task: TaskId) -> Result<Vec<JobRow>, Failed> {
        self.all(
            // The key of the table is the way in: `+` keeps the index of all open jobs out of it.
            "SELECT doc FROM jobs WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND +state < 2 ORDER BY id",
            params![id(task)],
            |row| get_json(row, 0, "job"),
        )
    }
}

/// Whether a job waits for another session or for an agent, is worked on or is over, as the index of open jobs has
/// it. Programs before this one wrote 0 for both kinds of waiting.
const fn state(state: JobState) -> i64 {
    match state {
        JobState::Later { .. } => -1,
        JobState::Queued { .. } => 0,
        JobState::Leased { .. } => 1,
        JobState::Done => 2,
    }
}
