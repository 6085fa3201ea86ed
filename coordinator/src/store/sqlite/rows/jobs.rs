//! Jobs: what is placed and leased.

use kage_core::id::{JobId, TaskId};
use kage_core::job::{JobKind, Subject};
use rusqlite::params;

use super::SqliteRows;
use crate::store::recent::Written;
use crate::store::rows::{Failed, JobRow, JobRows};
use crate::store::sqlite::record::{self, job_columns};
use crate::store::sqlite::value::{id, json, time};

impl JobRows for SqliteRows<'_> {
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
        let n = self.number(row.job.task)?;
        self.insert(
            "job",
            "INSERT INTO jobs (task, id, state, session, verifies, attempt, not_before, started, failed, lost, \
             prefer, avoid, adapter, requirements, queued_at, held, priority, baseline) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            params![
                n,
                id(row.job.id),
                state,
                row.job.subject.session().map_or([0; 16], id),
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
                row.priority.as_i32(),
                row.job.subject == Subject::Base,
            ],
        )?;
        self.journal.note(Written::Job(Box::new(row.clone())));
        Ok(())
    }

    fn job(&mut self, task: TaskId, job: JobId) -> Result<Option<JobRow>, Failed> {
        if let Some(found) = self.journal.recent(task).and_then(|recent| recent.job(task, job)) {
            return Ok(found);
        }
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
        let n = self.number(row.job.task)?;
        self.execute(
            "UPDATE jobs SET state = ?3, attempt = ?4, not_before = ?5, started = ?6, failed = ?7, lost = ?8, \
             prefer = ?9, avoid = ?10, queued_at = ?11, held = ?12, adapter = ?13 \
             WHERE task = ?1 AND id = ?2",
            params![
                n,
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
                row.adapter.as_str(),
            ],
        )?;
        self.journal.note(Written::Job(Box::new(row.clone())));
        Ok(())
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
}
