//! The subcommands, a file each, and what they share: settings, state, output, and the
//! coordinator to talk to.

use anyhow::Context as _;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::{AgentSubcommand, Cli, Command, ContextSubcommand};
use crate::connect::{self, Access, WhenAbsent};
use crate::exit::{Exit, Refusal};
use crate::output::Output;
use crate::settings::{self, Settings};
use crate::state::StateDir;

mod agents;
pub(crate) mod apply;
mod compare;
mod context;
mod coordinator;
mod demo;
mod diff;
mod doctor;
mod logs;
mod ls;
mod merge;
pub(crate) mod run;
mod show;
mod stop;
mod up;
mod wait;

/// What every command has.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// From files and the environment.
    pub(crate) settings: Settings,
    /// Where state is kept.
    pub(crate) state: StateDir,
    /// Where results are printed.
    pub(crate) out: Output,
}

impl Session {
    /// The coordinator, which must run.
    pub(crate) async fn existing(&self) -> anyhow::Result<Access> {
        Ok(connect::access(&self.settings, &self.state, WhenAbsent::Fail).await?)
    }

    /// The coordinator, started when this machine has none.
    pub(crate) async fn started(&self) -> anyhow::Result<Access> {
        Ok(connect::access(&self.settings, &self.state, WhenAbsent::Start).await?)
    }
}

/// Does what was typed.
///
/// # Errors
/// Anything; [`crate::exit::report`] makes words and a number of it.
pub async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let session = Session {
        settings: settings::load(None)?,
        state: StateDir::resolve(cli.global.state_dir.as_deref())?,
        out: Output::new(cli.global.format),
    };
    match cli.command {
        Command::Run(args) => run::run(session, args).await,
        Command::Ls(args) => ls::run(&session, &args).await,
        Command::Show(args) => show::run(&session, args.task).await,
        Command::Logs(args) => logs::run(&session, args).await,
        Command::Diff(args) => diff::run(&session, args).await,
        Command::Compare(args) => compare::run(&session, args).await,
        Command::Apply(args) => apply::run(&session, args).await,
        Command::Merge(args) => merge::run(&session, args).await,
        Command::Stop(args) => stop::run(&session, args.task).await,
        Command::Wait(args) => wait::run(&session, args).await,
        Command::Context(args) => match args.command {
            ContextSubcommand::Show(args) => context::show(&session, args.task).await,
            ContextSubcommand::Stats(args) => context::stats(&session, args.task).await,
        },
        Command::Up(args) => up::run(session, args).await,
        Command::Agent(args) => match args.command {
            AgentSubcommand::Run(args) => agents::run(session, args).await,
            AgentSubcommand::Ls => agents::ls(&session).await,
            AgentSubcommand::Drain { agent } => agents::drain(&session, agent).await,
        },
        Command::Coordinator(args) => coordinator::run(session, args).await,
        Command::Doctor => doctor::run(&session).await,
        Command::Demo(args) => demo::run(&session, &args).await,
    }
}

/// The task asked for, or the newest.
pub(crate) async fn task(access: &Access, asked: Option<String>) -> anyhow::Result<v1::Task> {
    let Some(task_id) = asked else {
        let request = v1::ListTasksRequest {
            page_size: 1,
            ..Default::default()
        };
        let newest = access
            .client
            .tasks()
            .list_tasks(request)
            .await
            .map_err(ApiError::from)?;
        return newest
            .into_inner()
            .tasks
            .into_iter()
            .next()
            .ok_or_else(|| Refusal::not_found("there is no task yet; start one with `kage run`").into());
    };
    let request = v1::GetTaskRequest { task_id };
    let response = access.client.tasks().get_task(request).await.map_err(ApiError::from)?;
    response.into_inner().task.context("the coordinator sent no task")
}

/// The report of a task as it is now.
pub(crate) async fn report(access: &Access, task_id: &str) -> anyhow::Result<v1::GetReportResponse> {
    let request = v1::GetReportRequest {
        task_id: task_id.to_owned(),
    };
    let response = access
        .client
        .tasks()
        .get_report(request)
        .await
        .map_err(ApiError::from)?;
    Ok(response.into_inner())
}

/// An id that makes a call safe to repeat.
pub(crate) fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
