//! The outbox's tables and the statements on them. Synchronous; used by one writer.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use kage_core::event::OutputStream;
use kage_core::id::AttemptId;
use kage_proto::convert::agent::AttemptKey;
use kage_proto::{stored, v1};
use prost::Message as _;
use rusqlite::{Connection, Transaction, params};

use super::{Leftover, Settlement, Stored};
use crate::delivery::output;

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE attempt (
    id TEXT PRIMARY KEY,
    token TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE event (
    attempt TEXT NOT NULL,
    seq INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (attempt, seq)
) WITHOUT ROWID;
CREATE TABLE output (
    attempt TEXT NOT NULL,
    stream TEXT NOT NULL,
    acked INTEGER NOT NULL,
    PRIMARY KEY (attempt, stream)
) WITHOUT ROWID;
";

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("cannot use the outbox {path}")]
    Database {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// A newer version of the agent made it.
    #[error("the outbox {path} has schema {found}; this agent knows up to {SCHEMA_VERSION}")]
    Newer { path: PathBuf, found: i64 },
    /// The folder of output files cannot be read.
    #[error("cannot read the output files in {path}")]
    Output {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The writer's thread cannot be started.
    #[error("cannot start the outbox's thread")]
    Thread {
        #[source]
        source: io::Error,
    },
}

pub(super) struct Rows {
    connection: Connection,
    path: PathBuf,
}

impl Rows {
    pub(super) fn open(path: &Path) -> Result<Self, OutboxError> {
        let database = |source| OutboxError::Database {
            path: path.to_owned(),
            source,
        };
        let connection = Connection::open(path).map_err(database)?;
        // One process, one thread: the lock of the state directory keeps others out.
        connection
            .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(database)?;
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(database)?;
        match found {
            0 => connection
                .execute_batch(&format!(
                    "BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))
                .map_err(database)?,
            SCHEMA_VERSION => {}
            found => {
                return Err(OutboxError::Newer {
                    path: path.to_owned(),
                    found,
                });
            }
        }
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// Reads the leftovers, and removes output files that belong to no attempt.
    pub(super) fn leftovers(&self, output_dir: &Path) -> Result<Vec<Leftover>, OutboxError> {
        let leftovers = self
            .read_leftovers(output_dir)
            .map_err(|source| OutboxError::Database {
                path: self.path.clone(),
                source,
            })?;
        let known: HashSet<_> = leftovers.iter().map(|l| l.key.attempt).collect();
        output::sweep(output_dir, &known).map_err(|source| OutboxError::Output {
            path: output_dir.to_owned(),
            source,
        })?;
        Ok(leftovers)
    }

    fn read_leftovers(&self, output_dir: &Path) -> rusqlite::Result<Vec<Leftover>> {
        let mut attempts = self.connection.prepare("SELECT id, token FROM attempt")?;
        let mut events = self
            .connection
            .prepare("SELECT event FROM event WHERE attempt = ?1 ORDER BY seq")?;
        let mut acked = self
            .connection
            .prepare("SELECT acked FROM output WHERE attempt = ?1 AND stream = ?2")?;
        let keys = attempts
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut leftovers = Vec::new();
        for (id, token) in keys {
            let events = events
                .query_map([&id], |row| row.get::<_, Vec<u8>>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let (Ok(attempt), Ok(token)) = (id.parse(), token.parse()) else {
                tracing::error!(attempt = id, "outbox row is malformed");
                continue;
            };
            let mut output = Vec::new();
            for stream in OutputStream::ALL {
                let length = output::length(output_dir, attempt, stream);
                if length > 0 {
                    let acked: Option<i64> = acked
                        .query_map(params![id, stream.as_str()], |row| row.get(0))?
                        .next()
                        .transpose()?;
                    let acked = acked.and_then(|a| u64::try_from(a).ok()).unwrap_or(0);
                    output.push((stream, length, acked.min(length)));
                }
            }
            leftovers.push(Leftover {
                key: AttemptKey { attempt, token },
                events: events
                    .iter()
                    .filter_map(|bytes| stored::event(bytes).ok())
                    .map(Stored::new)
                    .collect(),
                output,
            });
        }
        Ok(leftovers)
    }

    /// Runs `work` in one durable transaction.
    pub(super) fn commit<T>(&mut self, work: impl FnOnce(&Batch<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let batch = Batch(self.connection.transaction()?);
        let done = work(&batch)?;
        batch.0.commit()?;
        Ok(done)
    }
}

pub(super) struct Batch<'c>(Transaction<'c>);

impl Batch<'_> {
    pub(super) fn open(&self, key: &AttemptKey) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("INSERT OR REPLACE INTO attempt (id, token) VALUES (?1, ?2)")?
            .execute(params![key.attempt.to_string(), key.token.as_str()])?;
        Ok(())
    }

    pub(super) fn event(&self, attempt: AttemptId, event: &v1::Event) -> rusqlite::Result<()> {
        self.0
            .prepare_cached("INSERT INTO event (attempt, seq, event) VALUES (?1, ?2, ?3)")?
            .execute(params![attempt.to_string(), signed(event.seq), event.encode_to_vec()])?;
        Ok(())
    }

    pub(super) fn settle(&self, attempt: AttemptId, settlement: &Settlement) -> rusqlite::Result<()> {
        let id = attempt.to_string();
        if settlement.forget {
            for statement in [
                "DELETE FROM event WHERE attempt = ?1",
                "DELETE FROM output WHERE attempt = ?1",
                "DELETE FROM attempt WHERE id = ?1",
            ] {
                self.0.prepare_cached(statement)?.execute([&id])?;
            }
            return Ok(());
        }
        if settlement.acked_seq > 0 {
            self.0
                .prepare_cached("DELETE FROM event WHERE attempt = ?1 AND seq <= ?2")?
                .execute(params![id, signed(settlement.acked_seq)])?;
        }
        for (stream, offset) in &settlement.acked_output {
            self.0
                .prepare_cached(
                    "INSERT INTO output (attempt, stream, acked) VALUES (?1, ?2, ?3)
                     ON CONFLICT (attempt, stream) DO UPDATE SET acked = excluded.acked",
                )?
                .execute(params![id, stream.as_str(), signed(*offset)])?;
        }
        Ok(())
    }
}

/// SQLite's integers are signed; no number here comes near their limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
