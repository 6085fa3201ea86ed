//! What a mirror has, answered by libgit2 in this process: a task asks these questions many times,
//! and a git process for each costs more than the answer. Every call opens the mirror anew, so it
//! sees what other processes put there.

use git2::{ErrorCode, Repository};
use kage_core::id::Oid;

use super::{FIRST_BESIDE, Mirror};
use crate::error::{GitError, blocking};
use crate::objects::{id_of, oid_of};

impl Mirror {
    /// True if the commit is here. Incoming objects are checked to be complete, so its dependencies
    /// are here too. A damaged commit is not here.
    ///
    /// # Errors
    /// When the agent ends.
    pub async fn has_commit(&self, commit: &Oid) -> Result<bool, GitError> {
        Ok(self.tree_of(commit).await?.is_some())
    }

    /// The tree of a commit; `None` if the commit is not here.
    ///
    /// # Errors
    /// As [`Mirror::has_commit`].
    pub async fn tree_of(&self, commit: &Oid) -> Result<Option<Oid>, GitError> {
        let (path, id) = (self.path.clone(), id_of(commit)?);
        blocking("looking for a commit", move || {
            let tree = Repository::open_bare(&path).and_then(|mirror| Ok(mirror.find_commit(id)?.tree_id()));
            tree.ok().map(oid_of).transpose()
        })
        .await
    }

    /// The commits with tags and the files of submodules, of a commit of names.
    ///
    /// # Errors
    /// When the commit is not here.
    pub async fn beside(&self, commit: &Oid) -> Result<Vec<Oid>, GitError> {
        let (path, id) = (self.path.clone(), id_of(commit)?);
        let found = blocking("reading a commit", move || {
            let parents = Repository::open_bare(&path).and_then(|mirror| {
                Ok(mirror
                    .find_commit(id)?
                    .parent_ids()
                    .skip(FIRST_BESIDE)
                    .collect::<Vec<_>>())
            });
            parents.map_err(GitError::library("read a commit"))
        });
        found.await?.into_iter().map(oid_of).collect()
    }

    /// The target of a reference.
    ///
    /// # Errors
    /// When the reference cannot be read.
    pub async fn resolve(&self, reference: &str) -> Result<Option<Oid>, GitError> {
        let (path, name) = (self.path.clone(), reference.to_owned());
        let found = blocking("reading a reference", move || {
            let mirror = Repository::open_bare(&path).map_err(GitError::library("open a mirror"))?;
            match mirror.refname_to_id(&name) {
                Ok(id) => Ok(Some(id)),
                Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec) => Ok(None),
                Err(error) => Err(GitError::library("read a reference")(error)),
            }
        });
        found.await?.map(oid_of).transpose()
    }
}
