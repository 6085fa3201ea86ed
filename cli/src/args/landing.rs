//! What the commands can be told that show results and land them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Pick;

#[derive(Debug, Args)]
pub struct Diff {
    /// Id of a task, or its first characters [default: your newest of this repository]; then the names
    /// of two sessions, for what the second's result has in place of the first's.
    #[arg(value_name = "TASK|SESSION", num_args = 0..=3)]
    pub what: Vec<String>,
    /// Which session [default: the winner].
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Print the lines that were added and removed in each file, instead of a patch.
    #[arg(long)]
    pub stat: bool,
    /// Print only the paths.
    #[arg(long, conflicts_with = "stat")]
    pub name_only: bool,
    /// Print bytes as they are, also to a terminal.
    #[arg(long)]
    pub raw: bool,
}

/// Which result to land where, and whether to do it.
#[derive(Debug, Args)]
pub struct Land {
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
pub struct Apply {
    #[command(flatten)]
    pub land: Land,
    /// Only these files and folders of the result, from the present folder.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub path: Vec<PathBuf>,
    /// Take the change out of the working tree again.
    #[arg(long)]
    pub undo: bool,
}

#[derive(Debug, Args)]
pub struct Merge {
    #[command(flatten)]
    pub land: Land,
    /// What to do if both sides changed the same lines.
    #[arg(long, value_enum, default_value_t = Strategy::Auto)]
    pub strategy: Strategy,
    /// Put the commit on this branch, which is checked out nowhere. Files, index and HEAD stay as they are.
    #[arg(long, value_name = "BRANCH")]
    pub into: Option<String>,
    /// Push the branch with your git, and open a pull request with `gh` or `glab`, or print where to open
    /// it. Without --into, the branch is made: kage/TASK-WORDS.
    #[arg(long)]
    pub pr: bool,
    /// Run your commit hooks, as HEAD has them, and with --pr your pre-push hook.
    #[arg(long)]
    pub hooks: bool,
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
pub struct Checkout {
    /// Whose result.
    pub session: String,
    /// Folder of the working tree, which is made [default: one beside the repository].
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Id of the task, or its first characters [default: your newest of this repository].
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// The repository.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub repo: PathBuf,
}
