//! Repositories: whether one may go. What is in them is not rows.

use super::{Command, earlier_reply, not_found, remember};
use crate::store::command::{DeleteRepository, RepositoryFate};
use crate::store::error::StoreError;
use crate::store::rows::{Failed, Rows};
use crate::store::unit::Key;

const DELETE_REPOSITORY: &str = "delete_repository";

impl Command for DeleteRepository {
    type Outcome = RepositoryFate;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(DELETE_REPOSITORY, &self.request),
            Key::TaskOn(self.project.clone(), self.repository.clone()),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<RepositoryFate, Failed> {
        let repeated = earlier_reply(rows, DELETE_REPOSITORY, &self.request)?.is_some();
        match (rows.task_on(&self.project, &self.repository)?, repeated) {
            // The caller may have died before it was taken away.
            (None, true) => Ok(RepositoryFate::Goes),
            (Some(_), true) => Ok(RepositoryFate::Stays),
            (_, false) if !self.present => Err(not_found("repository", &self.repository)),
            (Some(task), false) => Err(Failed::Refused(StoreError::RepositoryInUse { task })),
            (None, false) => {
                remember(rows, DELETE_REPOSITORY, self.request, String::new(), self.now)?;
                Ok(RepositoryFate::Goes)
            }
        }
    }
}
