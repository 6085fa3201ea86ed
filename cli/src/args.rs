//! What can be typed: subcommands, flags and their help. No behaviour.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kage_core::priority::Priority;

mod time;
mod checkpoint;
mod daemons;
mod fleet;
mod results;
mod steering;

pub use checkpoint::{
    CheckpointArg, CheckpointCommand, CheckpointCreate, CheckpointRestore, CheckpointSubcommand, Checkpoints,
};
pub use daemons::{AgentOptions, AgentRun, Coordinator, CoordinatorOptions};
pub use fleet::{AgentCommand, AgentSubcommand, Down, TokenCommand, TokenCreate, TokenRole, TokenSubcommand, Up};
pub use results::{Select, Verify};
pub use steering::{Fork, Send, SessionArg, Waiting};

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
    /// Format of the results: text for people, one JSON document, or a JSON object per line.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Folder of Kage's state [default: $XDG_STATE_HOME/kage or ~/.local/state/kage].
    #[arg(long, global = true, env = "KAGE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Log more to standard error (-v: info, -vv: debug). KAGE_LOG=FILTER replaces it.
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

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a task in this repository and wait for its results.
    Run(Run),
    /// List tasks, newest first.
    Ls(Ls),
    /// Show a task, its sessions, and why they wait or failed.
    Show(TaskArg),
    /// Print the output of the sessions.
    Logs(Logs),
    /// Print a session's change as a patch.
    Diff(Pick),
    /// Compare the sessions of a task, best first.
    Compare(Compare),
    /// Explain what Kage does about an error, or what it did about the errors of a task.
    Explain(Explain),
    /// Put a session's change into the working tree, without committing.
    Apply(Apply),
    /// Merge a session's result into the current branch.
    Merge(Merge),
    /// Choose the session whose result `kage apply` and `kage merge` take.
    Select(Select),
    /// Say to a session what to do next, also when it is over: it goes on in its conversation.
    Send(Send),
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
    /// Run a coordinator.
    Coordinator(Coordinator),
    /// Create, list and revoke tokens of people, and create tokens for agents to join with.
    Token(TokenCommand),
    /// Check whether this machine has what a coordinator, an agent or a person needs.
    Doctor(Doctor),
    /// Show a whole run on a sample repository with scripted models.
    Demo(Demo),
}

/// What a task that is run again takes from the earlier one.
const SAME_AGAIN: [&str; 16] = [
    "prompt",
    "prompt_file",
    "verify",
    "setup",
    "session_setup",
    "protect",
    "no_protect",
    "root",
    "env",
    "context",
    "agents",
    "timeout",
    "idle_timeout",
    "verify_timeout",
    "max_attempts",
    "rework",
];

#[derive(Debug, Args)]
pub struct Run {
    /// The task in words; `-` reads it from standard input.
    #[arg(required_unless_present_any = ["prompt_file", "again"])]
    pub prompt: Option<String>,
    /// Read the prompt from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Run an earlier task again: its prompt, base, contexts, verify, setup and environment, with its
    /// sessions or those of --with.
    #[arg(long, value_name = "TASK", conflicts_with_all = SAME_AGAIN)]
    pub again: Option<String>,
    /// With --again: start from the repository as it is now, instead of from the base of that task.
    #[arg(long, requires = "again")]
    pub present: bool,
    /// Adapters that work on the task, each with an optional model (`claude-api:claude-opus-5-5`).
    #[arg(
        long = "with",
        value_name = "ADAPTER[:MODEL],...",
        value_delimiter = ',',
        required_unless_present = "again"
    )]
    pub with: Vec<String>,
    /// Adapters that take over a session when its own cannot continue: its quota is used up for a
    /// long time, its login is refused, or no machine can run it. Tried in this order.
    #[arg(long, value_name = "ADAPTER[:MODEL],...", value_delimiter = ',')]
    pub fallback: Vec<String>,
    /// Number of sessions per adapter.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub repeat: u32,
    /// Command that decides whether a result is good, run in a clean checkout of it.
    #[arg(long, value_name = "CMD")]
    pub verify: Option<String>,
    /// Command that prepares a clean checkout for verify.
    #[arg(long, value_name = "CMD")]
    pub setup: Option<String>,
    /// Command that prepares the worktree of a session before its program starts; '' for none
    /// [default: as --setup].
    #[arg(long, value_name = "CMD")]
    pub session_setup: Option<String>,
    /// Paths that are restored from the base before verify runs, besides the files that --setup and
    /// --verify name and the prompt does not.
    #[arg(long, value_name = "GLOB")]
    pub protect: Vec<String>,
    /// Do not restore the files that --setup and --verify name: use them as each result has them.
    #[arg(long)]
    pub no_protect: bool,
    /// Run verify on the base even if its verdict is known from an earlier task.
    #[arg(long)]
    pub fresh_baseline: bool,
    /// The repository, or a folder of it to work in: sessions, and the commands of flags, start there.
    /// The nearest kage.toml counts, from there up to the repository's top.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub repo: PathBuf,
    /// Work at the top of the repository instead of in the present folder.
    #[arg(long)]
    pub root: bool,
    /// Start from HEAD, without uncommitted work.
    #[arg(long)]
    pub committed: bool,
    /// Include these untracked files although they are large, look like secrets, or are ignored. Ignored
    /// ones are put into worktrees and never come into a result.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Variable for sessions, setup and verify: NAME gives them the value that this shell has (and that
    /// each other machine's agent has), NAME=VALUE sets one.
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// JSON file with context for all sessions, or ADAPTER=FILE for those of one adapter.
    #[arg(long, value_name = "[ADAPTER=]FILE")]
    pub context: Vec<String>,
    /// Labels that agents must have.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',')]
    pub agents: Vec<String>,
    /// Time limit of one attempt.
    #[arg(long, default_value = "60m", value_name = "TIME", value_parser = time::limit)]
    pub timeout: Duration,
    /// Time limit of an attempt without any output.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = time::limit)]
    pub idle_timeout: Duration,
    /// Time limit of setup and verify together.
    #[arg(long, default_value = "30m", value_name = "TIME", value_parser = time::limit)]
    pub verify_timeout: Duration,
    /// Number of attempts of a session that may fail. Lost agents and used-up quotas do not count.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub max_attempts: u32,
    /// Urgency: low, normal, high, or a number from -10 to 10. Low priority delays a task, but not
    /// forever.
    #[arg(long, default_value_t = Priority::NORMAL, value_name = "PRIORITY", allow_negative_numbers = true)]
    pub priority: Priority,
    /// Store the task although no agent can run it now, and wait for an agent that can.
    #[arg(long)]
    pub wait_for_agent: bool,
    /// How long this command waits while all remaining sessions are held on a used-up quota. The task
    /// continues without it.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
    /// How many times a session may continue after its result failed verify, with the output of verify
    /// as its next message [default: 1 if its adapter can resume a conversation, else 0].
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(0..=20))]
    pub rework: Option<u32>,
    /// Largest new file that may become a part of a result, in MiB; a larger one is left out, and named
    /// [default: 25].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub max_file: Option<u64>,
    /// Most MiB of all new files of a result together; more is no result [default: 200].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub max_new: Option<u64>,
    /// Most new files of a result; more is no result [default: 20000].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub max_new_files: Option<u64>,
    /// Return as soon as the task is stored; do not wait for results.
    #[arg(short, long)]
    pub detach: bool,
    /// Apply the best result to the working tree: a verified result, or, without --verify, an
    /// unchecked one. A result of high risk is not applied.
    #[arg(long, conflicts_with = "detach")]
    pub apply: bool,
    /// Apply the best result although its risk is high: it changed files that verify depends on.
    #[arg(long, requires = "apply")]
    pub accept_risk: bool,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Number of tasks.
    #[arg(short = 'n', long, default_value_t = 20)]
    pub limit: u32,
}

/// A task, for commands that take nothing else.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
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
    /// Print the provider's raw messages instead of the programs' output.
    #[arg(long)]
    pub transcript: bool,
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
}

#[derive(Debug, Args)]
pub struct Compare {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Print a Markdown table, for a pull request.
    #[arg(long)]
    pub markdown: bool,
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
pub struct Apply {
    /// Which result.
    #[command(flatten)]
    pub pick: Pick,
    /// Only show what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// The repository.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub repo: PathBuf,
    /// Accept a result that was not verified.
    #[arg(long)]
    pub unverified: bool,
    /// Accept the best result although its risk is high: it changed files that verify depends on.
    #[arg(long)]
    pub accept_risk: bool,
}

#[derive(Debug, Args)]
pub struct Merge {
    /// Which result, where, and whether to do it.
    #[command(flatten)]
    pub apply: Apply,
    /// What to do if both sides changed the same lines.
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
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Check that the agent of this machine, which has joined, reaches this coordinator
    /// (https://HOST:PORT) [default: the coordinator of the settings or of this machine].
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Keep the sample repository and all state, and print where they are.
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

    /// The words of each `kage` command in the shell blocks of a document, as a shell reads them.
    fn commands(document: &str) -> Vec<Vec<String>> {
        let blocks = document
            .split("```sh\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next());
        let text: String = blocks.collect::<String>().replace("\\\n", " ");
        // At the beginning of a line, or behind a variable that is set for it.
        let lines = text.lines().filter_map(|line| {
            let mut found = line.match_indices("kage ");
            let (at, _) = found
                .find(|(at, _)| *at == 0 || line[..*at].rsplit(' ').nth(1).is_some_and(|word| word.contains('=')))?;
            Some(&line[at..])
        });
        let words = |line: &str| {
            let script = format!("set -f; printf '%s\\n' {line}");
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            String::from_utf8(output.stdout)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        };
        lines.map(words).collect()
    }

    #[test]
    fn every_command_of_the_documents_can_be_typed() {
        let mut found = 0;
        for document in [
            include_str!("../../README.md"),
            include_str!("../../docs/machines.md"),
            include_str!("../../docs/operations.md"),
        ] {
            for command in commands(document) {
                let parsed = Cli::try_parse_from(&command);
                assert!(parsed.is_ok(), "{command:?}: {}", parsed.unwrap_err());
                found += 1;
            }
        }
        assert!(found >= 10, "only {found} commands were found");
    }
}
