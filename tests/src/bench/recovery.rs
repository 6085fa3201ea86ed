//! `recovery`: how long work is interrupted when an agent is killed or falls silent, until another
//! one has it; and how long a coordinator with a large store takes to be ready.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use kage_coordinator::Timings;
use kage_coordinator::store::{CancelTask, CreateTask, Request, Store};
use kage_core::fallback::TaskLacks;
use kage_core::id::{Digest, JobId, ProjectId, SessionId, TaskId};
use kage_core::task::{Assignment, Labels, Policy, TaskSpec};
use kage_core::time::Timestamp;
use kage_proto::client::Client;
use kage_proto::v1;
use rustix::process::Signal;

use crate::bench::figure::Figure;
use crate::bench::fleet;
use crate::cluster::{AgentOptions, Cluster};
use crate::tasks::{Describe, create, task};
use crate::wait::wait_for;

const WAITING: &str = "bench-waiting";
const WAITING_MANIFEST: &str = "name = \"bench-waiting\"\ncommand = \"sleep\"\nargs = [\"100000\"]\n";

#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Agents that are killed, and agents that fall silent.
    pub victims: u32,
    /// Sessions in the store of a coordinator that starts.
    pub sessions: u32,
    pub starts: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            victims: 30,
            sessions: 100_000,
            starts: 5,
        }
    }
}

pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let timings = Timings::default();
    let second = Duration::from_secs(1);
    let killed = stand_still(size.victims, Loss::Killed).await?;
    let silent = stand_still(size.victims, Loss::Silent).await?;
    let (empty, full) = starts(size).await?;
    let seconds = |duration: Duration| duration.as_secs_f64();
    Ok(vec![
        Figure::new(
            "recovery",
            "killed p99",
            (seconds(killed), "s"),
            ("goal: grace + 1 s", seconds(timings.grace + second)),
        ),
        Figure::new(
            "recovery",
            "silent p99",
            (seconds(silent), "s"),
            ("goal: lost_after + 1 s", seconds(timings.lost_after + second)),
        ),
        Figure::new("recovery", "ready", (seconds(full), "s"), ("goal: 1 s", 1.0)),
        Figure::new(
            "recovery",
            "ready",
            (seconds(full), "s"),
            ("the same with an empty store", seconds(empty)),
        ),
    ])
}

#[derive(Debug, Clone, Copy)]
enum Loss {
    Killed,
    Silent,
}

/// The 99th percentile of the time from the loss of an agent until another has its work.
async fn stand_still(victims: u32, loss: Loss) -> anyhow::Result<Duration> {
    let mut cluster = fleet::coordinator().await?;
    let client = cluster.client();
    let waiting = |name: &str, slots| {
        AgentOptions::named(name)
            .slots(slots)
            .manifest(WAITING, WAITING_MANIFEST)
    };
    for n in 0..victims {
        cluster.add_agent(waiting(&format!("victim-{n}"), 1)).await;
    }
    let mut tasks = Vec::new();
    for _ in 0..victims {
        tasks.push(create(&client, task("wait").session("only", WAITING, "")).await);
    }
    let mut holders = BTreeMap::new();
    for id in &tasks {
        let running = |task: &v1::Task| task.sessions[0].state() == v1::SessionState::Running;
        let task = cluster.until(id, "runs", running).await;
        holders.insert(task.sessions[0].agent.clone(), id.clone());
    }
    ensure!(holders.len() == tasks.len(), "every victim has work");
    cluster.add_agent(waiting("successor", victims)).await;
    let mut lost = BTreeMap::new();
    for (victim, task) in holders {
        match loss {
            Loss::Killed => drop(cluster.kill_agent(&victim)),
            Loss::Silent => cluster.signal_agent(&victim, Signal::STOP),
        }
        lost.insert(task, Instant::now());
    }
    let mut times = Histogram::<u64>::new(3)?;
    wait_for("every session runs on the successor", async || {
        for task in all_tasks(&client).await? {
            let session = task.sessions.first()?;
            let taken = session.agent == "successor" && session.state() == v1::SessionState::Running;
            if taken && let Some(since) = lost.remove(&task.id) {
                times.record(u64::try_from(since.elapsed().as_millis()).ok()?).ok()?;
            }
        }
        lost.is_empty().then_some(())
    })
    .await;
    Ok(Duration::from_millis(times.value_at_quantile(0.99)))
}

/// Every task, page by page. `None` when the coordinator does not answer.
async fn all_tasks(client: &Client) -> Option<Vec<v1::Task>> {
    let mut tasks = Vec::new();
    let mut request = v1::ListTasksRequest {
        project: "default".to_owned(),
        ..v1::ListTasksRequest::default()
    };
    loop {
        let page = client.tasks().list_tasks(request.clone()).await.ok()?.into_inner();
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            return Some(tasks);
        }
        request.page_token = page.next_page_token;
    }
}

/// The longest start of a coordinator with an empty store, and with a full one.
async fn starts(size: Size) -> anyhow::Result<(Duration, Duration)> {
    let mut cluster = fleet::coordinator().await?;
    let empty = longest(&mut cluster, size.starts).await;
    cluster.kill_coordinator();
    let path = cluster.data_dir().join("kage.db");
    fill(
        &Store::open(&path).context("the store of a dead coordinator can be opened")?,
        size.sessions,
    )
    .await?;
    cluster.up().await;
    let full = longest(&mut cluster, size.starts).await;
    let request = v1::ListTasksRequest {
        project: "default".to_owned(),
        page_size: 1,
        ..v1::ListTasksRequest::default()
    };
    let page = cluster.client().tasks().list_tasks(request).await?.into_inner();
    ensure!(page.tasks.len() == 1, "what was stored is there");
    Ok((empty, full))
}

async fn longest(cluster: &mut Cluster, starts: u32) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..starts {
        cluster.kill_coordinator();
        let begun = Instant::now();
        cluster.up().await;
        longest = longest.max(begun.elapsed());
    }
    longest
}

const PER_TASK: u32 = 50;
/// One of this many tasks still waits; the others have ended.
const WAITS: u128 = 100;

/// Stores sessions with the commands that a coordinator uses.
async fn fill(store: &Store, sessions: u32) -> anyhow::Result<()> {
    let now = Timestamp::from_millis(1_700_000_000_000);
    let request = |kind: &str, n: u128| Request {
        principal: "bench".to_owned(),
        id: format!("{kind}-{n}"),
        payload: Digest::of(&n.to_be_bytes()),
    };
    let mut done = tokio::task::JoinSet::new();
    for n in 0..u128::from(sessions / PER_TASK) {
        let assignments = (0..PER_TASK).map(|i| {
            anyhow::Ok(Assignment {
                name: format!("s{i}").parse()?,
                adapter: WAITING.parse()?,
                model: None,
                context_delta: None,
                requirements: Labels::default(),
                fallbacks: Vec::new(),
                timeout: None,
            })
        });
        let ids = (0..u128::from(PER_TASK)).map(|i| {
            let id = (n << 32) | i;
            (SessionId::from_random(id), JobId::from_random(id))
        });
        let command = CreateTask {
            request: request("create", n),
            task: TaskId::from_random(n),
            spec: TaskSpec {
                project: ProjectId::default(),
                prompt: "stored".to_owned(),
                prompt_blob: None,
                repository: None,
                context_base: None,
                assignments: assignments.collect::<anyhow::Result<_>>()?,
                policy: Policy::default(),
                fresh_baseline: false,
                labels: kage_core::task::Labels::new(),
                environment: kage_core::task::TaskEnvironment::default(),
            },
            origin: None,
            sessions: ids.collect(),
            baseline: None,
            machines: Vec::new(),
            lacks: TaskLacks::default(),
            queue_full: None,
            project_full: None,
            waits_for_agent: false,
            now,
        };
        let cancel = (!n.is_multiple_of(WAITS)).then(|| CancelTask {
            request: request("cancel", n),
            task: TaskId::from_random(n),
            now,
        });
        let store = store.clone();
        done.spawn(async move {
            store.apply(command).await?;
            if let Some(cancel) = cancel {
                store.apply(cancel).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(stored) = done.join_next().await {
        stored??;
    }
    store.close().await;
    Ok(())
}
