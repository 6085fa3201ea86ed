//! The rows of SQLite, inside the savepoint of one command. Every statement is prepared once
//! per connection. The statements are in the modules below this one.

use kage_core::id::TaskId;
use rusqlite::{Connection, ErrorCode, Params, Row, params};

use super::reads;
use super::trouble::failed;
use super::value::{corrupt, get, id};
use crate::store::error::{EngineError, StoreError};
use crate::store::journal::Journal;
use crate::store::rows::{Failed, Rows};

mod admission;
mod agents;
mod attempts;
mod base_verdicts;
mod calls;
mod checkpoints;
mod contexts;
mod jobs;
mod requests;
mod tasks;

/// The rows behind a connection that is inside a transaction.
#[derive(Debug)]
pub(in crate::store) struct SqliteRows<'a> {
    connection: &'a Connection,
    journal: &'a mut Journal,
}

impl<'a> SqliteRows<'a> {
    /// Rows behind this connection, in the transaction of this journal.
    pub(in crate::store) const fn new(connection: &'a Connection, journal: &'a mut Journal) -> Self {
        Self { connection, journal }
    }

    /// The number of a task's row, of which something is written: [`Recent`] does not know it
    /// until it is committed.
    ///
    /// [`Recent`]: crate::store::recent::Recent
    fn number(&mut self, task: TaskId) -> Result<i64, Failed> {
        self.journal.touch(task);
        if let Some(n) = self.journal.number(task) {
            return Ok(n);
        }
        let n = self
            .one("SELECT n FROM tasks WHERE id = ?1", params![id(task)], |row| {
                get(row, 0)
            })?
            .ok_or_else(|| corrupt("task")(format!("task {task} has no row")))?;
        self.journal.numbered(task, n);
        Ok(n)
    }

    fn execute(&self, sql: &str, params: impl Params) -> Result<(), Failed> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params))
            .map_err(failed)?;
        Ok(())
    }

    fn insert(&self, what: &'static str, sql: &str, params: impl Params) -> Result<(), Failed> {
        let result = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params));
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_taken(&error) => Err(Failed::Refused(StoreError::IdTaken { what })),
            Err(error) => Err(Failed::Engine(failed(error))),
        }
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, EngineError>,
    ) -> Result<Option<T>, Failed> {
        Ok(reads::one(self.connection, sql, params, read)?)
    }

    fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Row<'_>) -> Result<T, EngineError>,
    ) -> Result<Vec<T>, Failed> {
        Ok(reads::all(self.connection, sql, params, read)?)
    }
}

impl Rows for SqliteRows<'_> {}

/// True when a row with this key is there already.
fn is_taken(error: &rusqlite::Error) -> bool {
    let unique = [
        rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
        rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE,
        rusqlite::ffi::SQLITE_CONSTRAINT_ROWID,
    ];
    error
        .sqlite_error()
        .is_some_and(|e| e.code == ErrorCode::ConstraintViolation && unique.contains(&e.extended_code))
}
