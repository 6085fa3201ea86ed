//! `gate`: how long the coordinator takes to say that a call of a model may be made, while many other calls wait for
//! their turn, and while none does.

use anyhow::Context;
use kage_proto::client::Client;
use kage_proto::v1;
use kage_proto::v1::event::Body;

use crate::bench::adapter::{BenchAdapter, WAITS};
use crate::bench::figure::Figure;
use crate::bench::{baseline, dispatch, fleet};
use crate::tasks::{Describe, create, task};
use crate::wait::wait_for;

const AGENTS: u32 = 4;
/// Sessions of each task that waits.
const PER_TASK: u32 = 50;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Calls that wait.
    pub waiting: u32,
    /// Calls that are asked for meanwhile, one after the other.
    pub calls: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            waiting: 1_000,
            calls: 2_000,
        }
    }
}

/// Measures both cases.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let tasks = size.waiting.div_ceil(PER_TASK);
    let slots = (tasks * PER_TASK).div_ceil(AGENTS) + 1;
    let cluster = fleet::start(AGENTS, slots).await?;
    let (_bare, bare) = fleet::bare(cluster.root()).await?;
    let client = cluster.client();
    let echo = baseline::echo_median(&bare, size.calls).await?.as_secs_f64() * 1_000.0;

    // Every connection is open and has compiled its statements.
    decisions(&client, size.calls.min(100)).await?;
    let alone = decisions(&client, size.calls).await?;
    let mut ids = Vec::new();
    for _ in 0..tasks {
        let names = (0..PER_TASK).map(|n| format!("waits-{n}"));
        let spec = names.fold(task("wait"), |spec, name| {
            spec.session(&name, BenchAdapter::Calls.name(), "0,1")
        });
        ids.push(create(&client, spec).await);
    }
    wait_for("all calls wait", async || {
        for id in &ids {
            let request = v1::GetTaskRequest {
                task_id: id.clone(),
                view: v1::TaskView::Full.into(),
            };
            let task = client.tasks().get_task(request).await.ok()?.into_inner().task?;
            if task.sessions.iter().any(|session| session.activity != WAITS) {
                return None;
            }
        }
        Some(())
    })
    .await;
    let beside = decisions(&client, size.calls).await?;
    let figure = |baseline| Figure::new("gate", "p99 waiting", (beside, "ms"), baseline);
    Ok(vec![
        figure(("goal", 2.0)),
        figure(("with none that waits", alone)),
        figure(("bare tonic unary echo, median", echo)),
    ])
}

/// How long so many calls took to be granted, but for one in a hundred, in milliseconds.
async fn decisions(client: &Client, calls: u32) -> anyhow::Result<f64> {
    let spec = task("ask").session("asks", BenchAdapter::Calls.name(), &format!("{calls},2"));
    let seen = dispatch::run_one(client, spec).await?;
    let mut said = seen
        .events
        .iter()
        .filter_map(|event| match event.event.as_ref()?.body.as_ref()? {
            Body::Activity(activity) => Some(activity.summary.as_str()),
            _ => None,
        });
    let nanos: u64 = said
        .next_back()
        .context("the session tells how long it took")?
        .parse()?;
    Ok(nanos as f64 / 1e6)
}
