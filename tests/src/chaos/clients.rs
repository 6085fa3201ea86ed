//! People under load: they repeat a call with the same request id until it is answered, and resume
//! watching from their cursor when the stream breaks.

use std::time::Duration;

use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::record::Record;
use crate::history::{Answer, Call, Sight, What};
use crate::wait::DEADLINE;

/// A call without an answer after this time counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait before an unanswered call is repeated.
const AGAIN: Duration = Duration::from_millis(20);

/// A client that uses a system and records the answers.
#[derive(Debug, Clone)]
pub struct Person {
    name: String,
    client: Client,
    record: Record,
}

impl Person {
    #[must_use]
    pub fn new(name: &str, client: Client, record: Record) -> Self {
        Self {
            name: name.to_owned(),
            client,
            record,
        }
    }

    /// Creates a task with a unique prompt. `None` when it was refused. Panics without an answer in
    /// time.
    pub async fn create(&self, spec: v1::TaskSpec) -> Option<String> {
        let request = self.record.draw();
        let spec = v1::TaskSpec {
            prompt: format!("{} {request}", spec.prompt),
            ..spec
        };
        let call = Call::Create {
            request: request.clone(),
            prompt: spec.prompt.clone(),
            sessions: spec.assignments.len(),
        };
        let begun = Instant::now();
        loop {
            let op = self.record.called(&self.name, call.clone());
            let message = v1::CreateTaskRequest {
                request_id: request.clone(),
                spec: Some(spec.clone()),
                wait_for_agent: true,
                origin: None,
            };
            let mut tasks = self.client.tasks();
            let answer = answer(tasks.create_task(message), |reply: v1::CreateTaskResponse| {
                reply.task.map(|task| task.id).unwrap_or_default()
            })
            .await;
            self.record.answered(&self.name, op, answer.clone());
            match answer {
                Answer::Done(id) => return Some(id),
                Answer::Refused(_) => return None,
                Answer::Unknown(why) => assert!(begun.elapsed() < DEADLINE, "no task is created: {why}"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Creates a task with one call. `Err`: the answer, if it was not a success.
    pub async fn try_create(&self, request: &str, spec: v1::TaskSpec) -> Result<String, ApiError> {
        let call = Call::Create {
            request: request.to_owned(),
            prompt: spec.prompt.clone(),
            sessions: spec.assignments.len(),
        };
        let op = self.record.called(&self.name, call);
        let message = v1::CreateTaskRequest {
            request_id: request.to_owned(),
            spec: Some(spec),
            wait_for_agent: true,
            origin: None,
        };
        let response = tokio::time::timeout(PATIENCE, self.client.tasks().create_task(message)).await;
        let response = response.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer")));
        let told = response.map_err(ApiError::from);
        self.record.answered(
            &self.name,
            op,
            match &told {
                Ok(reply) => Answer::Done(
                    reply
                        .get_ref()
                        .task
                        .as_ref()
                        .map(|task| task.id.clone())
                        .unwrap_or_default(),
                ),
                Err(error) => not_done(error),
            },
        );
        told.map(|reply| reply.into_inner().task.map(|task| task.id).unwrap_or_default())
    }

    /// Cancels a task. Panics without an answer in time.
    pub async fn cancel(&self, task: &str) {
        let request = self.record.draw();
        let call = Call::Cancel {
            request: request.clone(),
            task: task.to_owned(),
        };
        let begun = Instant::now();
        loop {
            let op = self.record.called(&self.name, call.clone());
            let message = v1::CancelTaskRequest {
                request_id: request.clone(),
                task_id: task.to_owned(),
            };
            let mut tasks = self.client.tasks();
            let answer = answer(tasks.cancel_task(message), |_| String::new()).await;
            self.record.answered(&self.name, op, answer.clone());
            match answer {
                Answer::Done(_) | Answer::Refused(_) => return,
                Answer::Unknown(why) => assert!(begun.elapsed() < DEADLINE, "no task is cancelled: {why}"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Watches a task, with all its output, until it ends. Panics when it does not end in time.
    pub async fn watch(&self, task: &str) -> v1::Task {
        let who = format!("{} of {task}", self.name);
        let mut cursor = String::new();
        let mut last: Option<v1::Task> = None;
        let watching = async {
            loop {
                let request = v1::WatchTaskRequest {
                    task_id: task.to_owned(),
                    cursor: cursor.clone(),
                    output: all_streams(),
                    follow: true,
                    ..v1::WatchTaskRequest::default()
                };
                if let Ok(responses) = self.client.tasks().watch_task(request).await {
                    let mut responses = responses.into_inner();
                    loop {
                        match responses.message().await {
                            Ok(Some(response)) => {
                                cursor = response.cursor;
                                if let Some(Item::Task(task)) = &response.item {
                                    last = Some((**task).clone());
                                }
                                if let Some(item) = response.item {
                                    self.record.add(&who, What::Saw(task.to_owned(), sight(item)));
                                }
                            }
                            // The stream ends with its task, or with a stopped coordinator.
                            Ok(None) => match last.take() {
                                Some(task) if task.state() != v1::TaskState::Running => return task,
                                other => {
                                    last = other;
                                    break;
                                }
                            },
                            Err(_) => break,
                        }
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let watched = tokio::time::timeout(DEADLINE * 2, watching).await;
        watched.unwrap_or_else(|_| panic!("task {task} never ended: {last:#?}"))
    }

    /// Creates tasks one after the other and watches each to its end, until it is told to stop.
    pub async fn work(&self, spec: impl Fn(usize) -> v1::TaskSpec, stop: CancellationToken) -> Vec<v1::Task> {
        let mut ended = Vec::new();
        while !stop.is_cancelled() {
            match self.create(spec(ended.len())).await {
                Some(id) => ended.push(self.watch(&id).await),
                // A coordinator with a full disk refuses; later it may not.
                None => tokio::time::sleep(AGAIN).await,
            }
        }
        ended
    }
}

#[must_use]
pub fn all_streams() -> Vec<i32> {
    let streams = [
        v1::OutputStream::Stdout,
        v1::OutputStream::Stderr,
        v1::OutputStream::Transcript,
    ];
    streams.map(i32::from).to_vec()
}

fn sight(item: Item) -> Sight {
    match item {
        Item::Task(task) => Sight::Task(task),
        Item::Event(event) => Sight::Event(event),
        Item::Output(chunk) => Sight::Output(chunk),
    }
}

async fn answer<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    done: impl FnOnce(T) -> String,
) -> Answer {
    match tokio::time::timeout(PATIENCE, call).await {
        Err(_) => Answer::Unknown("no answer".to_owned()),
        Ok(Ok(response)) => Answer::Done(done(response.into_inner())),
        Ok(Err(status)) => not_done(&status.into()),
    }
}

/// The meaning of an error for the call: only the coordinator's own reasons are refusals.
fn not_done(error: &ApiError) -> Answer {
    match error {
        ApiError::Unavailable { .. } | ApiError::Internal { .. } => Answer::Unknown(error.to_string()),
        ApiError::InvalidArgument { .. }
        | ApiError::NotFound { .. }
        | ApiError::Conflict { .. }
        | ApiError::FailedPrecondition { .. }
        | ApiError::NoAgent { .. }
        | ApiError::AgentIdInUse { .. }
        | ApiError::OtherProtocol { .. }
        | ApiError::JoinRefused(_)
        | ApiError::Unauthenticated
        | ApiError::PermissionDenied { .. }
        | ApiError::ResourceExhausted { .. }
        | ApiError::Unimplemented { .. } => Answer::Refused(error.to_string()),
    }
}
