//! The real programs behind the built-in manifests, run side by side by an agent against the scripted
//! server: what they write is verified, their tokens are what the server counted, and a refused key is a
//! refused key with each of them.

use std::path::PathBuf;

use kage_proto::v1;
use kage_scripted::{Answer, ApiError, CallUsage, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};
use kage_tests::tier::Tier;
use serde_json::{Value, json};

/// A real program, and how it is scripted.
pub(crate) struct Cli {
    pub(crate) adapter: &'static str,
    package: Package,
    /// The model of a task, and how its provider knows it.
    pub(crate) model: (&'static str, &'static str),
    /// A model that the provider refuses.
    refused: (&'static str, &'static str),
    /// A call of its shell, or of what else it changes files with.
    pub(crate) shell: fn(&str) -> Turn,
    /// Answers of the model that it makes up before the task, as examples.
    examples: usize,
    /// Whether it tells how much of the input the cache held.
    tells_cache: bool,
}

/// Where a program comes from.
enum Package {
    /// A package of `tests/npm`; people install it under the first name.
    Npm(&'static str, &'static str),
    /// A package of `tests/pip`.
    Pip(&'static str),
}

impl Package {
    /// The version that is pinned.
    fn version(&self) -> String {
        match self {
            Self::Npm(_, name) => {
                let pinned: Value = serde_json::from_str(include_str!("../../npm/package.json")).unwrap();
                let all = ["dependencies", "optionalDependencies"].map(|key| pinned[key][*name].as_str());
                all.into_iter().flatten().next().unwrap().to_owned()
            }
            Self::Pip(name) => {
                let pinned = include_str!("../../pip/requirements.txt");
                let mut lines = pinned.lines().filter_map(|line| line.split_once("=="));
                lines.find(|(found, _)| found == name).unwrap().1.to_owned()
            }
        }
    }

    /// How people install it.
    fn command(&self) -> String {
        match self {
            Self::Npm(name, _) => format!("npm install -g {name}\n"),
            Self::Pip(name) => format!("python3 -m pip install {name} "),
        }
    }
}

impl Cli {
    /// A script of these turns for the model of a task.
    pub(crate) fn script(&self, model: &str, turns: impl IntoIterator<Item = Turn>) -> Script {
        let examples = std::iter::repeat_n(Turn::say("An example."), self.examples);
        let mut turns: Vec<Turn> = turns.into_iter().collect();
        if self.examples > 0 {
            // It gets the files that an answer names, and asks once more.
            turns = vec![turns[0].clone(); 6];
        }
        Script::new(self.adapter, Matcher::model(model), examples.chain(turns))
    }
}

pub(crate) const CLIS: &[Cli] = &[
    Cli {
        adapter: "codex",
        package: Package::Npm("@openai/codex", "@openai/codex"),
        model: ("gpt-6.1-terra", "gpt-6.1-terra"),
        refused: ("gpt-6.1-sol", "gpt-6.1-sol"),
        shell: |command| {
            let call = json!({ "cmd": command });
            Turn::call(
                "exec",
                Value::from(format!("const r = await tools.exec_command({call}); text(r);")),
            )
        },
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "gemini",
        package: Package::Npm("@google/gemini-cli", "@google/gemini-cli"),
        model: ("gemini-2.5-pro", "gemini-2.5-pro"),
        refused: ("gemini-2.5-flash", "gemini-2.5-flash"),
        shell: |command| Turn::call("run_shell_command", json!({"command": command})),
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "opencode",
        package: Package::Npm("opencode-ai", "opencode-ai"),
        model: ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5"),
        refused: ("anthropic/claude-haiku-4-5", "claude-haiku-4-5"),
        shell: |command| Turn::call("bash", json!({"command": command, "description": "fix the sign"})),
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "qwen",
        package: Package::Npm("@qwen-code/qwen-code", "@qwen-code/qwen-code"),
        model: ("qwen3-coder-plus", "qwen3-coder-plus"),
        refused: ("qwen3-coder-flash", "qwen3-coder-flash"),
        shell: |command| {
            let call = json!({"command": command, "description": "fix the sign", "is_background": false});
            Turn::call("run_shell_command", call)
        },
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "copilot",
        package: Package::Npm("@github/copilot", "@github/copilot"),
        model: ("gpt-4.1", "gpt-4.1"),
        refused: ("gpt-4.1-mini", "gpt-4.1-mini"),
        shell: |command| Turn::call("bash", json!({"command": command, "description": "fix the sign"})),
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "kimi",
        package: Package::Npm("@moonshot-ai/kimi-code", "@moonshot-ai/kimi-code"),
        model: ("kimi-k2.5", "kimi-k2.5"),
        refused: ("kimi-k2.6", "kimi-k2.6"),
        shell: |command| Turn::call("Bash", json!({"command": command})),
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "cline",
        package: Package::Npm("cline", "@cline/cli-linux-x64"),
        model: ("cline-1", "cline-1"),
        refused: ("cline-2", "cline-2"),
        shell: |command| Turn::call("run_commands", json!({"commands": [command]})),
        examples: 0,
        tells_cache: true,
    },
    Cli {
        adapter: "aider",
        package: Package::Pip("aider-chat"),
        // Models that it does not know answer with whole files.
        model: ("openai/whole-1", "whole-1"),
        refused: ("openai/whole-2", "whole-2"),
        // It has no shell.
        shell: |_| Turn::say(format!("I fix the sign.\n\nadd.sh\n```\n{SOLUTION}```\n")),
        examples: 3,
        tells_cache: false,
    },
];

/// The programs, or those that are missing.
fn installed() -> Result<Vec<PathBuf>, String> {
    let missing: Vec<_> = CLIS
        .iter()
        .filter(|cli| programs::real(cli.adapter).is_none())
        .collect();
    match missing.as_slice() {
        [] => Ok(CLIS.iter().filter_map(|cli| programs::real(cli.adapter)).collect()),
        [first, ..] => Err(format!(
            "{} is not installed; ./scripts/test installs it",
            first.adapter
        )),
    }
}

/// The shell command that mends the sample. Not all of them take the solution in a shell command: one refuses
/// what looks like a command substitution, and another one an edit in place of a file that it has not read.
const FIX: &str = "sed 's/ - / + /' add.sh > fixed && cat fixed > add.sh && rm fixed";

/// An agent with every program, and a task for all of them.
async fn all(server: &ScriptedServer, path: &std::path::Path, model: fn(&Cli) -> &str) -> (Cluster, v1::Task) {
    let mut cluster = Cluster::start().await;
    let slots = u32::try_from(CLIS.len()).unwrap();
    let options = AgentOptions::named("agent")
        .every_provider(&server.url())
        .with_path_of(path)
        .slots(slots);
    cluster.add_agent(options).await;
    let agents = cluster.agents().await;
    for cli in CLIS {
        let adapter = agents[0]
            .adapters
            .iter()
            .find(|known| known.name == cli.adapter)
            .unwrap();
        let version = cli.package.version();
        assert_eq!(
            (adapter.unavailable.as_str(), adapter.version.contains(&version)),
            ("", true),
            "{adapter:?}"
        );
    }
    let repo = cluster.sample();
    let mut spec = task("make the test pass").on(&repo).verified_by(VERIFY);
    for cli in CLIS {
        spec = spec.session(cli.adapter, cli.adapter, model(cli));
    }
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    (cluster, ended)
}

/// What the server counted for one model.
fn ledger(server: &ScriptedServer, script: &str) -> CallUsage {
    let mut sum = CallUsage::default();
    for request in server.requests_of(script) {
        if let Answer::Reply(usage) = request.answer {
            sum.input += usage.input;
            sum.cache_write_5m += usage.cache_write_5m;
            sum.cache_write_1h += usage.cache_write_1h;
            sum.cache_read += usage.cache_read;
            sum.output += usage.output;
            sum.reasoning += usage.reasoning;
        }
    }
    sum
}

#[tokio::test]
async fn real_programs_solve_a_task_and_their_tokens_are_what_the_provider_counted() {
    let paths = match installed() {
        Ok(paths) => paths,
        Err(missing) => return programs::skip("real_clis", &missing),
    };
    let scripts = CLIS.iter().map(|cli| {
        let turns = [(cli.shell)(FIX), Turn::say("I fixed the sign.")];
        cli.script(cli.model.1, turns)
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (_cluster, ended) = all(&server, &paths[0], |cli| cli.model.0).await;
    for cli in CLIS {
        let session = session(&ended, cli.adapter);
        let answers: Vec<_> = server
            .requests_of(cli.adapter)
            .into_iter()
            .map(|it| it.answer)
            .collect();
        assert_eq!(verdict(session), v1::VerdictKind::Passed, "{session:#?}\n{answers:#?}");
        assert_eq!(session.result.as_ref().unwrap().paths, ["add.sh"], "{}", cli.adapter);
        let (usage, counted) = (session.usage.unwrap(), ledger(&server, cli.adapter));
        let whole = |input: u64, read: u64, five: u64, hour: u64| input + read + five + hour;
        assert_eq!(
            whole(
                usage.input,
                usage.cache_read,
                usage.cache_write_5m,
                usage.cache_write_1h
            ),
            whole(
                counted.input,
                counted.cache_read,
                counted.cache_write_5m,
                counted.cache_write_1h
            ),
            "{}: {usage:?} {counted:?}",
            cli.adapter
        );
        assert_eq!(usage.output, counted.output, "{}: {usage:?} {counted:?}", cli.adapter);
        let read = if cli.tells_cache { counted.cache_read } else { 0 };
        assert_eq!(usage.cache_read, read, "{}: {usage:?} {counted:?}", cli.adapter);
        assert!(counted.output > 0, "{}", cli.adapter);
    }
}

#[tokio::test]
async fn a_refused_key_is_told_by_every_real_program() {
    let paths = match installed() {
        Ok(paths) => paths,
        Err(missing) => return programs::skip("real_clis", &missing),
    };
    let scripts = CLIS.iter().map(|cli| {
        let mut turn = Turn::say("It is never said.");
        let refusal = ApiError::new(401, "authentication_error", "Incorrect API key provided: sk-...ted.");
        turn.faults = vec![Fault::Error(refusal); 40];
        cli.script(cli.refused.1, [turn])
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (_cluster, ended) = all(&server, &paths[0], |cli| cli.refused.0).await;
    for cli in CLIS {
        let session = session(&ended, cli.adapter);
        let failure = session.failure.as_ref().unwrap_or_else(|| panic!("{session:#?}"));
        assert_eq!(failure.kind(), v1::FailureKind::Auth, "{session:#?}");
        assert_eq!(session.attempts, 1, "a refused key is not tried again: {session:#?}");
    }
}

#[test]
fn the_recipes_name_the_programs_that_are_proved_here() {
    let recipes = include_str!("../../../docs/adapters.md");
    for cli in CLIS {
        for command in [cli.package.command(), format!("kage run --with {}", cli.adapter)] {
            assert!(recipes.contains(&command), "docs/adapters.md has no `{command}`");
        }
    }
}

/// Faults that the programs meet in the long tier only: they repeat calls for a while.
#[tokio::test]
async fn real_programs_get_over_a_rate_limit() {
    if Tier::now() != Tier::Long {
        return;
    }
    let paths = match installed() {
        Ok(paths) => paths,
        Err(missing) => return programs::skip("real_clis", &missing),
    };
    let scripts = CLIS.iter().map(|cli| {
        let limited = Fault::rate_limited(std::time::Duration::from_secs(1));
        let turns = [(cli.shell)(FIX).after(limited), Turn::say("I fixed the sign.")];
        cli.script(cli.model.1, turns)
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (_cluster, ended) = all(&server, &paths[0], |cli| cli.model.0).await;
    for cli in CLIS {
        let session = session(&ended, cli.adapter);
        assert_eq!(verdict(session), v1::VerdictKind::Passed, "{session:#?}");
        assert_eq!(
            session.usage.unwrap().output,
            ledger(&server, cli.adapter).output,
            "{session:#?}"
        );
    }
}
