//! `kage diff`: a session's change as a patch for `git apply`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde::Serialize;

use crate::args::Pick;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::result;
use crate::tasks;

#[derive(Debug, Serialize)]
struct DiffJson<'a> {
    task_id: &'a str,
    session: &'a str,
    base_commit: &'a str,
    commit: &'a str,
    /// What of it is not UTF-8 is U+FFFD.
    patch: &'a str,
    /// Its bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

pub(super) async fn run(invocation: &Invocation, args: Pick) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    let chosen = result::choose(&report, args.session.as_deref(), false, "diff")?;
    result::tell_unfinished(&chosen);
    let fetched = result::fetch(&access, &invocation.state, &task, chosen).await?;
    let (mirror, base, commit) = (fetched.mirror, fetched.base.clone(), fetched.commit.clone());
    let patch = tokio::task::spawn_blocking(move || kage_git::diff::patch(mirror.path(), &base, &commit)).await??;
    let text = String::from_utf8_lossy(&patch);
    let diff = DiffJson {
        task_id: &fetched.task,
        session: &fetched.session.name,
        base_commit: fetched.base.as_str(),
        commit: fetched.commit.as_str(),
        data: (text.as_bytes() != patch).then(|| BASE64.encode(&patch)),
        patch: &text,
    };
    invocation.out.result("diff", &diff)?;
    invocation.out.raw(&patch)?;
    Ok(Exit::Done)
}
