//! Control sessions: who gets what, and what happens when somebody goes.

use std::time::Duration;

use kage_core::event::AttemptOutcome;
use kage_core::failure::{Failure, FailureKind};
use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as FromAgent;
use kage_proto::v1::connect_response::Message as ToAgent;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

async fn until(cluster: &Cluster, task: &str, what: &str, holds: impl Fn(&v1::Task) -> bool) -> v1::Task {
    soon(what, async {
        loop {
            let task = cluster.get(task).await;
            if holds(&task) {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_the_token_is_refused_and_repeated_calls_have_one_effect() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let stranger = Client::connect(&format!("http://{}", cluster.address), "wrong")
        .await
        .unwrap();
    let refused = stranger.tasks().list_tasks(v1::ListTasksRequest::default()).await;
    assert_eq!(refused.map_err(ApiError::from).unwrap_err(), ApiError::Unauthenticated);

    let request = |id: &str, prompt: &str| {
        let mut spec = spec(&["one"]);
        spec.prompt = prompt.into();
        v1::CreateTaskRequest {
            request_id: id.to_owned(),
            spec: Some(spec.into()),
            wait_for_agent: true,
        }
    };
    let mut tasks = cluster.client.tasks();
    let first = tasks
        .create_task(request("r1", "a"))
        .await
        .unwrap()
        .into_inner()
        .task
        .unwrap();
    let again = tasks
        .create_task(request("r1", "a"))
        .await
        .unwrap()
        .into_inner()
        .task
        .unwrap();
    assert_eq!(first.id, again.id);
    let conflict = tasks.create_task(request("r1", "b")).await.map_err(ApiError::from);
    assert!(matches!(conflict, Err(ApiError::Conflict { .. })));
    let nameless = tasks.create_task(request("", "a")).await.map_err(ApiError::from);
    assert_eq!(nameless.unwrap_err().reason(), "INVALID_ARGUMENT");
    let listed = tasks
        .list_tasks(v1::ListTasksRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.tasks.len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_many_bytes_travels_as_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut long = spec(&["one"]);
    long.prompt = "word ".repeat(40_000);
    let task = cluster.create(long.clone()).await;
    assert_eq!(cluster.get(&task.id[..8]).await.spec.unwrap().prompt, long.prompt);
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let kage_proto::convert::agent::WorkKind::Session(work) = granted.work.kind else {
        panic!("a session job");
    };
    let kage_proto::convert::agent::PromptText::Blob(digest) = work.prompt else {
        panic!("a long prompt goes by digest");
    };
    let path = format!("GET /v1/blobs/default/{digest}");
    let (status, body) = cluster.http(&path, &[("authorization", &cluster.bearer())], b"").await;
    assert_eq!((status, body.len()), (200, long.prompt.len()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_offer_goes_to_another_agent_and_a_lost_agent_costs_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut unwilling = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let offer = unwilling.offer().await;
    unwilling
        .say(FromAgent::Refuse(v1::Refuse {
            offer_id: offer.offer_id,
            reason: "no room".into(),
        }))
        .await;
    let mut willing = FakeAgent::connect(&cluster, hello(2, 1)).await;
    let granted = willing.take().await;
    assert_eq!(granted.work.attempt, 1, "a refusal is free");
    drop(willing);
    // After the grace the job waits again, and the other agent is asked again.
    let granted = unwilling.take().await;
    assert_eq!(granted.work.attempt, 2);
    unwilling.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    let task = cluster.get(&task.id).await;
    assert_eq!((task.state(), task.sessions[0].attempts), (v1::TaskState::Succeeded, 2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_session_is_stopped_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one", "two"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let request = v1::CancelTaskRequest {
        request_id: "c1".into(),
        task_id: task.id.clone(),
    };
    let cancelled = cluster.client.tasks().cancel_task(request).await.unwrap();
    assert_eq!(cancelled.into_inner().task.unwrap().state(), v1::TaskState::Running);
    let ToAgent::Stop(stop) = agent.next().await else {
        panic!("the agent is told to stop");
    };
    assert_eq!(stop.attempt_id, granted.key.attempt.to_string());
    let failure = Failure::new(FailureKind::Cancelled, "stopped");
    agent.finish(&granted.key, 1, AttemptOutcome::Failed(failure)).await;
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Cancelled);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_not_forgotten_by_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let mut back = agent.hello.clone();
    back.running = vec![granted.key.clone()];
    let request = v1::CancelTaskRequest {
        request_id: "c1".into(),
        task_id: task.id,
    };
    cluster.client.tasks().cancel_task(request).await.unwrap();
    cluster.stop().await;
    let cluster = Cluster::start(dir.path()).await;
    let mut agent = FakeAgent::connect(&cluster, back).await;
    assert!(agent.welcome.stop.is_empty(), "it may still tell its end");
    let ToAgent::Stop(stop) = agent.next().await else {
        panic!("the agent is told to stop");
    };
    assert_eq!(stop.attempt_id, granted.key.attempt.to_string());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_never_heard_of_its_grant_is_given_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    agent.take().await;
    // The same start comes back without it: it cannot be going on.
    let mut back = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let status = agent.end().await.expect("the older connection is told why");
    assert_eq!(ApiError::from(status).reason(), "CONFLICT");
    let granted = back.take().await;
    assert_eq!(granted.work.attempt, 2);
    back.say(FromAgent::Heartbeat(v1::Heartbeat {
        sequence: 5,
        running: vec![granted.key.clone().into()],
        hindrance: "its disk is full".to_owned(),
    }))
    .await;
    let ToAgent::HeartbeatAck(ack) = back.next().await else {
        panic!("a heartbeat is answered");
    };
    assert_eq!((ack.sequence, ack.renewed), (5, vec![granted.key.attempt.to_string()]));
    let session = &cluster.get(&task.id).await.sessions[0];
    assert_eq!(session.agent, "fake-1");
    assert_eq!(session.waiting, "fake-1 cannot go on: its disk is full");
    back.say(FromAgent::Heartbeat(v1::Heartbeat {
        sequence: 6,
        running: vec![granted.key.clone().into()],
        ..v1::Heartbeat::default()
    }))
    .await;
    back.next().await;
    assert_eq!(cluster.get(&task.id).await.sessions[0].waiting, "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_agent_gets_no_new_work() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 4)).await;
    let drain = v1::DrainAgentRequest {
        request_id: "d1".into(),
        agent: "fake-1".into(),
    };
    let drained = cluster.client.fleet().drain_agent(drain).await.unwrap().into_inner();
    assert_eq!(drained.agent.unwrap().state(), v1::AgentState::Draining);
    assert!(matches!(agent.next().await, ToAgent::Drain(_)));
    let task = cluster.create(spec(&["one"])).await;
    let waiting = "waits for an agent with noop; only fake-1 has it, and is draining";
    assert_eq!(task.sessions[0].waiting, waiting);
    // A new start of it takes work again.
    let mut restarted = hello(1, 4);
    restarted.boot = kage_core::id::BootId::from_random(7);
    let mut agent = FakeAgent::connect(&cluster, restarted).await;
    agent.take().await;
    let agents = cluster
        .client
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await
        .unwrap();
    let agents = agents.into_inner().agents;
    assert_eq!((agents.len(), agents[0].busy), (1, 1));
    until(&cluster, &task.id, "the session runs", |task| {
        task.sessions[0].state() == v1::SessionState::Running
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_another_age_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let (control, requests) = tokio::sync::mpsc::channel(1);
    let mut old = v1::Hello::from(hello(1, 1));
    (old.protocol_min, old.protocol_max) = (90, 91);
    let message = v1::ConnectRequest {
        message: Some(FromAgent::Hello(old)),
    };
    control.send(message).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut messages = cluster.client.agent().connect(requests).await.unwrap().into_inner();
    let refused = soon("an answer", messages.message()).await.unwrap_err();
    let error = ApiError::from(refused);
    assert_eq!(error.reason(), "OTHER_PROTOCOL");
    assert!(error.to_string().contains("90 to 91"), "{error}");
    cluster.stop().await;
}
