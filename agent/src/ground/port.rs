//! What an attempt stands on, as it sees it: a worktree, its checkpoints, its result, and the blobs
//! that go with them. The real one is made of mirrors and git ([`super::workspace`]); the
//! simulation's keeps trees in memory.
//!
//! What goes wrong is a [`Failure`], which is all that an attempt does with it. A future that is
//! dropped leaves nothing half done that a later call would trip over.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kage_core::checkpoint::Resume;
use kage_core::event::{EventBody, FileChange, ResultCommit};
use kage_core::failure::Failure;
use kage_core::id::{AttemptId, Digest, Oid, ProjectId, RepositoryName, SessionId};
use kage_core::protect::Protection;
use kage_core::task::{RepositoryRef, ResultRules};
use kage_git::Secrets;

use crate::delivery::recorder::Recording;

/// Where a ground tells people what they should know and what stops nothing.
#[derive(Clone)]
pub struct Warnings(Recording);

impl Warnings {
    pub(crate) const fn new(recording: Recording) -> Self {
        Self(recording)
    }

    /// Tells it. When the agent ends meanwhile, it is not told.
    pub async fn tell(&self, text: String) {
        if self.0.post(EventBody::Warning(text)).await.is_err() {
            tracing::debug!("the agent ends");
        }
    }
}

impl fmt::Debug for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Warnings").field(&self.0.attempt).finish()
    }
}

/// An attempt that needs a workspace.
#[derive(Debug, Clone)]
pub struct GroundAttempt {
    pub attempt: AttemptId,
    /// The project of its task.
    pub project: ProjectId,
    /// The repository and the base commit of its task.
    pub repository: RepositoryRef,
    /// The commit with the ignored files of its worktree.
    pub files: Option<Oid>,
    /// What of a session's files becomes a part of checkpoints and the result.
    pub results: ResultRules,
    /// For what its people should know.
    pub warnings: Warnings,
}

/// A commit of all files of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenTree {
    /// The commit; the parent, when nothing had changed.
    pub commit: Oid,
    pub tree: Oid,
    /// How many paths differ from the parent.
    pub files_changed: u64,
}

/// When a checkpoint is a commit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeWhen {
    /// Also when no file changed.
    Anyway,
    Changed,
}

/// How many paths a restore changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WentBack {
    /// Paths that were put back.
    pub put_back: usize,
    /// Ignored files that were moved out of the way.
    pub moved_aside: usize,
}

/// A workspace that is being made.
pub type Making<'a> = BoxFuture<'a, Result<Arc<dyn Workspace>, Failure>>;
/// Work of a ground.
pub type Grounded<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// The ground of an agent's attempts.
pub trait Ground: Send + Sync {
    /// A workspace with the files of the base, or of a checkpoint of the session.
    fn for_session<'a>(&'a self, of: &'a GroundAttempt, resume: Option<&'a Resume>) -> Making<'a>;

    /// A clean workspace with the files of a commit, which is the base or the session's result.
    fn for_verify<'a>(&'a self, of: &'a GroundAttempt, session: SessionId, commit: &'a Oid) -> Making<'a>;

    /// Removes what was made for an attempt whose workspace was never ready.
    fn remove<'a>(
        &'a self,
        attempt: AttemptId,
        project: &'a ProjectId,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, ()>;

    /// Removes what earlier starts of the agent left.
    fn sweep(&self) -> BoxFuture<'_, ()>;

    /// Stores bytes at the coordinator. They are durable when this returns.
    fn put<'a>(&'a self, project: &'a ProjectId, bytes: Bytes) -> Grounded<'a, Digest>;

    /// Fetches bytes from the coordinator.
    fn get<'a>(&'a self, project: &'a ProjectId, digest: &'a Digest) -> Grounded<'a, Bytes>;
}

/// The files of one attempt.
pub trait Workspace: fmt::Debug + Send + Sync {
    fn path(&self) -> &Path;

    /// The commit that changes are told against: the base, or what is verified.
    fn base(&self) -> &Oid;

    /// Sets what no file of a checkpoint or a result may have, from now on.
    fn look_for(&self, _secrets: Secrets) {}

    /// How the files differ from the base now.
    fn changes(&self) -> Grounded<'_, Vec<FileChange>>;

    /// Commits all files on top of `parent`. The commit is durable here when this returns.
    fn checkpoint<'a>(
        &'a self,
        warnings: &'a Warnings,
        parent: &'a Oid,
        message: &'a str,
        when: TakeWhen,
    ) -> Grounded<'a, TakenTree>;

    /// Commits the result: `None` when nothing differs from the base.
    fn result<'a>(&'a self, warnings: &'a Warnings, message: &'a str) -> Grounded<'a, Option<ResultCommit>>;

    /// Sends what a commit has and `have` lacks to the coordinator; the blob is durable there when
    /// this returns.
    fn send<'a>(&'a self, warnings: &'a Warnings, commit: &'a Oid, have: &'a Oid) -> Grounded<'a, Digest>;

    /// Gives the protected paths the files that the base of the task has; their names.
    fn protect<'a>(
        &'a self,
        warnings: &'a Warnings,
        base: &'a Oid,
        protection: &'a Protection,
    ) -> Grounded<'a, Vec<String>>;

    /// Takes out what a result changes, but for tests and what protection took from the base already; the
    /// paths that got another content.
    fn take_out<'a>(&'a self, warnings: &'a Warnings, base: &'a Oid, result: &'a Oid) -> Grounded<'a, Vec<String>>;

    /// Gives all files the content that they have in a checkpoint. `complete`: ignored files that
    /// are newer are moved aside.
    fn go_back<'a>(&'a self, resume: &'a Resume, complete: bool) -> Grounded<'a, WentBack>;

    /// The paths that differ between the base and a checkpoint; none when they cannot be told.
    fn paths_since_base<'a>(&'a self, checkpoint: &'a Oid) -> BoxFuture<'a, Vec<String>>;

    /// Gives the files up to whoever needs a workspace next: no program uses them any more.
    fn retire(&self) -> BoxFuture<'_, ()>;

    /// Removes the files, which a program may still use. What cannot be removed is swept at the next
    /// start.
    fn remove(&self) -> BoxFuture<'_, ()>;
}
