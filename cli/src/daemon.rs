//! Running a coordinator, an agent, or both in this process, until a signal or idleness
//! ends them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kage_agent::adapters::{self, AdapterConfig};
use kage_agent::process::Runner;
use kage_agent::slots;
use kage_core::task::Labels;
use kage_proto::client::{Client, Credentials};
use kage_proto::status::ApiError;
use kage_proto::v1;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::invocation::Invocation;
use crate::output::note;
use crate::settings;

/// A background daemon ends when nothing has run for so long.
const IDLE_LIMIT: Duration = Duration::from_secs(15 * 60);
const IDLE_POLL: Duration = Duration::from_secs(20);

/// What an agent is started with.
#[derive(Debug)]
pub(crate) struct AgentOptions {
    /// Where its coordinator is.
    pub(crate) url: String,
    /// What it shows there.
    pub(crate) credentials: Credentials,
    /// What people call it; `None` = the host's name.
    pub(crate) name: Option<String>,
    /// How many sessions run at once; `None` = by cores and memory.
    pub(crate) slots: Option<u32>,
    /// What tasks can ask for.
    pub(crate) labels: Labels,
    /// Where it keeps its state.
    pub(crate) state_dir: PathBuf,
    /// Folders of manifests besides those of the settings.
    pub(crate) manifest_dirs: Vec<PathBuf>,
}

/// The two steps of a shutdown: finish what runs, then hand it back at once.
#[derive(Debug, Clone, Default)]
struct Shutdown {
    finish: CancellationToken,
    hand_back: CancellationToken,
}

impl Shutdown {
    /// The first SIGTERM or SIGINT asks to finish, the second to hand back.
    async fn by_signals(self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        for step in [self.finish, self.hand_back] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            step.cancel();
        }
        Ok(())
    }
}

/// Runs a coordinator until it is told to end.
pub(crate) async fn coordinator(config: kage_coordinator::Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    let scheme = if config.speaks_tls() { "https" } else { "http" };
    let mut ports = kage_coordinator::Ports::system();
    let (ready, address) = oneshot::channel();
    ports.on_ready = Some(ready);
    let mut tasks = JoinSet::new();
    tasks.spawn(shutdown.clone().by_signals());
    tasks.spawn(async move {
        if let Ok(address) = address.await {
            note(&format!("coordinator: {scheme}://{address}"));
        }
        Ok(())
    });
    kage_coordinator::run(config, ports, shutdown.finish).await?;
    Ok(())
}

/// Runs an agent until it is told to end.
pub(crate) async fn agent(invocation: &Invocation, options: AgentOptions) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(shutdown.clone().by_signals());
    run_agent(invocation, options, &shutdown).await
}

async fn run_agent(invocation: &Invocation, options: AgentOptions, shutdown: &Shutdown) -> anyhow::Result<()> {
    let config = kage_agent::Config {
        state_dir: options.state_dir,
        coordinator_url: options.url,
        credentials: options.credentials,
        name: options.name.unwrap_or_else(host_name),
        slots: options
            .slots
            .or(invocation.settings.agent.slots)
            .unwrap_or_else(slots::of_this_machine),
        labels: options.labels,
        limits: kage_agent::Limits::default(),
    };
    let registry = registry(invocation, options.manifest_dirs).await?;
    let mut ports = kage_agent::Ports::system(registry);
    ports.hand_back = shutdown.hand_back.clone();
    kage_agent::run(config, ports, shutdown.finish.clone()).await?;
    Ok(())
}

/// The adapters of this machine: built in, of the user, of the settings, of the command line.
pub(crate) async fn registry(invocation: &Invocation, more: Vec<PathBuf>) -> anyhow::Result<kage_agent::Registry> {
    let manifest_dirs = settings::user_adapters()
        .into_iter()
        .chain(invocation.settings.agent.adapters.iter().cloned())
        .chain(more)
        .collect();
    let mut config = AdapterConfig::new(std::env::vars_os().collect(), Runner::this_executable());
    config.manifest_dirs = manifest_dirs;
    config.failures = settings::failures()?;
    Ok(adapters::load(config).await?)
}

/// Runs a coordinator and an agent of the same machine.
pub(crate) async fn up(invocation: &Invocation, slots: Option<u32>, background: bool) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    let mut signals = JoinSet::new();
    signals.spawn(shutdown.clone().by_signals());

    // The coordinator ends after the agent, so that the agent can deliver what it has.
    let coordinator_end = CancellationToken::new();
    let mut ports = kage_coordinator::Ports::system();
    let (ready, address) = oneshot::channel();
    ports.on_ready = Some(ready);
    let config = kage_coordinator::Config::new(invocation.state.coordinator());
    let mut coordinator = JoinSet::new();
    coordinator.spawn(kage_coordinator::run(config, ports, coordinator_end.clone()));

    let address = tokio::select! {
        address = address => address.ok(),
        ended = coordinator.join_next() => {
            if let Some(ended) = ended {
                ended??;
            }
            None
        }
    };
    let address = address.context("the coordinator ended before it was ready")?;
    let url = format!("http://{address}");
    let token = std::fs::read_to_string(invocation.state.token()).context("cannot read the coordinator's token")?;
    note(&format!("up: {url}"));
    let client = Client::connect_lazy(&url, &token)?;
    let options = AgentOptions {
        url,
        credentials: Credentials::bearer(&token),
        name: None,
        slots,
        labels: Labels::new(),
        state_dir: invocation.state.agent(),
        manifest_dirs: Vec::new(),
    };
    let agent = run_agent(invocation, options, &shutdown);
    let idle = async {
        if background {
            until_idle(&client).await;
            shutdown.finish.cancel();
        }
        // In the foreground only a signal ends it.
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = agent => result,
        () = idle => Ok(()),
        Some(ended) = coordinator.join_next() => {
            ended??;
            Err(anyhow::anyhow!("the coordinator ended"))
        }
    };
    coordinator_end.cancel();
    while let Some(ended) = coordinator.join_next().await {
        ended??;
    }
    result
}

/// Returns when no task has been running for [`IDLE_LIMIT`].
async fn until_idle(client: &Client) {
    let mut quiet_since = Instant::now();
    loop {
        sleep(IDLE_POLL).await;
        match open_tasks(client).await {
            Ok(0) => {}
            Ok(_) => quiet_since = Instant::now(),
            // Not knowing is no reason to end.
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether anything runs");
                quiet_since = Instant::now();
            }
        }
        if quiet_since.elapsed() >= IDLE_LIMIT {
            tracing::info!("idle, ending");
            return;
        }
    }
}

/// How many of the newest tasks have not ended.
async fn open_tasks(client: &Client) -> Result<usize, ApiError> {
    let request = v1::ListTasksRequest {
        page_size: 100,
        ..Default::default()
    };
    let tasks = client.tasks().list_tasks(request).await?.into_inner().tasks;
    Ok(tasks.iter().filter(|t| t.state() == v1::TaskState::Running).count())
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
