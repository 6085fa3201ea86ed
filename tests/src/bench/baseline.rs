//! The baselines of the figures: the bare transport and the bare database, without Kage Bunshin.
//! The transport's server runs in a separate process, like the coordinator.

use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use hdrhistogram::Histogram;
use kage_proto::client::{CONNECTION_WINDOW, Client, STREAM_WINDOW};
use kage_proto::convert::time::span;
use kage_proto::v1;
use kage_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use kage_proto::v1::event_service_server::{EventService, EventServiceServer};
use kage_proto::v1::fleet_service_server::{FleetService, FleetServiceServer};
use kage_proto::v1::{connect_request, connect_response};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::bench::adapter::Noise;

/// The heartbeat interval of the bare transport's agents: that of a coordinator's.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A gRPC server without state: it echoes a unary call, and discards a client's stream.
#[derive(Debug, Clone, Copy)]
struct Bare;

#[tonic::async_trait]
impl FleetService for Bare {
    async fn list_agents(
        &self,
        _request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Ok(Response::new(v1::ListAgentsResponse::default()))
    }

    async fn drain_agent(
        &self,
        request: Request<v1::DrainAgentRequest>,
    ) -> Result<Response<v1::DrainAgentResponse>, Status> {
        let agent = v1::Agent {
            name: request.into_inner().agent,
            ..v1::Agent::default()
        };
        Ok(Response::new(v1::DrainAgentResponse { agent: Some(agent) }))
    }

    async fn cordon_agent(
        &self,
        _request: Request<v1::CordonAgentRequest>,
    ) -> Result<Response<v1::CordonAgentResponse>, Status> {
        Ok(Response::new(v1::CordonAgentResponse::default()))
    }

    async fn uncordon_agent(
        &self,
        _request: Request<v1::UncordonAgentRequest>,
    ) -> Result<Response<v1::UncordonAgentResponse>, Status> {
        Ok(Response::new(v1::UncordonAgentResponse::default()))
    }

    async fn create_join_token(
        &self,
        _request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        Ok(Response::new(v1::CreateJoinTokenResponse::default()))
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentResponse>, Status> {
        let agent_id = request.into_inner().agent;
        Ok(Response::new(v1::RevokeAgentResponse { agent_id }))
    }
}

#[tonic::async_trait]
impl AgentService for Bare {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<v1::ConnectResponse, Status>> + Send>>;

    /// Answers as an empty coordinator does.
    async fn connect(
        &self,
        request: Request<Streaming<v1::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let answer = |message| v1::ConnectResponse { message: Some(message) };
        let answers = request.into_inner().filter_map(move |request| {
            let reply = request.map(|request| match request.message {
                Some(connect_request::Message::Hello(_)) => {
                    Some(answer(connect_response::Message::Welcome(v1::Welcome {
                        heartbeat_interval: Some(span(HEARTBEAT)),
                        ..v1::Welcome::default()
                    })))
                }
                Some(connect_request::Message::Heartbeat(beat)) => {
                    let sequence = beat.sequence;
                    Some(answer(connect_response::Message::HeartbeatAck(v1::HeartbeatAck {
                        sequence,
                        ..v1::HeartbeatAck::default()
                    })))
                }
                _ => None,
            });
            std::future::ready(reply.transpose())
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[tonic::async_trait]
impl EventService for Bare {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<v1::AppendResponse, Status>> + Send>>;

    /// One answer, at the end: the number of bytes received.
    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut requests = request.into_inner();
        let mut offset = 0;
        while let Some(request) = requests.message().await? {
            if let Some(v1::append_request::Batch::Output(batch)) = request.batch {
                offset += batch.data.len() as u64;
            }
        }
        let response = v1::AppendResponse {
            result: Some(v1::append_response::Result::AckedOutput(v1::OutputAck {
                offset,
                ..v1::OutputAck::default()
            })),
            ..v1::AppendResponse::default()
        };
        Ok(Response::new(stream::iter([Ok(response)]).boxed()))
    }
}

/// Serves the bare transport until the process is killed, and writes its address to a file.
pub async fn serve(endpoint: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let partial = endpoint.with_extension("partial");
    std::fs::write(&partial, format!("http://{address}"))?;
    std::fs::rename(&partial, endpoint)?;
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(FleetServiceServer::new(Bare))
        .add_service(AgentServiceServer::new(Bare).max_decoding_message_size(kage_proto::MAX_MESSAGE))
        .add_service(EventServiceServer::new(Bare).max_decoding_message_size(kage_proto::MAX_MESSAGE))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

/// Unary calls per second with this many in flight.
pub async fn echoes_per_second(client: &Client, in_flight: usize, time: Duration) -> anyhow::Result<f64> {
    let end = Instant::now() + time;
    let start = Instant::now();
    let counts = stream::iter(0..in_flight)
        .map(|_| async {
            let mut count = 0_u64;
            while Instant::now() < end {
                echo(client).await?;
                count += 1;
            }
            anyhow::Ok(count)
        })
        .buffer_unordered(in_flight)
        .collect::<Vec<_>>()
        .await;
    let count: u64 = counts.into_iter().sum::<anyhow::Result<u64>>()?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// The median time of a unary call, one at a time.
pub async fn echo_median(client: &Client, calls: u32) -> anyhow::Result<Duration> {
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..calls {
        let start = Instant::now();
        echo(client).await?;
        times.record(u64::try_from(start.elapsed().as_nanos())?)?;
    }
    Ok(Duration::from_nanos(times.value_at_quantile(0.5)))
}

async fn echo(client: &Client) -> anyhow::Result<()> {
    let request = v1::DrainAgentRequest {
        request_id: "00000000000000000000000000000000".to_owned(),
        agent: "agent".to_owned(),
    };
    client.fleet().drain_agent(request).await?;
    Ok(())
}

/// MiB per second of one client stream in batches of the size that agents send.
///
/// # Errors
/// When the stream breaks, or not every byte arrives.
pub async fn stream_mib_per_second(client: &Client, bytes: u64) -> anyhow::Result<f64> {
    let mut noise = Noise::new(0);
    let batch: Bytes = noise.take(kage_proto::MAX_INLINE);
    let batches = bytes / batch.len() as u64;
    let size = batch.len() as u64;
    let requests = stream::iter(0..batches).map(move |index| v1::AppendRequest {
        key: None,
        batch: Some(v1::append_request::Batch::Output(v1::OutputBatch {
            stream: v1::OutputStream::Stdout.into(),
            offset: index * size,
            data: batch.clone(),
        })),
    });
    let start = Instant::now();
    let mut responses = client.events().append(requests).await?.into_inner();
    let response = responses.message().await?.context("the server answers")?;
    let elapsed = start.elapsed();
    match response.result {
        Some(v1::append_response::Result::AckedOutput(ack)) if ack.offset == batches * size => {
            Ok(ack.offset as f64 / f64::from(1 << 20) / elapsed.as_secs_f64())
        }
        other => anyhow::bail!("not every byte arrived: {other:?}"),
    }
}

/// Commits per second of one row each: SQLite, WAL, `synchronous=FULL`, one connection.
pub fn commits_per_second(directory: &Path, time: Duration) -> anyhow::Result<f64> {
    let database = rusqlite::Connection::open(directory.join("baseline.db"))?;
    database.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT);",
    )?;
    let mut insert = database.prepare("INSERT INTO row (text) VALUES (?1)")?;
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < time {
        insert.execute(["a row of about the size of a session's state: 0123456789abcdef"])?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bare_transport_answers_and_counts_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = directory.path().join("endpoint");
        let served = endpoint.clone();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move { serve(&served).await });
        let url = crate::wait::wait_for("the bare transport listens", async || {
            std::fs::read_to_string(&endpoint).ok()
        })
        .await;
        let client = Client::connect(&url, "none").await.unwrap();
        assert!(echoes_per_second(&client, 4, Duration::from_millis(50)).await.unwrap() > 0.0);
        assert!(echo_median(&client, 3).await.unwrap() > Duration::ZERO);
        assert!(stream_mib_per_second(&client, 4 << 20).await.unwrap() > 0.0);
        let commits = commits_per_second(directory.path(), Duration::from_millis(20)).unwrap();
        assert!(commits > 0.0);
    }
}
