//! A commit that the person's hooks are asked about, in the order and with the arguments of `git commit`.
//! As there, what pre-commit puts into the index is committed, and what the others write into the
//! message is its text. The index and the message are private files until all have agreed.

use std::fs;
use std::path::Path;

use git2::Oid as Id;

use super::LandingError;
use super::hooks::{Hook, Hooks};
use crate::error::GitError;
use crate::user_repo::{UserRepo, UserShadow};

/// What a commit would have. Its files are written, and its objects are in the person's repository.
pub(super) struct Proposal<'a> {
    pub(super) repository: &'a UserRepo,
    pub(super) store: &'a UserShadow,
    pub(super) index: &'a [u8],
    pub(super) message: &'a str,
    pub(super) is_merge: bool,
}

/// What it will have.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) tree: Id,
    pub(super) index: Vec<u8>,
    pub(super) message: String,
}

impl Proposal<'_> {
    pub(super) async fn ask(&self, hooks: &Hooks) -> Result<Agreed, LandingError> {
        let folder = self.store.folder.path();
        let (index, message) = (folder.join("commit-index"), folder.join("COMMIT_EDITMSG"));
        // A hook that compares files with the index is to find what is written unchanged.
        refresh(self.store, &index, self.index).await?;
        hooks.run(Hook::PreCommit, &index, &[]).await?;
        let tree = self.repository.git("write-tree").env("GIT_INDEX_FILE", &index);
        let tree = tree.run_for_oid().await?;
        fs::write(&message, self.message).map_err(GitError::io("write", &message))?;
        let source = Path::new(if self.is_merge { "merge" } else { "message" });
        hooks
            .run(Hook::PrepareCommitMessage, &index, &[&message, source])
            .await?;
        hooks.run(Hook::CommitMessage, &index, &[&message]).await?;
        Ok(Agreed {
            tree: Id::from_str(tree.as_str()).map_err(GitError::library("read an object id"))?,
            index: fs::read(&index).map_err(GitError::io("read", &index))?,
            message: self.left(&message).await?,
        })
    }

    /// The message as the hooks left it; git tidies one that they changed.
    async fn left(&self, path: &Path) -> Result<String, LandingError> {
        let bytes = fs::read(path).map_err(GitError::io("read", path))?;
        if bytes == self.message.as_bytes() {
            return Ok(self.message.to_owned());
        }
        let tidy = self.repository.git("stripspace").stdin(bytes).run().await?;
        let text = String::from_utf8_lossy(&tidy).into_owned();
        if text.trim().is_empty() {
            return Err(LandingError::NoMessage);
        }
        Ok(text)
    }
}

/// Writes an index to a file, with what git remembers of the files that are there: without it, `git reset
/// --keep` would take every written file for a changed one. A file that differs is no failure.
pub(super) async fn refresh(store: &UserShadow, at: &Path, index: &[u8]) -> Result<(), GitError> {
    fs::write(at, index).map_err(GitError::io("write", at))?;
    let refresh = store.shadow.git("update-index").args(["-q", "--refresh"]);
    refresh.env("GIT_INDEX_FILE", at).run_to_status().await.map(drop)
}
