//! Output of attempts: append-only files, one per stream, addressed by byte offset. A
//! byte is acknowledged and shown only after fdatasync. Who may write is decided by
//! `append`; this file owns the bytes.
//!
//! Every attempt that is written to has one task that owns its files. It takes what is
//! queued, writes and syncs it in one go, and acknowledges; while the disk works, the
//! next batch gathers.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use kage_core::event::OutputStream;
use kage_core::id::{AttemptId, TaskId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry;
use crate::topics::Topics;

/// Chunks that wait for one attempt's disk. A sender that finds the queue full waits,
/// and with it the agent's outbox: nothing is dropped.
const QUEUED_CHUNKS: usize = 64;
/// A batch this large is written without waiting for more.
const BATCH_BYTES: usize = 256 << 10;
/// How long a small batch waits for company, to spare the disk a sync per line.
const LINGER: Duration = Duration::from_millis(5);

/// The durable length of a stream, or why it could not grow.
#[derive(Debug, Clone)]
pub(crate) struct OutputAck {
    pub(crate) attempt: AttemptId,
    pub(crate) stream: OutputStream,
    pub(crate) length: Result<u64, Arc<io::Error>>,
}

struct Chunk {
    stream: OutputStream,
    offset: u64,
    data: Bytes,
}

enum Message {
    Chunk(Chunk, mpsc::Sender<OutputAck>),
    /// Answered when everything queued before is durable.
    Settle(oneshot::Sender<()>),
}

/// The right to append to an attempt's files, shared by all who hold it.
#[derive(Debug)]
pub(crate) struct Feed {
    queue: mpsc::Sender<Message>,
}

#[derive(Debug, Default)]
struct Lengths([AtomicU64; OutputStream::ALL.len()]);

impl Lengths {
    fn of(&self, stream: OutputStream) -> &AtomicU64 {
        let [stdout, stderr, transcript] = &self.0;
        match stream {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
            OutputStream::Transcript => transcript,
        }
    }
}

/// The owner of an attempt's files ended; it ends only after a disk error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt's output files were closed after an error")]
pub(crate) struct FeedClosed;

impl Feed {
    /// Queues bytes. The acknowledgement arrives on `acks` and says how long the stream
    /// is then: bytes that were there count again, bytes after a gap do not.
    pub(crate) async fn append(
        &self,
        stream: OutputStream,
        offset: u64,
        data: Bytes,
        acks: &mpsc::Sender<OutputAck>,
    ) -> Result<(), FeedClosed> {
        let chunk = Chunk { stream, offset, data };
        self.queue
            .send(Message::Chunk(chunk, acks.clone()))
            .await
            .map_err(|_| FeedClosed)
    }

    /// Waits until everything appended before is durable.
    async fn settle(&self) -> Result<(), FeedClosed> {
        let (done, wait) = oneshot::channel();
        self.queue.send(Message::Settle(done)).await.map_err(|_| FeedClosed)?;
        wait.await.map_err(|_| FeedClosed)
    }
}

struct Slot {
    feed: Weak<Feed>,
    durable: Arc<Lengths>,
    closed: CancellationToken,
}

/// The output of every attempt.
pub(crate) struct Outputs {
    root: PathBuf,
    topics: Arc<Topics>,
    open: Arc<Mutex<HashMap<AttemptId, Slot>>>,
    writers: TaskTracker,
}

impl Outputs {
    /// Output under this directory, which exists.
    pub(crate) fn new(root: PathBuf, topics: Arc<Topics>) -> Self {
        Self {
            root,
            topics,
            open: Arc::default(),
            writers: TaskTracker::new(),
        }
    }

    /// Opens an attempt's files for appending, or joins those who have them open.
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
                // The last writer still has bytes in hand; two writers would mix them.
                closed.cancelled().await;
                continue;
            }
            let folder = self.folder(attempt);
            let files = tokio::task::spawn_blocking(move || Files::open(folder))
                .await
                .map_err(io::Error::other)??;
            if let Some(feed) = self.start(attempt, task, files) {
                return Ok(feed);
            }
        }
    }

    /// Waits until everything that anyone appended to the attempt so far is durable.
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

    /// `None` when somebody else was quicker.
    fn start(&self, attempt: AttemptId, task: TaskId, files: Files) -> Option<Arc<Feed>> {
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
        match tokio::fs::metadata(self.path(attempt, stream)).await {
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
        tokio::task::spawn_blocking(move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; take];
            file.read_exact(&mut bytes)?;
            Ok(Bytes::from(bytes))
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Waits until every writer has written what it has. Their senders are gone by then.
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

/// The three files of an attempt, made when the first byte comes.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    streams: [Stream; OutputStream::ALL.len()],
}

#[derive(Debug)]
struct Stream {
    kind: OutputStream,
    file: Option<File>,
    length: u64,
    dirty: bool,
}

impl Files {
    /// Bytes that an earlier process wrote and did not sync are synced before they count.
    fn open(folder: PathBuf) -> io::Result<Self> {
        let open = |kind: OutputStream| -> io::Result<Stream> {
            let found = OpenOptions::new().append(true).open(folder.join(kind.as_str()));
            let (file, length) = match found {
                Ok(file) => {
                    file.sync_data()?;
                    let length = file.metadata()?.len();
                    (Some(file), length)
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => (None, 0),
                Err(error) => return Err(error),
            };
            Ok(Stream {
                kind,
                file,
                length,
                dirty: false,
            })
        };
        let [a, b, c] = OutputStream::ALL;
        let streams = [open(a)?, open(b)?, open(c)?];
        Ok(Self { folder, streams })
    }

    fn stream(&mut self, kind: OutputStream) -> &mut Stream {
        let [stdout, stderr, transcript] = &mut self.streams;
        match kind {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
            OutputStream::Transcript => transcript,
        }
    }

    fn length(&self, kind: OutputStream) -> u64 {
        self.streams.iter().find(|s| s.kind == kind).map_or(0, |s| s.length)
    }

    fn write(&mut self, chunks: &[Chunk]) -> io::Result<()> {
        for chunk in chunks {
            let folder = self.folder.clone();
            let stream = self.stream(chunk.stream);
            let Some(known) = stream.length.checked_sub(chunk.offset) else {
                // A gap: the acknowledgement tells the sender where to go on.
                continue;
            };
            let fresh = usize::try_from(known).ok().and_then(|known| chunk.data.get(known..));
            let Some(fresh) = fresh.filter(|fresh| !fresh.is_empty()) else {
                continue;
            };
            let file = match &mut stream.file {
                Some(file) => file,
                file @ None => file.insert(create(&folder, stream.kind)?),
            };
            file.write_all(fresh)?;
            stream.length += fresh.len() as u64;
            stream.dirty = true;
        }
        for stream in &mut self.streams {
            if let (true, Some(file)) = (stream.dirty, &stream.file) {
                file.sync_data()?;
                stream.dirty = false;
            }
        }
        Ok(())
    }
}

/// A new file whose name survives a crash as its bytes do.
fn create(folder: &Path, kind: OutputStream) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(folder.join(kind.as_str()))?;
    File::open(folder)?.sync_all()?;
    if let Some(parent) = folder.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(file)
}

struct Writer {
    attempt: AttemptId,
    task: TaskId,
    files: Files,
    durable: Arc<Lengths>,
    topics: Arc<Topics>,
}

#[derive(Default)]
struct Batch {
    chunks: Vec<Chunk>,
    bytes: usize,
    acks: Vec<(OutputStream, mpsc::Sender<OutputAck>)>,
    settled: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn add(&mut self, message: Message) {
        match message {
            Message::Chunk(chunk, acks) => {
                self.bytes += chunk.data.len();
                // One acknowledgement per stream and sender is enough: it says the length.
                let same = |(stream, known): &(OutputStream, mpsc::Sender<OutputAck>)| {
                    *stream == chunk.stream && known.same_channel(&acks)
                };
                if !self.acks.iter().any(same) {
                    self.acks.push((chunk.stream, acks));
                }
                self.chunks.push(chunk);
            }
            Message::Settle(done) => self.settled.push(done),
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || !self.settled.is_empty()
    }
}

impl Writer {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(first) = messages.recv().await {
            let mut batch = Batch::default();
            batch.add(first);
            let deadline = tokio::time::Instant::now() + LINGER;
            while !batch.is_full() {
                match tokio::time::timeout_at(deadline, messages.recv()).await {
                    Ok(Some(message)) => batch.add(message),
                    Ok(None) | Err(_) => break,
                }
            }
            match self.write(batch).await {
                Some(writer) => self = writer,
                None => return,
            }
        }
    }

    /// `None` after an error: the files are opened anew by whoever writes next.
    async fn write(mut self, batch: Batch) -> Option<Self> {
        let Batch {
            chunks,
            bytes,
            acks,
            settled,
        } = batch;
        let attempt = self.attempt;
        let written = tokio::task::spawn_blocking(move || {
            let result = self.files.write(&chunks);
            (self, result)
        })
        .await
        .map_err(io::Error::other)
        .and_then(|(writer, result)| result.map(|()| writer));
        match written {
            Ok(writer) => {
                for stream in OutputStream::ALL {
                    let length = writer.files.length(stream);
                    writer.durable.of(stream).store(length, Ordering::Release);
                }
                telemetry::output_bytes(bytes);
                writer.topics.output_grew(writer.task);
                for (stream, sender) in acks {
                    let length = Ok(writer.files.length(stream));
                    answer(
                        &sender,
                        OutputAck {
                            attempt,
                            stream,
                            length,
                        },
                    )
                    .await;
                }
                for done in settled {
                    // Whoever asked may be gone.
                    done.send(()).ok();
                }
                Some(writer)
            }
            Err(error) => {
                tracing::error!(%attempt, %error, "cannot write output");
                let error = Arc::new(error);
                for (stream, sender) in acks {
                    let length = Err(Arc::clone(&error));
                    answer(
                        &sender,
                        OutputAck {
                            attempt,
                            stream,
                            length,
                        },
                    )
                    .await;
                }
                None
            }
        }
    }
}

/// Waits while the sender does not take its acknowledgements, which stops only that
/// sender's attempts. A sender that is gone asks again when it is back.
async fn answer(sender: &mpsc::Sender<OutputAck>, ack: OutputAck) {
    sender.send(ack).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        outputs: Outputs,
        acks: mpsc::Sender<OutputAck>,
        received: mpsc::Receiver<OutputAck>,
    }

    const ATTEMPT: AttemptId = AttemptId::from_random(1);
    const TASK: TaskId = TaskId::from_random(2);

    fn fixture(root: &Path) -> Fixture {
        let (acks, received) = mpsc::channel(64);
        Fixture {
            outputs: Outputs::new(root.to_owned(), Arc::new(Topics::default())),
            acks,
            received,
        }
    }

    impl Fixture {
        async fn append(&mut self, feed: &Feed, offset: u64, data: &'static [u8]) -> u64 {
            let stream = OutputStream::Stdout;
            feed.append(stream, offset, Bytes::from_static(data), &self.acks)
                .await
                .unwrap();
            self.received.recv().await.unwrap().length.unwrap()
        }
    }

    #[tokio::test]
    async fn appends_by_offset() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = fixture(dir.path());
        let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
        assert_eq!(f.append(&feed, 0, b"hello ").await, 6);
        assert_eq!(f.append(&feed, 0, b"hello ").await, 6, "a repeat counts again");
        assert_eq!(f.append(&feed, 3, b"lo world").await, 11, "an overlap adds its end");
        assert_eq!(f.append(&feed, 20, b"!").await, 11, "a gap adds nothing");
        let read = f.outputs.read(ATTEMPT, OutputStream::Stdout, 6, 100).await.unwrap();
        assert_eq!(&read[..], b"world");
        let none = f.outputs.read(ATTEMPT, OutputStream::Stderr, 0, 100).await.unwrap();
        assert!(none.is_empty());
    }

    #[tokio::test]
    async fn goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = fixture(dir.path());
        let feed = first.outputs.feed(ATTEMPT, TASK).await.unwrap();
        first.append(&feed, 0, b"abc").await;
        drop(feed);
        first.outputs.close().await;
        let mut second = fixture(dir.path());
        assert_eq!(second.outputs.length(ATTEMPT, OutputStream::Stdout).await.unwrap(), 3);
        let feed = second.outputs.feed(ATTEMPT, TASK).await.unwrap();
        assert_eq!(second.append(&feed, 3, b"def").await, 6);
    }

    #[tokio::test]
    async fn a_new_writer_waits_for_the_bytes_of_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = fixture(dir.path());
        for round in 0..50_u64 {
            let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
            let data = Bytes::from_static(b"0123456789");
            feed.append(OutputStream::Stdout, round * 10, data, &f.acks)
                .await
                .unwrap();
        }
        let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
        feed.settle().await.unwrap();
        assert_eq!(f.outputs.length(ATTEMPT, OutputStream::Stdout).await.unwrap(), 500);
        f.received.close();
    }

    #[tokio::test]
    async fn an_error_is_told_and_does_not_stick() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = fixture(dir.path());
        let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
        // A file where the folder belongs.
        let folder = dir.path().join(ATTEMPT.to_string());
        std::fs::write(&folder, b"").unwrap();
        feed.append(OutputStream::Stdout, 0, Bytes::from_static(b"x"), &f.acks)
            .await
            .unwrap();
        assert!(f.received.recv().await.unwrap().length.is_err());
        assert_eq!(feed.settle().await, Err(FeedClosed));
        std::fs::remove_file(&folder).unwrap();
        drop(feed);
        let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
        assert_eq!(f.append(&feed, 0, b"x").await, 1);
    }
}
