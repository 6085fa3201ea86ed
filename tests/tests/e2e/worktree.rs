//! A model's file tools stay in the worktree, whatever links a session creates.

use kage_proto::v1;
use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};
use serde_json::{Value, json};

const MODEL: &str = "claude-sonnet-5-5";

#[tokio::test]
async fn a_symlink_out_of_the_tree_is_refused_for_reading_and_writing() {
    let outside = tempfile::tempdir().unwrap();
    let secret = "the secret of another project";
    std::fs::write(outside.path().join("secret.txt"), secret).unwrap();
    let link = format!(
        "ln -s '{}' out && ln -s ../../../../../../../../etc up",
        outside.path().display()
    );
    let server = ScriptedServer::start(vec![Script::new(
        "links",
        Matcher::model(MODEL),
        [
            Turn::call("bash", json!({"command": link})),
            Turn::call("read_file", json!({"path": "out/secret.txt"})),
            Turn::call("write_file", json!({"path": "out/planted.txt", "content": "planted"})),
            Turn::call("read_file", json!({"path": "up/passwd"})),
            Turn::call("bash", json!({"command": "rm out up"})),
            Turn::call("write_file", json!({"path": "add.sh", "content": SOLUTION})),
            Turn::say("done"),
        ],
    )])
    .await
    .unwrap();
    let mut cluster = Cluster::start().await;
    cluster
        .add_agent(AgentOptions::named("agent").anthropic(&server.url()))
        .await;
    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("links", "claude-api", MODEL);
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    assert_eq!(verdict(session(&ended, "links")), v1::VerdictKind::Passed, "{ended:#?}");

    let requests = server.requests_of("links");
    let results: Vec<Value> = requests
        .iter()
        .skip(1)
        .map(|request| last_result(&request.body))
        .collect();
    let refused: Vec<bool> = results.iter().map(|result| result["is_error"] == true).collect();
    assert_eq!(refused, [false, true, true, true, false, false], "{results:#?}");
    let everything = Value::from(results).to_string();
    assert!(!everything.contains(secret) && !everything.contains("root:"));
    assert!(!outside.path().join("planted.txt").exists());
}

/// The tool result that ends a conversation so far.
fn last_result(body: &Value) -> Value {
    let message = body["messages"].as_array().unwrap().last().unwrap();
    message["content"][0].clone()
}
