//! `kage rm`: removes tasks that are over, with everything that is kept of them.

use std::io::IsTerminal as _;

use kage_proto::v1;
use serde::Serialize;

use crate::args::Remove;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::output::note;
use crate::tasks;
use crate::terminal::Screen;
use crate::view;

/// Asks a person whether these are meant: a few characters name a task. Without a terminal nobody is asked.
fn asked(tasks: &[v1::Task]) -> std::io::Result<bool> {
    if !(std::io::stdin().is_terminal() && Screen::stderr().is_terminal) {
        return Ok(true);
    }
    for task in tasks {
        note(&format!(
            "{}  {}  {}",
            view::short_id(&task.id),
            view::task_state(task.state()),
            view::one_line(&task.prompt_excerpt, 60)
        ));
    }
    note(&format!(
        "remove {} with output, checkpoints and results? [y/N]",
        view::counted(tasks.len(), "task")
    ));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes"))
}

#[derive(Debug, Serialize)]
struct RemovedJson {
    removed: Vec<String>,
}

pub(super) async fn run(invocation: &Invocation, args: Remove) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let mut tasks = Vec::new();
    for asked in args.tasks {
        tasks.push(tasks::find(&access, Some(asked)).await?);
    }
    if !args.yes && !asked(&tasks)? {
        note("nothing was removed");
        return Ok(Exit::Interrupted);
    }
    let mut removed = Vec::new();
    for id in tasks.into_iter().map(|task| task.id) {
        tasks::remove(&access, &id, args.now).await?;
        invocation
            .out
            .text(&format!("task {} is removed", view::short_id(&id)))?;
        removed.push(id);
    }
    invocation.out.result("removed", &RemovedJson { removed })?;
    Ok(Exit::Done)
}
