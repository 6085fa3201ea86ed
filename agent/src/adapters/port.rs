//! The port between an attempt and what does the work: a program, an API loop, or a scripted
//! adapter in tests. It owns no state; adapters are values in a registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
pub use kage_core::checkpoint::Resumes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::Failure;
use kage_core::fleet::AdapterInfo;
use kage_core::folder::Folder;
use kage_core::id::{AdapterName, AttemptId, SessionId, SessionName, TaskId};
use kage_core::network::AllowRule;
use kage_core::prompt::Prompt;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::adapters::metered::{GatewayPass, MeteredProvider};
use crate::adapters::session_file::{Conversation, SessionFile};
use crate::adapters::steps::Steps;
use crate::calls::Calls;
use crate::contain::Room;
use crate::logins::{Lent, Token};
use crate::process::{Ended, Places, RunError, Secret, TaskVariables, Turns, WorkNames};

/// The adapters of an agent by name.
pub type Registry = BTreeMap<AdapterName, Arc<dyn Adapter>>;

/// The session that an adapter works on.
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
    /// The conversation, for programs that choose its id themselves.
    pub conversation: Conversation,
    pub steps: Steps,
    /// Where to work; `None` for a task without a repository.
    pub worktree: Option<PathBuf>,
    /// The folder of the worktree in which its programs start; `None`: its top.
    pub folder: Option<Folder>,
    /// A folder of the attempt's own for prompt files. Removed afterwards.
    pub scratch: PathBuf,
    /// HOME and TMPDIR, removed afterwards as well.
    pub places: Places,
    /// What its programs get because the task asks for it.
    pub variables: TaskVariables,
    /// What lets its program in at its provider.
    pub admission: Admission,
    /// When a program of it may run, for an adapter with slots of its own.
    pub turns: Turns,
    /// What its metered calls of models go through.
    pub calls: Calls,
    /// Time limits. The attempt enforces them, by stopping the adapter.
    pub limits: SessionLimits,
    /// True while the attempt's lease is in doubt: the program is stopped, and no model
    /// call is made.
    pub frozen: watch::Receiver<bool>,
    /// The box of its programs; `None`: they run as the agent does.
    pub room: Option<Arc<Room>>,
    /// What its program gets instead of its provider's address and the key; `None`: it has both.
    pub gateway: Option<GatewayPass>,
}

impl SessionInput {
    /// Where its programs start; `None` for a task without a repository.
    #[must_use]
    pub fn start(&self) -> Option<PathBuf> {
        let worktree = self.worktree.as_ref()?;
        let folder = self.folder.as_ref();
        Some(folder.map_or_else(|| worktree.clone(), |folder| worktree.join(folder.as_str())))
    }

    /// What the session's programs are told that they work on.
    #[must_use]
    pub fn work_names(&self) -> WorkNames {
        WorkNames {
            task: self.task,
            session: self.session,
            base_context: self.base_context.clone(),
        }
    }
}

impl SessionInput {
    /// A session of no task, without a prompt or a worktree, and with a minute for everything: for a run
    /// that no coordinator asked for. `scratch` is its folder.
    ///
    /// # Panics
    /// Never: its name is one.
    #[must_use]
    pub fn blank(scratch: PathBuf) -> Self {
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
            conversation: Conversation::default(),
            steps: Steps::unheard(),
            worktree: None,
            folder: None,
            places: Places::within(&scratch),
            variables: TaskVariables::default(),
            admission: Admission::default(),
            turns: Turns::new(1),
            calls: Calls::Unlimited,
            scratch,
            limits: SessionLimits {
                timeout: Duration::from_secs(60),
                idle: Duration::from_secs(60),
            },
            frozen: watch::channel(false).1,
            room: None,
            gateway: None,
        }
    }
}

/// Time limits of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// From its start, frozen time not counted.
    pub timeout: Duration,
    /// Without any output, event or other sign of life.
    pub idle: Duration,
}

/// What lets a session's program in at its provider, from the login of a person. Empty for an adapter
/// that needs none, or has a key.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// An access token.
    pub lent: Option<Lent>,
    /// Tokens that the program can read.
    pub readable: Vec<Token>,
}

impl Admission {
    /// The values that may not be shown.
    #[must_use]
    pub fn secrets(&self) -> Vec<Secret> {
        let lent = self.lent.iter().map(|lent| &lent.token);
        lent.chain(&self.readable)
            .map(|token| Secret::new("the session's login", token.reveal()))
            .collect()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Beginning {
    /// With the prompt, as a new conversation.
    #[default]
    New,
    /// Where another attempt stopped, after these messages or lines.
    GoOn {
        /// Whole lines, as the adapter reported them, or as its session file has them.
        said: Bytes,
        /// What happened since, for the model; may be empty.
        note: String,
        /// What to do next; empty means to continue.
        instruction: String,
    },
}

/// The next message of a resumed conversation: `note`, then `instruction`. May be empty.
#[must_use]
pub fn next_message(note: &str, instruction: &str) -> String {
    let parts = [note, instruction];
    let said = parts.into_iter().filter(|part| !part.is_empty());
    said.collect::<Vec<_>>().join("\n\n")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterEnd {
    /// The adapter reports success. The attempt decides whether anything changed.
    Done {
        /// The model's last words, for people.
        summary: String,
    },
    Failed(Failure),
    /// It was stopped, and everything it started has ended.
    Stopped,
}

/// What an adapter reports while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Event(EventBody),
    Output(OutputStream, Bytes),
    /// The work continues, without anything to show: a thought, a part of a tool's input, hidden
    /// output.
    Alive,
}

/// Where an adapter reports. Waits while the attempt's outbox is full, so that a child's
/// pipes fill up instead of memory.
#[derive(Debug, Clone)]
pub struct Reporter {
    reports: mpsc::Sender<Report>,
    survived: Arc<AtomicBool>,
}

/// The attempt no longer listens: it lost its authority. The adapter stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt no longer accepts reports")]
pub struct ReporterClosed;

impl Reporter {
    /// A reporter and the end that the attempt reads. `capacity` is in reports.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Report>) {
        let (reports, receiver) = mpsc::channel(capacity);
        let survived = Arc::default();
        (Self { reports, survived }, receiver)
    }

    /// Tells how a program of the session ended: nobody else gets the files of one that may still
    /// run.
    pub fn program_ended(&self, ended: &Result<Ended, RunError>) {
        if ended.as_ref().map_or(true, |ended| ended.survivors > 0) {
            self.survived.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a program survived; it may be asked after the reporter is gone.
    #[must_use]
    pub fn survival(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.survived)
    }

    /// Reports an event.
    ///
    /// # Errors
    /// When the attempt no longer listens.
    pub async fn event(&self, body: EventBody) -> Result<(), ReporterClosed> {
        self.reports.send(Report::Event(body)).await.map_err(|_| ReporterClosed)
    }

    /// Reports that the work continues. Does not wait: a full channel has reports that show the
    /// same.
    pub fn alive(&self) {
        drop(self.reports.try_send(Report::Alive));
    }

    /// Reports output, in reading order.
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
    /// The description of the adapter for the fleet.
    fn info(&self) -> AdapterInfo;

    /// Values that must never appear in output: keys and tokens it holds.
    fn secrets(&self) -> Vec<Secret>;

    /// Takes what only one session at a time may have, for the session of an offer. `None`: there is
    /// nothing like that.
    ///
    /// # Errors
    /// When another session has it: the reason for people.
    fn reserve(&self) -> Result<Option<OwnedSemaphorePermit>, String> {
        Ok(None)
    }

    /// Gets what lets a session with this time limit in at the provider, before its work begins.
    fn admit(&self, _limit: Duration) -> BoxFuture<'_, Result<Admission, Failure>> {
        Box::pin(async { Ok(Admission::default()) })
    }

    /// Asks what it calls whether it is there, for people who look at their machine.
    ///
    /// # Errors
    /// When it is not: the reason for people, and what to do.
    fn answers(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// Returns when nothing of a login is half written.
    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// From which points it can resume a conversation.
    fn resumes(&self) -> Resumes {
        Resumes::None
    }

    /// True when it reports its [`Steps`]. Otherwise a checkpoint is taken when the files have
    /// stopped changing.
    fn tells_steps(&self) -> bool {
        false
    }

    /// The file in which its program keeps the session; `None` when it reports each message.
    fn session_file(&self, _input: &SessionInput) -> Option<SessionFile> {
        None
    }

    /// Hosts that programs of its sessions have to reach. An adapter that calls its provider itself needs none.
    fn provider(&self) -> Vec<AllowRule> {
        Vec::new()
    }

    /// The provider that the program of a session with this model calls, where the agent can call it in its place;
    /// `None`: the program does so itself, with what lets it in.
    fn metered(&self, _model: Option<&str>) -> Option<MeteredProvider> {
        None
    }

    /// Whether it asks [`SessionInput::calls`] before each call itself. A program does not, unless its calls go
    /// through a gateway.
    fn asks_for_calls(&self) -> bool {
        false
    }

    /// Whether sessions need their scratch folder to exist.
    fn uses_scratch(&self) -> bool {
        true
    }

    /// The limits of a session: at most the requested ones.
    fn limits(&self, asked: SessionLimits) -> SessionLimits {
        asked
    }

    /// Works until it is done, fails, or `stop` is cancelled; nothing it started is left.
    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Cause, Status};

    #[test]
    fn a_survivor_is_known_when_every_reporter_is_gone() {
        let (reporter, _reports) = Reporter::channel(1);
        let (survival, other) = (reporter.survival(), reporter.clone());
        drop(reporter);
        let with = |survivors| Ended {
            cause: Cause::Itself,
            status: Status::Code(0),
            survivors,
        };
        other.program_ended(&Ok(with(0)));
        assert!(!survival.load(Ordering::Relaxed));
        other.program_ended(&Ok(with(1)));
        drop(other);
        assert!(survival.load(Ordering::Relaxed));
    }
}
