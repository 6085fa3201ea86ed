//! What can be typed: subcommands, flags and their help. No behaviour.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kage_core::priority::Priority;

mod time;
mod daemons;
mod fleet;

pub use daemons::{AgentOptions, AgentRun, Coordinator, CoordinatorOptions};
pub use fleet::{AgentCommand, AgentSubcommand, Down, TokenCommand, TokenCreate, TokenRole, TokenSubcommand, Up};

/// Run one coding task as many parallel sessions of different AI tools, check every
/// result with the project's own command, and land the best as a git commit.
#[derive(Debug, Parser)]
#[command(name = "kage", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How to print results: text for people, one JSON document, or a JSON object per line.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Folder of Kage's state [default: $XDG_STATE_HOME/kage or ~/.local/state/kage].
    #[arg(long, global = true, env = "KAGE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Say more on standard error (-v: info, -vv: debug).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    Human,
    /// One JSON document at the end.
    Json,
    /// A JSON object per line, as things happen.
    Jsonl,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a task in this repository and wait for its results.
    Run(Run),
    /// List tasks, newest first.
    Ls(Ls),
    /// Show a task: its sessions, and why they wait or failed.
    Show(TaskArg),
    /// Print what the sessions wrote.
    Logs(Logs),
    /// Print a session's change as a patch.
    Diff(Pick),
    /// Compare the sessions of a task, best first.
    Compare(Compare),
    /// Say what Kage does about an error, or did about those of a task.
    Explain(Explain),
    /// Put a session's change into the working tree, without committing.
    Apply(Apply),
    /// Merge a session's result into the current branch.
    Merge(Merge),
    /// Stop the sessions of a task.
    Stop(TaskArg),
    /// Forget tasks that are over, with their output, checkpoints and results.
    Rm(Remove),
    /// Wait until a task has ended.
    Wait(Wait),
    /// List, show, draw and take checkpoints of sessions, and go back to one.
    Checkpoint(CheckpointCommand),
    /// Show the shared context of a task and what sharing saved.
    Context(ContextCommand),
    /// Start a coordinator and an agent on this machine.
    Up(Up),
    /// End what `kage up`, or the first command, started on this machine.
    Down(Down),
    /// Run an agent, or look after agents.
    Agent(AgentCommand),
    /// Run a coordinator.
    Coordinator(Coordinator),
    /// Make, list and take back the tokens of people and of agents that join.
    Token(TokenCommand),
    /// Check what this machine has and lacks, for a coordinator, an agent or a person.
    Doctor(Doctor),
    /// Show the whole thing on a sample repository with scripted models.
    Demo(Demo),
}

/// `kage run`.
#[derive(Debug, Args)]
pub struct Run {
    /// What to do, in words; `-` reads it from standard input.
    #[arg(required_unless_present = "prompt_file")]
    pub prompt: Option<String>,
    /// Read the prompt from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Who works on it: adapters, each with an optional model (`claude-api:claude-opus-5-5`).
    #[arg(
        long = "with",
        value_name = "ADAPTER[:MODEL],...",
        value_delimiter = ',',
        required = true
    )]
    pub with: Vec<String>,
    /// Who takes a session over when its adapter cannot go on: its limit is used up for long,
    /// its login is refused, no machine has it in working order. Tried in this order.
    #[arg(long, value_name = "ADAPTER[:MODEL],...", value_delimiter = ',')]
    pub fallback: Vec<String>,
    /// How many sessions of each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub repeat: u32,
    /// Command that decides whether a result is good, run in a clean checkout of it.
    #[arg(long, value_name = "CMD")]
    pub verify: Option<String>,
    /// Command that prepares a clean checkout for verify.
    #[arg(long, value_name = "CMD")]
    pub setup: Option<String>,
    /// Paths that are put back as they were before verify runs, besides the files that --setup and
    /// --verify name and the prompt does not.
    #[arg(long, value_name = "GLOB")]
    pub protect: Vec<String>,
    /// Leave the files that --setup and --verify name as each result has them.
    #[arg(long)]
    pub no_protect: bool,
    /// The repository.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub repo: PathBuf,
    /// Start from HEAD and leave uncommitted work out.
    #[arg(long)]
    pub committed: bool,
    /// Take these untracked files along although they are large or look like secrets.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Context that sessions get: a JSON file for all, or ADAPTER=FILE for one.
    #[arg(long, value_name = "[ADAPTER=]FILE")]
    pub context: Vec<String>,
    /// Labels that the agents must carry.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',')]
    pub agents: Vec<String>,
    /// Longest time one attempt may take.
    #[arg(long, default_value = "60m", value_name = "TIME", value_parser = time::limit)]
    pub timeout: Duration,
    /// Longest time an attempt may go without any output.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = time::limit)]
    pub idle_timeout: Duration,
    /// Longest time set-up and verify may take together.
    #[arg(long, default_value = "30m", value_name = "TIME", value_parser = time::limit)]
    pub verify_timeout: Duration,
    /// Attempts of a session that may fail; lost agents and used-up limits are not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub max_attempts: u32,
    /// How urgent it is: low, normal, high, or a number from -10 to 10. Nothing waits for ever.
    #[arg(long, default_value_t = Priority::NORMAL, value_name = "PRIORITY", allow_negative_numbers = true)]
    pub priority: Priority,
    /// Store the task although no agent can run it now, and wait for one that can.
    #[arg(long)]
    pub wait_for_agent: bool,
    /// Longest time to stay while everything left is held on a used-up limit; the task goes
    /// on without this command.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
    /// How often a session whose result fails verify works on, told what verify said [default: 1
    /// where its adapter can go on with the conversation, else 0].
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(0..=20))]
    pub rework: Option<u32>,
    /// Return as soon as the task is stored.
    #[arg(short, long)]
    pub detach: bool,
    /// Apply the best result to the working tree: a verified one, or, where there is no verify
    /// command, one that nobody checked. One of high risk is not applied.
    #[arg(long, conflicts_with = "detach")]
    pub apply: bool,
    /// Apply the best result although its risk is high: it changed what verify depends on.
    #[arg(long, requires = "apply")]
    pub accept_risk: bool,
}

/// `kage ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// How many.
    #[arg(short = 'n', long, default_value_t = 20)]
    pub limit: u32,
}

/// A task, for commands that take nothing else.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
}

/// `kage logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Only this session.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Go on until the task has ended.
    #[arg(short, long)]
    pub follow: bool,
    /// Print the provider's raw messages instead of the programs' output.
    #[arg(long)]
    pub transcript: bool,
    /// Print what verify wrote when it was run on the base, and nothing else.
    #[arg(long, conflicts_with_all = ["session", "transcript"])]
    pub base: bool,
}

/// A session of a task.
#[derive(Debug, Args)]
pub struct Pick {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Which session [default: the winner].
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
}

/// `kage rm`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Ids of the tasks, or their first characters.
    #[arg(required = true, value_name = "TASK")]
    pub tasks: Vec<String>,
}

/// `kage checkpoint`.
#[derive(Debug, Args)]
pub struct CheckpointCommand {
    /// What about checkpoints.
    #[command(subcommand)]
    pub command: CheckpointSubcommand,
}

/// `kage checkpoint ls|show|graph|create|restore`.
#[derive(Debug, Subcommand)]
pub enum CheckpointSubcommand {
    /// List them, oldest first.
    Ls(Checkpoints),
    /// Show one, and what it changed.
    Show(CheckpointArg),
    /// Draw them as a timeline, with what went on from where.
    Graph(Checkpoints),
    /// Take one of a running session now.
    Create(CheckpointCreate),
    /// Send a session back to one: what runs is kept in a last checkpoint and stopped, and what
    /// was over is begun again.
    Restore(CheckpointRestore),
}

/// Whose checkpoints.
#[derive(Debug, Args)]
pub struct Checkpoints {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Which session [default: all].
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
}

/// Which checkpoint.
#[derive(Debug, Args)]
pub struct CheckpointArg {
    /// Its number, or its id, or the first characters of that.
    pub checkpoint: String,
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Which session; a task's only one need not be named.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
}

/// `kage checkpoint create`.
#[derive(Debug, Args)]
pub struct CheckpointCreate {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Which session; a task's only one need not be named.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// What to remember it by.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub note: String,
}

/// `kage checkpoint restore`.
#[derive(Debug, Args)]
pub struct CheckpointRestore {
    /// Which checkpoint.
    #[command(flatten)]
    pub which: CheckpointArg,
    /// Only list what every path would become.
    #[arg(long)]
    pub dry_run: bool,
    /// Also when what a running session did since its newest checkpoint cannot be kept: it is
    /// not asked for then, and lost.
    #[arg(long)]
    pub discard: bool,
    /// Also take away ignored files that were made since the checkpoint was taken.
    #[arg(long)]
    pub complete: bool,
}

/// `kage compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Print a Markdown table, for a pull request.
    #[arg(long)]
    pub markdown: bool,
}

/// `kage explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Words of an error, or `-` for those on standard input; or the id of a task, or its
    /// first four characters or more [default: your newest task of this repository].
    #[arg(value_name = "TEXT|TASK")]
    pub what: Vec<String>,
    /// The adapter whose words these are: it may have rules of its own.
    #[arg(long, value_name = "ADAPTER")]
    pub adapter: Option<String>,
}

/// `kage apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// Which result.
    #[command(flatten)]
    pub pick: Pick,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// The repository.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub repo: PathBuf,
    /// Take a result that was not verified.
    #[arg(long)]
    pub unverified: bool,
    /// Take the best result although its risk is high: it changed what verify depends on.
    #[arg(long)]
    pub accept_risk: bool,
}

/// `kage merge`.
#[derive(Debug, Args)]
pub struct Merge {
    /// Which result, where, and whether to do it.
    #[command(flatten)]
    pub apply: Apply,
    /// What to do where both sides changed the same lines.
    #[arg(long, value_enum, default_value_t = Strategy::Auto)]
    pub strategy: Strategy,
}

/// What to do where both sides changed the same lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Refuse.
    Auto,
    /// The session's side wins.
    Theirs,
    /// Leave conflict markers to be resolved by hand.
    Manual,
}

/// `kage wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", value_parser = time::limit)]
    pub timeout: Option<Duration>,
    /// Longest time to stay while everything left is held on a used-up limit.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
}

/// `kage context`.
#[derive(Debug, Args)]
pub struct ContextCommand {
    /// What about it.
    #[command(subcommand)]
    pub command: ContextSubcommand,
}

/// `kage context show|stats`.
#[derive(Debug, Subcommand)]
pub enum ContextSubcommand {
    /// Print the shared base.
    Show(TaskArg),
    /// Print how often the base was stored and sent.
    Stats(TaskArg),
}

/// `kage doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Check that the agent of this machine, which has joined, reaches this coordinator
    /// (https://HOST:PORT); otherwise the one of the settings or of this machine.
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
}

/// `kage demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Keep the sample repository and all state, and say where they are.
    #[arg(long)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
