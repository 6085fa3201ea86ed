//! The port between an attempt and whatever does the work: a CLI, an API loop, or, in
//! tests, nothing at all. It owns no state; adapters are values in a registry.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::Failure;
use kage_core::id::{AdapterName, AttemptId, SessionId, SessionName, TaskId};
use kage_core::prompt::Prompt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What an adapter is told about the session it works on.
#[derive(Debug, Clone)]
pub struct SessionInput {
    /// The task, for `KAGE_TASK`.
    pub task: TaskId,
    /// The session, for `KAGE_SESSION`.
    pub session: SessionId,
    /// The attempt, for names of files and processes.
    pub attempt: AttemptId,
    /// The session's name.
    pub name: SessionName,
    /// The model asked for; `None` = the adapter's default.
    pub model: Option<String>,
    /// What to do.
    pub prompt: Prompt,
    /// The task's base context as a file, for `KAGE_BASE_CONTEXT`. Shared: read it only.
    pub base_context: Option<PathBuf>,
    /// Where to work; `None` for a task without a repository.
    pub worktree: Option<PathBuf>,
    /// A folder of the attempt's own for HOME, TMPDIR and prompt files. Removed afterwards.
    pub scratch: PathBuf,
    /// Wall-clock limit.
    pub timeout: Duration,
    /// Limit without any output or event.
    pub idle_timeout: Duration,
    /// True while the attempt's lease is in doubt: the program is stopped, and no model
    /// call is made.
    pub frozen: watch::Receiver<bool>,
}

/// How an adapter's work ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterEnd {
    /// It says it is done. Whether anything changed is not its to decide.
    Done {
        /// The model's last words, for people.
        summary: String,
    },
    /// It gave up.
    Failed(Failure),
    /// It was told to stop, and everything it started is gone.
    Stopped,
}

/// What an adapter tells while it works.
#[derive(Debug, Clone)]
pub enum Report {
    /// A state event.
    Event(EventBody),
    /// Bytes of an output stream.
    Output(OutputStream, Bytes),
}

/// Where an adapter reports. Waits while the attempt's outbox is full, so that a child's
/// pipes fill up instead of memory.
#[derive(Debug, Clone)]
pub struct Reporter {
    reports: mpsc::Sender<Report>,
}

/// The attempt no longer listens: it lost its authority. The adapter stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt no longer takes reports")]
pub struct ReporterClosed;

impl Reporter {
    /// A reporter and the end that the attempt reads. `capacity` is in reports.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Report>) {
        let (reports, receiver) = mpsc::channel(capacity);
        (Self { reports }, receiver)
    }

    /// Reports an event.
    ///
    /// # Errors
    /// When the attempt no longer listens.
    pub async fn event(&self, body: EventBody) -> Result<(), ReporterClosed> {
        self.reports.send(Report::Event(body)).await.map_err(|_| ReporterClosed)
    }

    /// Reports output, in the order in which it is to be read.
    ///
    /// # Errors
    /// When the attempt no longer listens.
    pub async fn output(&self, stream: OutputStream, bytes: Bytes) -> Result<(), ReporterClosed> {
        self.reports
            .send(Report::Output(stream, bytes))
            .await
            .map_err(|_| ReporterClosed)
    }
}

/// What the fleet is told about an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// What tasks call it.
    pub name: AdapterName,
    /// What the program printed of its own version; empty when it is not a program.
    pub version: String,
    /// Why it cannot be used here, and what to do; `None` = it can.
    pub unavailable: Option<String>,
}

/// Something that can work on a session.
pub trait Adapter: Send + Sync {
    /// What the fleet is told about it.
    fn info(&self) -> AdapterInfo;

    /// Values that must never appear in output: keys and tokens it holds.
    fn secrets(&self) -> Vec<String>;

    /// Whether sessions need their scratch folder to exist.
    fn uses_scratch(&self) -> bool {
        true
    }

    /// Works until it is done, fails, or `stop` is cancelled; nothing it started is left.
    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd>;
}
