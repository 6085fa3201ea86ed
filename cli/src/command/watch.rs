//! `kage watch`: a task as it goes on, and its comparison when it has ended. Leaving it stops nothing.

use crate::args::Watch;
use crate::exit::Exit;
use crate::follow::{self, Followed, OnInterrupt};
use crate::hold;
use crate::invocation::Invocation;
use crate::progress::Progress;
use crate::table::Shape;
use crate::tasks;
use crate::verification;
use crate::view;

use super::wait;

pub(super) async fn run(invocation: &Invocation, args: Watch) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let out = &invocation.out;
    let followed = follow::with(
        Progress::new(),
        Some(out),
        &access,
        task,
        args.max_hold,
        OnInterrupt::Leave,
    );
    let task = match followed.await? {
        Followed::Ended(task) => task,
        Followed::Detached => return Ok(Exit::Interrupted),
        Followed::Held { task, why } => {
            out.message("task", &task)?;
            hold::tell(&task, &why);
            return Ok(Exit::Held);
        }
    };
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    out.painted(&view::report_text(&report, Shape::of(out.screen())))?;
    verification::compared(out, &access, &task, &report).await?;
    Ok(wait::outcome(task.state(), &report))
}
