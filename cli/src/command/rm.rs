//! `kage rm`: removes tasks that are over, with everything that is kept of them.

use serde::Serialize;

use crate::args::Remove;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::tasks;
use crate::view;

#[derive(Debug, Serialize)]
struct RemovedJson {
    removed: Vec<String>,
}

pub(super) async fn run(invocation: &Invocation, args: Remove) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let mut removed = Vec::new();
    for asked in args.tasks {
        let id = tasks::find(&access, Some(asked)).await?.id;
        tasks::remove(&access, &id, args.now).await?;
        invocation
            .out
            .text(&format!("task {} is removed", view::short_id(&id)))?;
        removed.push(id);
    }
    invocation.out.result("removed", &RemovedJson { removed })?;
    Ok(Exit::Done)
}
