//! How the store fails, seen from outside.

use std::path::PathBuf;

use kage_core::fallback::NobodyCan;
use kage_core::id::{JobId, ProjectId, SessionName, TaskId};
use kage_core::session::{CannotAnswer, CannotSend, CannotVerify};
use kage_core::task::MAX_SESSIONS;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request id was used for another request.
    #[error("request id {id:?} was used for another request")]
    RequestConflict { id: String },
    /// The command names something that is not stored.
    #[error("no {what} {id} is stored")]
    NotFound {
        /// "task", "agent", ...
        what: &'static str,
        id: String,
    },
    /// An id that should be fresh is in use.
    #[error("the id of a new {what} is in use")]
    IdTaken {
        /// "task", "job", ...
        what: &'static str,
    },
    /// A task came with another number of session ids than it has assignments.
    #[error("task {task} has {assignments} assignments and {sessions} session ids")]
    SessionCount {
        task: TaskId,
        assignments: usize,
        sessions: usize,
    },
    /// Something of the task is not over.
    #[error("task {task} is being worked on; stop it first")]
    TaskOpen {
        /// The task.
        task: TaskId,
    },
    /// A session has no result that could be landed, or may still get another one.
    #[error("session {session} has no result to select: it is {state}")]
    NoResult {
        /// The session.
        session: SessionName,
        /// Where it stands.
        state: &'static str,
    },
    /// A session takes no message now.
    #[error(transparent)]
    CannotSend(CannotSend),
    /// The question takes no answer, or not this one.
    #[error(transparent)]
    CannotAnswer(CannotAnswer),
    /// A session has no files that another one could go on from.
    #[error("session {session} has no checkpoint yet; wait until it has worked, or run the task again")]
    NothingToForkFrom {
        /// The session.
        session: SessionName,
    },
    /// A task has as many sessions as a task may have.
    #[error("task {task} has {MAX_SESSIONS} sessions, and takes no more; run it again")]
    TooManySessions {
        /// The task.
        task: TaskId,
    },
    /// Somebody else added a session to the task meanwhile: the caller looks again.
    #[error("another session was added to task {task}; try again")]
    SessionsChanged {
        /// The task.
        task: TaskId,
    },
    /// A session's result cannot be verified now.
    #[error("session {session} cannot be verified")]
    CannotVerify {
        /// The session.
        session: SessionName,
        #[source]
        why: CannotVerify,
    },
    /// There is no command to verify a result with.
    #[error("task {task} has no verify command; run it again with one")]
    NoVerify {
        /// The task.
        task: TaskId,
    },
    /// A task that is kept works on the repository, or did.
    #[error("task {task} is of this repository; remove the tasks of a repository before it")]
    RepositoryInUse {
        /// One of its tasks.
        task: TaskId,
    },
    /// As many sessions of the project wait for an agent as may.
    #[error(
        "{waiting} sessions of project {project} wait for an agent already; wait until some have run, stop some, or \
         ask for more (`waiting_sessions` of the coordinator's `[limits]`)"
    )]
    QueueFull {
        project: ProjectId,
        /// How many do.
        waiting: u32,
    },
    /// The project has as much stored as it may have.
    #[error("{words}")]
    ProjectFull {
        /// How much that is, and what to do.
        words: String,
    },
    /// No agent that is known could do what is asked for.
    #[error(transparent)]
    NoAgent(NobodyCan),
    /// The commit ended with an error: the command may have been carried out or not. Read, or
    /// repeat the call with the same request id.
    #[error("the outcome of the commit is not known")]
    Unknown {
        /// The engine's error, shared by all commands of the commit.
        #[source]
        source: std::sync::Arc<EngineError>,
    },
    /// Nothing was carried out, because the engine failed.
    #[error("the store did not carry out the command")]
    Engine {
        #[source]
        source: std::sync::Arc<EngineError>,
    },
    /// The store was shut down; nothing was carried out.
    #[error("the store is closed")]
    Closed,
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the store could not be read")]
    Engine(#[from] EngineError),
    /// The reading thread has ended.
    #[error("the read was interrupted")]
    Interrupted,
}

/// The kind of an engine's error: what a caller or a person can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineTrouble {
    /// There is no room on its disk: it passes, and a person can cure it.
    DiskFull,
    /// Another program holds the database for too long.
    Busy,
    /// Stored data cannot be read, or this program did not write it.
    Damaged,
    /// It is unknown what was carried out.
    UnknownOutcome,
    /// Any other error, such as a failing disk.
    Failed,
}

/// An error inside an engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("database error")]
    Database {
        trouble: EngineTrouble,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The writing thread has ended, with the commands that it was carrying out.
    #[error("the store's thread gave no answer")]
    NoAnswer,
    /// This program cannot have written the stored row.
    #[error("a stored {what} cannot be read")]
    Corrupt {
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value has no place in a row.
    #[error("a {what} cannot be stored")]
    Unstorable {
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row that another row refers to is missing.
    #[error("job {job} is stored without its {what}")]
    Dangling {
        /// The row with the reference.
        job: JobId,
        what: &'static str,
    },
    /// The database could not be opened again after a failed commit.
    #[error("the database could not be opened again")]
    Reopen(#[source] Box<OpenError>),
    /// The database's files were removed or replaced while it was open.
    #[error("{} was removed or replaced while it was open", path.display())]
    Replaced { path: PathBuf },
    /// It is not known whether the database's files are where they were.
    #[error("{} cannot be seen", path.display())]
    Unseen {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Another command of the same transaction broke it off.
    #[error("the transaction was interrupted")]
    BrokenOff,
}

impl EngineError {
    /// What kind of trouble it is.
    #[must_use]
    pub fn trouble(&self) -> EngineTrouble {
        match self {
            Self::Database { trouble, .. } => *trouble,
            Self::Corrupt { .. } | Self::Dangling { .. } => EngineTrouble::Damaged,
            Self::NoAnswer => EngineTrouble::UnknownOutcome,
            Self::Reopen(error) => error.trouble(),
            Self::Unstorable { .. } | Self::Replaced { .. } | Self::Unseen { .. } | Self::BrokenOff => {
                EngineTrouble::Failed
            }
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The linked SQLite has known faults in WAL mode.
    #[error("SQLite {found} is too old; {required} or later is required")]
    SqliteTooOld {
        found: &'static str,
        required: &'static str,
    },
    /// The file belongs to another program.
    #[error("{} is not a database of Kage Bunshin (application id {found:#x})", path.display())]
    NotOurs { path: PathBuf, found: u32 },
    #[error("{} has schema {found}; this program knows schemas up to {known}", path.display())]
    SchemaTooNew { path: PathBuf, found: u32, known: u32 },
    /// A database of an older schema is read in a copy that is brought up to date.
    #[error("{} cannot be copied into a temporary folder, in which it is brought up to date", path.display())]
    Copy {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Another program reads or writes the file for longer than is waited for.
    #[error(
        "{} is in use by {by}, and was not free within {} s: start again when that has ended, or end it. A backup and \
         a check hold it for as long as it takes to read the file once", path.display(), waited.as_secs()
    )]
    Held {
        path: PathBuf,
        /// Which program, as far as this process can see.
        by: String,
        waited: std::time::Duration,
    },
    /// With this setting the database would not keep acknowledged data.
    #[error("{} cannot be put into {what} mode (it stays {found:?})", path.display())]
    Setting {
        path: PathBuf,
        what: &'static str,
        found: String,
    },
    /// The file cannot be looked at.
    #[error("{} cannot be inspected", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Parts of the file are not what SQLite wrote.
    #[error(
        "{} is damaged ({}); nothing was changed. Restore a backup into a new data folder (`kage coordinator \
         restore`); or move kage.db and kage.db-wal away, rescue what can be read of them (`sqlite3 MOVED .recover | \
         sqlite3 kage.db`), and start once with --accept-older", path.display(), found.join("; ")
    )]
    Damaged {
        path: PathBuf,
        /// Some of what was found, in SQLite's words.
        found: Vec<String>,
    },
    #[error("{} cannot be opened", path.display())]
    Database {
        path: PathBuf,
        trouble: EngineTrouble,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The writer's thread cannot be started.
    #[error("no thread can be started for the store")]
    Thread(#[source] std::io::Error),
}

impl OpenError {
    /// What kind of trouble the engine has.
    const fn trouble(&self) -> EngineTrouble {
        match self {
            Self::Database { trouble, .. } => *trouble,
            Self::Damaged { .. } => EngineTrouble::Damaged,
            Self::Held { .. } => EngineTrouble::Busy,
            Self::SqliteTooOld { .. }
            | Self::NotOurs { .. }
            | Self::SchemaTooNew { .. }
            | Self::Copy { .. }
            | Self::Setting { .. }
            | Self::Look { .. }
            | Self::Thread(_) => EngineTrouble::Failed,
        }
    }
}
