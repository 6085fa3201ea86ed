//! Backups of a coordinator's data: a folder like the data folder, made while the coordinator works,
//! that has everything which its database names.
//!
//! ```text
//!   hold removals -> copy the database at one moment -> read what it names -> copy that -> sync
//!                                                                        -> write backup.json last
//! ```
//! Blobs, output, objects and references are there before a row names them, and nothing is removed
//! meanwhile (`data::standstill`), so what is copied after the database has everything that it names.

use std::io;
use std::path::{Path, PathBuf};

use kage_core::cause::chain;
use kage_core::id::{Digest, Oid, ProjectId, RepositoryName, SessionId};
use kage_core::time::Timestamp;
use serde::{Deserialize, Serialize};

mod checking;
mod copying;
mod making;
mod restoring;

pub use checking::verify;
pub use making::make;
pub use restoring::restore;

use crate::data::folder::DataDirError;
use crate::store::{CopyError, OpenError};

/// The file that makes a folder a backup; it is written when everything else is durable.
const MANIFEST: &str = "backup.json";
const FORMAT: u32 = 1;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The version of the program that made it.
    version: String,
    made_at: Timestamp,
    store: String,
    position: u64,
}

impl Manifest {
    /// `None` when the folder is no finished backup.
    fn read(folder: &Path) -> Result<Option<Self>, BackupError> {
        let path = folder.join(MANIFEST);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(BackupError::io("read", &path)(source)),
        };
        let manifest: Self = serde_json::from_slice(&text).map_err(|source| BackupError::Manifest {
            path: path.clone(),
            source,
        })?;
        match manifest.format {
            FORMAT => Ok(Some(manifest)),
            found => Err(BackupError::Newer { path, found }),
        }
    }
}

/// What a backup, or a data folder, has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contained {
    pub tasks: u64,
    /// Attempts whose output may be there.
    pub attempts: usize,
    pub blobs: usize,
    pub repositories: usize,
    /// Bases and results that rows name.
    pub commits: usize,
    /// The bytes of all its files, as far as they were read.
    pub bytes: u64,
    /// What rows name and is not there, or not as it was written; empty when all is well.
    pub flaws: Vec<Flaw>,
}

/// Something that rows name and that is not there as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("blob {digest} of project {project} is missing")]
    BlobMissing { project: ProjectId, digest: Digest },
    #[error("blob {digest} of project {project} has other bytes")]
    BlobChanged { project: ProjectId, digest: Digest },
    #[error("repository {repository} of project {project} is missing")]
    RepositoryMissing {
        project: ProjectId,
        repository: RepositoryName,
    },
    #[error("commit {commit} in repository {repository} of project {project} is missing or damaged ({problem})")]
    Commit {
        project: ProjectId,
        repository: RepositoryName,
        commit: Oid,
        /// git's words.
        problem: String,
    },
    #[error(
        "the reference to the result of session {session} in repository {repository} of project {project} is missing"
    )]
    ReferenceMissing {
        project: ProjectId,
        repository: RepositoryName,
        session: SessionId,
    },
    #[error("the folder is of store {folder}, and its database of {database}")]
    OtherStore { folder: String, database: String },
}

impl Serialize for Flaw {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Why a backup was not made, checked or put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is not empty; name a folder that does not exist yet", path.display())]
    NotEmpty { path: PathBuf },
    /// A backup in the folder that it is of.
    #[error("{} is in the data folder; name a folder outside of it", path.display())]
    Inside { path: PathBuf },
    #[error("{} is no data folder of a coordinator: it has no kage.db", path.display())]
    NoData { path: PathBuf },
    #[error("{} is no finished backup: it has no {MANIFEST}; make another one", path.display())]
    Unfinished { path: PathBuf },
    #[error("{} is of format {found}, which a newer version wrote", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("{} cannot be read", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// The coordinator's sweep takes long.
    #[error("files of {} are being removed; try again when that has ended", path.display())]
    Removing { path: PathBuf },
    /// The backup lacks what its rows name.
    #[error(
        "the backup is not whole: {}; restore another one, or this one as it is with --incomplete",
        list(flaws)
    )]
    Flawed { flaws: Vec<Flaw> },
    #[error("the data folder cannot be used")]
    DataDir(#[source] DataDirError),
    #[error("the database cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the repositories cannot be read")]
    Git(#[source] kage_git::GitError),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the work was interrupted")]
    Interrupted,
}

fn list(flaws: &[Flaw]) -> String {
    const TOLD: usize = 5;
    let told: Vec<_> = flaws.iter().take(TOLD).map(ToString::to_string).collect();
    match flaws.len().saturating_sub(TOLD) {
        0 => told.join("; "),
        more => format!("{}; and {more} more", told.join("; ")),
    }
}

impl BackupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// True when the person who asked can correct that.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::NotEmpty { .. }
            | Self::Inside { .. }
            | Self::NoData { .. }
            | Self::Unfinished { .. }
            | Self::Newer { .. }
            | Self::Manifest { .. }
            | Self::Removing { .. }
            | Self::Flawed { .. }
            | Self::DataDir(_)
            | Self::Database(_)
            | Self::Io { .. } => true,
            Self::Git(_) | Self::Interrupted => false,
        }
    }
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> Self {
        Self::Database(Box::new(error))
    }
}

impl From<CopyError> for BackupError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Open(error) => error.into(),
            error @ CopyError::Rows(_) => Self::Database(chain(&error).into()),
        }
    }
}

/// Work that waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| BackupError::Interrupted)?
}
