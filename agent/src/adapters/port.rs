//! The port between an attempt and whatever does the work: a CLI, an API loop, or, in
//! tests, nothing at all. It owns no state; adapters are values in a registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
pub use kage_core::checkpoint::Resumes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::Failure;
use kage_core::fleet::AdapterInfo;
use kage_core::id::{AdapterName, AttemptId, SessionId, SessionName, TaskId};
use kage_core::prompt::Prompt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::adapters::session_file::SessionFile;
use crate::adapters::steps::Steps;

/// The adapters of an agent by name.
pub type Registry = BTreeMap<AdapterName, Arc<dyn Adapter>>;

/// What an adapter is told about the session it works on.
#[derive(Debug, Clone)]
pub struct SessionInput {
    /// The task, for `KAGE_TASK`.
    pub task: TaskId,
    /// The session, for `KAGE_SESSION`.
    pub session: SessionId,
    /// The attempt, for names of files and processes.
    pub attempt: AttemptId,
    pub name: SessionName,
    /// The model asked for; `None` = the adapter's default.
    pub model: Option<String>,
    pub prompt: Prompt,
    /// The task's base context as a file, for `KAGE_BASE_CONTEXT`. Shared: read it only.
    pub base_context: Option<PathBuf>,
    pub beginning: Beginning,
    /// Receives each step.
    pub steps: Steps,
    /// Where to work; `None` for a task without a repository.
    pub worktree: Option<PathBuf>,
    /// A folder of the attempt's own for HOME, TMPDIR and prompt files. Removed afterwards.
    pub scratch: PathBuf,
    /// How long it may take. The attempt watches; the adapter is told to stop.
    pub limits: SessionLimits,
    /// True while the attempt's lease is in doubt: the program is stopped, and no model
    /// call is made.
    pub frozen: watch::Receiver<bool>,
}

#[cfg(test)]
impl SessionInput {
    /// A session without a prompt or a worktree, and with a minute for everything.
    pub(crate) fn blank(scratch: PathBuf) -> Self {
        Self {
            task: TaskId::from_random(1),
            session: SessionId::from_random(2),
            attempt: AttemptId::from_random(3),
            name: "s-1".parse().expect("it is a name"),
            model: None,
            prompt: Prompt {
                shared: String::new(),
                own: String::new(),
            },
            base_context: None,
            beginning: Beginning::New,
            steps: Steps::unheard(),
            worktree: None,
            scratch,
            limits: SessionLimits {
                timeout: Duration::from_secs(60),
                idle: Duration::from_secs(60),
            },
            frozen: watch::channel(false).1,
        }
    }
}

/// How long a session may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// From its start, frozen time not counted.
    pub timeout: Duration,
    /// Without any output, event or other sign of life.
    pub idle: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Beginning {
    /// With the prompt, as a new conversation.
    #[default]
    New,
    /// Where another attempt stopped, after these messages or lines.
    GoOn {
        /// Whole lines, as the adapter told them, or as they are in its session file.
        said: Bytes,
        /// What happened since, to be told; empty when there is nothing to tell.
        note: String,
        /// What to do now instead of only going on; empty when it is to go on.
        instruction: String,
    },
}

/// What a conversation that goes on is told next: `note`, then `instruction`. Empty = nothing.
#[must_use]
pub fn next_message(note: &str, instruction: &str) -> String {
    let parts = [note, instruction];
    let said = parts.into_iter().filter(|part| !part.is_empty());
    said.collect::<Vec<_>>().join("\n\n")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterEnd {
    /// It says it is done. Whether anything changed is not its to decide.
    Done {
        /// The model's last words, for people.
        summary: String,
    },
    Failed(Failure),
    /// It was told to stop, and everything it started is gone.
    Stopped,
}

/// What an adapter tells while it works.
#[derive(Debug, Clone)]
pub enum Report {
    Event(EventBody),
    Output(OutputStream, Bytes),
    /// Nothing for anybody to see, and a sign that the work goes on: a thought, a part of a
    /// tool's input, output that is not shown.
    Alive,
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

    /// Says that the work goes on. Not waited for: when there is no room, reports that say so
    /// too are on their way.
    pub fn alive(&self) {
        drop(self.reports.try_send(Report::Alive));
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

/// Something that can work on a session.
pub trait Adapter: Send + Sync {
    /// What the fleet is told about it.
    fn info(&self) -> AdapterInfo;

    /// Values that must never appear in output: keys and tokens it holds.
    fn secrets(&self) -> Vec<String>;

    /// From where it can go on with a conversation.
    fn resumes(&self) -> Resumes {
        Resumes::None
    }

    /// Whether it tells its [`Steps`]. Files of one that does not are kept when they have
    /// come to rest.
    fn tells_steps(&self) -> bool {
        false
    }

    /// The file in which its program keeps the session; `None` when it tells each message.
    fn session_file(&self, _input: &SessionInput) -> Option<SessionFile> {
        None
    }

    /// Whether sessions need their scratch folder to exist.
    fn uses_scratch(&self) -> bool {
        true
    }

    /// How long a session may take for which this is asked; never longer.
    fn limits(&self, asked: SessionLimits) -> SessionLimits {
        asked
    }

    /// Works until it is done, fails, or `stop` is cancelled; nothing it started is left.
    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd>;
}
