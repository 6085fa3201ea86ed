//! What can be typed about the parts that run: coordinators, agents, and the tokens that let
//! people and agents in.

use clap::{Args, Subcommand, ValueEnum};

use super::daemons::AgentRun;

/// `kage up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Stay in the background and end when there has been nothing to do for a while.
    #[arg(long)]
    pub background: bool,
    /// Sessions that may run here at the same time [default: by cores and memory].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// Take the data of this machine's coordinator and its database as belonging together, also
    /// when they do not say so.
    #[arg(long)]
    pub adopt_data: bool,
}

/// `kage down`.
#[derive(Debug, Args)]
pub struct Down {
    /// Also while tasks have not ended: what runs is handed back, and goes on after the next start.
    #[arg(long)]
    pub force: bool,
}

/// `kage agent`.
#[derive(Debug, Args)]
pub struct AgentCommand {
    /// What about agents.
    #[command(subcommand)]
    pub command: AgentSubcommand,
}

/// `kage agent run|ls|cordon|uncordon|drain|revoke`.
#[derive(Debug, Subcommand)]
pub enum AgentSubcommand {
    /// Run an agent on this machine.
    Run(AgentRun),
    /// List agents.
    Ls,
    /// Give an agent no new work until `uncordon`, also after restarts. What runs goes on.
    Cordon {
        /// Name or id of the agent.
        agent: String,
    },
    /// Give a cordoned agent work again.
    Uncordon {
        /// Name or id of the agent.
        agent: String,
    },
    /// Let an agent finish what it runs and leave. It takes work again when it is started.
    Drain {
        /// Name or id of the agent.
        agent: String,
    },
    /// Shut an agent that joined out for good: its certificate is good for nothing any more.
    Revoke {
        /// Name or id of the agent.
        agent: String,
    },
}

/// `kage token`.
#[derive(Debug, Args)]
pub struct TokenCommand {
    /// What about tokens.
    #[command(subcommand)]
    pub command: TokenSubcommand,
}

/// `kage token create|ls|revoke`.
#[derive(Debug, Subcommand)]
pub enum TokenSubcommand {
    /// Make a token and print it, this once.
    Create(TokenCreate),
    /// List the tokens of people.
    Ls,
    /// Take a token of a person back.
    Revoke {
        /// Id of the token.
        token: String,
    },
}

/// `kage token create`.
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// What its holder may do: `agent` lets one agent join, within ten minutes.
    #[arg(long, value_enum)]
    pub role: TokenRole,
    /// What an agent that joins with it carries.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// The only project it is good for [default: for an agent the default project, for a
    /// person all].
    #[arg(long)]
    pub project: Option<String>,
    /// Who or what a person's token is for.
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
    /// All that, and look after agents and tokens.
    Admin,
}
