//! `kage down`: ends this machine's `kage up`, which the next command starts again, with the
//! environment and the settings of that command.

use std::time::Duration;

use anyhow::Context as _;
use kage_core::id::ProjectId;
use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::Down;
use crate::connect;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::running::{self, Holder};
use crate::view;

/// How long ending may take when nothing runs, or running sessions are handed back.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that a coordinator lists at once.
const TASKS_AT_ONCE: u32 = 100;
/// The tasks that are named when there are some left.
const NAMED: usize = 5;

pub(super) async fn run(invocation: &Invocation, args: &Down) -> anyhow::Result<Exit> {
    let lock = invocation.state.daemon_lock();
    let holder = running::holder(&invocation.state).with_context(|| format!("cannot read {}", lock.display()))?;
    let Some(holder) = holder else {
        invocation
            .out
            .result("down", &serde_json::json!({ "stopped": false }))?;
        invocation.out.text("nothing to stop: no `kage up` runs here")?;
        return Ok(Exit::Done);
    };
    if !args.force {
        refuse_while_busy(invocation).await?;
    }
    stop(&holder, args.force).await?;
    invocation.out.result("down", &serde_json::json!({ "stopped": true }))?;
    invocation.out.text("stopped; stored data is safe")?;
    Ok(Exit::Done)
}

async fn stop(holder: &Holder, force: bool) -> anyhow::Result<()> {
    let failed = "cannot end the daemon";
    holder.terminate().context(failed)?;
    if force && !holder.ended(Duration::from_secs(1)).await? {
        // Running sessions are handed back instead of being finished.
        holder.terminate().context(failed)?;
    }
    match holder.ended(PATIENCE).await? {
        true => Ok(()),
        false => {
            let message = format!(
                "it is still shutting down after {} s; `kage down --force` hands back its running sessions",
                PATIENCE.as_secs()
            );
            Err(Refusal::new(Exit::Timeout, message).into())
        }
    }
}

/// Refuses with the tasks that have not ended.
async fn refuse_while_busy(invocation: &Invocation) -> anyhow::Result<()> {
    let Some(access) = connect::running(&invocation.state).await? else {
        let message = "the daemon of this machine does not answer; `kage down --force` stops it anyway";
        return Err(Refusal::new(Exit::Unavailable, message).into());
    };
    let project = invocation.settings.coordinator.project.clone().unwrap_or_default();
    let open = open_tasks(&access.client, &project).await?;
    let agents = access
        .client
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await;
    let agents = agents.map_err(ApiError::from)?.into_inner().agents;
    let running: u32 = agents.iter().map(|agent| agent.busy).sum();
    let left = match (open.as_slice(), running) {
        ([], 0) => return Ok(()),
        // A list of tasks has one project; agents work for all projects.
        ([], running) => format!("agents run {running} jobs of other projects, which have"),
        (open, _) => named(open),
    };
    Err(Refusal::usage(format!(
        "{left} not ended; wait for it (`kage wait`), stop it (`kage stop`), or `kage down --force`: what runs is \
         handed back, and goes on when the daemon is started again"
    ))
    .into())
}

/// Tasks of a project that have not ended; at most one more than the message names. All pages are
/// read, because an old task may be held for days.
async fn open_tasks(client: &Client, project: &ProjectId) -> Result<Vec<v1::Task>, ApiError> {
    let mut page_token = String::new();
    let mut open = Vec::new();
    loop {
        let request = v1::ListTasksRequest {
            project: project.to_string(),
            page_size: TASKS_AT_ONCE,
            page_token,
            ..Default::default()
        };
        let page = client.tasks().list_tasks(request).await?.into_inner();
        let tasks = page.tasks.into_iter();
        open.extend(tasks.filter(|task| task.state() == v1::TaskState::Running));
        page_token = page.next_page_token;
        if page_token.is_empty() || open.len() > NAMED {
            open.truncate(NAMED + 1);
            return Ok(open);
        }
    }
}

fn named(open: &[v1::Task]) -> String {
    let ids: Vec<_> = open.iter().take(NAMED).map(|task| view::short_id(&task.id)).collect();
    match (ids.as_slice(), open.len() > NAMED) {
        ([one], _) => format!("task {one} has"),
        (several, false) => format!("tasks {} have", several.join(", ")),
        (several, true) => format!("tasks {} and others have", several.join(", ")),
    }
}
