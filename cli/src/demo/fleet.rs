//! The processes of the demo: a coordinator and agents, started from this very program and
//! ended with it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use kage_git::private::make_private;
use kage_proto::status::ApiError;
use kage_proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::connect::{self, Access};
use crate::state::StateDir;

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A coordinator and its agents. Dropping it kills the running ones.
#[derive(Debug)]
pub(super) struct Fleet {
    coordinator: Child,
    agents: Vec<Child>,
}

impl Fleet {
    /// Starts everything and waits until every agent is connected.
    pub(super) async fn start(
        state: &StateDir,
        agents: &[&str],
        adapters: &Path,
        env: &[(&str, &str)],
    ) -> anyhow::Result<(Self, Access)> {
        make_private(state.path())?;
        let mut command = this_program(state, "coordinator")?;
        command.args(["coordinator", "--listen", "127.0.0.1:0", "--token-agents", "run,verify"]);
        let coordinator = command.spawn().context("cannot start the coordinator")?;
        let mut fleet = Self {
            coordinator,
            agents: Vec::new(),
        };
        let access = fleet.answer(state).await?;
        // As on machines where all work needs a processor: the sessions are spread over the agents.
        let config = state.path().join("agents.toml");
        std::fs::write(&config, "[adapter.claude-api]\nslots = 0\n")?;
        let token = std::fs::read_to_string(state.token()).context("cannot read the coordinator's token")?;
        for name in agents {
            let mut command = this_program(state, name)?;
            command
                .args(["agent", "run", "--slots", "2", "--name", name])
                .args(["--coordinator", &access.url, "--token-file", "-"])
                .arg("--state")
                .arg(state.path().join(name))
                .arg("--config")
                .arg(&config)
                .arg("--adapters")
                .arg(adapters)
                .envs(env.iter().copied())
                .stdin(Stdio::piped());
            let mut agent = command.spawn().context("cannot start an agent")?;
            if let Some(mut input) = agent.stdin.take() {
                input
                    .write_all(token.as_bytes())
                    .await
                    .context("cannot give an agent its token")?;
            }
            fleet.agents.push(agent);
        }
        fleet.connected(state, &access).await?;
        Ok((fleet, access))
    }

    async fn answer(&mut self, state: &StateDir) -> anyhow::Result<Access> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(access) = connect::running(state).await? {
                return Ok(access);
            }
            self.alive(state, deadline)?;
            sleep(POLL).await;
        }
    }

    async fn connected(&mut self, state: &StateDir, access: &Access) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let list = access
                .client
                .fleet()
                .list_agents(v1::ListAgentsRequest::default())
                .await;
            let agents = list.map_err(ApiError::from)?.into_inner().agents;
            let connected = agents.iter().filter(|a| a.state() == v1::AgentState::Connected).count();
            if connected == self.agents.len() {
                return Ok(());
            }
            self.alive(state, deadline)?;
            sleep(POLL).await;
        }
    }

    fn alive(&mut self, state: &StateDir, deadline: Instant) -> anyhow::Result<()> {
        for child in std::iter::once(&mut self.coordinator).chain(&mut self.agents) {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!(
                    "a process of the demo ended with {status}; logs are in {}",
                    state.path().display()
                );
            }
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "the processes of the demo did not connect within {} s; logs are in {}",
            START_LIMIT.as_secs(),
            state.path().display()
        );
        Ok(())
    }

    /// Ends everything politely: agents first, so that nothing is left undelivered.
    pub(super) async fn stop(mut self) {
        for child in self.agents.iter_mut().chain(std::iter::once(&mut self.coordinator)) {
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
            if let Some(pid) = pid
                && kill_process(pid, Signal::TERM).is_ok()
                && timeout(STOP_LIMIT, child.wait()).await.is_err()
            {
                tracing::warn!("a process of the demo had to be killed");
            }
        }
    }
}

/// Starts this program, with its log in its own file.
fn this_program(state: &StateDir, log: &str) -> anyhow::Result<Command> {
    let log = std::fs::File::create(state.path().join(format!("{log}.log")))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--state-dir")
        .arg(state.path())
        .arg("-v")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // A Ctrl-C at the terminal is for the command; it ends these in order.
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}
