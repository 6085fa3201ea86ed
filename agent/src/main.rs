//! The agent as a program of its own: reads its arguments, waits for signals, sets the
//! exit code. Everything else is [`kage_agent::run`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use kage_agent::adapters::{self, AdapterConfig};
use kage_agent::config::slots;
use kage_agent::identity::enrolment;
use kage_agent::process::{Runner, warden_main_if_asked};
use kage_agent::{Config, Limits, Ports, RunError};
use kage_core::task::Labels;
use kage_proto::client::{Credentials, PemFile};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Many threads make and drop small values all the time; the system's allocator is slower at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit codes of an agent that cannot work as things are, and of one that may not, as `kage`'s.
const USAGE: u8 = 2;
const DENIED: u8 = 5;

/// Works on sessions for a coordinator.
#[derive(Debug, Parser)]
#[command(name = "kage-agent", version)]
struct Arguments {
    /// Address of the coordinator, such as http://127.0.0.1:7443.
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// File that holds the coordinator's token; without it the agent shows the certificate
    /// that it got when it joined (`kage agent run --join`).
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the certificate of the coordinator's CA, for a token over https.
    #[arg(long, value_name = "FILE", requires = "token_file")]
    ca_file: Option<PathBuf>,
    /// Where the agent keeps its state. Every agent of a machine has its own.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// What people call it; the host's name when absent.
    #[arg(long)]
    name: Option<String>,
    /// How many attempts run at once [default: by cores and memory].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// A label that tasks may require; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A folder with adapter manifests; may be repeated.
    #[arg(long, value_name = "DIR")]
    adapters: Vec<PathBuf>,
    /// What the words of failures mean, before what the program knows; `failures.toml` of
    /// the user's settings when absent.
    #[arg(long, value_name = "FILE")]
    failures: Option<PathBuf>,
    /// Seconds that running attempts get to finish after the first signal.
    #[arg(long, default_value_t = Limits::default().drain.as_secs())]
    drain_seconds: u64,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("a label is KEY=VALUE".to_owned()),
    }
}

impl Arguments {
    fn config(self) -> anyhow::Result<Config> {
        let state_dir = match self.state {
            Some(dir) => dir,
            None => default_state_dir()?,
        };
        let credentials = match self.token_file {
            Some(file) => {
                let token = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read the token file {}", file.display()))?;
                let ca = self.ca_file.map(|file| {
                    PemFile::read(&file).with_context(|| format!("cannot read the CA file {}", file.display()))
                });
                Credentials {
                    ca: ca.transpose()?,
                    ..Credentials::bearer(&token)
                }
            }
            None => enrolment::stored(&state_dir)?
                .context("this agent has not joined: give --token-file, or join with `kage agent run --join`")?,
        };
        Ok(Config {
            state_dir,
            coordinator_url: self.coordinator,
            credentials,
            name: self.name.unwrap_or_else(host_name),
            slots: self.slots.unwrap_or_else(slots::of_this_machine),
            labels: self.labels.into_iter().collect::<Labels>(),
            limits: Limits {
                drain: Duration::from_secs(self.drain_seconds),
                ..Limits::default()
            },
        })
    }
}

/// A folder that a variable names.
fn from(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// A file of the user's settings, where `kage` looks for it too.
fn user_file(name: &str) -> Option<PathBuf> {
    let settings = from("XDG_CONFIG_HOME").or_else(|| Some(from("HOME")?.join(".config")))?;
    Some(settings.join("kage").join(name))
}

fn default_state_dir() -> anyhow::Result<PathBuf> {
    let base = if let Some(dir) = from("KAGE_STATE_DIR") {
        dir
    } else if let Some(dir) = from("XDG_STATE_HOME") {
        dir.join("kage")
    } else if let Some(home) = from("HOME") {
        home.join(".local/state/kage")
    } else {
        bail!("HOME is not set; say where the agent keeps its state with --state");
    };
    Ok(base.join("agent"))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn main() -> ExitCode {
    warden_main_if_asked();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "kage_agent=info,warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            match error.downcast_ref() {
                Some(RunError::ShutOut { .. }) => ExitCode::from(DENIED),
                Some(error) if error.is_usage() => ExitCode::from(USAGE),
                Some(_) | None => ExitCode::FAILURE,
            }
        }
    }
}

#[tokio::main]
async fn start(arguments: Arguments) -> anyhow::Result<()> {
    let (manifests, failures) = (arguments.adapters.clone(), arguments.failures.clone());
    let config = arguments.config()?;
    let runner = Runner::this_executable();
    let mut adapters = AdapterConfig::new(std::env::vars_os().collect(), runner.clone());
    adapters.manifest_dirs = manifests;
    adapters.kept_out.push(config.state_dir.clone());
    if let Some(file) = failures.or_else(|| user_file("failures.toml")) {
        adapters.failures = adapters::read_failures(&file)?;
    }
    if let Some(file) = user_file("config.toml") {
        adapters = adapters.with(adapters::read_settings(&file)?);
    }
    let mut ports = Ports::system(adapters::load(adapters).await?);
    ports.runner = runner;
    let shutdown = CancellationToken::new();
    let hand_back = ports.hand_back.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let running = kage_agent::run(config, ports, shutdown.clone());
    tokio::pin!(running);
    loop {
        tokio::select! {
            result = &mut running => return result.map_err(anyhow::Error::from),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            hand_back.cancel();
        }
        shutdown.cancel();
    }
}
