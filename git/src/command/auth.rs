//! How git authenticates to a remote, and which remote it trusts. Tokens never show in `Debug`.

use std::fmt;
use std::path::PathBuf;

#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    None,
    /// `Authorization: Bearer ...` on every request.
    Bearer(String),
    /// TLS with the remote's own CA.
    Tls(TlsAuth),
}

/// TLS credentials, and the only CA that is trusted.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsAuth {
    /// Sent with every request.
    pub token: Option<String>,
    /// PEM file of the CA that signed the remote's certificate.
    pub ca: Option<PathBuf>,
    /// PEM files of the client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bearer(_) => f.write_str("Bearer(..)"),
            Self::Tls(tls) => f.debug_tuple("Tls").field(&tls.ca).finish(),
        }
    }
}
