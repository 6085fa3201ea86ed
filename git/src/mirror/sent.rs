//! What a commit that was sent as a result is, read from its objects: libgit2 hashes each one that it
//! reads, so neither the sender's words nor a file under the name of another are believed. Whether it is a
//! result is decided by [`kage_core::sent_result`].

use git2::Repository;
use kage_core::event::ResultCommit;
use kage_core::id::Oid;
use kage_core::sent_result::{NotAResult, SentCommit, check};

use super::Mirror;
use crate::diff;
use crate::error::{GitError, blocking};
use crate::loose::check_loose;
use crate::objects::{id_of, oid_of};

impl Mirror {
    /// The result that `commit` is for a task on `base`: its tree, and how it differs from the base. `said` is
    /// the tree that its sender names. The inner error: it is none.
    ///
    /// # Errors
    /// When an object of it, or of the base, is missing, damaged or another one.
    pub async fn read_result(
        &self,
        base: &Oid,
        commit: &Oid,
        said: Option<&Oid>,
    ) -> Result<Result<ResultCommit, NotAResult>, GitError> {
        let (path, base, commit, said) = (self.path.clone(), base.clone(), commit.clone(), said.cloned());
        blocking("reading a result", move || {
            let (sent, base_tree) = {
                let repository = Repository::open_bare(&path).map_err(GitError::library("open a mirror"))?;
                let read = |commit: &Oid| {
                    check_loose(&path, id_of(commit)?)?;
                    let found = repository.find_commit(id_of(commit)?);
                    found.map_err(GitError::library("read a result"))
                };
                let found = read(&commit)?;
                let sent = SentCommit {
                    commit: commit.clone(),
                    tree: oid_of(found.tree_id())?,
                    parents: found.parent_ids().map(oid_of).collect::<Result<_, _>>()?,
                };
                (sent, oid_of(read(&base)?.tree_id())?)
            };
            if let Err(why) = check(&sent, &base, &base_tree, said.as_ref()) {
                return Ok(Err(why));
            }
            let difference = diff::between(&path, &base, &commit)?;
            Ok(Ok(ResultCommit {
                tree: Some(sent.tree),
                ..difference.describe(commit)
            }))
        })
        .await
    }
}
