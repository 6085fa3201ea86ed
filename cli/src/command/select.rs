//! `kage select`: which session's result is to be landed, whatever the ranking says.

use crate::args::Select;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Select) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let task = tasks::select(&access, &task.id, args.session.unwrap_or_default()).await?;
    invocation.out.message("task", &task)?;
    let id = view::short_id(&task.id);
    invocation.out.text(&match &task.selection {
        Some(selection) => format!(
            "task {id}: {} is selected; `kage apply` and `kage merge` take its result",
            view::printable(&selection.session)
        ),
        None => format!("task {id}: no result is selected; the ranking decides again"),
    })?;
    Ok(Exit::Done)
}
