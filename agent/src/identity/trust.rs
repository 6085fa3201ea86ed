//! The agent's credentials for its coordinator, replaced when its certificate is renewed, their
//! forms for git and the HTTP client, and the connections made with them.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kage_git::{Auth, TlsAuth};
use kage_proto::blob;
use kage_proto::client::{Client, ConnectError, Credentials, Dial};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

/// Silence after which an HTTP request counts as lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// The present credentials. Clones share them: every new connection uses the newest.
#[derive(Debug, Clone)]
pub struct Keyring {
    shown: Arc<RwLock<Shown>>,
    dial: Dial,
}

#[derive(Debug)]
struct Shown {
    credentials: Credentials,
    http: reqwest::Client,
    sending: reqwest::Client,
}

impl Shown {
    fn new(credentials: Credentials) -> reqwest::Result<Self> {
        let client = || Ok::<_, reqwest::Error>(http_client(&credentials)?.connect_timeout(SILENCE).no_proxy());
        Ok(Self {
            http: client()?.read_timeout(SILENCE).build()?,
            sending: client()?.build()?,
            credentials,
        })
    }
}

impl Keyring {
    /// A keyring with these credentials; fails when a certificate or key is unusable.
    pub fn new(credentials: Credentials, dial: Dial) -> reqwest::Result<Self> {
        let shown = Arc::new(RwLock::new(Shown::new(credentials)?));
        Ok(Self { shown, dial })
    }

    pub async fn connect(&self, url: &str) -> Result<Client, ConnectError> {
        Client::connect_by(&self.dial, url, &self.credentials()).await
    }

    /// A connection that is made when it is used.
    pub fn connect_lazy(&self, url: &str) -> Result<Client, ConnectError> {
        Client::connect_lazy_by(&self.dial, url, &self.credentials())
    }

    /// The credentials of a new connection.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.read(|shown| shown.credentials.clone())
    }

    /// An HTTP client with the credentials, for the coordinator only.
    #[must_use]
    pub fn http(&self) -> reqwest::Client {
        self.read(|shown| shown.http.clone())
    }

    /// The client for uploads, which have to be watched: the other client's time-out counts from
    /// the start of the request and not from the end of its body.
    #[must_use]
    pub fn sending(&self) -> reqwest::Client {
        self.read(|shown| shown.sending.clone())
    }

    /// Uses these from now on. Open connections keep the old ones.
    pub(crate) fn replace(&self, credentials: Credentials) -> reqwest::Result<()> {
        let shown = Shown::new(credentials)?;
        // A value is replaced whole: a panic elsewhere leaves the old one.
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&Shown) -> T) -> T {
        look(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The credentials in git's form.
#[must_use]
pub fn git_auth(credentials: &Credentials) -> Auth {
    let path = |file: &kage_proto::client::PemFile| file.path().to_owned();
    if credentials.ca.is_none() && credentials.identity.is_none() {
        return credentials.token.clone().map_or(Auth::None, Auth::Bearer);
    }
    Auth::Tls(TlsAuth {
        token: credentials.token.clone(),
        ca: credentials.ca.as_ref().map(path),
        identity: credentials
            .identity
            .as_ref()
            .map(|identity| (path(&identity.certificate), path(&identity.key))),
    })
}

/// An HTTP client that authenticates every request, and trusts only the given CA. For requests to
/// the coordinator only.
pub fn http_client(credentials: &Credentials) -> reqwest::Result<reqwest::ClientBuilder> {
    // Unless the process chose already, TLS uses ring everywhere.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::trace!("a TLS provider is installed already");
    }
    let authorities = match &credentials.ca {
        Some(ca) => reqwest::Certificate::from_pem_bundle(ca.content())?,
        // The system's CAs are not read, which would take as long as the rest of a start.
        None => Vec::new(),
    };
    let mut builder = reqwest::Client::builder().tls_certs_only(authorities);
    if let Some(identity) = &credentials.identity {
        let pem = [identity.certificate.content(), b"\n", identity.key.content()].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&pem)?);
    }
    if let Some(token) = &credentials.token
        // A token that no header may have was refused when the connection was made.
        && let Ok(mut value) = HeaderValue::from_str(&blob::bearer(token))
    {
        value.set_sensitive(true);
        builder = builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
    }
    Ok(builder)
}
