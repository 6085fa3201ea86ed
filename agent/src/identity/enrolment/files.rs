//! The files of an agent that joined: its key, its certificate and its coordinator's CA. Each is
//! written atomically, readable only by its owner.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kage_git::private::make_private;
use kage_proto::client::PemFile;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;

use super::JoinError;

const TLS_DIR: &str = "tls";
pub(crate) const KEY: &str = "agent.key";
pub(crate) const CERTIFICATE: &str = "agent.pem";
pub(crate) const CA: &str = "ca.pem";
/// The CA before the coordinator has agreed.
pub(super) const NEW_CA: &str = "ca.new.pem";

/// The folder of the key and the certificates.
#[derive(Debug, Clone)]
pub(crate) struct CredentialFiles(PathBuf);

impl CredentialFiles {
    /// The files of an agent that may have joined.
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self(state_dir.join(TLS_DIR))
    }

    pub(super) fn open(state_dir: &Path) -> Result<Self, JoinError> {
        let files = Self::of(state_dir);
        match make_private(&files.0) {
            Ok(()) => Ok(files),
            Err(source) => Err(JoinError::Io { path: files.0, source }),
        }
    }

    /// The key of an earlier try, or a new one that is stored before it is used.
    pub(crate) fn key(&self) -> Result<KeyPair, JoinError> {
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

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    pub(crate) fn read(&self, name: &str) -> Result<PemFile, JoinError> {
        let path = self.0.join(name);
        PemFile::read(&path).map_err(|source| JoinError::Io { path, source })
    }

    /// Writes a file atomically, readable only by its owner.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<(), JoinError> {
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

/// A certificate request for the key, DER. The coordinator chooses the names.
pub(crate) fn request(key: &KeyPair) -> Result<Vec<u8>, JoinError> {
    let request = CertificateParams::default()
        .serialize_request(key)
        .map_err(JoinError::Key)?;
    Ok(request.der().to_vec())
}

pub(super) fn pem(der: &CertificateDer<'_>) -> String {
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
