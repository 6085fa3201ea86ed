//! The port: one listener for gRPC (also as browsers speak it), blobs, git and metrics, over HTTP/1.1 and HTTP/2, with
//! TLS (always, but on loopback) or without, and how it is shut down. A connection that an
//! agent made with its certificate says whose it is, and ends when that agent is revoked.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kage_core::access::agent_of_uri;
use kage_core::time::Timestamp;
use kage_proto::client::{CONNECTION_WINDOW, STREAM_WINDOW, Wire};
use kage_proto::v1::access_service_server::AccessServiceServer;
use kage_proto::v1::agent_service_server::AgentServiceServer;
use kage_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use kage_proto::v1::context_service_server::ContextServiceServer;
use kage_proto::v1::enrollment_service_server::EnrollmentServiceServer;
use kage_proto::v1::event_service_server::EventServiceServer;
use kage_proto::v1::fleet_service_server::FleetServiceServer;
use kage_proto::v1::task_service_server::TaskServiceServer;
use kage_proto::{FILE_DESCRIPTOR_SET, MAX_MESSAGE, MAX_TASK_MESSAGE};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::ServiceExt as _;
use x509_parser::extensions::GeneralName;

use crate::auth::{self, Door, Peer};
use crate::config::Origin;
use crate::coordinator::Coordinator;
use crate::http as routes;
use crate::identities::Identities;
use crate::ports::Listener;
use crate::services::access::Access;
use crate::services::agent::Agents;
use crate::services::checkpoint::Checkpoints;
use crate::services::context::Contexts;
use crate::services::enrollment::Enrollment;
use crate::services::event::Events;
use crate::services::fleet::Fleet;
use crate::services::task::Tasks;
use crate::web;

/// Calls that one connection may have open at once; more wait in the client.
const MAX_STREAMS: u32 = 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the head of an HTTP/1.1 request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the connection of a revoked agent has to end by itself.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// The wait after the system refused to accept, so that it is not asked in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The reflection service could not be made of the descriptors in this program.
pub(crate) type ReflectionError = tonic_reflection::server::Error;

/// Every route, behind the door.
pub(crate) async fn router(
    coordinator: &Arc<Coordinator>,
    door: Door,
    web_origins: &[Origin],
) -> Result<Router, ReflectionError> {
    let tasks = TaskServiceServer::new(Tasks(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_TASK_MESSAGE)
        .max_encoding_message_size(MAX_TASK_MESSAGE);
    let contexts = ContextServiceServer::new(Contexts(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let fleet = FleetServiceServer::new(Fleet(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let agents = AgentServiceServer::new(Agents::new(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let events = EventServiceServer::new(Events(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let enrollment = EnrollmentServiceServer::new(Enrollment(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let access = AccessServiceServer::new(Access(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let checkpoints = CheckpointServiceServer::new(Checkpoints(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_TASK_MESSAGE);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<TaskServiceServer<Tasks>>().await;
    reporter.set_serving::<AgentServiceServer<Agents>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let grpc = Routes::new(tasks)
        .add_service(contexts)
        .add_service(fleet)
        .add_service(agents)
        .add_service(events)
        .add_service(enrollment)
        .add_service(access)
        .add_service(checkpoints)
        .add_service(health)
        .add_service(reflection);
    let guarded = grpc
        .into_axum_router()
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(coordinator),
            to_the_end,
        ))
        .merge(routes::routes(Arc::clone(coordinator)))
        .layer(axum::middleware::from_fn_with_state(door, auth::guard));
    Ok(web::for_browsers(guarded, web_origins))
}

/// Carries a call that began out to its end, whether or not its caller waits for it: what is
/// stored has consequences that nobody else would see to.
async fn to_the_end(
    State(coordinator): State<Arc<Coordinator>>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    match coordinator.tasks.spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => http::StatusCode::SERVICE_UNAVAILABLE.into_response(),
        },
    }
}

/// The two ends of a shutdown.
#[derive(Debug, Clone)]
pub(crate) struct Stopping {
    /// Take no new connection and no new call; finish what is open.
    pub(crate) gracefully: CancellationToken,
    /// Drop what is still open.
    pub(crate) now: CancellationToken,
}

/// What is served.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) router: Router,
    /// `None` = in the clear.
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) identities: Arc<Identities>,
}

/// Serves until told to stop, and comes back when no connection is left.
pub(crate) async fn serve(mut listener: Box<dyn Listener>, served: Served, stopping: Stopping) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.gracefully.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                connections.spawn(connection(stream, served.clone(), stopping.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: Box<dyn Wire>, served: Served, stopping: Stopping) {
    let Served {
        router,
        tls,
        identities,
    } = served;
    let Some(acceptor) = tls else {
        return converse(
            stream,
            TowerToHyperService::new(router),
            stopping,
            CancellationToken::new(),
        )
        .await;
    };
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => accepted,
        () = stopping.gracefully.cancelled() => return,
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "no TLS"),
        Err(_) => return tracing::debug!("the TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = match certificate.map(peer) {
        None => None,
        Some(Some(peer)) => Some(peer),
        // The CA signs no certificate without an agent's name in it.
        Some(None) => return tracing::warn!("a certificate of the CA names no agent"),
    };
    let enrolled = peer.and_then(|peer| identities.enrolled(peer.agent));
    let revoked = enrolled.map_or_else(CancellationToken::new, |agent| agent.revoked);
    // One that is revoked already may connect, to be told so; what is open then is cut.
    let cut = if revoked.is_cancelled() {
        CancellationToken::new()
    } else {
        revoked
    };
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        request
    });
    converse(stream, TowerToHyperService::new(service), stopping, cut).await;
}

/// Whose certificate it is.
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

async fn converse<S, I>(stream: I, service: S, stopping: Stopping, cut: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<
            http::Request<hyper::body::Incoming>,
            Response = axum::response::Response,
            Error = Infallible,
        > + Send
        + 'static,
    S::Future: Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            () = stopping.now.cancelled() => return,
            () = stopping.gracefully.cancelled(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            () = cut.cancelled() => {
                // What was said just before, such as why, is still to be read: ends are polite first.
                if !asked {
                    connection.as_mut().graceful_shutdown();
                }
                let ended = tokio::time::timeout(LAST_WORDS, &mut connection).await;
                tracing::info!(in_time = ended.is_ok(), "the connection of a revoked agent ended");
                return;
            }
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
        }
    }
}
