//! Output of attempts: append-only files, one per stream, addressed by byte offset. A byte is
//! acknowledged and shown only after fdatasync. `append` decides who may write; this file owns the
//! bytes.
//!
//! Every attempt with a writer has one task that owns its files. The task takes the queued bytes,
//! writes and syncs them in one go, and acknowledges; while the disk works, the next batch gathers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use kage_core::event::OutputStream;
use kage_core::id::{AttemptId, TaskId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ports::Blocking;
use crate::topics::Topics;

mod feed;
mod files;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use feed::{Feed, FeedClosed, OutputAck};
use files::AttemptFiles;
use writer::{Lengths, Writer};

/// Chunks waiting for one attempt's disk. A sender that finds the queue full waits, and with it the
/// agent's outbox: nothing is dropped.
const QUEUED_CHUNKS: usize = 64;

struct Slot {
    feed: Weak<Feed>,
    durable: Arc<Lengths>,
    closed: CancellationToken,
}

pub(crate) struct Outputs {
    root: PathBuf,
    topics: Arc<Topics>,
    open: Arc<Mutex<HashMap<AttemptId, Slot>>>,
    writers: TaskTracker,
    blocking: Blocking,
}

impl Outputs {
    /// The output under this directory, which exists.
    pub(crate) fn new(root: PathBuf, topics: Arc<Topics>, blocking: Blocking) -> Self {
        Self {
            root,
            topics,
            open: Arc::default(),
            writers: TaskTracker::new(),
            blocking,
        }
    }

    /// Opens an attempt's files for appending, or joins the writers that have them open.
    pub(crate) async fn feed(&self, attempt: AttemptId, task: TaskId) -> io::Result<Arc<Feed>> {
        loop {
            let closed = match self.lock().get(&attempt) {
                None => None,
                Some(slot) => match slot.feed.upgrade() {
                    Some(feed) => return Ok(feed),
                    None => Some(slot.closed.clone()),
                },
            };
            if let Some(closed) = closed {
                // The last writer still has bytes to write; two writers would mix them.
                closed.cancelled().await;
                continue;
            }
            let folder = self.folder(attempt);
            let files = self.blocking.run(move || AttemptFiles::open(folder)).await??;
            if let Some(feed) = self.start(attempt, task, files) {
                return Ok(feed);
            }
        }
    }

    /// Waits until everything appended to the attempt so far is durable.
    pub(crate) async fn settle(&self, attempt: AttemptId) -> Result<(), FeedClosed> {
        let (feed, closed) = match self.lock().get(&attempt) {
            None => return Ok(()),
            Some(slot) => (slot.feed.upgrade(), slot.closed.clone()),
        };
        match feed {
            Some(feed) => feed.settle().await,
            None => {
                closed.cancelled().await;
                Ok(())
            }
        }
    }

    /// `None` when another call was quicker.
    fn start(&self, attempt: AttemptId, task: TaskId, files: AttemptFiles) -> Option<Arc<Feed>> {
        let mut open = self.lock();
        if open.contains_key(&attempt) {
            return None;
        }
        let durable = Arc::new(Lengths::default());
        for stream in OutputStream::ALL {
            durable.of(stream).store(files.length(stream), Ordering::Release);
        }
        let (queue, messages) = mpsc::channel(QUEUED_CHUNKS);
        let feed = Arc::new(Feed { queue });
        let closed = CancellationToken::new();
        open.insert(
            attempt,
            Slot {
                feed: Arc::downgrade(&feed),
                durable: Arc::clone(&durable),
                closed: closed.clone(),
            },
        );
        drop(open);
        let writer = Writer {
            attempt,
            task,
            files,
            durable,
            topics: Arc::clone(&self.topics),
            blocking: self.blocking.clone(),
        };
        let slots = Arc::clone(&self.open);
        self.writers.spawn(async move {
            writer.run(messages).await;
            slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
            closed.cancel();
        });
        Some(feed)
    }

    /// How much of a stream is durable.
    pub(crate) async fn length(&self, attempt: AttemptId, stream: OutputStream) -> io::Result<u64> {
        let durable = self.lock().get(&attempt).map(|slot| Arc::clone(&slot.durable));
        if let Some(durable) = durable {
            return Ok(durable.of(stream).load(Ordering::Acquire));
        }
        let path = self.path(attempt, stream);
        match self.blocking.run(|| std::fs::metadata(path)).await? {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads durable bytes from `offset` on, `most` at most. Empty when there are none.
    pub(crate) async fn read(
        &self,
        attempt: AttemptId,
        stream: OutputStream,
        offset: u64,
        most: usize,
    ) -> io::Result<Bytes> {
        let length = self.length(attempt, stream).await?;
        let take = usize::try_from(length.saturating_sub(offset)).map_or(most, |left| left.min(most));
        if take == 0 {
            return Ok(Bytes::new());
        }
        let path = self.path(attempt, stream);
        let reading = self.blocking.run(move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; take];
            file.read_exact(&mut bytes)?;
            Ok(Bytes::from(bytes))
        });
        reading.await?
    }

    /// The attempts that have output, each with its bytes.
    pub(crate) async fn list(&self) -> io::Result<Vec<(AttemptId, u64)>> {
        let root = self.root.clone();
        let listing = self.blocking.run(move || {
            let mut listed = Vec::new();
            for entry in std::fs::read_dir(&root)? {
                let folder = entry?;
                let Some(attempt) = folder.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                let mut bytes = 0;
                for file in std::fs::read_dir(folder.path())? {
                    bytes += file?.metadata()?.len();
                }
                listed.push((attempt, bytes));
            }
            Ok(listed)
        });
        listing.await?
    }

    /// Removes the output of attempts that are not stored any more.
    pub(crate) async fn remove(&self, attempts: Vec<AttemptId>) -> io::Result<()> {
        let folders: Vec<PathBuf> = attempts.into_iter().map(|attempt| self.folder(attempt)).collect();
        let removing = self.blocking.run(move || {
            for folder in folders {
                match std::fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        });
        removing.await?
    }

    /// Moves the output of attempts that are not stored to another place.
    pub(crate) async fn put_aside(&self, attempts: Vec<(AttemptId, PathBuf)>) -> io::Result<()> {
        let attempts = attempts.into_iter();
        let moves: Vec<_> = attempts.map(|(attempt, to)| (self.folder(attempt), to)).collect();
        let moving = self.blocking.run(move || {
            for (from, to) in moves {
                if let Some(folder) = to.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                match std::fs::rename(&from, &to) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        });
        moving.await?
    }

    /// Waits until every writer has written its queue. Their senders are gone by then.
    pub(crate) async fn close(&self) {
        self.writers.close();
        self.writers.wait().await;
    }

    fn folder(&self, attempt: AttemptId) -> PathBuf {
        self.root.join(attempt.to_string())
    }

    fn path(&self, attempt: AttemptId, stream: OutputStream) -> PathBuf {
        self.folder(attempt).join(stream.as_str())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, Slot>> {
        // Entries are inserted and removed whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outputs")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}
