//! Renewal of the certificate of an agent that joined: requested when two thirds of the present
//! one's life are over, with the same key, so that certificate and key fit whichever of two files a
//! crash leaves. The coordinator may be away for weeks before that matters.

use std::time::Duration;

use kage_core::time::Timestamp;
use kage_proto::client::{ClientCertificate, ConnectError, Credentials};
use kage_proto::status::ApiError;
use kage_proto::v1;
use tokio_util::sync::CancellationToken;
use x509_parser::pem::parse_x509_pem;

use crate::identity::enrolment::JoinError;
use crate::identity::enrolment::files::{CERTIFICATE, CredentialFiles, KEY, request};
use crate::identity::trust::Keyring;
use crate::ports::Clock;

/// How long one attempt may take.
const STEP: Duration = Duration::from_secs(30);

/// The period in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Validity {
    /// The validity of the first certificate of a PEM file; `None` when there is none.
    #[must_use]
    pub fn of(pem: &[u8]) -> Option<Self> {
        let (_, pem) = parse_x509_pem(pem).ok()?;
        let validity = pem.parse_x509().ok()?.validity().clone();
        let at = |seconds: i64| {
            let seconds = u64::try_from(seconds).ok()?;
            Some(Timestamp::from_millis(seconds.saturating_mul(1000)))
        };
        Some(Self {
            from: at(validity.not_before.timestamp())?,
            until: at(validity.not_after.timestamp())?,
        })
    }

    /// When the next certificate is requested.
    #[must_use]
    pub fn renewal(&self) -> Timestamp {
        self.from + self.until.since(self.from) / 3 * 2
    }
}

/// Why there is no next certificate yet.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("the agent's files cannot be used")]
    Files(#[source] JoinError),
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    #[error("the coordinator refused")]
    Refused(#[source] ApiError),
    #[error("the coordinator did not answer in time")]
    Silent,
    #[error("the coordinator did not send a certificate")]
    Answer,
    #[error("the new certificate cannot be shown")]
    Unusable(#[source] reqwest::Error),
    #[error("the renewal was cut off")]
    Interrupted,
}

/// Renews the certificate before it expires.
pub(crate) struct Renewal {
    pub(crate) files: CredentialFiles,
    pub(crate) keyring: Keyring,
    pub(crate) coordinator_url: String,
    pub(crate) clock: Clock,
    /// How often it checks, and how long it waits after a failure.
    pub(crate) check: Duration,
}

impl Renewal {
    /// Checks now and then until shutdown. An agent with a token has nothing to renew.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let looking = async {
            while let Some(identity) = self.keyring.credentials().identity {
                self.look(identity).await;
                tokio::time::sleep(self.check).await;
            }
        };
        shutdown.run_until_cancelled(looking).await;
    }

    async fn look(&self, identity: ClientCertificate) {
        let now = (self.clock)();
        let Some(validity) = Validity::of(identity.certificate.content()) else {
            return tracing::warn!("the agent's certificate cannot be read, so its end is not known");
        };
        if now < validity.renewal() {
            return;
        }
        match self.renew().await {
            Ok(until) => tracing::info!(%until, "the agent's certificate was renewed"),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, until = %validity.until, "the agent's certificate could not be renewed");
            }
        }
    }

    async fn renew(&self) -> Result<Timestamp, RenewalError> {
        let files = self.files.clone();
        let key = tokio::task::spawn_blocking(move || files.key()).await;
        let key = key
            .map_err(|_| RenewalError::Interrupted)?
            .map_err(RenewalError::Files)?;
        let message = v1::RenewRequest {
            certificate_request: request(&key).map_err(RenewalError::Files)?,
        };
        let credentials = self.keyring.credentials();
        let asking = async {
            let client = self.keyring.connect(&self.coordinator_url).await;
            let client = client.map_err(RenewalError::Connect)?;
            let response = client.enrollment().renew(message).await;
            response.map_err(|status| RenewalError::Refused(status.into()))
        };
        let response = tokio::time::timeout(STEP, asking)
            .await
            .map_err(|_| RenewalError::Silent)??;
        let certificate = response.into_inner().certificate;
        let validity = Validity::of(certificate.as_bytes()).ok_or(RenewalError::Answer)?;
        let files = self.files.clone();
        let storing = tokio::task::spawn_blocking(move || {
            files.write(CERTIFICATE, &certificate)?;
            Ok((files.read(CERTIFICATE)?, files.read(KEY)?))
        });
        let stored = storing.await.map_err(|_| RenewalError::Interrupted)?;
        let (certificate, key) = stored.map_err(RenewalError::Files)?;
        let renewed = Credentials {
            identity: Some(ClientCertificate { certificate, key }),
            ..credentials
        };
        self.keyring.replace(renewed).map_err(RenewalError::Unusable)?;
        Ok(validity.until)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let day = Duration::from_secs(24 * 60 * 60);
        let from = Timestamp::from_millis(1_790_000_000_000);
        let until = from + 90 * day;
        let at = |time: Timestamp| std::time::UNIX_EPOCH + Duration::from_millis(time.as_millis());
        let mut params = CertificateParams::default();
        params.not_before = at(from).into();
        params.not_after = at(until).into();
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let validity = Validity::of(pem.as_bytes()).unwrap();
        assert_eq!(validity, Validity { from, until });
        assert_eq!(validity.renewal(), from + 60 * day);
        assert_eq!(Validity::of(b"nothing"), None);
        assert_eq!(Validity::of(b""), None);
    }
}
