//! Watching a task: stored events and durable output from a cursor on, then live, never repeating
//! or skipping. A watcher reads at its own pace and is woken by a version number, so a slow one
//! delays no other.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use kage_core::attempt::AttemptState;
use kage_core::event::{OutputStream, VerdictKind};
use kage_core::id::{AttemptId, SessionId, SessionName, TaskId};
use kage_core::session::SessionStateKind;
use kage_core::task::TaskState;
use kage_proto::convert::task::TaskDetail;
use kage_proto::status::ApiError;
use kage_proto::v1::watch_task_response::Item;
use kage_proto::{MAX_INLINE, v1};

use crate::coordinator::Coordinator;
use crate::door::outflow::{Outflow, Unsent};
use crate::refusals::{internal, read_error};
use crate::store::{AttemptView, News, TaskEvent, TaskView, Watched};
use crate::topics::Version;
use crate::watch::cursor::Cursor;
use crate::watch::view;

/// Events read at once.
const PAGE: u32 = 256;
/// Bytes of one read of a stream: they are in memory beside what waits for the network.
const READ: usize = 2 * MAX_INLINE;

pub(crate) type Responses = Outflow<v1::WatchTaskResponse>;

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) cursor: Cursor,
    pub(crate) streams: BTreeSet<OutputStream>,
    /// `None` = all.
    pub(crate) session: Option<SessionName>,
    /// Continue until the task has ended, not only until the present end.
    pub(crate) follow: bool,
}

/// Why a watch ended before its task.
enum Stopped {
    /// The receiver is gone.
    Gone,
    Failed(ApiError),
}

impl From<ApiError> for Stopped {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// The data whose change causes another snapshot.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    task: TaskState,
    /// Where each stands, how often it was tried and where, and what was said to it.
    sessions: Vec<(SessionStateKind, u32, Option<String>, u32)>,
    base: Option<VerdictKind>,
    selected: Option<SessionId>,
}

impl Shown {
    fn of(view: &TaskView) -> Self {
        let sessions = view.sessions.iter();
        Self {
            task: view.task.state,
            sessions: sessions
                .map(|s| (s.state.kind(), s.attempts, s.agent.clone(), s.messages.sent))
                .collect(),
            base: view.task.baseline.as_ref().map(|verdict| verdict.kind),
            selected: view.task.selection.as_ref().map(|selection| selection.session),
        }
    }
}

/// Watches until the end, an error, or the client's leaving.
pub(crate) async fn run(coordinator: Arc<Coordinator>, watch: Watch, responses: &Responses) {
    let watcher = Watcher {
        task: watch.cursor.task,
        coordinator: &coordinator,
        watch,
        responses,
        attempts: Vec::new(),
        complete: HashSet::new(),
        shown: None,
    };
    match watcher.run().await {
        Ok(()) | Err(Stopped::Gone) => {}
        Err(Stopped::Failed(error)) => responses.fail(error),
    }
}

struct Watcher<'a> {
    coordinator: &'a Coordinator,
    task: TaskId,
    watch: Watch,
    responses: &'a Responses,
    attempts: Vec<AttemptView>,
    /// Ended attempts whose output is delivered completely.
    complete: HashSet<AttemptId>,
    shown: Option<Shown>,
}

impl Watcher<'_> {
    async fn run(mut self) -> Result<(), Stopped> {
        let mut topic = self.coordinator.topics.subscribe(self.task);
        let mut seen: Option<Version> = None;
        let mut ended = false;
        loop {
            // Taken before reading, so that later changes wake it again.
            let version = *topic.borrow_and_update();
            if seen.is_none_or(|seen| seen.rows != version.rows) {
                ended = self.rows().await?;
            }
            seen = Some(version);
            self.output().await?;
            if ended || !self.watch.follow {
                return Ok(());
            }
            tokio::select! {
                // Ends of the watch come before inputs that may never run out.
                biased;
                () = self.responses.closed() => return Err(Stopped::Gone),
                () = self.coordinator.closing.cancelled() => {
                    return Err(Stopped::Failed(ApiError::Unavailable {
                        message: "the coordinator is shutting down".to_owned(),
                        retry: Some(std::time::Duration::from_secs(1)),
                    }));
                }
                changed = topic.changed() => {
                    if changed.is_err() {
                        // The topic was dropped between two watchers; subscribe to the new one.
                        topic = self.coordinator.topics.subscribe(self.task);
                        seen = None;
                    }
                }
            }
        }
    }

    /// Delivers new rows. True when the task has ended.
    async fn rows(&mut self) -> Result<bool, Stopped> {
        let News {
            view,
            attempts,
            mut events,
        } = self.news().await?;
        self.attempts = attempts;
        if let Some(session) = &self.watch.session {
            self.attempts.retain(|attempt| attempt.session_name == *session);
        }
        let ended = view.task.state.is_terminal();
        let shown = Shown::of(&view);
        if self.shown.is_none() {
            self.snapshot(view.clone(), Shown::of(&view)).await?;
        }
        while !events.is_empty() {
            for event in events {
                self.event(event).await?;
            }
            if self.watch.cursor.event >= view.last_event {
                break;
            }
            events = self.news().await?.events;
        }
        if ended {
            // The last snapshot comes after everything that led to it.
            self.output().await?;
        }
        if self.shown.as_ref() != Some(&shown) {
            self.snapshot(view, shown).await?;
        }
        Ok(ended)
    }

    async fn news(&self) -> Result<News, ApiError> {
        let watched = Watched {
            task: self.task,
            after: self.watch.cursor.event,
            limit: PAGE,
            attempts: !self.watch.streams.is_empty(),
        };
        let news = self.coordinator.store.news(watched).await.map_err(read_error)?;
        news.ok_or_else(|| ApiError::NotFound {
            what: format!("task {}", self.task),
        })
    }

    async fn snapshot(&mut self, view: TaskView, shown: Shown) -> Result<(), Stopped> {
        let task = view::task(self.coordinator, view, TaskDetail::Basic);
        self.shown = Some(shown);
        self.send(Item::Task(Box::new(task))).await
    }

    async fn event(&mut self, event: TaskEvent) -> Result<(), Stopped> {
        self.watch.cursor.event = event.pos;
        if self.watch.session.as_ref().is_some_and(|s| *s != event.session_name) {
            return Ok(());
        }
        self.send(Item::Event(Box::new(v1::SessionEvent {
            session_id: event.session.to_string(),
            session: event.session_name.into(),
            job: v1::JobKind::of_word(event.job.as_str()).into(),
            attempt: event.number,
            agent: event.agent_name,
            event: Some(event.event.into()),
        })))
        .await
    }

    /// Delivers durable output, a piece of each stream in turn.
    async fn output(&mut self) -> Result<(), Stopped> {
        loop {
            let mut progress = false;
            for index in 0..self.attempts.len() {
                let attempt = self.attempts[index].attempt.id;
                if self.complete.contains(&attempt) {
                    continue;
                }
                let mut more = false;
                for stream in self.watch.streams.clone() {
                    more |= self.piece(index, stream).await?;
                }
                progress |= more;
                let over = matches!(self.attempts[index].attempt.state, AttemptState::Ended { .. });
                if over && !more {
                    self.complete.insert(attempt);
                }
            }
            if !progress {
                return Ok(());
            }
        }
    }

    /// True when there was something to deliver.
    async fn piece(&mut self, index: usize, stream: OutputStream) -> Result<bool, Stopped> {
        let attempt = self.attempts[index].attempt.id;
        let at = self.watch.cursor.output.get(&(attempt, stream)).copied().unwrap_or(0);
        let outputs = &self.coordinator.outputs;
        let mut bytes = outputs
            .read(attempt, stream, at, READ)
            .await
            .map_err(|error| internal("output cannot be read", &error))?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let mut offset = at;
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(MAX_INLINE));
            let end = offset + data.len() as u64;
            self.watch.cursor.output.insert((attempt, stream), end);
            let view = &self.attempts[index];
            let chunk = v1::OutputChunk {
                session_id: view.attempt.session.to_string(),
                session: view.session_name.to_string(),
                job: v1::JobKind::of_word(view.job.as_str()).into(),
                attempt: view.attempt.number,
                stream: v1::OutputStream::from(stream).into(),
                offset,
                data,
            };
            self.send(Item::Output(chunk)).await?;
            offset = end;
        }
        Ok(true)
    }

    async fn send(&self, item: Item) -> Result<(), Stopped> {
        let response = v1::WatchTaskResponse {
            cursor: self.watch.cursor.encode(),
            item: Some(item),
        };
        self.responses.send(response).await.map_err(|Unsent| Stopped::Gone)
    }
}
