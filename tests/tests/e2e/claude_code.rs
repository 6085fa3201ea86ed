//! The real `claude` program, run by an agent, against the scripted server: the task is solved and
//! verified, and the billed usage is what the server counted.

use std::time::Duration;

use kage_proto::v1;
use kage_scripted::{Answer, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};
use serde_json::{Value, json};

const MODEL: &str = "claude-sonnet-5-5";

#[tokio::test]
async fn the_real_claude_program_solves_a_task() {
    let Some(claude) = programs::claude() else {
        return programs::skip("claude_code", "claude is not installed; ./scripts/test installs it");
    };
    let write = format!("cat > add.sh <<'END'\n{SOLUTION}END\n");
    let server = ScriptedServer::start(vec![Script::new(
        "solver",
        Matcher::model(MODEL),
        [
            Turn::call("Bash", json!({"command": write, "description": "fix the sign"}))
                .after(Fault::rate_limited(Duration::from_secs(1))),
            Turn::say("I fixed the sign."),
        ],
    )])
    .await
    .unwrap();
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .anthropic(&server.url())
        .with_path_of(&claude);
    cluster.add_agent(options).await;
    let agents = cluster.agents().await;
    let adapter = agents[0]
        .adapters
        .iter()
        .find(|adapter| adapter.name == "claude-code")
        .unwrap();
    let pinned: Value = serde_json::from_str(include_str!("../../npm/package.json")).unwrap();
    let pinned = pinned["dependencies"]["@anthropic-ai/claude-code"].as_str().unwrap();
    assert_eq!(
        (adapter.unavailable.as_str(), adapter.version.contains(pinned)),
        ("", true),
        "{adapter:?}"
    );

    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("claude", "claude-code", MODEL);
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    let claude = session(&ended, "claude");
    let answers: Vec<Answer> = server.requests().into_iter().map(|request| request.answer).collect();
    assert_eq!(verdict(claude), v1::VerdictKind::Passed, "{claude:#?}\n{answers:#?}");
    assert_eq!(claude.result.as_ref().unwrap().paths, ["add.sh"]);
    assert!(claude.call_retries >= 1, "its own retry is seen: {claude:#?}");

    let (mut output, mut read) = (0, 0);
    for answer in answers {
        if let Answer::Reply(usage) = answer {
            output += usage.output;
            read += usage.cache_read;
        }
    }
    let usage = claude.usage.unwrap();
    assert_eq!((usage.output, usage.cache_read), (output, read));
    let provenances: Vec<v1::Provenance> = claude.money.iter().map(v1::Money::provenance).collect();
    assert_eq!(provenances, [v1::Provenance::Billed], "{claude:#?}");
}
