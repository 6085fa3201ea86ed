//! The reads of SQLite, each from one snapshot.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use kage_core::checkpoint::Checkpoint;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, Digest, JobId, ProjectId, SessionId, TaskId, TokenId};
use kage_core::job::JobType;
use kage_core::ledger::{CallRow, CostTable, CostsBy, Reservation};
use kage_core::session::Session;
use kage_core::task::TaskSpec;
use rusqlite::{Connection, Params, Row, params, params_from_iter};

use super::ledger_query::LedgerQuery;
use super::page_query::PageQuery;
use super::record::{self, agent_columns, enrolment_columns, join_token_columns, person_token_columns};
use super::trouble::failed;
use super::value::{get, get_id, get_int, get_json, get_parsed, get_time, get_word, id, int};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::apply::waiting;
use crate::store::command::QueuedJob;
use crate::store::error::EngineError;
use crate::store::query::{
    AttemptView, CallFilter, ContextSent, ContextStats, Counts, EndedTask, InFiles, LiveAttempt, PageToken,
    ProjectCounts, Reads, TaskEvent, TaskFilter, TaskPage, TaskView, Work,
};
use crate::store::rows::{JobRow, TaskHead};

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

/// A task without its sessions, and its number: `t.n, t.doc, p.spec`.
fn task_row(row: &Row<'_>) -> Result<(i64, TaskView)> {
    let head: TaskHead = get_json(row, 1, "task")?;
    let view = TaskView {
        last_event: head.last_event,
        task: head.with(get_json(row, 2, "task")?),
        sessions: Vec::new(),
    };
    Ok((get(row, 0)?, view))
}

fn sessions(connection: &Connection, n: i64) -> Result<Vec<Session>> {
    all(
        connection,
        "SELECT doc FROM sessions WHERE task = ?1 ORDER BY position",
        params![n],
        |row| get_json(row, 0, "session"),
    )
}

/// An attempt: its document, and the note that it is shown with.
fn attempt_view(row: &Row<'_>) -> Result<AttemptView> {
    Ok(AttemptView::of(
        get_json(row, 0, "attempt")?,
        get_json(row, 1, "attempt")?,
    ))
}

fn live(row: &Row<'_>) -> Result<LiveAttempt> {
    let (attempt, note) = (get_json(row, 0, "attempt")?, get_json(row, 1, "attempt")?);
    Ok(LiveAttempt::of(&attempt, &note))
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
                "SELECT t.n, t.doc, p.spec FROM tasks t JOIN specs p ON p.task = t.n WHERE t.id = ?1",
                params![id(task)],
                task_row,
            )?;
            let Some((n, mut view)) = found else { return Ok(None) };
            view.sessions = sessions(snapshot, n)?;
            Ok(Some(view))
        })
    }

    fn tasks(&self, filter: &TaskFilter, after: Option<PageToken>, limit: u32) -> Result<TaskPage> {
        snapshot(self, |snapshot| {
            // One more than requested, to know whether there is another page.
            let query = PageQuery::new(filter, after, limit + 1);
            let sql = format!(
                "SELECT t.n, t.doc, p.spec FROM tasks t JOIN specs p ON p.task = t.n {}",
                query.rest()
            );
            let mut found = all(snapshot, &sql, params_from_iter(query.values()), task_row)?;
            let next = found.get(limit as usize).and_then(|(n, _)| query.token(*n));
            found.truncate(limit as usize);
            let mut tasks = Vec::with_capacity(found.len());
            for (n, mut view) in found {
                view.sessions = sessions(snapshot, n)?;
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
        snapshot(self, |snapshot| {
            let found = one(
                snapshot,
                "SELECT t.n, j.doc, t.doc, p.spec FROM tasks t JOIN specs p ON p.task = t.n JOIN jobs j ON j.task = t.n \
                 WHERE t.id = ?1 AND j.id = ?2",
                params![id(task), id(job)],
                |row| {
                    let row: (i64, JobRow, TaskHead, TaskSpec) = (
                        get(row, 0)?,
                        get_json(row, 1, "job")?,
                        get_json(row, 2, "task")?,
                        get_json(row, 3, "task")?,
                    );
                    Ok(row)
                },
            )?;
            let Some((n, row, head, spec)) = found else {
                return Ok(None);
            };
            let session: Session = one(
                snapshot,
                "SELECT doc FROM sessions WHERE task = ?1 AND id = ?2",
                params![n, id(row.job.subject.session().unwrap_or(head.first))],
                |row| get_json(row, 0, "session"),
            )?
            .ok_or(EngineError::Dangling { job, what: "session" })?;
            let checkpoints = match session.checkpoints.head {
                Some(_) => snapshot.checkpoints(task, session.id)?,
                None => Vec::new(),
            };
            Ok(Some(Work {
                spec,
                session,
                number: row.job.started + 1,
                job: row.job,
                checkpoints,
            }))
        })
    }

    fn checkpoints(&self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>> {
        all(
            self,
            "SELECT doc FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 \
             ORDER BY number",
            params![id(task), id(session)],
            |row| get_json(row, 0, "checkpoint"),
        )
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>> {
        let found = all(
            self,
            // A range of the index of open jobs, which SQLite uses only if its condition is in the
            // query.
            "SELECT j.doc, t.project FROM jobs j JOIN tasks t ON t.n = j.task WHERE j.state < 2 AND j.state = 0",
            params![],
            |row| Ok(waiting(&get_json(row, 0, "job")?, &get_parsed(row, 1, "project")?)),
        )?;
        let mut queued: Vec<_> = found.into_iter().flatten().collect();
        queued.sort_by_key(|job| (job.queued_at, job.job));
        Ok(queued)
    }

    fn attempt(&self, attempt: AttemptId) -> Result<Option<AttemptView>> {
        one(
            self,
            "SELECT doc, note FROM attempts WHERE id = ?1",
            params![id(attempt)],
            attempt_view,
        )
    }

    fn attempts_of(&self, task: TaskId) -> Result<Vec<AttemptView>> {
        all(
            self,
            "SELECT doc, note FROM attempts WHERE task = (SELECT n FROM tasks WHERE id = ?1) ORDER BY n",
            params![id(task)],
            attempt_view,
        )
    }

    fn live_attempts(&self, agent: Option<AgentId>) -> Result<Vec<LiveAttempt>> {
        match agent {
            Some(agent) => all(
                self,
                "SELECT doc, note FROM attempts WHERE live = 1 AND agent = ?1 ORDER BY n",
                params![id(agent)],
                live,
            ),
            None => all(
                self,
                "SELECT doc, note FROM attempts WHERE live = 1 ORDER BY n",
                params![],
                live,
            ),
        }
    }

    fn events(&self, task: TaskId, after: u64, limit: u32) -> Result<Vec<TaskEvent>> {
        snapshot(self, |snapshot| {
            let found = all(
                snapshot,
                "SELECT pos, attempt, event FROM events WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND pos > ?2 \
                 ORDER BY pos LIMIT ?3",
                params![id(task), int(after), limit],
                |row| Ok((get_int(row, 0)?, get::<i64>(row, 1)?, get_json(row, 2, "event")?)),
            )?;
            let mut told_by: HashMap<i64, AttemptView> = HashMap::new();
            let mut events = Vec::with_capacity(found.len());
            for (pos, n, event) in found {
                let by = match told_by.entry(n) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => {
                        let sql = "SELECT doc, note FROM attempts WHERE n = ?1";
                        let Some(by) = one(snapshot, sql, params![n], attempt_view)? else {
                            continue;
                        };
                        unknown.insert(by)
                    }
                };
                events.push(TaskEvent::of(pos, event, by));
            }
            Ok(events)
        })
    }

    fn agents(&self) -> Result<Vec<Agent>> {
        all(
            self,
            concat!("SELECT ", agent_columns!(), " FROM agents ORDER BY name, id"),
            params![],
            record::agent,
        )
    }

    fn projects(&self) -> Result<Vec<ProjectCounts>> {
        all(
            self,
            "SELECT project, COUNT(*), SUM(json_extract(doc, '$.state') = 'running') FROM tasks GROUP BY project \
             ORDER BY project",
            params![],
            |row| {
                Ok(ProjectCounts {
                    project: get_parsed(row, 0, "project")?,
                    tasks: get_int(row, 1)?,
                    open: get_int(row, 2)?,
                })
            },
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

    fn join_token(&self, token: TokenId) -> Result<Option<JoinTokenRow>> {
        one(
            self,
            concat!("SELECT ", join_token_columns!(), " FROM join_tokens WHERE id = ?1"),
            params![id(token)],
            record::join_token,
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

    fn calls(&self, filter: &CallFilter, after: u64, limit: u32) -> Result<Vec<(u64, CallRow)>> {
        let query = LedgerQuery::new(filter).after(after);
        let sql = format!("SELECT n, doc FROM calls{} ORDER BY n LIMIT {limit}", query.condition());
        all(self, &sql, params_from_iter(query.values()), |row| {
            Ok((get_int(row, 0)?, get_json(row, 1, "call")?))
        })
    }

    fn costs(&self, filter: &CallFilter, by: CostsBy) -> Result<CostTable> {
        let query = LedgerQuery::new(filter);
        let sql = format!("SELECT doc FROM calls{}", query.condition());
        let mut statement = self.prepare_cached(&sql).map_err(failed)?;
        let mut rows = statement.query(params_from_iter(query.values())).map_err(failed)?;
        let mut table = CostTable::new(by);
        while let Some(row) = rows.next().map_err(failed)? {
            table.add(&get_json(row, 0, "call")?);
        }
        Ok(table)
    }

    fn reservations(&self) -> Result<Vec<Reservation>> {
        all(
            self,
            "SELECT doc FROM reservations ORDER BY attempt, call",
            params![],
            |row| get_json(row, 0, "reservation"),
        )
    }

    fn in_files(&self) -> Result<InFiles> {
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
                "SELECT DISTINCT t.project, json_extract(s.spec, '$.context_base') FROM specs s \
                 JOIN tasks t ON t.n = s.task WHERE json_extract(s.spec, '$.context_base') IS NOT NULL",
                "SELECT t.project, s.prompt_blob FROM specs s JOIN tasks t ON t.n = s.task \
                 WHERE s.prompt_blob IS NOT NULL",
            ] {
                blobs.extend(all(snapshot, sql, params![], blob)?);
            }
            Ok(InFiles {
                attempts: BTreeSet::from_iter(attempts),
                sessions: BTreeSet::from_iter(sessions),
                blobs,
            })
        })
    }

    fn counts(&self) -> Result<Counts> {
        // A range of the index of open jobs, which SQLite uses only if its condition is in the
        // query.
        let open: Vec<(JobType, i64, u64)> = all(
            self,
            "SELECT type, state, count(*) FROM jobs WHERE state < 2 GROUP BY 1, 2",
            params![],
            |row| Ok((get_word(row, 0, "type of job")?, get(row, 1)?, get_int(row, 2)?)),
        )?;
        let mut counts = Counts::default();
        for (job, state, count) in open {
            let of_type = counts.of_mut(job);
            match state {
                ..0 => of_type.later = count,
                0 => of_type.queued = count,
                1.. => of_type.leased = count,
            }
        }
        Ok(counts)
    }
}
