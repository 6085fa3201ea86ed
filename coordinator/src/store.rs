//! The single source of truth: tasks, sessions, jobs, attempts, events, agents and contexts.
//!
//! A command loads the rows that it concerns, core decides on them, and the changed rows and the
//! outcome come back together: the result of `store.apply(CreateTask { .. }).await?` is durable.
//! Decisions are in `kage_core`; this module only loads, saves and serialises. It reads no clock
//! and draws no ids: commands carry both.
//!
//! ```text
//!   Store --apply--> writer thread -> apply (written once) -> Rows: SQLite | model
//!         |                                |
//!         |                     committed  v
//!         |                               feed --> everything in memory that follows it
//!         |                                |
//!         |                                v
//!         \--reads--> recent tasks in memory --(others)--> Reads: SQLite | model
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kage_core::checkpoint::Checkpoint;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, Digest, JobId, ProjectId, SessionId, TaskId, TokenId};
use kage_core::ledger::{CallRow, Reservation};
use kage_core::price::PriceTable;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

mod acknowledged;
mod admission;
mod apply;
mod call;
mod change;
mod command;
mod copies;
#[cfg(test)]
mod conformance;
mod error;
mod feed;
mod identity;
mod journal;
mod model;
mod played;
mod query;
mod readers;
mod recent;
mod rows;
mod sqlite;
mod unit;
mod writer;

pub(crate) use acknowledged::{parse as parse_position, text as position_text};
pub use admission::{
    CreateJoinToken, CreatePersonToken, EnrolAgent, Enrolled, Enrolment, JoinTokenRow, JoinUse, PersonToken,
    RevokeAgent, RevokeJoinToken, RevokePersonToken,
};
pub use apply::Command;
pub(crate) use change::Change;
pub use command::{
    AppendEvents, Appended, AskToStart, CallSettled, CancelTask, Claim, CommitCall, ContextPut, CreateTask, Created,
    DeleteRepository, DropTask, EndAttempts, Ending, ExtendAllLeases, ForkSession, MayStart, PrepareRestore,
    PutContext, QueuedJob, REQUEST_LIFETIME, RecordAgent, RecordContextSent, ReleaseCall, RenewLeases, Renewed,
    RepositoryFate, Request, RequestCheckpoint, ReserveCall, Reserved, RestorePrepared, RestoreSession, SaveWork,
    SelectResult, SendMessage, SetCordoned, SetDraining, Start, StartAttempt, VerifyResult,
};
pub(crate) use copies::{Contents, CopyError, NamedCommits};
pub use error::{EngineError, EngineTrouble, OpenError, ReadError, StoreError};
pub(crate) use feed::{Arrivals, Follower, News as FeedNews};
pub(crate) use identity::{Absent, Found, Known, Opened, Opening};
pub use played::{Disk, Fault, Visit};
pub use query::{
    AttemptView, CallFilter, ContextSent, ContextStats, Counts, EndedTask, InFiles, InvalidPageToken, JobCounts,
    LiveAttempt, MIN_PREFIX, Named, News, PageToken, ProjectCounts, TaskEvent, TaskFilter, TaskOrder, TaskPage,
    TaskView, Watched, Work,
};

use acknowledged::Acknowledged;
use call::Pending;
use feed::Feed;
use journal::Journal;
use played::Memory;
use query::Reads;
use readers::Readers;
use recent::Recent;
use sqlite::Database;
use writer::{Keeping, Message, Writer};

/// The most tasks on one page, and the most events of one read.
pub const MAX_PAGE: u32 = 1000;

/// A handle to the store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    engine: Engine,
    feed: Arc<Feed>,
}

#[derive(Debug, Clone)]
enum Engine {
    Sqlite {
        writer: mpsc::Sender<Message>,
        thread: Arc<Mutex<Option<JoinHandle<()>>>>,
        readers: Arc<Readers>,
        recent: Arc<Recent>,
        lost: CancellationToken,
    },
    Memory(Arc<Memory>),
}

impl Store {
    /// Opens the database at this path, or makes it. Blocks on the disk: for start-up. Usage that an
    /// older program stored without its cost is priced by the built-in table.
    ///
    /// # Errors
    /// When this program must not or cannot use it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, Recent::new)
    }

    /// Opens the database of a coordinator, or makes it. One without an id gets one. That it was
    /// opened once more, and more often than its folder knew, is durable when this returns. Usage
    /// that an older program stored without its cost is priced by `prices`.
    ///
    /// # Errors
    /// When this program must not or cannot use it.
    pub(crate) fn begin(path: &Path, opening: &Opening, prices: &PriceTable) -> Result<(Self, Opened), OpenError> {
        let (database, connection) = Database::new(path, prices)?;
        let opened = database.identify(&connection, opening)?;
        let noted = Acknowledged::begin(&opening.noted, opened.position);
        let noted = noted.map_err(|source| OpenError::Look {
            path: opening.noted.clone(),
            source,
        })?;
        Ok((Self::run(database, connection, Some(noted), Recent::new)?, opened))
    }

    /// What the file at this path is, and which of these attempts it does not know. Nothing is
    /// written to it.
    ///
    /// # Errors
    /// When it is no database of this program's, or cannot be read.
    pub(crate) fn look(path: &Path, attempts: &[AttemptId]) -> Result<Found, OpenError> {
        sqlite::look(path, attempts)
    }

    fn open_with(path: &Path, recent: fn(&Arc<Feed>) -> Recent) -> Result<Self, OpenError> {
        let (database, connection) = Database::new(path, PriceTable::builtin())?;
        Self::run(database, connection, None, recent)
    }

    fn run(
        database: Database,
        connection: rusqlite::Connection,
        noted: Option<Acknowledged>,
        recent: fn(&Arc<Feed>) -> Recent,
    ) -> Result<Self, OpenError> {
        let readers = Arc::new(Readers::new(database.clone())?);
        let feed = Arc::new(Feed::default());
        let recent = Arc::new(recent(&feed));
        let journal = Journal::new(Arc::clone(&feed), Arc::clone(&recent));
        let lost = CancellationToken::new();
        let keeping = Keeping {
            files: database.files()?,
            noted,
            lost: lost.clone(),
        };
        let (writer, messages) = mpsc::channel(writer::WAITING);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || Writer::new(database, connection, messages, journal, keeping).run())
            .map_err(OpenError::Thread)?;
        let engine = Engine::Sqlite {
            writer,
            thread: Arc::new(Mutex::new(Some(thread))),
            readers,
            recent,
            lost,
        };
        Ok(Self { engine, feed })
    }

    /// A store that forgets everything when its last handle is dropped.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::of_memory(None)
    }

    /// The same by way of a disk that is slow and fails as it is told.
    #[must_use]
    pub fn in_memory_on(disk: Disk) -> Self {
        Self::of_memory(Some(disk))
    }

    fn of_memory(disk: Option<Disk>) -> Self {
        let feed = Arc::new(Feed::default());
        let engine = Engine::Memory(Arc::new(Memory::new(disk, Arc::clone(&feed))));
        Self { engine, feed }
    }

    /// Carries out a command. When it returns `Ok`, its effects are durable.
    ///
    /// # Errors
    /// When it may not be carried out, or the engine failed; see [`StoreError`] for which
    /// errors mean that nothing was stored.
    pub async fn apply<C: Command>(&self, command: C) -> Result<C::Outcome, StoreError> {
        let (pending, answer) = Pending::new(command);
        match &self.engine {
            Engine::Sqlite { writer, .. } => writer::send(writer, Box::new(pending)).await?,
            Engine::Memory(memory) => memory.apply(std::any::type_name::<C>(), pending).await,
        }
        // Without an answer the writer's thread died, at a moment nobody knows.
        answer.await.unwrap_or_else(|_gone| {
            self.feed.unknown();
            Err(StoreError::Unknown {
                source: Arc::new(EngineError::NoAnswer),
            })
        })
    }

    /// What every commit from now on changes, in order. It is told before the caller of the command
    /// is answered.
    pub(crate) fn changes(&self) -> Follower {
        Follower::new(Arc::clone(&self.feed))
    }

    /// Says when there is something new in the feed, to one who waits for it.
    pub(crate) fn arrivals(&self) -> Arrivals {
        Arrivals(Arc::clone(&self.feed))
    }

    /// Waits until the database's files were removed or replaced. Nothing is acknowledged from then
    /// on.
    pub(crate) async fn lost(&self) {
        match &self.engine {
            Engine::Sqlite { lost, .. } => lost.cancelled().await,
            Engine::Memory(_) => std::future::pending().await,
        }
    }

    /// Carries out what waits, refuses what comes later, and lets go of the database.
    pub async fn close(&self) {
        let Engine::Sqlite { writer, thread, .. } = &self.engine else {
            return;
        };
        // An error means that it is closed already.
        drop(writer.send(Message::Close).await);
        let thread = lock(thread).take();
        if let Some(thread) = thread
            && tokio::task::spawn_blocking(move || thread.join()).await.is_err()
        {
            tracing::error!("the store's thread ended in a panic");
        }
    }

    /// A task with its sessions.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn task(&self, id: TaskId) -> Result<Option<TaskView>, ReadError> {
        if let Some(view) = self.recent().and_then(|recent| recent.task(id)) {
            return Ok(Some(view));
        }
        self.read(move |reads| reads.task(id)).await
    }

    /// Everything that a watcher does not know yet, in one read: the task, its attempts if
    /// requested, and its next events.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn news(&self, watched: Watched) -> Result<Option<News>, ReadError> {
        let limit = watched.limit.clamp(1, MAX_PAGE);
        let watched = Watched { limit, ..watched };
        if let Some(news) = self.recent().and_then(|recent| recent.news(watched)) {
            return Ok(Some(news));
        }
        self.read(move |reads| {
            let Some(view) = reads.task(watched.task)? else {
                return Ok(None);
            };
            let attempts = if watched.attempts {
                reads.attempts_of(watched.task)?
            } else {
                Vec::new()
            };
            let events = if view.last_event > watched.after {
                reads.events(watched.task, watched.after, limit)?
            } else {
                Vec::new()
            };
            Ok(Some(News { view, attempts, events }))
        })
        .await
    }

    /// The task that a person names by an id or a prefix of one.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn find_task(&self, text: &str) -> Result<Named, ReadError> {
        let prefix = text.trim().to_ascii_lowercase();
        let hex = prefix.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex || !(MIN_PREFIX..=32).contains(&prefix.len()) {
            return Ok(Named::NotFound);
        }
        let found = self.read(move |reads| reads.tasks_with_prefix(&prefix)).await?;
        Ok(match found.as_slice() {
            [] => Named::NotFound,
            [id] => Named::One(*id),
            [..] => Named::Ambiguous,
        })
    }

    /// A page of the tasks that match a filter, newest first.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn tasks(
        &self,
        filter: &TaskFilter,
        after: Option<PageToken>,
        limit: u32,
    ) -> Result<TaskPage, ReadError> {
        let filter = filter.clone();
        let limit = limit.clamp(1, MAX_PAGE);
        self.read(move |reads| reads.tasks(&filter, after, limit)).await
    }

    /// The content of a job's offer.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn work(&self, task: TaskId, job: JobId) -> Result<Option<Work>, ReadError> {
        if let Some(work) = self.recent().and_then(|recent| recent.work(task, job)) {
            return Ok(work);
        }
        self.read(move |reads| reads.work(task, job)).await
    }

    /// The checkpoints of a session, oldest first.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn checkpoints(&self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, ReadError> {
        self.read(move |reads| reads.checkpoints(task, session)).await
    }

    /// Every job that waits, the longest waiting first.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn queued_jobs(&self) -> Result<Vec<QueuedJob>, ReadError> {
        self.read(|reads| reads.queued_jobs()).await
    }

    /// An attempt.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn attempt(&self, id: AttemptId) -> Result<Option<AttemptView>, ReadError> {
        if let Some(view) = self.recent().and_then(|recent| recent.attempt(id)) {
            return Ok(Some(view));
        }
        self.read(move |reads| reads.attempt(id)).await
    }

    /// Every attempt of a task, in the order they were started.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn attempts_of(&self, task: TaskId) -> Result<Vec<AttemptView>, ReadError> {
        if let Some(views) = self.recent().and_then(|recent| recent.attempts_of(task)) {
            return Ok(views);
        }
        self.read(move |reads| reads.attempts_of(task)).await
    }

    /// The attempts with authority, of one agent or of all, in the order of their starts.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn live_attempts(&self, agent: Option<AgentId>) -> Result<Vec<LiveAttempt>, ReadError> {
        self.read(move |reads| reads.live_attempts(agent)).await
    }

    /// The events of a task after a position, in order.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn events(&self, task: TaskId, after: u64, limit: u32) -> Result<Vec<TaskEvent>, ReadError> {
        let limit = limit.clamp(1, MAX_PAGE);
        if let Some(events) = self.recent().and_then(|recent| recent.events(task, after, limit)) {
            return Ok(events);
        }
        self.read(move |reads| reads.events(task, after, limit)).await
    }

    /// Rows of the ledger with larger numbers than `after`, in the order in which they were written.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn calls(&self, filter: &CallFilter, after: u64, limit: u32) -> Result<Vec<(u64, CallRow)>, ReadError> {
        let filter = filter.clone();
        let limit = limit.clamp(1, MAX_PAGE);
        self.read(move |reads| reads.calls(&filter, after, limit)).await
    }

    /// What is held back for calls that did not end.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn reservations(&self) -> Result<Vec<Reservation>, ReadError> {
        self.read(|reads| reads.reservations()).await
    }

    /// The projects with tasks, by name.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn projects(&self) -> Result<Vec<ProjectCounts>, ReadError> {
        self.read(|reads| reads.projects()).await
    }

    /// Every agent that was ever recorded, by name. Which are connected is not known here.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn agents(&self) -> Result<Vec<Agent>, ReadError> {
        self.read(|reads| reads.agents()).await
    }

    /// Every agent that ever joined, revoked ones included, by id.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn enrolments(&self) -> Result<Vec<Enrolment>, ReadError> {
        self.read(|reads| reads.enrolments()).await
    }

    /// A join token; `None` when there is none, or no more.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn join_token(&self, token: TokenId) -> Result<Option<JoinTokenRow>, ReadError> {
        self.read(move |reads| reads.join_token(token)).await
    }

    /// Looks up a row by its key, to see whether the engine answers.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn answers(&self) -> Result<(), ReadError> {
        self.join_token(TokenId::from_random(0)).await.map(drop)
    }

    /// Every token of a person, revoked ones included, oldest first.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn person_tokens(&self) -> Result<Vec<PersonToken>, ReadError> {
        self.read(|reads| reads.person_tokens()).await
    }

    /// The size of a base context; `None` when it was never put.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn context_size(&self, project: &ProjectId, digest: &Digest) -> Result<Option<u64>, ReadError> {
        let (project, digest) = (project.clone(), digest.clone());
        self.read(move |reads| reads.context_size(&project, &digest)).await
    }

    /// How often a base context was stored and sent; `None` when it was never put.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn context_stats(&self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextStats>, ReadError> {
        let (project, digest) = (project.clone(), digest.clone());
        self.read(move |reads| reads.context_stats(&project, &digest)).await
    }

    /// The present numbers, for metrics.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn counts(&self) -> Result<Counts, ReadError> {
        self.read(|reads| reads.counts()).await
    }

    /// The ended tasks and their files, in the order of their ends.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn ended(&self) -> Result<Vec<EndedTask>, ReadError> {
        self.read(|reads| reads.ended()).await
    }

    /// Everything that rows say is in files.
    ///
    /// # Errors
    /// When the engine failed.
    pub async fn in_files(&self) -> Result<InFiles, ReadError> {
        self.read(|reads| reads.in_files()).await
    }

    fn recent(&self) -> Option<&Recent> {
        match &self.engine {
            Engine::Sqlite { recent, .. } => Some(recent),
            Engine::Memory(_) => None,
        }
    }

    async fn read<T, F>(&self, read: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Reads) -> Result<T, EngineError> + Send + 'static,
    {
        match &self.engine {
            Engine::Sqlite { readers, .. } => readers.clone().read(read).await,
            Engine::Memory(memory) => memory.read(read).await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A command that panics is a bug here; other callers still get the stored data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
