//! Runs a coordinator, an agent, or both in this process, until a signal or idleness ends them.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use kage_agent::adapters::AdapterConfig;
use kage_agent::config::slots;
use kage_agent::contain::ContainSettings;
use kage_agent::identity::state;
use kage_agent::logins::Logins;
use kage_agent::process::handed::Handed;
use kage_agent::process::{AgentEnvironment, Runner};
use kage_agent::{MakeAdapterConfig, Registry};
use kage_coordinator::store::{ReadError, Store};
use kage_core::contain::Containment;
use kage_core::task::Labels;
use kage_git::private::make_private;
use kage_proto::client::Credentials;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::adapters;
use crate::args::{AgentOptions, Up};
use crate::exit::Refusal;
use crate::in_use::{self, InUse};
use crate::invocation::Invocation;
use crate::output::note;
use crate::running;
use crate::service_manager;
use crate::settings::{self, Settings};
use crate::state::StateDir;

/// When a background daemon ends.
const PATIENCE: Patience = Patience {
    limit: Duration::from_secs(15 * 60),
    poll: Duration::from_secs(20),
};
/// How often a daemon looks whether tasks with values of variables are over.
const DROP_VALUES: Duration = Duration::from_secs(2);
/// How old values are that no task has: their client ended before it made one.
const UNCLAIMED: Duration = Duration::from_secs(60 * 60);
/// Files of a person's settings.
const SETTINGS: [&str; 2] = ["config.toml", "token"];
/// The file by which a coordinator's data folder is known.
const DATABASE: &str = "kage.db";
/// How long a daemon that was told to end waits for commands that use it.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// What an agent needs to start.
#[derive(Debug)]
pub(crate) struct AgentStart {
    /// The coordinator's address.
    pub(crate) url: String,
    pub(crate) credentials: Credentials,
    pub(crate) labels: Labels,
    pub(crate) state_dir: PathBuf,
    /// The options of its flags and its file.
    pub(crate) options: AgentOptions,
    /// That file, if there is one.
    pub(crate) config: Option<PathBuf>,
}

/// How long an idle daemon continues, and how often it checks.
#[derive(Debug, Clone, Copy)]
struct Patience {
    limit: Duration,
    poll: Duration,
}

/// The two steps of a shutdown: finish running work, then hand it back at once.
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

/// Runs a coordinator until a signal ends it.
pub(crate) async fn coordinator(config: kage_coordinator::Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    let scheme = if config.speaks_tls() { "https" } else { "http" };
    let mut ports = kage_coordinator::Ports::system();
    let (ready, address) = oneshot::channel();
    let (open, store) = oneshot::channel();
    (ports.on_ready, ports.on_open) = (Some(ready), Some(open));
    let mut tasks = JoinSet::new();
    tasks.spawn(shutdown.clone().by_signals());
    let finish = shutdown.finish.clone();
    tasks.spawn(async move {
        if let (Ok(store), Ok(address)) = (store.await, address.await) {
            let url = format!("{scheme}://{address}");
            note(&format!("coordinator: {url}"));
            service_manager::ready(&url);
            service_manager::living(store, finish).await;
            service_manager::stopping();
        }
        Ok(())
    });
    tokio::select! {
        ended = kage_coordinator::run(config, ports, shutdown.finish) => Ok(ended?),
        () = shutdown.hand_back.cancelled() => anyhow::bail!("stopped by a second signal"),
    }
}

/// Runs an agent until a signal ends it.
pub(crate) async fn agent(invocation: &Invocation, start: AgentStart) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(shutdown.clone().by_signals());
    let registry = registry(invocation, &start.options, &start.state_dir).await?;
    run_agent(invocation, start, registry, None, &shutdown).await
}

async fn run_agent(
    invocation: &Invocation,
    start: AgentStart,
    registry: Registry,
    make_adapters: Option<MakeAdapterConfig>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let hidden = hidden(&invocation.settings, &invocation.state, &start);
    let (options, settings) = (start.options, &invocation.settings.agent);
    let usual = options.disk.or(settings.disk).limits();
    let config = kage_agent::Config {
        state_dir: start.state_dir,
        coordinator_url: start.url,
        credentials: start.credentials,
        name: options.name.unwrap_or_else(host_name),
        slots: options.slots.or(settings.slots).unwrap_or_else(slots::of_this_machine),
        labels: start.labels,
        limits: kage_agent::Limits {
            drain: options.drain.unwrap_or(usual.drain),
            ..usual
        },
        caches: settings.caches.caches(),
        contain: ContainSettings {
            tier: options.contain.tier.or(settings.contain.tier).unwrap_or_default(),
            write: writable(options.contain.write.as_ref().or(settings.contain.write.as_ref())),
            hidden,
        },
        network: options
            .network
            .clone()
            .unwrap_or_else(|| invocation.settings.network.clone()),
        contained: Containment::NOTHING,
    };
    let mut ports = kage_agent::Ports::system(registry);
    ports.make_adapters = make_adapters;
    // Verify and setup leave nothing behind either.
    ports.runner = Runner::this_executable();
    ports.hand_back = shutdown.hand_back.clone();
    kage_agent::run(config, ports, shutdown.finish.clone()).await?;
    Ok(())
}

/// The folders of `[agent.contain] write`, with their full paths.
fn writable(named: Option<&Vec<String>>) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let folders = named
        .into_iter()
        .flatten()
        .map(|name| match (name.strip_prefix("~/"), &home) {
            (Some(rest), Some(home)) => home.join(rest),
            (Some(_) | None, _) => PathBuf::from(name),
        });
    folders
        .map(|folder| std::path::absolute(&folder).unwrap_or(folder))
        .collect()
}

/// What no program of a session may read besides the agent's state: that of the coordinator of this machine,
/// its token, the settings of its user and of this agent, which may have keys, and the files with keys that
/// they name.
fn hidden(settings: &Settings, state: &StateDir, start: &AgentStart) -> Vec<PathBuf> {
    let options = &start.options;
    let files = settings::user_dir().into_iter();
    let files = files.flat_map(|folder| SETTINGS.map(|name| folder.join(name)));
    let tokens = [&options.token_file, &settings.coordinator.token_file];
    // `-` is no file.
    let tokens = tokens.into_iter().flatten().filter(|path| path.as_os_str() != "-");
    let data = tokens.clone().filter_map(|token| data_of(token));
    let named = tokens.chain(&start.config).map(PathBuf::as_path);
    let keys = options.adapter.key_files().chain(settings.adapter.key_files());
    let all = [state.path()].into_iter().chain(named).chain(data).chain(keys);
    // They are named from where the agent was started.
    let all = all.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    all.chain(files).collect()
}

/// The data folder of a coordinator, if that is where this token is.
fn data_of(token: &Path) -> Option<&Path> {
    let folder = token.parent()?;
    folder.join(DATABASE).is_file().then_some(folder)
}

/// The adapters of this machine: built in, of the user, of the settings, of an agent's options.
pub(crate) async fn registry(
    invocation: &Invocation,
    options: &AgentOptions,
    state_dir: &Path,
) -> anyhow::Result<Registry> {
    let environment = AgentEnvironment::of_this_process();
    let config = adapters::config(&invocation.settings, &invocation.state, options, state_dir, environment)?;
    Ok(kage_agent::adapters::load(config).await?)
}

/// Runs a coordinator and an agent of the same machine.
pub(crate) async fn up(invocation: &Invocation, args: Up) -> anyhow::Result<()> {
    make_private(invocation.state.path()).context("cannot make the state directory")?;
    let _held = running::hold(&invocation.state)
        .await
        .context("cannot lock the daemon's file")?
        .ok_or_else(|| Refusal::usage("`kage up` already runs here; `kage down` stops it"))?;
    let shutdown = Shutdown::default();
    let mut signals = JoinSet::new();
    signals.spawn(shutdown.clone().by_signals());

    // A wrong manifest is reported before the coordinator can be found.
    let options = AgentOptions {
        slots: args.slots,
        ..AgentOptions::default()
    };
    let logins = kage_agent::adapters::logins()?;
    let make_adapters = anew(invocation, &options, logins);
    let config = make_adapters(AgentEnvironment::of_this_process()).map_err(Refusal::usage)?;
    let registry = kage_agent::adapters::load(config).await?;
    // The coordinator ends after the agent, so that the agent can deliver its events.
    let coordinator_end = CancellationToken::new();
    let mut ports = kage_coordinator::Ports::system();
    let (ready, address) = oneshot::channel();
    let (open, store) = oneshot::channel();
    (ports.on_ready, ports.on_open) = (Some(ready), Some(open));
    // Nobody else knows this token, and it is good for this agent and this run.
    let token = own_token();
    ports.own_agent = Some(kage_coordinator::OwnAgent {
        id: state::agent_id_in(&invocation.state.agent(), &ports.random)?,
        token: token.clone(),
    });
    let config = kage_coordinator::Config {
        prices: settings::prices(None)?,
        adopt_data: args.adopt_data,
        accept_older: args.accept_older,
        ..kage_coordinator::Config::new(invocation.state.coordinator())
    };
    let mut coordinator = JoinSet::new();
    coordinator.spawn(kage_coordinator::run(config, ports, coordinator_end.clone()));

    let Ok(address) = address.await else {
        // Its error is the cause, so it is the one to report.
        if let Some(ended) = coordinator.join_next().await {
            ended??;
        }
        anyhow::bail!("the coordinator ended before it was ready");
    };
    let store = store.await.context("the coordinator was ready without its store")?;
    let url = format!("http://{address}");
    note(&format!("up: {url}"));
    let start = AgentStart {
        url,
        credentials: Credentials::bearer(&token),
        labels: Labels::new(),
        state_dir: invocation.state.agent(),
        options,
        config: None,
    };
    let agent = run_agent(invocation, start, registry, Some(make_adapters), &shutdown);
    let left = invocation.state.agent();
    let left = [Handed::within(&left), Handed::shells_within(&left)];
    // While the daemon ends, no command uses it.
    let mut ending = None;
    let idle = async {
        if args.background {
            ending = Some(until_idle(&store, &invocation.state, PATIENCE).await);
            shutdown.finish.cancel();
        }
        // In the foreground only a signal ends it.
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = agent => result,
        () = idle => Ok(()),
        never = drop_values(&store, &left, &shutdown.finish) => match never {},
        Some(ended) = coordinator.join_next() => {
            ended??;
            Err(anyhow::anyhow!("the coordinator ended"))
        }
    };
    if ending.is_none() {
        ending = last_calls(&invocation.state).await;
    }
    coordinator_end.cancel();
    while let Some(ended) = coordinator.join_next().await {
        ended??;
    }
    drop(ending);
    result
}

/// 256 random bits.
fn own_token() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

/// Lets short commands that use the daemon get their answers. Long ones, such as following a task,
/// are not awaited: the daemon was told to end.
async fn last_calls(state: &StateDir) -> Option<InUse> {
    match in_use::take(state, LAST_CALLS).await {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether anybody uses the daemon");
            None
        }
    }
}

/// Returns when no project has had any work for this time, and no command uses the daemon or can
/// start to.
async fn until_idle(store: &Store, state: &StateDir, patience: Patience) -> InUse {
    let mut quiet_since = Instant::now();
    loop {
        sleep(patience.poll).await;
        match is_busy(store).await {
            Ok(false) => {}
            Ok(true) => quiet_since = Instant::now(),
            // Not knowing is no reason to end.
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether anything runs");
                quiet_since = Instant::now();
            }
        }
        if quiet_since.elapsed() < patience.limit {
            continue;
        }
        // An earlier command may have created a task.
        if let Ok(Some(taken)) = in_use::take(state, Duration::ZERO).await
            && let Ok(false) = is_busy(store).await
        {
            tracing::info!("idle, ending");
            return taken;
        }
        quiet_since = Instant::now();
    }
}

/// Removes the values of variables that clients left for tasks which are over by now.
async fn drop_values(store: &Store, left: &[Handed; 2], end: &CancellationToken) -> Infallible {
    while end.run_until_cancelled(sleep(DROP_VALUES)).await.is_some() {
        for handed in left {
            let (looked, now) = (handed.clone(), SystemTime::now());
            let looking = tokio::task::spawn_blocking(move || {
                looked.drop_unclaimed(UNCLAIMED, now);
                looked.tasks()
            });
            for task in looking.await.unwrap_or_default() {
                match store.task(task).await {
                    Ok(Some(view)) if !view.task.state.is_terminal() => {}
                    Ok(Some(_) | None) => handed.forget(task),
                    Err(error) => tracing::warn!(%task, %error, "cannot tell whether a task is over"),
                }
            }
        }
    }
    std::future::pending().await
}

/// Makes the adapters of the daemon anew, with the settings and manifests that there are by then.
fn anew(invocation: &Invocation, options: &AgentOptions, logins: Logins) -> MakeAdapterConfig {
    let (state, options) = (invocation.state.clone(), options.clone());
    Arc::new(move |environment| {
        let made = settings::load().map_err(anyhow::Error::from);
        let made = made.and_then(|settings| adapters::config(&settings, &state, &options, &state.agent(), environment));
        let made = made.map(|config| AdapterConfig {
            logins: Some(logins.clone()),
            ..config
        });
        made.map_err(|error| format!("{error:#}"))
    })
}

/// True when any project has waiting or running work. A coordinator's API shows one project at a
/// time; this asks the store, which is in this process.
async fn is_busy(store: &Store) -> Result<bool, ReadError> {
    let counts = store.counts().await?;
    Ok(counts.open() > 0)
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use kage_proto::client::Client;
    use kage_proto::v1;

    use super::*;

    #[test]
    fn every_file_with_a_key_is_hidden_and_so_is_the_folder_of_a_coordinator() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        std::fs::create_dir(place("data")).unwrap();
        std::fs::write(place("data/kage.db"), "").unwrap();
        let mut settings = Settings::default();
        settings.coordinator.token_file = Some(place("data/token"));
        let keys = |name: &str| toml::from_str(&format!("[claude-api]\nkey_file = {:?}", place(name))).unwrap();
        settings.adapter = keys("key");
        let start = AgentStart {
            url: String::new(),
            credentials: Credentials::bearer("x"),
            labels: Labels::new(),
            state_dir: place("agent"),
            options: AgentOptions {
                adapter: keys("other-key"),
                token_file: Some("-".into()),
                ..AgentOptions::default()
            },
            config: Some(place("agent.toml")),
        };
        let state = StateDir::resolve(Some(place("state").as_path())).unwrap();
        let hidden = hidden(&settings, &state, &start);
        for name in ["state", "data", "data/token", "key", "other-key", "agent.toml"] {
            assert!(hidden.contains(&place(name)), "{name}: {hidden:?}");
        }
    }

    #[tokio::test]
    async fn an_idle_daemon_ends_only_when_nobody_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::resolve(Some(dir.path())).unwrap();
        let store = Store::in_memory();
        let command = in_use::share(&state, Duration::ZERO).await.unwrap().unwrap();
        let soon = Patience {
            limit: Duration::ZERO,
            poll: Duration::from_millis(1),
        };
        let mut idle = std::pin::pin!(until_idle(&store, &state, soon));
        let early = tokio::time::timeout(100 * soon.poll, &mut idle).await;
        assert!(early.is_err(), "it ended although a command runs");
        drop(command);
        let ending = idle.await;
        // From here on a command does not find it; the next daemon starts when it has ended.
        assert!(in_use::share(&state, Duration::ZERO).await.unwrap().is_none());
        drop(ending);
        assert!(in_use::share(&state, Duration::ZERO).await.unwrap().is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_of_any_project_keeps_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (ready, address) = oneshot::channel();
        let (open, store) = oneshot::channel();
        let ports = kage_coordinator::Ports {
            on_ready: Some(ready),
            on_open: Some(open),
            ..kage_coordinator::Ports::system()
        };
        let end = CancellationToken::new();
        let config = kage_coordinator::Config::new(dir.path());
        let running = tokio::spawn(kage_coordinator::run(config, ports, end.clone()));
        let url = format!("http://{}", address.await.unwrap());
        let store = store.await.unwrap();
        let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
        let client = Client::connect(&url, &token).await.unwrap();
        assert!(!is_busy(&store).await.unwrap());

        let mut tasks = Vec::new();
        for project in ["", "elsewhere"] {
            let request = v1::CreateTaskRequest {
                request_id: crate::tasks::request_id(),
                spec: Some(v1::TaskSpec {
                    project: project.into(),
                    prompt: "do it".into(),
                    assignments: vec![v1::Assignment {
                        name: "one".into(),
                        adapter: "nobody".into(),
                        ..v1::Assignment::default()
                    }],
                    ..v1::TaskSpec::default()
                }),
                wait_for_agent: true,
                origin: None,
            };
            let created = client.tasks().create_task(request).await.unwrap().into_inner();
            tasks.push(created.task.unwrap().id);
        }
        // No agent has the adapter, so tasks wait forever unless they are cancelled.
        for task_id in tasks {
            assert!(is_busy(&store).await.unwrap());
            let request = v1::CancelTaskRequest {
                request_id: crate::tasks::request_id(),
                task_id,
            };
            client.tasks().cancel_task(request).await.unwrap();
        }
        assert!(!is_busy(&store).await.unwrap());
        end.cancel();
        running.await.unwrap().unwrap();
    }
}
