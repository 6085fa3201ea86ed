//! Agents that are connected and do nothing: answering heartbeats does not keep their work.

use std::sync::Arc;
use std::time::Duration;

use kage_coordinator::Config;
use kage_core::deadline::Slack;
use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::failure::{Failure, FailureKind};
use kage_core::usage::Usage;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as FromAgent;

use crate::cluster::{Cluster, FakeAgent, Granted, hello, soon, spec};

const SHORT: Duration = Duration::from_millis(300);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn impatient(config: &mut Config) {
    config.patience.slack = Slack {
        least: SHORT,
        most: SHORT,
    };
    config.patience.stop_answer = SHORT;
}

/// Reports that it runs something, and nothing else, until the task is as expected.
async fn heartbeats_until(
    cluster: &Cluster,
    agent: &FakeAgent,
    runs: &Granted,
    task: &str,
    holds: impl Fn(&v1::Task) -> bool,
) -> v1::Task {
    soon("the end of the attempt", async {
        for sequence in 1.. {
            let task = cluster.get(task).await;
            if holds(&task) {
                return task;
            }
            agent
                .say(FromAgent::Heartbeat(v1::Heartbeat {
                    sequence,
                    running: vec![runs.key.clone().into()],
                    hindrance: String::new(),
                }))
                .await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("a task is waited for")
    })
    .await
}

async fn cancel(cluster: &Cluster, task: &str) {
    let request = v1::CancelTaskRequest {
        request_id: "cancel".to_owned(),
        task_id: task.to_owned(),
    };
    cluster.client.tasks().cancel_task(request).await.unwrap();
}

fn ended(task: &v1::Task) -> bool {
    task.state() != v1::TaskState::Running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_agents_only_say_that_they_are_there_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(dir.path(), |config, _| impatient(config)).await;
    let mut spec = spec(&["one"]);
    spec.policy.timeout = SHORT;
    let task = cluster.create(spec).await.id;
    let mut idle = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let first = idle.take().await;
    let usage = Usage {
        input: 5,
        ..Usage::default()
    };
    let used = EventBody::UsageRecorded {
        model: "m".to_owned(),
        usage,
        reported: None,
        metered: true,
        tools: None,
        call: None,
    };
    idle.send_events(&first.key, 1, vec![used]).await;
    idle.acked(1).await;
    let waits = |task: &v1::Task| !task.sessions[0].incidents.is_empty();
    let seen = heartbeats_until(&cluster, &idle, &first, &task, waits).await;
    let said = &seen.sessions[0].incidents[0];
    assert!(format!("{said:?}").contains("the agent did not end it"), "{said:?}");
    // It has lost its authority, and learns so.
    idle.send_events(&first.key, 2, vec![EventBody::Activity("too late".to_owned())])
        .await;
    assert!(idle.rejected().await.contains("ended"));
    // The other agent is asked first, and does as little.
    let mut other = FakeAgent::connect(&cluster, hello(2, 1)).await;
    let second = other.take().await;
    assert_eq!(second.work.attempt, 2);
    let task = heartbeats_until(&cluster, &other, &second, &task, ended).await;
    assert_eq!(task.state(), v1::TaskState::Failed);
    assert_eq!(
        task.sessions[0].usage.unwrap().input,
        5,
        "what was used stays: {task:#?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_is_not_answered_ends_the_attempt_and_a_late_answer_is_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(dir.path(), |config, _| impatient(config)).await;
    let task = cluster.create(spec(&["one"])).await.id;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    cancel(&cluster, &task).await;
    let seen = heartbeats_until(&cluster, &agent, &granted, &task, ended).await;
    assert_eq!(seen.state(), v1::TaskState::Cancelled);
    let stopped = Failure::new(FailureKind::Cancelled, "stopped");
    let late = vec![EventBody::Finished(AttemptOutcome::Failed(stopped))];
    agent.send_events(&granted.key, 1, late).await;
    assert!(agent.rejected().await.contains("ended"));
    assert_eq!(cluster.get(&task).await, seen);
    // Its slot is free.
    let next = cluster.create(spec(&["one"])).await.id;
    let granted = agent.take().await;
    agent.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    assert_eq!(cluster.get(&next).await.state(), v1::TaskState::Succeeded);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_stops_outlive_a_restart_of_the_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    // Time under a lease counts; time without one is given back.
    let cluster = Cluster::start_with(dir.path(), |config, _| config.timings.lease_ttl = 2 * HOUR).await;
    let mut limited = spec(&["one"]);
    limited.policy.timeout = SHORT;
    limited.policy.max_attempts = 1;
    let limited = cluster.create(limited).await.id;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 3)).await;
    let first = agent.take().await;
    let stopped = cluster.create(spec(&["two"])).await.id;
    let second = agent.take().await;
    let unlimited = cluster.create(spec(&["three"])).await.id;
    let third = agent.take().await;
    cancel(&cluster, &stopped).await;
    let running = [first, second, third].map(|granted| granted.key);
    let mut back = agent.hello.clone();
    back.running = running.to_vec();
    cluster.stop().await;

    let cluster = Cluster::start_with(dir.path(), |config, ports| {
        impatient(config);
        // It has to reconnect within that time.
        config.timings.lease_ttl = Duration::from_secs(3);
        let system = Arc::clone(&ports.clock);
        ports.clock = Arc::new(move || system() + HOUR / 4);
    })
    .await;
    let agent = FakeAgent::connect(&cluster, back).await;
    soon("the ends of what was limited and stopped", async {
        for sequence in 1.. {
            if ended(&cluster.get(&stopped).await) && ended(&cluster.get(&limited).await) {
                return;
            }
            let heartbeat = v1::Heartbeat {
                sequence,
                running: running.iter().cloned().map(Into::into).collect(),
                hindrance: String::new(),
            };
            agent.say(FromAgent::Heartbeat(heartbeat)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(cluster.get(&stopped).await.state(), v1::TaskState::Cancelled);
    let limited = cluster.get(&limited).await;
    assert_eq!(limited.state(), v1::TaskState::Failed);
    assert!(
        format!("{:?}", limited.sessions[0]).contains("the agent did not end it"),
        "{limited:?}"
    );
    // Its limit is an hour.
    assert_eq!(cluster.get(&unlimited).await.state(), v1::TaskState::Running);
    cluster.stop().await;
}
