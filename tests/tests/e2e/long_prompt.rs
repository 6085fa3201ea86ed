//! A prompt of 200 KiB, too long for an argument, reaches programs and models completely.

use kage_proto::v1;
use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::programs;
use kage_tests::tasks::{Describe, session, task};
use serde_json::json;

const MODEL: &str = "claude-sonnet-5-5";

fn prompt() -> String {
    let mut prompt = String::from("Read every line.\n");
    let mut line = 0;
    while prompt.len() < 200 << 10 {
        line += 1;
        prompt.push_str(&format!(
            "Line {line} of a long prompt with \"quotes\", $dollars and umlauts: äöü.\n"
        ));
    }
    prompt
}

#[tokio::test]
async fn a_manifest_adapter_gets_a_long_prompt_whole() {
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent").script("keep", "cat > prompt.txt");
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let id = cluster
        .create(task(&prompt()).on(&repo).session("only", SHELL, "keep"))
        .await;
    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{:#?}", ended.sessions);
    let commit = cluster.fetch_result(&repo, session(&ended, "only"));
    let kept = repo.git(&["show", &format!("{commit}:prompt.txt")]);
    assert!(kept.contains(prompt().trim()), "{} bytes arrived", kept.len());
}

#[tokio::test]
async fn claude_code_gets_a_long_prompt_whole() {
    let Some(claude) = programs::claude() else {
        return programs::skip("long_prompt", "claude is not installed; ./scripts/test installs it");
    };
    let server = ScriptedServer::start(vec![Script::new(
        "long",
        Matcher::marker(prompt().trim()),
        [
            Turn::call(
                "Bash",
                json!({"command": "echo done > done.txt", "description": "write a file"}),
            ),
            Turn::say("It is done."),
        ],
    )])
    .await
    .unwrap();
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .anthropic(&server.url())
        .with_path_of(&claude);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let spec = task(&prompt()).on(&repo).session("only", "claude-code", MODEL);
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    let answers: Vec<_> = server.requests().into_iter().map(|request| request.answer).collect();
    assert_eq!(
        ended.state(),
        v1::TaskState::Succeeded,
        "{:#?}\n{answers:#?}",
        ended.sessions
    );
    assert_eq!(session(&ended, "only").result.as_ref().unwrap().paths, ["done.txt"]);
}
