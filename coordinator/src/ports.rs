//! What a coordinator is given from outside, so that tests and simulations can replace it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::checkpoint::Work;
use kage_core::event::ResultCommit;
use kage_core::failure::Failure;
use kage_core::folder::Folder;
use kage_core::id::{AgentId, Digest, Oid, ProjectId, RepositoryName, SessionId};
use kage_core::task::{RepositoryRef, ResultRules};
use kage_core::time::Timestamp;
use kage_proto::client::Wire;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::store::Store;

/// Tells the time of day. Leases and retries use it; authority never depends on it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// The source of connections: TCP of this machine, or a simulated network.
pub trait Listener: Send {
    fn address(&self) -> io::Result<SocketAddr>;

    /// The next connection, and its peer's address. Cancel-safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Wire>, IpAddr)>>;
}

impl Listener for TcpListener {
    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Wire>, IpAddr)>> {
        let accepting = async {
            let (stream, from) = TcpListener::accept(self).await?;
            if let Err(error) = prepare(&stream) {
                tracing::debug!(%error, "cannot set up a connection");
            }
            Ok((Box::new(stream) as Box<dyn Wire>, from.ip()))
        };
        accepting.boxed()
    }
}

/// A caller that vanished silently (its machine lost power, or a router forgot the connection)
/// would otherwise keep its place, and what its call holds, forever: HTTP/1.1 sends no probes
/// meanwhile.
const PROBES: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&PROBES)
}

/// A listener that is being made.
pub type Listening = BoxFuture<'static, io::Result<Box<dyn Listener>>>;

pub type Listen = Arc<dyn Fn(SocketAddr) -> Listening + Send + Sync>;

async fn listen(address: SocketAddr) -> io::Result<Box<dyn Listener>> {
    Ok(Box::new(TcpListener::bind(address).await?))
}

/// How work that waits for the disk is run.
#[derive(Clone, Default)]
pub enum Blocking {
    /// On threads for blocking calls.
    #[default]
    Threads,
    /// In place, after which the caller waits for the returned time. Threads end in any order: a
    /// simulation, whose clock stands still meanwhile, would not be reproducible.
    InPlace(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Blocking {
    /// Runs `work` to its end, unless the runtime ends or the work panics.
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

/// What tasks name and rows do not hold: commits of repositories, and blobs.
pub trait Objects: Send + Sync {
    /// True when a repository has a commit.
    fn has_commit<'a>(
        &'a self,
        project: &'a ProjectId,
        repository: &'a RepositoryName,
        commit: &'a Oid,
    ) -> BoxFuture<'a, io::Result<bool>>;

    /// True when a commit, which a repository has, has this folder.
    fn has_folder<'a>(
        &'a self,
        project: &'a ProjectId,
        repository: &'a RepositoryRef,
        folder: &'a Folder,
    ) -> BoxFuture<'a, io::Result<bool>>;

    /// True when a blob was stored.
    fn has_blob<'a>(&'a self, project: &'a ProjectId, digest: &'a Digest) -> BoxFuture<'a, io::Result<bool>>;

    /// Takes a result into its task's repository, so that it can be fetched there, and returns what it is
    /// by its objects. Taking it twice does no harm.
    fn take_in<'a>(&'a self, arrived: ArrivedResult<'a>) -> BoxFuture<'a, Result<ResultCommit, ResultNotTaken>>;

    /// Makes a result of work that nobody claimed, so that it can be fetched from its task's
    /// repository: `None` when the work comes to nothing. Making it twice does no harm.
    fn save<'a>(&'a self, unclaimed: UnclaimedWork<'a>) -> BoxFuture<'a, Result<Option<ResultCommit>, ResultNotTaken>>;
}

/// The work of a session that ended without a claim.
#[derive(Debug, Clone, Copy)]
pub struct UnclaimedWork<'a> {
    pub project: &'a ProjectId,
    pub repository: &'a RepositoryRef,
    pub session: SessionId,
    pub work: &'a Work,
    /// The message of the result's commit.
    pub message: &'a str,
    /// How much a result of its task may have.
    pub rules: &'a ResultRules,
}

/// A session's result that an agent sent.
#[derive(Clone, Copy)]
pub struct ArrivedResult<'a> {
    pub project: &'a ProjectId,
    pub repository: &'a RepositoryRef,
    pub session: SessionId,
    /// What its agent says of it.
    pub result: &'a ResultCommit,
    /// The blob with its objects.
    pub pack: &'a Digest,
    /// How much a result of its task may have.
    pub rules: &'a ResultRules,
    /// True once the attempt has ended, so that its result must not replace a newer one.
    pub ended: &'a (dyn Fn() -> bool + Send + Sync),
}

impl std::fmt::Debug for ArrivedResult<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrivedResult")
            .field("session", &self.session)
            .field("commit", &self.result.commit)
            .finish_non_exhaustive()
    }
}

/// Why a result was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultNotTaken {
    /// The attempt has ended meanwhile.
    #[error("the attempt has ended")]
    Ended,
    /// The same result may be taken later.
    #[error("{0}")]
    Later(String),
    /// The same result is never taken: how its session fails.
    #[error("{}", .0.message)]
    Never(Failure),
}

/// An agent in the coordinator's process. Its token is in the memory of that process only, and lets it
/// speak for itself; the owner's token, which is in a file, would let whoever reads it do everything.
pub struct OwnAgent {
    pub id: AgentId,
    pub token: String,
}

impl std::fmt::Debug for OwnAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnAgent").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a coordinator is given from outside.
pub struct Ports {
    pub clock: Clock,
    pub random: Random,
    pub listen: Listen,
    /// Replaces the database in the data directory.
    pub store: Option<Store>,
    /// Replaces the repositories and blobs in the data directory for what agents deliver.
    pub objects: Option<Arc<dyn Objects>>,
    /// How it waits for the files of output.
    pub blocking: Blocking,
    /// The agent that runs in the same process, if one does.
    pub own_agent: Option<OwnAgent>,
    /// Receives the bound address once calls are answered.
    pub on_ready: Option<oneshot::Sender<SocketAddr>>,
    /// Receives the store once it is open, for a caller that manages all projects.
    pub on_open: Option<oneshot::Sender<Store>>,
}

impl Ports {
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
            objects: None,
            blocking: Blocking::default(),
            own_agent: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_that_is_gone_without_a_word_is_found_out() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        prepare(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        let found_out = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(found_out, Duration::from_secs(120));
    }
}
