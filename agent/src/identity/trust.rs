//! What an agent shows to its coordinator, which is replaced when its certificate is renewed,
//! and the same in the words of git and of the HTTP client; how connections are made with it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kage_git::{Auth, TlsAuth};
use kage_proto::blob;
use kage_proto::client::{Client, ConnectError, Credentials, Dial};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

/// Silence after which an HTTP request counts as lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// What is shown now. Clones share it: whoever makes the next connection shows the newest.
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
    /// Shows these.
    ///
    /// # Errors
    /// When a certificate or key cannot be used.
    pub fn new(credentials: Credentials, dial: Dial) -> reqwest::Result<Self> {
        let shown = Arc::new(RwLock::new(Shown::new(credentials)?));
        Ok(Self { shown, dial })
    }

    /// Connects to a coordinator.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, url: &str) -> Result<Client, ConnectError> {
        Client::connect_by(&self.dial, url, &self.credentials()).await
    }

    /// What a new connection shows.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.read(|shown| shown.credentials.clone())
    }

    /// An HTTP client that shows it, for the coordinator and nobody else.
    #[must_use]
    pub fn http(&self) -> reqwest::Client {
        self.read(|shown| shown.http.clone())
    }

    /// The same for what is sent, which has to be watched: the other one's time-out begins
    /// with the request and not with its end.
    #[must_use]
    pub fn sending(&self) -> reqwest::Client {
        self.read(|shown| shown.sending.clone())
    }

    /// Shows these from now on. Open connections stay what they are.
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

/// How git shows who calls.
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

/// An HTTP client that shows who calls with every request, and trusts the CA given only.
/// It is for requests to the coordinator and to nobody else.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn http_client(credentials: &Credentials) -> reqwest::Result<reqwest::ClientBuilder> {
    // Where nobody chose before, TLS is ring's everywhere in this process.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::trace!("a TLS provider is installed already");
    }
    let authorities = match &credentials.ca {
        Some(ca) => reqwest::Certificate::from_pem_bundle(ca.content())?,
        // Those of the system are not read, which would take as long as the rest of a start.
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
