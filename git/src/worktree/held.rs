//! Files of a session that have a secret: what a look at the worktree held back, and what a commit
//! has nevertheless, because git made it.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use git2::{Delta, DiffOptions, ObjectType, Oid as Id};
use kage_core::id::Oid;

use super::Worktree;
use crate::error::{GitError, blocking};
use crate::loose::compared::{Compared, prove_compared, tree_of};
use crate::objects::{Objects, Unflushed, id_of};
use crate::secrets::{FileWithSecret, Secrets};

impl Worktree {
    /// Sets what no file of a checkpoint or a result may have, unless the base has it in any of its files:
    /// that is the person's own.
    pub fn look_for(&self, secrets: Secrets) {
        *self.secrets.lock().unwrap_or_else(PoisonError::into_inner) = secrets;
    }

    pub(crate) fn sought(&self) -> Secrets {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files that the last checkpoint or result left out because they have a secret.
    #[must_use]
    pub fn held(&self) -> Vec<FileWithSecret> {
        self.with_secrets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files of a commit that have a secret in content or path and differ from the base's.
    /// Everything is read from the objects, so it is what would be sent.
    ///
    /// # Errors
    /// When an object is missing or damaged.
    pub async fn held_in(&self, commit: &Oid) -> Result<Vec<FileWithSecret>, GitError> {
        let secrets = self.sought();
        if secrets.is_empty() {
            return Ok(Vec::new());
        }
        let (mirror, base, commit) = (self.mirror.clone(), id_of(&self.base)?, id_of(commit)?);
        blocking("looking for secrets", move || {
            let objects = Objects::open(mirror.path(), Unflushed::default())?;
            in_commit(&objects, base, commit, &secrets)
        })
        .await
    }
}

fn in_commit(objects: &Objects, base: Id, commit: Id, secrets: &Secrets) -> Result<Vec<FileWithSecret>, GitError> {
    let failed = || GitError::library("compare a result with the base");
    let repository = objects.repository();
    let tree = |commit| tree_of(repository, commit).map_err(failed());
    let (before, after) = (tree(base)?, tree(commit)?);
    prove_compared(repository, &before, &after, Compared::ALL).map_err(failed())?;
    let mut options = DiffOptions::new();
    options.include_typechange(true).skip_binary_check(true);
    let diff = repository.diff_tree_to_tree(Some(&before), Some(&after), Some(&mut options));
    let is_blob = |id: Id| {
        let header = repository.odb().and_then(|odb| odb.read_header(id));
        header.is_ok_and(|(_, kind)| kind == ObjectType::Blob)
    };
    let mut held = BTreeMap::new();
    for delta in diff.map_err(failed())?.deltas() {
        let (old, new) = (delta.old_file(), delta.new_file());
        let (Some(path), true) = (new.path_bytes(), new.exists()) else {
            continue;
        };
        let is_new = matches!(delta.status(), Delta::Added | Delta::Copied | Delta::Renamed);
        let mut found = if is_blob(new.id()) {
            objects.search(new.id(), secrets)?
        } else {
            // The commit of a submodule.
            Default::default()
        };
        if !found.is_empty() && old.exists() && is_blob(old.id()) {
            found = found.without(&objects.search(old.id(), secrets)?);
        }
        if is_new {
            found.and(&secrets.in_bytes(path));
        }
        if !found.is_empty() {
            found = found.without(&objects.secrets_in(before.id(), secrets));
        }
        if !found.is_empty() {
            held.insert(path.to_vec(), secrets.file(path, &found));
        }
    }
    Ok(held.into_values().collect())
}
