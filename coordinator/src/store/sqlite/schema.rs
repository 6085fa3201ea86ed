//! The tables, as numbered steps from an empty file to the present schema. A released step is never
//! edited; a new one follows it.
//!
//! Ids are 16 bytes of randomness, so what is looked up by an id needs an index whose pages
//! lie anywhere. Only tasks, attempts and requests pay for that; everything else is kept
//! next to its task, whose number `n` grows with time.

use std::path::Path;

use kage_core::price::PriceTable;
use rusqlite::{Connection, TransactionBehavior};

use super::APPLICATION_ID;
use super::trouble::not_opened;
use crate::store::error::OpenError;

mod functions;

const STEPS: &[&str] = &[
    "
CREATE TABLE tasks (
    n           INTEGER PRIMARY KEY,
    id          BLOB NOT NULL UNIQUE,
    project     TEXT NOT NULL,
    state       TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    last_event  INTEGER NOT NULL,
    policy      TEXT NOT NULL
) STRICT;
CREATE INDEX tasks_by_project ON tasks (project, n);

-- Apart from the task, because it may be large and never changes.
CREATE TABLE specs (
    task  INTEGER PRIMARY KEY REFERENCES tasks (n),
    spec  TEXT NOT NULL
) STRICT;

CREATE TABLE sessions (
    task              INTEGER NOT NULL REFERENCES tasks (n),
    id                BLOB NOT NULL,
    position          INTEGER NOT NULL,
    state             TEXT NOT NULL,
    detail            TEXT NOT NULL,
    name              TEXT NOT NULL,
    adapter           TEXT NOT NULL,
    model             TEXT,
    cancel_requested  INTEGER NOT NULL,
    agent             TEXT,
    attempts          INTEGER NOT NULL,
    activity          TEXT,
    activity_at       INTEGER,
    usage             TEXT,
    call_retries      INTEGER NOT NULL,
    pending_result    TEXT,
    started_at        INTEGER,
    ended_at          INTEGER,
    PRIMARY KEY (task, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    task          INTEGER NOT NULL REFERENCES tasks (n),
    id            BLOB NOT NULL,
    state         INTEGER NOT NULL,
    session       BLOB NOT NULL,
    verifies      TEXT,
    attempt       BLOB,
    not_before    INTEGER,
    started       INTEGER NOT NULL,
    failed        INTEGER NOT NULL,
    lost          INTEGER NOT NULL,
    prefer        BLOB,
    avoid         BLOB,
    adapter       TEXT NOT NULL,
    requirements  TEXT,
    queued_at     INTEGER NOT NULL,
    PRIMARY KEY (task, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_open ON jobs (state) WHERE state < 2;

CREATE TABLE attempts (
    n            INTEGER PRIMARY KEY,
    id           BLOB NOT NULL UNIQUE,
    task         INTEGER NOT NULL REFERENCES tasks (n),
    job          BLOB NOT NULL,
    number       INTEGER NOT NULL,
    session      BLOB NOT NULL,
    token_hash   TEXT NOT NULL,
    agent        BLOB NOT NULL,
    boot         BLOB NOT NULL,
    lease_until  INTEGER NOT NULL,
    acked_seq    INTEGER NOT NULL,
    ended_at     INTEGER,
    end_reason   TEXT,
    agent_name   TEXT NOT NULL,
    job_kind     TEXT NOT NULL,
    started_at   INTEGER NOT NULL,
    UNIQUE (task, job, number)
) STRICT;
CREATE INDEX attempts_live ON attempts (agent) WHERE ended_at IS NULL;

CREATE TABLE events (
    task     INTEGER NOT NULL REFERENCES tasks (n),
    pos      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL REFERENCES attempts (n),
    event    TEXT NOT NULL,
    PRIMARY KEY (task, pos)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
    id        BLOB NOT NULL PRIMARY KEY,
    name      TEXT NOT NULL,
    boot      BLOB NOT NULL,
    labels    TEXT NOT NULL,
    adapters  TEXT NOT NULL,
    slots     INTEGER NOT NULL,
    pid       INTEGER NOT NULL,
    version   TEXT NOT NULL,
    draining  INTEGER NOT NULL,
    seen_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE contexts (
    project      TEXT NOT NULL,
    digest       TEXT NOT NULL,
    size         INTEGER NOT NULL,
    times_put    INTEGER NOT NULL,
    sessions     INTEGER NOT NULL,
    delta_bytes  INTEGER NOT NULL,
    PRIMARY KEY (project, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE contexts_sent (
    project  TEXT NOT NULL,
    digest   TEXT NOT NULL,
    agent    BLOB NOT NULL,
    times    INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (project, digest, agent),
    FOREIGN KEY (project, digest) REFERENCES contexts (project, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
    n          INTEGER PRIMARY KEY,
    principal  TEXT NOT NULL,
    method     TEXT NOT NULL,
    id         TEXT NOT NULL,
    payload    TEXT NOT NULL,
    reply      TEXT NOT NULL,
    at         INTEGER NOT NULL,
    UNIQUE (principal, method, id)
) STRICT;
",
    "
ALTER TABLE sessions ADD COLUMN incidents TEXT;
ALTER TABLE jobs ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
",
    "
CREATE TABLE join_tokens (
    id          BLOB NOT NULL PRIMARY KEY,
    secret      TEXT NOT NULL,
    project     TEXT NOT NULL,
    labels      TEXT NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_by     BLOB,
    used_key    TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE enrolments (
    agent        BLOB NOT NULL PRIMARY KEY,
    project      TEXT NOT NULL,
    labels       TEXT NOT NULL,
    enrolled_at  INTEGER NOT NULL,
    revoked_at   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE person_tokens (
    id          BLOB NOT NULL PRIMARY KEY,
    hash        TEXT NOT NULL UNIQUE,
    role        TEXT NOT NULL,
    name        TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;
",
    "
ALTER TABLE sessions ADD COLUMN trail TEXT;

CREATE TABLE checkpoints (
    task          INTEGER NOT NULL REFERENCES tasks (n),
    session       BLOB NOT NULL,
    number        INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    adapter       TEXT NOT NULL,
    agent         TEXT NOT NULL,
    commit_id     TEXT NOT NULL,
    parent        TEXT NOT NULL,
    tree          TEXT NOT NULL,
    reason        TEXT NOT NULL,
    note          TEXT NOT NULL,
    files         INTEGER NOT NULL,
    pack          TEXT,
    segment       TEXT,
    segment_from  INTEGER,
    segment_to    INTEGER,
    position      INTEGER NOT NULL,
    calls         INTEGER NOT NULL,
    calls_told    INTEGER,
    safety        TEXT NOT NULL,
    taken_at      INTEGER NOT NULL,
    stored_at     INTEGER NOT NULL,
    PRIMARY KEY (task, session, number)
) STRICT, WITHOUT ROWID;
",
    "
ALTER TABLE agents ADD COLUMN cordoned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE person_tokens ADD COLUMN project TEXT;
",
    "
ALTER TABLE tasks ADD COLUMN base TEXT;
ALTER TABLE tasks ADD COLUMN baseline TEXT;
UPDATE tasks SET base = (SELECT json_extract(spec, '$.repository.base') FROM specs WHERE task = tasks.n);
ALTER TABLE jobs ADD COLUMN baseline INTEGER NOT NULL DEFAULT 0;
",
    "
-- Without a reference to attempts: when one of those goes, every event would be looked at.
CREATE TABLE told (
    task     INTEGER NOT NULL REFERENCES tasks (n),
    pos      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    event    TEXT NOT NULL,
    PRIMARY KEY (task, pos)
) STRICT, WITHOUT ROWID;
INSERT INTO told SELECT task, pos, attempt, event FROM events;
DROP TABLE events;
ALTER TABLE told RENAME TO events;
",
    "
-- One row: which store this is, and how often a coordinator has opened it.
CREATE TABLE store (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      BLOB NOT NULL,
    opened  INTEGER NOT NULL
) STRICT;
",
    "
ALTER TABLE tasks ADD COLUMN created_by TEXT;
ALTER TABLE tasks ADD COLUMN repository TEXT;
ALTER TABLE tasks ADD COLUMN worktree TEXT;
ALTER TABLE tasks ADD COLUMN head TEXT;
CREATE INDEX tasks_by_repository ON tasks (project, repository, n) WHERE repository IS NOT NULL;
CREATE INDEX tasks_by_worktree ON tasks (project, worktree, n) WHERE worktree IS NOT NULL;
",
    "
ALTER TABLE attempts ADD COLUMN ends_by INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN stop_asked INTEGER;
-- An attempt of an older database gets the most time that it can have.
UPDATE attempts SET ends_by = started_at + 600000 + 1000 * CAST(min(315360000, coalesce((
    SELECT json_extract(policy, iif(job_kind = 'session', '$.timeout.secs', '$.verify.timeout.secs'))
    FROM tasks WHERE n = attempts.task
), 3600)) AS INTEGER);
",
    "
-- A live attempt of an older database counts as heard of at its start.
ALTER TABLE attempts ADD COLUMN heard_at INTEGER NOT NULL DEFAULT 0;
UPDATE attempts SET heard_at = coalesce(ended_at, started_at);
ALTER TABLE sessions ADD COLUMN ran INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN runs_since INTEGER;
UPDATE sessions SET
    ran = (SELECT coalesce(sum(max(a.ended_at - a.started_at, 0)), 0) FROM attempts a
        WHERE a.task = sessions.task AND a.session = sessions.id AND a.job_kind <> 'baseline'),
    runs_since = (SELECT a.started_at FROM attempts a
        WHERE a.task = sessions.task AND a.session = sessions.id AND a.job_kind <> 'baseline' AND a.ended_at IS NULL);
",
    include_str!("schema/documents.sql"),
    include_str!("schema/priced.sql"),
    include_str!("schema/prompts.sql"),
    include_str!("schema/trail.sql"),
    include_str!("schema/base_verdicts.sql"),
    include_str!("schema/position.sql"),
    include_str!("schema/capabilities.sql"),
    include_str!("schema/contained.sql"),
    include_str!("schema/calls.sql"),
    include_str!("schema/heard.sql"),
];

/// The newest schema that this program knows.
#[expect(clippy::cast_possible_truncation, reason = "there are a handful of steps")]
pub(in crate::store) const KNOWN: u32 = STEPS.len() as u32;

/// Takes every step that the file has not taken, each in a transaction of its own. Usage that was
/// stored without its cost gets it by these prices.
pub(super) fn migrate(connection: &mut Connection, path: &Path, prices: &PriceTable) -> Result<(), OpenError> {
    let failed = |source| not_opened(path, source);
    functions::add(connection, prices).map_err(failed)?;
    take_steps(connection, path)?;
    functions::remove(connection).map_err(failed)
}

fn take_steps(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| not_opened(path, source);
    loop {
        // The write lock comes first, so that two programs never take one step both.
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let found: u32 = transaction
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed)?;
        if found > KNOWN {
            return Err(OpenError::SchemaTooNew {
                path: path.to_owned(),
                found,
                known: KNOWN,
            });
        }
        let Some(step) = STEPS.get(found as usize) else {
            return Ok(());
        };
        transaction
            .execute_batch(step)
            .and_then(|()| transaction.pragma_update(None, "user_version", found + 1))
            .and_then(|()| transaction.pragma_update(None, "application_id", APPLICATION_ID))
            .and_then(|()| transaction.commit())
            .map_err(failed)?;
    }
}
