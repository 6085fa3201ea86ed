//! `kage diff`: a session's change as a patch that `git apply` takes.

use super::{Session, report, task};
use crate::args::Pick;
use crate::exit::Exit;
use crate::result;

pub(super) async fn run(session: &Session, args: Pick) -> anyhow::Result<Exit> {
    let access = session.existing().await?;
    let task = task(&access, args.task).await?;
    let report = report(&access, &task.id).await?.report.unwrap_or_default();
    let chosen = result::choose(&report, args.session.as_deref())?;
    let fetched = result::fetch(&access, &session.state, &task, chosen).await?;
    let patch = tokio::task::spawn_blocking(move || {
        kage_git::diff::patch(fetched.mirror.path(), &fetched.base, &fetched.commit)
    })
    .await??;
    session.out.raw(&patch)?;
    Ok(Exit::Done)
}
