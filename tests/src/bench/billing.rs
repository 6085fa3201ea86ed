//! `billing`: what sessions that share a base are billed for their prompts, by a provider that keeps its documented
//! rules. The baselines are the same prompts without a cache, and of sessions that each cache for themselves.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kage_core::context::Context;
use kage_proto::v1;
use kage_scripted::ScriptedServer;

use crate::bench::figure::Figure;
use crate::bench::{context, fleet};
use crate::billing::{Bills, MODEL, READS, TURNS, bill, script, text};
use crate::cluster::{AgentOptions, Cluster};
use crate::tasks::{Describe, task};

/// The most sessions at once.
const SLOTS: u32 = 10;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Tokens of the context that all sessions have; tools and instructions come to it.
    pub base: usize,
    /// Tokens of each session's own part.
    pub tail: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            base: 19_000,
            tail: 200,
        }
    }
}

/// Measures; fails when a session does, or when the base is written more than once.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut script = script("shared", "bash");
    // First calls that are made at the same time are on their way together.
    script.turns[0].reply.delay = Duration::from_millis(300);
    let server = ScriptedServer::start(vec![script]).await?;
    let mut cluster = fleet::coordinator().await?;
    let options = AgentOptions::named("agent").anthropic(&server.url()).slots(SLOTS);
    cluster.add_agent(options).await;
    let mut figures = Vec::new();
    for (sessions, uncached, apart) in [
        (10, "10 sessions vs uncached", "10 sessions vs self-caching"),
        (3, "3 sessions vs uncached", "3 sessions vs self-caching"),
        (1, "1 session vs uncached", "1 session vs self-caching"),
    ] {
        let bills = billed(&cluster, &server, size, sessions).await?;
        for read in READS {
            let value = (bill(&bills.run, read), "tokens");
            let baseline = |words: &str| format!("{words}, reads at {read} x");
            figures.push(Figure::new(
                "billing",
                apart,
                value,
                (baseline("each caches for itself"), bill(&bills.apart, read)),
            ));
            figures.push(Figure::new(
                "billing",
                uncached,
                value,
                (baseline("without a cache"), bill(&bills.uncached, read)),
            ));
        }
    }
    Ok(figures)
}

/// What a task with so many sessions was billed for.
async fn billed(cluster: &Cluster, server: &ScriptedServer, size: Size, sessions: usize) -> anyhow::Result<Bills> {
    let before = server.requests().len();
    // Another base each time, of which the provider knows nothing.
    let rules = format!("{sessions} sessions\n{}", text(size.base));
    let base = Context::parse(serde_json::json!({ "rules": rules }).to_string().as_bytes())?;
    context::put(cluster, &base).await?;
    let mut spec = task("look at it");
    spec.context_base = base.digest().to_string();
    for session in 0..sessions {
        spec = spec.session(&format!("s{session}"), "claude-api", MODEL);
        let own = format!("session {session}: {}", text(size.tail));
        let assignment = spec.assignments.last_mut().context("a session was just added")?;
        assignment.context_delta = serde_json::json!({ "own": own }).to_string();
    }
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    ensure!(ended.state() == v1::TaskState::Succeeded, "the task failed: {ended:#?}");
    let requests = server.requests().split_off(before);
    ensure!(requests.len() == sessions * TURNS, "{} calls", requests.len());
    let bills = Bills::of(&requests).await?;
    let writes = bills.writes_of(size.base as u64 / 2);
    ensure!(
        bills.sessions == sessions && writes == 1,
        "the base was written {writes} times"
    );
    Ok(bills)
}
