//! CheckpointService: checkpoints of sessions, listed, compared, asked for and gone back to.
//! What differs between two of them is computed in the task's repository.

use std::sync::Arc;

use kage_core::checkpoint::{Checkpoint, CheckpointReason};
use kage_core::id::{JobId, Oid, SessionName};
use kage_git::GitError;
use kage_git::diff::{self, PathChange};
use kage_proto::convert::checkpoint::{checkpoint as shown, note};
use kage_proto::convert::parse_optional;
use kage_proto::convert::task::TaskDetail;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::checkpoint_service_server::CheckpointService;
use tonic::{Response, Status};

use super::page::{OfCheckpoint, page};
use super::{find_task, principal, request, stored};
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::refusals::{internal, read_error, store_error};
use crate::store::{PrepareRestore, Request, RequestCheckpoint, RestorePrepared, RestoreSession};
use crate::watch::view;

pub(super) mod subject;
pub(super) mod assembled;
mod asking;

use asking::{AWAY, PATIENCE, Waited, Wanted};
use subject::{Subject, named};

#[derive(Debug)]
pub(crate) struct Checkpoints(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn list_checkpoints(
        &self,
        message: tonic::Request<v1::ListCheckpointsRequest>,
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
        let mut found = Vec::new();
        for (position, session) in view
            .sessions
            .iter()
            .enumerate()
            .filter(|(_, s)| asked.as_ref().is_none_or(|asked| s.name == *asked))
        {
            let all = self.0.store.checkpoints(task, session.id).await.map_err(read_error)?;
            let wire = all.iter().map(|checkpoint| shown(checkpoint, session, &all));
            found.extend(wire.map(|checkpoint| (position, checkpoint)));
            response
                .sessions
                .push(TaskDetail::Basic.of_session(view::session(&self.0, session)));
        }
        let place = |(position, checkpoint): &(usize, v1::Checkpoint)| OfCheckpoint(*position, checkpoint.number);
        let (found, next) = page(found, place, message.page_size, &message.page_token)?;
        response.checkpoints = found.into_iter().map(|(_, checkpoint)| checkpoint).collect();
        response.next_page_token = next;
        Ok(Response::new(response))
    }

    async fn get_checkpoint(
        &self,
        message: tonic::Request<v1::GetCheckpointRequest>,
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
        message: tonic::Request<v1::RestoreSessionRequest>,
    ) -> Result<Response<v1::RestoreSessionResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let mut subject = self.subject(&caller, &message.task_id, &message.session).await?;
        let target = subject.checkpoint(&message.checkpoint)?.clone();
        let once = if message.dry_run {
            None
        } else {
            let payload = (
                subject.view.task.id,
                subject.session.id,
                target.number,
                message.complete,
            );
            Some(request(&self.0, &caller, &message.request_id, &payload)?)
        };
        let mut saved = None;
        if let Some(once) = once.clone().filter(|_| !message.discard) {
            saved = self.save(&mut subject, once).await?;
        }
        let head = subject.session.checkpoints.head.as_ref();
        let newest = subject
            .all
            .iter()
            .find(|c| head.is_some_and(|head| head.number == c.number));
        let from = match newest {
            Some(newest) => newest.taken.commit.clone(),
            None => subject.base()?.clone(),
        };
        let needed: Vec<_> = newest.into_iter().chain([&target]).collect();
        let plan = self.changes(&subject, &from, &target.taken.commit, &needed).await?;
        let repeated_calls = subject.session.calls.answered.saturating_sub(target.calls);
        let mut session = subject.session.clone();
        if let Some(once) = once {
            let command = RestoreSession {
                request: once,
                task: subject.view.task.id,
                session: session.id,
                checkpoint: target.number,
                complete: message.complete,
                next_job: JobId::from_random(self.0.random()),
                now: self.0.now(),
            };
            self.0.apply(command).await.map_err(store_error)?;
            let view = stored(&self.0, subject.view.task.id).await?;
            session = named(&view, session.name.as_str())?.clone();
        }
        Ok(Response::new(v1::RestoreSessionResponse {
            checkpoint: Some(shown(&target, &session, &subject.all)),
            plan,
            repeated_calls,
            session: Some(TaskDetail::Basic.of_session(view::session(&self.0, &session))),
            saved: saved.map(|saved| shown(&saved, &session, &subject.all)),
        }))
    }

    async fn create_checkpoint(
        &self,
        message: tonic::Request<v1::CreateCheckpointRequest>,
    ) -> Result<Response<v1::CreateCheckpointResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let note = note("note", message.note).map_err(ApiError::from)?;
        let subject = self.subject(&caller, &message.task_id, &message.session).await?;
        let (task, session) = (subject.view.task.id, subject.session.id);
        let command = RequestCheckpoint {
            request: request(&self.0, &caller, &message.request_id, &(task, session, &note))?,
            task,
            session,
            now: self.0.now(),
        };
        let wanted = Wanted {
            after: self.0.apply(command).await.map_err(store_error)?,
            reason: CheckpointReason::Requested,
            note,
            away: PATIENCE,
        };
        let refused = match wanted.wait(&self.0, &subject).await? {
            Waited::Stored(found) => {
                let (subject, taken) = *found;
                return Ok(Response::new(v1::CreateCheckpointResponse {
                    checkpoint: Some(subject.shown(&taken)),
                }));
            }
            Waited::NotRunning => ApiError::FailedPrecondition {
                message: format!("session {} is not running", subject.session.name),
            },
            Waited::Away | Waited::Late => ApiError::Unavailable {
                message: "the agent took no checkpoint in time; it is still asked for".to_owned(),
                retry: None,
            },
        };
        Err(refused.into())
    }
}

impl Checkpoints {
    async fn subject(&self, caller: &Principal, task: &str, session: &str) -> Result<Subject, ApiError> {
        let task = find_task(&self.0, caller, task).await?;
        Subject::of(&self.0, task, session).await
    }

    /// Saves the work of a running session since its newest checkpoint, before it goes back to an
    /// older one. `None`: it does not run, or an earlier call sent it back already.
    async fn save(&self, subject: &mut Subject, request: Request) -> Result<Option<Checkpoint>, ApiError> {
        let (task, session) = (subject.view.task.id, subject.session.id);
        let command = PrepareRestore {
            request,
            task,
            session,
            now: self.0.now(),
        };
        let after = match self.0.apply(command).await.map_err(store_error)? {
            RestorePrepared::Done => return Ok(None),
            RestorePrepared::Saves { after } => after,
        };
        let wanted = Wanted {
            after,
            reason: CheckpointReason::BeforeRestore,
            note: String::new(),
            away: AWAY,
        };
        let why = match wanted.wait(&self.0, subject).await? {
            Waited::Stored(found) => {
                let (now, saved) = *found;
                *subject = now;
                return Ok(Some(saved));
            }
            Waited::NotRunning => {
                *subject = Subject::of(&self.0, task, subject.session.name.as_str()).await?;
                return Ok(None);
            }
            Waited::Away => "is not connected",
            Waited::Late => "took no checkpoint in time",
        };
        let agent = subject.session.agent.as_deref().unwrap_or_default();
        let since = match &subject.session.checkpoints.head {
            Some(head) => format!("checkpoint {}", head.number),
            None => "its beginning".to_owned(),
        };
        Err(ApiError::FailedPrecondition {
            message: format!(
                "nothing was changed: what session {} did since {since} is in no checkpoint, and its agent {agent} \
                 {why}; try again, or discard it (--discard)",
                subject.session.name
            ),
        })
    }

    /// The differences between two commits, after `needed` are put together.
    async fn changes(
        &self,
        subject: &Subject,
        from: &Oid,
        to: &Oid,
        needed: &[&Checkpoint],
    ) -> Result<Vec<v1::PathPlan>, ApiError> {
        let failed = |error: &GitError| internal("a checkpoint cannot be put together", error);
        let mirror = assembled::repository(&self.0, subject, needed).await?;
        let (path, from, to) = (mirror.path().to_owned(), from.clone(), to.clone());
        let changes = tokio::task::spawn_blocking(move || diff::paths(&path, &from, &to)).await;
        let changes = changes.map_err(|error| internal("comparing checkpoints was interrupted", &error))?;
        let changes = changes.map_err(|error| failed(&error))?;
        Ok(changes.into_iter().map(plan).collect())
    }
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
        display_path: String::from_utf8_lossy(&change.path).into_owned(),
        path: change.path,
        action: action.into(),
        old_mode,
        old_id,
        new_mode,
        new_id,
    }
}
