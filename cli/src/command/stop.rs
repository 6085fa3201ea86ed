//! `kage stop`: stops every session of a task that has not ended.

use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, asked: Option<String>) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, asked).await?;
    let task = tasks::cancel(&access, &task.id).await?;
    invocation.out.message("task", &task)?;
    let open = task.sessions.iter().filter(|s| !s.state().is_ended()).count();
    invocation.out.text(&match open {
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
