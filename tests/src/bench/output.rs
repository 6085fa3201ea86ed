//! `output`: a program that prints 1 GiB. How much memory it costs the agent, and how fast the agent takes it,
//! keeps it and delivers it, beside the same program whose output is read from a pipe and thrown away.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

use crate::bench::adapter::Noise;
use crate::bench::figure::Figure;
use crate::bench::{fleet, usage};
use crate::cluster::{AgentOptions, Cluster};
use crate::tasks::{Describe, task};

/// What the agent may need more while it takes the output, in MiB.
const GOAL: f64 = 32.0;
const MIB: u64 = 1 << 20;
/// The size of the file that the program prints again and again.
const PIECE: u64 = 16 * MIB;
const ADAPTER: &str = "bench-print";
/// A program that prints nothing.
const QUIET: &str = "bench-quiet";
/// How often the agent's memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub mib: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { mib: 1024 }
    }
}

/// Measures on the file system of temporary files.
///
/// # Errors
/// When the task does not end well, or bytes are missing.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    run_on(size, fleet::coordinator().await?).await
}

async fn run_on(size: Size, mut cluster: Cluster) -> anyhow::Result<Vec<Figure>> {
    let piece = cluster.outside().join("noise");
    let bytes = PIECE.min(size.mib * MIB);
    std::fs::write(&piece, Noise::new(1).take(usize::try_from(bytes)?))?;
    let script = format!(
        "i=0; while [ $i -lt {} ]; do cat {}; i=$((i+1)); done",
        size.mib * MIB / bytes,
        piece.display()
    );
    let manifest = format!("name = {ADAPTER:?}\ncommand = 'sh'\nargs = ['-c', '{script}']\n");
    let agent = cluster
        .add_agent(
            AgentOptions::named("agent")
                .manifest(ADAPTER, manifest)
                .manifest(QUIET, format!("name = {QUIET:?}\ncommand = 'true'\n")),
        )
        .await;
    // What every session needs is there before it is measured.
    let quiet = cluster.create(task("nothing").session("quiet", QUIET, "")).await;
    cluster.ended(&quiet).await;
    let bare = pipe(&script, size.mib * MIB)?;
    let before = usage::of(agent)?.resident;
    let (took, most) = session(&cluster, agent, size.mib * MIB).await?;
    let speed = |took: Duration| size.mib as f64 / took.as_secs_f64();
    let grown = most.saturating_sub(before) as f64 / MIB as f64;
    Ok(vec![
        Figure::new("output", "rss growth", (grown, "MiB"), ("goal", GOAL)),
        Figure::new(
            "output",
            "throughput",
            (speed(took), "MiB/s"),
            ("a bare pipe", speed(bare)),
        ),
    ])
}

/// The program alone: its output is read as it comes.
fn pipe(script: &str, bytes: u64) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()?;
    let mut output = child.stdout.take().context("it has a pipe")?;
    let (mut read, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            more => read += more as u64,
        }
    }
    ensure!(child.wait()?.success() && read == bytes, "{read} of {bytes} bytes came");
    Ok(start.elapsed())
}

/// How long the program takes as a session, until all is stored, and the most memory that the agent had meanwhile.
async fn session(cluster: &Cluster, agent: u32, bytes: u64) -> anyhow::Result<(Duration, u64)> {
    let start = Instant::now();
    let id = cluster.create(task("print").session("print", ADAPTER, "")).await;
    let mut most = 0;
    let mut ticks = tokio::time::interval(LOOK);
    let ended = {
        let ended = cluster.ended(&id);
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => break ended,
                _ = ticks.tick() => most = most.max(usage::of(agent)?.resident),
            }
        }
    };
    let took = start.elapsed();
    ensure!(
        ended.state() == v1::TaskState::Succeeded,
        "the task ended so: {ended:#?}"
    );
    let mut responses = cluster.watch(&id, &[v1::OutputStream::Stdout]).await;
    let mut kept = 0;
    while let Some(response) = responses.message().await? {
        if let Some(Item::Output(chunk)) = response.item {
            kept += chunk.data.len() as u64;
        }
    }
    ensure!(kept == bytes, "{kept} of {bytes} bytes were kept");
    Ok((took, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_and_speed_are_measured_on_all_of_the_bytes() {
        let figures = run_on(Size { mib: 8 }, Cluster::start().await).await.unwrap();
        assert_eq!(figures.len(), 2);
        assert!(figures[1].value > 0.0 && figures[1].baseline_value > 0.0);
    }
}
