//! What can be typed: subcommands, flags and their help. No behaviour.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kage_core::ledger::CostsBy;

use crate::settings::time;

mod checkpoint;
mod daemons;
mod fleet;
mod landing;
mod results;
mod run;
mod steering;

pub use checkpoint::{
    CheckpointArg, CheckpointCommand, CheckpointCreate, CheckpointRestore, CheckpointSubcommand, Checkpoints,
};
pub use daemons::{
    AgentOptions, AgentRun, Coordinator, CoordinatorBackup, CoordinatorOptions, CoordinatorRestore,
    CoordinatorSubcommand, CoordinatorVerify,
};
pub use fleet::{AgentCommand, AgentSubcommand, Down, TokenCommand, TokenCreate, TokenRole, TokenSubcommand, Up};
pub use landing::{Apply, Checkout, Diff, Land, Merge, Strategy};
pub use results::{Select, Verify};
pub use run::Run;
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
    #[arg(
        long,
        global = true,
        env = "KAGE_STATE_DIR",
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
    /// Print a session's change as a patch, or what two sessions' results differ in.
    Diff(Diff),
    /// Compare the sessions of a task, best first.
    Compare(Compare),
    /// Show what calls of models cost: of a task, or added up by adapter, model, person, project or day.
    Cost(Cost),
    /// Explain what Kage does about an error, or what it did about the errors of a task.
    Explain(Explain),
    /// Put a session's change into the working tree, without committing.
    Apply(Apply),
    /// Merge a session's result into the current branch or another one, or open a pull request.
    Merge(Merge),
    /// Put a session's result into a working tree of its own, to try it.
    Checkout(Checkout),
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
    /// Run a coordinator, or back up, check and restore its data.
    Coordinator(Coordinator),
    /// Create, list and revoke tokens of people, and create tokens for agents to join with.
    Token(TokenCommand),
    /// Check whether this machine has what a coordinator, an agent or a person needs.
    Doctor(Doctor),
    /// Show a whole run on a sample repository with scripted models.
    Demo(Demo),
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
    /// Free their space at once, instead of keeping their files aside for a week.
    #[arg(long)]
    pub now: bool,
}

#[derive(Debug, Args)]
pub struct Cost {
    /// Id of the task, or its first characters; the whole id of one that was removed [default: all tasks
    /// of the project].
    pub task: Option<String>,
    /// Only calls since then: a day (2026-01-31), a time (2026-01-31T08:00:00Z), or so long ago (7d, 12h).
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

    #[test]
    fn the_short_help_of_run_is_short_and_the_long_one_has_every_flag() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand_mut("run").unwrap();
        let flags = |help: String| -> Vec<String> {
            // Further lines about a flag stand further in.
            let begins = |line: &&str| line.trim_start().starts_with('-') && line.find('-') <= Some(6);
            help.lines().filter(begins).map(str::to_owned).collect()
        };
        let short = flags(run.render_help().to_string());
        assert!((5..=12).contains(&short.len()), "{short:#?}");
        let long = run.render_long_help().to_string();
        let all = run.get_arguments().filter_map(clap::Arg::get_long);
        for flag in all {
            assert!(long.contains(&format!("--{flag}")), "{flag}");
        }
        for heading in ["Who works:", "How results are checked:", "Limits:"] {
            assert!(long.contains(heading), "{heading}");
        }
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
