//! Finds, creates, steers, selects results of, cancels and removes tasks on the coordinator, and reads
//! their reports.

use std::path::Path;

use anyhow::Context as _;
use kage_core::contain::Tier;
use kage_core::task::TaskSpec;
use kage_proto::convert::contain::claimed;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
use crate::newest::newest;

/// The task asked for, or the newest of the repository that the command is typed in.
///
/// # Errors
/// When there is none.
pub async fn find(access: &Access, asked: Option<String>) -> anyhow::Result<v1::Task> {
    find_in(access, asked, Path::new(".")).await
}

/// The task asked for, or the newest of the repository that `place` is in.
///
/// # Errors
/// When there is none.
pub async fn find_in(access: &Access, asked: Option<String>, place: &Path) -> anyhow::Result<v1::Task> {
    let task_id = match asked {
        Some(id) => id,
        None => newest(access, place).await?.id,
    };
    let request = v1::GetTaskRequest {
        task_id,
        view: v1::TaskView::Full.into(),
    };
    let response = access.client.tasks().get_task(request).await.map_err(ApiError::from)?;
    response.into_inner().task.context("the coordinator sent no task")
}

/// The report of a task as it is now.
///
/// # Errors
/// When the coordinator cannot answer.
pub async fn report(access: &Access, task_id: &str) -> anyhow::Result<v1::GetReportResponse> {
    let request = v1::GetReportRequest {
        task_id: task_id.to_owned(),
    };
    let response = access
        .client
        .tasks()
        .get_report(request)
        .await
        .map_err(ApiError::from)?;
    Ok(response.into_inner())
}

/// An id that makes a call safe to repeat.
#[must_use]
pub fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// It is not known whether a task was stored.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is not known whether the task was stored; run the same command again with `--request-id {request_id}`, which \
     stores no second one"
)]
pub struct UnknownOutcome {
    request_id: String,
    #[source]
    source: ApiError,
}

/// Stores a task. A lost reply is asked for again with the same id, so that it is stored once.
///
/// # Errors
/// When the coordinator refuses the task or cannot be reached, or when no agent can run the task
/// and it must not wait. [`UnknownOutcome`] when it may be stored.
pub async fn create(
    access: &Access,
    request_id: String,
    spec: TaskSpec,
    origin: Option<v1::TaskOrigin>,
    wait_for_agent: bool,
) -> anyhow::Result<v1::Task> {
    let demanded = spec.policy.contain;
    let is_race = spec.policy.course.is_race();
    let request = v1::CreateTaskRequest {
        request_id: request_id.clone(),
        spec: Some(spec.into()),
        wait_for_agent,
        origin,
    };
    let call = async || {
        let response = access.client.tasks().create_task(request.clone()).await;
        response.map_err(ApiError::from)
    };
    let response = match call().await {
        Err(error) if error.is_transient() => {
            // A refusal of the second call says nothing of the first.
            let is_known = !matches!(error, ApiError::Unavailable { .. });
            call().await.map_err(|error| unanswered(request_id, error, is_known))?
        }
        answered => answered.map_err(|error| unanswered(request_id, error, true))?,
    };
    let task = response.into_inner().task.context("the coordinator sent no task")?;
    if !demands(&task, demanded) {
        cancel(access, &task.id).await?;
        return Err(Refusal::usage(format!(
            "the coordinator is older than this program and would run the task in any containment, not in {demanded} or \
             higher: the task was stopped; upgrade the coordinator"
        ))
        .into());
    }
    let policy = task.spec.as_ref().and_then(|spec| spec.policy.as_ref());
    if !is_race && policy.is_none_or(|policy| policy.course.is_none()) {
        cancel(access, &task.id).await?;
        let text = "the coordinator is older than this program and would run all sessions to their end: the task was \
                    stopped; upgrade the coordinator, or leave out --ladder and --first-verified";
        return Err(Refusal::usage(text).into());
    }
    Ok(task)
}

/// True when the coordinator knows that the task demands this tier: an older one reads no such demand.
fn demands(task: &v1::Task, tier: Tier) -> bool {
    let policy = task.spec.as_ref().and_then(|spec| spec.policy.as_ref());
    let known = policy.and_then(|policy| claimed(policy.contain));
    known.unwrap_or_default() >= tier
}

/// A call that was cut off may have had its effect; one that was refused has none. `is_known`: no earlier
/// call with the id was cut off.
fn unanswered(request_id: String, error: ApiError, is_known: bool) -> anyhow::Error {
    match error {
        refused if is_known && !matches!(refused, ApiError::Unavailable { .. }) => refused.into(),
        source => UnknownOutcome { request_id, source }.into(),
    }
}

/// Makes a call that has a request id, and once more when its reply was lost.
async fn twice<T>(call: impl AsyncFn() -> Result<T, ApiError>) -> Result<T, ApiError> {
    match call().await {
        Err(error) if error.is_transient() => call().await,
        answered => answered,
    }
}

/// Says to a session what to do next.
///
/// # Errors
/// When the session takes no message, or the coordinator cannot be reached.
pub async fn send(
    access: &Access,
    task_id: &str,
    session: &str,
    text: String,
) -> anyhow::Result<v1::SendMessageResponse> {
    let request = v1::SendMessageRequest {
        request_id: request_id(),
        task_id: task_id.to_owned(),
        session: session.to_owned(),
        text,
    };
    let response = twice(async || {
        let response = access.client.tasks().send_message(request.clone()).await;
        response.map_err(ApiError::from)
    });
    Ok(response.await?.into_inner())
}

/// Answers what the program of a running session asks. `question`: 0 = the only one that waits.
///
/// # Errors
/// When the question is not open, or the coordinator cannot be reached.
pub async fn answer(
    access: &Access,
    task_id: &str,
    session: &str,
    question: u32,
    allow: bool,
) -> anyhow::Result<v1::AnswerQuestionResponse> {
    let request = v1::AnswerQuestionRequest {
        task_id: task_id.to_owned(),
        session: session.to_owned(),
        number: question,
        allow,
    };
    // The same answer again changes nothing.
    let response = twice(async || {
        let response = access.client.tasks().answer_question(request.clone()).await;
        response.map_err(ApiError::from)
    });
    Ok(response.await?.into_inner())
}

/// Adds a session that goes on from the files of another one. The request gets an id.
///
/// # Errors
/// When there are no such files, no agent can run the session, or the coordinator cannot be reached.
pub async fn fork(access: &Access, request: v1::ForkSessionRequest) -> anyhow::Result<v1::ForkSessionResponse> {
    let request = v1::ForkSessionRequest {
        request_id: request_id(),
        ..request
    };
    let response = twice(async || {
        let response = access.client.tasks().fork_session(request.clone()).await;
        response.map_err(ApiError::from)
    });
    Ok(response.await?.into_inner())
}

/// Forgets a task that is over. Its files are deleted now, or kept aside for a week.
///
/// # Errors
/// When the task does not exist or has not ended, or the coordinator cannot be reached.
pub async fn remove(access: &Access, task_id: &str, now: bool) -> anyhow::Result<()> {
    let request = v1::RemoveTaskRequest {
        request_id: request_id(),
        task_id: task_id.to_owned(),
        now,
    };
    let removed = access.client.tasks().remove_task(request).await;
    removed.map_err(ApiError::from)?;
    Ok(())
}

/// Says which session's result is to be landed; an empty name takes that back.
///
/// # Errors
/// When there is no such task or session, it has no result, or the coordinator cannot be reached.
pub async fn select(access: &Access, task_id: &str, session: String) -> anyhow::Result<v1::Task> {
    let request = v1::SelectResultRequest {
        request_id: request_id(),
        task_id: task_id.to_owned(),
        session,
    };
    let response = access.client.tasks().select_result(request).await;
    let response = response.map_err(ApiError::from)?;
    response.into_inner().task.context("the coordinator sent no task")
}

/// Asks for verify of a session's result that nothing checked.
///
/// # Errors
/// When there is no such task, session or result, the task has no verify command, or the coordinator
/// cannot be reached.
pub async fn verify(access: &Access, task_id: &str, session: String) -> anyhow::Result<v1::Task> {
    let request = v1::VerifyResultRequest {
        request_id: request_id(),
        task_id: task_id.to_owned(),
        session,
    };
    let response = access.client.tasks().verify_result(request).await;
    let response = response.map_err(ApiError::from)?;
    response.into_inner().task.context("the coordinator sent no task")
}

/// Asks for every session of a task to stop.
///
/// # Errors
/// When the task does not exist, or the coordinator cannot be reached.
pub async fn cancel(access: &Access, task_id: &str) -> anyhow::Result<v1::Task> {
    let request = v1::CancelTaskRequest {
        request_id: request_id(),
        task_id: task_id.to_owned(),
    };
    let response = access
        .client
        .tasks()
        .cancel_task(request)
        .await
        .map_err(ApiError::from)?;
    response.into_inner().task.context("the coordinator sent no task")
}

/// The tasks that a filter takes, as they are and as they change.
pub struct WatchAll<'a> {
    access: &'a Access,
    filter: v1::TaskFilter,
    cursor: String,
    stream: Option<tonic::Streaming<v1::WatchTasksResponse>>,
    /// How often the stream was cut since the last answer.
    cuts: u32,
}

/// How often a watch is made again before the coordinator counts as gone, and the waits between.
const MOST_CUTS: u32 = 12;
const PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

impl<'a> WatchAll<'a> {
    /// Begins with all that there are.
    #[must_use]
    pub const fn new(access: &'a Access, filter: v1::TaskFilter) -> Self {
        Self {
            access,
            filter,
            cursor: String::new(),
            stream: None,
            cuts: 0,
        }
    }

    /// What is new. A connection that breaks is made again from where it was.
    ///
    /// # Errors
    /// When the coordinator refuses, or stays unreachable.
    pub async fn next(&mut self) -> Result<v1::watch_tasks_response::Item, ApiError> {
        loop {
            match self.step().await {
                Ok(Some(item)) => {
                    self.cuts = 0;
                    return Ok(item);
                }
                Err(error) if !error.is_transient() || self.cuts >= MOST_CUTS => return Err(error),
                // A stream has an end when the coordinator does.
                Ok(None) | Err(_) => {
                    self.stream = None;
                    self.cuts += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<v1::watch_tasks_response::Item>, ApiError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::WatchTasksRequest {
                    project: self.access.project.to_string(),
                    filter: Some(self.filter.clone()),
                    cursor: self.cursor.clone(),
                    ..v1::WatchTasksRequest::default()
                };
                let response = self.access.client.tasks().watch_tasks(request).await?;
                self.stream.insert(response.into_inner())
            }
        };
        while let Some(response) = stream.message().await? {
            self.cursor = response.cursor;
            if let Some(item) = response.item {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_was_cut_off_is_to_be_repeated() {
        let cut_off = ApiError::Unavailable {
            message: "the connection broke".to_owned(),
            retry: None,
        };
        let told = format!("{:#}", unanswered("abc".to_owned(), cut_off, true));
        assert!(
            told.contains("`--request-id abc`") && told.ends_with("the connection broke"),
            "{told}"
        );
        let refused = ApiError::ResourceExhausted {
            message: "the disk is full".to_owned(),
            retry: None,
        };
        assert_eq!(
            format!("{:#}", unanswered("abc".to_owned(), refused, true)),
            "the disk is full"
        );
    }
}
