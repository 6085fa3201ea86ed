//! How an agent on another machine joins: once, with a join token, after which it holds a
//! certificate of its own.
//!
//! The token pins the coordinator's CA. That CA is checked first, on a connection on which nothing
//! is sent; only then is the secret sent, on a connection that trusts that CA alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_core::access::JoinToken;
use kage_core::id::{AgentId, InvalidId};
use kage_core::time::Timestamp;
use kage_proto::client::{Client, ClientCertificate, ConnectError, Credentials};
use kage_proto::convert::time::time;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::identity::state::{StateDir, StateError};
use crate::ports::Random;

pub(crate) mod files;
mod pinned;

use files::{CA, CERTIFICATE, CredentialFiles, KEY, NEW_CA};

/// How long each step may take.
const STEP: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{address:?} is not the address of a coordinator (HOST:PORT)")]
    Address { address: String },
    #[error("cannot use the state directory")]
    State(#[source] StateError),
    /// A file of the state directory could not be read or written.
    #[error("cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// No server speaks TLS at the address.
    #[error("no coordinator answers with TLS at {address}")]
    Unreachable {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{address} is not the coordinator that made this token: its CA does not match; nothing was sent to it")]
    OtherCa { address: String },
    /// The server answers, but no second connection could be made.
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    #[error("the coordinator refused")]
    Refused(#[source] ApiError),
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// The coordinator answered with an invalid id.
    #[error("the coordinator sent an invalid answer")]
    Answer(#[source] InvalidId),
    /// The coordinator did not answer in time.
    #[error("the coordinator at {address} did not answer in time")]
    Silent { address: String },
    /// A blocking part was cut short: the runtime is shutting down.
    #[error("the start was interrupted")]
    Interrupted,
}

/// The identity of an agent that has joined.
#[derive(Debug)]
pub struct Joined {
    pub agent: AgentId,
    pub credentials: Credentials,
    /// When its certificate ends.
    pub expires_at: Timestamp,
}

/// The credentials of an agent with this state directory, if it has joined.
pub fn stored(state_dir: &Path) -> Result<Option<Credentials>, JoinError> {
    let files = CredentialFiles::of(state_dir);
    // The certificate is written last: without it the agent has not joined.
    if !files.has(CERTIFICATE) {
        return Ok(None);
    }
    Ok(Some(Credentials {
        token: None,
        ca: Some(files.read(CA)?),
        identity: Some(ClientCertificate {
            certificate: files.read(CERTIFICATE)?,
            key: files.read(KEY)?,
        }),
    }))
}

/// Joins the coordinator at `HOST:PORT` with a join token.
///
/// It may be repeated after a failure half way: the key stays the same, and with it the token is
/// valid for the same agent.
pub async fn join(state_dir: &Path, address: &str, token: &JoinToken, random: &Random) -> Result<Joined, JoinError> {
    let url = format!("https://{address}");
    let invalid = || JoinError::Address {
        address: address.to_owned(),
    };
    let parsed = url::Url::parse(&url).map_err(|_| invalid())?;
    let host = parsed.host_str().ok_or_else(invalid)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = parsed.port_or_known_default().ok_or_else(invalid)?;
    let (root, random) = (state_dir.to_owned(), Arc::clone(random));
    let opening = tokio::task::spawn_blocking(move || {
        let state = StateDir::open(&root, &random).map_err(JoinError::State)?;
        let files = CredentialFiles::open(&root)?;
        let key = files.key()?;
        Ok::<_, JoinError>((state, files, key))
    });
    let (state, files, key) = opening.await.map_err(|_| JoinError::Interrupted)??;

    let silent = |_| JoinError::Silent {
        address: address.to_owned(),
    };
    let ca = tokio::time::timeout(STEP, pinned::ca(&host, port, address, &token.ca))
        .await
        .map_err(silent)??;
    let authority = files::pem(&ca);
    // An agent that joined before needs its old CA when this coordinator refuses.
    files.write(NEW_CA, &authority)?;
    let request = files::request(&key)?;
    let trusting = Credentials::default().trusting(files.read(NEW_CA)?);
    let enrolling = async {
        let client = Client::connect_as(&url, &trusting).await.map_err(JoinError::Connect)?;
        let message = v1::EnrollRequest {
            token_id: token.id.to_string(),
            secret: token.secret.clone(),
            project: String::new(),
            certificate_request: request,
        };
        let response = client.enrollment().enroll(message).await;
        response.map_err(|status| JoinError::Refused(status.into()))
    };
    let response = tokio::time::timeout(STEP, enrolling).await.map_err(silent)??;
    let response = response.into_inner();
    let agent: AgentId = response.agent_id.parse().map_err(JoinError::Answer)?;
    state.adopt(agent).map_err(JoinError::State)?;
    files.write(CA, &authority)?;
    files.write(CERTIFICATE, &response.certificate)?;
    Ok(Joined {
        agent,
        credentials: Credentials {
            token: None,
            ca: Some(files.read(CA)?),
            identity: Some(ClientCertificate {
                certificate: files.read(CERTIFICATE)?,
                key: files.read(KEY)?,
            }),
        },
        expires_at: time(response.expires_at.unwrap_or_default()),
    })
}
