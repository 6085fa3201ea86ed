//! The outbox: the data that attempts produced and the coordinator has not acknowledged. Events are
//! rows, numbered here and committed in groups; output is one append-only file per attempt and
//! stream, of which the outbox knows only how far it was acknowledged.
//!
//! It does not send: `sender` learns of every change, in order, and reports back what was settled.
//! Settlements are saved with the next commit; losing one only means that something is sent twice,
//! and the coordinator recognises it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kage_core::event::{EventBody, OutputStream};
use kage_core::id::AttemptId;
use kage_core::time::Timestamp;
use kage_proto::convert::agent::AttemptKey;
use kage_proto::convert::time::stamp;
use kage_proto::v1;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};

use crate::delivery::hindrance::Hindrances;
use crate::ports::Blocking;

mod rows;
mod writer;

pub use rows::OutboxError;

/// Commands waiting for the writer. When full, posting waits.
const COMMANDS: usize = 1024;
/// Changes waiting for delivery. When full, the writer and the recorders wait.
const CHANGES: usize = 1024;

/// A committed event that is not acknowledged yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// The event as it is sent.
    pub(crate) event: v1::Event,
    /// The space for events that it occupies.
    pub(crate) size: u32,
}

impl Stored {
    pub(crate) fn new(event: v1::Event) -> Self {
        let size = size_of(&event);
        Self { event, size }
    }
}

fn size_of(event: &v1::Event) -> u32 {
    // The number is unknown until the writer assigns it; it takes ten bytes at most.
    u32::try_from(event.encoded_len())
        .unwrap_or(u32::MAX)
        .saturating_add(10)
}

/// A change that delivery needs to know. The channel keeps their order.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are events")]
pub(crate) enum OutboxChange {
    /// The attempt may produce data from now on.
    Opened(AttemptKey),
    Committed(AttemptId, Stored),
    /// An output file has this length now, of which the last `added` bytes are new.
    Grew {
        attempt: AttemptId,
        stream: OutputStream,
        length: u64,
        added: u64,
    },
}

/// The undelivered data of an attempt of an earlier start of this agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Leftover {
    pub(crate) key: AttemptKey,
    pub(crate) events: Vec<Stored>,
    /// Per stream: length and acknowledged offset.
    pub(crate) output: Vec<(OutputStream, u64, u64)>,
}

/// What the coordinator acknowledged of one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settlement {
    pub(crate) acked_seq: u64,
    pub(crate) acked_output: Vec<(OutputStream, u64)>,
    /// Everything was acknowledged or refused.
    pub(crate) forget: bool,
}

/// Settlements that the writer has not saved yet; at most one per attempt.
#[derive(Debug, Default)]
pub(crate) struct Settled(Mutex<HashMap<AttemptId, Settlement>>);

impl Settled {
    /// Events up to this number are durable at the coordinator.
    pub(crate) fn events(&self, attempt: AttemptId, seq: u64) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(attempt).or_default().acked_seq = seq;
    }

    /// Output before this offset is durable at the coordinator.
    pub(crate) fn output(&self, attempt: AttemptId, stream: OutputStream, offset: u64) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let output = &mut map.entry(attempt).or_default().acked_output;
        match output.iter_mut().find(|(s, _)| *s == stream) {
            Some(acked) => acked.1 = offset,
            None => output.push((stream, offset)),
        }
    }

    /// Nothing of this attempt is to be delivered any more.
    pub(crate) fn forget(&self, attempt: AttemptId) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(attempt).or_default().forget = true;
    }

    fn take(&self) -> HashMap<AttemptId, Settlement> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[expect(clippy::large_enum_variant, reason = "nearly all of them are events")]
enum OutboxCommand {
    Open(AttemptKey),
    Post {
        attempt: AttemptId,
        event: v1::Event,
        size: u32,
        last: bool,
    },
}

/// The space for undelivered data. Writers that find no space wait for an acknowledgement.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    bytes: Arc<Semaphore>,
    limit: u32,
}

impl Space {
    pub(crate) fn new(limit: u64) -> Self {
        // A semaphore hands out at most 2^32 - 1 at a time, which no single batch needs.
        let bytes = usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            limit: u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }

    /// The permits for `size` bytes: no more than there are, so that a large item fits once
    /// everything else is delivered.
    fn cost(&self, size: u32) -> u32 {
        size.min(self.limit)
    }

    /// Takes space if there is enough.
    pub(crate) fn try_take(&self, size: u32) -> bool {
        self.bytes
            .try_acquire_many(self.cost(size))
            .map(tokio::sync::SemaphorePermit::forget)
            .is_ok()
    }

    /// Waits for space. Never fails, because the semaphore is never closed.
    pub(crate) async fn take(&self, size: u32) {
        if let Ok(permit) = self.bytes.acquire_many(self.cost(size)).await {
            permit.forget();
        }
    }

    /// Waits until nothing takes space any more.
    async fn emptied(&self) {
        drop(self.bytes.acquire_many(self.limit).await);
    }

    /// Returns the space for this size.
    pub(crate) fn give(&self, size: u32) {
        self.bytes.add_permits(self.cost(size) as usize);
    }

    /// Returns many bytes that were taken in pieces.
    pub(crate) fn give_bytes(&self, bytes: u64) {
        self.bytes.add_permits(usize::try_from(bytes).unwrap_or(0));
    }
}

/// The outbox accepts nothing any more: the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is closed")]
pub struct OutboxClosed;

/// Where attempts put their events and output. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    commands: mpsc::Sender<OutboxCommand>,
    changes: mpsc::Sender<Vec<OutboxChange>>,
    events: Space,
    output: Space,
    hindrances: Hindrances,
}

/// The thread or task that writes the outbox. It ends when every [`Outbox`] is dropped, after a
/// last commit.
pub(crate) enum OutboxWriter {
    /// Waits for the disk on its own thread.
    Thread(std::thread::JoinHandle<()>),
    /// For disks that need no waiting.
    Task(tokio::task::JoinHandle<()>),
}

impl OutboxWriter {
    pub(crate) async fn join(self) {
        let joined = match self {
            Self::Thread(thread) => {
                let joined = tokio::task::spawn_blocking(move || thread.join().is_ok()).await;
                joined.unwrap_or(false)
            }
            Self::Task(task) => task.await.is_ok(),
        };
        if !joined {
            tracing::error!("the outbox's writer panicked");
        }
    }
}

/// An opened outbox: the handle, its writer, and delivery's side.
pub(crate) struct Opened {
    pub(crate) outbox: Outbox,
    pub(crate) writer: OutboxWriter,
    pub(crate) leftovers: Vec<Leftover>,
    pub(crate) changes: mpsc::Receiver<Vec<OutboxChange>>,
    pub(crate) settled: Arc<Settled>,
}

/// Opens the outbox and reads what an earlier start left in it. Blocks, in a runtime. Refuses a
/// database that is newer than this build.
pub(crate) fn open(
    database: &Path,
    output_dir: &Path,
    event_bytes: u32,
    output_bytes: u64,
    blocking: &Blocking,
) -> Result<Opened, OutboxError> {
    let rows = rows::Rows::open(database)?;
    let leftovers = rows.leftovers(output_dir)?;
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (change_sender, changes) = mpsc::channel(CHANGES);
    let settled = Arc::new(Settled::default());
    let events = Space::new(event_bytes.into());
    let hindrances = Hindrances::default();
    let writer = writer::Writer {
        rows,
        settled: Arc::clone(&settled),
        changes: change_sender.clone(),
        events: events.clone(),
        hindrances: hindrances.clone(),
        attempts: HashMap::new(),
        blocking: blocking.clone(),
    };
    let runtime = tokio::runtime::Handle::current();
    let writer = match blocking {
        Blocking::Threads => std::thread::Builder::new()
            .name("outbox".to_owned())
            .spawn(move || runtime.block_on(writer.run(receiver)))
            .map(OutboxWriter::Thread)
            .map_err(|source| OutboxError::Thread { source })?,
        Blocking::InPlace(_) => OutboxWriter::Task(runtime.spawn(writer.run(receiver))),
    };
    Ok(Opened {
        outbox: Outbox {
            commands,
            changes: change_sender,
            events,
            output: Space::new(output_bytes),
            hindrances,
        },
        writer,
        leftovers,
        changes,
        settled,
    })
}

impl Outbox {
    pub(crate) const fn output_space(&self) -> &Space {
        &self.output
    }

    /// Conditions that keep data from being written now.
    pub(crate) const fn hindrances(&self) -> &Hindrances {
        &self.hindrances
    }

    pub(crate) const fn event_space(&self) -> &Space {
        &self.events
    }

    /// Waits until every event is acknowledged or given up, also those that are on their way to the disk.
    pub(crate) async fn told(&self) {
        self.events.emptied().await;
    }

    /// Allows an attempt to produce data.
    pub(crate) async fn open_attempt(&self, key: AttemptKey) -> Result<(), OutboxClosed> {
        self.changes
            .send(vec![OutboxChange::Opened(key.clone())])
            .await
            .map_err(|_| OutboxClosed)?;
        self.commands
            .send(OutboxCommand::Open(key))
            .await
            .map_err(|_| OutboxClosed)
    }

    /// Adds an event; its number is assigned in the order of calls. Waits while there is no space.
    /// Events after `Finished` or of a forgotten attempt are dropped.
    pub(crate) async fn post(&self, attempt: AttemptId, at: Timestamp, body: EventBody) -> Result<(), OutboxClosed> {
        let last = body.is_last();
        let event = v1::Event {
            seq: 0,
            at: Some(stamp(at)),
            body: Some(body.into()),
        };
        let size = size_of(&event);
        // The place comes first: a call that is dropped while it waits has taken no space.
        let place = self.commands.reserve().await.map_err(|_| OutboxClosed)?;
        self.events.take(size).await;
        place.send(OutboxCommand::Post {
            attempt,
            event,
            size,
            last,
        });
        Ok(())
    }

    /// Records that an output file has this length now, of which `added` bytes are new.
    pub(crate) async fn grew(
        &self,
        attempt: AttemptId,
        stream: OutputStream,
        length: u64,
        added: u64,
    ) -> Result<(), OutboxClosed> {
        let grew = OutboxChange::Grew {
            attempt,
            stream,
            length,
            added,
        };
        self.changes.send(vec![grew]).await.map_err(|_| OutboxClosed)
    }
}

#[cfg(test)]
mod pinned;
#[cfg(test)]
mod tests;
