//! `kage ls`: tasks, newest first.

use kage_proto::convert::time::time;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::Ls;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: &Ls) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let mut tasks = Vec::new();
    let mut page_token = String::new();
    loop {
        let wanted = args
            .limit
            .saturating_sub(u32::try_from(tasks.len()).unwrap_or(u32::MAX));
        if wanted == 0 {
            break;
        }
        let request = v1::ListTasksRequest {
            project: access.project.to_string(),
            page_size: wanted.min(100),
            page_token,
            ..Default::default()
        };
        let page = access
            .client
            .tasks()
            .list_tasks(request)
            .await
            .map_err(ApiError::from)?;
        let page = page.into_inner();
        tasks.extend(page.tasks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    invocation.out.messages("task", &tasks)?;
    if tasks.is_empty() {
        invocation.out.text("no tasks yet; start one with `kage run`")?;
    } else {
        invocation.out.text(&view::table(
            &["task", "repository", "state", "sessions", "created", "prompt", "waits"],
            tasks.iter().map(row),
        ))?;
    }
    Ok(Exit::Done)
}

fn row(task: &v1::Task) -> Vec<String> {
    let ended = task.sessions.iter().filter(|s| s.state().is_ended()).count();
    let mut sessions = format!("{ended}/{} ended", task.sessions.len());
    let unfinished = task.sessions.iter().filter(|session| session.is_unfinished).count();
    if unfinished > 0 {
        sessions += &format!(", {unfinished} unfinished");
    }
    let waits = task
        .sessions
        .iter()
        .map(|s| s.waiting.as_str())
        .find(|why| !why.is_empty());
    let waits = waits.unwrap_or_default();
    vec![
        view::short_id(&task.id).to_owned(),
        view::repository(task).unwrap_or("-").to_owned(),
        view::task_state(task.state()).to_owned(),
        sessions,
        time(task.created_at.unwrap_or_default()).to_string(),
        view::one_line(&task.prompt_excerpt, 60),
        view::one_line(waits, 80),
    ]
}
