//! A connection to a coordinator, shared by agent, command line and tests: one channel with its
//! time-outs, windows and keepalive, TLS for https addresses, and the bearer token on every call.
//!
//! Senders of bulk data use a second [`Client`], so that control messages never wait behind the
//! data.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Request, Status};
use tower::service_fn;

use crate::v1::access_service_client::AccessServiceClient;
use crate::v1::agent_service_client::AgentServiceClient;
use crate::v1::checkpoint_service_client::CheckpointServiceClient;
use crate::v1::context_service_client::ContextServiceClient;
use crate::v1::cost_service_client::CostServiceClient;
use crate::v1::enrollment_service_client::EnrollmentServiceClient;
use crate::v1::event_service_client::EventServiceClient;
use crate::v1::fleet_service_client::FleetServiceClient;
use crate::v1::model_gate_service_client::ModelGateServiceClient;
use crate::v1::project_service_client::ProjectServiceClient;
use crate::v1::server_service_client::ServerServiceClient;
use crate::v1::task_service_client::TaskServiceClient;
use crate::{MAX_MESSAGE, MAX_TASK_MESSAGE};

/// Flow-control window of one HTTP/2 stream, on both sides.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Flow-control window of a connection: a few unread streams must not stop the others.
pub const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The text is not an address.
    #[error("{url:?} is not the address of a coordinator")]
    Address {
        /// The given text.
        url: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The token would be readable on the way.
    #[error("a token goes to another machine over https only; {url:?} is neither https nor on this machine")]
    Plain {
        /// The given address.
        url: String,
    },
    /// The token has bytes that a header cannot have.
    #[error("the token is not printable text")]
    Token,
    /// A certificate or key cannot be used.
    #[error("the certificates for {url} cannot be used")]
    Tls {
        /// For whom they were meant.
        url: String,
        /// The problem with the certificates.
        #[source]
        source: tonic::transport::Error,
    },
    /// No coordinator answered.
    #[error("no coordinator answers at {url}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A transport for bytes in both directions.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection that is being made.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;

/// How the connection under a client is made.
#[derive(Clone, Default)]
pub enum Dial {
    /// By TCP of this machine.
    #[default]
    Tcp,
    /// Another way, for a simulation with its own network.
    With(Arc<dyn Fn(Uri) -> Dialling + Send + Sync>),
}

impl Dial {
    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        match self {
            Self::Tcp => endpoint.connect().await,
            Self::With(dial) => {
                let dial = Arc::clone(dial);
                let connector = service_fn(move |uri| wire(dial(uri)));
                endpoint.connect_with_connector(connector).await
            }
        }
    }

    fn connect_lazy(&self, endpoint: &Endpoint) -> Channel {
        match self {
            Self::Tcp => endpoint.connect_lazy(),
            Self::With(dial) => {
                let dial = Arc::clone(dial);
                endpoint.connect_with_connector_lazy(service_fn(move |uri| wire(dial(uri))))
            }
        }
    }
}

async fn wire(dialling: Dialling) -> io::Result<TokioIo<Box<dyn Wire>>> {
    dialling.await.map(TokioIo::new)
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp => f.write_str("Tcp"),
            Self::With(_) => f.debug_tuple("With").finish_non_exhaustive(),
        }
    }
}

/// A file of certificates or keys, read once. Its path is for git, which reads it itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    path: PathBuf,
    content: Vec<u8>,
}

impl PemFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: impl Into<PathBuf>) -> std::io::Result<Self> {
        let path = std::path::absolute(path.into())?;
        let content = std::fs::read(&path)?;
        Ok(Self { path, content })
    }

    /// Where it is; absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the file.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

impl std::fmt::Debug for PemFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PemFile").field(&self.path).finish()
    }
}

/// A certificate that identifies the caller, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM.
    pub certificate: PemFile,
    /// PEM.
    pub key: PemFile,
}

/// The caller's credentials, and the CA that it trusts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Shown with every call. Never logged.
    pub token: Option<String>,
    /// Needed for https: no other CA is trusted.
    pub ca: Option<PemFile>,
    /// Shown when a connection is made.
    pub identity: Option<ClientCertificate>,
}

impl Credentials {
    /// A bearer token; white space around it is no part of it.
    #[must_use]
    pub fn bearer(token: &str) -> Self {
        Self {
            token: Some(token.trim().to_owned()),
            ..Self::default()
        }
    }

    /// The same, for a coordinator with a certificate of this CA.
    #[must_use]
    pub fn trusting(self, ca: PemFile) -> Self {
        Self { ca: Some(ca), ..self }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Adds the bearer token, if there is one, to every call.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
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
    /// Connects, and fails when no coordinator answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(url: &str, token: &str) -> Result<Self, ConnectError> {
        Self::connect_as(url, &Credentials::bearer(token)).await
    }

    /// Connects when the first call is made, and again after the connection broke.
    /// Needs a running tokio runtime.
    ///
    /// # Errors
    /// When address or token cannot be used.
    pub fn connect_lazy(url: &str, token: &str) -> Result<Self, ConnectError> {
        Self::connect_lazy_as(url, &Credentials::bearer(token))
    }

    /// As [`Client::connect`], with anything that a coordinator may want to see.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_as(url: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        Self::connect_by(&Dial::Tcp, url, credentials).await
    }

    /// As [`Client::connect_as`], over a connection that is made so.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_by(dial: &Dial, url: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        let bearer = bearer(credentials)?;
        let endpoint = endpoint(url, credentials)?;
        let channel = dial.connect(&endpoint).await;
        let channel = channel.map_err(|source| ConnectError::Unreachable {
            url: url.to_owned(),
            source,
        })?;
        Ok(Self::over(channel, bearer))
    }

    /// As [`Client::connect_lazy`], with anything that a coordinator may want to see.
    ///
    /// # Errors
    /// When address, token or certificates cannot be used.
    pub fn connect_lazy_as(url: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        Self::connect_lazy_by(&Dial::Tcp, url, credentials)
    }

    /// As [`Client::connect_lazy_as`], over connections that are made so.
    ///
    /// # Errors
    /// When address, token or certificates cannot be used.
    pub fn connect_lazy_by(dial: &Dial, url: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        let bearer = bearer(credentials)?;
        let endpoint = endpoint(url, credentials)?;
        Ok(Self::over(dial.connect_lazy(&endpoint), bearer))
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

    /// Checkpoints: list, show, restore, create.
    #[must_use]
    pub fn checkpoints(&self) -> CheckpointServiceClient<Authorised> {
        CheckpointServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_TASK_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
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

    /// Projects and their repositories: list.
    #[must_use]
    pub fn projects(&self) -> ProjectServiceClient<Authorised> {
        ProjectServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// The coordinator itself.
    #[must_use]
    pub fn server(&self) -> ServerServiceClient<Authorised> {
        ServerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Tokens of people: create, list, revoke.
    #[must_use]
    pub fn access(&self) -> AccessServiceClient<Authorised> {
        AccessServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// How an agent gets its certificate.
    #[must_use]
    pub fn enrollment(&self) -> EnrollmentServiceClient<Authorised> {
        EnrollmentServiceClient::new(self.channel.clone())
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

    /// The ledger of calls of models.
    #[must_use]
    pub fn costs(&self) -> CostServiceClient<Authorised> {
        CostServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// What agents ask before calls of models.
    #[must_use]
    pub fn model_gate(&self) -> ModelGateServiceClient<Authorised> {
        ModelGateServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

fn bearer(credentials: &Credentials) -> Result<Bearer, ConnectError> {
    let Some(token) = &credentials.token else {
        return Ok(Bearer(None));
    };
    let mut value: MetadataValue<Ascii> = crate::blob::bearer(token.trim())
        .parse()
        .map_err(|_| ConnectError::Token)?;
    value.set_sensitive(true);
    Ok(Bearer(Some(value)))
}

fn endpoint(url: &str, credentials: &Credentials) -> Result<Endpoint, ConnectError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
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
        .initial_connection_window_size(CONNECTION_WINDOW);
    if endpoint.uri().scheme_str() != Some("https") {
        if credentials.token.is_some() && !is_loopback(endpoint.uri().host().unwrap_or_default()) {
            return Err(ConnectError::Plain { url: url.to_owned() });
        }
        return Ok(endpoint);
    }
    let mut tls = ClientTlsConfig::new();
    if let Some(ca) = &credentials.ca {
        tls = tls.ca_certificate(Certificate::from_pem(ca.content()));
    }
    if let Some(identity) = &credentials.identity {
        let (certificate, key) = (identity.certificate.content(), identity.key.content());
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    endpoint.tls_config(tls).map_err(|source| ConnectError::Tls {
        url: url.to_owned(),
        source,
    })
}

/// True for an address or name that never leaves this machine.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leaves_the_machine_over_https_only() {
        let token = Credentials::bearer("secret");
        for url in [
            "http://127.0.0.1:7443",
            "http://127.1.2.3",
            "http://localhost:1",
            "http://LOCALHOST:1",
            "http://[::1]:1",
            "https://elsewhere:7443",
        ] {
            assert!(endpoint(url, &token).is_ok(), "{url}");
        }
        for url in [
            "http://elsewhere:7443",
            "http://10.0.0.1",
            "http://0.0.0.0:1",
            "http://[2001:db8::1]:1",
            "http://localhost.example:1",
            "elsewhere:7443",
        ] {
            let refused = endpoint(url, &token);
            assert!(matches!(refused, Err(ConnectError::Plain { .. })), "{url}");
        }
        assert!(endpoint("http://elsewhere:7443", &Credentials::default()).is_ok());
    }
}
