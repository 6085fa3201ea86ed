//! What a copy of the store has to come with: the files and commits that its rows name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kage_core::id::{Oid, ProjectId, RepositoryName, SessionId, StoreId};

use super::error::{EngineError, OpenError};
use super::query::{InFiles, TaskView};
use super::{Store, sqlite};

impl Store {
    /// Copies everything that is committed at one moment into a new file, while others may write.
    ///
    /// # Errors
    /// When the database is damaged or of another version, or the file cannot be written.
    pub(crate) fn copy(path: &Path, to: &Path) -> Result<(), OpenError> {
        sqlite::copy(path, to)
    }

    /// Looks for damage in a whole database, which takes as long as reading it.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub(crate) fn check(path: &Path) -> Result<(), OpenError> {
        sqlite::check(path)
    }

    /// What the rows of a database that nobody writes to name.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub(crate) fn contents(path: &Path) -> Result<Contents, CopyError> {
        sqlite::contents(path)
    }
}

/// Everything that the rows of a database name outside of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// `None` = no coordinator has opened it.
    pub(crate) id: Option<StoreId>,
    pub(crate) opened: u64,
    pub(crate) position: u64,
    pub(crate) tasks: u64,
    pub(crate) files: InFiles,
    pub(crate) repositories: BTreeMap<(ProjectId, RepositoryName), NamedCommits>,
}

/// The commits of a repository that rows name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NamedCommits {
    pub(crate) bases: BTreeSet<Oid>,
    /// The sessions with a result, which has a reference.
    pub(crate) results: BTreeMap<SessionId, Oid>,
}

impl Contents {
    pub(super) fn of(store: Option<([u8; 16], i64, i64)>, files: InFiles) -> Self {
        let (id, opened, position) = store.map_or((None, 0, 0), |(id, opened, position)| {
            let id = StoreId::from_random(u128::from_be_bytes(id));
            (Some(id), opened.unsigned_abs(), position.unsigned_abs())
        });
        Self {
            id,
            opened,
            position,
            files,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, view: &TaskView) {
        self.tasks += 1;
        let Some(repository) = &view.task.spec.repository else {
            return;
        };
        let key = (view.task.spec.project.clone(), repository.name.clone());
        let named = self.repositories.entry(key).or_default();
        named.bases.insert(repository.base.clone());
        for session in &view.sessions {
            if let Some(result) = session.state.result() {
                named.results.insert(session.id, result.commit.clone());
            }
        }
    }
}

/// Why a copy cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the rows cannot be read")]
    Rows(#[from] EngineError),
}
