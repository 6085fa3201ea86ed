//! What can be typed to steer sessions: words for one, and another one that goes on from its files.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::time;

/// Which session.
#[derive(Debug, Args)]
pub struct SessionArg {
    /// Name of the session, in the task of --task; or TASK/SESSION; or the id of a task that has one
    /// session, or at least its first four characters.
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// Id of the task, or its first characters [default: your newest of this repository].
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
}

/// Whether and how long to wait.
#[derive(Debug, Args)]
pub struct Waiting {
    /// Return at once; do not wait for the result.
    #[arg(short, long)]
    pub detach: bool,
    /// How long this command waits while all remaining sessions are held on a used-up quota. The task
    /// continues without it.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
}

#[derive(Debug, Args)]
pub struct Send {
    #[command(flatten)]
    pub session: SessionArg,
    /// What to do next, in words; `-` reads it from standard input [default: what you write in $EDITOR].
    pub prompt: Option<String>,
    /// Read the words from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct PermitCommand {
    #[command(subcommand)]
    pub command: PermitSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum PermitSubcommand {
    /// List the questions that wait for a person.
    Ls,
    /// Let the program do what it asks about.
    Allow(Answered),
    /// Do not let it.
    Deny(Answered),
}

/// Which question.
#[derive(Debug, Args)]
pub struct Answered {
    #[command(flatten)]
    pub session: SessionArg,
    /// Number of the question [default: the only one that waits].
    #[arg(value_name = "QUESTION", value_parser = clap::value_parser!(u32).range(1..))]
    pub question: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Fork {
    #[command(flatten)]
    pub session: SessionArg,
    /// What the new session is to do, besides the task; `-` reads it from standard input [default: what
    /// is left of the task].
    pub prompt: Option<String>,
    /// Read the words from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// The adapter that goes on, with an optional model.
    #[arg(long, value_name = "ADAPTER[:MODEL]")]
    pub with: String,
    /// Adapters that take over when that one cannot continue. Tried in this order.
    #[arg(long, value_name = "ADAPTER[:MODEL],...", value_delimiter = ',')]
    pub fallback: Vec<String>,
    /// The checkpoint to begin from: its number, or its id, or the first characters of that [default:
    /// the one that the session stands on].
    #[arg(long, value_name = "CHECKPOINT")]
    pub checkpoint: Option<String>,
    /// Add the session although no agent can run it now, and wait for an agent that can.
    #[arg(long)]
    pub wait_for_agent: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}
