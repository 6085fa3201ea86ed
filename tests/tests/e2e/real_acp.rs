//! Real agents that speak the Agent Client Protocol, side by side against the scripted server: they ask before they
//! change something, are allowed to, and what they write is verified; a refused key is a refused key; one of them is
//! made by two lines of settings.

use std::path::PathBuf;

use kage_proto::v1;
use kage_scripted::{Answer, ApiError, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::VERIFY;
use kage_tests::tasks::{Describe, session, task, verdict};
use serde_json::json;

/// A real agent, and how it is scripted.
struct RealAgent {
    adapter: &'static str,
    program: &'static str,
    /// The model of a task, and how its provider knows it.
    model: (&'static str, &'static str),
    /// A model that the provider refuses.
    refused: (&'static str, &'static str),
    shell: fn(&str) -> Turn,
    /// Whether what it says of tokens is about all of them.
    counts: bool,
}

const AGENTS: &[RealAgent] = &[
    RealAgent {
        adapter: "gemini-acp",
        program: "gemini",
        model: ("gemini-2.5-pro", "gemini-2.5-pro"),
        refused: ("gemini-2.5-flash", "gemini-2.5-flash"),
        shell: |command| Turn::call("run_shell_command", json!({"command": command})),
        counts: true,
    },
    RealAgent {
        adapter: "opencode-acp",
        program: "opencode",
        model: ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5"),
        refused: ("anthropic/claude-haiku-4-5", "claude-haiku-4-5"),
        shell: |command| Turn::call("bash", json!({"command": command, "description": "fix the sign"})),
        counts: false,
    },
];

/// Mends the sample. Not all of them take a command substitution.
const FIX: &str = "sed -i 's/ - / + /' add.sh";

fn installed() -> Result<PathBuf, String> {
    let missing = AGENTS.iter().find(|agent| programs::real(agent.program).is_none());
    match missing {
        Some(agent) => Err(format!(
            "{} is not installed; ./scripts/test installs it",
            agent.program
        )),
        None => programs::real(AGENTS[0].program).ok_or_else(|| "nothing is installed".to_owned()),
    }
}

async fn ended(server: &ScriptedServer, path: &std::path::Path, model: fn(&RealAgent) -> &str) -> (Cluster, v1::Task) {
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .every_provider(&server.url())
        .with_path_of(path)
        .slots(2);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let mut spec = task("make the test pass").on(&repo).verified_by(VERIFY);
    for agent in AGENTS {
        spec = spec.session(agent.adapter, agent.adapter, model(agent));
    }
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    (cluster, ended)
}

#[tokio::test]
async fn real_agents_solve_a_task_over_the_protocol() {
    let path = match installed() {
        Ok(path) => path,
        Err(missing) => return programs::skip("real_acp", &missing),
    };
    let scripts = AGENTS.iter().map(|agent| {
        let turns = [(agent.shell)(FIX), Turn::say("I fixed the sign.")];
        Script::new(agent.adapter, Matcher::model(agent.model.1), turns)
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (_cluster, ended) = ended(&server, &path, |agent| agent.model.0).await;
    for agent in AGENTS {
        let session = session(&ended, agent.adapter);
        let requests = server.requests_of(agent.adapter);
        assert_eq!(
            verdict(session),
            v1::VerdictKind::Passed,
            "{session:#?}\n{:#?}",
            requests.len()
        );
        assert_eq!(session.result.as_ref().unwrap().paths, ["add.sh"], "{}", agent.adapter);
        let (mut input, mut output) = (0, 0);
        for request in requests {
            if let Answer::Reply(usage) = request.answer {
                input += usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h;
                output += usage.output;
            }
        }
        let told = session.usage.unwrap();
        if agent.counts {
            assert_eq!(
                (told.input + told.cache_read, told.output),
                (input, output),
                "{}: {told:?}",
                agent.adapter
            );
        } else {
            assert_eq!((told.input, told.output), (0, 0), "{}: {told:?}", agent.adapter);
            assert!(told.unreported & 1 != 0, "unknown is not 0: {told:?}");
        }
        assert!(output > 0, "{}", agent.adapter);
    }
}

#[tokio::test]
async fn a_refused_key_is_told_by_every_real_agent() {
    let path = match installed() {
        Ok(path) => path,
        Err(missing) => return programs::skip("real_acp", &missing),
    };
    let scripts = AGENTS.iter().map(|agent| {
        let mut turn = Turn::say("It is never said.");
        let refusal = ApiError::new(401, "authentication_error", "Incorrect API key provided: sk-...ted.");
        turn.faults = vec![Fault::Error(refusal); 40];
        Script::new(agent.adapter, Matcher::model(agent.refused.1), [turn])
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (_cluster, ended) = ended(&server, &path, |agent| agent.refused.0).await;
    for agent in AGENTS {
        let session = session(&ended, agent.adapter);
        let failure = session.failure.as_ref().unwrap_or_else(|| panic!("{session:#?}"));
        assert_eq!(failure.kind(), v1::FailureKind::Auth, "{session:#?}");
        assert_eq!(session.attempts, 1, "a refused key is not tried again: {session:#?}");
    }
}
