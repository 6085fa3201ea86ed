//! Whole rows as domain values. Each has the list of its columns, which every query that
//! reads it begins with, and the function that reads them in that order.

use std::time::Duration;

use kage_core::attempt::Attempt;
use kage_core::checkpoint::{Checkpoint, TakenCheckpoint, TranscriptSegment};
use kage_core::fleet::Agent;
use kage_core::id::TaskId;
use kage_core::job::{Affinity, Job, JobKind, JobState, Subject};
use kage_core::session::{Session, Worked};
use rusqlite::Row;

use super::value::{
    corrupt, get, get_attempt_state, get_id, get_int, get_json, get_optional_id, get_optional_json,
    get_optional_parsed, get_optional_time, get_parsed, get_time,
};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::error::EngineError;
use crate::store::rows::JobRow;

/// Columns of `sessions s`, for [`session`].
macro_rules! session_columns {
    () => {
        "s.id, s.detail, s.name, s.adapter, s.model, s.cancel_requested, s.agent, s.attempts, s.activity, \
         s.activity_at, s.usage, s.call_retries, s.pending_result, s.started_at, s.ended_at, \
         s.incidents, s.trail, s.ran, s.runs_since, \
         (SELECT coalesce(requirements, '{}') FROM jobs WHERE task = s.task AND session = s.id AND verifies IS NULL LIMIT 1)"
    };
}
pub(super) use session_columns;

/// How many those are.
pub(super) const SESSION_COLUMNS: usize = 20;

pub(super) fn session(row: &Row<'_>, task: TaskId) -> Result<Session, EngineError> {
    let activity: Option<String> = get(row, 8)?;
    let activity_at = get_optional_time(row, 9)?;
    Ok(Session {
        id: get_id(row, 0)?,
        task,
        state: get_json(row, 1, "session state")?,
        name: get_parsed(row, 2, "session name")?,
        adapter: get_parsed(row, 3, "adapter name")?,
        model: get(row, 4)?,
        requirements: get_json(row, 19, "labels")?,
        cancel_requested: get(row, 5)?,
        agent: get(row, 6)?,
        attempts: get(row, 7)?,
        activity: activity.zip(activity_at),
        usage: get_optional_json(row, 10, "usage")?.unwrap_or_default(),
        call_retries: get(row, 11)?,
        pending_result: get_optional_json(row, 12, "result")?,
        worked: Worked {
            ended: Duration::from_millis(get_int(row, 17)?),
            since: get_optional_time(row, 18)?,
        },
        started_at: get_optional_time(row, 13)?,
        ended_at: get_optional_time(row, 14)?,
        incidents: get_optional_json(row, 15, "incidents")?.unwrap_or_default(),
        trail: get_optional_json(row, 16, "trail")?.unwrap_or_default(),
    })
}

/// Columns of `jobs j`, for [`job`].
macro_rules! job_columns {
    () => {
        "j.id, j.state, j.session, j.verifies, j.attempt, j.not_before, j.started, j.failed, j.lost, j.prefer, \
         j.avoid, j.adapter, j.requirements, j.queued_at, j.held, j.priority, j.baseline"
    };
}
pub(super) use job_columns;

/// How many those are.
pub(super) const JOB_COLUMNS: usize = 17;

const QUEUED: i64 = 0;
const LEASED: i64 = 1;
const DONE: i64 = 2;

/// State, attempt and earliest start of a job, as columns.
pub(super) fn job_state(state: JobState) -> (i64, Option<[u8; 16]>, Option<i64>) {
    match state {
        JobState::Queued { not_before } => (QUEUED, None, Some(super::value::time(not_before))),
        JobState::Leased { attempt } => (LEASED, Some(super::value::id(attempt)), None),
        JobState::Done => (DONE, None, None),
    }
}

pub(super) fn job(row: &Row<'_>, task: TaskId) -> Result<JobRow, EngineError> {
    job_at(row, 0, task)
}

/// Reads [`job_columns`] that begin at column `first`.
pub(super) fn job_at(row: &Row<'_>, first: usize, task: TaskId) -> Result<JobRow, EngineError> {
    let missing = |what| move || corrupt(what)(format!("a {what} is missing"));
    let state = match get::<i64>(row, first + 1)? {
        QUEUED => JobState::Queued {
            not_before: get_optional_time(row, first + 5)?.ok_or_else(missing("start of a queued job"))?,
        },
        LEASED => JobState::Leased {
            attempt: get_optional_id(row, first + 4)?.ok_or_else(missing("attempt of a leased job"))?,
        },
        DONE => JobState::Done,
        other => return Err(corrupt("job state")(format!("{other} is not a job state"))),
    };
    let kind = match get_optional_parsed(row, first + 3, "commit")? {
        None => JobKind::Session,
        Some(commit) => JobKind::Verify { commit },
    };
    let subject = if get(row, first + 16)? {
        Subject::Base
    } else {
        Subject::Session(get_id(row, first + 2)?)
    };
    Ok(JobRow {
        job: Job {
            id: get_id(row, first)?,
            task,
            subject,
            kind,
            state,
            started: get(row, first + 6)?,
            failed: get(row, first + 7)?,
            lost: get(row, first + 8)?,
            held: get(row, first + 14)?,
            affinity: Affinity {
                prefer: get_optional_id(row, first + 9)?,
                avoid: get_optional_id(row, first + 10)?,
            },
        },
        adapter: get_parsed(row, first + 11, "adapter name")?,
        requirements: get_optional_json(row, first + 12, "labels")?.unwrap_or_default(),
        queued_at: get_time(row, first + 13)?,
        priority: get::<i32>(row, first + 15)?.try_into().map_err(corrupt("priority"))?,
    })
}

/// Columns of `attempts a` joined with its task `t`, for [`attempt`].
macro_rules! attempt_columns {
    () => {
        "a.id, a.job, a.session, t.id, a.number, a.token_hash, a.agent, a.boot, a.lease_until, a.acked_seq, \
         a.ended_at, a.end_reason, a.ends_by, a.stop_asked, a.heard_at"
    };
}
pub(super) use attempt_columns;

/// How many those are.
pub(super) const ATTEMPT_COLUMNS: usize = 15;

pub(super) fn attempt(row: &Row<'_>) -> Result<Attempt, EngineError> {
    Ok(Attempt {
        id: get_id(row, 0)?,
        job: get_id(row, 1)?,
        session: get_id(row, 2)?,
        task: get_id(row, 3)?,
        number: get(row, 4)?,
        token_hash: get_parsed(row, 5, "digest")?,
        agent: get_id(row, 6)?,
        boot: get_id(row, 7)?,
        lease_until: get_time(row, 8)?,
        heard_at: get_time(row, 14)?,
        acked_seq: get_int(row, 9)?,
        state: get_attempt_state(row, 10)?,
        ends_by: get_time(row, 12)?,
        stop_asked: get_optional_time(row, 13)?,
    })
}

/// Columns of `checkpoints`, for [`checkpoint`].
macro_rules! checkpoint_columns {
    () => {
        "session, number, attempt, adapter, agent, commit_id, parent, tree, reason, note, files, pack, segment, \
         segment_from, segment_to, position, calls, safety, taken_at, stored_at, calls_told"
    };
}
pub(super) use checkpoint_columns;

pub(super) fn checkpoint(row: &Row<'_>) -> Result<Checkpoint, EngineError> {
    let transcript = match get_optional_parsed(row, 12, "digest")? {
        Some(blob) => Some(TranscriptSegment {
            blob,
            from: get_int(row, 13)?,
            to: get_int(row, 14)?,
        }),
        None => None,
    };
    Ok(Checkpoint {
        session: get_id(row, 0)?,
        number: get(row, 1)?,
        attempt: get(row, 2)?,
        adapter: get_parsed(row, 3, "adapter name")?,
        agent: get(row, 4)?,
        taken: TakenCheckpoint {
            commit: get_parsed(row, 5, "commit")?,
            parent: get_parsed(row, 6, "commit")?,
            tree: get_parsed(row, 7, "tree")?,
            reason: get_parsed(row, 8, "reason")?,
            note: get(row, 9)?,
            files_changed: get_int(row, 10)?,
            pack: get_optional_parsed(row, 11, "digest")?,
            transcript,
            calls: get(row, 20)?,
        },
        position: get_int(row, 15)?,
        calls: get(row, 16)?,
        safety: get_parsed(row, 17, "safety")?,
        taken_at: get_time(row, 18)?,
        stored_at: get_time(row, 19)?,
    })
}

/// Columns of `join_tokens` after its id, for [`join_token`].
macro_rules! join_token_columns {
    () => {
        "secret, project, labels, expires_at, used_by, used_key"
    };
}
pub(super) use join_token_columns;

pub(super) fn join_token(row: &Row<'_>) -> Result<JoinTokenRow, EngineError> {
    let key = get_optional_parsed(row, 5, "digest")?;
    Ok(JoinTokenRow {
        secret: get_parsed(row, 0, "digest")?,
        project: get_parsed(row, 1, "project")?,
        labels: get_json(row, 2, "labels")?,
        expires_at: get_time(row, 3)?,
        used: get_optional_id(row, 4)?.zip(key),
    })
}

/// Columns of `enrolments`, for [`enrolment`].
macro_rules! enrolment_columns {
    () => {
        "agent, project, labels, enrolled_at, revoked_at"
    };
}
pub(super) use enrolment_columns;

pub(super) fn enrolment(row: &Row<'_>) -> Result<Enrolment, EngineError> {
    Ok(Enrolment {
        agent: get_id(row, 0)?,
        project: get_parsed(row, 1, "project")?,
        labels: get_json(row, 2, "labels")?,
        enrolled_at: get_time(row, 3)?,
        revoked_at: get_optional_time(row, 4)?,
    })
}

/// Columns of `person_tokens`, for [`person_token`].
macro_rules! person_token_columns {
    () => {
        "id, hash, role, name, created_at, revoked_at, project"
    };
}
pub(super) use person_token_columns;

pub(super) fn person_token(row: &Row<'_>) -> Result<PersonToken, EngineError> {
    Ok(PersonToken {
        id: get_id(row, 0)?,
        hash: get_parsed(row, 1, "digest")?,
        role: get_parsed(row, 2, "role")?,
        name: get(row, 3)?,
        created_at: get_time(row, 4)?,
        revoked_at: get_optional_time(row, 5)?,
        project: get_optional_parsed(row, 6, "project")?,
    })
}

/// Columns of `agents`, for [`agent`].
macro_rules! agent_columns {
    () => {
        "id, name, boot, labels, adapters, slots, pid, version, draining, seen_at, cordoned"
    };
}
pub(super) use agent_columns;

pub(super) fn agent(row: &Row<'_>) -> Result<Agent, EngineError> {
    Ok(Agent {
        id: get_id(row, 0)?,
        name: get(row, 1)?,
        boot: get_id(row, 2)?,
        labels: get_json(row, 3, "labels")?,
        adapters: get_json(row, 4, "adapters")?,
        slots: get(row, 5)?,
        pid: get(row, 6)?,
        version: get(row, 7)?,
        draining: get(row, 8)?,
        seen_at: get_time(row, 9)?,
        cordoned: get(row, 10)?,
    })
}
