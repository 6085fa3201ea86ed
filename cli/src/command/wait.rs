//! `kage wait`: returns when a task has ended, with its outcome as exit code.

use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

use crate::args::Wait;
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::tasks;
use crate::view::{self, TaskJson};
use crate::watch::{Request, Watch};

pub(super) async fn run(invocation: &Invocation, args: Wait) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let ended = match args.timeout {
        None => end_of(&access, task).await?,
        Some(limit) => match tokio::time::timeout(limit, end_of(&access, task)).await {
            Ok(ended) => ended?,
            Err(_) => {
                return Err(Refusal {
                    exit: Exit::Timeout,
                    message: format!("the task has not ended after {} s; it goes on", limit.as_secs()),
                }
                .into());
            }
        },
    };
    let report = tasks::report(&access, &ended.id).await?.report.unwrap_or_default();
    invocation.out.result(&TaskJson::of_report(ended.state(), &report))?;
    invocation.out.text(&format!(
        "task {} {}",
        view::short_id(&ended.id),
        view::task_state(ended.state())
    ))?;
    Ok(outcome(ended.state()))
}

async fn end_of(access: &Access, task: v1::Task) -> anyhow::Result<v1::Task> {
    let mut last = task;
    let mut watch = Watch::new(
        access.client.clone(),
        Request {
            task: last.id.clone(),
            follow: true,
            ..Default::default()
        },
    );
    while let Some(item) = watch.next().await? {
        if let Item::Task(task) = item {
            last = task;
        }
    }
    Ok(last)
}

/// The exit code of a task that has ended.
pub(super) const fn outcome(state: v1::TaskState) -> Exit {
    match state {
        v1::TaskState::Succeeded => Exit::Done,
        v1::TaskState::Failed => Exit::TaskFailed,
        v1::TaskState::Cancelled => Exit::Interrupted,
        v1::TaskState::Running | v1::TaskState::Unspecified => Exit::Internal,
    }
}
