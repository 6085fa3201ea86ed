//! How each command is carried out: load rows, let core decide, save rows.
//! Written once; the engines differ only in their rows. What commands of several kinds need is
//! here, the commands are in the modules below this one.

use kage_core::attempt::Attempt;
use kage_core::checkpoint::Points;
use kage_core::id::{AttemptId, TaskId};
use kage_core::job::{Job, JobState, Subject};
use kage_core::session::Session;
use kage_core::task::{self, TaskState};
use kage_core::time::Timestamp;

use super::command::QueuedJob;
use super::error::{EngineError, StoreError};
use super::rows::{Failed, JobRow, Rows, TaskHead};
use super::unit::Key;

mod admission;
mod attempts;
mod calls;
mod checkpoints;
mod contexts;
mod turns;
mod ending;
mod events;
mod fleet;
mod repositories;
mod requests;
mod sending;
mod tasks;
mod verify;

pub(super) use requests::{earlier_reply, remember};

/// A change to the store, with its outcome.
///
/// Every command is carried out completely or not at all.
pub trait Command: Send + 'static {
    type Outcome: Send + 'static;

    /// The keys that it reads in every case. Another row is fetched by itself, which costs a round
    /// trip to the engine.
    fn reads(&self) -> Vec<Key>;

    /// Carries it out on rows that are saved or undone together.
    ///
    /// # Errors
    /// When it may not be carried out, or the engine failed. Nothing is saved then.
    fn apply(self, rows: &mut dyn Rows) -> Result<Self::Outcome, Failed>;
}

/// Ends the task when every session has ended. True when that changed it.
///
/// The check of its base ends with it, unless the task failed: then it tells whether the work
/// was to blame.
fn settle(rows: &mut dyn Rows, head: &mut TaskHead, now: Timestamp) -> Result<bool, Failed> {
    if head.state.is_terminal() {
        return Ok(false);
    }
    let states = head.standing.keys().copied();
    let Some(state) = task::settle(&head.policy, states) else {
        return Ok(false);
    };
    head.state = state;
    head.ended_at = Some(now);
    match state {
        TaskState::Succeeded | TaskState::Cancelled => drop_baseline(rows, head.id, now)?,
        TaskState::Failed | TaskState::Running => {}
    }
    Ok(true)
}

/// Ends the check of a task's base if it waits, and stops it if it runs.
fn drop_baseline(rows: &mut dyn Rows, task: TaskId, now: Timestamp) -> Result<(), Failed> {
    let open = rows.open_jobs(task)?;
    for mut row in open.into_iter().filter(|row| row.job.subject == Subject::Base) {
        match row.job.state {
            JobState::Queued { .. } | JobState::Later { .. } => {
                row.job.replace();
                rows.save_job(&row)?;
            }
            JobState::Leased { attempt } => stop(rows, attempt, &row.job, now)?,
            JobState::Done => {}
        }
    }
    Ok(())
}

/// Has the agent of a live attempt told to stop it.
fn stop(rows: &mut dyn Rows, attempt: AttemptId, job: &Job, now: Timestamp) -> Result<(), Failed> {
    let mut attempt = attempt_of(rows, attempt, job)?;
    attempt.ask_to_stop(now);
    rows.save_attempt(&attempt)
}

/// The job as the dispatcher sees it, while it waits.
pub(super) fn waiting(row: &JobRow, project: &kage_core::id::ProjectId) -> Option<QueuedJob> {
    let JobState::Queued { not_before } = row.job.state else {
        return None;
    };
    Some(QueuedJob {
        job: row.job.id,
        task: row.job.task,
        subject: row.job.subject,
        project: project.clone(),
        kind: row.job.kind.clone(),
        adapter: row.adapter.clone(),
        requirements: row.requirements.clone(),
        contain: row.contain,
        priority: row.priority,
        not_before,
        queued_at: row.queued_at,
        affinity: row.job.affinity,
    })
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

/// The session that a job is about, or that the check of the base is listed with.
fn session_of(rows: &mut dyn Rows, head: &TaskHead, job: &Job) -> Result<Session, Failed> {
    let dangling = EngineError::Dangling {
        job: job.id,
        what: "session",
    };
    let session = job.subject.session().unwrap_or(head.first);
    rows.session(job.task, session)?.ok_or(Failed::Engine(dangling))
}

/// The checkpoints that a session can go back to.
fn points_of(rows: &mut dyn Rows, session: &Session) -> Result<Points, Failed> {
    let head = session.checkpoints.head.as_ref();
    if head.is_none() {
        return Ok(Points::default());
    }
    let all = rows.checkpoints(session.task, session.id)?;
    Ok(Points::of(head, &all))
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
