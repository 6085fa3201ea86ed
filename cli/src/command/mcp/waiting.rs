//! Waits for a task on behalf of a client, and tells how far it is.

use std::time::Duration;

use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

use crate::connect::Access;
use crate::hold;
use crate::output::Output;
use crate::run_plan::MAX_HOLD;
use crate::tasks;
use crate::verification;
use crate::view;
use crate::watch::{Request, Watch};

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// In words: how many sessions ended, and what the others do.
    pub(super) words: String,
}

impl Step {
    fn of(task: &v1::Task) -> Self {
        let ended = task
            .sessions
            .iter()
            .filter(|session| session.state().is_ended())
            .count();
        let others = task.sessions.iter().filter(|session| !session.state().is_ended());
        let doing = others.map(|session| {
            let doing = match session.waiting.as_str() {
                "" => &session.activity,
                waiting => waiting,
            };
            let state = view::state_of(session);
            match view::one_line(doing, 100) {
                none if none.is_empty() => format!("{} {state}", session.name),
                doing => format!("{} {state}: {doing}", session.name),
            }
        });
        let doing: Vec<_> = doing.collect();
        Self {
            words: format!(
                "task {}: {ended} of {} ended; {}",
                view::short_id(&task.id),
                view::counted(task.sessions.len(), "session"),
                doing.join("; ")
            ),
        }
    }
}

/// Prints the task: with the comparison when it has ended by then, and as it is when it has not, or when all
/// that is left of it is held for a long time.
///
/// # Errors
/// When the coordinator stays unreachable.
pub(super) async fn wait<Told: Future<Output = ()>>(
    out: &Output,
    access: &Access,
    task: v1::Task,
    limit: Option<Duration>,
    told: impl FnMut(Step) -> Told,
) -> anyhow::Result<()> {
    let end = end(access, &task, told);
    let ended = match limit {
        None => Some(end.await?),
        Some(limit) => tokio::time::timeout(limit, end).await.ok().transpose()?,
    };
    let Some(Ending::Ended) = ended else {
        let task = tasks::find(access, Some(task.id)).await?;
        return Ok(out.message("task", &task)?);
    };
    let task = tasks::find(access, Some(task.id)).await?;
    let report = tasks::report(access, &task.id).await?.report.unwrap_or_default();
    verification::compared(out, access, &task, &report).await
}

enum Ending {
    Ended,
    Held,
}

async fn end<Told: Future<Output = ()>>(
    access: &Access,
    task: &v1::Task,
    mut told: impl FnMut(Step) -> Told,
) -> anyhow::Result<Ending> {
    let request = Request {
        task: task.id.clone(),
        follow: true,
        ..Request::default()
    };
    let mut watch = Watch::new(access.client.clone(), request);
    let mut last = None;
    while let Some(item) = watch.next().await? {
        let Item::Task(task) = item else { continue };
        if hold::held(&task, hold::now(), MAX_HOLD).is_some() {
            return Ok(Ending::Held);
        }
        let step = Step::of(&task);
        if last.as_ref() != Some(&step) {
            last = Some(step.clone());
            told(step).await;
        }
    }
    Ok(Ending::Ended)
}
