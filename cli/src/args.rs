//! What can be typed: subcommands, flags and their help. No behaviour.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kage_core::ledger::CostsBy;

use crate::settings::time;

mod adapter;
mod checkpoint;
mod daemons;
mod fleet;
mod landing;
mod results;
mod run;
mod steering;

pub use adapter::{AdapterCommand, AdapterSubcommand};
pub use checkpoint::{
    CheckpointArg, CheckpointCommand, CheckpointCreate, CheckpointRestore, CheckpointSubcommand, Checkpoints,
};
pub use daemons::{
    AgentOptions, AgentRun, Coordinator, CoordinatorBackup, CoordinatorOptions, CoordinatorRestore,
    CoordinatorSubcommand, CoordinatorVerify,
};
pub use fleet::{
    AgentCommand, AgentSubcommand, Down, Login, LoginCommand, LoginSubcommand, TokenCommand, TokenCreate, TokenRole,
    TokenSubcommand, Up,
};
pub use landing::{Apply, Checkout, Diff, Land, Merge, Strategy};
pub use results::{Select, Verify};
pub use run::Run;
pub use steering::{Answered, Fork, PermitCommand, PermitSubcommand, Send, SessionArg, Waiting};

/// Run one coding task as many parallel sessions of different AI tools, check every
/// result with the project's own command, and land the best as a git commit.
#[derive(Debug, Parser)]
#[command(name = "kage", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Format of the results: text for people, tab-separated rows, one JSON document, or a JSON object
    /// per line.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Folder of Kage's state [default: $XDG_STATE_HOME/kage or ~/.local/state/kage].
    #[arg(
        long,
        global = true,
        env = "KAGE_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR",
        hide_short_help = true
    )]
    pub state_dir: Option<PathBuf>,
    /// Log more to standard error (-v: info, -vv: debug). KAGE_LOG=FILTER replaces it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, hide_short_help = true)]
    pub verbose: u8,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    Human,
    /// Tables only: titles and rows with tabs between the columns.
    Tsv,
    /// One JSON document at the end.
    Json,
    /// A JSON object per line, as things happen.
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a task in this repository and wait for its results.
    #[command(
        after_help = "Examples:\n  kage run 'fix the login bug' --with claude-code,codex --verify 'cargo test'\n  kage run --with claude-api --repeat 3          # the prompt is written in $EDITOR\n  kage run --again 1a2b3c4d --with codex"
    )]
    Run(Run),
    /// List tasks, newest first.
    #[command(
        after_help = "Examples:\n  kage ls --state running,failed --since 1d\n  kage ls --repo . --search 'login codex'\n  kage ls --watch\n  kage ls --format tsv | cut -f1,2"
    )]
    Ls(Ls),
    /// Show a task, its sessions, and why they wait or failed.
    #[command(after_help = "Examples:\n  kage show 1a2b3c4d\n  kage show 1a2b3c4d --prompt > prompt.md")]
    Show(Show),
    /// Print the output of the sessions.
    #[command(after_help = "Examples:\n  kage logs -f\n  kage logs 1a2b3c4d --session codex-1 --transcript | less -R")]
    Logs(Logs),
    /// Print a session's change as a patch, or what two sessions' results differ in.
    #[command(after_help = "Examples:\n  kage diff | git apply --check\n  kage diff claude-api-1 claude-api-2 --stat")]
    Diff(Diff),
    /// Compare the sessions of a task, best first.
    #[command(
        after_help = "Examples:\n  kage compare\n  kage compare 1a2b3c4d --markdown | gh pr comment --body-file -"
    )]
    Compare(Compare),
    /// Show what calls of models cost: of a task, or added up by adapter, model, person, project or day.
    Cost(Cost),
    /// Explain what Kage does about an error, or what it did about the errors of a task.
    Explain(Explain),
    /// Put a session's change into the working tree, without committing.
    #[command(after_help = "Examples:\n  kage apply --dry-run\n  kage apply --path src/parser\n  kage apply --undo")]
    Apply(Apply),
    /// Merge a session's result into the current branch or another one, or open a pull request.
    #[command(after_help = "Examples:\n  kage merge --pr\n  kage merge --into try/login --session codex-1")]
    Merge(Merge),
    /// Put a session's result into a working tree of its own, to try it.
    Checkout(Checkout),
    /// Choose the session whose result `kage apply` and `kage merge` take.
    Select(Select),
    /// Say to a session what to do next, while it works and also when it is over: it goes on in its
    /// conversation.
    Send(Send),
    /// Answer what the programs of running sessions ask before they do something.
    Permit(PermitCommand),
    /// Let another adapter or model go on from a session's files, as another session of its task.
    Fork(Fork),
    /// Run verify on a result that nothing checked, as an unfinished one.
    Verify(Verify),
    /// Stop the sessions of a task.
    Stop(TaskArg),
    /// Delete ended tasks with their output, checkpoints and results.
    Rm(Remove),
    /// Wait until a task has ended.
    Wait(Wait),
    /// Show a task as it goes on, and its comparison when it has ended. Ctrl-C leaves it running.
    #[command(after_help = "Examples:\n  kage watch\n  kage watch 1a2b3c4d --format jsonl | jq -r .type")]
    Watch(Watch),
    /// List, show, draw and create checkpoints, or restore one.
    Checkpoint(CheckpointCommand),
    /// Show the shared context of a task and how much sharing saved.
    Context(ContextCommand),
    /// Start a coordinator and an agent on this machine.
    Up(Up),
    /// Stop the daemon that `kage up` or the first command started on this machine.
    Down(Down),
    /// Run an agent, or manage agents.
    Agent(AgentCommand),
    /// List and show the adapters of this machine, or begin one of your own.
    Adapter(AdapterCommand),
    /// Run a coordinator, or back up, check and restore its data.
    Coordinator(Coordinator),
    /// Create, list and revoke tokens of people, and create tokens for agents to join with.
    Token(TokenCommand),
    /// Keep the address, token and CA of a coordinator, and use it from now on.
    Login(LoginCommand),
    /// Write a kage.toml with the commands that prepare and check this project.
    #[command(after_help = "Examples:\n  kage init\n  kage init --print packages/web")]
    Init(Init),
    /// Print the completions of a shell.
    Completions(Completions),
    /// Write man pages.
    Man(Man),
    /// Check whether this machine has what a coordinator, an agent or a person needs.
    Doctor(Doctor),
    /// Serve the Model Context Protocol on standard input and output, for AI tools that start tasks.
    #[command(
        after_help = "Examples:\n  claude mcp add kage -- kage mcp\n  codex mcp add kage -- kage mcp\n  gemini mcp add kage kage mcp"
    )]
    Mcp,
    /// Show a whole run on a sample repository with scripted models.
    Demo(Demo),
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Number of tasks.
    #[arg(short = 'n', long, default_value_t = 20)]
    pub limit: u32,
    /// Keep the list up to date until Ctrl-C. In a pipe: a line whenever a task changed.
    #[arg(short, long)]
    pub watch: bool,
    /// Only tasks in these states.
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Which tasks")]
    pub state: Vec<State>,
    /// Only tasks of this repository: a folder such as `.`, or a name that `kage ls` prints.
    #[arg(long, value_name = "DIR|NAME", help_heading = "Which tasks")]
    pub repo: Option<String>,
    /// Only tasks since then: how long ago (90m, 2h, 1d), or a day (2026-11-30).
    #[arg(long, value_name = "TIME", help_heading = "Which tasks")]
    pub since: Option<String>,
    /// Only tasks that have all these words at the beginning of their prompt, or in the names of their
    /// repository, sessions, adapters or models.
    #[arg(long, value_name = "WORDS", help_heading = "Which tasks")]
    pub search: Vec<String>,
    /// Only tasks that you created.
    #[arg(long, help_heading = "Which tasks")]
    pub mine: bool,
}

/// The states of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// A session has not ended.
    Running,
    /// It has a result that may be landed.
    Succeeded,
    /// It has none.
    Failed,
    /// It was stopped.
    Cancelled,
}

/// A task, for commands that take nothing else.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
}

#[derive(Debug, Args)]
pub struct Show {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Print only the prompt, all of it.
    #[arg(long)]
    pub prompt: bool,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Only this session.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Continue until the task has ended.
    #[arg(short, long)]
    pub follow: bool,
    /// Print the conversation instead of the programs' output: what was said, the calls of tools with their
    /// results, and edits as diffs.
    #[arg(long)]
    pub transcript: bool,
    /// Print bytes as they are, without the names of sessions in front of lines and also to a terminal. With
    /// --transcript: the messages as the provider has them.
    #[arg(long)]
    pub raw: bool,
    /// Print only the output of verify on the base.
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

#[derive(Debug, Args)]
pub struct Remove {
    /// Ids of the tasks, or their first characters.
    #[arg(required = true, value_name = "TASK")]
    pub tasks: Vec<String>,
    /// Free their space at once, instead of keeping their files aside for a week.
    #[arg(long)]
    pub now: bool,
    /// Do not ask; without a terminal nobody is asked.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Cost {
    /// Id of the task, or its first characters; the whole id of one that was removed [default: all tasks
    /// of the project].
    pub task: Option<String>,
    /// Only calls since then: how long ago (12h, 7d), a day (2026-11-30) or a time (2026-11-30T08:00:00Z).
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// What costs are added up by: adapter, model, person, project, task or day.
    #[arg(long, value_name = "WHAT", default_value = "model")]
    pub by: CostsBy,
    /// Of every project that you may see.
    #[arg(long, conflicts_with = "task")]
    pub all_projects: bool,
    /// Print comma-separated values, with exact amounts in a column for each source.
    #[arg(long)]
    pub csv: bool,
}

#[derive(Debug, Args)]
pub struct Compare {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Print a Markdown table, for a pull request.
    #[arg(long)]
    pub markdown: bool,
    /// Compare adapters or models instead: how often they succeed, what they use, cost and take.
    #[arg(long, value_enum)]
    pub by: Option<By>,
    /// With --by: over all tasks of the project since then: how long ago (36h, 30d), or a day (2026-11-30).
    #[arg(long, value_name = "TIME", requires = "by", conflicts_with = "task")]
    pub since: Option<String>,
}

/// What sessions are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// By their last adapter.
    Adapter,
    /// By the model that was asked for, or else the one that wrote the most.
    Model,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// Text of an error, or `-` to read it from standard input; or the id of a task, or at least its
    /// first four characters [default: your newest task of this repository].
    #[arg(value_name = "TEXT|TASK")]
    pub what: Vec<String>,
    /// Adapter that printed the error; it may have rules of its own.
    #[arg(long, value_name = "ADAPTER")]
    pub adapter: Option<String>,
}

#[derive(Debug, Args)]
pub struct Wait {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", value_parser = time::limit)]
    pub timeout: Option<Duration>,
    /// How long to wait while all remaining sessions are held on a used-up quota.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// How long to wait while all remaining sessions are held on a used-up quota.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
}

#[derive(Debug, Args)]
pub struct ContextCommand {
    #[command(subcommand)]
    pub command: ContextSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum ContextSubcommand {
    /// Print the shared base.
    Show(TaskArg),
    /// Print how many times the base was stored and sent.
    Stats(TaskArg),
    /// Print how much of the prompts of each adapter is the same, up to the first byte that differs, and how
    /// much of its input was read from a cache.
    Prefix(TaskArg),
    /// Name the fields that differed in the contexts of past tasks of this repository: for `tail` in
    /// [context] of kage.toml, so that the base is the same for the next task.
    Suggest(Suggest),
}

#[derive(Debug, Args)]
pub struct Suggest {
    /// How many tasks are read, the newest first.
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub limit: u32,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Check that the agent of this machine, which has joined, reaches this coordinator
    /// (https://HOST:PORT) [default: the coordinator of the settings or of this machine].
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// Check what this machine is for, and no more: a coordinator needs no adapters, a person who works with
    /// a coordinator elsewhere neither, and an agent a coordinator that it reaches [default: everything].
    #[arg(long, value_enum)]
    pub role: Option<MachineRole>,
}

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MachineRole {
    /// It runs a coordinator.
    Coordinator,
    /// It runs an agent.
    Agent,
    /// A person gives work from it.
    Person,
}

#[derive(Debug, Args)]
pub struct Init {
    /// The folder of the project.
    #[arg(value_name = "DIR", default_value = ".")]
    pub folder: PathBuf,
    /// Replace a kage.toml that is there.
    #[arg(long, conflicts_with = "print")]
    pub force: bool,
    /// Only print what would be written.
    #[arg(long)]
    pub print: bool,
}

#[derive(Debug, Args)]
pub struct Completions {
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell that completes what is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `source <(kage completions bash)` in ~/.bashrc.
    Bash,
    /// A file `_kage` in a folder of fpath.
    Zsh,
    /// `kage completions fish > ~/.config/fish/completions/kage.fish`.
    Fish,
}

#[derive(Debug, Args)]
pub struct Man {
    /// The folder, such as ~/.local/share/man/man1; it is made if need be.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Keep the sample repository and all state, and print where they are.
    #[arg(long)]
    pub keep: bool,
}

/// Reads a command line. A prompt of several words may begin with a dash.
///
/// # Errors
/// When it cannot be understood.
pub fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(&arguments).or_else(|error| {
        let Some(moved) = prompt_behind_dashes(&arguments) else {
            return Err(error);
        };
        Cli::try_parse_from(moved).map_err(|_| error)
    })
}

/// The same command line with a prompt that looks like a flag behind `--`. No flag has a space in its name.
fn prompt_behind_dashes(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let takes_prompt = ["run", "send", "fork"];
    if !arguments
        .iter()
        .any(|argument| takes_prompt.iter().any(|name| argument == name))
        || arguments.iter().any(|argument| argument == "--")
    {
        return None;
    }
    let is_prompt = |argument: &OsString| {
        let text = argument.to_string_lossy();
        let space = text.find(char::is_whitespace);
        text.starts_with('-') && space.is_some_and(|space| !text[..space].contains('='))
    };
    let at = arguments.iter().position(is_prompt)?;
    let mut moved = arguments.to_vec();
    let prompt = moved.remove(at);
    moved.extend(["--".into(), prompt]);
    Some(moved)
}

#[cfg(test)]
mod tests;
