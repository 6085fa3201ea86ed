//! The task that owns an attempt's files: it takes the queued bytes, writes and syncs them in one
//! go, and acknowledges. The first bytes after idleness are written at once; bytes that come during
//! a write form the next batch, so that many small pieces cost the disk one sync.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::event::OutputStream;
use kage_core::id::{AttemptId, TaskId};
use tokio::sync::{mpsc, oneshot};

use super::feed::{Chunk, FeedMessage, OutputAck};
use super::files::AttemptFiles;
use crate::ports::Blocking;
use crate::telemetry;
use crate::topics::Topics;

/// The most bytes of one batch, and the most chunks. While a full batch waits for its turn nothing
/// more is taken, and senders wait.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_CHUNKS: usize = 4096;

/// How much of each stream is durable.
#[derive(Debug, Default)]
pub(super) struct Lengths([AtomicU64; OutputStream::ALL.len()]);

impl Lengths {
    pub(super) fn of(&self, stream: OutputStream) -> &AtomicU64 {
        let [stdout, stderr, transcript] = &self.0;
        match stream {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
            OutputStream::Transcript => transcript,
        }
    }
}

pub(super) struct Writer {
    pub(super) attempt: AttemptId,
    pub(super) task: TaskId,
    pub(super) files: AttemptFiles,
    pub(super) durable: Arc<Lengths>,
    pub(super) topics: Arc<Topics>,
    pub(super) blocking: Blocking,
}

/// Whether a write is in progress.
enum Disk {
    Idle(Writer),
    Busy(BoxFuture<'static, Result<Writer, Arc<io::Error>>>),
}

enum WriterInput {
    Message(Option<FeedMessage>),
    Written(Result<Writer, Arc<io::Error>>),
}

#[derive(Default)]
struct Batch {
    chunks: Vec<Chunk>,
    bytes: usize,
    acks: Vec<(OutputStream, mpsc::Sender<OutputAck>)>,
    settled: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn add(&mut self, message: FeedMessage) {
        match message {
            FeedMessage::Chunk(chunk, acks) => {
                self.bytes += chunk.data.len();
                // One acknowledgement per stream and sender is enough, because it has the length.
                let same = |(stream, known): &(OutputStream, mpsc::Sender<OutputAck>)| {
                    *stream == chunk.stream && known.same_channel(&acks)
                };
                if !self.acks.iter().any(same) {
                    self.acks.push((chunk.stream, acks));
                }
                self.chunks.push(chunk);
            }
            FeedMessage::Settle(done) => self.settled.push(done),
        }
    }

    const fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.settled.is_empty()
    }

    const fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.chunks.len() >= BATCH_CHUNKS || !self.settled.is_empty()
    }

    /// Reports to its senders that none of it is durable.
    async fn fail(self, attempt: AttemptId, error: &Arc<io::Error>) {
        for (stream, sender) in self.acks {
            let length = Err(Arc::clone(error));
            let ack = OutputAck {
                attempt,
                stream,
                length,
            };
            answer(&sender, ack).await;
        }
    }
}

impl Writer {
    /// Writes until every sender is gone, or the disk fails: then the next writer opens the files
    /// again.
    pub(super) async fn run(self, mut messages: mpsc::Receiver<FeedMessage>) {
        let attempt = self.attempt;
        let mut disk = Disk::Idle(self);
        // Gathers while the disk is busy.
        let mut next = Batch::default();
        let mut open = true;
        loop {
            let input = match &mut disk {
                Disk::Idle(_) => WriterInput::Message(messages.recv().await),
                Disk::Busy(writing) => tokio::select! {
                    biased;
                    written = writing => WriterInput::Written(written),
                    message = messages.recv(), if open && !next.is_full() => WriterInput::Message(message),
                },
            };
            match input {
                WriterInput::Message(Some(message)) => next.add(message),
                WriterInput::Message(None) => open = false,
                WriterInput::Written(Ok(writer)) => disk = Disk::Idle(writer),
                WriterInput::Written(Err(error)) => {
                    messages.close();
                    while let Some(message) = messages.recv().await {
                        next.add(message);
                    }
                    return next.fail(attempt, &error).await;
                }
            }
            while !next.is_full()
                && let Ok(message) = messages.try_recv()
            {
                next.add(message);
            }
            disk = match disk {
                Disk::Idle(writer) if !next.is_empty() => Disk::Busy(writer.write(std::mem::take(&mut next)).boxed()),
                Disk::Idle(_) if !open => return,
                disk @ (Disk::Idle(_) | Disk::Busy(_)) => disk,
            };
        }
    }

    async fn write(mut self, mut batch: Batch) -> Result<Self, Arc<io::Error>> {
        let attempt = self.attempt;
        let blocking = self.blocking.clone();
        let chunks = std::mem::take(&mut batch.chunks);
        let writing = blocking.run(move || {
            let result = self.files.write(&chunks);
            (self, result)
        });
        let written = writing.await.and_then(|(writer, result)| result.map(|()| writer));
        let writer = match written {
            Ok(writer) => writer,
            Err(error) => {
                tracing::error!(%attempt, %error, "cannot write output");
                let error = Arc::new(error);
                batch.fail(attempt, &error).await;
                return Err(error);
            }
        };
        for stream in OutputStream::ALL {
            let length = writer.files.length(stream);
            writer.durable.of(stream).store(length, Ordering::Release);
        }
        telemetry::output_bytes(batch.bytes);
        writer.topics.output_grew(writer.task);
        for (stream, sender) in batch.acks {
            let length = Ok(writer.files.length(stream));
            let ack = OutputAck {
                attempt,
                stream,
                length,
            };
            answer(&sender, ack).await;
        }
        for done in batch.settled {
            // The receiver may be gone.
            done.send(()).ok();
        }
        Ok(writer)
    }
}

/// Waits while the sender does not read its acknowledgements, which stops only that sender's
/// attempts. A sender that is gone asks again when it is back.
async fn answer(sender: &mpsc::Sender<OutputAck>, ack: OutputAck) {
    sender.send(ack).await.ok();
}
