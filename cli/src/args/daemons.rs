//! What `kage coordinator` and `kage agent run` can be told. Their options are flags and, by the
//! same names, keys of the file that `--config` names; where both say something, the flag wins.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use kage_agent::adapters::AdapterSettings;
use kage_coordinator::Origin;
use kage_core::access::Capabilities;
use kage_core::network::NetworkSettings;
use serde::{Deserialize, Deserializer};

use crate::settings::{BoxSettings, BudgetSettings, CallerSettings, DiskSettings, either, time};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Coordinator {
    #[command(subcommand)]
    pub command: Option<CoordinatorSubcommand>,
    /// File with these options: a key for each, with `_` for `-`, and a list where a flag may be
    /// repeated. Flags win.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Use the data folder and the database in it together, although they do not name the same
    /// store.
    #[arg(long)]
    pub adopt_data: bool,
    /// Use a database that is older than the data beside it, such as a copy that was put back: what
    /// was acknowledged since is lost.
    #[arg(long)]
    pub accept_older: bool,
    #[command(flatten)]
    pub options: CoordinatorOptions,
}

#[derive(Debug, Subcommand)]
pub enum CoordinatorSubcommand {
    /// Copy all data of a coordinator, which may run, into a new folder.
    Backup(CoordinatorBackup),
    /// Put a backup into a data folder that is empty or does not exist.
    Restore(CoordinatorRestore),
    /// Check that a backup, or a data folder, has everything that its database names.
    Verify(CoordinatorVerify),
}

#[derive(Debug, Args)]
pub struct CoordinatorBackup {
    /// The folder to make; it must be empty or not exist.
    #[arg(value_name = "BACKUP")]
    pub to: PathBuf,
    /// Folder of the coordinator's data [default: coordinator/ in the state folder].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CoordinatorRestore {
    /// The backup.
    #[arg(value_name = "BACKUP")]
    pub from: PathBuf,
    /// The data folder to make [default: coordinator/ in the state folder].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Also when the backup lacks files that its database names.
    #[arg(long)]
    pub incomplete: bool,
}

#[derive(Debug, Args)]
pub struct CoordinatorVerify {
    /// A backup or a data folder [default: coordinator/ in the state folder].
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// What a coordinator can be told by flags and by a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoordinatorOptions {
    /// Address to listen on [default: 127.0.0.1:7443]. Everywhere but on loopback the coordinator
    /// speaks TLS, with certificates of its own.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Speak TLS on loopback too.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls: Option<bool>,
    /// Name or address under which other machines reach it; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub public_name: Vec<String>,
    /// Origin (https://HOST[:PORT]) of pages that may call it from a browser; may be repeated.
    #[arg(long, value_name = "ORIGIN")]
    #[serde(deserialize_with = "origins")]
    pub web_origin: Vec<Origin>,
    /// What agents may be given to do that show the coordinator's own token instead of having joined:
    /// `run` (sessions) or `run,verify` [default: run]. Whoever can read the token's file can be such
    /// an agent, and say that any result is good.
    #[arg(long, value_name = "WORK")]
    pub token_agents: Option<Capabilities>,
    /// Folder of its data [default: coordinator/ in the state folder].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Forget tasks so many days after their end [default: 90].
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// Forget the tasks that ended first when the output and blobs of all ended tasks exceed so
    /// many GiB [default: 50].
    #[arg(long, value_name = "GIB")]
    pub keep_gib: Option<u32>,
    /// File with prices of model tokens. They replace the built-in prices of the models that it
    /// names [default: prices.toml beside config.toml].
    #[arg(long, value_name = "FILE")]
    pub prices: Option<PathBuf>,
    /// How often agents report that they are alive [default: 5s].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub heartbeat: Option<Duration>,
    /// How long an agent may act without hearing from the coordinator [default: 60s].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub lease_ttl: Option<Duration>,
    /// How long a connected agent may be silent before its attempts end [default: 20s].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub lost_after: Option<Duration>,
    /// How long an agent may be disconnected before its attempts end [default: 5s].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub grace: Option<Duration>,
    /// How long a disconnected agent keeps frozen programs before it kills them [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub max_detached: Option<Duration>,
    /// How long an attempt may exceed its task's time limit, at least, before the coordinator ends
    /// it whatever its agent does [default: 60s].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub limit_slack: Option<Duration>,
    /// How long an agent may take to answer an order to stop before the attempt ends
    /// [default: 60s].
    #[arg(long, value_name = "TIME", value_parser = time::wait, help_heading = WAITS)]
    #[serde(deserialize_with = "time::written")]
    pub stop_answer: Option<Duration>,
    /// What one caller may take. In files only.
    #[arg(skip)]
    pub limits: CallerSettings,
    /// What each person and each project may spend. In files only.
    #[arg(skip)]
    pub budgets: BudgetSettings,
}

const WAITS: &str = "How long to wait (longer for bad networks, shorter for quicker takeovers)";

fn origins<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Origin>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let origins = texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom));
    origins.collect()
}

impl CoordinatorOptions {
    /// These, and where they say nothing, the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            tls: self.tls.or(other.tls),
            public_name: either(self.public_name, other.public_name),
            web_origin: either(self.web_origin, other.web_origin),
            token_agents: self.token_agents.or(other.token_agents),
            data_dir: self.data_dir.or(other.data_dir),
            keep_days: self.keep_days.or(other.keep_days),
            keep_gib: self.keep_gib.or(other.keep_gib),
            prices: self.prices.or(other.prices),
            heartbeat: self.heartbeat.or(other.heartbeat),
            lease_ttl: self.lease_ttl.or(other.lease_ttl),
            lost_after: self.lost_after.or(other.lost_after),
            grace: self.grace.or(other.grace),
            max_detached: self.max_detached.or(other.max_detached),
            limit_slack: self.limit_slack.or(other.limit_slack),
            stop_answer: self.stop_answer.or(other.stop_answer),
            // No flag is for these.
            limits: other.limits,
            budgets: other.budgets,
        }
    }
}

#[derive(Debug, Args)]
pub struct AgentRun {
    /// Join the coordinator at HOST:PORT with this token, once. Afterwards the agent has a
    /// certificate of its own and needs only `--coordinator https://HOST:PORT`.
    #[arg(long, value_name = "TOKEN", requires = "address", conflicts_with_all = ["coordinator", "token_file", "label"])]
    pub join: Option<String>,
    /// Where to join.
    #[arg(value_name = "HOST:PORT", requires = "join")]
    pub address: Option<String>,
    /// File with a join token, `-` for standard input: with `--coordinator`, an agent that has not joined yet
    /// joins with it. KAGE_JOIN_TOKEN does the same. Neither shows the token in the list of processes.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join", "token_file", "label"])]
    pub join_file: Option<PathBuf>,
    /// Join and end, without running as an agent.
    #[arg(long)]
    pub join_only: bool,
    /// File with these options: a key for each, with `_` for `-`, and a list where a flag may be
    /// repeated; also [disk], [contain], [network] and [adapter.NAME], as in config.toml. Flags win.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub options: AgentOptions,
}

/// What an agent can be told by flags and by a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentOptions {
    /// Address of the coordinator [default: the coordinator on this machine].
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// File that holds a token of the coordinator, for an agent that did not join; `-` for standard
    /// input, so that no process can read its name on the command line.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificate of the coordinator's CA, for a token over https.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Name that people see [default: the host's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Sessions that may run at the same time [default: by cores and memory].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// Label that tasks can ask for; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Folder of this agent's state [default: agent/ in the state folder]. Every agent of a machine
    /// needs its own.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder of adapter manifests, besides ~/.config/kage/adapters and those of the settings;
    /// may be repeated.
    #[arg(long, value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
    /// File with rules for error messages of programs, which come before the built-in ones
    /// [default: failures.toml beside config.toml].
    #[arg(long, value_name = "FILE")]
    pub failures: Option<PathBuf>,
    /// How long running attempts may continue after the first signal to end [default: 60s].
    #[arg(long, alias = "drain-seconds", value_name = "TIME", value_parser = time::wait)]
    #[serde(deserialize_with = "time::written")]
    pub drain: Option<Duration>,
    /// How much the agent may keep on its disk. In files only.
    #[arg(skip)]
    pub disk: DiskSettings,
    /// How its programs are kept apart from the machine. In files only.
    #[arg(skip)]
    pub contain: BoxSettings,
    /// What of the network its programs have. In files only.
    #[arg(skip)]
    pub network: Option<NetworkSettings>,
    /// Limits of its adapters. In files only.
    #[arg(skip)]
    pub adapter: AdapterSettings,
}

impl AgentOptions {
    /// These, and where they say nothing, the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            coordinator: self.coordinator.or(other.coordinator),
            token_file: self.token_file.or(other.token_file),
            ca_file: self.ca_file.or(other.ca_file),
            name: self.name.or(other.name),
            slots: self.slots.or(other.slots),
            label: either(self.label, other.label),
            state: self.state.or(other.state),
            adapters: either(self.adapters, other.adapters),
            failures: self.failures.or(other.failures),
            drain: self.drain.or(other.drain),
            // No flag is for these.
            disk: other.disk,
            contain: other.contain,
            network: other.network,
            adapter: other.adapter,
        }
    }
}
