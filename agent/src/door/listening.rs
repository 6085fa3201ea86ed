//! The listeners of a door, all polled in turn, and what a connection to each of them is for.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::iter::once;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::task::{Context, Poll, ready};

use kage_core::network::AllowList;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

/// A listener that programs can reach, wherever it was opened.
#[derive(Debug)]
pub enum DoorListener {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

/// The listeners of a box.
#[derive(Debug)]
pub struct DoorListeners {
    /// For requests: the HTTP proxy.
    pub requests: DoorListener,
    /// For ports of this machine, each with its number.
    pub forwards: Vec<(u16, DoorListener)>,
}

impl DoorListeners {
    /// What a box sent: that for requests first.
    pub(super) fn of_box(sent: Vec<(u16, StdTcpListener)>) -> Option<Self> {
        let mut sent = sent
            .into_iter()
            .map(|(port, listener)| (port, DoorListener::Tcp(listener)));
        let (_, requests) = sent.next()?;
        let forwards = sent.collect();
        Some(Self { requests, forwards })
    }
}

/// A connection of a program.
pub(super) type ProgramStream = Either<TcpStream, UnixStream>;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Requests,
    /// To this port of the machine.
    Forward(u16),
}

/// A connection, and what it is for.
pub(super) struct Accepted {
    pub(super) purpose: Purpose,
    pub(super) stream: ProgramStream,
}

enum Open {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Open {
    fn new(listener: DoorListener) -> io::Result<Self> {
        match listener {
            DoorListener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            DoorListener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Self::Unix)
            }
        }
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<ProgramStream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = ready!(listener.poll_accept(context))?;
                // Small packets, as of a handshake, would wait for each other.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "small packets wait");
                }
                Poll::Ready(Ok(Either::Left(stream)))
            }
            Self::Unix(listener) => {
                let (stream, _) = ready!(listener.poll_accept(context))?;
                Poll::Ready(Ok(Either::Right(stream)))
            }
        }
    }
}

struct Opened {
    /// The number that its box has here.
    number: u64,
    purpose: Purpose,
    listener: Open,
}

/// Listeners that are open.
pub(super) struct Listening {
    all: Vec<Opened>,
    /// Of the machine's own ports, those that may be reached.
    forwards: BTreeSet<u16>,
    /// The one to ask first.
    next: usize,
    /// The next box.
    number: u64,
}

impl Listening {
    pub(super) fn new(list: &AllowList) -> Self {
        Self {
            all: Vec::new(),
            forwards: list.forwards(),
            next: 0,
            number: 0,
        }
    }

    /// Opens listeners of a box, not those for ports that are not on the list. They have a number by which
    /// they are closed.
    pub(super) fn open(&mut self, listeners: DoorListeners) -> io::Result<u64> {
        let number = self.number;
        self.number += 1;
        let requests = (Purpose::Requests, listeners.requests);
        let mut opened = Vec::new();
        let forwards = listeners.forwards.into_iter();
        for (purpose, listener) in once(requests).chain(forwards.map(|(port, it)| (Purpose::Forward(port), it))) {
            match purpose {
                Purpose::Forward(port) if !self.forwards.contains(&port) => {
                    tracing::warn!(port, "a port is not forwarded, which is not on the list");
                }
                Purpose::Forward(_) | Purpose::Requests => opened.push(Opened {
                    number,
                    purpose,
                    listener: Open::new(listener)?,
                }),
            }
        }
        self.all.extend(opened);
        Ok(number)
    }

    /// Closes the listeners of a box. Connections that came by them stay.
    pub(super) fn close(&mut self, number: u64) {
        self.all.retain(|open| open.number != number);
    }

    /// The next connection, of each listener in turn. One that can give none any more is dropped: whoever has
    /// the same socket may have ended its listening, and it would fail for ever. Cancel-safe.
    pub(super) async fn accept(&mut self) -> io::Result<Accepted> {
        poll_fn(|context| {
            let mut step = 0;
            while step < self.all.len() {
                let at = (self.next + step) % self.all.len();
                let open = &self.all[at];
                match open.listener.poll_accept(context) {
                    Poll::Ready(Err(error)) if !passes(&error) => {
                        tracing::warn!(%error, "a listener of a box is of no use any more");
                        self.all.remove(at);
                        // Each of the others is asked, and those asked twice do not mind.
                        step = 0;
                    }
                    Poll::Ready(accepted) => {
                        self.next = at + 1;
                        let purpose = open.purpose;
                        return Poll::Ready(accepted.map(|stream| Accepted { purpose, stream }));
                    }
                    Poll::Pending => step += 1,
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether a listener that failed to accept may do so later.
fn passes(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::CONNABORTED
                | Errno::INTR
                | Errno::AGAIN
        )
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn requests_at(listener: StdTcpListener) -> DoorListeners {
        DoorListeners {
            requests: DoorListener::Tcp(listener),
            forwards: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_listener_that_others_shut_down_is_dropped_and_the_next_one_is_asked() {
        let bound = || StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (shut, good) = (bound(), bound());
        let (same, address) = (shut.try_clone().unwrap(), good.local_addr().unwrap());
        let mut listening = Listening::new(&AllowList::default());
        listening.open(requests_at(shut)).unwrap();
        rustix::net::shutdown(&same, rustix::net::Shutdown::Both).unwrap();
        let dropped = poll_fn(|context| {
            let is_pending = std::pin::pin!(listening.accept()).poll(context).is_pending();
            assert!(is_pending);
            match listening.all.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        tokio::time::timeout(std::time::Duration::from_secs(20), dropped)
            .await
            .unwrap();
        listening.open(requests_at(good)).unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let accepted = listening.accept().await.unwrap();
        assert_eq!(accepted.purpose, Purpose::Requests);
        assert!(passes(&Errno::MFILE.into()) && !passes(&Errno::INVAL.into()));
    }
}
