//! What can be typed about the parts that run: coordinators, agents, and the tokens that let
//! people and agents in.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kage_core::access::Capabilities;

use super::daemons::AgentRun;
use crate::settings::time;

#[derive(Debug, Args)]
pub struct Up {
    /// Run in the background, and end after a quarter of an hour without work.
    #[arg(long)]
    pub background: bool,
    /// Sessions that may run here at the same time [default: by cores and memory].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// Use the data folder and the database of this machine's coordinator together, although they do
    /// not name the same store.
    #[arg(long)]
    pub adopt_data: bool,
    /// Use a database that is older than the data beside it, such as a copy that was put back: what
    /// was acknowledged since is lost.
    #[arg(long)]
    pub accept_older: bool,
}

#[derive(Debug, Args)]
pub struct Down {
    /// Also stop while tasks have not ended: running sessions are handed back and continue after the
    /// next start.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct AgentCommand {
    #[command(subcommand)]
    pub command: AgentSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum AgentSubcommand {
    /// Run an agent on this machine.
    Run(Box<AgentRun>),
    /// List agents.
    Ls,
    /// Give an agent no new work until `uncordon`, even after restarts. Running sessions continue.
    Cordon {
        /// Name or id of the agent.
        agent: String,
    },
    /// Give a cordoned agent work again.
    Uncordon {
        /// Name or id of the agent.
        agent: String,
    },
    /// Let an agent finish its running sessions and end. It takes work again after its next start.
    Drain {
        /// Name or id of the agent.
        agent: String,
    },
    /// Shut out an agent that joined, permanently: its certificate is no longer accepted.
    Revoke {
        /// Name or id of the agent.
        agent: String,
    },
}

#[derive(Debug, Args)]
pub struct TokenCommand {
    #[command(subcommand)]
    pub command: TokenSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenSubcommand {
    /// Create a token and print it; it is not shown again.
    Create(TokenCreate),
    /// List the tokens of people.
    Ls,
    /// Revoke the token of a person, or a join token: agents that joined with it stay.
    Revoke {
        /// Id of the token; of a join token, the part before the last.
        token: String,
    },
}

/// Which coordinator commands use.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LoginCommand {
    #[command(subcommand)]
    pub command: Option<LoginSubcommand>,
    #[command(flatten)]
    pub login: Login,
}

#[derive(Debug, Subcommand)]
pub enum LoginSubcommand {
    /// List the coordinators that were logged in to.
    Ls,
    /// Use one of them from now on; KAGE_LOGIN=NAME does so for one command.
    Use {
        /// Its name, or `local` for the coordinator of this machine.
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct Login {
    /// Address of the coordinator: https://HOST:7443.
    pub url: Option<String>,
    /// Name for it [default: its host].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// File with the token; `-` reads standard input [default: it is asked for].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Copy of the certificate of its CA: `tls/ca.pem` of its data folder.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The same certificate as `kage token create` prints it.
    #[arg(long, value_name = "TEXT", conflicts_with = "ca_file")]
    pub ca: Option<String>,
    /// Project of the tasks [default: the default project].
    #[arg(long, value_name = "PROJECT")]
    pub project: Option<String>,
}

#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Rights of its holder; `agent` lets agents join.
    #[arg(long, value_enum)]
    pub role: TokenRole,
    /// Label of the agents that join with it; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// How many agents may join with it [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub uses: Option<u32>,
    /// How long agents may join with it, at most 720h [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = time::limit)]
    pub ttl: Option<Duration>,
    /// What agents that join with it may be given to do: `run` (sessions), `verify` (checks of
    /// results), or `run,verify` [default: run,verify].
    #[arg(long, value_name = "WORK")]
    pub can: Option<Capabilities>,
    /// The only project that it gives access to [default: for an agent the default project, for a
    /// person all projects].
    #[arg(long)]
    pub project: Option<String>,
    /// Name of the person or program that gets the token.
    #[arg(long, default_value = "")]
    pub name: String,
}

/// What the holder of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// Join as an agent.
    Agent,
    /// Read.
    View,
    /// Read, create and stop tasks.
    Submit,
    /// All that, and manage agents and tokens.
    Admin,
}
