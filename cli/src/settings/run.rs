//! What a run can be told by flags and, by the same names, by `[run]` of `kage.toml` and of the
//! person's settings: one type for all of them. What is of one run alone (the prompt, where it works,
//! what becomes of its result) stands with the flags, in `args`.

use std::str::FromStr as _;
use std::time::Duration;

use clap::Args;
use kage_core::contain::Tier;
use kage_core::priority::Priority;
use kage_core::session::PermissionPolicy;
use kage_core::usage::PicoUsd;
use serde::{Deserialize, Deserializer};

use super::{money, time};

/// `[run]`, and the flags of `kage run` that it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunOptions {
    /// Adapters that work on the task, each with an optional model (`claude-api:claude-opus-5-5`) and an
    /// optional time limit of one attempt (`codex@20m`). Needed here or in kage.toml.
    #[arg(long = "with", value_name = "ADAPTER[:MODEL][@TIME],...", value_delimiter = ',', help_heading = SESSIONS)]
    pub with: Vec<String>,
    /// Adapters that take over a session when its own cannot continue: its quota is used up for a
    /// long time, its login is refused, or no machine can run it. Tried in this order.
    #[arg(
        long,
        value_name = "ADAPTER[:MODEL],...",
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = SESSIONS
    )]
    pub fallback: Vec<String>,
    /// Number of sessions per adapter [default: 1].
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..=64), help_heading = SESSIONS)]
    #[serde(deserialize_with = "within::<1, 64, _>")]
    pub repeat: Option<u32>,
    /// Stop the other sessions when so many results are verified [default with the flag alone: 1]. Their
    /// work so far is kept. Needs --verify.
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=64),
        hide_short_help = true,
        help_heading = SESSIONS
    )]
    #[serde(deserialize_with = "within::<1, 64, _>")]
    pub first_verified: Option<u32>,
    /// Adapters that work one after the other instead of --with, the cheapest first: the next one only
    /// when verify was run on the result of the one before and rejected it. It is told what verify wrote.
    #[arg(
        long,
        value_name = "ADAPTER[:MODEL][@TIME],...",
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = SESSIONS
    )]
    pub ladder: Vec<String>,
    /// Command that decides whether a result is good, run in a clean checkout of it.
    #[arg(long, value_name = "CMD", help_heading = CHECKS)]
    pub verify: Option<String>,
    /// Command that prepares a clean checkout for verify.
    #[arg(long, value_name = "CMD", help_heading = CHECKS)]
    pub setup: Option<String>,
    /// Command that prepares the worktree of a session before its program starts; '' for none
    /// [default: as --setup].
    #[arg(long, value_name = "CMD", hide_short_help = true, help_heading = CHECKS)]
    pub session_setup: Option<String>,
    /// Paths that are restored from the base before verify runs, besides the files that --setup and
    /// --verify name and the prompt does not.
    #[arg(long, value_name = "GLOB", hide_short_help = true, help_heading = CHECKS)]
    pub protect: Vec<String>,
    /// Do not restore the files that --setup and --verify name: use them as each result has them.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true,
        help_heading = CHECKS
    )]
    #[serde(deserialize_with = "switch")]
    pub no_protect: Option<bool>,
    /// Run verify on the base even if its verdict is known from an earlier task.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true,
        help_heading = CHECKS
    )]
    #[serde(deserialize_with = "switch")]
    pub fresh_baseline: Option<bool>,
    /// Check a result that passed once more without its change (its tests apart): verify has to fail
    /// then, or the result is not believed.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true,
        help_heading = CHECKS
    )]
    #[serde(deserialize_with = "switch")]
    pub check_verify: Option<bool>,
    /// How many times a session may continue after its result failed verify, with the output of verify
    /// as its next message [default: 1 if its adapter can resume a conversation, else 0].
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(0..=20), help_heading = CHECKS, hide_short_help = true)]
    #[serde(deserialize_with = "within::<0, 20, _>")]
    pub rework: Option<u32>,
    /// Start from HEAD, without uncommitted work.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true,
        help_heading = FILES
    )]
    #[serde(deserialize_with = "switch")]
    pub committed: Option<bool>,
    /// Include these untracked files although they are large, look like secrets, or are ignored. Ignored
    /// ones are put into worktrees and never come into a result.
    #[arg(long, value_name = "GLOB", hide_short_help = true, help_heading = FILES)]
    pub include: Vec<String>,
    /// Variable for sessions, setup and verify: NAME gives them the value that this shell has (and that
    /// each other machine's agent has), NAME=VALUE sets one.
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = FILES)]
    pub env: Vec<String>,
    /// JSON file with context for all sessions, or SESSION=FILE, ADAPTER:MODEL=FILE or ADAPTER=FILE for some;
    /// the most particular one counts.
    #[arg(long, value_name = "[WHO=]FILE", hide_short_help = true, help_heading = FILES)]
    pub context: Vec<String>,
    /// Time limit of one attempt [default: 60m].
    #[arg(long, value_name = "TIME", value_parser = time::limit, help_heading = LIMITS)]
    #[serde(deserialize_with = "time::written_limit")]
    pub timeout: Option<Duration>,
    /// Time limit of an attempt without any output [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = time::limit, hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "time::written_limit")]
    pub idle_timeout: Option<Duration>,
    /// Time limit of setup and verify together [default: 30m].
    #[arg(long, value_name = "TIME", value_parser = time::limit, hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "time::written_limit")]
    pub verify_timeout: Option<Duration>,
    /// Number of attempts of a session that may fail. Lost agents and used-up quotas do not count
    /// [default: 2].
    #[arg(
        long,
        value_name = "TIMES",
        value_parser = clap::value_parser!(u32).range(1..=20),
        hide_short_help = true,
        help_heading = LIMITS
    )]
    #[serde(deserialize_with = "within::<1, 20, _>")]
    pub max_attempts: Option<u32>,
    /// Largest new file that may become a part of a result; a larger one is left out, and named
    /// [default: 25].
    #[arg(
        long,
        value_name = "MIB",
        value_parser = clap::value_parser!(u32).range(1..=4096),
        hide_short_help = true,
        help_heading = LIMITS
    )]
    #[serde(deserialize_with = "within::<1, 4096, _>")]
    pub max_file_mib: Option<u32>,
    /// Most MiB of all new files of a result together; more is no result [default: 200].
    #[arg(
        long,
        value_name = "MIB",
        value_parser = clap::value_parser!(u32).range(1..=65536),
        hide_short_help = true,
        help_heading = LIMITS
    )]
    #[serde(deserialize_with = "within::<1, 65536, _>")]
    pub max_new_mib: Option<u32>,
    /// Most new files of a result; more is no result [default: 20000].
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000),
        hide_short_help = true,
        help_heading = LIMITS
    )]
    #[serde(deserialize_with = "within::<1, 10_000_000, _>")]
    pub max_new_files: Option<u32>,
    /// Most dollars that the calls of models of all its sessions may cost together. A call that may not
    /// fit waits for others; at the limit sessions end with exit code 6. Programs that tell what they use
    /// only afterwards are stopped then, and may pass it [default: no limit].
    #[arg(long, value_name = "USD", value_parser = money::dollars, help_heading = LIMITS)]
    #[serde(deserialize_with = "money::written_dollars")]
    pub budget: Option<PicoUsd>,
    /// Most dollars of each session [default: no limit].
    #[arg(long, value_name = "USD", value_parser = money::dollars, hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "money::written_dollars")]
    pub session_budget: Option<PicoUsd>,
    /// Most tokens of all classes in all its sessions together: also for models whose price is not known
    /// [default: no limit].
    #[arg(long, value_name = "TOKENS", hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "money::written_tokens")]
    pub token_cap: Option<u64>,
    /// What programs are answered that ask whether they may do something: allow, deny, or ask (a person
    /// answers with `kage permit`; without an answer in time they may not) [default: as their adapter says].
    #[arg(long, value_name = "POLICY", value_parser = permissions, hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "written_permissions")]
    pub permissions: Option<PermissionPolicy>,
    /// How long a program that asks waits for a person [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = time::limit, hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "time::written_limit")]
    pub permission_wait: Option<Duration>,
    /// How long this command waits while all remaining sessions are held on a used-up quota. The task
    /// continues without it [default: 5m].
    #[arg(long, value_name = "TIME", value_parser = time::limit, hide_short_help = true, help_heading = LIMITS)]
    #[serde(deserialize_with = "time::written_limit")]
    pub max_hold: Option<Duration>,
    /// Labels that agents must have.
    #[arg(
        long,
        value_name = "KEY=VALUE,...",
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = AGENTS
    )]
    pub agents: Vec<String>,
    /// Lowest tier of containment of the agents that may work on it and check it: T0 to T3. It can be
    /// raised only: the highest of the flag, your settings and kage.toml counts [default: T0].
    #[arg(long, value_name = "TIER", value_parser = tier, hide_short_help = true, help_heading = AGENTS)]
    #[serde(deserialize_with = "written_tier")]
    pub contain: Option<Tier>,
    /// Urgency: low, normal, high, or a number from -10 to 10. Low priority delays a task, but not
    /// forever [default: normal].
    #[arg(
        long,
        value_name = "PRIORITY",
        allow_negative_numbers = true,
        hide_short_help = true,
        help_heading = AGENTS
    )]
    #[serde(deserialize_with = "priority")]
    pub priority: Option<Priority>,
    /// Store the task although no agent can run it now, and wait for an agent that can.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true,
        help_heading = AGENTS
    )]
    #[serde(deserialize_with = "switch")]
    pub wait_for_agent: Option<bool>,
}

const SESSIONS: &str = "Who works";
const CHECKS: &str = "How results are checked";
const FILES: &str = "What sessions find";
const LIMITS: &str = "Limits";
const AGENTS: &str = "Where and when it runs";

impl RunOptions {
    /// The keys whose values are lists.
    pub(super) const LISTS: [&str; 8] = [
        "with", "ladder", "fallback", "protect", "include", "env", "context", "agents",
    ];

    /// These, and where they say nothing, the others. Variables add up: the last word about each counts,
    /// so those of the others come first. `with` and `ladder` both say who works. Of two tiers of containment the higher one counts.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            // The last one of these that was said counts, and not both.
            first_verified: match self.ladder.is_empty() {
                true => self.first_verified.or(other.first_verified),
                false => self.first_verified,
            },
            with: match self.ladder.is_empty() {
                true => either(self.with.clone(), other.with),
                false => self.with.clone(),
            },
            ladder: match self.with.is_empty() && self.first_verified.is_none() {
                true => either(self.ladder, other.ladder),
                false => self.ladder,
            },
            fallback: either(self.fallback, other.fallback),
            repeat: self.repeat.or(other.repeat),
            verify: self.verify.or(other.verify),
            setup: self.setup.or(other.setup),
            session_setup: self.session_setup.or(other.session_setup),
            protect: either(self.protect, other.protect),
            no_protect: self.no_protect.or(other.no_protect),
            fresh_baseline: self.fresh_baseline.or(other.fresh_baseline),
            check_verify: self.check_verify.or(other.check_verify),
            rework: self.rework.or(other.rework),
            committed: self.committed.or(other.committed),
            include: either(self.include, other.include),
            env: [other.env, self.env].concat(),
            context: either(self.context, other.context),
            timeout: self.timeout.or(other.timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            verify_timeout: self.verify_timeout.or(other.verify_timeout),
            max_attempts: self.max_attempts.or(other.max_attempts),
            max_file_mib: self.max_file_mib.or(other.max_file_mib),
            max_new_mib: self.max_new_mib.or(other.max_new_mib),
            max_new_files: self.max_new_files.or(other.max_new_files),
            budget: self.budget.or(other.budget),
            session_budget: self.session_budget.or(other.session_budget),
            token_cap: self.token_cap.or(other.token_cap),
            permissions: self.permissions.or(other.permissions),
            permission_wait: self.permission_wait.or(other.permission_wait),
            max_hold: self.max_hold.or(other.max_hold),
            agents: either(self.agents, other.agents),
            contain: self.contain.max(other.contain),
            priority: self.priority.or(other.priority),
            wait_for_agent: self.wait_for_agent.or(other.wait_for_agent),
        }
    }
}

/// The list that was given, or else the other one.
pub(crate) fn either<T>(list: Vec<T>, other: Vec<T>) -> Vec<T> {
    if list.is_empty() { other } else { list }
}

/// A number of a file, in the bounds of its flag.
fn within<'de, const LEAST: u32, const MOST: u32, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let number = i64::deserialize(from)?;
    let fits = u32::try_from(number).ok();
    let fits = fits.filter(|number| (LEAST..=MOST).contains(number));
    let refused = || serde::de::Error::custom(format!("{number} is not in {LEAST}..={MOST}"));
    fits.map(Some).ok_or_else(refused)
}

/// A switch of a file; numbers, of which the reader of files would make one, are none.
fn switch<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    let text = String::deserialize(from)?;
    let refused = |_| serde::de::Error::custom(format!("{text:?} is not true or false"));
    text.parse().map(Some).map_err(refused)
}

/// Reads a tier of containment.
fn tier(text: &str) -> Result<Tier, String> {
    let all = || Tier::ALL.map(Tier::as_str).join(", ");
    let read = text.parse();
    read.map_err(|_| format!("{text:?} is not a tier of containment, which are {}", all()))
}

/// The same in a file.
fn written_tier<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Tier>, D::Error> {
    let text = String::deserialize(from)?;
    tier(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Reads what programs are answered that ask.
fn permissions(text: &str) -> Result<PermissionPolicy, String> {
    let read = text.parse();
    read.map_err(|_| {
        format!(
            "{text:?} is none of {}",
            PermissionPolicy::ALL.map(PermissionPolicy::as_str).join(", ")
        )
    })
}

/// The same in a file.
fn written_permissions<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PermissionPolicy>, D::Error> {
    let text = String::deserialize(from)?;
    permissions(&text).map(Some).map_err(serde::de::Error::custom)
}

fn priority<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Priority>, D::Error> {
    let text = String::deserialize(from)?;
    Priority::from_str(&text).map(Some).map_err(serde::de::Error::custom)
}
