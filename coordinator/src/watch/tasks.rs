//! Watching many tasks: those that a filter takes, each as it is, then each again whenever it
//! changed, and word of those that the filter takes no more. What is sent are states, not events:
//! a watcher that reads slowly gets each task less often, and nothing waits for it.
//!
//! ```text
//!   no cursor, or one that is too old:  Reset, every task ... CaughtUp \
//!   a cursor:                      what changed since ... CaughtUp ----- > what changes ...
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kage_core::id::TaskId;
use kage_proto::convert::task::TaskDetail;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_tasks_response::Item;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::door::outflow::{Outflow, Unsent};
use crate::refusals::read_error;
use crate::store::{TaskFilter, TaskView};
use crate::topics::changes::Position;
use crate::watch::view;

pub(crate) mod cursor;
mod surroundings;

use cursor::TasksCursor;
use surroundings::Surroundings;

/// Tasks read at once.
const PAGE: u32 = 100;
/// The least time between two looks at what changed: a task that works tells of itself many times a
/// second, and is sent that often at most.
const PAUSE: Duration = Duration::from_millis(100);
/// How often agents and what waits are looked at. Neither is told of when it changes.
const LOOK: Duration = Duration::from_secs(1);
/// After so many changes that concern the watcher nothing, it is told how far it is, so that its
/// cursor does not become too old.
const UNTOLD: u64 = 1000;

pub(crate) type Responses = Outflow<v1::WatchTasksResponse>;

/// What is to be watched.
#[derive(Debug)]
pub(crate) struct TasksWatch {
    pub(crate) caller: Principal,
    pub(crate) filter: TaskFilter,
    /// Where the client goes on; `None` = it has nothing.
    pub(crate) cursor: Option<TasksCursor>,
    /// Where cursors of this watch begin.
    pub(crate) begin: TasksCursor,
    pub(crate) agents: bool,
    pub(crate) holds: bool,
}

/// Why a watch ended.
enum Stopped {
    /// Nobody listens any more.
    Gone,
    Failed(ApiError),
}

impl From<ApiError> for Stopped {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// Watches until an error, the end of the coordinator, or the client's leaving.
pub(crate) async fn run(coordinator: Arc<Coordinator>, watch: TasksWatch, responses: &Responses) {
    let watcher = Watcher {
        coordinator: &coordinator,
        surroundings: Surroundings::new(watch.agents, watch.holds),
        cursor: watch.cursor.clone(),
        watch,
        responses,
        known: HashSet::new(),
        waiting: None,
    };
    if let Err(Stopped::Failed(error)) = watcher.run().await {
        responses.fail(error);
    }
}

struct Watcher<'a> {
    coordinator: &'a Coordinator,
    watch: TasksWatch,
    responses: &'a Responses,
    /// Everything before it was sent.
    cursor: Option<TasksCursor>,
    /// Tasks that the client has.
    known: HashSet<TaskId>,
    /// Sent when the next one is there, or with the cursor that is good after it.
    waiting: Option<Item>,
    surroundings: Surroundings,
}

impl Watcher<'_> {
    async fn run(mut self) -> Result<(), Stopped> {
        let changes = &self.coordinator.topics.changes;
        let mut news = changes.subscribe();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut at = self.begin().await?;
        loop {
            tokio::select! {
                // What ends the watch before what it may always have more of.
                biased;
                () = self.responses.closed() => return Err(Stopped::Gone),
                () = self.coordinator.closing.cancelled() => {
                    return Err(Stopped::Failed(ApiError::Unavailable {
                        message: "the coordinator is shutting down".to_owned(),
                        retry: Some(Duration::from_secs(1)),
                    }));
                }
                _ = look.tick(), if self.surroundings.are_wanted() => self.look().await?,
                // The sender lives as long as the coordinator.
                _ = news.changed() => {
                    at = self.follow(at).await?;
                    // An error is what is hoped for: it did not leave.
                    timeout(PAUSE, self.responses.closed()).await.ok();
                }
            }
        }
    }

    /// Sends what the client does not have yet.
    async fn begin(&mut self) -> Result<Position, Stopped> {
        let Some(cursor) = self.cursor.clone() else {
            return self.anew().await;
        };
        let changes = &self.coordinator.topics.changes;
        let since = cursor
            .is_after(&self.watch.begin)
            .then(|| changes.since(cursor.position));
        let Some((now, changed)) = since.flatten() else {
            return self.anew().await;
        };
        for id in changed {
            match self.read(id).await? {
                Some(view) if self.watch.filter.takes_task(&view.task) => self.task(view).await?,
                Some(view) if view.task.spec.project != self.watch.filter.project => {}
                // Whose it was nobody knows; ids of others are not told to who may not see them.
                None if self.watch.caller.bound_to().is_some() => return self.anew().await,
                Some(_) | None => self.gone(id).await?,
            }
        }
        self.every_task(|_, _| None).await?;
        self.caught_up(now).await
    }

    /// Sends everything, whatever the client has.
    async fn anew(&mut self) -> Result<Position, Stopped> {
        self.cursor = None;
        self.known.clear();
        self.push(Item::Reset(v1::WatchReset {})).await?;
        // Before reading: what changes meanwhile is sent again.
        let now = self.coordinator.topics.changes.position();
        self.every_task(|coordinator, view| {
            Some(Item::Task(Box::new(view::task(coordinator, view, TaskDetail::Basic))))
        })
        .await?;
        self.caught_up(now).await
    }

    /// Reads every task that the filter takes, and sends what is made of it.
    async fn every_task(&mut self, made: impl Fn(&Coordinator, TaskView) -> Option<Item>) -> Result<(), Stopped> {
        let mut after = None;
        loop {
            let store = &self.coordinator.store;
            let page = store.tasks(&self.watch.filter, after, PAGE).await;
            let page = page.map_err(read_error)?;
            for view in page.tasks {
                self.known.insert(view.task.id);
                if let Some(item) = made(self.coordinator, view) {
                    self.push(item).await?;
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn caught_up(&mut self, now: Position) -> Result<Position, Stopped> {
        self.push(Item::CaughtUp(v1::WatchCaughtUp {})).await?;
        self.flush(now).await?;
        if self.surroundings.are_wanted() {
            self.look().await?;
        }
        Ok(now)
    }

    /// Sends what changed after a position.
    async fn follow(&mut self, at: Position) -> Result<Position, Stopped> {
        let Some((now, changed)) = self.coordinator.topics.changes.since(at) else {
            return self.anew().await;
        };
        for id in changed {
            match self.read(id).await? {
                Some(view) if self.watch.filter.takes_task(&view.task) => {
                    self.known.insert(id);
                    self.task(view).await?;
                }
                Some(_) | None => {
                    if self.known.remove(&id) {
                        self.gone(id).await?;
                    }
                }
            }
        }
        self.flush(now).await?;
        Ok(now)
    }

    async fn look(&mut self) -> Result<(), Stopped> {
        let watch = &self.watch;
        let project = &watch.filter.project;
        let seen = self
            .surroundings
            .look(self.coordinator, &watch.caller, project, &self.known);
        for item in seen.await? {
            self.send(Some(item)).await?;
        }
        Ok(())
    }

    async fn read(&self, id: TaskId) -> Result<Option<TaskView>, ApiError> {
        self.coordinator.store.task(id).await.map_err(read_error)
    }

    async fn task(&mut self, view: TaskView) -> Result<(), Stopped> {
        let task = view::task(self.coordinator, view, TaskDetail::Basic);
        self.push(Item::Task(Box::new(task))).await
    }

    async fn gone(&mut self, id: TaskId) -> Result<(), Stopped> {
        let task_id = id.to_string();
        self.push(Item::Gone(v1::TaskGone { task_id })).await
    }

    /// Sends an item after the one before it, whose cursor is still the old one.
    async fn push(&mut self, item: Item) -> Result<(), Stopped> {
        match self.waiting.replace(item) {
            Some(before) => self.send(Some(before)).await,
            None => Ok(()),
        }
    }

    /// Everything up to this position is sent with the item that waits.
    async fn flush(&mut self, now: Position) -> Result<(), Stopped> {
        let told = self.cursor.as_ref().map(|cursor| cursor.position);
        let item = self.waiting.take();
        if item.is_none() && told.is_some_and(|told| now - told < UNTOLD) {
            return Ok(());
        }
        self.cursor = Some(self.watch.begin.at(now));
        self.send(item).await
    }

    async fn send(&self, item: Option<Item>) -> Result<(), Stopped> {
        let response = v1::WatchTasksResponse {
            cursor: self.cursor.as_ref().map(TasksCursor::encode).unwrap_or_default(),
            item,
        };
        self.responses.send(response).await.map_err(|Unsent| Stopped::Gone)
    }
}
