//! `adapter-overhead`: what an agent adds to a run of the real `claude` against a scripted provider: finding it, the
//! warden, its environment, its files and reading what it says. Beside it the same program with the same
//! arguments, whose output is read and thrown away. The worktree is there before both.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kage_agent::adapters::AdapterConfig;
use kage_agent::adapters::port::{Adapter, AdapterEnd, Reporter, SessionInput};
use kage_agent::process::{AgentEnvironment, Runner};
use kage_core::id::AttemptId;
use kage_core::prompt::Prompt;
use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::bench::figure::Figure;
use crate::bench::tree::median_ms;
use crate::programs;
use crate::root::Root;

/// What a run may take longer, in milliseconds.
const GOAL: f64 = 150.0;
const MODEL: &str = "claude-sonnet-5-5";
const PROMPT: &str = "say that you are done";

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Runs of each kind, of which the median counts.
    pub runs: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { runs: 21 }
    }
}

/// Measures on the file system of temporary files.
///
/// # Errors
/// When `claude` is not installed, or a run fails.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    run_by(size, Runner::this_executable()).await
}

async fn run_by(size: Size, runner: Runner) -> anyhow::Result<Vec<Figure>> {
    let claude = programs::claude().context("claude is not installed; ./scripts/test installs it")?;
    let script = Script::new("overhead", Matcher::model(MODEL), [Turn::say("I am done.")]);
    let server = ScriptedServer::start(vec![script]).await?;
    let place = Place {
        root: Root::new("kage-overhead-"),
        url: server.url(),
        claude,
    };
    let config = AdapterConfig::new(place.environment()?, runner);
    let registry = kage_agent::adapters::load(config).await?;
    let adapter = registry
        .get(&"claude-code".parse()?)
        .context("there is an adapter for claude")?;
    let (mut ours, mut alone) = (Vec::new(), Vec::new());
    // One extra round fills caches, and does not count. The order alternates.
    for round in 0..=size.runs {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                ours.push(place.by_adapter(adapter.as_ref(), round).await?);
            } else {
                alone.push(place.by_hand(round).await?);
            }
        }
    }
    let (ours, alone) = (median_ms(ours.split_off(1)), median_ms(alone.split_off(1)));
    Ok(vec![
        Figure::new("adapter-overhead", "added, p50", (ours - alone, "ms"), ("goal", GOAL)),
        Figure::new("adapter-overhead", "run, p50", (ours, "ms"), ("claude by hand", alone)),
    ])
}

struct Place {
    root: Root,
    /// The provider's address.
    url: String,
    claude: PathBuf,
}

impl Place {
    fn environment(&self) -> anyhow::Result<AgentEnvironment> {
        let folder = self.claude.parent().context("a program is in a folder")?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path)))?;
        Ok(AgentEnvironment::of_this_process()
            .with_path(path)
            .with("ANTHROPIC_BASE_URL", &self.url)
            .with("ANTHROPIC_API_KEY", "scripted"))
    }

    /// A new folder with an empty one for the work in it.
    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.root.path().join(name);
        std::fs::create_dir_all(folder.join("work"))?;
        std::fs::create_dir_all(folder.join("home"))?;
        Ok(folder)
    }

    async fn by_adapter(&self, adapter: &dyn Adapter, round: usize) -> anyhow::Result<Duration> {
        let folder = self.folder(&format!("adapter-{round}"))?;
        let input = SessionInput {
            attempt: AttemptId::from_random(rand::random()),
            model: Some(MODEL.to_owned()),
            prompt: Prompt {
                shared: String::new(),
                own: PROMPT.to_owned(),
            },
            worktree: Some(folder.join("work")),
            ..SessionInput::blank(folder.join("scratch"))
        };
        let (reporter, mut reports) = Reporter::channel(64);
        let start = Instant::now();
        let running = adapter.run(input, reporter, CancellationToken::new());
        let listening = async { while reports.recv().await.is_some() {} };
        let (end, ()) = tokio::join!(running, listening);
        let took = start.elapsed();
        ensure!(matches!(end, AdapterEnd::Done { .. }), "the run ended so: {end:?}");
        Ok(took)
    }

    async fn by_hand(&self, round: usize) -> anyhow::Result<Duration> {
        let folder = self.folder(&format!("hand-{round}"))?;
        let start = Instant::now();
        let output = Command::new(&self.claude)
            .args([
                "-p",
                "--output-format",
                "stream-json",
                "--verbose",
                "--include-partial-messages",
            ])
            .args(["--permission-mode", "bypassPermissions", "--strict-mcp-config"])
            .args([
                "--tools",
                "Bash,Edit,Read,Write,Glob,Grep",
                "--model",
                MODEL,
                "--",
                PROMPT,
            ])
            .env_clear()
            .envs(own(&folder))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("ANTHROPIC_BASE_URL", &self.url)
            .env("ANTHROPIC_API_KEY", "scripted")
            .current_dir(folder.join("work"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let took = start.elapsed();
        ensure!(output.status.success(), "claude failed: {output:?}");
        Ok(took)
    }
}

/// The variables that the adapter sets, too.
fn own(folder: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let home = folder.join("home");
    let flags = [
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
        "DISABLE_AUTOUPDATER",
        "DISABLE_TELEMETRY",
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY",
        "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS",
        "IS_SANDBOX",
    ];
    let config = home.join(".claude");
    [("HOME", home), ("CLAUDE_CONFIG_DIR", config)]
        .into_iter()
        .chain(flags.map(|flag| (flag, PathBuf::from("1"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_is_measured_beside_the_program_alone() {
        if programs::claude().is_none() {
            return programs::skip(
                "adapter-overhead",
                "claude is not installed; ./scripts/test installs it",
            );
        }
        let runner = Runner::Warden(programs::kage());
        let figures = run_by(Size { runs: 1 }, runner).await.unwrap();
        assert_eq!(figures.len(), 2);
        assert!(figures.iter().all(|figure| figure.baseline_value > 0.0));
    }
}
