//! What can be typed about adapters.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct AdapterCommand {
    #[command(subcommand)]
    pub command: AdapterSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum AdapterSubcommand {
    /// List the adapters of this machine: what they run, in which version, with which login or key, and
    /// where they come from.
    Ls,
    /// Print the manifest of an adapter that runs a program.
    Show {
        /// Name of the adapter.
        name: String,
    },
    /// Run an adapter's program against a scripted provider on this machine, and say what it lacks. No
    /// model is called, and no key of yours is used.
    Check {
        /// Name of the adapter.
        name: String,
        /// The model to ask for [default: the adapter's].
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Agree to what this repository brings that runs programs on this machine: the manifests in its
    /// .kage/adapters and the servers in its .mcp.json, as they are now. A change of them asks again.
    Trust {
        /// Agree to nothing of this repository any more.
        #[arg(long)]
        withdraw: bool,
    },
    /// Write a commented manifest for a program of your own, in ~/.config/kage/adapters.
    New {
        /// Name of the adapter, for --with.
        name: String,
        /// The program: a name in PATH, or a path [default: the adapter's name].
        #[arg(long, value_name = "PROGRAM")]
        program: Option<String>,
    },
}
