//! `kage wait`: returns when a task has ended, with its outcome as exit code.

use kage_proto::v1;

use crate::args::Wait;
use crate::exit::{Exit, Refusal};
use crate::follow::{self, Followed, OnInterrupt};
use crate::hold;
use crate::invocation::Invocation;
use crate::progress::Progress;
use crate::tasks;
use crate::verification;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Wait) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let end = follow::with(
        Progress::on_terminal(),
        None,
        &access,
        task,
        args.max_hold,
        OnInterrupt::Leave,
    );
    let ended = match args.timeout {
        None => end.await?,
        Some(limit) => match tokio::time::timeout(limit, end).await {
            Ok(ended) => ended?,
            Err(_) => {
                let message = format!("the task has not ended after {} s; it continues", limit.as_secs());
                return Err(Refusal::new(Exit::Timeout, message).into());
            }
        },
    };
    let ended = match ended {
        Followed::Ended(task) => task,
        Followed::Detached => return Ok(Exit::Interrupted),
        Followed::Held { task, why } => {
            invocation.out.message("task", &task)?;
            hold::tell(&task, &why);
            return Ok(Exit::Held);
        }
    };
    let report = tasks::report(&access, &ended.id).await?.report.unwrap_or_default();
    verification::compared(&invocation.out, &access, &ended, &report).await?;
    invocation.out.text(&format!(
        "task {} {}",
        view::short_id(&ended.id),
        view::task_state(ended.state())
    ))?;
    Ok(outcome(ended.state(), &report))
}

/// The exit code of an ended task: whether it has a result to land. A result that needs an accepted
/// risk does not count. Of a task without one, a used-up budget is told apart: raising it may be enough.
pub(super) fn outcome(state: v1::TaskState, report: &v1::Report) -> Exit {
    let risky = report
        .best
        .as_ref()
        .is_some_and(|best| best.reason() == v1::BestReason::HighRisk);
    match state {
        v1::TaskState::Succeeded if risky => Exit::TaskFailed,
        v1::TaskState::Succeeded => Exit::Done,
        v1::TaskState::Failed if over_budget(report) => Exit::Budget,
        v1::TaskState::Failed => Exit::TaskFailed,
        v1::TaskState::Cancelled => Exit::Interrupted,
        v1::TaskState::Running | v1::TaskState::Unspecified => Exit::Internal,
    }
}

fn over_budget(report: &v1::Report) -> bool {
    let sessions = report.rows.iter().filter_map(|row| row.session.as_ref());
    let mut failures = sessions.filter_map(|session| session.failure.as_ref());
    failures.any(|failure| failure.kind() == v1::FailureKind::BudgetExceeded)
}
