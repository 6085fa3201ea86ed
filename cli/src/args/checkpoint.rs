//! What can be typed about checkpoints.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct CheckpointCommand {
    #[command(subcommand)]
    pub command: CheckpointSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointSubcommand {
    /// List them, oldest first.
    Ls(Checkpoints),
    /// Show one, and what it changed.
    Show(CheckpointArg),
    /// Draw them as a timeline that shows which attempt continued from which checkpoint.
    Graph(Checkpoints),
    /// Create a checkpoint of a running session now.
    Create(CheckpointCreate),
    /// Send a session back to a checkpoint. A running session is stopped after a last checkpoint; an
    /// ended session starts again.
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
    /// Which session; not needed when the task has only one.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
}

#[derive(Debug, Args)]
pub struct CheckpointCreate {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Which session; not needed when the task has only one.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Note for the list of checkpoints.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub note: String,
}

#[derive(Debug, Args)]
pub struct CheckpointRestore {
    /// Which checkpoint.
    #[command(flatten)]
    pub which: CheckpointArg,
    /// Only list how each path would change.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for a last checkpoint: the changes of a running session since its newest checkpoint
    /// are lost.
    #[arg(long)]
    pub discard: bool,
    /// Also move away ignored files that were created since the checkpoint.
    #[arg(long)]
    pub complete: bool,
}
