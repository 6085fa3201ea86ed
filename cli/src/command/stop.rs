//! `kage stop`: every session of a task that has not ended is stopped.

use kage_proto::status::ApiError;
use kage_proto::v1;

use super::{Session, request_id, task};
use crate::exit::Exit;
use crate::view::{self, TaskJson};

pub(super) async fn run(session: &Session, asked: Option<String>) -> anyhow::Result<Exit> {
    let access = session.existing().await?;
    let task = task(&access, asked).await?;
    let request = v1::CancelTaskRequest {
        request_id: request_id(),
        task_id: task.id.clone(),
    };
    let response = access
        .client
        .tasks()
        .cancel_task(request)
        .await
        .map_err(ApiError::from)?;
    let task = response.into_inner().task.unwrap_or(task);
    session.out.result(&TaskJson::of_task(&task))?;
    let open = task.sessions.iter().filter(|s| !view::session_ended(s.state())).count();
    session.out.text(&match open {
        0 => format!(
            "task {} is {}",
            view::short_id(&task.id),
            view::task_state(task.state())
        ),
        n => format!(
            "task {}: stopping {}",
            view::short_id(&task.id),
            view::counted(n, "session")
        ),
    })?;
    Ok(Exit::Done)
}
