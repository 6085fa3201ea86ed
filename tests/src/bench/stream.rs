//! `stream`: output from programs through agents and the coordinator, durable there, to a watcher:
//! the throughput, and the latency of a line.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use sha2::{Digest, Sha256};

use crate::bench::adapter::{BenchAdapter, Noise, now_nanos};
use crate::bench::figure::Figure;
use crate::bench::{baseline, fleet};
use crate::cluster::Cluster;
use crate::tasks::{Describe, task};

const AGENTS: u32 = 2;
const SESSIONS: u64 = 8;
const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Noise of each session in MiB.
    pub mib: u64,
    pub lines: u64,
    /// Microseconds between the lines of a session.
    pub pause: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            mib: 64,
            lines: 1000,
            pause: 5000,
        }
    }
}

/// Measures both cases; fails when a byte at the watcher differs.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let slots = u32::try_from(SESSIONS)? / AGENTS;
    let cluster = fleet::start(AGENTS, slots).await?;
    let (_bare, bare) = fleet::bare(cluster.root()).await?;
    let line = latency(&cluster, size).await?;
    let echo = baseline::echo_median(&bare, 500).await?;
    let speed = throughput(&cluster, size).await?;
    let bare_speed = baseline::stream_mib_per_second(&bare, SESSIONS * size.mib * MIB).await?;
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Ok(vec![
        Figure::new(
            "stream",
            "throughput",
            (speed, "MiB/s"),
            ("bare tonic client stream", bare_speed),
        ),
        Figure::new(
            "stream",
            "latency",
            (millis(line), "ms"),
            ("bare tonic unary echo", millis(echo)),
        ),
    ])
}

/// MiB per second from the creation of the task to the last byte at the watcher.
async fn throughput(cluster: &Cluster, size: Size) -> anyhow::Result<f64> {
    let bytes = size.mib * MIB;
    let mut spec = task("noise");
    for seed in 0..SESSIONS {
        spec = spec.session(
            &format!("s{seed}"),
            BenchAdapter::Noise.name(),
            &format!("{seed},{bytes}"),
        );
    }
    let start = Instant::now();
    let mut last = start;
    let mut digests: HashMap<String, (u64, Sha256)> = HashMap::new();
    watch(cluster, spec, |chunk| {
        let (offset, digest) = digests.entry(chunk.session.clone()).or_default();
        ensure!(*offset == chunk.offset, "output has a gap or a repeat at {offset}");
        *offset += chunk.data.len() as u64;
        digest.update(&chunk.data);
        last = Instant::now();
        Ok(())
    })
    .await?;
    let elapsed = last - start;
    for seed in 0..SESSIONS {
        let (received, digest) = digests
            .remove(&format!("s{seed}"))
            .context("a session printed nothing")?;
        ensure!(received == bytes, "{received} of {bytes} bytes arrived");
        let mut noise = Noise::new(seed);
        let mut expected = Sha256::new();
        for _ in 0..bytes / MIB {
            expected.update(noise.take(1 << 20));
        }
        ensure!(digest.finalize() == expected.finalize(), "bytes differ");
    }
    Ok((SESSIONS * size.mib) as f64 / elapsed.as_secs_f64())
}

/// The 99th percentile of the time from printing a line to its arrival at the watcher.
async fn latency(cluster: &Cluster, size: Size) -> anyhow::Result<Duration> {
    let mut spec = task("lines");
    for index in 0..SESSIONS {
        let model = format!("{},{}", size.lines, size.pause);
        spec = spec.session(&format!("s{index}"), BenchAdapter::Lines.name(), &model);
    }
    let mut times = Histogram::<u64>::new(3)?;
    let mut partial: HashMap<String, Vec<u8>> = HashMap::new();
    watch(cluster, spec, |chunk| {
        let now = now_nanos();
        let text = partial.entry(chunk.session.clone()).or_default();
        text.extend_from_slice(&chunk.data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let printed: u64 = std::str::from_utf8(&line)?
                .split(' ')
                .next()
                .context("a line starts with its time")?
                .parse()?;
            times.record(now.saturating_sub(printed))?;
        }
        Ok(())
    })
    .await?;
    ensure!(times.len() == SESSIONS * size.lines, "{} lines arrived", times.len());
    Ok(Duration::from_nanos(times.value_at_quantile(0.99)))
}

/// Runs a task and passes on every piece of output.
async fn watch(
    cluster: &Cluster,
    spec: v1::TaskSpec,
    mut output: impl FnMut(v1::OutputChunk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let id = cluster.create(spec).await;
    let mut responses = cluster.watch(&id, &[v1::OutputStream::Stdout]).await;
    let mut last = None;
    while let Some(response) = responses.message().await? {
        match response.item {
            Some(Item::Output(chunk)) => output(chunk)?,
            Some(Item::Task(task)) => last = Some(*task),
            Some(Item::Event(_)) | None => {}
        }
    }
    let task = last.context("a watcher sees the task")?;
    ensure!(task.state() == v1::TaskState::Succeeded, "the task failed: {task:#?}");
    Ok(())
}
