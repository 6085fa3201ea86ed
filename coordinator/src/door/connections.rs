//! Connections: accepted, with TLS (always, except on loopback) or without, served over HTTP/1.1
//! and HTTP/2, and closed: at a shutdown, when their agent is revoked, when a stranger is silent
//! for too long or has to make room, and after a time without an open call. A connection with an
//! agent's certificate is identified by it.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kage_core::access::agent_of_uri;
use kage_core::time::Timestamp;
use kage_proto::client::{CONNECTION_WINDOW, STREAM_WINDOW, Wire};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use x509_parser::extensions::GeneralName;

use crate::door::auth::Peer;
use crate::door::bodies::Holding;
use crate::door::identities::Identities;
use crate::door::lobby::{Due, Guest, Lobby};
use crate::ports::Listener;
use crate::telemetry::{self, Cut};

/// Most open calls of one connection; further ones wait in the client. A stranger may have far
/// fewer, see `auth`.
const MAX_STREAMS: u32 = 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit of the head of an HTTP/1.1 request, for strangers and known callers.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that are read ahead of an HTTP/1.1 connection: many strangers may each send half a head.
const READ_AHEAD: usize = 64 << 10;
/// Time limit of a graceful end of a connection.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// The same for a known caller, whose call may be in flight.
const FAREWELL: Duration = Duration::from_secs(5);
/// The wait after the system refused to accept, so that it is not asked in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The interval of log messages about failed accepts.
const TELL: Duration = Duration::from_secs(10);

/// The two ends of a shutdown.
#[derive(Debug, Clone)]
pub(crate) struct Stopping {
    /// Cancelled to stop accepting connections and calls, and to finish the open ones.
    pub(crate) gracefully: CancellationToken,
    /// Cancelled when open connections have to be dropped.
    pub(crate) now: CancellationToken,
}

#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) router: Router,
    /// `None`: without TLS.
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) identities: Arc<Identities>,
    pub(crate) lobby: Arc<Lobby>,
}

/// Serves until told to stop, and returns when no connection is left.
pub(crate) async fn serve(mut listener: Box<dyn Listener>, served: Served, stopping: Stopping) {
    let connections = TaskTracker::new();
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.gracefully.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                // Without a place for it, it is closed at once.
                if let Some(guest) = served.lobby.enter(from) {
                    connections.spawn(connection(stream, guest, served.clone(), stopping.clone()));
                }
            }
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= TELL) {
                    told = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Notices the first bytes of a connection.
struct Listened<S> {
    stream: S,
    guest: Arc<Guest>,
    heard: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if !self.heard && buf.filled().len() > before {
            self.heard = true;
            self.guest.speaks();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

async fn connection(stream: Box<dyn Wire>, guest: Arc<Guest>, served: Served, stopping: Stopping) {
    let Served {
        router,
        tls,
        identities,
        ..
    } = served;
    let stream = Listened {
        stream,
        guest: Arc::clone(&guest),
        heard: false,
    };
    let Some(acceptor) = tls else {
        let ends = Ends {
            stopping,
            revoked: CancellationToken::new(),
        };
        return converse(stream, router, None, guest, ends).await;
    };
    let handshake = async {
        loop {
            match guest.due(Instant::now()) {
                Due::Later(at) => tokio::time::sleep_until(at).await,
                Due::Now(reason) => return reason,
            }
        }
    };
    let accepted = tokio::select! {
        accepted = acceptor.accept(stream) => accepted,
        reason = handshake => {
            telemetry::connection_cut(reason);
            return tracing::debug!("the TLS handshake took too long");
        }
        () = guest.cut().cancelled() => return,
        () = stopping.gracefully.cancelled() => return,
    };
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "no TLS"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = match certificate.map(peer) {
        None => None,
        Some(Some(peer)) => Some(peer),
        // The CA signs no certificate without an agent's name in it.
        Some(None) => return tracing::warn!("a certificate of the CA names no agent"),
    };
    let enrolled = peer.and_then(|peer| identities.enrolled(peer.agent));
    let revoked = enrolled.map_or_else(CancellationToken::new, |agent| {
        if !agent.revoked.is_cancelled() {
            guest.is_known();
        }
        agent.revoked
    });
    // A revoked agent may connect, so that it learns of the revocation; its open calls are cut.
    let revoked = if revoked.is_cancelled() {
        CancellationToken::new()
    } else {
        revoked
    };
    converse(stream, router, peer, guest, Ends { stopping, revoked }).await;
}

fn peer(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let agent = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => agent_of_uri(uri).ok(),
        _ => None,
    })?;
    let until = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(Peer {
        agent,
        until: Timestamp::from_millis(until.saturating_mul(1000)),
    })
}

/// External reasons to end a connection.
struct Ends {
    stopping: Stopping,
    /// The agent that made it is shut out.
    revoked: CancellationToken,
}

async fn converse<S>(stream: S, router: Router, peer: Option<Peer>, guest: Arc<Guest>, ends: Ends)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ends { stopping, revoked } = ends;
    let caller = Arc::clone(&guest);
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let open = caller.begin();
        request.extensions_mut().insert(Arc::clone(&caller));
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let router = router.clone();
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(Holding { body, _held: open })))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_AHEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    // Looks at whether anything happened lately, not at each thing that happens.
    let look = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(look);
    let (mut asked, mut over) = (false, false);
    loop {
        tokio::select! {
            biased;
            () = stopping.now.cancelled() => return,
            () = guest.cut().cancelled() => return,
            () = stopping.gracefully.cancelled(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            () = revoked.cancelled() => {
                // The last message, such as the reason, still has to be read, so the end is
                // graceful first.
                if !asked {
                    connection.as_mut().graceful_shutdown();
                }
                let ended = tokio::time::timeout(LAST_WORDS, &mut connection).await;
                tracing::info!(in_time = ended.is_ok(), "the connection of a revoked agent ended");
                return;
            }
            () = &mut look => match guest.due(Instant::now()) {
                Due::Later(at) => look.as_mut().reset(at),
                Due::Now(_) if over => return,
                Due::Now(reason) => {
                    telemetry::connection_cut(reason);
                    tracing::debug!(reason = reason.as_str(), "a connection that does nothing is ended");
                    // A call that is on its way is still answered.
                    if !asked {
                        connection.as_mut().graceful_shutdown();
                    }
                    (asked, over) = (true, true);
                    let wait = if reason == Cut::Idle { FAREWELL } else { LAST_WORDS };
                    look.as_mut().reset(Instant::now() + wait);
                }
            },
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
        }
    }
}
