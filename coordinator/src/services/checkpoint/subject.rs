//! The session and the checkpoints that a call is about: the session by its name, the checkpoints
//! by what people type.

use kage_core::checkpoint::Checkpoint;
use kage_core::id::{Oid, TaskId};
use kage_core::session::Session;
use kage_proto::convert::checkpoint::checkpoint as shown;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::coordinator::Coordinator;
use crate::refusals::read_error;
use crate::services::stored;
use crate::store::TaskView;

/// Shortest beginning of a commit's id that is looked up.
const MIN_PREFIX: usize = 4;

/// A session and its checkpoints, oldest first.
pub(in crate::services) struct Subject {
    pub(in crate::services) view: TaskView,
    pub(in crate::services) session: Session,
    pub(in crate::services) all: Vec<Checkpoint>,
}

impl Subject {
    /// A session as it is stored now.
    pub(in crate::services) async fn of(
        coordinator: &Coordinator,
        task: TaskId,
        session: &str,
    ) -> Result<Self, ApiError> {
        let view = stored(coordinator, task).await?;
        let session = named(&view, session)?.clone();
        let all = coordinator
            .store
            .checkpoints(task, session.id)
            .await
            .map_err(read_error)?;
        Ok(Self { view, session, all })
    }

    pub(in crate::services) fn base(&self) -> Result<&Oid, ApiError> {
        let repository = self.view.task.spec.repository.as_ref();
        repository
            .map(|repository| &repository.base)
            .ok_or_else(|| ApiError::FailedPrecondition {
                message: "the task has no repository".to_owned(),
            })
    }

    pub(in crate::services) fn shown(&self, checkpoint: &Checkpoint) -> v1::Checkpoint {
        shown(checkpoint, &self.session, &self.all)
    }

    pub(in crate::services) fn checkpoint(&self, text: &str) -> Result<&Checkpoint, ApiError> {
        select(&self.all, text)
    }
}

/// The session of this name; a task's only one needs no name.
pub(in crate::services) fn named<'a>(view: &'a TaskView, name: &str) -> Result<&'a Session, ApiError> {
    if let ("", [only]) = (name, view.sessions.as_slice()) {
        return Ok(only);
    }
    if name.is_empty() {
        let names: Vec<_> = view.sessions.iter().map(|session| session.name.as_str()).collect();
        let problem = format_args!("the task has several sessions; name one of {}", names.join(", "));
        return Err(ApiError::invalid("session", problem));
    }
    let found = view.sessions.iter().find(|session| session.name.as_str() == name);
    found.ok_or_else(|| ApiError::NotFound {
        what: format!("session {name}"),
    })
}

/// The checkpoint that a person means: a number counts before the beginning of an id.
fn select<'a>(all: &'a [Checkpoint], text: &str) -> Result<&'a Checkpoint, ApiError> {
    let number = text.parse().ok();
    if let Some(found) = all.iter().find(|checkpoint| Some(checkpoint.number) == number) {
        return Ok(found);
    }
    let prefix = text.to_ascii_lowercase();
    let fits =
        |checkpoint: &&Checkpoint| prefix.len() >= MIN_PREFIX && checkpoint.taken.commit.as_str().starts_with(&prefix);
    // One commit may be several checkpoints if nothing changed between them: the last one counts.
    let Some(found) = all.iter().rev().find(fits) else {
        return Err(ApiError::NotFound {
            what: format!("checkpoint {text}"),
        });
    };
    if all
        .iter()
        .filter(fits)
        .any(|other| other.taken.commit != found.taken.commit)
    {
        let problem = format_args!("{text} is the beginning of several ids; give more of it");
        return Err(ApiError::invalid("checkpoint", problem));
    }
    Ok(found)
}
