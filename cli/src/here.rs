//! The repository that a command is typed in: its name on the coordinator, the identity that its
//! tasks carry, and whether a task belongs to it. Nothing is written in the repository for that.
//!
//! | | same repository | same working tree |
//! |---|---|---|
//! | a subfolder, a path through symbolic links | yes | yes |
//! | a linked working tree (`git worktree add`) | yes | no |
//! | another clone, the same folder on another machine | no | no |
//! | a folder that was moved | no, until a task is run there | no |
//!
//! Elsewhere a task can still be named by its id, and landed wherever its base is known: see
//! [`Here::takes`].

use std::path::Path;

use kage_core::id::{Digest, InvalidId, Oid, RepositoryName};
use kage_core::task::TaskOrigin;
use kage_git::UserRepo;
use kage_git::error::GitError;
use kage_proto::v1;

use crate::exit::Refusal;
use crate::view;

/// A repository of this machine, seen from one of its working trees.
#[derive(Debug)]
pub struct Here<'a> {
    repository: &'a UserRepo,
    origin: TaskOrigin,
}

impl<'a> Here<'a> {
    /// The repository that was found, on the machine with this id.
    #[must_use]
    pub fn new(repository: &'a UserRepo, machine: &str) -> Self {
        Self {
            repository,
            origin: TaskOrigin::of(machine, repository.home(), repository.root(), None),
        }
    }

    /// The identities of repository and working tree.
    #[must_use]
    pub fn origin(&self) -> &TaskOrigin {
        &self.origin
    }

    /// The name of the repository on the coordinator: that of its folder, made unique by where
    /// it is.
    ///
    /// # Errors
    /// Never: every folder makes a name.
    pub fn name(&self) -> Result<RepositoryName, InvalidId> {
        name(self.repository.home())
    }

    /// True if this repository has the task's base commit, or the commit beneath its uncommitted
    /// work.
    ///
    /// # Errors
    /// When git fails.
    pub async fn has_base_of(&self, task: &v1::Task) -> Result<bool, GitError> {
        for commit in commits(task) {
            if self.repository.has_commit(&commit).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks that a task's result may be landed here: the task came from this repository, or this
    /// repository has its base.
    ///
    /// # Errors
    /// When it is of another repository, naming both.
    pub async fn takes(&self, task: &v1::Task) -> anyhow::Result<()> {
        let of = task.spec.as_ref().and_then(|spec| spec.repository.as_ref());
        // Fetching reports that there is no result.
        let Some(of) = of else { return Ok(()) };
        let name = self.name()?;
        if self.is_same(task, &name) || self.has_base_of(task).await? {
            return Ok(());
        }
        let message = format!(
            "task {} is of the repository {}, and this is {name} ({}), which does not have the commit {} that the \
             task stands on, so nothing was changed; do this in {}, or name its folder with --repo; `kage ls` says \
             which tasks are of which repository",
            view::short_id(&task.id),
            of.name,
            self.repository.root().display(),
            view::short_id(&of.base_commit),
            of.name,
        );
        Err(Refusal::usage(message).into())
    }

    /// By identity, or by name if the client of the task sent no identity.
    fn is_same(&self, task: &v1::Task, name: &RepositoryName) -> bool {
        match &task.origin {
            Some(origin) => origin.repository == self.origin.repository.as_str(),
            None => {
                let of = task.spec.as_ref().and_then(|spec| spec.repository.as_ref());
                of.is_some_and(|of| of.name == name.as_str())
            }
        }
    }
}

/// Those commits of a task that are the person's own.
fn commits(task: &v1::Task) -> impl Iterator<Item = Oid> {
    let base = task.spec.as_ref().and_then(|spec| spec.repository.as_ref());
    let base = base.map(|repository| repository.base_commit.as_str());
    let head = task.origin.as_ref().map(|origin| origin.head.as_str());
    let commits = [head, base].into_iter().flatten();
    commits.filter_map(|commit| commit.parse().ok())
}

fn name(home: &Path) -> Result<RepositoryName, InvalidId> {
    let folder = home.file_name().unwrap_or_default().to_string_lossy();
    // The place of a repository whose git folder is not beside its files.
    let plain: String = folder
        .trim_end_matches(".git")
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(80)
        .collect();
    let plain = plain.trim_matches('-');
    let digest = Digest::of(home.as_os_str().as_encoded_bytes());
    let unique = digest.as_str().get(..8).unwrap_or_default();
    if plain.is_empty() {
        format!("repository-{unique}").parse()
    } else {
        format!("{plain}-{unique}").parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_makes_a_name_and_no_two_make_the_same() {
        let of = |path: &str| name(Path::new(path)).unwrap().to_string();
        assert!(
            of("/a/My Project").starts_with("my-project-"),
            "{}",
            of("/a/My Project")
        );
        assert!(of("/a/ü").starts_with("repository-"), "{}", of("/a/ü"));
        assert!(of("/").starts_with("repository-"), "{}", of("/"));
        assert!(of("/a/kept.git").starts_with("kept-"), "{}", of("/a/kept.git"));
        assert_ne!(of("/a/project"), of("/b/project"));
        assert_eq!(of("/a/project"), of("/a/project"));
        assert!(of(&format!("/{}", "x".repeat(300))).len() <= 100);
    }
}
