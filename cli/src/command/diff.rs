//! `kage diff`: a session's change as a patch for `git apply`.

use crate::args::Pick;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::result;
use crate::tasks;

pub(super) async fn run(invocation: &Invocation, args: Pick) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    let chosen = result::choose(&report, args.session.as_deref(), false, "diff")?;
    let fetched = result::fetch(&access, &invocation.state, &task, chosen).await?;
    let patch = tokio::task::spawn_blocking(move || {
        kage_git::diff::patch(fetched.mirror.path(), &fetched.base, &fetched.commit)
    })
    .await??;
    invocation.out.raw(&patch)?;
    Ok(Exit::Done)
}
