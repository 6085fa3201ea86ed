//! The task that owns an attempt's files: it takes what is queued, writes and syncs it in one
//! go, and acknowledges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kage_core::event::OutputStream;
use kage_core::id::{AttemptId, TaskId};
use tokio::sync::{mpsc, oneshot};

use super::feed::{Chunk, Message, OutputAck};
use super::files::Files;
use crate::ports::Blocking;
use crate::telemetry;
use crate::topics::Topics;

/// A batch this large is written without waiting for more.
const BATCH_BYTES: usize = 256 << 10;

/// How long a small batch waits for company, to spare the disk a sync per line.
const LINGER: Duration = Duration::from_millis(5);

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
    pub(super) files: Files,
    pub(super) durable: Arc<Lengths>,
    pub(super) topics: Arc<Topics>,
    pub(super) blocking: Blocking,
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
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
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
        let blocking = self.blocking.clone();
        let writing = blocking.run(move || {
            let result = self.files.write(&chunks);
            (self, result)
        });
        let written = writing.await.and_then(|(writer, result)| result.map(|()| writer));
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
