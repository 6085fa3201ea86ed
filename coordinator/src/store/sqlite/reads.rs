//! What is read from SQLite, each answer from one snapshot.

use std::collections::BTreeSet;

use kage_core::checkpoint::Checkpoint;
use kage_core::deadline::Term;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, Digest, JobId, ProjectId, SessionId, TaskId};
use kage_core::job::{JobType, Subject};
use kage_core::session::Session;
use kage_core::task::{Task, TaskOrigin, TaskSpec};
use rusqlite::{Connection, Params, Row, params, params_from_iter};

use super::page_query::PageQuery;
use super::record::{
    self, ATTEMPT_COLUMNS, JOB_COLUMNS, SESSION_COLUMNS, agent_columns, attempt_columns, checkpoint_columns,
    enrolment_columns, job_columns, person_token_columns, session_columns,
};
use super::value::{
    failed, get, get_id, get_int, get_job_type, get_json, get_optional_json, get_optional_parsed, get_optional_time,
    get_parsed, get_task_state, get_time, id, int,
};
use crate::store::admission::{Enrolment, PersonToken};
use crate::store::apply::waiting;
use crate::store::command::QueuedJob;
use crate::store::error::EngineError;
use crate::store::query::{
    AttemptView, ContextSent, ContextStats, Counts, EndedTask, InFiles, JobCounts, LiveAttempt, PageToken, Reads,
    TaskEvent, TaskFilter, TaskPage, TaskView, Work,
};

type Result<T> = std::result::Result<T, EngineError>;

pub(super) fn one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query(params).map_err(failed)?;
    rows.next().map_err(failed)?.map(read).transpose()
}

pub(super) fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query(params).map_err(failed)?;
    let mut values = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        values.push(read(row)?);
    }
    Ok(values)
}

/// Several statements on one snapshot.
fn snapshot<T>(connection: &Connection, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    let value = read(&transaction)?;
    transaction.finish().map_err(failed)?;
    Ok(value)
}

macro_rules! task_columns {
    () => {
        "t.n, t.id, t.state, t.created_at, t.ended_at, t.last_event, p.spec, t.baseline, t.created_by, \
         t.repository, t.worktree, t.head FROM tasks t JOIN specs p ON p.task = t.n"
    };
}

/// A task without its sessions, and its number.
fn task_row(row: &Row<'_>) -> Result<(i64, TaskView)> {
    let task = Task {
        id: get_id(row, 1)?,
        state: get_task_state(row, 2)?,
        created_at: get_time(row, 3)?,
        ended_at: get_optional_time(row, 4)?,
        spec: get_json(row, 6, "task")?,
        baseline: get_optional_json(row, 7, "verdict")?,
        created_by: get(row, 8)?,
        origin: origin(row)?,
    };
    let view = TaskView {
        task,
        sessions: Vec::new(),
        last_event: get_int(row, 5)?,
    };
    Ok((get(row, 0)?, view))
}

fn origin(row: &Row<'_>) -> Result<Option<TaskOrigin>> {
    let repository = get_optional_parsed(row, 9, "repository")?;
    let worktree = get_optional_parsed(row, 10, "working tree")?;
    let head = get_optional_parsed(row, 11, "commit")?;
    Ok(repository.zip(worktree).map(|(repository, worktree)| TaskOrigin {
        repository,
        worktree,
        head,
    }))
}

fn sessions(connection: &Connection, n: i64, task: TaskId) -> Result<Vec<Session>> {
    all(
        connection,
        concat!(
            "SELECT ",
            session_columns!(),
            " FROM sessions s WHERE s.task = ?1 ORDER BY s.position"
        ),
        params![n],
        |row| record::session(row, task),
    )
}

macro_rules! view_columns {
    () => {
        concat!(
            attempt_columns!(),
            ", a.agent_name, a.job_kind, s.name, a.started_at FROM attempts a JOIN tasks t ON t.n = a.task \
             JOIN sessions s ON s.task = a.task AND s.id = a.session"
        )
    };
}

fn attempt_view(row: &Row<'_>) -> Result<AttemptView> {
    Ok(AttemptView {
        attempt: record::attempt(row)?,
        agent_name: get(row, ATTEMPT_COLUMNS)?,
        job: get_job_type(row, ATTEMPT_COLUMNS + 1)?,
        session_name: get_parsed(row, ATTEMPT_COLUMNS + 2, "session name")?,
        started_at: get_time(row, ATTEMPT_COLUMNS + 3)?,
    })
}

macro_rules! live_columns {
    () => {
        "a.id, a.job, a.session, t.id, a.agent, a.boot, a.lease_until, a.started_at, a.ends_by, a.stop_asked, \
         a.job_kind FROM attempts a JOIN tasks t ON t.n = a.task \
         WHERE a.ended_at IS NULL"
    };
}

fn live(row: &Row<'_>) -> Result<LiveAttempt> {
    Ok(LiveAttempt {
        attempt: get_id(row, 0)?,
        job: get_id(row, 1)?,
        subject: match get_job_type(row, 10)? {
            JobType::Session | JobType::Verify => Subject::Session(get_id(row, 2)?),
            JobType::Baseline => Subject::Base,
        },
        task: get_id(row, 3)?,
        agent: get_id(row, 4)?,
        boot: get_id(row, 5)?,
        lease_until: get_time(row, 6)?,
        term: Term {
            started_at: get_time(row, 7)?,
            ends_by: get_time(row, 8)?,
            stop_asked: get_optional_time(row, 9)?,
        },
    })
}

/// The smallest and the largest id with this prefix.
fn prefix_range(prefix: &str) -> Option<(TaskId, TaskId)> {
    let low = format!("{prefix:0<32}").parse().ok()?;
    let high = format!("{prefix:f<32}").parse().ok()?;
    Some((low, high))
}

impl Reads for Connection {
    fn task(&self, task: TaskId) -> Result<Option<TaskView>> {
        snapshot(self, |snapshot| {
            let found = one(
                snapshot,
                concat!("SELECT ", task_columns!(), " WHERE t.id = ?1"),
                params![id(task)],
                task_row,
            )?;
            let Some((n, mut view)) = found else { return Ok(None) };
            view.sessions = sessions(snapshot, n, task)?;
            Ok(Some(view))
        })
    }

    fn tasks(&self, filter: &TaskFilter, after: Option<PageToken>, limit: u32) -> Result<TaskPage> {
        snapshot(self, |snapshot| {
            // One more than asked for, to know whether there is another page.
            let query = PageQuery::new(filter, after, limit + 1);
            let sql = format!("SELECT {} {}", task_columns!(), query.rest());
            let mut found = all(snapshot, &sql, params_from_iter(query.values()), task_row)?;
            let next = found
                .get(limit as usize)
                .and_then(|(n, _)| u64::try_from(n + 1).ok())
                .map(PageToken);
            found.truncate(limit as usize);
            let mut tasks = Vec::with_capacity(found.len());
            for (n, mut view) in found {
                view.sessions = sessions(snapshot, n, view.task.id)?;
                tasks.push(view);
            }
            Ok(TaskPage { tasks, next })
        })
    }

    fn tasks_with_prefix(&self, prefix: &str) -> Result<Vec<TaskId>> {
        let Some((low, high)) = prefix_range(prefix) else {
            return Ok(Vec::new());
        };
        all(
            self,
            "SELECT id FROM tasks WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT 2",
            params![id(low), id(high)],
            |row| get_id(row, 0),
        )
    }

    fn work(&self, task: TaskId, job: JobId) -> Result<Option<Work>> {
        let work = one(
            self,
            concat!(
                "SELECT ",
                session_columns!(),
                ", ",
                job_columns!(),
                ", p.spec FROM tasks t JOIN specs p ON p.task = t.n JOIN jobs j ON j.task = t.n \
                 JOIN sessions s ON s.task = t.n AND iif(j.baseline, s.position = 0, s.id = j.session) \
                 WHERE t.id = ?1 AND j.id = ?2"
            ),
            params![id(task), id(job)],
            |row| {
                let job = record::job_at(row, SESSION_COLUMNS, task)?.job;
                Ok(Work {
                    spec: get_json(row, SESSION_COLUMNS + JOB_COLUMNS, "task")?,
                    session: record::session(row, task)?,
                    number: job.started + 1,
                    job,
                    checkpoints: Vec::new(),
                })
            },
        )?;
        let Some(mut work) = work else { return Ok(None) };
        // Checkpoints are only added, so those that the session knew of are there.
        if work.session.trail.head.is_some() {
            work.checkpoints = self.checkpoints(task, work.session.id)?;
        }
        Ok(Some(work))
    }

    fn checkpoints(&self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>> {
        all(
            self,
            concat!(
                "SELECT ",
                checkpoint_columns!(),
                " FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 ORDER BY number"
            ),
            params![id(task), id(session)],
            record::checkpoint,
        )
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>> {
        let found = all(
            self,
            concat!(
                "SELECT ",
                job_columns!(),
                ", t.id, t.project FROM jobs j JOIN tasks t ON t.n = j.task WHERE j.state < 2 AND j.state = 0 \
                 ORDER BY j.queued_at, j.id"
            ),
            params![],
            |row| {
                let job = record::job(row, get_id(row, JOB_COLUMNS)?)?;
                Ok(waiting(&job, &get_parsed(row, JOB_COLUMNS + 1, "project")?))
            },
        )?;
        Ok(found.into_iter().flatten().collect())
    }

    fn attempt(&self, attempt: AttemptId) -> Result<Option<AttemptView>> {
        one(
            self,
            concat!("SELECT ", view_columns!(), " WHERE a.id = ?1"),
            params![id(attempt)],
            attempt_view,
        )
    }

    fn attempts_of(&self, task: TaskId) -> Result<Vec<AttemptView>> {
        all(
            self,
            concat!("SELECT ", view_columns!(), " WHERE t.id = ?1 ORDER BY a.n"),
            params![id(task)],
            attempt_view,
        )
    }

    fn live_attempts(&self, agent: Option<AgentId>) -> Result<Vec<LiveAttempt>> {
        match agent {
            Some(agent) => all(
                self,
                concat!("SELECT ", live_columns!(), " AND a.agent = ?1 ORDER BY a.n"),
                params![id(agent)],
                live,
            ),
            None => all(
                self,
                concat!("SELECT ", live_columns!(), " ORDER BY a.n"),
                params![],
                live,
            ),
        }
    }

    fn events(&self, task: TaskId, after: u64, limit: u32) -> Result<Vec<TaskEvent>> {
        all(
            self,
            "SELECT e.pos, a.id, a.number, a.job_kind, a.session, s.name, a.agent_name, e.event \
             FROM events e JOIN attempts a ON a.n = e.attempt \
             JOIN sessions s ON s.task = e.task AND s.id = a.session \
             WHERE e.task = (SELECT n FROM tasks WHERE id = ?1) AND e.pos > ?2 ORDER BY e.pos LIMIT ?3",
            params![id(task), int(after), limit],
            |row| {
                Ok(TaskEvent {
                    pos: get_int(row, 0)?,
                    attempt: get_id(row, 1)?,
                    number: get(row, 2)?,
                    job: get_job_type(row, 3)?,
                    session: get_id(row, 4)?,
                    session_name: get_parsed(row, 5, "session name")?,
                    agent_name: get(row, 6)?,
                    event: get_json(row, 7, "event")?,
                })
            },
        )
    }

    fn agents(&self) -> Result<Vec<Agent>> {
        all(
            self,
            concat!("SELECT ", agent_columns!(), " FROM agents ORDER BY name, id"),
            params![],
            record::agent,
        )
    }

    fn enrolments(&self) -> Result<Vec<Enrolment>> {
        all(
            self,
            concat!("SELECT ", enrolment_columns!(), " FROM enrolments ORDER BY agent"),
            params![],
            record::enrolment,
        )
    }

    fn person_tokens(&self) -> Result<Vec<PersonToken>> {
        all(
            self,
            concat!(
                "SELECT ",
                person_token_columns!(),
                " FROM person_tokens ORDER BY created_at, id"
            ),
            params![],
            record::person_token,
        )
    }

    fn context_size(&self, project: &ProjectId, digest: &Digest) -> Result<Option<u64>> {
        one(
            self,
            "SELECT size FROM contexts WHERE project = ?1 AND digest = ?2",
            params![project.as_str(), digest.as_str()],
            |row| get_int(row, 0),
        )
    }

    fn context_stats(&self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextStats>> {
        snapshot(self, |snapshot| {
            let found = one(
                snapshot,
                "SELECT size, times_put, sessions, delta_bytes FROM contexts WHERE project = ?1 AND digest = ?2",
                params![project.as_str(), digest.as_str()],
                |row| {
                    Ok(ContextStats {
                        size: get_int(row, 0)?,
                        times_put: get_int(row, 1)?,
                        sessions: get_int(row, 2)?,
                        delta_bytes: get_int(row, 3)?,
                        sent: Vec::new(),
                    })
                },
            )?;
            let Some(mut stats) = found else { return Ok(None) };
            stats.sent = all(
                snapshot,
                "SELECT c.agent, coalesce(a.name, ''), c.times, c.bytes FROM contexts_sent c \
                 LEFT JOIN agents a ON a.id = c.agent WHERE c.project = ?1 AND c.digest = ?2 ORDER BY c.agent",
                params![project.as_str(), digest.as_str()],
                |row| {
                    Ok(ContextSent {
                        agent: get_id(row, 0)?,
                        agent_name: get(row, 1)?,
                        times: get_int(row, 2)?,
                        bytes: get_int(row, 3)?,
                    })
                },
            )?;
            Ok(Some(stats))
        })
    }

    fn ended(&self) -> Result<Vec<EndedTask>> {
        snapshot(self, |snapshot| {
            let tasks = all(
                snapshot,
                "SELECT n, id, project, ended_at FROM tasks WHERE ended_at IS NOT NULL ORDER BY ended_at, n",
                params![],
                |row| {
                    let task = EndedTask {
                        task: get_id(row, 1)?,
                        project: get_parsed(row, 2, "project")?,
                        ended_at: get_time(row, 3)?,
                        attempts: Vec::new(),
                        blobs: Vec::new(),
                    };
                    Ok((get::<i64>(row, 0)?, task))
                },
            )?;
            let mut found = Vec::with_capacity(tasks.len());
            for (n, mut task) in tasks {
                task.attempts = all(
                    snapshot,
                    "SELECT id FROM attempts WHERE task = ?1 ORDER BY id",
                    params![n],
                    |row| get_id(row, 0),
                )?;
                task.blobs = all(
                    snapshot,
                    "SELECT pack FROM checkpoints WHERE task = ?1 AND pack IS NOT NULL \
                     UNION SELECT segment FROM checkpoints WHERE task = ?1 AND segment IS NOT NULL ORDER BY 1",
                    params![n],
                    |row| get_parsed(row, 0, "digest"),
                )?;
                found.push(task);
            }
            Ok(found)
        })
    }

    fn in_files(&self, long: usize) -> Result<InFiles> {
        snapshot(self, |snapshot| {
            let attempts = all(snapshot, "SELECT id FROM attempts", params![], |row| get_id(row, 0))?;
            let sessions = all(snapshot, "SELECT id FROM sessions", params![], |row| get_id(row, 0))?;
            let blob = |row: &Row<'_>| Ok((get_parsed(row, 0, "project")?, get_parsed(row, 1, "digest")?));
            let mut blobs = BTreeSet::new();
            for sql in [
                "SELECT DISTINCT t.project, c.pack FROM checkpoints c JOIN tasks t ON t.n = c.task \
                 WHERE c.pack IS NOT NULL",
                "SELECT DISTINCT t.project, c.segment FROM checkpoints c JOIN tasks t ON t.n = c.task \
                 WHERE c.segment IS NOT NULL",
                "SELECT project, digest FROM contexts",
            ] {
                blobs.extend(all(snapshot, sql, params![], blob)?);
            }
            // A spec is at least as long as its prompt.
            let specs = all(
                snapshot,
                "SELECT spec FROM specs WHERE length(CAST(spec AS BLOB)) > ?1",
                params![int(long as u64)],
                |row| get_json::<TaskSpec>(row, 0, "task"),
            )?;
            let prompts = specs.into_iter().filter(|spec| spec.prompt.len() > long);
            blobs.extend(prompts.map(|spec| (spec.project, Digest::of(spec.prompt.as_bytes()))));
            Ok(InFiles {
                attempts: BTreeSet::from_iter(attempts),
                sessions: BTreeSet::from_iter(sessions),
                blobs,
            })
        })
    }

    fn counts(&self) -> Result<Counts> {
        // A range of the index of open jobs, which SQLite uses only where its own condition stands.
        let open = all(
            self,
            "SELECT state = 1, verifies IS NOT NULL, baseline, count(*) FROM jobs WHERE state < 2 GROUP BY 1, 2, 3",
            params![],
            |row| {
                let kind: (bool, bool, bool) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
                Ok((kind, get_int(row, 3)?))
            },
        )?;
        let count = |verifies, baseline| {
            let of = |leased| {
                let kind = (leased, verifies, baseline);
                open.iter()
                    .find(|(found, _)| *found == kind)
                    .map_or(0, |(_, count)| *count)
            };
            JobCounts {
                queued: of(false),
                leased: of(true),
            }
        };
        Ok(Counts {
            sessions: count(false, false),
            verifies: count(true, false),
            bases: count(true, true),
        })
    }
}
