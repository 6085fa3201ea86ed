//! Packs that come into a mirror. They wait in a folder of their own until all are there,
//! checked and complete; until then the mirror knows nothing of them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;

use kage_core::id::Oid;
use tempfile::TempDir;

use super::{Mirror, flush_folder};
use crate::command::GitCommand;
use crate::error::{GitError, blocking};

/// Packs of which each may lean on those before it; gone when dropped.
#[derive(Debug)]
pub struct Incoming {
    mirror: Mirror,
    folder: TempDir,
}

impl Mirror {
    /// Begins to take in packs.
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

    /// Takes in a pack (thin is fine) whose new objects are all reachable from `tip`. Either
    /// everything is here afterwards, checked and complete, or nothing is.
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

    /// Takes one more pack.
    ///
    /// # Errors
    /// When it is damaged, holds a malformed object, or leans on what is not here.
    pub async fn add(&self, pack: File) -> Result<(), GitError> {
        self.git("index-pack")
            .args(["--stdin", "--fix-thin", "--strict"])
            .stdin_file(pack)
            .run()
            .await
            .map(drop)
    }

    /// Makes all of them the mirror's, whose new objects are all reachable from `tip`.
    ///
    /// # Errors
    /// When they lack something that `tip` needs; the mirror is as it was then.
    pub async fn admit(self, tip: &Oid) -> Result<(), GitError> {
        // Walks from the tip to what references already vouch for.
        self.git("rev-list")
            .args(["--objects", "--quiet", "--stdin"])
            .stdin(format!("{tip}\n--not\n--all\n"))
            .run()
            .await?;
        let (from, to) = (self.folder.path().join("pack"), self.mirror.objects().join("pack"));
        blocking("taking in packs", move || {
            move_packs(&from, &to)?;
            // The folder goes only now, even if nobody waits for this any more.
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
    // git looks for .idx files, so those come last.
    names.sort_by_key(|name| Path::new(name).extension() == Some(OsStr::new("idx")));
    for name in names {
        let path = to.join(&name);
        fs::rename(from.join(&name), &path).map_err(GitError::io("create", &path))?;
    }
    Ok(())
}
