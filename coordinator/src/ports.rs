//! What a coordinator is given from outside, so that tests and simulations can give something else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::time::Timestamp;
use kage_proto::client::Wire;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::store::Store;

/// Tells the time of day. Leases and retries are reckoned by it; they are never fenced by it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// What connections come from: TCP of this machine, or a simulated network.
pub trait Listener: Send {
    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    fn address(&self) -> io::Result<SocketAddr>;

    /// The next connection, and from where it comes. Cancel-safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Wire>, IpAddr)>>;
}

impl Listener for TcpListener {
    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Wire>, IpAddr)>> {
        let accepting = async {
            let (stream, from) = TcpListener::accept(self).await?;
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            Ok((Box::new(stream) as Box<dyn Wire>, from.ip()))
        };
        accepting.boxed()
    }
}

/// A listener that is being made.
pub type Listening = BoxFuture<'static, io::Result<Box<dyn Listener>>>;

/// Listens at an address.
pub type Listen = Arc<dyn Fn(SocketAddr) -> Listening + Send + Sync>;

async fn listen(address: SocketAddr) -> io::Result<Box<dyn Listener>> {
    Ok(Box::new(TcpListener::bind(address).await?))
}

/// Where work is done that waits for the disk.
#[derive(Clone, Default)]
pub enum Blocking {
    /// On threads that may wait.
    #[default]
    Threads,
    /// In place, after which its caller waits for so long. Threads end in any order: a
    /// simulation, whose clock stands still meanwhile, would not go the same way twice.
    InPlace(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Blocking {
    /// Does something and waits until it is done.
    ///
    /// # Errors
    /// When it was cut short: the runtime ends, or the work panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
            Self::InPlace(takes) => {
                let done = work();
                tokio::time::sleep(takes()).await;
                Ok(done)
            }
        }
    }
}

impl std::fmt::Debug for Blocking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Threads => f.write_str("Threads"),
            Self::InPlace(_) => f.debug_tuple("InPlace").finish_non_exhaustive(),
        }
    }
}

/// What a coordinator cannot make itself.
pub struct Ports {
    /// The time of day.
    pub clock: Clock,
    /// Randomness for ids and tokens.
    pub random: Random,
    /// Where connections come from.
    pub listen: Listen,
    /// What is stored, when that is not the database in the data directory.
    pub store: Option<Store>,
    /// Where it waits for the files of output.
    pub blocking: Blocking,
    /// Told the bound address once calls are answered.
    pub on_ready: Option<oneshot::Sender<SocketAddr>>,
    /// Given the store once it is open, for whoever looks after all projects at once.
    pub on_open: Option<oneshot::Sender<Store>>,
}

impl Ports {
    /// The machine's clock and randomness.
    #[must_use]
    pub fn system() -> Self {
        Self {
            clock: Arc::new(|| {
                let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
                Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }),
            random: Arc::new(rand::random::<u128>),
            listen: Arc::new(|address| listen(address).boxed()),
            store: None,
            blocking: Blocking::default(),
            on_ready: None,
            on_open: None,
        }
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}
