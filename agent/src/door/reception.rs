//! Takes boxes in: each connects to the door's socket before its program begins, sends its listeners, and
//! is served for as long as that process lives, which becomes the program.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use super::files::{DoorFiles, Taken, of_box};
use super::listening::DoorListeners;
use crate::passing::{FORM, PassingError, receive};

/// The most boxes at the same time: programs of one attempt that run side by side.
const MOST: usize = 64;
/// How long a box may take to send its listeners.
const PATIENCE: Duration = Duration::from_secs(10);

/// A box that was taken in, and waits to be told that it is served.
pub(super) struct Arrived {
    stream: UnixStream,
    process: OwnedFd,
    files: Taken,
}

/// What happens at a reception.
pub(super) enum ReceptionInput {
    Arrived(DoorListeners, Arrived),
    /// The process of the box with this number ended.
    Left(u64),
}

/// How often boxes are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Where boxes are taken in.
pub(super) struct Reception {
    socket: Option<UnixListener>,
    ports: Vec<u16>,
    files: DoorFiles,
    arriving: FuturesUnordered<BoxFuture<'static, Result<(DoorListeners, Arrived), PassingError>>>,
    here: FuturesUnordered<BoxFuture<'static, u64>>,
}

impl Reception {
    /// For boxes with these ports; without a socket nobody comes.
    pub(super) fn new(socket: Option<StdUnixListener>, ports: Vec<u16>, files: DoorFiles) -> io::Result<Self> {
        let socket = socket.map(|socket| {
            socket.set_nonblocking(true)?;
            UnixListener::from_std(socket)
        });
        Ok(Self {
            socket: socket.transpose()?,
            ports,
            files,
            arriving: FuturesUnordered::new(),
            here: FuturesUnordered::new(),
        })
    }

    /// What happens next. Cancel-safe.
    pub(super) async fn next(&mut self) -> ReceptionInput {
        loop {
            let free = self.arriving.len() + self.here.len() < MOST;
            tokio::select! {
                Some(number) = self.here.next() => return ReceptionInput::Left(number),
                Some(arrived) = self.arriving.next() => match arrived {
                    Ok((listeners, arrived)) => return ReceptionInput::Arrived(listeners, arrived),
                    Err(error) => tracing::warn!(error = kage_core::cause::chain(&error), "a box is not served"),
                },
                (accepted, taken) = accept(self.socket.as_ref(), &self.files, self.ports.len()), if free => match accepted {
                    Ok(stream) => self.arriving.push(Box::pin(arrive(stream, self.ports.clone(), taken))),
                    Err(error) => {
                        tracing::warn!(%error, "no box is taken in");
                        sleep(super::PAUSE).await;
                    }
                },
            }
        }
    }

    /// Tells a box that it is served, by this number, and waits for its end.
    pub(super) fn welcome(&mut self, arrived: Arrived, number: u64) {
        let Arrived {
            mut stream,
            process,
            files,
        } = arrived;
        self.here.push(Box::pin(async move {
            // One that does not hear it ends, which is waited for.
            if let Err(error) = stream.write_all(&[FORM]).await {
                tracing::debug!(%error, "a box went away");
            }
            drop(stream);
            while !has_ended(&process) {
                sleep(LOOK).await;
            }
            drop(files);
            number
        }));
    }
}

/// Whether the process of a box ended. The runtime takes only descriptors of its own kinds without `unsafe`,
/// so it is asked now and then: what depends on it is when listeners that nobody uses are closed.
fn has_ended(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    match poll(&mut asked, Some(&Timespec::default())) {
        Ok(ready) => ready > 0,
        Err(Errno::INTR | Errno::AGAIN) => false,
        Err(error) => {
            tracing::warn!(%error, "the end of a box is not seen");
            true
        }
    }
}

/// The next box with so many ports, when there are files for it. Cancel-safe.
async fn accept(socket: Option<&UnixListener>, files: &DoorFiles, ports: usize) -> (io::Result<UnixStream>, Taken) {
    if let Some(socket) = socket
        && let Some(taken) = files.take(of_box(ports)).await
    {
        return (socket.accept().await.map(|(stream, _)| stream), taken);
    }
    std::future::pending().await
}

async fn arrive(stream: UnixStream, ports: Vec<u16>, files: Taken) -> Result<(DoorListeners, Arrived), PassingError> {
    let taking = stream.async_io(Interest::READABLE, || match receive(&stream, &ports) {
        Err(PassingError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        received => Ok(received),
    });
    let taken = timeout(PATIENCE, taking).await;
    let taken = taken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))???;
    let listeners = DoorListeners::of_box(taken).ok_or(PassingError::Other("none at all"))?;
    // It waits to be told, so its number is its own until then.
    let process = stream.peer_cred()?.pid().and_then(Pid::from_raw);
    let process = process.ok_or(PassingError::Other("a process that is not seen here"))?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let arrived = Arrived { stream, process, files };
    Ok((listeners, arrived))
}
