//! A new version is installed while sessions run: the coordinator is restarted, then the agent is
//! drained and restarted. No session is affected.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::tasks::{Describe, Seen, task};
use kage_tests::wait::wait_for;
use rustix::process::Signal;

/// An agent whose scripts say `one`, wait for a file of their name, and say `two`.
fn options(cluster: &Cluster) -> AgentOptions {
    let script = |name: &str| {
        let gate = cluster.root().join(name);
        format!(
            "cat >/dev/null; echo one; until [ -e '{}' ]; do sleep 0.05; done; echo two",
            gate.display()
        )
    };
    AgentOptions::named("agent")
        .script("first", script("first"))
        .script("second", script("second"))
        .script("third", script("third"))
        .script("fourth", script("fourth"))
}

/// Creates a task and waits until its program runs.
async fn running(cluster: &Cluster, script: &str) -> String {
    let id = cluster.create(task("say it").session("only", SHELL, script)).await;
    let mut seen = Seen::default();
    let mut responses = cluster.watch(&id, &[v1::OutputStream::Stdout]).await;
    while seen.stdout("only").is_empty() {
        seen.add(responses.message().await.unwrap().expect("the task has not ended"));
    }
    id
}

async fn well_ended(cluster: &Cluster, id: &str) {
    let ended = cluster.ended(id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
    assert_eq!(ended.sessions[0].attempts, 1, "it was not run again");
    let mut seen = Seen::default();
    let mut responses = cluster.watch(id, &[v1::OutputStream::Stdout]).await;
    while let Some(response) = responses.message().await.unwrap() {
        seen.add(response);
    }
    assert_eq!(seen.stdout("only"), b"one\ntwo\n");
}

#[tokio::test]
async fn coordinator_and_agent_are_replaced_while_sessions_run() {
    let mut cluster = Cluster::start().await;
    let options = options(&cluster);
    cluster.add_agent(options.clone()).await;
    let id = cluster.connected("agent").await.id;
    let open = |cluster: &Cluster, gate: &str| std::fs::write(cluster.root().join(gate), "").unwrap();

    // The coordinator, while a session runs.
    let first = running(&cluster, "first").await;
    cluster.stop_coordinator().await;
    cluster.connected("agent").await;
    open(&cluster, "first");
    well_ended(&cluster, &first).await;

    // The agent finishes its session and takes no more.
    let second = running(&cluster, "second").await;
    cluster.signal_agent("agent", Signal::TERM);
    wait_for("the agent drains", async || {
        let agents = cluster.agents().await;
        agents
            .iter()
            .any(|agent| agent.state() == v1::AgentState::Draining)
            .then_some(())
    })
    .await;
    let third = cluster.create(task("say it").session("only", SHELL, "third")).await;
    open(&cluster, "second");
    well_ended(&cluster, &second).await;
    assert!(cluster.agent_ended("agent").await.success());

    // It returns as the same agent, and takes the waiting work.
    open(&cluster, "third");
    cluster.add_agent(options).await;
    assert_eq!(cluster.connected("agent").await.id, id);
    well_ended(&cluster, &third).await;

    // Drained by a person, it also leaves when its session is finished.
    let fourth = running(&cluster, "fourth").await;
    let drain = v1::DrainAgentRequest {
        request_id: "drain".into(),
        agent: "agent".into(),
    };
    cluster.client().fleet().drain_agent(drain).await.unwrap();
    open(&cluster, "fourth");
    well_ended(&cluster, &fourth).await;
    assert!(cluster.agent_ended("agent").await.success());
}
