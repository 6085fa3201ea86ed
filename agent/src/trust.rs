//! Credentials in the words of git and of the HTTP client, for whoever talks to a
//! coordinator beside gRPC.

use kage_git::{Auth, TlsAuth};
use kage_proto::blob;
use kage_proto::client::Credentials;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

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
    let mut builder = reqwest::Client::builder();
    if let Some(ca) = &credentials.ca {
        builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(ca.content())?);
    }
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
