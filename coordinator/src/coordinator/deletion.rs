//! Deleting a repository. Whether no task is of it is decided in a transaction; nobody makes a task of
//! it or pushes to it from before that until it is out of the way.
//!
//! ```text
//!   close off --> decide (one transaction) --> move into quarantine --> open again
//!   CreateTask: hold --> its base is here --> store the task --> let go
//!   push:       hold --> receive ------------------------------> let go
//! ```
//! A crash leaves a repository that no task is of: the call that is repeated takes it away.

use std::io;

use kage_core::id::{ProjectId, RepositoryName};

use super::Coordinator;
use crate::data::repositories::Busy;
use crate::store::{DeleteRepository, RepositoryFate, Request, StoreError};

/// Why a repository was not deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeletionError {
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("a backup is being made; try again when that has ended")]
    BackedUp,
    #[error("it was not decided")]
    Store(#[source] StoreError),
    #[error("the repository cannot be moved out of the way")]
    Io(#[from] io::Error),
}

impl Coordinator {
    /// Deletes a repository that no task is of. It is kept in quarantine for a while.
    pub(crate) async fn delete_repository(
        &self,
        request: Request,
        project: &ProjectId,
        name: &RepositoryName,
    ) -> Result<(), DeletionError> {
        let _closed = self.repositories.close_off(project, name)?;
        let _removing = self.removals.begin()?.ok_or(DeletionError::BackedUp)?;
        let now = self.now();
        let present = self.repositories.is_there(project, name).await?;
        let command = DeleteRepository {
            request,
            project: project.clone(),
            repository: name.clone(),
            present,
            now,
        };
        match self.apply(command).await.map_err(DeletionError::Store)? {
            RepositoryFate::Goes if present => {
                let place = self.quarantine.place_of_repository(now, project, name);
                self.quarantine.begin(now).await?;
                self.repositories.take_away(project, name, place).await?;
                tracing::info!(%project, repository = %name, "repository deleted");
            }
            RepositoryFate::Stays | RepositoryFate::Goes => {}
        }
        Ok(())
    }
}
