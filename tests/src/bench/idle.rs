//! `fleet`: the cost of connected agents without work, as memory and processor time of the
//! coordinator, and the throughput of `dispatch` beside them.
//!
//! An idle agent behaves as a real one without work: a connection through the client that agents
//! use, with a control session that sends Hello, and heartbeats at the interval of Welcome. Many of
//! them share a process, which is this program with another first argument.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kage_core::checkpoint::Resumes;
use kage_core::fleet::AdapterInfo;
use kage_core::id::{AgentId, BootId};
use kage_proto::client::Client;
use kage_proto::convert::agent::Hello;
use kage_proto::convert::time::duration;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as ToCoordinator;
use kage_proto::v1::connect_response::Message as FromCoordinator;
use kage_proto::{PROTOCOL, PROTOCOL_MIN};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::bench::figure::Figure;
use crate::bench::usage;
use crate::bench::{dispatch, fleet};
use crate::cluster::{AgentOptions, Cluster};
use crate::process::{Daemon, Launch};
use crate::wait::wait_for;

/// The first argument that makes this program a group of idle agents.
pub const CROWD: &str = "serve-idle";
/// The adapter of idle agents, which no task asks for.
const ADAPTER: &str = "bench-idle";
const CROWD_SIZE: u32 = 250;
/// Agents of a process that connect at the same time.
const CONNECTING: usize = 16;
/// Messages waiting for a connection, as in an agent.
const OUTBOUND: usize = 1024;
/// Working agents in the last case.
const WORKERS: u32 = 2;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub agents: u32,
    /// How long their heartbeats are measured.
    pub watched: Duration,
    /// Sessions of each round of `dispatch`.
    pub sessions: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            agents: 1000,
            watched: Duration::from_secs(30),
            sessions: 5000,
        }
    }
}

/// Measures all cases; fails when an agent loses its connection.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut cluster = fleet::coordinator().await?;
    let url = cluster.url().to_owned();
    let (resting, beating) = {
        let coordinator = cluster.coordinator_pid();
        let (resting, crowd) = settle(&cluster, &url, coordinator, size.agents).await?;
        all_connected(&cluster, size.agents).await?;
        let beating = watch(coordinator, size.watched).await?;
        all_connected(&cluster, size.agents).await?;
        disperse(&cluster, crowd).await;
        (resting, beating)
    };
    let (bare_resting, bare_beating) = {
        let (bare, _client) = fleet::bare(cluster.root()).await?;
        let url = std::fs::read_to_string(cluster.root().join(fleet::BARE_ENDPOINT))?;
        let (resting, _crowd) = settle(&cluster, &url, bare.pid(), size.agents).await?;
        (resting, watch(bare.pid(), size.watched).await?)
    };

    for index in 1..=WORKERS {
        let slots = u32::try_from(dispatch::IN_FLIGHT)? / WORKERS;
        cluster
            .add_agent(AgentOptions::named(&format!("worker-{index}")).slots(slots))
            .await;
    }
    let client = cluster.client();
    // Every connection is open and has compiled its statements.
    dispatch::throughput(&client, dispatch::IN_FLIGHT * 4).await?;
    // Rounds without them before and after, since a database with more content is slower.
    let first = dispatch::throughput(&client, size.sessions).await?;
    let crowd = gather(&cluster, &url, 0..size.agents).await?;
    all_connected(&cluster, size.agents).await?;
    let beside = dispatch::throughput(&client, size.sessions).await?;
    all_connected(&cluster, size.agents).await?;
    disperse(&cluster, crowd).await;
    let last = dispatch::throughput(&client, size.sessions).await?;
    Ok(vec![
        Figure::new(
            "fleet",
            "rss per agent",
            (resting, "bytes"),
            ("bare tonic, the same connections", bare_resting),
        ),
        Figure::new(
            "fleet",
            "heartbeat cpu",
            (beating, "% of a core"),
            ("bare tonic, the same messages", bare_beating),
        ),
        Figure::new(
            "fleet",
            "dispatch beside",
            (beside, "sessions/s"),
            ("dispatch without them", f64::midpoint(first, last)),
        ),
    ])
}

/// Connects the agents, and returns with them the bytes that one more of them costs: memory that a
/// server needs once, such as the pages of its database, is in use when a tenth are connected.
async fn settle(cluster: &Cluster, url: &str, server: u32, agents: u32) -> anyhow::Result<(f64, Vec<Daemon>)> {
    let few = agents / 10;
    let mut crowd = gather(cluster, url, 0..few).await?;
    let before = usage::of(server)?.resident;
    crowd.extend(gather(cluster, url, few..agents).await?);
    let after = usage::of(server)?.resident;
    Ok((after.saturating_sub(before) as f64 / f64::from(agents - few), crowd))
}

/// Per cent of one core that a process uses in this time.
async fn watch(pid: u32, time: Duration) -> anyhow::Result<f64> {
    let (start, before) = (Instant::now(), usage::of(pid)?);
    tokio::time::sleep(time).await;
    let busy = usage::of(pid)?.processor - before.processor;
    Ok(busy.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// Starts the idle agents in as few processes as possible, and waits for all of them.
async fn gather(cluster: &Cluster, url: &str, agents: Range<u32>) -> anyhow::Result<Vec<Daemon>> {
    let mut crowd = Vec::new();
    let mut first = agents.start;
    while first < agents.end {
        let count = CROWD_SIZE.min(agents.end - first);
        let ready = cluster.root().join(format!("idle-{first}-ready"));
        let _absent = std::fs::remove_file(&ready);
        let arguments: [OsString; 11] = [
            CROWD.into(),
            "--coordinator".into(),
            url.into(),
            "--token-file".into(),
            cluster.data_dir().join("token").into(),
            "--first".into(),
            first.to_string().into(),
            "--count".into(),
            count.to_string().into(),
            "--ready".into(),
            ready.clone().into(),
        ];
        let launch = Launch {
            name: format!("idle-{first}"),
            program: std::env::current_exe()?,
            arguments: arguments.into(),
            environment: Default::default(),
            log: cluster.root().join(format!("idle-{first}.log")),
        };
        let mut daemon = launch.start().context("idle agents start")?;
        wait_for("the idle agents are connected", async || {
            let ended = daemon.ended();
            assert!(ended.is_none(), "they ended ({ended:?}):\n{}", daemon.log());
            ready.exists().then_some(())
        })
        .await;
        crowd.push(daemon);
        first += count;
    }
    Ok(crowd)
}

/// Ends the idle agents, and waits until the coordinator has noticed.
async fn disperse(cluster: &Cluster, crowd: Vec<Daemon>) {
    drop(crowd);
    wait_for("the coordinator has noticed", async || {
        let agents = cluster.agents().await;
        let gone = agents.iter().filter(|agent| is_idle(agent));
        gone.into_iter()
            .all(|agent| agent.state() != v1::AgentState::Connected)
            .then_some(())
    })
    .await;
}

async fn all_connected(cluster: &Cluster, wanted: u32) -> anyhow::Result<()> {
    let agents = cluster.agents().await;
    let connected = agents
        .iter()
        .filter(|agent| is_idle(agent) && agent.state() == v1::AgentState::Connected);
    let count = connected.count();
    ensure!(
        count == usize::try_from(wanted)?,
        "{count} of {wanted} idle agents are connected"
    );
    Ok(())
}

fn is_idle(agent: &v1::Agent) -> bool {
    agent.name.starts_with("idle-")
}

/// Runs this many idle agents until it is killed; writes a file when all of them are connected.
pub async fn serve(url: &str, token: &str, agents: Range<u32>, ready: &Path) -> anyhow::Result<()> {
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let (said, mut welcomed) = mpsc::channel::<()>(1);
    let mut running = JoinSet::new();
    let count = agents.len();
    for index in agents {
        let idle = Idle {
            url: url.to_owned(),
            token: token.to_owned(),
            name: format!("idle-{index}"),
            id: AgentId::from_random(u128::from(index) + 1),
        };
        running.spawn(idle.run(Arc::clone(&connecting), said.clone()));
    }
    let mut present = 0;
    loop {
        tokio::select! {
            Some(()) = welcomed.recv() => {
                present += 1;
                if present == count {
                    std::fs::write(ready, b"")?;
                }
            }
            Some(ended) = running.join_next() => ended??,
        }
    }
}

struct Idle {
    url: String,
    token: String,
    name: String,
    id: AgentId,
}

impl Idle {
    /// Connects as an agent does, and stays connected.
    async fn run(self, connecting: Arc<Semaphore>, welcomed: mpsc::Sender<()>) -> anyhow::Result<()> {
        let turn = connecting.acquire().await?;
        let control = Client::connect(&self.url, &self.token).await?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        outbound.try_send(request(ToCoordinator::Hello(self.hello()?.into())))?;
        let mut inbound = control
            .agent()
            .connect(ReceiverStream::new(messages))
            .await?
            .into_inner();
        let Some(FromCoordinator::Welcome(welcome)) = inbound.message().await?.and_then(|first| first.message) else {
            bail!("the first message is no welcome");
        };
        drop(turn);
        welcomed.send(()).await?;

        let interval = duration(welcome.heartbeat_interval.unwrap_or_default());
        // Real agents start at different moments, and so do their heartbeats.
        let spread = interval.mul_f64(f64::from(u8::try_from(self.id.as_bits() % 251)?) / 251.0);
        let mut beats = tokio::time::interval_at(Instant::now() + spread, interval);
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    sequence += 1;
                    let beat = v1::Heartbeat {
                        sequence,
                        ..v1::Heartbeat::default()
                    };
                    outbound.try_send(request(ToCoordinator::Heartbeat(beat)))?;
                }
                message = inbound.message() => {
                    let message = message?.context("the control session ended")?;
                    if let Some(FromCoordinator::Offer(_)) = message.message {
                        bail!("nobody asked for an adapter that does nothing");
                    }
                }
            }
        }
    }

    fn hello(&self) -> anyhow::Result<Hello> {
        Ok(Hello {
            agent: self.id,
            boot: BootId::from_random(self.id.as_bits()),
            protocols: PROTOCOL_MIN..=PROTOCOL,
            name: self.name.clone(),
            slots: 4,
            labels: [("os".to_owned(), "linux".to_owned())].into(),
            adapters: vec![AdapterInfo {
                name: ADAPTER.parse()?,
                version: "1".to_owned(),
                unavailable: None,
                resumes: Resumes::None,
                access: None,
                slots: 0,
                hears: false,
            }],
            running: Vec::new(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            answers_pings: false,
            machine: None,
            contained: kage_core::contain::Containment::NOTHING,
            context_deltas: 1,
        })
    }
}

const fn request(message: ToCoordinator) -> v1::ConnectRequest {
    v1::ConnectRequest { message: Some(message) }
}
