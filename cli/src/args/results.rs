//! Flags of the commands about one result that neither show nor land it.

use std::time::Duration;

use clap::Args;

use super::time;

#[derive(Debug, Args)]
pub struct Select {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Whose result.
    #[arg(long, value_name = "NAME", required_unless_present = "clear")]
    pub session: Option<String>,
    /// Undo the choice: the ranking decides again.
    #[arg(long, conflicts_with = "session")]
    pub clear: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub task: Option<String>,
    /// Whose result; not needed when the task has only one session.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Return as soon as it waits for an agent; do not wait for the verdict.
    #[arg(short, long)]
    pub detach: bool,
    /// How long this command waits while all remaining sessions are held on a used-up quota.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = time::limit)]
    pub max_hold: Duration,
}
