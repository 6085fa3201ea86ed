//! How git shows itself to a remote, and whom it believes. Tokens never show in `Debug`.

use std::fmt;
use std::path::PathBuf;

/// How to authenticate to a remote.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// `Authorization: Bearer ...` on every request.
    Bearer(String),
    /// Over TLS, with a CA of the remote's own.
    Tls(TlsAuth),
}

/// How to authenticate over TLS, and whom to believe. Nobody else's CA is trusted.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsAuth {
    /// Shown with every request, if there is one.
    pub token: Option<String>,
    /// PEM file of the CA that the remote's certificate is checked with.
    pub ca: Option<PathBuf>,
    /// PEM files of a certificate and its key, shown when a connection is made.
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
