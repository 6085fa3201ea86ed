//! The CA of a coordinator that is unknown so far, checked against the digest in a join token on a
//! connection on which nothing is sent.

use std::sync::{Arc, Mutex, PoisonError};

use kage_core::id::Digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::JoinError;

/// The CA of the server at the address, if it is the one that the token pins.
pub(super) async fn ca(
    host: &str,
    port: u16,
    address: &str,
    pin: &Digest,
) -> Result<CertificateDer<'static>, JoinError> {
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

/// Trusts the one CA whose public key has the digest, as if it had been configured.
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
