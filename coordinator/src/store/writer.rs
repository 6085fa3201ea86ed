//! The one thread that writes to SQLite. It takes the waiting commands, up to a group, into one
//! transaction with a savepoint per command, commits once, and then answers.
//!
//! ```text
//!   receive -> BEGIN IMMEDIATE -> (SAVEPOINT, command, RELEASE | ROLLBACK TO)* -> COMMIT -> answer
//!                                                                               \-> failed: answer
//!                                                                                   "unknown", reopen
//! ```

use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::mpsc;

use super::call::{Call, Fate, Verdict};
use super::error::{EngineError, StoreError};
use super::journal::Journal;
use super::sqlite::{Database, SqliteRows, failed};
use crate::telemetry;

/// Most commands of one commit: with more, a commit costs more than it saves.
const GROUP: usize = 256;
/// Commands that may wait. When it is full, callers wait for their turn to wait: that is
/// how a slow disk slows the network down instead of filling memory.
pub(super) const WAITING: usize = 1024;

pub(super) enum Message {
    Call(Box<dyn Call>),
    /// Carry out the waiting commands, then end.
    Close,
}

pub(super) struct Writer {
    database: Database,
    /// `None` after a commit failed, until the file could be opened again.
    connection: Option<Connection>,
    messages: mpsc::Receiver<Message>,
    journal: Journal,
}

impl Writer {
    pub(super) const fn new(
        database: Database,
        connection: Connection,
        messages: mpsc::Receiver<Message>,
        journal: Journal,
    ) -> Self {
        Self {
            database,
            connection: Some(connection),
            messages,
            journal,
        }
    }

    /// Works until every handle is gone or one of them closes the store.
    pub(super) fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        while let Some(message) = self.messages.blocking_recv() {
            self.take(message, &mut group);
            while group.len() < GROUP {
                let Ok(message) = self.messages.try_recv() else { break };
                self.take(message, &mut group);
            }
            self.carry_out(&mut group);
        }
    }

    fn take(&mut self, message: Message, group: &mut Vec<Box<dyn Call>>) {
        match message {
            Message::Call(call) => group.push(call),
            // Waiting messages are still received; new ones are refused.
            Message::Close => self.messages.close(),
        }
    }

    fn carry_out(&mut self, group: &mut Vec<Box<dyn Call>>) {
        if group.is_empty() {
            return;
        }
        let fate = match self.connected() {
            Ok((connection, journal)) => transaction(connection, journal, group),
            Err(error) => Fate::BrokenOff(Arc::new(error)),
        };
        match &fate {
            Fate::Committed => {
                telemetry::committed(group.len());
                self.journal.committed();
            }
            Fate::BrokenOff(_) => self.journal.broken_off(),
            Fate::Unknown(error) => {
                tracing::error!(%error, commands = group.len(), "commit failed; opening the database again");
                // The connection's memory cannot be trusted any more; the file is the truth.
                self.connection = None;
                self.journal.unknown();
            }
        }
        for call in group.drain(..) {
            call.answer(&fate);
        }
    }

    fn connected(&mut self) -> Result<(&Connection, &mut Journal), EngineError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self
                .database
                .open_writer()
                .map_err(|error| EngineError::Reopen(Box::new(error)))?,
        };
        Ok((self.connection.insert(connection), &mut self.journal))
    }
}

/// Carries out the group in one transaction.
pub(super) fn transaction(connection: &Connection, journal: &mut Journal, group: &mut [Box<dyn Call>]) -> Fate {
    let run = |sql| {
        connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map_err(failed)
    };
    if let Err(error) = run("BEGIN IMMEDIATE") {
        return Fate::BrokenOff(Arc::new(error));
    }
    for call in group.iter_mut() {
        let released = run("SAVEPOINT command").map_err(Arc::new).and_then(|_| {
            match call.apply(&mut SqliteRows::new(connection, journal)) {
                Verdict::Keep(changes) => journal.keep(changes),
                // A full disk or a failed read makes SQLite give up the whole transaction, and
                // its savepoints with it: what is left to say is why.
                Verdict::EngineFailed(error) if connection.is_autocommit() => return Err(error),
                Verdict::TakeBack | Verdict::EngineFailed(_) => {
                    journal.take_back();
                    run("ROLLBACK TO command").map_err(Arc::new)?;
                }
            }
            run("RELEASE command").map_err(Arc::new)
        });
        if let Err(error) = released {
            if !connection.is_autocommit() {
                drop(run("ROLLBACK"));
            }
            return Fate::BrokenOff(error);
        }
    }
    match run("COMMIT") {
        Ok(_) => Fate::Committed,
        Err(error) => Fate::Unknown(Arc::new(error)),
    }
}

/// Sends a command to the writer.
pub(super) async fn send(writer: &mpsc::Sender<Message>, call: Box<dyn Call>) -> Result<(), StoreError> {
    writer.send(Message::Call(call)).await.map_err(|_| StoreError::Closed)
}
