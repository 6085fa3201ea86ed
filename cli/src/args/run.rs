//! What `kage run` can be told. Most of it is in [`RunOptions`], which files have too; here is what is of
//! one run alone.

use std::path::PathBuf;

use clap::Args;

use crate::settings::RunOptions;

/// What a task that is run again takes from the earlier one.
const SAME_AGAIN: [&str; 26] = [
    "first_verified",
    "ladder",
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
    "max_file_mib",
    "max_new_mib",
    "max_new_files",
    "budget",
    "session_budget",
    "token_cap",
    "permissions",
    "permission_wait",
];

#[derive(Debug, Args)]
pub struct Run {
    /// The task in words; `-` reads it from standard input [default: what you write in $EDITOR].
    pub prompt: Option<String>,
    /// Read the prompt from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", hide_short_help = true)]
    pub prompt_file: Option<PathBuf>,
    /// Run an earlier task again: its prompt, base, contexts, verify, setup and environment, with its
    /// sessions or those of --with.
    #[arg(long, value_name = "TASK", conflicts_with_all = SAME_AGAIN, hide_short_help = true)]
    pub again: Option<String>,
    /// With --again: start from the repository as it is now, instead of from the base of that task.
    #[arg(long, requires = "again", hide_short_help = true)]
    pub present: bool,
    /// The repository, or a folder of it to work in: sessions, and the commands of flags, start there.
    /// The nearest kage.toml counts, from there up to the repository's top.
    #[arg(long, default_value = ".", value_name = "DIR", hide_short_help = true)]
    pub repo: PathBuf,
    /// Work at the top of the repository instead of in the present folder.
    #[arg(long, hide_short_help = true)]
    pub root: bool,
    /// Return as soon as the task is stored; do not wait for results.
    #[arg(short, long)]
    pub detach: bool,
    /// Id of the call that stores the task. A call of unknown outcome prints its id: with that and the same
    /// arguments it is repeated, and stores no second task.
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub request_id: Option<String>,
    /// Apply the best result to the working tree: a verified result, or, without --verify, an
    /// unchecked one. A result of high risk is not applied.
    #[arg(long, conflicts_with = "detach")]
    pub apply: bool,
    /// Apply the best result although its risk is high: it changed files that verify depends on.
    #[arg(long, requires = "apply", hide_short_help = true)]
    pub accept_risk: bool,
    /// Each of these is a key of [run] in kage.toml too, with `_` for `-`; the flag wins.
    #[command(flatten)]
    pub options: RunOptions,
}
