//! A session of the real `claude` program outlives its machine: the program on another machine
//! reads the session file, with the paths of the new place, and continues.

use kage_proto::v1;
use kage_scripted::{Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, task};
use kage_tests::wait::wait_for;
use serde_json::{Value, json};

use crate::checkpoints::{conversations, taken_over};

const MODEL: &str = "claude-sonnet-5-5";

fn bash(command: &str) -> Turn {
    Turn::call("Bash", json!({"command": command, "description": "go on"}))
}

fn script() -> Script {
    let mut last = Turn::say("I fixed the sign.");
    // The machine dies while the model thinks.
    last.faults.push(Fault::Hang);
    Script::new(
        "solver",
        Matcher::model(MODEL),
        [
            // Done twice it would be seen.
            bash("pwd && echo 'the sign is wrong' >> notes.txt"),
            bash(&format!("cat > add.sh <<'END'\n{SOLUTION}END\n")),
            last,
            // The program may add its own message at the interruption.
            Turn::say("I fixed the sign."),
        ],
    )
}

/// The model's tool calls in a conversation, and their results.
fn calls(conversation: &Value) -> Vec<String> {
    let messages = conversation.as_array().unwrap().iter();
    let blocks = messages.filter_map(|message| message["content"].as_array()).flatten();
    blocks
        .filter_map(|block| match block["type"].as_str() {
            Some("tool_use") => block["input"]["command"].as_str().map(str::to_owned),
            Some("tool_result") => Some(block["content"].to_string()),
            Some(_) | None => None,
        })
        .collect()
}

#[tokio::test]
async fn a_killed_agents_claude_session_goes_on_elsewhere() {
    let Some(claude) = programs::claude() else {
        return programs::skip(
            "claude_code_moves",
            "claude is not installed; ./scripts/test installs it",
        );
    };
    let server = ScriptedServer::start(vec![script()]).await.unwrap();
    let mut cluster = Cluster::start().await;
    let agent = |name: &str| AgentOptions::named(name).anthropic(&server.url()).with_path_of(&claude);
    cluster.add_agent(agent("first")).await;
    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("claude", "claude-code", MODEL);
    let id = cluster.create(spec).await;
    wait_for("the last call is made", async || {
        let calls: Vec<_> = conversations(&server).iter().map(calls).collect();
        calls.last().is_some_and(|calls| calls.len() == 4).then_some(())
    })
    .await;
    let first_calls = conversations(&server).len();
    let client = cluster.client();
    wait_for("both edits are kept", async || {
        let request = v1::ListCheckpointsRequest {
            task_id: id.clone(),
            ..v1::ListCheckpointsRequest::default()
        };
        let listed = client.checkpoints().list_checkpoints(request).await.ok()?.into_inner();
        let edits: u64 = listed.checkpoints.iter().map(|taken| taken.files_changed).sum();
        (edits >= 2).then_some(())
    })
    .await;

    let (solver, _) = taken_over(&mut cluster, agent("second"), &id, "claude").await;
    let all = conversations(&server);
    // The program sends the model the conversation of the first machine, and repeats no request of
    // it.
    let (then, since) = all.split_at(first_calls);
    let next = since.first().expect("the second machine called the model");
    let (next, last) = (calls(next), calls(&then[first_calls - 1]));
    assert_eq!(next[0], last[0], "{since:#?}");
    let home = |name: &str| cluster.agent_dir(name).display().to_string();
    assert!(last[1].contains(&home("first")), "it said where it works: {last:?}");
    assert!(
        next[1].contains(&home("second")),
        "and is told where it works now: {next:?}"
    );
    assert!(!since[0].to_string().contains(&home("first")), "{since:#?}");

    let commit = cluster.fetch_result(&repo, &solver);
    let notes = repo.git(&["show", &format!("{commit}:notes.txt")]);
    assert_eq!(
        notes.trim(),
        "the sign is wrong",
        "written on the first machine, and once"
    );
}
