//! Brings listeners out of a box. A process in the box listens on the loopback address there, which is no
//! other's, and sends the sockets to the agent; they go on listening in the box, whoever holds them. The one
//! message that is sent has the ports in its bytes and, in the same order, the sockets beside them.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use kage_core::network::{DOOR_PORT, MOST_FORWARDS};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, recvmsg, sendmsg, sockopt,
};

/// The form of the message; another form has another number.
pub(crate) const FORM: u8 = 1;
/// The most listeners: for requests, and for every port that is forwarded.
const MOST: usize = MOST_FORWARDS + 1;

/// How long a door may take to serve a box.
const ANSWER: Duration = Duration::from_secs(30);

/// Why listeners did not come out of a box.
#[derive(Debug, thiserror::Error)]
pub enum PassingError {
    /// Another process of the box, or its network, is in the way.
    #[error("cannot listen at port {port} in the box")]
    Listen {
        /// The port.
        port: u16,
        #[source]
        source: io::Error,
    },
    /// The agent forwards fewer.
    #[error("{0} ports cannot be opened in a box, at most {MOST}")]
    TooMany(usize),
    /// Nobody is at the other end, or it takes too long.
    #[error("the listeners of a box were not passed")]
    Io(#[from] io::Error),
    /// What came is not what is sent.
    #[error("what a box passed is not its listeners: {0}")]
    Other(&'static str),
}

impl From<rustix::io::Errno> for PassingError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Listens at these ports of the loopback address of this network, and sends the listeners over a Unix
/// socket. The first is that for requests, [`DOOR_PORT`]. Blocks.
///
/// # Errors
/// When one of them cannot be opened, or nobody takes them.
pub fn listen_and_send(socket: impl AsFd, ports: &[u16]) -> Result<(), PassingError> {
    if ports.len() > MOST {
        return Err(PassingError::TooMany(ports.len()));
    }
    let mut listeners = Vec::new();
    for port in ports {
        let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
        listeners.push(listening.map_err(|source| PassingError::Listen { port: *port, source })?);
    }
    let mut bytes = vec![FORM];
    bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    let sockets: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !beside.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(PassingError::TooMany(ports.len()));
    }
    // It fits into the buffer of any socket, so it is sent whole.
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The ports of a box in which these are forwarded, in the order in which they are sent.
#[must_use]
pub fn ports(forwards: impl IntoIterator<Item = u16>) -> Vec<u16> {
    std::iter::once(DOOR_PORT).chain(forwards).collect()
}

/// Opens these ports in this box, and waits until the door serves them. `door` is the socket at which the
/// door takes boxes in. Blocks.
///
/// # Errors
/// When a port cannot be opened, or there is no door.
pub fn enter(door: &Path, ports: &[u16]) -> Result<(), PassingError> {
    let mut socket = by_short_path(door, |path| UnixStream::connect(path))?;
    listen_and_send(&socket, ports)?;
    socket.set_read_timeout(Some(ANSWER))?;
    let mut taken = [0];
    socket.read_exact(&mut taken)?;
    if taken == [FORM] {
        Ok(())
    } else {
        Err(PassingError::Other("the door is of another version"))
    }
}

/// Opens the socket at which a door takes boxes in. Blocks.
///
/// # Errors
/// When it cannot be made.
pub fn reception(path: &Path) -> io::Result<UnixListener> {
    by_short_path(path, |path| UnixListener::bind(path))
}

/// The path of a socket has room for 107 bytes, that of an attempt's folder may be longer: the folder is
/// named by its number among the open files.
fn by_short_path<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let no_name = || io::Error::from(io::ErrorKind::InvalidInput);
    let (parent, name) = (
        path.parent().ok_or_else(no_name)?,
        path.file_name().ok_or_else(no_name)?,
    );
    let folder = File::open(parent)?;
    with(
        &Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name),
    )
}

/// Takes the listeners of these ports, in their order, which a box sends. Does not wait when the socket does not.
///
/// # Errors
/// When they do not come, or are something else.
pub fn receive(socket: impl AsFd, ports: &[u16]) -> Result<Vec<(u16, TcpListener)>, PassingError> {
    // One byte more than is expected, so that more is found.
    let mut bytes = vec![0; 2 + 2 * ports.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)?;
    let sockets: Vec<OwnedFd> = beside
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        })
        .flatten()
        .collect();
    let mut expected = vec![FORM];
    expected.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    if message.bytes == 0 {
        return Err(PassingError::Other("it ended"));
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || bytes[..message.bytes] != expected {
        return Err(PassingError::Other("other ports"));
    }
    if sockets.len() != ports.len() {
        return Err(PassingError::Other("another number of sockets"));
    }
    let mut listeners = Vec::new();
    for (port, socket) in ports.iter().zip(sockets) {
        listeners.push((*port, listener(socket, *port)?));
    }
    Ok(listeners)
}

/// Whether a listener is the one that is expected. Only this address is taken in a box before its program
/// begins: a listener at any other one may be the program's, which could keep it and make the agent wait.
fn is_at(address: SocketAddr, port: u16) -> bool {
    address == SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A socket that came out of a box as the listener that it has to be.
fn listener(socket: OwnedFd, port: u16) -> Result<TcpListener, PassingError> {
    let is_right = sockopt::socket_domain(&socket)? == AddressFamily::INET
        && sockopt::socket_type(&socket)? == SocketType::STREAM
        && sockopt::socket_acceptconn(&socket)?;
    if !is_right {
        return Err(PassingError::Other("a socket that listens to nobody"));
    }
    let listener = TcpListener::from(socket);
    if !is_at(listener.local_addr()?, port) {
        return Err(PassingError::Other("a listener elsewhere"));
    }
    Ok(listener)
}

#[cfg(test)]
mod tests;
