//! `context`: bytes on the wire from the coordinator to its agents when many sessions share a
//! large base. They are counted by a proxy between them, so the overhead of every protocol is included.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use kage_core::context::Context;
use kage_proto::v1;
use kage_proto::v1::event::Body;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::bench::adapter::{BenchAdapter, Noise};
use crate::bench::figure::Figure;
use crate::bench::fleet;
use crate::blobs;
use crate::cluster::{AgentOptions, Cluster};
use crate::tasks::{Describe, Seen, read_all, task};

const AGENTS: u64 = 2;
const BASE: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub sessions: u64,
    /// Bytes of each session's own context.
    pub delta: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            sessions: 32,
            delta: 4 << 10,
        }
    }
}

/// Measures; fails when a session did not get the base.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut cluster = fleet::coordinator().await?;
    let coordinator = cluster.url().trim_start_matches("http://").parse()?;
    let proxy = Proxy::start(coordinator).await?;
    for index in 1..=AGENTS {
        let mut options = AgentOptions::named(&format!("agent-{index}"));
        options.slots = u32::try_from(size.sessions / AGENTS)?;
        options.coordinator_url = Some(proxy.url());
        cluster.add_agent(options).await;
    }

    let mut noise = Noise::new(1);
    let mut text = |size: usize| hex::encode(noise.take(size / 2));
    let base = Context::parse(format!("{{\"shared\":\"{}\"}}", text(BASE)).as_bytes())?;
    let canonical = base.canonical();
    let mut deltas = 0;
    let mut spec = task("use the context");
    spec.context_base = base.digest().to_string();
    for index in 0..size.sessions {
        spec = spec.session(&format!("s{index}"), BenchAdapter::Nothing.name(), "");
        let delta = format!("{{\"own\":\"{}\"}}", text(size.delta));
        deltas += delta.len() as u64;
        let assignment = spec.assignments.last_mut().context("a session was just added")?;
        assignment.context_delta = delta;
    }
    put(&cluster, &base).await?;

    let before = proxy.to_agents();
    let id = cluster.create(spec).await;
    let seen = read_all(cluster.watch(&id, &[]).await).await;
    let wire = proxy.to_agents() - before;

    let shared = shared_prompts(&seen)?;
    ensure!(
        shared.len() as u64 == size.sessions,
        "not every session says what it was given"
    );
    ensure!(
        shared.iter().all(|digest| *digest == shared[0]) && shared[0] != hex::encode(Sha256::digest("")),
        "sessions were given different bases, or none: {shared:?}"
    );
    let base = canonical.len() as u64;
    let ideal = AGENTS * base + deltas;
    let naive = size.sessions * base + deltas;
    let figure = |baseline: String, value: u64| {
        Figure::new(
            "context",
            "wire bytes",
            (wire as f64, "bytes"),
            (baseline, value as f64),
        )
    };
    Ok(vec![
        figure(
            format!("{AGENTS} agents x base + deltas of {} sessions", size.sessions),
            ideal,
        ),
        figure(
            format!("the whole context to each of {} sessions", size.sessions),
            naive,
        ),
    ])
}

/// Stores the base as a client does: the bytes as a blob, then the context by its digest.
pub(super) async fn put(cluster: &Cluster, base: &Context) -> anyhow::Result<()> {
    let digest = base.digest();
    blobs::put(cluster, &digest, base.canonical().into()).await?;
    let request = v1::PutContextRequest {
        request_id: format!("{:032x}", rand::random::<u128>()),
        project: "default".to_owned(),
        digest: digest.to_string(),
        ..v1::PutContextRequest::default()
    };
    cluster.client().contexts().put_context(request).await?;
    Ok(())
}

/// The digests of the shared part of the prompts that adapters received.
fn shared_prompts(seen: &Seen) -> anyhow::Result<Vec<String>> {
    seen.events
        .iter()
        .filter_map(|event| match event.event.as_ref()?.body.as_ref()? {
            Body::Activity(activity) => Some(&activity.summary),
            _ => None,
        })
        .map(|summary| {
            let (_, digest) = summary.split_once(' ').context("two words")?;
            Ok(digest.to_owned())
        })
        .collect()
}

/// Forwards connections and counts the bytes that flow to the clients.
#[derive(Debug)]
struct Proxy {
    address: SocketAddr,
    to_agents: Arc<AtomicU64>,
    _accepting: JoinSet<std::io::Result<()>>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let to_agents = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&to_agents);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            // Dropped with the proxy, and with it every connection.
            let mut connections = JoinSet::new();
            loop {
                let (agent, _) = listener.accept().await?;
                let coordinator = TcpStream::connect(target).await?;
                agent.set_nodelay(true)?;
                coordinator.set_nodelay(true)?;
                let (agent_reads, agent_writes) = agent.into_split();
                let (coordinator_reads, coordinator_writes) = coordinator.into_split();
                connections.spawn(pass(agent_reads, coordinator_writes, None));
                connections.spawn(pass(coordinator_reads, agent_writes, Some(Arc::clone(&counter))));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            to_agents,
            _accepting: accepting,
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn to_agents(&self) -> u64 {
        self.to_agents.load(Ordering::Relaxed)
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    counter: Option<Arc<AtomicU64>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let size = from.read(&mut buffer).await?;
        if size == 0 {
            return to.shutdown().await;
        }
        if let Some(counter) = &counter {
            counter.fetch_add(size as u64, Ordering::Relaxed);
        }
        to.write_all(&buffer[..size]).await?;
    }
}
