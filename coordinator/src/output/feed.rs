//! The right to append to an attempt's files, and the queue of their owner.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kage_core::event::OutputStream;
use kage_core::id::AttemptId;
use tokio::sync::{mpsc, oneshot};

/// The durable length of a stream, or why it could not grow.
#[derive(Debug, Clone)]
pub(crate) struct OutputAck {
    pub(crate) attempt: AttemptId,
    pub(crate) stream: OutputStream,
    pub(crate) length: Result<u64, Arc<io::Error>>,
}

pub(super) struct Chunk {
    pub(super) stream: OutputStream,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

pub(super) enum FeedMessage {
    Chunk(Chunk, mpsc::Sender<OutputAck>),
    /// Answered when everything queued before is durable.
    Settle(oneshot::Sender<()>),
}

/// The right to append to an attempt's files. Clones share it.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(super) queue: mpsc::Sender<FeedMessage>,
}

/// The owner of an attempt's files ended; it ends only after a disk error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt's output files were closed after an error")]
pub(crate) struct FeedClosed;

impl Feed {
    /// Queues bytes. The acknowledgement arrives on `acks` with the new length of the stream: bytes
    /// that were there count again, bytes after a gap do not.
    pub(crate) async fn append(
        &self,
        stream: OutputStream,
        offset: u64,
        data: Bytes,
        acks: &mpsc::Sender<OutputAck>,
    ) -> Result<(), FeedClosed> {
        let chunk = Chunk { stream, offset, data };
        self.queue
            .send(FeedMessage::Chunk(chunk, acks.clone()))
            .await
            .map_err(|_| FeedClosed)
    }

    /// Waits until everything appended before is durable.
    pub(crate) async fn settle(&self) -> Result<(), FeedClosed> {
        let (done, wait) = oneshot::channel();
        self.queue
            .send(FeedMessage::Settle(done))
            .await
            .map_err(|_| FeedClosed)?;
        wait.await.map_err(|_| FeedClosed)
    }
}
