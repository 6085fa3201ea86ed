//! The repository that a command is typed in: its name on the coordinator, the identity that its
//! tasks carry, and whether a task belongs to it.
//!
//! | | same stored repository | same clone | same working tree |
//! |---|---|---|---|
//! | a subfolder, a path through symbolic links | yes | yes | yes |
//! | a linked working tree (`git worktree add`) | yes | yes | no |
//! | a folder that was moved | yes | no, until a task is run there | no |
//! | another clone, here or on another machine | yes | no | no |
//!
//! Objects are kept once for a stored repository, by its lineage ([`kage_core::task::Lineage`]). Clone
//! and working tree say whose newest task a command means. A task can be landed wherever its base is
//! known: see [`Here::takes`].
//!
//! Tasks of earlier versions are of repositories that were named after a folder's path. They are found
//! by their clone, and fetched by the name that they have.

use anyhow::Context as _;
use kage_core::id::{Oid, RepositoryName};
use kage_core::task::{LineageId, TaskOrigin};
use kage_git::UserRepo;
use kage_git::error::GitError;
use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
use crate::view;

mod stored;

pub use stored::StoredName;

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

    /// The identities of clone and working tree.
    #[must_use]
    pub fn origin(&self) -> &TaskOrigin {
        &self.origin
    }

    /// The name of the repository on the coordinator, for sending it. A repository that nothing
    /// tells from others keeps an id from now on.
    ///
    /// # Errors
    /// When git fails, or the coordinator cannot be asked.
    pub async fn settled_name(&self, access: &Access) -> anyhow::Result<StoredName> {
        let fresh = LineageId::from_random(rand::random());
        let lineage = self.repository.settled_lineage(fresh).await;
        let lineage = lineage.context("cannot tell which repository this is")?;
        Ok(stored::find(access, &lineage, &self.folder()).await?)
    }

    /// The name of the repository on the coordinator. `None` when nothing tells it from others: it
    /// was never sent.
    ///
    /// # Errors
    /// When git fails, or the coordinator cannot be asked.
    pub async fn name(&self, access: &Access) -> anyhow::Result<Option<RepositoryName>> {
        let lineage = self.repository.lineage().await;
        let Some(lineage) = lineage.context("cannot tell which repository this is")? else {
            return Ok(None);
        };
        let stored = stored::find(access, &lineage, &self.folder()).await?;
        Ok(Some(stored.into_name()))
    }

    /// The repository as it is named in messages.
    ///
    /// # Errors
    /// When git fails, or the coordinator cannot be asked.
    pub async fn shown(&self, access: &Access) -> anyhow::Result<String> {
        let name = self.name(access).await?;
        Ok(name.map_or_else(|| self.folder(), String::from))
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

    /// True if the task was run in this clone, or in one of its working trees.
    #[must_use]
    pub fn is_same_clone(&self, task: &v1::Task) -> bool {
        let of = task.origin.as_ref();
        of.is_some_and(|of| of.repository == self.origin.repository.as_str())
    }

    /// Checks that a task's result may be landed here: the task came from this clone, or this
    /// clone has its base.
    ///
    /// # Errors
    /// When it is of another repository, naming both, or its base is not here.
    pub async fn takes(&self, access: &Access, task: &v1::Task) -> anyhow::Result<()> {
        let of = task.spec.as_ref().and_then(|spec| spec.repository.as_ref());
        // Fetching reports that there is no result.
        let Some(of) = of else { return Ok(()) };
        if self.is_same_clone(task) || self.has_base_of(task).await? {
            return Ok(());
        }
        let (id, name) = (view::short_id(&task.id), self.shown(access).await?);
        let place = self.repository.root().display();
        let base = view::short_id(&of.base_commit);
        let message = if of.name == name {
            let head = commits(task).next().map(String::from).unwrap_or_default();
            format!(
                "task {id} was run in another clone of {name}, and this one ({place}) does not have the commit {} that \
                 the task stands on, so nothing was changed; `git fetch` it, or do this in the other clone",
                view::short_id(&head),
            )
        } else {
            format!(
                "task {id} is of the repository {}, and this is {name} ({place}), which does not have the commit {base} \
                 that the task stands on, so nothing was changed; do this in {}, or name its folder with --repo; `kage \
                 ls` says which tasks are of which repository",
                of.name, of.name,
            )
        };
        Err(Refusal::usage(message).into())
    }

    /// The name of the folder that stands for the repository.
    fn folder(&self) -> String {
        let folder = self.repository.home().file_name().unwrap_or_default();
        folder.to_string_lossy().into_owned()
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
