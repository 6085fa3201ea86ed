//! A connection to a coordinator, shared by agent, command line and tests: one channel
//! with its time-outs, windows and keepalive, and the bearer token on every call.
//!
//! Whoever sends bulk data uses a second [`Client`], so that control messages never
//! wait behind it.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::v1::agent_service_client::AgentServiceClient;
use crate::v1::context_service_client::ContextServiceClient;
use crate::v1::event_service_client::EventServiceClient;
use crate::v1::fleet_service_client::FleetServiceClient;
use crate::v1::task_service_client::TaskServiceClient;
use crate::{MAX_MESSAGE, MAX_TASK_MESSAGE};

/// Flow-control window of one HTTP/2 stream, on both sides.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Flow-control window of a connection: a few streams that nobody reads must not stop
/// the others.
pub const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be one.
    #[error("{url:?} is not the address of a coordinator")]
    Address {
        /// What was given.
        url: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The token has bytes that no header may have.
    #[error("the token is not printable text")]
    Token,
    /// Nobody answered.
    #[error("no coordinator answers at {url}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Puts the bearer token on every call.
#[derive(Debug, Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A channel that carries the token.
pub type Authorised = InterceptedService<Channel, Bearer>;

/// A connection to a coordinator. Cloning it shares the connection.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Authorised,
}

impl Client {
    /// Connects, and fails when nobody answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(url: &str, token: &str) -> Result<Self, ConnectError> {
        let bearer = bearer(token)?;
        let channel = endpoint(url)?
            .connect()
            .await
            .map_err(|source| ConnectError::Unreachable {
                url: url.to_owned(),
                source,
            })?;
        Ok(Self::over(channel, bearer))
    }

    /// Connects when the first call is made, and again after the connection broke.
    /// Needs a running tokio runtime.
    ///
    /// # Errors
    /// When address or token cannot be used.
    pub fn connect_lazy(url: &str, token: &str) -> Result<Self, ConnectError> {
        let bearer = bearer(token)?;
        Ok(Self::over(endpoint(url)?.connect_lazy(), bearer))
    }

    fn over(channel: Channel, bearer: Bearer) -> Self {
        Self {
            channel: InterceptedService::new(channel, bearer),
        }
    }

    /// The channel, for services that are not Kage's own (health, reflection).
    #[must_use]
    pub fn channel(&self) -> Authorised {
        self.channel.clone()
    }

    /// Tasks: create, watch, cancel, report.
    #[must_use]
    pub fn tasks(&self) -> TaskServiceClient<Authorised> {
        TaskServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_TASK_MESSAGE)
            .max_encoding_message_size(MAX_TASK_MESSAGE)
    }

    /// Contexts: put, get, statistics.
    #[must_use]
    pub fn contexts(&self) -> ContextServiceClient<Authorised> {
        ContextServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Agents: list, drain.
    #[must_use]
    pub fn fleet(&self) -> FleetServiceClient<Authorised> {
        FleetServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// The control session of an agent.
    #[must_use]
    pub fn agent(&self) -> AgentServiceClient<Authorised> {
        AgentServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Delivery of events and output.
    #[must_use]
    pub fn events(&self) -> EventServiceClient<Authorised> {
        EventServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

fn bearer(token: &str) -> Result<Bearer, ConnectError> {
    let mut value: MetadataValue<Ascii> = crate::blob::bearer(token.trim())
        .parse()
        .map_err(|_| ConnectError::Token)?;
    value.set_sensitive(true);
    Ok(Bearer(value))
}

fn endpoint(url: &str) -> Result<Endpoint, ConnectError> {
    Ok(Endpoint::from_shared(url.to_owned())
        .map_err(|source| ConnectError::Address {
            url: url.to_owned(),
            source,
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}
