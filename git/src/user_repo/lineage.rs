//! What tells a person's repository from others, wherever its clones are (see
//! [`kage_core::task::Lineage`]). Only a repository without a history and without a remote is
//! written to for it: one small file in its git folder, which git and the person's files have
//! nothing to do with.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use kage_core::task::{Lineage, LineageId, RemoteUrl};
use tempfile::NamedTempFile;

use super::UserRepo;
use crate::command::parse_oid;
use crate::error::{GitError, blocking};

/// The file with the id, in the git folder that all working trees share.
const FILE: &str = "kage/repository-id";

impl UserRepo {
    /// The lineage of the history of HEAD. `None` when nothing tells it and no id is kept yet.
    ///
    /// # Errors
    /// When git fails, or the file with the id cannot be read.
    pub async fn lineage(&self) -> Result<Option<Lineage>, GitError> {
        // Where a shallow clone's history ends, it has not begun.
        if !self.shallow
            && let Some(head) = self.head().await?
        {
            let root = self
                .git("rev-list")
                .args(["--first-parent", "--max-parents=0", "--end-of-options", head.as_str()])
                .run()
                .await?;
            return Ok(Some(Lineage::Root(parse_oid("rev-list", &root)?)));
        }
        if let Some(url) = self.remote() {
            return Ok(Some(Lineage::Remote(url)));
        }
        let path = self.id_file();
        let kept = blocking("reading a repository's id", move || read(path)).await?;
        Ok(kept.map(Lineage::Kept))
    }

    /// The lineage, with an id that is kept from now on where nothing else tells it. `fresh` is one
    /// that the caller drew at random; of two that are kept at the same time one stays.
    ///
    /// # Errors
    /// When git fails, or the id cannot be kept.
    pub async fn settled_lineage(&self, fresh: LineageId) -> Result<Lineage, GitError> {
        if let Some(lineage) = self.lineage().await? {
            return Ok(lineage);
        }
        let path = self.id_file();
        blocking("keeping a repository's id", move || keep(path, fresh))
            .await
            .map(Lineage::Kept)
    }

    /// The URL of `origin` or, without one that other machines know, of the first remote that has
    /// one.
    fn remote(&self) -> Option<RemoteUrl> {
        let mut known: Vec<_> = self.settings.remotes.iter().collect();
        known.sort_by_key(|(name, _)| (name != "origin", name));
        known.into_iter().find_map(|(_, url)| RemoteUrl::from_git(url))
    }

    fn id_file(&self) -> PathBuf {
        self.common_dir.join(FILE)
    }
}

fn read(path: PathBuf) -> Result<Option<LineageId>, GitError> {
    match fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let id = LineageId::from_text(text.trim_end());
            let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it holds no id; remove it");
            id.map(Some).ok_or_else(|| GitError::io("read", &path)(damaged()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(GitError::io("read", &path)(error)),
    }
}

fn keep(path: PathBuf, fresh: LineageId) -> Result<LineageId, GitError> {
    let folder = path.parent().unwrap_or(&path);
    fs::create_dir_all(folder).map_err(GitError::io("create", folder))?;
    let mut file = NamedTempFile::new_in(folder).map_err(GitError::io("make a file in", folder))?;
    writeln!(file, "{fresh}").map_err(GitError::io("write", &path))?;
    match file.persist_noclobber(&path) {
        Ok(_) => Ok(fresh),
        // Another command was first.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(read(path)?.unwrap_or(fresh)),
        Err(error) => Err(GitError::io("create", &path)(error.error)),
    }
}
