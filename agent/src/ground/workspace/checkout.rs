//! A workspace in a worktree of a mirror: every operation is git's, and is repeated once when it
//! failed because the mirror was damaged and is healed now.

use std::path::Path;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::checkpoint::Resume;
use kage_core::event::{FileChange, ResultCommit};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::id::{Digest, Oid, ProjectId};
use kage_core::protect::Protection;
use kage_core::risk::is_of_tests;
use kage_git::restore::{Becomes, Restored};
use kage_git::{GitError, Mirror, Secrets, Worktree, diff};
use tokio::sync::OwnedRwLockReadGuard;

use super::left_out::{ToldFiles, listed};
use super::{Healer, WorkspaceError, assemble, removed};
use crate::ground::blobs::Blobs;
use crate::ground::pool::Pool;
use crate::ground::port::{Grounded, TakeWhen, TakenTree, Warnings, WentBack, Workspace};

/// The files of one attempt in a worktree of a mirror.
#[derive(Debug)]
pub(crate) struct Checkout {
    pub(crate) mirror: Mirror,
    pub(crate) tree: Worktree,
    pub(crate) healer: Healer,
    pub(crate) blobs: Blobs,
    pub(crate) project: ProjectId,
    pub(crate) pool: Pool,
    pub(crate) told: ToldFiles,
    /// While it is held, nothing is collected in the mirror.
    pub(crate) _use: OwnedRwLockReadGuard<()>,
}

fn failed(error: &GitError) -> Failure {
    match error {
        GitError::TooMuch { .. } => Failure::new(FailureKind::ResultTooLarge, chain(error)),
        error => local_failure(FailureKind::CorruptedState, chain(error)),
    }
}

impl Checkout {
    /// Tells which files were left out, each once.
    async fn tell_left_out(&self, warnings: &Warnings) {
        let news = self.told.news(self.tree.left_out(), self.tree.rules());
        for text in news.into_iter().chain(self.told.with_secrets(&self.tree.held())) {
            warnings.tell(text).await;
        }
    }

    /// Fails when a file that the session changed has a secret, whoever left it out or took it.
    async fn hold_secrets(&self, warnings: &Warnings, result: Option<&ResultCommit>) -> Result<(), Failure> {
        let mut held = self.tree.held();
        if let Some(result) = result {
            let looking = || self.tree.held_in(&result.commit);
            let found = self.healer.steady(warnings, looking).await;
            held.extend(found.map_err(|error| failed(&error))?);
        }
        if held.is_empty() {
            return Ok(());
        }
        let text = format!(
            "the result stays on this machine, because it has a secret: {}; read it from the environment instead, or \
             ignore the file (.gitignore)",
            listed(&held)
        );
        Err(Failure::new(FailureKind::SecretFound, text))
    }
}

impl Workspace for Checkout {
    fn path(&self) -> &Path {
        self.tree.path()
    }

    fn base(&self) -> &Oid {
        self.tree.base()
    }

    fn look_for(&self, secrets: Secrets) {
        self.tree.look_for(secrets);
    }

    fn changes(&self) -> Grounded<'_, Vec<FileChange>> {
        async { self.tree.changes().await.map_err(|error| failed(&error)) }.boxed()
    }

    fn checkpoint<'a>(
        &'a self,
        warnings: &'a Warnings,
        parent: &'a Oid,
        message: &'a str,
        when: TakeWhen,
    ) -> Grounded<'a, TakenTree> {
        async move {
            let taking = async || match when {
                TakeWhen::Anyway => self.tree.checkpoint(parent, message).await,
                TakeWhen::Changed => self.tree.checkpoint_changes(parent, message).await,
            };
            let taken = self.healer.steady(warnings, taking).await;
            let taken = taken.map_err(|error| failed(&error))?;
            self.tell_left_out(warnings).await;
            Ok(TakenTree {
                commit: taken.commit,
                tree: taken.tree,
                files_changed: taken.files_changed,
            })
        }
        .boxed()
    }

    fn result<'a>(&'a self, warnings: &'a Warnings, message: &'a str) -> Grounded<'a, Option<ResultCommit>> {
        async move {
            let committed = self.healer.steady(warnings, || self.tree.commit_result(message)).await;
            let committed = committed.map_err(|error| failed(&error))?;
            self.tell_left_out(warnings).await;
            self.hold_secrets(warnings, committed.as_ref()).await?;
            Ok(committed)
        }
        .boxed()
    }

    fn send<'a>(&'a self, warnings: &'a Warnings, commit: &'a Oid, have: &'a Oid) -> Grounded<'a, Digest> {
        async move {
            let have = std::slice::from_ref(have);
            let pack = self
                .healer
                .steady(warnings, || self.mirror.thin_pack(commit, have))
                .await;
            let pack = pack.map_err(|error| failed(&error))?;
            let put = self.blobs.put_file(&self.project, pack.path()).await;
            put.map_err(|error| error.failure("the objects could not be sent"))
        }
        .boxed()
    }

    fn protect<'a>(
        &'a self,
        warnings: &'a Warnings,
        base: &'a Oid,
        protection: &'a Protection,
    ) -> Grounded<'a, Vec<String>> {
        async move {
            let restoring = || self.tree.restore_paths(base, protection);
            let restored = self.healer.steady(warnings, restoring).await;
            restored.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn take_out<'a>(&'a self, warnings: &'a Warnings, base: &'a Oid, result: &'a Oid) -> Grounded<'a, Vec<String>> {
        async move {
            let taking = || self.tree.take_out(base, result, is_of_tests);
            let taken = self.healer.steady(warnings, taking).await;
            taken.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn go_back<'a>(&'a self, resume: &'a Resume, complete: bool) -> Grounded<'a, WentBack> {
        async move {
            let rules = self.tree.rules();
            let assembled = assemble(&self.mirror, &self.blobs, &self.project, resume, rules, false).await;
            assembled.map_err(|error| error.failure())?;
            let restored = self.tree.go_back(&resume.commit, complete).await;
            let restored = restored.map_err(|error| WorkspaceError::Restore(error).failure())?;
            Ok(went_back(&restored))
        }
        .boxed()
    }

    fn paths_since_base<'a>(&'a self, checkpoint: &'a Oid) -> BoxFuture<'a, Vec<String>> {
        async move {
            let (path, from, to) = (self.mirror.path().to_owned(), self.base().clone(), checkpoint.clone());
            let compared = tokio::task::spawn_blocking(move || diff::between(&path, &from, &to)).await;
            match compared {
                Ok(Ok(difference)) => difference.files.into_iter().map(|file| file.path).collect(),
                Ok(Err(_)) | Err(_) => Vec::new(),
            }
        }
        .boxed()
    }

    fn retire(&self) -> BoxFuture<'_, ()> {
        self.pool.keep(&self.mirror, &self.tree).boxed()
    }

    fn remove(&self) -> BoxFuture<'_, ()> {
        async { removed(self.path(), Worktree::remove(&self.mirror, self.path()).await) }.boxed()
    }
}

fn went_back(restored: &Restored) -> WentBack {
    let aside = restored.paths.iter().filter(|path| path.becomes == Becomes::MovedAside);
    WentBack {
        put_back: restored.paths.len() - aside.count(),
        moved_aside: restored.aside.len(),
    }
}
