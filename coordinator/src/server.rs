//! The port: one listener for gRPC, blobs, git and metrics, over HTTP/1.1 and HTTP/2
//! without TLS (which is why it is loopback only), and how it is shut down.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kage_proto::client::{CONNECTION_WINDOW, STREAM_WINDOW};
use kage_proto::v1::agent_service_server::AgentServiceServer;
use kage_proto::v1::context_service_server::ContextServiceServer;
use kage_proto::v1::event_service_server::EventServiceServer;
use kage_proto::v1::fleet_service_server::FleetServiceServer;
use kage_proto::v1::task_service_server::TaskServiceServer;
use kage_proto::{FILE_DESCRIPTOR_SET, MAX_MESSAGE, MAX_TASK_MESSAGE};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::auth::{self, Door};
use crate::coordinator::Coordinator;
use crate::http;
use crate::services::agent::Agents;
use crate::services::context::Contexts;
use crate::services::event::Events;
use crate::services::fleet::Fleet;
use crate::services::task::Tasks;

/// Calls that one connection may have open at once; more wait in the client.
const MAX_STREAMS: u32 = 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the head of an HTTP/1.1 request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The wait after the system refused to accept, so that it is not asked in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The reflection service could not be made of the descriptors in this program.
pub(crate) type ReflectionError = tonic_reflection::server::Error;

/// Every route, behind the door.
pub(crate) async fn router(coordinator: &Arc<Coordinator>, door: Door) -> Result<Router, ReflectionError> {
    let tasks = TaskServiceServer::new(Tasks(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_TASK_MESSAGE)
        .max_encoding_message_size(MAX_TASK_MESSAGE);
    let contexts = ContextServiceServer::new(Contexts(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let fleet = FleetServiceServer::new(Fleet(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let agents = AgentServiceServer::new(Agents(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let events = EventServiceServer::new(Events(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
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
        .add_service(health)
        .add_service(reflection);
    Ok(grpc
        .into_axum_router()
        .merge(http::routes(Arc::clone(coordinator)))
        .layer(axum::middleware::from_fn_with_state(door, auth::guard)))
}

/// The two ends of a shutdown.
#[derive(Debug, Clone)]
pub(crate) struct Stopping {
    /// Take no new connection and no new call; finish what is open.
    pub(crate) gracefully: CancellationToken,
    /// Drop what is still open.
    pub(crate) now: CancellationToken,
}

/// Serves until told to stop, and comes back when no connection is left.
pub(crate) async fn serve(listener: TcpListener, router: Router, stopping: Stopping) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.gracefully.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, router.clone(), stopping.clone()));
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

async fn connection(stream: TcpStream, router: Router, stopping: Stopping) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
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
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut asked = false;
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
            () = stopping.gracefully.cancelled(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            () = stopping.now.cancelled() => return,
        }
    }
}
