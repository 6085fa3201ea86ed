//! Why a coordinator does not start, or stops by itself, and whose matter that is.

use std::net::SocketAddr;
use std::path::PathBuf;

use kage_git::program::ProgramError;

use crate::config::InvalidConfig;
use crate::data::authority::AuthorityError;
use crate::data::blobs::BlobError;
use crate::data::custody::{LookError, Misfit};
use crate::data::folder::DataDirError;
use crate::life::listeners::Process;
use crate::life::server::ReflectionError;
use crate::store::{OpenError, ReadError, StoreError};

/// Why a coordinator did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the configuration cannot be used")]
    Config(#[source] InvalidConfig),
    #[error("git cannot be used here")]
    Git(#[source] ProgramError),
    #[error("the data directory cannot be used")]
    DataDir(#[source] DataDirError),
    /// The directory and its database do not belong together.
    #[error("the coordinator does not start on this data")]
    Misfit(#[source] Misfit),
    /// The check whether they belong together failed.
    #[error("the data cannot be inspected")]
    Look(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("TLS cannot be set up")]
    Tls(#[source] AuthorityError),
    #[error("the store cannot be opened")]
    Open(#[source] OpenError),
    #[error("the store cannot be written")]
    Store(#[source] StoreError),
    #[error("the store cannot be read")]
    Read(#[source] ReadError),
    #[error("the blobs cannot be opened")]
    Blobs(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address is in use, or does not belong to this machine.
    #[error("cannot listen on {address}{}", said_of(listener.as_ref()))]
    Listen {
        address: SocketAddr,
        /// The process that listens there, if that is known.
        listener: Option<Process>,
        #[source]
        source: std::io::Error,
    },
    /// The database's files were taken away from a running coordinator.
    #[error(
        "{} was removed or replaced while the coordinator ran, so it acknowledged nothing more and stopped; put the \
         file back that was there (what was acknowledged is in it and its kage.db-wal), and start again", path.display()
    )]
    Lost { path: PathBuf },
    /// The service descriptions in this program are broken.
    #[error("gRPC reflection cannot be set up")]
    Reflection(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<LookError> for RunError {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Misfit(misfit) => Self::Misfit(misfit),
            LookError::Io { .. } => Self::Look(Box::new(error)),
        }
    }
}

fn said_of(listener: Option<&Process>) -> String {
    listener.map_or_else(String::new, |listener| {
        format!(", where {listener} listens; end it, or choose another port with --listen")
    })
}

impl RunError {
    /// True when the person who started it can correct that: the arguments, the port, the folder,
    /// git.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Git(_)
            | Self::DataDir(_)
            | Self::Misfit(_)
            | Self::Open(OpenError::Damaged { .. } | OpenError::Held { .. })
            | Self::Lost { .. }
            | Self::Listen { .. } => true,
            Self::Tls(_)
            | Self::Look(_)
            | Self::Open(_)
            | Self::Store(_)
            | Self::Read(_)
            | Self::Blobs(_)
            | Self::Reflection(_) => false,
        }
    }
}

impl From<BlobError> for RunError {
    fn from(error: BlobError) -> Self {
        Self::Blobs(Box::new(error))
    }
}

impl From<ReflectionError> for RunError {
    fn from(error: ReflectionError) -> Self {
        Self::Reflection(Box::new(error))
    }
}
