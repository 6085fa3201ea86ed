//! The one thread that writes to SQLite. It takes the waiting commands, up to a group, into one
//! transaction with a savepoint per command, commits once, and then answers.
//!
//! ```text
//!   receive -> BEGIN IMMEDIATE -> (SAVEPOINT, command, RELEASE | ROLLBACK TO)* -> COMMIT -> answer
//!                                                                               \-> failed: answer
//!                                                                                   "unknown", reopen
//! ```
//! Before a commit is answered, its files are looked for and its position is noted beside them.
//! When they were removed or replaced, nothing is carried out any more.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::acknowledged::Acknowledged;
use super::call::{Call, Fate, Verdict};
use super::error::{EngineError, StoreError};
use super::journal::Journal;
use super::sqlite::{Database, OpenFiles, SqliteRows, failed};
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

/// What makes sure that an acknowledged commit is found again.
pub(super) struct Keeping {
    pub(super) files: OpenFiles,
    /// `None` where no coordinator has the database.
    pub(super) noted: Option<Acknowledged>,
    /// Cancelled when the files were removed or replaced.
    pub(super) lost: CancellationToken,
}

impl Keeping {
    /// Fails when the files are not where they were, which is for good.
    fn check(&self) -> Result<(), EngineError> {
        self.files.check().inspect_err(|error| match error {
            EngineError::Replaced { path } if !self.lost.is_cancelled() => {
                tracing::error!(
                    path = %path.display(),
                    "removed or replaced while the coordinator runs: nothing is acknowledged any more"
                );
                self.lost.cancel();
            }
            _ => {}
        })
    }

    /// What callers are told. Of a commit without its files nobody may be told.
    fn fate(&mut self, done: Transacted) -> Fate {
        let Transacted { fate, position } = done;
        if !matches!(fate, Fate::Committed) {
            return fate;
        }
        if let Err(error) = self.check() {
            return Fate::Unknown(Arc::new(error));
        }
        if let (Some(noted), Some(position)) = (&mut self.noted, position) {
            noted.note(position);
        }
        fate
    }
}

pub(super) struct Writer {
    database: Database,
    /// `None` after a commit failed, until the file could be opened again.
    connection: Option<Connection>,
    messages: mpsc::Receiver<Message>,
    journal: Journal,
    keeping: Keeping,
}

impl Writer {
    pub(super) const fn new(
        database: Database,
        connection: Connection,
        messages: mpsc::Receiver<Message>,
        journal: Journal,
        keeping: Keeping,
    ) -> Self {
        Self {
            database,
            connection: Some(connection),
            messages,
            journal,
            keeping,
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
        if let Some(noted) = &self.keeping.noted {
            noted.settle();
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
            Ok((connection, journal)) => {
                let done = transaction(connection, journal, group);
                self.keeping.fate(done)
            }
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
        // Not into another file, and not into one that nobody finds.
        self.keeping.check()?;
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

/// The end of a transaction.
pub(super) struct Transacted {
    pub(super) fate: Fate,
    /// The position of a commit that changed something, in the database of a coordinator.
    position: Option<u64>,
}

/// Carries out the group in one transaction.
pub(super) fn transaction(connection: &Connection, journal: &mut Journal, group: &mut [Box<dyn Call>]) -> Transacted {
    let (fate, position) = match committed(connection, journal, group) {
        Ok(position) => (Fate::Committed, position),
        Err(fate) => (fate, None),
    };
    Transacted { fate, position }
}

fn committed(connection: &Connection, journal: &mut Journal, group: &mut [Box<dyn Call>]) -> Result<Option<u64>, Fate> {
    let run = |sql| {
        connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map_err(failed)
    };
    if let Err(error) = run("BEGIN IMMEDIATE") {
        return Err(Fate::BrokenOff(Arc::new(error)));
    }
    let before = connection.total_changes();
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
            return Err(Fate::BrokenOff(error));
        }
    }
    let position = match connection.total_changes() == before {
        true => Ok(None),
        false => advance(connection),
    };
    let position = position.map_err(|error| {
        if !connection.is_autocommit() {
            drop(run("ROLLBACK"));
        }
        Fate::BrokenOff(Arc::new(error))
    })?;
    match run("COMMIT") {
        Ok(_) => Ok(position),
        Err(error) => Err(Fate::Unknown(Arc::new(error))),
    }
}

/// Counts a commit; its position, in the database of a coordinator.
fn advance(connection: &Connection) -> Result<Option<u64>, EngineError> {
    let counted = connection
        .prepare_cached("UPDATE store SET position = position + 1 RETURNING position")
        .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)).optional());
    counted.map(|position| position.map(i64::unsigned_abs)).map_err(failed)
}

/// Sends a command to the writer.
pub(super) async fn send(writer: &mpsc::Sender<Message>, call: Box<dyn Call>) -> Result<(), StoreError> {
    writer.send(Message::Call(call)).await.map_err(|_| StoreError::Closed)
}
