//! `tools`: what a model waits for when it reads, edits and searches in a tree of 25,000 files, beside `sed` and
//! ripgrep (`grep -r` where there is none) for the same. The calls are those of a session of `claude-api` whose
//! model follows a script: from the agent's word of the call to the result in the conversation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kage_agent::adapters::AdapterConfig;
use kage_agent::adapters::port::{AdapterEnd, Report, Reporter, SessionInput};
use kage_agent::process::{AgentEnvironment, Runner};
use kage_core::event::{EventBody, OutputStream};
use kage_core::prompt::Prompt;
use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::bench::figure::Figure;
use crate::bench::tree::{Tree, median_ms};
use crate::programs;
use crate::root::Root;

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub files: usize,
    /// Calls of each tool that count.
    pub rounds: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            files: 25_000,
            rounds: 15,
        }
    }
}

const WORDS: [&str; 24] = [
    "let", "fn", "return", "value", "struct", "impl", "match", "error", "index", "self", "buffer", "length", "offset",
    "Some", "None", "Result", "state", "queue", "token", "read", "write", "close", "open", "flush",
];

/// One round: what is looked for, in which file, and what becomes of a line of it.
struct Round {
    file: PathBuf,
    needle: String,
    before: String,
    after: String,
}

/// Measures on the file system of temporary files.
///
/// # Errors
/// When a tool does not do what the program beside it does.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let root = Root::new("kage-tools-");
    let top = root.path().join("tree");
    let mut tree = Tree::generate_as(&top, size.files, 1, source)?;
    // One extra round fills caches, and does not count.
    let mut rounds: Vec<Round> = Vec::new();
    while rounds.len() <= size.rounds {
        let number = rounds.len();
        let round = Round {
            file: tree.any().to_owned(),
            needle: format!("needle_{number}_of_the_hay"),
            before: format!("before_{number}"),
            after: format!("after_{number}"),
        };
        if rounds.iter().any(|other| other.file == round.file) {
            continue;
        }
        let path = top.join(&round.file);
        let mut text = std::fs::read_to_string(&path)?;
        text.push_str(&format!("{}\n{}\n", round.needle, round.before));
        std::fs::write(path, text)?;
        rounds.push(round);
    }
    let (ripgrep, searcher) = match ripgrep() {
        Some(path) => (path, "rg"),
        None => (PathBuf::from("grep"), "grep -r"),
    };
    let mut programs = [Vec::new(), Vec::new(), Vec::new()];
    for round in &rounds {
        let file = round.file.to_str().context("generated names are text")?;
        let (took, read) = timed(&top, Path::new("sed"), &["-n", "1,2000p", file])?;
        ensure!(read.contains(&round.needle), "sed reads what it should not");
        programs[0].push(took);
        // And back, since the tools edit the same line.
        let edit = |from: &str, to: &str| timed(&top, Path::new("sed"), &["-i", &format!("s/{from}$/{to}/"), file]);
        programs[1].push(edit(&round.before, &round.after)?.0);
        edit(&round.after, &round.before)?;
        let arguments: &[&str] = match searcher {
            "rg" => &["--no-config", "--hidden", "--line-number", &round.needle, "."],
            _ => &["-rnI", &round.needle, "."],
        };
        let (took, found) = timed(&top, &ripgrep, arguments)?;
        ensure!(found.contains(file), "{searcher} finds {found}");
        programs[2].push(took);
    }
    let ours = session(&root, &top, &rounds).await?;
    for round in &rounds {
        let text = std::fs::read_to_string(top.join(&round.file))?;
        ensure!(text.contains(&round.after), "{} was not edited", round.file.display());
    }
    let median = |mut times: Vec<Duration>| median_ms(times.split_off(1));
    let [read, edit, search] = ours;
    let [by_sed, edited_by_sed, by_program] = programs;
    Ok(vec![
        Figure::new("tools", "read", (median(read), "ms"), ("sed -n", median(by_sed))),
        Figure::new("tools", "edit", (median(edit), "ms"), ("sed -i", median(edited_by_sed))),
        Figure::new(
            "tools",
            "search",
            (median(search), "ms"),
            (searcher, median(by_program)),
        ),
    ])
}

/// 40 to 120 lines like those of programs.
fn source(random: &mut SmallRng) -> Vec<u8> {
    let mut text = String::new();
    for _ in 0..random.random_range(40..120) {
        for _ in 0..random.random_range(3..10) {
            text.push_str(WORDS.choose(random).copied().unwrap_or_default());
            text.push(' ');
        }
        text.push('\n');
    }
    text.into_bytes()
}

/// The program, or the one that a package of the tests brings along.
fn ripgrep() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let packaged = || {
        let modules = programs::real("codex")?.parent()?.parent()?.to_owned();
        let (package, machine) = match std::env::consts::ARCH {
            "aarch64" => ("codex-linux-arm64", "aarch64"),
            _ => ("codex-linux-x64", "x86_64"),
        };
        let vendor = modules.join("@openai").join(package).join("vendor");
        Some(vendor.join(format!("{machine}-unknown-linux-musl/codex-path/rg")))
    };
    let installed = std::env::split_paths(&path).map(|folder| folder.join("rg"));
    installed.chain(packaged()).find(|path| path.is_file())
}

fn timed(top: &Path, program: &Path, arguments: &[&str]) -> anyhow::Result<(Duration, String)> {
    let start = Instant::now();
    let output = Command::new(program).args(arguments).current_dir(top).output()?;
    let took = start.elapsed();
    ensure!(output.status.success(), "{}: {output:?}", program.display());
    Ok((took, String::from_utf8(output.stdout)?))
}

/// Times of reads, edits and searches of a session that makes these calls.
async fn session(root: &Root, top: &Path, rounds: &[Round]) -> anyhow::Result<[Vec<Duration>; 3]> {
    let calls = rounds.iter().flat_map(|round| {
        [
            ("read_file", json!({"path": round.file})),
            (
                "edit_file",
                json!({"path": round.file, "old": round.before, "new": round.after}),
            ),
            ("search", json!({"pattern": round.needle})),
        ]
    });
    let turns = calls.map(|(tool, input)| Turn::call(tool, input));
    let turns = turns.chain([Turn::say("That was all.")]);
    let server = ScriptedServer::start(vec![Script::new("tools", Matcher::any(), turns)]).await?;
    let environment = AgentEnvironment::of_this_process()
        .with("ANTHROPIC_BASE_URL", &server.url())
        .with("ANTHROPIC_API_KEY", "scripted");
    let registry = kage_agent::adapters::load(AdapterConfig::new(environment, Runner::this_executable())).await?;
    let adapter = registry
        .get(&"claude-api".parse()?)
        .context("there is an adapter for the API")?;
    let mut input = SessionInput {
        prompt: Prompt {
            shared: String::new(),
            own: "measure the tools".to_owned(),
        },
        worktree: Some(top.to_owned()),
        ..SessionInput::blank(root.path().join("scratch"))
    };
    input.limits.timeout = Duration::from_secs(3600);
    let (reporter, mut reports) = Reporter::channel(1);
    let listening = async {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        let mut begun = None;
        while let Some(report) = reports.recv().await {
            match report {
                Report::Event(EventBody::Activity(line)) => {
                    let tool = ["read_file", "edit_file", "search"]
                        .iter()
                        .position(|name| line.starts_with(name));
                    begun = tool.map(|tool| (tool, Instant::now()));
                }
                Report::Output(OutputStream::Transcript, line) => {
                    if let Some((tool, start)) = begun.take() {
                        times[tool].push(start.elapsed());
                        let said: Value = serde_json::from_slice(&line)?;
                        let said = said.to_string();
                        ensure!(!said.contains("\"is_error\":true"), "a tool failed: {said}");
                    }
                }
                Report::Event(_) | Report::Output(..) | Report::Alive => {}
            }
        }
        Ok(times)
    };
    let (end, times) = tokio::join!(adapter.run(input, reporter, CancellationToken::new()), listening);
    ensure!(matches!(end, AdapterEnd::Done { .. }), "the session ended so: {end:?}");
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_tool_is_measured_beside_a_program() {
        let figures = run(Size { files: 60, rounds: 2 }).await.unwrap();
        assert_eq!(figures.len(), 3);
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.ratio > 0.0));
    }
}
