//! Incoming packs of a mirror. They wait in their own folder until all are there, checked and
//! complete; until then the mirror does not see them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;

use kage_core::id::Oid;
use tempfile::TempDir;

use super::{Mirror, flush_folder};
use crate::command::GitCommand;
use crate::error::{GitError, blocking};

/// Packs in order, each of which may refer to earlier ones; deleted when dropped.
#[derive(Debug)]
pub struct Incoming {
    mirror: Mirror,
    folder: TempDir,
}

impl Mirror {
    /// Starts to accept packs.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn incoming(&self) -> Result<Incoming, GitError> {
        let objects = self.objects();
        let folder = tempfile::Builder::new()
            .prefix("incoming-")
            .tempdir_in(&objects)
            .map_err(GitError::io("make a folder in", &objects))?;
        let packs = folder.path().join("pack");
        fs::create_dir(&packs).map_err(GitError::io("create", &packs))?;
        Ok(Incoming {
            mirror: self.clone(),
            folder,
        })
    }

    /// Accepts a pack (thin is fine) whose new objects are all reachable from `tip`. Afterwards
    /// either everything is here, checked and complete, or nothing.
    ///
    /// # Errors
    /// When the pack is damaged, holds a malformed object, or lacks something `tip` needs.
    pub async fn ingest_pack(&self, pack: File, tip: &Oid) -> Result<(), GitError> {
        let incoming = self.incoming()?;
        incoming.add(pack).await?;
        incoming.admit(tip).await
    }
}

impl Incoming {
    fn git(&self, operation: &'static str) -> GitCommand {
        self.mirror
            .git(operation)
            .env("GIT_OBJECT_DIRECTORY", self.folder.path())
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", self.mirror.objects())
    }

    /// Adds one more pack.
    ///
    /// # Errors
    /// When it is damaged, has a malformed object, or refers to a missing object.
    pub async fn add(&self, pack: File) -> Result<(), GitError> {
        self.git("index-pack")
            .args(["--stdin", "--fix-thin", "--strict"])
            .stdin_file(pack)
            .run()
            .await
            .map(drop)
    }

    /// Moves all packs into the mirror. Their new objects must all be reachable from `tip`.
    ///
    /// # Errors
    /// When they lack something that `tip` needs; the mirror is as it was then.
    pub async fn admit(self, tip: &Oid) -> Result<(), GitError> {
        // Walks from the tip to the objects that references already vouch for.
        self.git("rev-list")
            .args(["--objects", "--quiet", "--stdin"])
            .stdin(format!("{tip}\n--not\n--all\n"))
            .run()
            .await?;
        let (from, to) = (self.folder.path().join("pack"), self.mirror.objects().join("pack"));
        blocking("taking in packs", move || {
            move_packs(&from, &to)?;
            // The folder is deleted only now, even if the caller is gone.
            drop(self);
            flush_folder(&to)
        })
        .await
    }
}

pub(super) fn move_packs(from: &Path, to: &Path) -> Result<(), GitError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(GitError::io("list", from))? {
        names.push(entry.map_err(GitError::io("list", from))?.file_name());
    }
    // git searches for .idx files, so those come last.
    names.sort_by_key(|name| Path::new(name).extension() == Some(OsStr::new("idx")));
    for name in names {
        let path = to.join(&name);
        fs::rename(from.join(&name), &path).map_err(GitError::io("create", &path))?;
    }
    Ok(())
}
