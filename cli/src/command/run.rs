//! `kage run`: sends the repository and the task, shows the progress, and names the best result.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use kage_agent::adapters::is_metered;
use kage_agent::identity::state::not_ones_own;
use kage_core::id::AdapterName;
use kage_core::task::{InvalidPart, TaskEnvironment, TaskSpec};
use kage_git::UserRepo;
use kage_git::snapshot::SnapshotOptions;
use kage_proto::convert::InvalidField;
use kage_proto::v1;

use super::wait;
use crate::again::{self, Again};
use crate::agreed;
use crate::args::Run;
use crate::base::{self, excludes};
use crate::common_texts::CommonTexts;
use crate::connect::Access;
use crate::contexts::{self, Told};
use crate::editor;
use crate::environment::LeftValues;
use crate::exit::{Detail, Exit, Refusal};
use crate::follow::{self, Followed};
use crate::hold;
use crate::instructions::Instructions;
use crate::invocation::Invocation;
use crate::landed_settings;
use crate::landing;
use crate::output::note;
use crate::result;
use crate::run_plan::{MAX_HOLD, RunPlan};
use crate::sent_contexts;
use crate::settings::Settings;
use crate::table::Shape;
use crate::tasks;
use crate::verification;
use crate::view;
use crate::work_folder::WorkFolder;

pub(super) async fn run(invocation: Invocation, args: Run) -> anyhow::Result<Exit> {
    let repository = UserRepo::discover(&args.repo).await?;
    if (args.again.is_none() || args.present)
        && let Some(what) = not_ones_own(repository.root())
    {
        let path = repository.root().display();
        let text = format!("the repository {path} is {what}, and all of it would be sent; name another with --repo");
        return Err(Refusal::usage(text).into());
    }
    let Asked {
        access,
        mut spec,
        origin,
        waits,
    } = match args.again.clone() {
        None => new_task(&invocation, &args, &repository).await?,
        Some(task) => again(&invocation, &args, &repository, task).await?,
    };
    refuse_invalid(&spec)?;
    tell_overshoot(&spec, &invocation.settings);
    // Only the daemon of this machine, which no URL names, has its agent's state here.
    let own_daemon = invocation.settings.coordinator.url.is_none();
    let request_id = args.request_id.clone().unwrap_or_else(tasks::request_id);
    let left = match own_daemon {
        true => Some(LeftValues::hand_over(&invocation, &request_id).await?),
        false => None,
    };
    if let Some(left) = &left {
        left.leave(&mut spec.environment)?;
    }
    let created = tasks::create(&access, request_id, spec, origin, waits.for_agent).await;
    // A task of which nothing is known may need the values: they stay until they are old.
    let is_known = created
        .as_ref()
        .err()
        .is_none_or(|error| !error.is::<tasks::UnknownOutcome>());
    if let Some(left) = left.as_ref().filter(|_| is_known) {
        left.settle(created.as_ref().ok());
    }
    let task = created?;
    if args.detach {
        invocation.out.message("task", &task)?;
        invocation.out.text(&task.id)?;
        return Ok(Exit::Done);
    }
    note(&format!("task {}", view::short_id(&task.id)));
    let task = match follow::follow(&invocation.out, &access, task, waits.max_hold).await? {
        Followed::Ended(task) => task,
        Followed::Detached => return Ok(Exit::Done),
        Followed::Held { task, why } => {
            invocation.out.message("task", &task)?;
            hold::tell(&task, &why);
            return Ok(Exit::Held);
        }
    };
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    invocation
        .out
        .painted(&view::report_text(&report, Shape::of(invocation.out.screen())))?;
    // Before anything that may fail: the result is there, whether it can be applied or not.
    verification::compared(&invocation.out, &access, &task, &report).await?;
    let best = report.best.clone().unwrap_or_default();
    let accepted = args.accept_risk && !best.candidate.is_empty();
    if args.apply && (accepted || !best.session.is_empty()) {
        let chosen = result::choose(&report, None, args.accept_risk, "apply")?;
        let unseen = result::unseen(&chosen);
        if !unseen.is_empty() && !args.accept_risk {
            note(&unlanded(&task, &chosen, &unseen));
            return Ok(Exit::TaskFailed);
        }
        result::tell_unseen(&chosen);
        let fetched = result::fetch(&access, &invocation.state, &task, chosen).await?;
        let paths = landing::land(&repository, &fetched).await?;
        note(&landing::landed(&fetched, &paths, true, None));
        landing::tell_undo(landing::undo_apply(&repository, &fetched, &paths).as_deref());
        return Ok(Exit::Done);
    }
    match best.reason() {
        v1::BestReason::Selected | v1::BestReason::Verified | v1::BestReason::Unchecked => note(&format!(
            "best: {}; `kage diff` shows it, `kage apply` applies it to the working tree",
            best.session
        )),
        v1::BestReason::HighRisk => note(&result::risky(&report, &best, "apply")),
        v1::BestReason::NoResult | v1::BestReason::Unspecified => tell_undone(&report),
    }
    Ok(wait::outcome(task.state(), &report))
}

/// A task that is asked for, and the coordinator that gets it.
struct Asked {
    access: Access,
    spec: TaskSpec,
    origin: Option<v1::TaskOrigin>,
    waits: Waits,
}

/// What this command waits for.
struct Waits {
    /// The task is stored although no agent can run it now.
    for_agent: bool,
    /// How long, while all remaining sessions are held.
    max_hold: Duration,
}

/// The task as its flags and the settings say it; its base is sent.
async fn new_task(invocation: &Invocation, args: &Run, repository: &UserRepo) -> anyhow::Result<Asked> {
    let place = WorkFolder::find(repository, &args.repo, args.root)?;
    let mut plan = RunPlan::of(&args.options, &invocation.settings, &place)?;
    // An agent of another machine has adapters of its own.
    if invocation.settings.coordinator.url.is_none() {
        agreed::check(repository, &plan.adapters())?;
    }
    plan.policy.mcp = agreed::mcp(repository)?;
    plan.policy.results.excludes = excludes(repository).await?;
    tell(&plan.environment);
    place.tell();
    landed_settings::tell(&invocation.state, &place);
    let what = "What is to be done? The first line is the task's name in lists.";
    let prompt = asked_prompt(args.prompt.as_deref(), args.prompt_file.as_deref(), what)?;
    let access = invocation.started().await?;
    let project = access.project.clone();
    let told = told(repository, &plan).await?;
    let options = SnapshotOptions {
        committed: plan.committed,
        include: plan.include,
    };
    let shared = contexts::put(
        &access,
        &project,
        (&plan.contexts, &plan.context_settings),
        &told,
        &plan.workers,
    )
    .await?;
    let base = base::send(
        &access,
        &project,
        repository,
        &options,
        place.folder.as_ref(),
        &plan.policy.verify,
    )
    .await?;
    let spec = TaskSpec {
        project,
        prompt,
        prompt_blob: None,
        repository: Some(base.repository),
        context_base: shared.base,
        assignments: plan
            .workers
            .into_iter()
            .zip(shared.deltas)
            .map(|(worker, delta)| worker.assignment(delta))
            .collect(),
        policy: plan.policy,
        fresh_baseline: plan.fresh_baseline,
        labels: kage_core::task::Labels::new(),
        environment: TaskEnvironment {
            files: base.files,
            ..plan.environment
        },
    };
    Ok(Asked {
        access,
        spec,
        origin: Some(base.origin.into()),
        waits: Waits {
            for_agent: plan.wait_for_agent,
            max_hold: plan.max_hold,
        },
    })
}

/// What sessions are told besides contexts that are given to them. With --committed the files here need not be
/// those of the base, and are not told.
async fn told(repository: &UserRepo, plan: &RunPlan) -> anyhow::Result<Told> {
    let settings = &plan.context_settings;
    let mut common = CommonTexts::default();
    if settings.verify.unwrap_or(true) {
        common.tell_checks(&plan.policy.verify);
    }
    if plan.committed {
        return Ok(Told {
            common,
            instructions: Instructions::default(),
        });
    }
    let most = settings.most_of_file();
    common.tell_files(repository, &settings.files, most).await?;
    let instructions = match settings.instructions.unwrap_or(true) {
        true => Instructions::of(repository.root()),
        false => Instructions::default(),
    };
    Ok(Told { common, instructions })
}

/// An earlier task once more.
async fn again(invocation: &Invocation, args: &Run, repository: &UserRepo, task: String) -> anyhow::Result<Asked> {
    let access = invocation.existing().await?;
    let options = args.options.clone().or(invocation.settings.run.clone());
    let Again { spec, origin } = again::of(&access, repository, args, &invocation.settings.run, task).await?;
    tell(&spec.environment);
    sent_contexts::bring_back(&access, &spec.clone().into()).await?;
    Ok(Asked {
        access,
        spec,
        origin,
        waits: Waits {
            for_agent: options.wait_for_agent.unwrap_or(false),
            max_hold: options.max_hold.unwrap_or(MAX_HOLD),
        },
    })
}

fn refuse_invalid(spec: &TaskSpec) -> Result<(), Refusal> {
    let problems = spec.problems();
    if problems.is_empty() {
        return Ok(());
    }
    let words: Vec<_> = problems.iter().map(|part| part.problem.to_string()).collect();
    let field = |part: &InvalidPart| Detail::Field(InvalidField::new(&part.field, &part.problem).within("spec"));
    Err(Refusal {
        details: problems.iter().map(field).collect(),
        ..Refusal::usage(words.join("; "))
    })
}

/// Tells before a run under a budget which of its sessions may pass it, and by how much. Whether a program will
/// have a gateway is known only to the agent that starts it.
fn tell_overshoot(spec: &TaskSpec, settings: &Settings) {
    if spec.policy.budget.is_none() {
        return;
    }
    let names = spec.assignments.iter().map(|assignment| &assignment.adapter);
    let late: BTreeSet<&AdapterName> = names.filter(|name| !is_metered(name, &settings.adapter)).collect();
    if !late.is_empty() {
        let late: Vec<_> = late.into_iter().map(AdapterName::as_str).collect();
        note(&format!(
            "{} may pass the budget where its program is let in by a login or has no gateway: what it uses is known when \
             the program tells it, after a turn or at its end, and it is stopped then; calls through a gateway, and of \
             adapters for APIs, are asked for before they are made",
            late.join(", ")
        ));
    }
}

/// Why the best result is not applied automatically: verify did not see a part of it.
fn unlanded(task: &v1::Task, chosen: &v1::Session, unseen: &[String]) -> String {
    let id = view::short_id(&task.id);
    let name = view::printable(&chosen.name);
    format!(
        "nothing was landed: {name} changes {}, which verify ran with the base's version of; `kage diff {id} --session \
         {name}` shows it, `kage apply {id}` takes it, as --accept-risk would have",
        unseen.join(", ")
    )
}

/// Warns when results may have failed verify because it did not see all of their changes.
fn tell_undone(report: &v1::Report) {
    let sessions = report.rows.iter().filter_map(|row| row.session.as_ref());
    let rejected = sessions.filter(|session| session.state() == v1::SessionState::Rejected);
    let undone: BTreeSet<String> = rejected.flat_map(result::unseen).collect();
    if !undone.is_empty() {
        let undone = undone.into_iter().collect::<Vec<_>>().join(", ");
        note(&format!(
            "verify ran with the base's version of {undone}; where the task is about that, name it in the prompt, or \
             use --no-protect"
        ));
    }
}

/// Tells what the task's programs get besides what every program gets: a project's file may name files
/// and variables of the person.
fn tell(environment: &TaskEnvironment) {
    let told = [
        (
            "passed to the task's programs",
            environment.pass.iter().cloned().collect::<Vec<_>>(),
        ),
        (
            "copied to the task's programs",
            environment.home.iter().map(|path| format!("~/{path}")).collect(),
        ),
    ];
    for (what, names) in told.into_iter().filter(|(_, names)| !names.is_empty()) {
        note(&format!("{what}: {}", names.join(", ")));
    }
}

/// What is to be done, which is written in an editor when nothing says it.
pub(super) fn asked_prompt(typed: Option<&str>, file: Option<&Path>, what: &str) -> anyhow::Result<String> {
    if typed.is_none() && file.is_none() {
        let written = editor::words(what)?;
        return Ok(written.ok_or_else(|| {
            Refusal::usage("say what is to be done: in words, by --prompt-file FILE, or with `-` from standard input")
        })?);
    }
    prompt(typed, file)
}

/// A person's words: as they were typed, of a file, or from standard input; none is empty.
pub(super) fn prompt(typed: Option<&str>, file: Option<&Path>) -> anyhow::Result<String> {
    let text = match (typed, file) {
        (_, Some(file)) => {
            let unreadable = |error| Refusal::usage(format!("cannot read the prompt from {}: {error}", file.display()));
            std::fs::read_to_string(file).map_err(unreadable)?
        }
        (Some("-"), None) => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Refusal::usage(format!("cannot read the prompt from standard input: {error}")))?;
            text
        }
        (Some(text), None) => text.to_owned(),
        (None, None) => String::new(),
    };
    Ok(text)
}
