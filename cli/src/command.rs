//! The subcommands, a file each.

use crate::args::{
    AdapterSubcommand, AgentSubcommand, CheckpointSubcommand, Cli, Command, ContextSubcommand, Format,
    PermitSubcommand, TokenSubcommand,
};
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::Output;
use crate::settings::{self, Settings, SettingsError};
use crate::state::StateDir;

mod adapter;
mod agents;
mod apply;
mod backup;
mod checkout;
mod checkpoint;
mod compare;
mod compare_by;
mod context;
mod context_prefix;
mod coordinator;
mod cost;
mod demo;
mod diff;
mod doctor;
mod down;
mod explain;
mod fork;
mod init;
mod login;
mod logs;
mod ls;
mod mcp;
mod merge;
mod merge_into;
mod permit;
mod rm;
mod run;
mod select;
mod send;
mod shell;
mod show;
mod stop;
mod token;
mod trust;
mod up;
mod verify;
mod wait;
mod watch;

/// True for commands whose result is a table.
const fn has_rows(command: &Command) -> bool {
    match command {
        Command::Ls(_) | Command::Show(_) | Command::Compare(_) | Command::Cost(_) => true,
        Command::Adapter(args) => matches!(args.command, AdapterSubcommand::Ls),
        Command::Login(args) => args.command.is_some(),
        Command::Agent(args) => matches!(args.command, AgentSubcommand::Ls),
        Command::Token(args) => matches!(args.command, TokenSubcommand::Ls),
        Command::Permit(args) => matches!(args.command, PermitSubcommand::Ls),
        Command::Checkpoint(args) => matches!(args.command, CheckpointSubcommand::Ls(_)),
        _ => false,
    }
}

/// Runs the command.
///
/// # Errors
/// Anything; [`crate::exit::report`] makes words and a number of it.
pub async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    if cli.global.format == Format::Tsv && !has_rows(&cli.command) {
        return Err(Refusal::usage(
            "--format tsv is for commands that print a table: ls, show, compare, cost, adapter ls, \
             agent ls, token ls, checkpoint ls, permit ls; json and jsonl are for all",
        )
        .into());
    }
    let settings = match (&cli.command, settings::load()) {
        // A login that cannot be read is left by another one.
        (Command::Login(_), Err(SettingsError::Login(_))) => Settings::default(),
        (_, loaded) => loaded?,
    };
    let invocation = Invocation {
        settings,
        state: StateDir::resolve(cli.global.state_dir.as_deref())?,
        out: Output::new(cli.global.format),
    };
    Box::pin(carry_out(invocation, cli.command)).await
}

async fn carry_out(invocation: Invocation, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => Box::pin(run::run(invocation, args)).await,
        Command::Ls(args) => ls::run(&invocation, &args).await,
        Command::Show(args) => show::run(&invocation, args).await,
        Command::Logs(args) => logs::run(&invocation, args).await,
        Command::Diff(args) => diff::run(&invocation, args).await,
        Command::Compare(args) => compare::run(&invocation, args).await,
        Command::Cost(args) => cost::run(&invocation, args).await,
        Command::Explain(args) => explain::run(&invocation, args).await,
        Command::Apply(args) => apply::run(&invocation, args).await,
        Command::Merge(args) => Box::pin(merge::run(&invocation, args)).await,
        Command::Checkout(args) => checkout::run(&invocation, args).await,
        Command::Select(args) => select::run(&invocation, args).await,
        Command::Send(args) => Box::pin(send::run(&invocation, args)).await,
        Command::Permit(args) => match args.command {
            PermitSubcommand::Ls => permit::ls(&invocation).await,
            PermitSubcommand::Allow(args) => permit::answer(&invocation, args, true).await,
            PermitSubcommand::Deny(args) => permit::answer(&invocation, args, false).await,
        },
        Command::Fork(args) => Box::pin(fork::run(&invocation, args)).await,
        Command::Verify(args) => verify::run(&invocation, args).await,
        Command::Stop(args) => stop::run(&invocation, args.task).await,
        Command::Rm(args) => rm::run(&invocation, args).await,
        Command::Wait(args) => wait::run(&invocation, args).await,
        Command::Watch(args) => watch::run(&invocation, args).await,
        Command::Checkpoint(args) => match args.command {
            CheckpointSubcommand::Ls(args) => checkpoint::ls(&invocation, args).await,
            CheckpointSubcommand::Show(args) => checkpoint::show(&invocation, args).await,
            CheckpointSubcommand::Graph(args) => checkpoint::graph(&invocation, args).await,
            CheckpointSubcommand::Create(args) => checkpoint::create(&invocation, args).await,
            CheckpointSubcommand::Restore(args) => checkpoint::restore(&invocation, args).await,
        },
        Command::Context(args) => match args.command {
            ContextSubcommand::Show(args) => context::show(&invocation, args.task).await,
            ContextSubcommand::Stats(args) => context::stats(&invocation, args.task).await,
            ContextSubcommand::Prefix(args) => context_prefix::prefix(&invocation, args.task).await,
            ContextSubcommand::Suggest(args) => context_prefix::suggest(&invocation, &args).await,
        },
        Command::Up(args) => up::run(invocation, args).await,
        Command::Down(args) => down::run(&invocation, &args).await,
        Command::Agent(args) => match args.command {
            AgentSubcommand::Run(args) => agents::run(invocation, *args).await,
            AgentSubcommand::Ls => agents::ls(&invocation).await,
            AgentSubcommand::Cordon { agent } => agents::cordon(&invocation, agent).await,
            AgentSubcommand::Uncordon { agent } => agents::uncordon(&invocation, agent).await,
            AgentSubcommand::Drain { agent } => agents::drain(&invocation, agent).await,
            AgentSubcommand::Revoke { agent } => agents::revoke(&invocation, agent).await,
        },
        Command::Adapter(args) => match args.command {
            AdapterSubcommand::Ls => adapter::ls(&invocation).await,
            AdapterSubcommand::Show { name } => adapter::show(&invocation, &name),
            AdapterSubcommand::Check { name, model } => Box::pin(adapter::check(&invocation, name, model)).await,
            AdapterSubcommand::Trust { withdraw } => trust::run(&invocation, withdraw).await,
            AdapterSubcommand::New { name, program } => adapter::new(&invocation, &name, program.as_deref()),
        },
        Command::Coordinator(args) => coordinator::run(invocation, args).await,
        Command::Token(args) => match args.command {
            TokenSubcommand::Create(args) => token::create(&invocation, args).await,
            TokenSubcommand::Ls => token::ls(&invocation).await,
            TokenSubcommand::Revoke { token } => token::revoke(&invocation, token).await,
        },
        Command::Login(args) => login::run(&invocation, args).await,
        Command::Init(args) => init::run(&invocation.out, &args),
        Command::Completions(args) => shell::completions(&invocation.out, &args),
        Command::Man(args) => shell::man(&args),
        Command::Doctor(args) => doctor::run(&invocation, args).await,
        Command::Mcp => mcp::run(&invocation).await,
        Command::Demo(args) => Box::pin(demo::run(&invocation, &args)).await,
    }
}
