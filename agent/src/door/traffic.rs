//! What passes a door, counted: of the attempt as a whole, and of each connection, so that one that carries
//! nothing can be ended. Counting costs no copy.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

/// What passed a door.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections of programs.
    pub connections: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Bytes that programs sent.
    pub sent: u64,
    /// Bytes that programs were sent.
    pub received: u64,
}

/// Counts what passes a door.
#[derive(Debug, Default)]
pub(super) struct Tally {
    connections: AtomicU64,
    refused: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Tally {
    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Traffic {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Traffic {
            connections: of(&self.connections),
            refused: of(&self.refused),
            sent: of(&self.sent),
            received: of(&self.received),
        }
    }
}

/// How often something passed a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Movement(Arc<AtomicU64>);

impl Movement {
    fn moved(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Comes back when nothing has passed for so long; up to twice as long later.
    pub(super) async fn stops_for(&self, limit: Duration) {
        let mut before = self.0.load(Ordering::Relaxed);
        loop {
            sleep(limit).await;
            let now = self.0.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    }
}

/// A connection to a host, counted: what is read is what programs receive.
pub(super) struct Counted<S> {
    stream: S,
    tally: Arc<Tally>,
    movement: Movement,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, tally: Arc<Tally>) -> Self {
        Self {
            stream,
            tally,
            movement: Movement::default(),
        }
    }

    pub(super) fn movement(&self) -> Movement {
        self.movement.clone()
    }

    fn wrote(&self, bytes: usize) {
        self.tally.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.movement.moved();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let bytes = buffer.filled().len() - before;
        self.tally.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.movement.moved();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
