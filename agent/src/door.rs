//! The door of an attempt: the one way in which programs without a network of their own reach the world. It
//! serves the listeners that boxes bring until the attempt ends: an HTTP proxy, and ports that are
//! forwarded to the same ports of this machine. What may be reached is core's decision
//! ([`kage_core::network`]); where the listeners are, and that there is no other way, is the box's affair.
//!
//! ```text
//!   box ─▶ its listeners, before its program begins ─▶ the door
//!   program ─▶ listener in its box ─▶ request ─▶ on the list? ─▶ resolve ─▶ public? ─▶ connect ─▶ bytes
//!                                                   │ no                      │ no
//!                                                   └──────▶ 403, a warning ◀─┘
//! ```
//!
//! There are boxes on Linux alone, and so there is a door.
//!
//! Bytes pass as they come: at most two buffers of each connection wait for a slow side. A connection is a
//! future in a set that this file owns; none outlives [`serve`].

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::network::AllowList;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

mod files;
mod listening;
mod traffic;
mod upstream;
mod connect;
mod refusals;
mod tunnel;
mod request;
mod reception;

use connect::Connector;
pub use files::DoorFiles;
use files::{OF_CONNECTION, Taken};
use listening::{Accepted, Listening, Purpose};
pub use listening::{DoorListener, DoorListeners};
use reception::{Reception, ReceptionInput};
use refusals::Refusals;
use traffic::Tally;
pub use traffic::Traffic;
pub use upstream::{InvalidUpstream, Upstream};

/// How long to wait when no connection can be taken, as without free file numbers.
const PAUSE: Duration = Duration::from_millis(200);

/// Resolves a name.
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Bounds of a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorLimits {
    /// Connections at the same time, where the agent has files enough ([`DoorFiles`]); those beyond wait until
    /// one ends.
    pub connections: usize,
    /// How long a program may take to send a request's head, and to begin the next one.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// How long resolving a name may take, and connecting to one of its addresses.
    pub connect: Duration,
    /// How long a connection may carry nothing, in either direction, before it ends; up to twice as long.
    pub idle: Duration,
    /// How long connections may take to end when the door closes.
    pub drain: Duration,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self {
            connections: 128,
            head: Duration::from_secs(30),
            head_bytes: 64 << 10,
            connect: Duration::from_secs(15),
            // A model may think for minutes before its first byte.
            idle: Duration::from_secs(15 * 60),
            drain: Duration::from_secs(2),
        }
    }
}

/// What a door lets through, and how it gets there.
#[derive(Clone)]
pub struct DoorRules {
    /// What may be reached.
    pub list: AllowList,
    /// The agent's own way out, where it is not a direct one.
    pub upstream: Upstream,
    /// Who resolves names.
    pub resolve: Resolve,
    pub limits: DoorLimits,
    /// What it may take of the agent's file numbers.
    pub files: DoorFiles,
}

impl DoorRules {
    /// With the machine's resolver, and the usual limits.
    #[must_use]
    pub fn new(list: AllowList, upstream: Upstream) -> Self {
        Self {
            list,
            upstream,
            resolve: connect::system(),
            limits: DoorLimits::default(),
            files: DoorFiles::of_this_process(),
        }
    }
}

impl std::fmt::Debug for DoorRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("DoorRules");
        shown.field("list", &self.list).field("limits", &self.limits);
        shown.finish_non_exhaustive()
    }
}

/// What the connections of a door share.
struct Shared {
    connector: Connector,
    limits: DoorLimits,
    tally: Arc<Tally>,
    refusals: Refusals,
}

/// Where programs come in.
#[derive(Debug, Default)]
pub struct Entrances {
    /// What is open from the beginning to the end.
    pub listeners: Vec<DoorListeners>,
    /// Where boxes bring listeners, by [`crate::passing::enter`].
    pub boxes: Option<std::os::unix::net::UnixListener>,
}

/// What happens at a door.
enum DoorInput {
    Reception(ReceptionInput),
    Accepted(io::Result<Accepted>, Taken),
    Ended(Result<(), JoinError>),
    Refused(String),
    Close,
}

/// Serves a door until `end`, and comes back when no connection is left. `tell` is called with what people
/// should know of refusals: once for each host.
///
/// # Errors
/// When a listener cannot be used.
pub async fn serve<F: Future<Output = ()>>(
    entrances: Entrances,
    rules: DoorRules,
    tell: impl Fn(String) -> F,
    end: CancellationToken,
) -> io::Result<Traffic> {
    let DoorRules {
        list,
        upstream,
        resolve,
        limits,
        files,
    } = rules;
    let mut listening = Listening::new(&list);
    for listeners in entrances.listeners {
        listening.open(listeners)?;
    }
    let mut reception = Reception::new(entrances.boxes, crate::passing::ports(list.forwards()), files.clone())?;
    let tally = Arc::new(Tally::default());
    let (told, mut refused) = mpsc::channel(refusals::MOST);
    let shared = Arc::new(Shared {
        connector: Connector::new(list, upstream, resolve, limits, Arc::clone(&tally)),
        limits,
        tally,
        refusals: Refusals::new(told),
    });
    let (mut connections, closing) = (JoinSet::new(), CancellationToken::new());
    loop {
        let free = connections.len() < limits.connections;
        let input = tokio::select! {
            biased;
            () = end.cancelled() => DoorInput::Close,
            Some(ended) = connections.join_next() => DoorInput::Ended(ended),
            Some(text) = refused.recv() => DoorInput::Refused(text),
            input = reception.next() => DoorInput::Reception(input),
            Some((accepted, taken)) = accept(&mut listening, &files), if free => DoorInput::Accepted(accepted, taken),
        };
        match input {
            DoorInput::Close => break,
            DoorInput::Ended(ended) => note(ended),
            DoorInput::Refused(text) => tell(text).await,
            DoorInput::Reception(ReceptionInput::Left(number)) => listening.close(number),
            DoorInput::Reception(ReceptionInput::Arrived(listeners, arrived)) => match listening.open(listeners) {
                Ok(number) => reception.welcome(arrived, number),
                Err(error) => tracing::warn!(%error, "a box is not served"),
            },
            DoorInput::Accepted(Ok(accepted), taken) => {
                shared.tally.connected();
                let passing = pass(accepted, Arc::clone(&shared), closing.clone());
                drop(connections.spawn(async move {
                    passing.await;
                    drop(taken);
                }));
            }
            DoorInput::Accepted(Err(error), _) => {
                tracing::warn!(%error, "the door takes no connection");
                sleep(PAUSE).await;
            }
        }
    }
    drop((listening, reception));
    closing.cancel();
    let draining = async {
        loop {
            tokio::select! {
                Some(text) = refused.recv() => tell(text).await,
                ended = connections.join_next() => match ended {
                    Some(ended) => note(ended),
                    None => return,
                },
            }
        }
    };
    if timeout(limits.drain, draining).await.is_err() {
        connections.shutdown().await;
    }
    while let Ok(text) = refused.try_recv() {
        tell(text).await;
    }
    Ok(shared.tally.now())
}

/// The next connection, when there are files for it. Cancel-safe.
async fn accept(listening: &mut Listening, files: &DoorFiles) -> Option<(io::Result<Accepted>, Taken)> {
    let taken = files.take(OF_CONNECTION).await?;
    Some((listening.accept().await, taken))
}

/// One connection of a program, from its first byte to its last.
async fn pass(accepted: Accepted, shared: Arc<Shared>, closing: CancellationToken) {
    match accepted.purpose {
        Purpose::Requests => request::serve(accepted.stream, shared, closing).await,
        Purpose::Forward(port) => tunnel::forward(accepted.stream, port, &shared).await,
    }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection of the door crashed");
    }
}

#[cfg(test)]
mod tests;
