//! The connection to the coordinator: down, connecting or up, and the events of each state. The
//! owner decides when to connect and what to say.
//!
//! ```text
//!   Down --wait--> Connecting --> Up (Hello, then Welcome) --broken or silent--> Down
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_proto::client::ConnectError;
use kage_proto::convert::agent::Hello;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as ToCoordinator;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::sleep_until;
use crate::identity::trust::Keyring;

/// Messages waiting for the connection. When full, the coordinator reads nothing, and the
/// connection counts as dead.
const OUTBOUND: usize = 1024;
/// How long connecting and Welcome may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Heartbeat intervals of silence after which the coordinator counts as away.
const SILENT_INTERVALS: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub(super) enum ControlLinkError {
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    #[error("the control session ended")]
    Call(#[source] ApiError),
    #[error("the coordinator is silent")]
    Silent,
    #[error("the coordinator closed the control session")]
    Closed,
    #[error("the coordinator does not accept messages")]
    Full,
}

pub(super) struct Connected {
    pub(super) outbound: mpsc::Sender<v1::ConnectRequest>,
    pub(super) inbound: tonic::Streaming<v1::ConnectResponse>,
    /// When the last message came, or the connection was made.
    pub(super) heard: Instant,
    /// The Welcome; `None` before it came.
    pub(super) welcome: Option<Welcomed>,
}

pub(super) struct Welcomed {
    /// The time of the Welcome.
    pub(super) since: Instant,
    pub(super) interval: Duration,
    pub(super) next: Instant,
    pub(super) sequence: u64,
    /// Unanswered heartbeats, and when they were sent.
    pub(super) asked: BTreeMap<u64, Instant>,
}

pub(super) enum ControlLink {
    Down { until: Instant },
    Connecting(BoxFuture<'static, Result<Box<Connected>, ControlLinkError>>),
    Up(Box<Connected>),
}

pub(super) enum News {
    /// It is time to connect again.
    Retry,
    Connected(Result<Box<Connected>, ControlLinkError>),
    Message(Box<Result<Option<v1::ConnectResponse>, tonic::Status>>),
    Heartbeat,
    /// The coordinator has been silent for too long.
    Silent,
}

impl ControlLink {
    /// The time since Welcome.
    pub(super) fn lasted(&self) -> Option<Duration> {
        match self {
            Self::Up(connected) => connected.welcome.as_ref().map(|welcome| welcome.since.elapsed()),
            Self::Down { .. } | Self::Connecting(_) => None,
        }
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> News {
        match self {
            Self::Down { until } => {
                tokio::time::sleep_until(*until).await;
                News::Retry
            }
            Self::Connecting(connecting) => News::Connected(connecting.await),
            Self::Up(connected) => connected.next().await,
        }
    }
}

impl Connected {
    /// The next event of a connection. Cancel-safe.
    async fn next(&mut self) -> News {
        let (silent, heartbeat) = match &self.welcome {
            None => (self.heard + CONNECT, None),
            Some(welcome) => (
                self.heard + (welcome.interval * SILENT_INTERVALS).max(Duration::from_secs(2)),
                Some(welcome.next),
            ),
        };
        tokio::select! {
            biased;
            () = sleep_until(heartbeat), if heartbeat.is_some() => News::Heartbeat,
            message = self.inbound.message() => News::Message(Box::new(message)),
            () = tokio::time::sleep_until(silent) => News::Silent,
        }
    }
}

/// Connects and sends Hello.
pub(super) async fn connect(url: String, keyring: Keyring, hello: Hello) -> Result<Box<Connected>, ControlLinkError> {
    let connecting = async {
        let client = keyring.connect(&url).await.map_err(ControlLinkError::Connect)?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        outbound
            .try_send(request(ToCoordinator::Hello(hello.into())))
            .map_err(|_| ControlLinkError::Full)?;
        let response = client.agent().connect(ReceiverStream::new(messages)).await;
        let inbound = response
            .map_err(|status| ControlLinkError::Call(status.into()))?
            .into_inner();
        Ok(Box::new(Connected {
            outbound,
            inbound,
            heard: Instant::now(),
            welcome: None,
        }))
    };
    tokio::time::timeout(CONNECT, connecting)
        .await
        .unwrap_or(Err(ControlLinkError::Silent))
}

pub(super) const fn request(message: ToCoordinator) -> v1::ConnectRequest {
    v1::ConnectRequest { message: Some(message) }
}
