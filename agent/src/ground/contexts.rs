//! Base contexts on this machine: each is fetched once, however many sessions need it at the same
//! time, checked against its digest, and stored as a file. One that the coordinator lost is waited for, and
//! brought back to it when it is here. `disk` decides what is removed when they are too many.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kage_core::cause::chain;
use kage_core::context::{Context, Delta, InvalidContext};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::id::{Digest, ProjectId};
use kage_core::json::InvalidPointer;
use kage_core::prompt::{self, Prompt};
use kage_proto::convert::agent::{PromptText, SessionWork};
use kage_proto::v1;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::Instant;

use crate::ground::blobs::{BlobError, Blobs};
use crate::ground::port::Warnings;
use crate::ground::uses::Uses;
use crate::identity::state::Paths;

/// How long a context may take to be sent to a coordinator that lost it: sessions wait for that.
const BRINGING: Duration = Duration::from_secs(60);

/// For how long it is known that nobody has a context.
const SAME_LOSS: Duration = Duration::from_secs(5);

/// Why a session's prompt could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PromptError {
    #[error("the prompt could not be fetched")]
    Prompt(#[source] BlobError),
    #[error("the prompt is not text")]
    NotText,
    #[error("the base context could not be fetched")]
    Base(#[source] BlobError),
    #[error("the base context could not be kept in {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a context of the task is malformed")]
    Malformed(#[source] InvalidContext),
    #[error("an overridden member is malformed")]
    Pointer(#[source] InvalidPointer),
    #[error("the contexts do not fit together")]
    Render(#[source] prompt::ContextsDisagree),
}

impl PromptError {
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Prompt(error) => error.failure("the prompt could not be fetched"),
            Self::Base(error) => error.failure("the base context could not be fetched"),
            Self::Io { .. } => local_failure(FailureKind::ContextUnavailable, chain(self)),
            Self::NotText | Self::Malformed(_) | Self::Pointer(_) | Self::Render(_) => {
                Failure::new(FailureKind::InvalidRequest, chain(self))
            }
        }
    }
}

/// A rendered prompt and the file that holds the base context.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) prompt: Prompt,
    pub(crate) base: Option<Base>,
}

/// The file of a base context. It is not removed while this exists.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) path: PathBuf,
    _use: OwnedRwLockReadGuard<()>,
}

/// Whose turn it is to fetch a context, and when nobody had it.
type Turn = Arc<tokio::sync::Mutex<Option<Instant>>>;

#[derive(Debug)]
pub(crate) struct Contexts {
    paths: Paths,
    blobs: Blobs,
    uses: Uses,
    /// The task that fetches a digest holds its lock; the others find the file afterwards, or when it was found
    /// that nobody has it.
    fetching: Mutex<HashMap<Digest, Turn>>,
}

impl Contexts {
    pub(crate) fn new(paths: Paths, blobs: Blobs, uses: Uses) -> Self {
        Self {
            paths,
            blobs,
            uses,
            fetching: Mutex::new(HashMap::new()),
        }
    }

    /// The prompt of a session. What its people should know of it is told.
    pub(crate) async fn prepare(
        &self,
        project: &ProjectId,
        work: &SessionWork,
        warnings: &Warnings,
    ) -> Result<Prepared, PromptError> {
        let task = match &work.prompt {
            PromptText::Inline(text) => text.clone(),
            PromptText::Blob(digest) => {
                let bytes = self.blobs.get(project, digest).await.map_err(PromptError::Prompt)?;
                String::from_utf8(bytes.into()).map_err(|_| PromptError::NotText)?
            }
        };
        let Some(digest) = &work.context_base else {
            let prompt = prompt::render(&task, None, None, &[]).map_err(PromptError::Render)?;
            return Ok(Prepared { prompt, base: None });
        };
        let path = self.paths.context(digest);
        let in_use = Base {
            _use: self.uses.of(&path).read_owned().await,
            path,
        };
        let content = self.base(project, digest, warnings).await?;
        let base = Context::parse(&content).map_err(PromptError::Malformed)?;
        let delta = work
            .context_delta
            .as_ref()
            .map(|delta| Delta::parse(delta.as_bytes()))
            .transpose()
            .map_err(PromptError::Malformed)?;
        let overridden = work
            .overridden
            .iter()
            .map(|pointer| pointer.parse())
            .collect::<Result<Vec<_>, _>>()
            .map_err(PromptError::Pointer)?;
        let prompt = prompt::render(&task, Some(&base), delta.as_ref(), &overridden).map_err(PromptError::Render)?;
        Ok(Prepared {
            prompt,
            base: Some(in_use),
        })
    }

    /// The content of a base context, which is in its file afterwards.
    async fn base(&self, project: &ProjectId, digest: &Digest, warnings: &Warnings) -> Result<Bytes, PromptError> {
        let lock = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(fetching.entry(digest.clone()).or_default())
        };
        let mut nobody_had_it = lock.lock().await;
        let path = self.paths.context(digest);
        if let Some(content) = kept(path.clone(), digest.clone()).await {
            return Ok(content);
        }
        let content = match self.blobs.get(project, digest).await {
            // Those who waited for their turn do not wait once more.
            Err(BlobError::Missing { .. }) if nobody_had_it.is_none_or(|at| at.elapsed() > SAME_LOSS) => {
                let content = self.brought_back(project, digest, warnings).await;
                *nobody_had_it = content.is_err().then(Instant::now);
                content
            }
            answered => answered,
        };
        let content = content.map_err(PromptError::Base)?;
        let copy = content.clone();
        let io = |source| PromptError::Io {
            path: path.clone(),
            source,
        };
        let target = path.clone();
        tokio::task::spawn_blocking(move || keep(&target, &copy))
            .await
            .map_err(|error| io(std::io::Error::other(error)))?
            .map_err(io)?;
        Ok(content)
    }

    /// The content of a base context that the coordinator lost, from another agent or a client.
    async fn brought_back(
        &self,
        project: &ProjectId,
        digest: &Digest,
        warnings: &Warnings,
    ) -> Result<Bytes, BlobError> {
        // A client that watches the task sees this, and sends its copy.
        warnings
            .tell("the coordinator lost the base context of this task: waiting for a copy of it".to_owned())
            .await;
        let (content, by) = self.blobs.get_lost(project, digest).await?;
        let by = by.unwrap_or_else(|| "another one".to_owned());
        warnings
            .tell(format!(
                "the base context of this task was restored: {by} had a copy; check the disk of the coordinator"
            ))
            .await;
        Ok(content)
    }

    /// Sends a base context to the coordinator, which lost it, if it is here.
    pub(crate) async fn bring_back(&self, wanted: &v1::SendContext) {
        let (Ok(project), Ok(digest)) = (wanted.project.parse(), wanted.digest.parse::<Digest>()) else {
            return tracing::warn!(digest = wanted.digest, "the coordinator named a malformed context");
        };
        let Some(content) = kept(self.paths.context(&digest), digest.clone()).await else {
            return;
        };
        match tokio::time::timeout(BRINGING, self.blobs.put(&project, content)).await {
            Ok(Ok(_)) => tracing::info!(%digest, "sent a context that the coordinator lost"),
            Ok(Err(error)) => tracing::warn!(%digest, error = chain(&error), "a lost context cannot be sent"),
            Err(_) => tracing::warn!(%digest, "sending a lost context took too long"),
        }
    }
}

/// The file's content, if it exists and is complete.
async fn kept(path: PathBuf, digest: Digest) -> Option<Bytes> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(path).ok()?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).ok()?;
        if Digest::of(&content) != digest {
            return None;
        }
        // Only tells which context was not used for longest.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "use of a context is not noted");
        }
        Some(Bytes::from(content))
    });
    reading.await.ok().flatten()
}

/// Writes a file atomically. Sessions read it and must not change it.
fn keep(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    let mut permissions = file.as_file().metadata()?.permissions();
    permissions.set_readonly(true);
    file.as_file().set_permissions(permissions)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
