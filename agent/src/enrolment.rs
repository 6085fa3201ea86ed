//! How an agent on another machine joins: once, with a join token, after which it holds a
//! certificate of its own.
//!
//! The token says which CA the coordinator has. That is checked first, on a connection on
//! which nothing is sent; only then, on one that trusts that CA alone, the secret is.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kage_core::access::JoinToken;
use kage_core::id::{AgentId, Digest, InvalidId};
use kage_core::time::Timestamp;
use kage_proto::client::{Client, ClientCertificate, ConnectError, Credentials, PemFile};
use kage_proto::status::ApiError;
use kage_proto::v1;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ports::Random;
use crate::state::{StateDir, StateError};

const TLS_DIR: &str = "tls";
const KEY: &str = "agent.key";
const CERTIFICATE: &str = "agent.pem";
const CA: &str = "ca.pem";
/// How long each step may take.
const STEP: Duration = Duration::from_secs(15);

/// Why an agent could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The address is none.
    #[error("{address:?} is not the address of a coordinator (HOST:PORT)")]
    Address {
        /// What was given.
        address: String,
    },
    /// Its state directory cannot be used.
    #[error("cannot use the state directory")]
    State(#[source] StateError),
    /// A file of it could not be read or written.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Nobody speaks TLS there.
    #[error("no coordinator answers with TLS at {address}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else answers.
    #[error("{address} is not the coordinator that made this token: its CA is another one; nothing was sent to it")]
    OtherCa {
        /// Where.
        address: String,
    },
    /// It answers, and no second connection could be made.
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    /// It says no.
    #[error("the coordinator refused")]
    Refused(#[source] ApiError),
    /// No key could be made.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// It answered with an id that is none.
    #[error("the coordinator answered nonsense")]
    Answer(#[source] InvalidId),
    /// It did not answer in time.
    #[error("the coordinator at {address} did not answer in time")]
    Silent {
        /// Where.
        address: String,
    },
    /// A blocking part was cut short: the runtime is shutting down.
    #[error("the start was interrupted")]
    Interrupted,
}

/// What an agent is after it joined.
#[derive(Debug)]
pub struct Joined {
    /// Its id from now on.
    pub agent: AgentId,
    /// What it shows and whom it trusts.
    pub credentials: Credentials,
    /// The end of its certificate.
    pub expires_at: Timestamp,
}

/// What an agent with this state directory shows, if it has joined.
///
/// # Errors
/// When a file cannot be read.
pub fn stored(state_dir: &Path) -> Result<Option<Credentials>, JoinError> {
    let dir = state_dir.join(TLS_DIR);
    // The certificate is written last: without it the agent has not joined.
    if !dir.join(CERTIFICATE).exists() {
        return Ok(None);
    }
    let read = |name: &str| {
        let path = dir.join(name);
        PemFile::read(&path).map_err(|source| JoinError::Io { path, source })
    };
    Ok(Some(Credentials {
        token: None,
        ca: Some(read(CA)?),
        identity: Some(ClientCertificate {
            certificate: read(CERTIFICATE)?,
            key: read(KEY)?,
        }),
    }))
}

/// Joins the coordinator at `HOST:PORT` with a join token.
///
/// It may be repeated after it failed half way: the key stays the same, and with it the
/// token is good for the same agent.
///
/// # Errors
/// See [`JoinError`].
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
        let files = Files::open(&root)?;
        let key = files.key()?;
        Ok::<_, JoinError>((state, files, key))
    });
    let (state, files, key) = opening.await.map_err(|_| JoinError::Interrupted)??;

    let silent = |_| JoinError::Silent {
        address: address.to_owned(),
    };
    let ca = tokio::time::timeout(STEP, pinned_ca(&host, port, address, &token.ca))
        .await
        .map_err(silent)??;
    files.write(CA, &pem(&ca))?;
    let ca = files.read(CA)?;
    let request = CertificateParams::default()
        .serialize_request(&key)
        .map_err(JoinError::Key)?;
    let trusting = Credentials::default().trusting(ca.clone());
    let enrolling = async {
        let client = Client::connect_as(&url, &trusting).await.map_err(JoinError::Connect)?;
        let message = v1::EnrollRequest {
            token_id: token.id.to_string(),
            secret: token.secret.clone(),
            project: String::new(),
            certificate_request: request.der().to_vec(),
        };
        let response = client.enrollment().enroll(message).await;
        response.map_err(|status| JoinError::Refused(status.into()))
    };
    let response = tokio::time::timeout(STEP, enrolling).await.map_err(silent)??;
    let response = response.into_inner();
    let agent: AgentId = response.agent_id.parse().map_err(JoinError::Answer)?;
    state.adopt(agent).map_err(JoinError::State)?;
    files.write(CERTIFICATE, &response.certificate)?;
    Ok(Joined {
        agent,
        credentials: Credentials {
            token: None,
            ca: Some(ca),
            identity: Some(ClientCertificate {
                certificate: files.read(CERTIFICATE)?,
                key: files.read(KEY)?,
            }),
        },
        expires_at: Timestamp::from_millis(response.expires_at_ms),
    })
}

/// The folder of the key and the certificates.
struct Files(PathBuf);

impl Files {
    fn open(state_dir: &Path) -> Result<Self, JoinError> {
        let path = state_dir.join(TLS_DIR);
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(JoinError::Io { path, source }),
        }
    }

    /// The key of an earlier try, or a new one that is stored before it is used.
    fn key(&self) -> Result<KeyPair, JoinError> {
        let path = self.0.join(KEY);
        match std::fs::read_to_string(&path) {
            Ok(text) => KeyPair::from_pem(&text).map_err(JoinError::Key),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(JoinError::Key)?;
                self.write(KEY, &key.serialize_pem())?;
                Ok(key)
            }
            Err(source) => Err(JoinError::Io { path, source }),
        }
    }

    fn read(&self, name: &str) -> Result<PemFile, JoinError> {
        let path = self.0.join(name);
        PemFile::read(&path).map_err(|source| JoinError::Io { path, source })
    }

    /// A whole file or none, that only its owner reads.
    fn write(&self, name: &str, content: &str) -> Result<(), JoinError> {
        let path = self.0.join(name);
        let write = || {
            // A temporary file is made with mode 0600.
            let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
            file.write_all(content.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| JoinError::Io {
            path: path.clone(),
            source,
        })
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The CA of whoever answers there, if it is the one that the token pins.
async fn pinned_ca(host: &str, port: u16, address: &str, pin: &Digest) -> Result<CertificateDer<'static>, JoinError> {
    let unreachable = |source| JoinError::Unreachable {
        address: address.to_owned(),
        source,
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| JoinError::Address {
        address: address.to_owned(),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Arc::new(Pinned {
        pin: pin.clone(),
        provider: Arc::clone(&provider),
        seen: Mutex::new(Seen::Nothing),
    });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreachable(std::io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Pinned>::clone(&pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let seen = std::mem::replace(
        &mut *pinned.seen.lock().unwrap_or_else(PoisonError::into_inner),
        Seen::Nothing,
    );
    match (handshake, seen) {
        (Ok(_), Seen::Right(ca)) => Ok(ca),
        (_, Seen::Other) => Err(JoinError::OtherCa {
            address: address.to_owned(),
        }),
        (Err(source), Seen::Right(_) | Seen::Nothing) => Err(unreachable(source)),
        (Ok(_), Seen::Nothing) => Err(unreachable(std::io::Error::other("no certificate was shown"))),
    }
}

#[derive(Debug)]
enum Seen {
    Nothing,
    Other,
    Right(CertificateDer<'static>),
}

/// Trusts the one CA whose public key has the digest, as if it had been given.
#[derive(Debug)]
struct Pinned {
    pin: Digest,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Seen>,
}

impl Pinned {
    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = ParsedCertificate::try_from(certificate);
        parsed.is_ok_and(|parsed| Digest::of(&parsed.subject_public_key_info()) == self.pin)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|certificate| self.is_pinned(certificate));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ca) = ca else {
            *seen = Seen::Other;
            return Err(rustls::CertificateError::UnknownIssuer.into());
        };
        *seen = Seen::Right(ca.clone().into_owned());
        drop(seen);
        // Anyone can show the CA's certificate; the server's own has to be signed by it.
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
