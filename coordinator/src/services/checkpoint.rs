//! CheckpointService: checkpoints of sessions, listed, compared, asked for and gone back to.
//! What differs between two of them is computed in the task's repository, which the packs of
//! the blob plane are taken into when somebody asks: it is a cache of them.

use std::sync::Arc;
use std::time::Duration;

use kage_core::checkpoint::{Chain, Checkpoint, CheckpointReason};
use kage_core::id::{JobId, Oid, SessionName};
use kage_core::session::{Session, SessionState};
use kage_git::diff::{self, PathChange};
use kage_git::{GitError, Mirror};
use kage_proto::convert::checkpoint::{checkpoint as shown, note};
use kage_proto::convert::parse_optional;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::checkpoint_service_server::CheckpointService;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status};

use super::{find_task, internal, principal, read_error, request, store_error, stored};
use crate::auth::Principal;
use crate::coordinator::Coordinator;
use crate::store::{RequestCheckpoint, RestoreSession, TaskView};
use crate::view;

/// Shortest beginning of a commit's id that is looked up.
const MIN_PREFIX: usize = 4;
/// How long a checkpoint that was asked for may take: it waits for the end of a step.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often an agent that was away is tried again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Checkpoints(pub(crate) Arc<Coordinator>);

/// A session and its checkpoints, oldest first.
struct Subject {
    view: TaskView,
    session: Session,
    all: Vec<Checkpoint>,
}

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn list_checkpoints(
        &self,
        message: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let task = find_task(&self.0, &caller, &message.task_id).await?;
        let view = stored(&self.0, task).await?;
        let asked: Option<SessionName> = parse_optional("session", &message.session).map_err(ApiError::from)?;
        if let Some(asked) = &asked {
            named(&view, asked.as_str())?;
        }
        let mut response = v1::ListCheckpointsResponse::default();
        for session in view
            .sessions
            .iter()
            .filter(|s| asked.as_ref().is_none_or(|asked| s.name == *asked))
        {
            let all = self.0.store.checkpoints(task, session.id).await.map_err(read_error)?;
            let wire = all.iter().map(|checkpoint| shown(checkpoint, session, &all));
            response.checkpoints.extend(wire);
            response.sessions.push(view::session(&self.0, session));
        }
        Ok(Response::new(response))
    }

    async fn get_checkpoint(
        &self,
        message: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let subject = self.subject(&caller, &message.task_id, &message.session).await?;
        let checkpoint = subject.checkpoint(&message.checkpoint)?;
        let changes = self
            .changes(
                &subject,
                &checkpoint.taken.parent,
                &checkpoint.taken.commit,
                &[checkpoint],
            )
            .await?;
        Ok(Response::new(v1::GetCheckpointResponse {
            checkpoint: Some(subject.shown(checkpoint)),
            changes,
        }))
    }

    async fn restore_session(
        &self,
        message: Request<v1::RestoreSessionRequest>,
    ) -> Result<Response<v1::RestoreSessionResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let subject = self.subject(&caller, &message.task_id, &message.session).await?;
        let target = subject.checkpoint(&message.checkpoint)?;
        let head = subject.session.trail.head.as_ref();
        let newest = subject
            .all
            .iter()
            .find(|c| head.is_some_and(|head| head.number == c.number));
        let from = match newest {
            Some(newest) => newest.taken.commit.clone(),
            None => subject.base()?.clone(),
        };
        let needed: Vec<_> = newest.into_iter().chain([target]).collect();
        let plan = self.changes(&subject, &from, &target.taken.commit, &needed).await?;
        let repeated_calls = subject.session.trail.calls.saturating_sub(target.calls);
        let mut session = subject.session.clone();
        if !message.dry_run {
            let payload = (subject.view.task.id, session.id, target.number);
            let command = RestoreSession {
                request: request(&caller, &message.request_id, &payload)?,
                task: subject.view.task.id,
                session: session.id,
                checkpoint: target.number,
                next_job: JobId::from_random(self.0.random()),
                now: self.0.now(),
            };
            let changes = self.0.store.apply(command).await.map_err(store_error)?;
            self.0.follow(changes);
            let view = stored(&self.0, subject.view.task.id).await?;
            session = named(&view, session.name.as_str())?.clone();
        }
        Ok(Response::new(v1::RestoreSessionResponse {
            checkpoint: Some(shown(target, &session, &subject.all)),
            plan,
            repeated_calls,
            session: Some(view::session(&self.0, &session)),
        }))
    }

    async fn create_checkpoint(
        &self,
        message: Request<v1::CreateCheckpointRequest>,
    ) -> Result<Response<v1::CreateCheckpointResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let note = note("note", message.note).map_err(ApiError::from)?;
        let subject = self.subject(&caller, &message.task_id, &message.session).await?;
        let (task, session) = (subject.view.task.id, subject.session.id);
        // Before the first look, so that nothing is missed.
        let mut news = self.0.topics.subscribe(task);
        let command = RequestCheckpoint {
            request: request(&caller, &message.request_id, &(task, session, &note))?,
            task,
            session,
            now: self.0.now(),
        };
        let before = self.0.store.apply(command).await.map_err(store_error)?;
        let deadline = Instant::now() + PATIENCE;
        let mut asked = None;
        loop {
            let subject = self
                .subject(&caller, &task.to_string(), subject.session.name.as_str())
                .await?;
            let requested = |c: &&Checkpoint| c.number > before && c.taken.reason == CheckpointReason::Requested;
            if let Some(taken) = subject.all.iter().find(requested) {
                return Ok(Response::new(v1::CreateCheckpointResponse {
                    checkpoint: Some(subject.shown(taken)),
                }));
            }
            let SessionState::Running { attempt } = subject.session.state else {
                return Err(ApiError::FailedPrecondition {
                    message: format!("session {} is not running", subject.session.name),
                }
                .into());
            };
            if Instant::now() >= deadline {
                return Err(ApiError::Unavailable {
                    message: "the agent took no checkpoint in time; it is still asked for".to_owned(),
                    retry: None,
                }
                .into());
            }
            // A later attempt knows nothing of what the one before it was asked.
            if asked != Some(attempt) {
                let live = self.0.store.attempt(attempt).await.map_err(read_error)?;
                let order = v1::ConnectResponse {
                    message: Some(v1::connect_response::Message::TakeCheckpoint(v1::TakeCheckpoint {
                        attempt_id: attempt.to_string(),
                        note: note.clone(),
                    })),
                };
                let told = live.is_some_and(|live| self.0.board().tell(live.attempt.agent, order));
                asked = told.then_some(attempt);
            }
            // When nobody says anything, the look itself is what matters.
            timeout(AGAIN, news.changed()).await.ok();
        }
    }
}

impl Checkpoints {
    async fn subject(&self, caller: &Principal, task: &str, session: &str) -> Result<Subject, ApiError> {
        let task = find_task(&self.0, caller, task).await?;
        let view = stored(&self.0, task).await?;
        let session = named(&view, session)?.clone();
        let all = self.0.store.checkpoints(task, session.id).await.map_err(read_error)?;
        Ok(Subject { view, session, all })
    }

    /// What differs from one commit to another, once `needed` are put together.
    async fn changes(
        &self,
        subject: &Subject,
        from: &Oid,
        to: &Oid,
        needed: &[&Checkpoint],
    ) -> Result<Vec<v1::PathPlan>, ApiError> {
        let failed = |error: &GitError| internal("a checkpoint cannot be put together", error);
        let mirror = self.mirror(subject).await?;
        for checkpoint in needed {
            self.put_together(&mirror, subject, checkpoint).await?;
        }
        let (path, from, to) = (mirror.path().to_owned(), from.clone(), to.clone());
        let changes = tokio::task::spawn_blocking(move || diff::paths(&path, &from, &to)).await;
        let changes = changes.map_err(|error| internal("comparing checkpoints was broken off", &error))?;
        let changes = changes.map_err(|error| failed(&error))?;
        Ok(changes.into_iter().map(plan).collect())
    }

    async fn mirror(&self, subject: &Subject) -> Result<Mirror, ApiError> {
        let spec = &subject.view.task.spec;
        let gone = || ApiError::FailedPrecondition {
            message: "the task has no repository".to_owned(),
        };
        let repository = spec.repository.as_ref().ok_or_else(gone)?;
        let opened = self.0.repositories.open(&spec.project, &repository.name).await;
        let mirror = opened.map_err(|error| internal("the repository could not be opened", &error))?;
        mirror.ok_or_else(gone)
    }

    /// Takes into the repository what it lacks of a checkpoint.
    async fn put_together(&self, mirror: &Mirror, subject: &Subject, checkpoint: &Checkpoint) -> Result<(), ApiError> {
        let failed = |error: &GitError| internal("a checkpoint cannot be put together", error);
        let broken = |error| internal("a checkpoint cannot be put together", &error);
        let commit = &checkpoint.taken.commit;
        if mirror.has_commit(commit).await.map_err(|error| failed(&error))? {
            return Ok(());
        }
        let chain = Chain::of(checkpoint, &subject.all, subject.base()?).map_err(broken)?;
        let project = &subject.view.task.spec.project;
        let incoming = mirror.incoming().map_err(|error| failed(&error))?;
        for pack in &chain.packs {
            let file = self.0.blobs.file(project, pack).await;
            let file = file.map_err(|error| internal("the pack of a checkpoint cannot be read", &error))?;
            incoming.add(file).await.map_err(|error| failed(&error))?;
        }
        incoming.admit(commit).await.map_err(|error| failed(&error))
    }
}

impl Subject {
    fn base(&self) -> Result<&Oid, ApiError> {
        let repository = self.view.task.spec.repository.as_ref();
        repository
            .map(|repository| &repository.base)
            .ok_or_else(|| ApiError::FailedPrecondition {
                message: "the task has no repository".to_owned(),
            })
    }

    fn shown(&self, checkpoint: &Checkpoint) -> v1::Checkpoint {
        shown(checkpoint, &self.session, &self.all)
    }

    fn checkpoint(&self, text: &str) -> Result<&Checkpoint, ApiError> {
        select(&self.all, text)
    }
}

/// The session of this name; a task's only one needs no name.
fn named<'a>(view: &'a TaskView, name: &str) -> Result<&'a Session, ApiError> {
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
    // One commit may be several checkpoints, when nothing had changed: the last one counts.
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

fn plan(change: PathChange) -> v1::PathPlan {
    let action = match (&change.before, &change.after) {
        (None, _) => v1::PathAction::Create,
        (Some(_), Some(_)) => v1::PathAction::Replace,
        (Some(_), None) => v1::PathAction::Delete,
    };
    let (old_mode, old_id) = change
        .before
        .map(|entry| (entry.mode, entry.id.into()))
        .unwrap_or_default();
    let (new_mode, new_id) = change
        .after
        .map(|entry| (entry.mode, entry.id.into()))
        .unwrap_or_default();
    v1::PathPlan {
        path: change.path,
        action: action.into(),
        old_mode,
        old_id,
        new_mode,
        new_id,
    }
}
