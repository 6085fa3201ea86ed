//! What can be typed about the parts that run: coordinators, agents, and the tokens that let
//! people and agents in.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

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

/// `kage agent run`.
#[derive(Debug, Args)]
pub struct AgentRun {
    /// Join the coordinator at HOST:PORT with this token, once; afterwards the agent has a
    /// certificate of its own, and needs only `--coordinator https://HOST:PORT`.
    #[arg(long, value_name = "TOKEN", requires = "address", conflicts_with_all = ["coordinator", "token_file", "label"])]
    pub join: Option<String>,
    /// Where to join.
    #[arg(value_name = "HOST:PORT", requires = "join")]
    pub address: Option<String>,
    /// Address of the coordinator [default: the one on this machine].
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    /// File that holds the coordinator's token, for an agent that did not join.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificate of the coordinator's CA, for a token over https.
    #[arg(long, value_name = "FILE", requires = "token_file")]
    pub ca_file: Option<PathBuf>,
    /// What people call it [default: the host's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Sessions that may run at the same time [default: by cores and memory].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// What tasks can ask for.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Folder of this agent's state [default: agent/ in the state folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder of adapter manifests, besides ~/.config/kage/adapters and those of the settings;
    /// may be repeated.
    #[arg(long, value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
}

/// `kage coordinator`.
#[derive(Debug, Args)]
pub struct Coordinator {
    /// Address to listen on. On all but loopback it speaks TLS, with certificates of its own.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDR")]
    pub listen: std::net::SocketAddr,
    /// Speak TLS on loopback too.
    #[arg(long)]
    pub tls: bool,
    /// Name or address under which other machines reach it; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub public_name: Vec<String>,
    /// Let pages of this origin (https://HOST[:PORT]) call it from a browser; may be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub web_origin: Vec<kage_coordinator::Origin>,
    /// Forget tasks that ended so many days ago [default: 90].
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// Forget the oldest tasks that ended when all of them together have more output and blobs
    /// than so many GiB [default: 50].
    #[arg(long, value_name = "GIB")]
    pub keep_gib: Option<u32>,
    /// Prices of model tokens that replace the built-in ones of the models that it names
    /// [default: prices.toml beside config.toml].
    #[arg(long, value_name = "FILE")]
    pub prices: Option<PathBuf>,
    /// Folder of its data [default: coordinator/ in the state folder].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Take what is there and its database as belonging together, also when they do not say so.
    #[arg(long)]
    pub adopt_data: bool,
}
