//! `kage run`: sends the repository and the task, shows what happens, and says which
//! result is best.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use kage_core::id::ProjectId;
use kage_core::task::{Assignment, Labels, Policy, TaskSpec, VerifyPolicy};
use kage_git::UserRepo;
use kage_git::snapshot::SnapshotOptions;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use serde::Serialize;

use super::{Session, apply, report, request_id, wait};
use crate::args::Run;
use crate::assignments::{self, Worker};
use crate::base;
use crate::connect::Access;
use crate::contexts;
use crate::exit::{Exit, Refusal};
use crate::output::note;
use crate::progress::{self, Progress};
use crate::result;
use crate::settings::{self, RunSettings};
use crate::view::{self, TaskJson};
use crate::watch::{Request, Watch};

pub(super) async fn run(mut session: Session, args: Run) -> anyhow::Result<Exit> {
    let repository = UserRepo::discover(&args.repo).await?;
    session.settings = settings::load(Some(repository.root()))?;
    let workers = assignments::workers(&args.with, args.repeat)?;
    let prompt = prompt(&args)?;
    let access = session.started().await?;
    let project = ProjectId::default();
    let options = SnapshotOptions {
        committed: args.committed,
        include: args.include.clone(),
    };
    let shared = contexts::put(&access, &project, &args.context, &workers).await?;
    let base = base::send(&access, &project, &repository, &options).await?;
    let spec = TaskSpec {
        project,
        prompt,
        repository: Some(base),
        context_base: shared.base,
        assignments: workers
            .into_iter()
            .zip(shared.deltas)
            .map(|(worker, delta)| assignment(worker, delta))
            .collect(),
        policy: policy(&args, &session.settings.run)?,
    };
    spec.validate().map_err(|e| Refusal::usage(e.to_string()))?;
    let task = create(&access, spec).await?;
    if args.detach {
        session.out.result(&TaskJson::of_task(&task))?;
        session.out.text(&task.id)?;
        return Ok(Exit::Done);
    }
    note(&format!("task {}", view::short_id(&task.id)));
    let Some(task) = follow(&session, &access, task).await? else {
        return Ok(Exit::Done);
    };
    let report = report(&access, &task.id).await?.report.unwrap_or_default();
    session
        .out
        .text(&view::table(&view::REPORT_HEADER, view::report_rows(&report)))?;
    if args.apply && !report.winner.is_empty() {
        let chosen = result::choose(&report, None)?;
        let fetched = result::fetch(&access, &session.state, &task, chosen).await?;
        let paths = apply::land(&repository, &fetched).await?;
        note(&apply::landed(&fetched, &paths, true, None));
    } else if !report.winner.is_empty() {
        note(&format!(
            "best: {}; `kage diff` shows it, `kage apply` takes it into the working tree",
            report.winner
        ));
    }
    session.out.result(&TaskJson::of_report(task.state(), &report))?;
    Ok(wait::outcome(task.state()))
}

/// Stores the task. A lost reply is asked for again with the same id, so that it is stored once.
pub(crate) async fn create(access: &Access, spec: TaskSpec) -> anyhow::Result<v1::Task> {
    let request = v1::CreateTaskRequest {
        request_id: request_id(),
        spec: Some(spec.into()),
    };
    let mut last = access.client.tasks().create_task(request.clone()).await;
    if last
        .as_ref()
        .is_err_and(|status| status.code() == tonic::Code::Unavailable)
    {
        last = access.client.tasks().create_task(request).await;
    }
    let response = last.map_err(ApiError::from)?.into_inner();
    response.task.context("the coordinator sent no task")
}

#[derive(Debug, Serialize)]
struct HappeningJson<'a> {
    session: &'a str,
    job: &'a str,
    attempt: u32,
    at_ms: u64,
    text: String,
}

/// Shows the task until it has ended. `None` when the person let it go on without them.
pub(crate) async fn follow(session: &Session, access: &Access, task: v1::Task) -> anyhow::Result<Option<v1::Task>> {
    let request = Request {
        task: task.id.clone(),
        follow: true,
        ..Default::default()
    };
    let mut watch = Watch::new(access.client.clone(), request);
    let mut progress = Progress::new();
    let mut last = task;
    loop {
        let item = tokio::select! {
            item = watch.next() => item?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                progress.finish();
                if interrupt(access, &last).await? {
                    return Ok(None);
                }
                // A watch step that was cut short begins again at its cursor.
                continue;
            }
        };
        match item {
            Some(Item::Task(task)) => {
                progress.task(&task);
                session.out.happening(&TaskJson::of_task(&task))?;
                last = task;
            }
            Some(Item::Event(event)) => {
                progress.event(&event);
                let inner = event.event.as_ref();
                if let Some(text) = inner.and_then(|e| e.body.as_ref()).and_then(progress::describe) {
                    session.out.happening(&HappeningJson {
                        session: &event.session,
                        job: &event.job,
                        attempt: event.attempt,
                        at_ms: inner.map_or(0, |e| e.at_ms),
                        text,
                    })?;
                }
            }
            Some(Item::Output(_)) => {}
            None => break,
        }
    }
    progress.finish();
    Ok(Some(last))
}

/// Asks whether to let the task go on or to stop it. True = let it go on, without us.
async fn interrupt(access: &Access, task: &v1::Task) -> anyhow::Result<bool> {
    let id = view::short_id(&task.id);
    if std::io::stdin().is_terminal() {
        note("\ninterrupted: [d]etach and let it go on, [s]top it, or anything else to keep watching?");
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        let answer = tokio::select! {
            answer = answer => answer??,
            // A second Ctrl-C means it.
            again = tokio::signal::ctrl_c() => { again?; "s".to_owned() }
        };
        match answer.trim().chars().next().map(|c| c.to_ascii_lowercase()) {
            Some('d') => {
                note(&format!("task {id} goes on; `kage wait {id}` waits for it"));
                return Ok(true);
            }
            Some('s') => {}
            Some(_) | None => return Ok(false),
        }
    }
    let request = v1::CancelTaskRequest {
        request_id: request_id(),
        task_id: task.id.clone(),
    };
    access
        .client
        .tasks()
        .cancel_task(request)
        .await
        .map_err(ApiError::from)?;
    note(&format!("stopping task {id}"));
    Ok(false)
}

fn prompt(args: &Run) -> anyhow::Result<String> {
    let text = match (&args.prompt, &args.prompt_file) {
        (_, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read the prompt from {}", file.display()))?
        }
        (Some(dash), None) if dash == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the prompt from standard input")?;
            text
        }
        (Some(text), None) => text.clone(),
        (None, None) => String::new(),
    };
    Ok(text)
}

fn policy(args: &Run, defaults: &RunSettings) -> Result<Policy, Refusal> {
    let protect = if args.protect.is_empty() {
        defaults.protect.clone()
    } else {
        args.protect.clone()
    };
    Ok(Policy {
        verify: VerifyPolicy {
            setup: args.setup.clone().or_else(|| defaults.setup.clone()),
            verify: args.verify.clone().or_else(|| defaults.verify.clone()),
            protect,
            timeout: args.verify_timeout,
        },
        timeout: args.timeout,
        idle_timeout: args.idle_timeout,
        max_attempts: args.max_attempts,
        requirements: labels("--agents", &args.agents)?,
    })
}

/// Reads `KEY=VALUE` entries.
pub(super) fn labels(flag: &str, entries: &[String]) -> Result<Labels, Refusal> {
    entries
        .iter()
        .map(|entry| match entry.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) | None => Err(Refusal::usage(format!("{flag} {entry:?} is not KEY=VALUE"))),
        })
        .collect()
}

/// The assignment of a worker.
pub(crate) fn assignment(worker: Worker, context_delta: Option<String>) -> Assignment {
    Assignment {
        name: worker.name,
        adapter: worker.adapter,
        model: worker.model,
        context_delta,
        requirements: Labels::new(),
    }
}
