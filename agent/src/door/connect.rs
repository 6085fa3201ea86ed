//! Connects to where a program wants to go, when it may: asks for the name, resolves it, asks for the
//! addresses, and connects to one of those, never to what the name leads to later. Where the agent itself
//! goes through a proxy, that proxy resolves, so there only the name is asked for.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kage_core::network::{AllowList, Destination, Refused};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_util::either::Either;

use super::traffic::{Counted, Tally};
use super::upstream::{self, NoTunnel, Upstream, UpstreamProxy};
use super::{DoorLimits, Resolve};

/// A connection to the outside, counted.
pub(super) type Outside = Counted<Either<TcpStream, TokioIo<Upgraded>>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoConnection {
    #[error(transparent)]
    Refused(Refused),
    #[error("the name {host} cannot be resolved")]
    Name {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to {to}")]
    Connect {
        to: Destination,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to {to} through the proxy of this agent")]
    Upstream {
        to: Destination,
        #[source]
        source: NoTunnel,
    },
}

impl NoConnection {
    /// Whether somebody took too long.
    pub(super) fn is_late(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Name { source, .. } | Self::Connect { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            Self::Upstream { source, .. } => source.is_late(),
        }
    }
}

/// Where a request without encryption is sent.
pub(super) enum PlainWay {
    /// To the host.
    Direct(Outside),
    /// To the agent's proxy, which wants the whole address.
    Proxy(Outside, UpstreamProxy),
}

/// Connects, where it may.
pub(super) struct Connector {
    list: AllowList,
    upstream: Upstream,
    resolve: Resolve,
    limit: Duration,
    tally: Arc<Tally>,
}

/// The resolver of the machine.
pub(super) fn system() -> Resolve {
    Arc::new(|name| {
        Box::pin(async move {
            let found = lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

fn late<T>(_: T) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

impl Connector {
    pub(super) fn new(
        list: AllowList,
        upstream: Upstream,
        resolve: Resolve,
        limits: DoorLimits,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            list,
            upstream,
            resolve,
            limit: limits.connect,
            tally,
        }
    }

    /// A connection that carries whatever the program sends.
    pub(super) async fn tunnel(&self, to: &Destination) -> Result<Outside, NoConnection> {
        self.list.named(to).map_err(NoConnection::Refused)?;
        let Some(proxy) = self.upstream.tunnels_to(to) else {
            return self.direct(to).await;
        };
        let failed = |source| NoConnection::Upstream { to: to.clone(), source };
        let stream = self.to_proxy(proxy).await.map_err(|source| failed(source.into()))?;
        let asking = timeout(self.limit, upstream::ask(stream, to, proxy));
        let tunnel = asking.await.unwrap_or_else(|elapsed| Err(late(elapsed).into()));
        Ok(self.counted(Either::Right(tunnel.map_err(failed)?)))
    }

    /// A connection for a request without encryption.
    pub(super) async fn plain(&self, to: &Destination) -> Result<PlainWay, NoConnection> {
        self.list.named(to).map_err(NoConnection::Refused)?;
        let Some(proxy) = self.upstream.plain_to(to) else {
            return self.direct(to).await.map(PlainWay::Direct);
        };
        let connecting = self.to_proxy(proxy).await;
        let stream = connecting.map_err(|source| NoConnection::Upstream {
            to: to.clone(),
            source: source.into(),
        })?;
        Ok(PlainWay::Proxy(self.counted(Either::Left(stream)), proxy.clone()))
    }

    /// Connects to one of these addresses, the first that answers.
    pub(super) async fn dial(&self, addresses: &[IpAddr], port: u16) -> io::Result<Outside> {
        let mut last = io::Error::other("it has no address");
        for address in addresses {
            let connecting = timeout(self.limit, TcpStream::connect((*address, port)));
            match connecting.await.map_err(late).and_then(|connected| connected) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(self.counted(Either::Left(stream)));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn direct(&self, to: &Destination) -> Result<Outside, NoConnection> {
        let resolved = match to.known_addresses() {
            Some(known) => known,
            None => self.resolved(to.host.to_string()).await?,
        };
        let addresses = self.list.addresses(to, &resolved).map_err(NoConnection::Refused)?;
        let dialling = self.dial(&addresses, to.port).await;
        dialling.map_err(|source| NoConnection::Connect { to: to.clone(), source })
    }

    async fn resolved(&self, host: String) -> Result<Vec<IpAddr>, NoConnection> {
        let resolving = timeout(self.limit, (self.resolve)(host.clone()));
        let found = resolving.await.map_err(late).and_then(|found| found);
        found.map_err(|source| NoConnection::Name { host, source })
    }

    /// The agent's proxy is where its owner says: its address is not asked for.
    async fn to_proxy(&self, proxy: &UpstreamProxy) -> io::Result<TcpStream> {
        let connecting = timeout(self.limit, TcpStream::connect(proxy.address()));
        let stream = connecting.await.map_err(late)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn counted(&self, stream: Either<TcpStream, TokioIo<Upgraded>>) -> Outside {
        Counted::new(stream, Arc::clone(&self.tally))
    }
}
