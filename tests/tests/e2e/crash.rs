//! The coordinator is killed while output flows, and started again on its state: a watcher that
//! resumes from its cursor has every byte once.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::tasks::{Describe, Seen, task};
use kage_tests::wait::{poll, wait_for};

const LINES: usize = 60_000;
const BEFORE: usize = 100;

fn expected() -> Vec<u8> {
    (1..=LINES)
        .flat_map(|line| format!("line {line} of the output of a program\n").into_bytes())
        .collect()
}

#[tokio::test]
async fn a_coordinator_killed_mid_output_loses_and_repeats_nothing() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let print = |from: usize, to: usize| format!("seq -f 'line %.0f of the output of a program' {from} {to}");
    let script = format!(
        "cat >/dev/null\n{}\nuntil [ -e '{}' ]; do sleep 0.05; done\n{}\n",
        print(1, BEFORE),
        gate.display(),
        print(BEFORE + 1, LINES),
    );
    cluster
        .add_agent(AgentOptions::named("agent").script("print", script))
        .await;
    let id = cluster.create(task("print").session("only", SHELL, "print")).await;

    let mut seen = Seen::default();
    let mut responses = cluster.watch(&id, &[v1::OutputStream::Stdout]).await;
    while seen.stdout("only").is_empty() {
        seen.add(responses.message().await.unwrap().expect("the task has not ended"));
    }
    std::fs::write(&gate, "").unwrap();
    // Now it flows: the agent has more than the coordinator has.
    while seen.stdout("only").len() < 64 << 10 {
        seen.add(responses.message().await.unwrap().expect("the task has not ended"));
    }
    cluster.crash_coordinator().await;
    // Data already on its way to this watcher still counts.
    while let Ok(Some(response)) = responses.message().await {
        seen.add(response);
    }

    let client = cluster.client();
    let watched = poll(async || {
        let request = v1::WatchTaskRequest {
            task_id: id.clone(),
            cursor: seen.cursor.clone(),
            output: vec![v1::OutputStream::Stdout.into()],
            follow: true,
            ..v1::WatchTaskRequest::default()
        };
        let mut responses = client.tasks().watch_task(request).await.ok()?.into_inner();
        while let Ok(Some(response)) = responses.message().await {
            seen.add(response);
        }
        let ended = seen
            .task
            .as_ref()
            .is_some_and(|task| task.state() != v1::TaskState::Running);
        ended.then_some(())
    })
    .await;
    assert!(watched.is_some(), "the task ends: {:#?}", seen.task);
    let task = seen.task.as_ref().unwrap();
    assert_eq!(task.state(), v1::TaskState::Succeeded, "{task:#?}");
    assert_eq!(task.sessions[0].attempts, 1, "a restart is only a long disconnect");
    let expected = expected();
    assert_eq!(seen.stdout("only").len(), expected.len());
    assert!(seen.stdout("only") == expected, "bytes differ");
    let numbers: Vec<u64> = seen
        .events
        .iter()
        .map(|event| event.event.as_ref().unwrap().seq)
        .collect();
    assert_eq!(
        numbers,
        (1..=numbers.len() as u64).collect::<Vec<_>>(),
        "no event is lost or repeated"
    );
}

#[tokio::test]
async fn a_coordinator_that_is_stopped_politely_comes_back_with_its_agents() {
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent").script("print", "cat >/dev/null; echo hello");
    cluster.add_agent(options).await;
    let first = cluster.create(task("print").session("only", SHELL, "print")).await;
    cluster.ended(&first).await;
    cluster.stop_coordinator().await;
    cluster.connected("agent").await;
    let second = cluster.create(task("print").session("only", SHELL, "print")).await;
    let ended = cluster.ended(&second).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
    let listed = wait_for("both tasks are listed", async || {
        let request = v1::ListTasksRequest {
            project: "default".to_owned(),
            ..v1::ListTasksRequest::default()
        };
        let response = cluster.client().tasks().list_tasks(request).await.ok()?;
        Some(response.into_inner().tasks)
    })
    .await;
    let ids: Vec<&str> = listed.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, [second.as_str(), first.as_str()], "newest first");
}
