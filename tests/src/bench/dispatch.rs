//! `dispatch`: how many sessions the system can hand out, run and settle, durably, when running one
//! costs nothing; and how long a single one takes to reach an agent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use kage_proto::client::Client;
use kage_proto::v1;
use kage_proto::v1::event::Body;

use crate::bench::adapter::{BenchAdapter, now_nanos};
use crate::bench::figure::Figure;
use crate::bench::{baseline, fleet};
use crate::cluster::Cluster;
use crate::tasks::{Describe, Seen, create, task};

const AGENTS: u32 = 2;
pub(crate) const IN_FLIGHT: usize = 64;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub sessions: usize,
    /// Sessions one at a time.
    pub alone: usize,
    pub baseline: Duration,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            sessions: 20_000,
            alone: 500,
            baseline: Duration::from_secs(3),
        }
    }
}

/// Measures both cases; fails when a session differs from a real one.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let slots = u32::try_from(IN_FLIGHT)? / AGENTS;
    let cluster = fleet::start(AGENTS, slots).await?;
    let (_bare, bare) = fleet::bare(cluster.root()).await?;
    let client = cluster.client();

    same_as_real(&cluster, &client).await?;

    // Every connection is open and has compiled its statements.
    throughput(&client, IN_FLIGHT * 4).await?;
    let echoes = baseline::echoes_per_second(&bare, IN_FLIGHT, size.baseline).await?;
    let sessions = throughput(&client, size.sessions).await?;
    let directory = cluster.root().to_owned();
    let commits =
        tokio::task::spawn_blocking(move || baseline::commits_per_second(&directory, size.baseline)).await??;

    let accepted = latency(&client, size.alone).await?;
    let echo = baseline::echo_median(&bare, u32::try_from(size.alone)?).await?;
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Ok(vec![
        Figure::new(
            "dispatch",
            "throughput",
            (sessions, "sessions/s"),
            ("bare tonic unary echo, 64 in flight", echoes),
        ),
        Figure::new(
            "dispatch",
            "throughput",
            (sessions, "sessions/s"),
            ("SQLite FULL one-row commits", commits),
        ),
        Figure::new(
            "dispatch",
            "latency",
            (millis(accepted), "ms"),
            ("bare tonic unary echo", millis(echo)),
        ),
    ])
}

fn spec() -> v1::TaskSpec {
    task("nothing").session("only", BenchAdapter::Nothing.name(), "")
}

/// Sessions per second with [`IN_FLIGHT`] of them created and not settled at any time.
pub(crate) async fn throughput(client: &Client, sessions: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    stream::iter(0..sessions)
        .map(|_| async {
            let seen = run_one(client, spec()).await?;
            ensure!(count_finished(&seen) == 1, "a session ends once: {seen:#?}");
            Ok(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    Ok(sessions as f64 / start.elapsed().as_secs_f64())
}

/// The median time from before CreateTask is called until the adapter runs, which is after the
/// agent has accepted and the coordinator has granted the lease.
async fn latency(client: &Client, sessions: usize) -> anyhow::Result<Duration> {
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..sessions {
        let submitted = now_nanos();
        let seen = run_one(client, spec()).await?;
        let started = seen
            .events
            .iter()
            .find_map(|event| match event.event.as_ref()?.body.as_ref()? {
                Body::Activity(activity) => activity.summary.split(' ').next()?.parse::<u64>().ok(),
                _ => None,
            })
            .context("the adapter says when it was started")?;
        times.record(started.saturating_sub(submitted))?;
    }
    Ok(Duration::from_nanos(times.value_at_quantile(0.5)))
}

/// Creates a task and reads everything about it until it has succeeded.
pub(crate) async fn run_one(client: &Client, spec: v1::TaskSpec) -> anyhow::Result<Seen> {
    let id = create(client, spec).await;
    let request = v1::WatchTaskRequest {
        task_id: id,
        follow: true,
        ..v1::WatchTaskRequest::default()
    };
    let mut responses = client.tasks().watch_task(request).await?.into_inner();
    let mut seen = Seen::default();
    while let Some(response) = responses.message().await? {
        seen.add(response);
    }
    let task = seen.task.as_ref().context("a watcher sees the task")?;
    ensure!(task.state() == v1::TaskState::Succeeded, "the task failed: {task:#?}");
    Ok(seen)
}

fn count_finished(seen: &Seen) -> usize {
    let finished = |event: &&v1::SessionEvent| {
        let body = event.event.as_ref().and_then(|event| event.body.as_ref());
        matches!(body, Some(Body::Finished(_)))
    };
    seen.events.iter().filter(finished).count()
}

/// Asserts that a session that does nothing leaves the same events and the same rows as one that
/// really runs a program, and was fenced by one attempt like it. The adapters' own activities are
/// left out: ours reports one more than a program that prints nothing.
async fn same_as_real(cluster: &Cluster, client: &Client) -> anyhow::Result<()> {
    let real = task("nothing").session("only", fleet::REAL, "");
    let mut traces = Vec::new();
    for spec in [real, spec()] {
        let before = rows(cluster)?;
        let seen = run_one(client, spec).await?;
        let after = rows(cluster)?;
        let said = i64::try_from(seen.events.iter().filter(|event| is_activity(event)).count())?;
        let added: BTreeMap<String, i64> = after
            .into_iter()
            .map(|(table, count)| {
                let own = if table == "events" { said } else { 0 };
                let added = count - before.get(&table).copied().unwrap_or_default() - own;
                (table, added)
            })
            .filter(|(_, added)| *added != 0)
            .collect();
        let events = seen.events.iter().filter(|event| !is_activity(event));
        let events: Vec<String> = events.map(kind).collect();
        let attempts: Vec<u32> = seen
            .task
            .iter()
            .flat_map(|task| task.sessions.iter().map(|session| session.attempts))
            .collect();
        traces.push((events, added, attempts));
    }
    ensure!(
        traces[0] == traces[1],
        "a session that does nothing is not like a real one: {traces:#?}"
    );
    Ok(())
}

fn is_activity(event: &v1::SessionEvent) -> bool {
    let body = event.event.as_ref().and_then(|event| event.body.as_ref());
    matches!(body, Some(Body::Activity(_)))
}

fn kind(event: &v1::SessionEvent) -> String {
    let body = event.event.as_ref().and_then(|event| event.body.as_ref());
    match body {
        Some(Body::PhaseChanged(phase)) => format!("{:?}", phase.phase()),
        other => format!("{other:?}").split('(').take(2).collect::<Vec<_>>().join("("),
    }
}

/// Rows by table, read directly from the coordinator's database.
fn rows(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, i64>> {
    let path = cluster.data_dir().join("kage.db");
    let database = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut tables = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let names = tables.query_map([], |row| row.get::<_, String>(0))?;
    names
        .map(|name| {
            let name = name?;
            let count = database.query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |row| row.get(0))?;
            Ok((name, count))
        })
        .collect()
}
