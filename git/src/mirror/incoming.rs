//! Incoming packs of a mirror. They wait in their own folder until all are there, checked and
//! complete; until then the mirror does not see them. What is more than a result may be is refused
//! before it costs memory or a disk: objects before git expands them ([`super::pack_scan`]), files
//! before anybody checks them out ([`super::growth`]).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Seek as _;
use std::path::Path;

use git2::Repository;
use kage_core::id::Oid;
use kage_core::task::ResultRules;
use tempfile::TempDir;

use super::growth::{self, GrowthLimits, TooGrown};
use super::pack_scan::{PackLimits, PackProblem, scan};
use super::{Mirror, flush_folder};
use crate::command::GitCommand;
use crate::error::{GitError, blocking};
use crate::objects::id_of;

/// Packs in order, each of which may refer to earlier ones; deleted when dropped.
#[derive(Debug)]
pub struct Incoming {
    mirror: Mirror,
    folder: TempDir,
    rules: ResultRules,
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
            rules: ResultRules::default(),
        })
    }

    /// As [`Mirror::ingest_pack`], of a task with these rules.
    ///
    /// # Errors
    /// As [`Mirror::ingest_pack`].
    pub async fn ingest_result(&self, pack: File, tip: &Oid, rules: &ResultRules) -> Result<(), GitError> {
        let incoming = self.incoming()?.within(rules);
        incoming.add(pack).await?;
        incoming.admit(tip).await
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

    /// Takes as much as a session of a task with these rules may make; without this, what the usual
    /// rules allow.
    #[must_use]
    pub fn within(mut self, rules: &ResultRules) -> Self {
        self.rules = rules.clone();
        self
    }

    /// Adds one more pack, from its beginning.
    ///
    /// # Errors
    /// When it is damaged or larger than a result may be, has a malformed object, or refers to a
    /// missing object.
    pub async fn add(&self, mut pack: File) -> Result<(), GitError> {
        let limits = PackLimits::of_result(&self.rules);
        let pack = blocking("looking at a pack", move || {
            let mut look = || {
                pack.rewind()?;
                let found = scan(&pack, limits)?;
                pack.rewind()?;
                Ok(found)
            };
            let found = look().map_err(GitError::io("read", Path::new("a pack")))?;
            found.map_err(|problem| match problem {
                PackProblem::Damaged(reason) => GitError::PackDamaged { reason },
                too_much => GitError::PackRefused {
                    reason: too_much.to_string(),
                },
            })?;
            Ok::<_, GitError>(pack)
        })
        .await?;
        let mut command = self.git("index-pack").args(["--stdin", "--fix-thin", "--strict"]);
        for (name, value) in limits.settings() {
            command = command.config(name, &value);
        }
        command.stdin_file(pack).run().await.map(drop)
    }

    /// Refuses a tip that has more files than its ancestor in the mirror and the rules allow.
    async fn check_growth(&self, tip: &Oid) -> Result<(), GitError> {
        let (mirror, folder) = (self.mirror.path().to_owned(), self.folder.path().to_owned());
        let (tip, limits) = (id_of(tip)?, GrowthLimits::of_result(&self.rules));
        blocking("looking at incoming files", move || {
            let open = || Repository::open_bare(&mirror).map_err(GitError::library("open a mirror"));
            let (all, here) = (open()?, open()?);
            let added = all
                .odb()
                .and_then(|odb| odb.add_disk_alternate(&folder.to_string_lossy()));
            added.map_err(GitError::library("open incoming objects"))?;
            match growth::check(&all, &here, tip, limits) {
                Ok(()) => Ok(()),
                Err(TooGrown::Git(source)) => Err(GitError::library("count incoming files")(source)),
                Err(grown) => Err(GitError::PackRefused {
                    reason: grown.to_string(),
                }),
            }
        })
        .await
    }

    /// Moves all packs into the mirror. Their new objects must all be reachable from `tip`.
    ///
    /// # Errors
    /// When they lack something that `tip` needs; the mirror is as it was then.
    pub async fn admit(self, tip: &Oid) -> Result<(), GitError> {
        // Walks from the tip to the objects that references already vouch for.
        self.git("rev-list")
            .args(["--objects", "--quiet", tip.as_str(), "--not", "--all"])
            .run()
            .await?;
        self.check_growth(tip).await?;
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

#[cfg(test)]
mod tests;
