//! The gateway of a session: a proxy on loopback that calls the provider in the place of the session's program, and
//! counts. It has the real key, and the program an address and a key that are good for this session alone. Every
//! call is reserved before ([`crate::calls`]) and told after; a program whose budget is used up is refused in its
//! provider's own words. What is said in requests and answers is kept nowhere.
//!
//! ```text
//!   program ─▶ its key? ─▶ a call? ─▶ reserve ─▶ the provider, with the real key ─▶ count what passes ─▶ program
//!               │ no        │ no      │ never                                         └▶ commit, an event
//!               └─▶ 401     └─▶ 404   └─▶ the provider's error for no credit
//!                          (models, count_tokens: passed on, and not counted)
//! ```
//!
//! Answers pass as they come: a piece is counted and sent on, and none waits for the next. A connection is a
//! future in a set that this file owns; none outlives [`Gateway::serve`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::failure::Failure;
use kage_core::network::{AllowRule, Destination, Host};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::adapters::metered::{GatewayPass, MeteredProvider, OwnCount};
use crate::calls::Calls;

mod elsewhere;
mod dialect;
mod body;
mod prefix;
mod sums;
mod passing;
mod request;

use request::Shared;
pub use sums::Metered;

/// How long to wait when no connection can be taken, as without free file numbers.
const PAUSE: Duration = Duration::from_millis(200);

/// Bounds of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Connections at the same time; those beyond wait until one ends.
    pub connections: usize,
    /// How long a program may take to send a request's head, and to begin the next one.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// How long a program may take to send a request's body.
    pub body: Duration,
    /// Bytes of a request's body. No provider takes more.
    pub body_bytes: usize,
    /// How long a program may go on after its first call was refused for good.
    pub patience: Duration,
    /// How many of its calls are refused after that one before it is ended at once.
    pub refusals: u32,
    /// How long connections may take to end when the gateway closes.
    pub drain: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            // A program keeps connections for its next call.
            head: Duration::from_secs(15 * 60),
            head_bytes: 64 << 10,
            body: Duration::from_secs(2 * 60),
            body_bytes: 32 << 20,
            patience: Duration::from_secs(5),
            refusals: 2,
            drain: Duration::from_secs(2),
        }
    }
}

/// What a gateway tells while it is served.
#[derive(Debug)]
pub enum GatewayTold {
    /// A call ended: an event of the attempt.
    Used(EventBody),
    /// A call waits, for this reason.
    Waits(String),
}

/// A gateway that listens and is not served yet.
pub struct Gateway {
    listener: StdTcpListener,
    address: SocketAddr,
    provider: MeteredProvider,
    key: String,
    client: reqwest::Client,
    limits: GatewayLimits,
    refusing: watch::Sender<Option<Failure>>,
    pass: GatewayPass,
}

/// Without keys.
impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Gateway");
        shown.field("address", &self.address).field("provider", &self.provider);
        shown.finish_non_exhaustive()
    }
}

/// What happens at a gateway.
enum GatewayInput {
    Accepted(io::Result<tokio::net::TcpStream>),
    Ended(Result<(), JoinError>),
    Told(GatewayTold),
    /// A call was refused for good.
    Refusing,
    /// A program went on for too long after it was refused.
    Enough,
    Close,
}

impl Gateway {
    /// Listens on a free port of the loopback interface. `key` is the session's: nobody else may guess it.
    ///
    /// # Errors
    /// When there is no port.
    pub fn open(provider: MeteredProvider, client: reqwest::Client, key: String) -> io::Result<Self> {
        let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (refusing, refused) = watch::channel(None);
        // What a program asks for is below the provider's path, so it is the same here.
        let path = provider.address.path().trim_end_matches('/');
        let pass = GatewayPass {
            address: format!("http://{address}{path}"),
            key: key.clone(),
            refusing: refused,
            enough: CancellationToken::new(),
            own_count: OwnCount::default(),
        };
        Ok(Self {
            listener,
            address,
            provider,
            key,
            client,
            limits: GatewayLimits::default(),
            refusing,
            pass,
        })
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: GatewayLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What the session's program gets.
    #[must_use]
    pub fn pass(&self) -> GatewayPass {
        self.pass.clone()
    }

    /// What programs without a network of their own have to reach: this gateway, and nothing else of its provider.
    #[must_use]
    pub fn rule(&self) -> AllowRule {
        AllowRule::of_provider(Destination {
            host: Host::Address(self.address.ip()),
            port: self.address.port(),
        })
    }

    /// Serves until `end`, and comes back when no connection is left and everything was told. Returns what was
    /// counted.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub async fn serve<F: Future<Output = ()>>(
        self,
        calls: Calls,
        mut tell: impl FnMut(GatewayTold) -> F,
        end: CancellationToken,
    ) -> io::Result<Metered> {
        let limits = self.limits;
        let listener = TcpListener::from_std(self.listener)?;
        // Each call has a place in it from its beginning. When it is full, the next call waits.
        let (told, mut tells) = mpsc::channel(limits.connections);
        let closing = CancellationToken::new();
        let enough = self.pass.enough.clone();
        let shared = Arc::new(Shared {
            provider: self.provider,
            key: self.key,
            client: self.client,
            limits,
            calls,
            told,
            refusing: self.refusing,
            enough: enough.clone(),
            closing: closing.clone(),
            kept: Mutex::default(),
        });
        let mut refusing = self.pass.refusing.clone();
        let (mut connections, mut patience) = (JoinSet::new(), None::<Instant>);
        loop {
            let free = connections.len() < limits.connections;
            let input = tokio::select! {
                biased;
                () = end.cancelled() => GatewayInput::Close,
                Some(told) = tells.recv() => GatewayInput::Told(told),
                Some(ended) = connections.join_next() => GatewayInput::Ended(ended),
                Ok(()) = refusing.changed(), if patience.is_none() => GatewayInput::Refusing,
                () = at(patience), if !enough.is_cancelled() => GatewayInput::Enough,
                accepted = listener.accept(), if free => GatewayInput::Accepted(accepted.map(|(stream, _)| stream)),
            };
            match input {
                GatewayInput::Close => break,
                GatewayInput::Ended(ended) => note(ended),
                GatewayInput::Told(told) => tell(told).await,
                GatewayInput::Refusing => patience = Some(Instant::now() + limits.patience),
                GatewayInput::Enough => enough.cancel(),
                GatewayInput::Accepted(Ok(stream)) => {
                    drop(connections.spawn(request::serve(stream, Arc::clone(&shared))));
                }
                GatewayInput::Accepted(Err(error)) => {
                    tracing::warn!(%error, "the gateway takes no connection");
                    sleep(PAUSE).await;
                }
            }
        }
        drop(listener);
        closing.cancel();
        let draining = async {
            loop {
                tokio::select! {
                    biased;
                    Some(told) = tells.recv() => tell(told).await,
                    ended = connections.join_next() => match ended {
                        Some(ended) => note(ended),
                        None => break,
                    },
                }
            }
        };
        if timeout(limits.drain, draining).await.is_err() {
            tracing::debug!("connections of programs are broken off");
        }
        // What a call used is told when its future is dropped, and it is in the channel then.
        connections.shutdown().await;
        let metered = shared.metered();
        drop(shared);
        while let Some(told) = tells.recv().await {
            tell(told).await;
        }
        Ok(metered)
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection of a gateway panicked");
    }
}

#[cfg(test)]
mod tests;
