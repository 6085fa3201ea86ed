//! The demo: the real program on a sample repository, with scripted models. Coordinator and agents
//! are real processes; only the model's answers are scripted, and the output says so.

mod fleet;
mod line;
mod model;
mod sample;

use std::fs;
use std::path::Path;
use std::time::Duration;

use kage_core::task::{Labels, Policy, TaskOrigin, TaskSpec, VerifyPolicy};
use kage_git::snapshot::SnapshotOptions;
use kage_proto::v1;

use crate::assignments::{self, Worker};
use crate::connect::Access;
use crate::exit::Exit;
use crate::follow::Followed;
use crate::invocation::Invocation;
use crate::output::note;
use crate::state::StateDir;
use crate::table::Shape;
use crate::terminal::Screen;
use crate::{base, follow, landing, result, tasks, view};

const AGENTS: [&str; 3] = ["agent-1", "agent-2", "agent-3"];
const SHELL_ADAPTER: &str = include_str!("../data/demo/shell-fixer.toml");

/// Shows everything once. `root` holds the sample repository and all state.
pub(crate) async fn show(invocation: &Invocation, root: &Path) -> anyhow::Result<Exit> {
    note("This is Kage Bunshin at work on a sample repository. The models are SCRIPTED: their answers");
    note("are fixed and cost nothing. Everything else is real: processes, gRPC, git, verification.\n");
    let repository = sample::create(&root.join("shop")).await?;
    let (_, before) = sample::test(repository.root()).await?;
    note("The sample's test fails:");
    note(&indented(&before));

    let adapters = root.join("adapters");
    fs::create_dir_all(&adapters)?;
    fs::write(adapters.join("shell-fixer.toml"), SHELL_ADAPTER)?;
    let state = StateDir::resolve(Some(&root.join("state")))?;
    let model = model::start().await?;
    let model_url = model.url();
    let env = [
        ("ANTHROPIC_BASE_URL", model_url.as_str()),
        ("ANTHROPIC_API_KEY", "sk-ant-scripted-demo"),
        // The scripted model is on this machine, where no proxy of the environment finds it.
        ("NO_PROXY", "127.0.0.1"),
        ("no_proxy", "127.0.0.1"),
    ];
    let (fleet, access) = fleet::Fleet::start(&state, &AGENTS, &adapters, &env).await?;
    let invocation = Invocation {
        state,
        ..invocation.clone()
    };
    let exit = run_task(&invocation, &access, &repository).await;
    fleet.stop().await;
    exit
}

async fn run_task(invocation: &Invocation, access: &Access, repository: &kage_git::UserRepo) -> anyhow::Result<Exit> {
    let with = [
        format!("claude-api:{}", model::SOLVER),
        format!("claude-api:{}", model::LIMITED),
        "shell-fixer".to_owned(),
    ];
    note(&format!(
        "$ kage run '{}' \\\n    --with {} --verify '{}'",
        sample::PROMPT,
        with.join(","),
        sample::VERIFY
    ));
    let (spec, origin) = spec(access, repository, &assignments::workers(&with, 1, &[])?).await?;
    let task = tasks::create(access, tasks::request_id(), spec, Some(origin.into()), false).await?;
    let task = match follow::follow(&invocation.out, access, task, Duration::MAX).await? {
        Followed::Ended(task) => task,
        Followed::Detached | Followed::Held { .. } => return Ok(Exit::Interrupted),
    };
    let report = tasks::report(access, &task.id).await?.report.unwrap_or_default();
    note("\n$ kage compare");
    note(&view::report(&report).laid_out(Shape::of(Screen::stderr())).text());
    land(invocation, access, repository, &task, &report).await?;
    let (status, after) = sample::test(repository.root()).await?;
    note("The sample's test now:");
    note(&indented(&after));
    invocation.out.result("demo", &line::line(&task, &report))?;
    Ok(if status.success() { Exit::Done } else { Exit::TaskFailed })
}

async fn spec(
    access: &Access,
    repository: &kage_git::UserRepo,
    workers: &[Worker],
) -> anyhow::Result<(TaskSpec, TaskOrigin)> {
    let project = kage_core::id::ProjectId::default();
    let verify = VerifyPolicy {
        verify: Some(sample::VERIFY.to_owned()),
        ..VerifyPolicy::default()
    };
    let base = base::send(access, &project, repository, &SnapshotOptions::default(), None, &verify).await?;
    let spec = TaskSpec {
        project,
        prompt: sample::PROMPT.to_owned(),
        prompt_blob: None,
        repository: Some(base.repository),
        context_base: None,
        assignments: workers.iter().map(|w| w.clone().assignment(None)).collect(),
        policy: Policy {
            verify,
            requirements: Labels::new(),
            ..Policy::default()
        },
        fresh_baseline: false,
        labels: kage_core::task::Labels::new(),
        environment: kage_core::task::TaskEnvironment::default(),
    };
    Ok((spec, base.origin))
}

async fn land(
    invocation: &Invocation,
    access: &Access,
    repository: &kage_git::UserRepo,
    task: &v1::Task,
    report: &v1::Report,
) -> anyhow::Result<()> {
    let chosen = result::choose(report, None, false, "apply")?;
    let fetched = result::fetch(access, &invocation.state, task, chosen).await?;
    let (mirror, base, commit) = (fetched.mirror.clone(), fetched.base.clone(), fetched.commit.clone());
    let patch = tokio::task::spawn_blocking(move || kage_git::diff::patch(mirror.path(), &base, &commit)).await??;
    note("\n$ kage diff");
    note(&indented(&String::from_utf8_lossy(&patch)));
    note("$ kage apply");
    let paths = landing::land(repository, &fetched).await?;
    note(&landing::landed(&fetched, &paths, true, None));
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
