//! The coordinator's own certificate authority: made at the first start that needs one, kept in
//! `tls/` of the data directory (keys with mode 0600). It signs the certificate of this
//! coordinator, which is renewed before it ends, and those of agents. Callers decide who may have
//! one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use kage_core::access::agent_uri;
use kage_core::id::{AgentId, Digest};
use kage_core::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use crate::data::folder::{DataDirError, TlsDir};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
const SERVER_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The server's certificate is renewed when no more than this is left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Certificates start this far in the past, for machines whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// An agent's certificate starts at most this part of its life in the past.
const SKEW_PART: u32 = 45;
const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SERVER: &str = "server.pem";
const SERVER_KEY: &str = "server.key";

/// Why TLS is not available.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the TLS files cannot be used")]
    Files(#[source] DataDirError),
    /// A name is not allowed in a certificate.
    #[error("{name:?} cannot be the name of a coordinator")]
    Name {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be made.
    #[error("a certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// A stored file is not a certificate or key.
    #[error("{path} cannot be used; remove its folder to start over (every agent then has to join again)")]
    Stored {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS library rejects the certificate or key.
    #[error("TLS cannot be set up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// Not a valid request, or not signed with the key that it names.
    #[error("the certificate request cannot be used: {0}")]
    Request(rcgen::Error),
    #[error("the certificate cannot be signed")]
    Sign(#[source] rcgen::Error),
}

/// A certificate request whose sender has the key that it names.
pub(crate) struct CheckedRequest {
    request: CertificateSigningRequestParams,
    pub(crate) key: Digest,
}

/// The certificate authority. Not `Debug`: it holds keys.
pub(crate) struct Authority {
    files: TlsDir,
    names: Vec<String>,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    digest: Digest,
    server: Arc<Server>,
}

/// The server's certificate, which may be replaced while connections are made.
#[derive(Debug)]
struct Server {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Server {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Replacing a pointer cannot be half done.
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Authority {
    /// Reads the stored certificates, and makes those that are missing or near their end. Blocks on
    /// the disk.
    pub(crate) fn open(files: TlsDir, names: Vec<String>, now: Timestamp) -> Result<Self, AuthorityError> {
        let read = |name: &str| files.read(name).map_err(AuthorityError::Files);
        let stored = |name: &str| stored(files.path().join(name));
        let (ca_pem, key) = match (read(CA)?, read(CA_KEY)?) {
            (Some(certificate), Some(key)) => (certificate, key),
            // A new CA would shut out every agent that trusts this one.
            (Some(_), None) => return Err(stored(CA_KEY)("the key of ca.pem is missing".into())),
            // A key without its certificate is what a crash in between left.
            (None, _) => make_ca(&files, now)?,
        };
        let key = KeyPair::from_pem(&key).map_err(|error| stored(CA_KEY)(Box::new(error)))?;
        let digest = Digest::of(&key.subject_public_key_info());
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|error| stored(CA)(Box::new(error)))?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| stored(CA)(Box::new(error)))?;
        let parsed = ParsedCertificate::try_from(&ca_der).map_err(|error| stored(CA)(Box::new(error)))?;
        if Digest::of(&parsed.subject_public_key_info()) != digest {
            return Err(stored(CA)("the certificate is not of the key beside it".into()));
        }
        let (certificate, key) = match (read(SERVER)?, read(SERVER_KEY)?) {
            (Some(certificate), Some(key)) if is_good(&certificate, &names, now) => (certificate, key),
            (_, _) => make_server(&files, &issuer, &names, now)?,
        };
        let server = certified(&certificate, &key, &ca_der)?;
        Ok(Self {
            files,
            names,
            ca_pem,
            ca_der,
            issuer,
            digest,
            server: Arc::new(Server {
                current: RwLock::new(Arc::new(server)),
            }),
        })
    }

    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Digest of the CA's public key, which join tokens pin.
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The server's TLS settings: its own certificate, and a request for a client certificate,
    /// which only agents have.
    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, AuthorityError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| AuthorityError::Tls(error);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(self.ca_der.clone())
            .map_err(|error| failed(Box::new(error)))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| failed(Box::new(error)))?;
        let server: Arc<dyn ResolvesServerCert> = self.server.clone();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(Box::new(error)))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(server);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Replaces the server's certificate when it is near its end. Blocks on the disk.
    pub(crate) fn renew(&self, now: Timestamp) -> Result<bool, AuthorityError> {
        let stored = self.files.read(SERVER).map_err(AuthorityError::Files)?;
        if stored.is_some_and(|pem| is_good(&pem, &self.names, now)) {
            return Ok(false);
        }
        let (certificate, key) = make_server(&self.files, &self.issuer, &self.names, now)?;
        let fresh = certified(&certificate, &key, &self.ca_der)?;
        *self.server.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(true)
    }

    /// Reads a certificate request and checks that its sender has the key.
    pub(crate) fn check(&self, request: &[u8]) -> Result<CheckedRequest, IssueError> {
        let der = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&der).map_err(IssueError::Request)?;
        let key = Digest::of(&request.public_key.subject_public_key_info());
        Ok(CheckedRequest { request, key })
    }

    /// PEM of a certificate that identifies its holder as this agent.
    pub(crate) fn issue(
        &self,
        checked: &CheckedRequest,
        agent: AgentId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<String, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, agent.to_string());
        let skew = CLOCK_SKEW.min(until.since(now) / SKEW_PART);
        params.not_before = at(now).checked_sub(skew).unwrap_or(SystemTime::UNIX_EPOCH).into();
        params.not_after = at(until).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = agent_uri(agent).try_into().map_err(IssueError::Sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let certificate = params
            .signed_by(&checked.request.public_key, &self.issuer)
            .map_err(IssueError::Sign)?;
        Ok(certificate.pem())
    }
}

/// The names and addresses under which clients may reach a server that listens there.
pub(crate) fn names(listen: SocketAddr, public: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    } else if let Some(address) = outward_address() {
        names.push(address.to_string());
    }
    names.push(rustix::system::uname().nodename().to_string_lossy().into_owned());
    // An address in the one form that a certificate gives back.
    names.extend(public.iter().map(|name| match name.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => name.clone(),
    }));
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

/// The address that this machine has for others. Connecting a datagram socket sends nothing; it
/// only makes the system choose a route, here to an address that is reserved for documentation.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

fn at(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(time.as_millis())
}

fn stored(path: PathBuf) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> AuthorityError {
    move |source| AuthorityError::Stored { path, source }
}

fn make_ca(files: &TlsDir, now: Timestamp) -> Result<(String, String), AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Make)?;
    let key_pem = key.serialize_pem();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        // A name different from the server's: OpenSSL mistakes a certificate with its issuer's name
        // for a self-signed one.
        .push(DnType::CommonName, "Kage Bunshin CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (at(now) - CLOCK_SKEW).into();
    params.not_after = (at(now) + CA_LIFETIME).into();
    let issuer = CertifiedIssuer::self_signed(params, key).map_err(AuthorityError::Make)?;
    let pem = issuer.pem();
    // The key comes first: a certificate without its key would be of no use.
    files.write(CA_KEY, &key_pem).map_err(AuthorityError::Files)?;
    files.write(CA, &pem).map_err(AuthorityError::Files)?;
    Ok((pem, key_pem))
}

fn make_server(
    files: &TlsDir,
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    now: Timestamp,
) -> Result<(String, String), AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Make)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Kage Bunshin coordinator");
    params.use_authority_key_identifier_extension = true;
    params.not_before = (at(now) - CLOCK_SKEW).into();
    params.not_after = (at(now) + SERVER_LIFETIME).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names {
        let alternative = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                let name = name.clone().try_into().map_err(|source| AuthorityError::Name {
                    name: name.clone(),
                    source,
                })?;
                SanType::DnsName(name)
            }
        };
        params.subject_alt_names.push(alternative);
    }
    let pem = params.signed_by(&key, issuer).map_err(AuthorityError::Make)?.pem();
    let key_pem = key.serialize_pem();
    files.write(SERVER_KEY, &key_pem).map_err(AuthorityError::Files)?;
    files.write(SERVER, &pem).map_err(AuthorityError::Files)?;
    Ok((pem, key_pem))
}

/// True when the certificate has these names and is not near its end.
fn is_good(pem: &str, names: &[String], now: Timestamp) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
        return false;
    };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else {
        return false;
    };
    let until = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    let needed = now.as_millis() / 1000 + RENEW_BEFORE.as_secs();
    let mut found: Vec<_> = match certificate.subject_alternative_name() {
        Ok(Some(found)) => found.value.general_names.iter().filter_map(name_of).collect(),
        Ok(None) | Err(_) => return false,
    };
    found.sort();
    until > needed && found == names
}

fn name_of(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else {
        return None;
    };
    if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
        return Some(IpAddr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(*bytes).ok()?;
    Some(IpAddr::from(v6).to_string())
}

/// The certificate followed by its CA, in which a joining agent finds the key that its token pins.
fn certified(pem: &str, key: &str, ca: &CertificateDer<'static>) -> Result<CertifiedKey, AuthorityError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| AuthorityError::Tls(error);
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| failed(Box::new(error)))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| failed(Box::new(error)))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(vec![certificate, ca.clone()], key, &provider).map_err(|error| failed(Box::new(error)))
}

/// How often the server's certificate is checked.
pub(crate) const RENEWAL_CHECK: Duration = DAY;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn open(dir: &Path, names: &[&str], now: Timestamp) -> Authority {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Authority::open(TlsDir::open(dir).unwrap(), names, now).unwrap()
    }

    fn files(dir: &Path) -> [String; 4] {
        [CA, CA_KEY, SERVER, SERVER_KEY].map(|name| std::fs::read_to_string(dir.join("tls").join(name)).unwrap())
    }

    #[test]
    fn the_ca_stays_and_the_server_certificate_follows_its_names_and_its_time() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), &["127.0.0.1", "a.example"], NOW);
        let made = files(dir.path());
        for key in [CA_KEY, SERVER_KEY] {
            let mode = std::fs::metadata(dir.path().join("tls").join(key))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let again = open(dir.path(), &["127.0.0.1", "a.example"], NOW);
        assert_eq!(again.digest(), first.digest());
        assert_eq!(files(dir.path()), made);
        assert!(!again.renew(NOW).unwrap());

        open(dir.path(), &["127.0.0.1", "b.example"], NOW);
        let renamed = files(dir.path());
        assert_eq!(renamed[..2], made[..2]);
        assert_ne!(renamed[2..], made[2..]);

        let renamed = open(dir.path(), &["127.0.0.1", "b.example"], NOW);
        let late = NOW + (SERVER_LIFETIME - RENEW_BEFORE);
        assert!(renamed.renew(late).unwrap());
        assert!(!renamed.renew(late).unwrap());
        let renewed = open(dir.path(), &["127.0.0.1", "b.example"], late);
        assert_eq!(renewed.digest(), first.digest());
    }

    #[test]
    fn a_ca_that_does_not_fit_its_key_is_not_used() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(one.path(), &["a"], NOW);
        open(other.path(), &["a"], NOW);
        std::fs::copy(other.path().join("tls").join(CA), one.path().join("tls").join(CA)).unwrap();
        let opened = Authority::open(TlsDir::open(one.path()).unwrap(), vec!["a".to_owned()], NOW);
        assert!(matches!(opened.err(), Some(AuthorityError::Stored { .. })));
    }

    #[test]
    fn an_address_has_one_form_among_the_names() {
        let listen = SocketAddr::from(([10, 0, 0, 1], 7443));
        let names = names(listen, &["2001:DB8:0::1".to_owned(), "kage.example".to_owned()]);
        assert!(names.contains(&"2001:db8::1".to_owned()) && names.contains(&"kage.example".to_owned()));
        assert!(!names.contains(&"2001:DB8:0::1".to_owned()));
    }

    #[test]
    fn a_ca_whose_key_is_gone_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), &["a"], NOW);
        let tls = dir.path().join("tls");
        let before = std::fs::read(tls.join(CA)).unwrap();
        std::fs::remove_file(tls.join(CA_KEY)).unwrap();
        let opened = Authority::open(TlsDir::open(dir.path()).unwrap(), vec!["a".to_owned()], NOW);
        assert!(matches!(opened.err(), Some(AuthorityError::Stored { .. })));
        assert_eq!(std::fs::read(tls.join(CA)).unwrap(), before);
    }

    #[test]
    fn a_certificate_is_of_the_key_that_signed_its_request() {
        let dir = tempfile::tempdir().unwrap();
        let authority = open(dir.path(), &["a"], NOW);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // Names in a request are ignored.
        let other = agent_uri(AgentId::from_random(666));
        params.subject_alt_names = vec![SanType::URI(other.clone().try_into().unwrap())];
        let request = params.serialize_request(&key).unwrap();
        let checked = authority.check(request.der()).unwrap();
        let agent = AgentId::from_random(7);
        let pem = authority.issue(&checked, agent, NOW, NOW + 90 * DAY).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let text = String::from_utf8_lossy(&der).into_owned();
        assert!(text.contains(&agent_uri(agent)) && !text.contains(&other));

        let mut forged = request.der().to_vec();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        assert!(matches!(authority.check(&forged), Err(IssueError::Request(_))));
        assert!(authority.check(b"nothing").is_err());
    }
}
