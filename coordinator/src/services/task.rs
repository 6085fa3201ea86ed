//! TaskService: create, look at, cancel, watch and compare tasks.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use kage_core::fallback::TaskLacks;
use kage_core::id::{Digest, JobId, SessionId, TaskId};
use kage_core::report;
use kage_core::task::{TaskOrigin, TaskSpec};
use kage_proto::convert::event::output_stream;
use kage_proto::convert::task::{TaskDetail, checked_spec};
use kage_proto::convert::{self, InvalidField, Wrong};
use kage_proto::status::ApiError;
use kage_proto::v1::task_service_server::TaskService;
use kage_proto::{MAX_INLINE, v1};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::checkpoint::subject::named;
use super::room::Room;
use super::{diff, find_task, listing, principal, request, stored};
use crate::coordinator::Coordinator;
use crate::coordinator::lost::PATIENCE_OF_TASKS;
use crate::door::auth::Principal;
use crate::door::outflow::Outgoing;
use crate::duties::retention::{self, FilesFate};
use crate::refusals::{busy, internal, read_error, store_error};
use crate::store::{
    CancelTask, CreateTask, DropTask, InvalidPageToken, PageToken, SelectResult, TaskView, VerifyResult,
};
use crate::telemetry;
use crate::watch::cursor::Cursor;
use crate::watch::watching::{self, Watch};
use crate::watch::{tasks, view};

mod sending;

const PAGE_SIZE: u32 = 20;
const MAX_PAGE_SIZE: u32 = 100;

#[derive(Debug)]
pub(crate) struct Tasks(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl TaskService for Tasks {
    async fn create_task(
        &self,
        message: Request<v1::CreateTaskRequest>,
    ) -> Result<Response<v1::CreateTaskResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let (mut spec, origin) = asked(&caller, message.spec, message.origin)?;
        let request = request(&self.0, &caller, &message.request_id, &spec)?;
        // Until the task is stored its repository stays.
        let held = match &spec.repository {
            Some(repository) => Some(
                self.0
                    .repositories
                    .hold(&spec.project, &repository.name)
                    .map_err(busy)?,
            ),
            None => None,
        };
        self.check(&spec).await?;
        let project_full = Room::full(&self.0, &caller, &spec.project).await;
        if spec.prompt.len() > MAX_INLINE && project_full.is_none() {
            let prompt = Bytes::copy_from_slice(spec.prompt.as_bytes());
            let stored = self.0.blobs.put_bytes(&spec.project, prompt).await;
            let (digest, _) = stored.map_err(|error| internal("the prompt could not be stored", &error))?;
            spec.prompt_blob = Some(digest);
        }
        let fresh = || {
            (
                SessionId::from_random(self.0.random()),
                JobId::from_random(self.0.random()),
            )
        };
        let command = CreateTask {
            request,
            task: TaskId::from_random(self.0.random()),
            sessions: spec.assignments.iter().map(|_| fresh()).collect(),
            baseline: spec.checked_base().map(|_| JobId::from_random(self.0.random())),
            machines: self.machines(&spec),
            lacks: self.lacks(&spec),
            waits_for_agent: message.wait_for_agent,
            queue_full: self.queue_full(&caller, &spec),
            project_full,
            spec,
            origin,
            now: self.0.now(),
        };
        let mut new = as_created(&command);
        let created = self.0.apply(command).await.map_err(store_error)?;
        drop(held);
        let task = if created.repeated {
            self.shown(created.task, TaskDetail::Basic).await?
        } else {
            telemetry::task_created();
            if let Some(kept) = &created.baseline {
                kept.take(&mut new.task);
            }
            view::task(&self.0, new, TaskDetail::Basic)
        };
        Ok(Response::new(v1::CreateTaskResponse { task: Some(task) }))
    }

    async fn get_task(&self, message: Request<v1::GetTaskRequest>) -> Result<Response<v1::GetTaskResponse>, Status> {
        let id = find_task(&self.0, &principal(&message), &message.get_ref().task_id).await?;
        let detail = TaskDetail::asked("view", message.get_ref().view).map_err(ApiError::from)?;
        let task = self.shown(id, detail).await?;
        Ok(Response::new(v1::GetTaskResponse { task: Some(task) }))
    }

    async fn list_tasks(
        &self,
        message: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let filter = listing::filter(&caller, &message)?;
        let after = match message.page_token.as_str() {
            "" => None,
            text => {
                let invalid = |error: InvalidPageToken| ApiError::invalid("page_token", error);
                Some(text.parse::<PageToken>().map_err(invalid)?)
            }
        };
        let size = match message.page_size {
            0 => PAGE_SIZE,
            size => size.min(MAX_PAGE_SIZE),
        };
        let page = self.0.store.tasks(&filter, after, size).await.map_err(read_error)?;
        let tasks = page.tasks.into_iter();
        Ok(Response::new(v1::ListTasksResponse {
            tasks: tasks.map(|task| view::task(&self.0, task, TaskDetail::Basic)).collect(),
            next_page_token: page.next.map(|token| token.to_string()).unwrap_or_default(),
        }))
    }

    async fn cancel_task(
        &self,
        message: Request<v1::CancelTaskRequest>,
    ) -> Result<Response<v1::CancelTaskResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let task = find_task(&self.0, &caller, &message.task_id).await?;
        let command = CancelTask {
            request: request(&self.0, &caller, &message.request_id, &task)?,
            task,
            now: self.0.now(),
        };
        self.0.apply(command).await.map_err(store_error)?;
        let task = self.shown(task, TaskDetail::Basic).await?;
        Ok(Response::new(v1::CancelTaskResponse { task: Some(task) }))
    }

    async fn remove_task(
        &self,
        message: Request<v1::RemoveTaskRequest>,
    ) -> Result<Response<v1::RemoveTaskResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let task = find_task(&self.0, &caller, &message.task_id).await?;
        let command = DropTask {
            request: Some(request(&self.0, &caller, &message.request_id, &task)?),
            task,
            now: self.0.now(),
        };
        let left = retention::left_by(&self.0, task).await.map_err(read_error)?;
        self.0.apply(command).await.map_err(store_error)?;
        let fate = match message.now {
            true => FilesFate::Deleted,
            false => FilesFate::PutAside,
        };
        retention::release(&self.0, left, fate);
        self.0.dropped.notify_one();
        Ok(Response::new(v1::RemoveTaskResponse {}))
    }

    type WatchTaskStream = Outgoing<v1::WatchTaskResponse>;

    async fn watch_task(
        &self,
        message: Request<v1::WatchTaskRequest>,
    ) -> Result<Response<Self::WatchTaskStream>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let task = find_task(&self.0, &caller, &message.task_id).await?;
        let streams: Result<_, InvalidField> = message
            .output
            .iter()
            .map(|number| output_stream("output", *number))
            .collect();
        let session = convert::parse_optional("session", &message.session).map_err(ApiError::from)?;
        if let Some(session) = &session {
            let view = stored(&self.0, task).await?;
            if view.sessions.iter().all(|one| one.name != *session) {
                return Err(ApiError::NotFound {
                    what: format!("session {session}"),
                }
                .into());
            }
        }
        let watch = Watch {
            cursor: Cursor::decode(&message.cursor, task).map_err(ApiError::from)?,
            streams: streams.map_err(ApiError::from)?,
            session,
            follow: message.follow,
        };
        let open = self.0.restraint.watch(caller.limited())?;
        let (responses, stream) = self.0.restraint.outflows.open();
        let coordinator = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            // It counts while anything of it waits for the network.
            let watching = pin!(watching::run(coordinator, watch, &responses));
            responses.while_taken(watching).await;
            drop(open);
        });
        Ok(Response::new(stream))
    }

    type WatchTasksStream = Outgoing<v1::WatchTasksResponse>;

    async fn watch_tasks(
        &self,
        message: Request<v1::WatchTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        let caller = principal(&message);
        let watch = listing::watch(&caller, self.0.run, message.into_inner())?;
        let open = self.0.restraint.watch(caller.limited())?;
        let (responses, stream) = self.0.restraint.outflows.open();
        let coordinator = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let watching = pin!(tasks::run(coordinator, watch, &responses));
            responses.while_taken(watching).await;
            drop(open);
        });
        Ok(Response::new(stream))
    }

    async fn get_report(
        &self,
        message: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::GetReportResponse>, Status> {
        let id = find_task(&self.0, &principal(&message), &message.get_ref().task_id).await?;
        let view = stored(&self.0, id).await?;
        let report = report::rank(&view.task, &view.sessions, self.0.now());
        Ok(Response::new(v1::GetReportResponse {
            report: Some(report.into()),
        }))
    }

    async fn select_result(
        &self,
        message: Request<v1::SelectResultRequest>,
    ) -> Result<Response<v1::SelectResultResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let task = find_task(&self.0, &caller, &message.task_id).await?;
        let session = match message.session.as_str() {
            "" => None,
            name => Some(named(&stored(&self.0, task).await?, name)?.id),
        };
        let command = SelectResult {
            request: request(&self.0, &caller, &message.request_id, &(task, session))?,
            task,
            session,
            now: self.0.now(),
        };
        self.0.apply(command).await.map_err(store_error)?;
        let task = self.shown(task, TaskDetail::Basic).await?;
        Ok(Response::new(v1::SelectResultResponse { task: Some(task) }))
    }

    async fn send_message(
        &self,
        message: Request<v1::SendMessageRequest>,
    ) -> Result<Response<v1::SendMessageResponse>, Status> {
        let caller = principal(&message);
        let sent = sending::send(&self.0, &caller, message.into_inner()).await?;
        Ok(Response::new(sent))
    }

    async fn answer_question(
        &self,
        message: Request<v1::AnswerQuestionRequest>,
    ) -> Result<Response<v1::AnswerQuestionResponse>, Status> {
        let caller = principal(&message);
        let answered = sending::answer(&self.0, &caller, message.into_inner()).await?;
        Ok(Response::new(answered))
    }

    async fn fork_session(
        &self,
        message: Request<v1::ForkSessionRequest>,
    ) -> Result<Response<v1::ForkSessionResponse>, Status> {
        let caller = principal(&message);
        let forked = sending::fork(&self.0, &caller, message.into_inner()).await?;
        Ok(Response::new(forked))
    }

    async fn verify_result(
        &self,
        message: Request<v1::VerifyResultRequest>,
    ) -> Result<Response<v1::VerifyResultResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let task = find_task(&self.0, &caller, &message.task_id).await?;
        let session = named(&stored(&self.0, task).await?, &message.session)?.id;
        let command = VerifyResult {
            request: request(&self.0, &caller, &message.request_id, &(task, session))?,
            task,
            session,
            next_job: JobId::from_random(self.0.random()),
            now: self.0.now(),
        };
        self.0.apply(command).await.map_err(store_error)?;
        let task = self.shown(task, TaskDetail::Basic).await?;
        Ok(Response::new(v1::VerifyResultResponse { task: Some(task) }))
    }

    type GetDiffStream = diff::Responses;

    async fn get_diff(&self, message: Request<v1::GetDiffRequest>) -> Result<Response<Self::GetDiffStream>, Status> {
        let responses = diff::begin(&self.0, &principal(&message), message.get_ref()).await?;
        Ok(Response::new(responses))
    }
}

impl Tasks {
    async fn shown(&self, id: TaskId, detail: TaskDetail) -> Result<v1::Task, ApiError> {
        Ok(view::task(&self.0, stored(&self.0, id).await?, detail))
    }

    /// How many sessions wait in the task's project, when it gets no new task for that. The owner may fill it further.
    fn queue_full(&self, caller: &Principal, spec: &TaskSpec) -> Option<u32> {
        let most = self.0.callers.waiting_sessions;
        let limited = most > 0 && caller.limited().is_some();
        (limited && self.0.board().has_waiting(&spec.project, most as usize)).then_some(most)
    }

    /// Checks what the store cannot: that everything the spec names is here and readable.
    async fn check(&self, spec: &TaskSpec) -> Result<(), ApiError> {
        if let Some(base) = &spec.context_base {
            self.check_context(spec, base).await?;
        }
        if let Some(repository) = &spec.repository {
            let name = &repository.name;
            let beside = [spec.environment.files.as_ref(), spec.names()];
            for commit in [&repository.base].into_iter().chain(beside.into_iter().flatten()) {
                let present = self.0.objects.has_commit(&spec.project, name, commit).await;
                if !present.map_err(|error| internal("the repository could not be read", &error))? {
                    return Err(ApiError::FailedPrecondition {
                        message: format!(
                            "commit {commit} is not in repository {name}; push it as refs/kage/bases/{commit}"
                        ),
                    });
                }
            }
            for (field, folder) in spec.folders() {
                let there = self.0.objects.has_folder(&spec.project, repository, folder).await;
                if !there.map_err(|error| internal("the repository could not be read", &error))? {
                    let base = &repository.base;
                    let text = format!("commit {base} has no folder {folder}; name one that it has, or none");
                    return Err(ApiError::invalid(format!("spec.{field}"), text));
                }
            }
        }
        Ok(())
    }

    /// The machines on which verify could run on the base now.
    fn machines(&self, spec: &TaskSpec) -> Vec<Digest> {
        if spec.checked_base().is_none() || spec.fresh_baseline {
            return Vec::new();
        }
        self.0.board().machines(spec)
    }

    /// What the known agents lack for the sessions, by adapter, and for the checks of their results.
    fn lacks(&self, spec: &TaskSpec) -> TaskLacks {
        let sessions = || spec.assignments.iter();
        let (board, now) = (self.0.board(), Instant::now());
        TaskLacks {
            sessions: sessions()
                .map(|session| sending::lacks(&board, spec, session))
                .collect(),
            verify: sessions().find_map(|session| board.nobody_can_verify(spec, session, now)),
        }
    }

    async fn check_context(&self, spec: &TaskSpec, base: &Digest) -> Result<(), ApiError> {
        let size = self
            .0
            .store
            .context_size(&spec.project, base)
            .await
            .map_err(read_error)?;
        let unreadable = |error| internal("the context could not be read", &error);
        let project = &spec.project;
        if size.is_some() {
            // Looking for the file keeps it from being collected before the task names it.
            if self.0.blobs.size(project, base).await.map_err(unreadable)?.is_some() {
                return Ok(());
            }
            let brought = self.0.bring_back(project, base, PATIENCE_OF_TASKS).await;
            if brought.map_err(unreadable)?.is_some() {
                return Ok(());
            }
        }
        Err(ApiError::FailedPrecondition {
            message: format!("base context {base} is not stored; send it with PutContext"),
        })
    }
}

/// The requested task, and its origin.
fn asked(
    caller: &Principal,
    spec: Option<v1::TaskSpec>,
    origin: Option<v1::TaskOrigin>,
) -> Result<(TaskSpec, Option<TaskOrigin>), ApiError> {
    let mut wrong = Wrong::default();
    let named = spec.as_ref().map_or_else(String::new, |spec| spec.project.clone());
    let spec = match spec {
        Some(spec) => checked_spec(spec)
            .map_err(|fields| wrong.within("spec", |wrong| wrong.extend(fields)))
            .ok(),
        None => {
            wrong.add(InvalidField::new("spec", "is missing"));
            None
        }
    };
    let origin = origin.map(TaskOrigin::try_from).transpose();
    let origin = origin
        .map_err(|fields| wrong.within("origin", |wrong| wrong.extend(fields)))
        .ok();
    let (spec, origin) = wrong
        .none(spec.zip(origin))?
        .ok_or_else(|| ApiError::invalid("spec", "is missing"))?;
    let project = caller.project("spec.project", &named)?;
    Ok((TaskSpec { project, ..spec }, origin))
}

/// The task as it is when the command was carried out; reading it back would cost every
/// caller a look into the database.
fn as_created(command: &CreateTask) -> TaskView {
    TaskView {
        task: command.new_task(),
        sessions: command.begun(),
        last_event: 0,
    }
}
