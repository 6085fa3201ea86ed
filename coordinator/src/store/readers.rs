//! A few connections that read SQLite beside the writer. With WAL each read has a snapshot, so
//! neither waits for the other.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::error::{EngineError, OpenError, ReadError};
use super::query::Reads;
use super::sqlite::Database;

/// Simultaneous reads; further ones wait. Enough to hide a slow one.
const CONNECTIONS: usize = 4;

#[derive(Debug)]
pub(super) struct Readers {
    database: Database,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl Readers {
    /// Readers of this database. The first connection is opened here, so that a file that
    /// cannot be read is noticed at once.
    pub(super) fn new(database: Database) -> Result<Self, OpenError> {
        let first = database.open_reader()?;
        Ok(Self {
            database,
            idle: Mutex::new(vec![first]),
            permits: Semaphore::new(CONNECTIONS),
        })
    }

    /// Reads on a thread where waiting for the disk is allowed.
    pub(super) async fn read<T, F>(self: Arc<Self>, read: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Reads) -> Result<T, EngineError> + Send + 'static,
    {
        let readers = self.clone();
        // The semaphore is never closed.
        let permit = self.permits.acquire().await.map_err(|_| ReadError::Interrupted)?;
        let answer = tokio::task::spawn_blocking(move || {
            let connection = readers.connection()?;
            let answer = read(&connection);
            readers.idle().push(connection);
            answer
        })
        .await;
        drop(permit);
        Ok(answer.map_err(|_| ReadError::Interrupted)??)
    }

    fn connection(&self) -> Result<Connection, EngineError> {
        if let Some(connection) = self.idle().pop() {
            return Ok(connection);
        }
        let opened = self.database.open_reader();
        opened.map_err(|error| EngineError::Reopen(Box::new(error)))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // The list is valid whatever happened to the thread that held it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
