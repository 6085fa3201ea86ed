//! Control sessions: who gets which messages, and what a disconnect causes.

use std::collections::BTreeSet;
use std::time::Duration;

use kage_core::event::AttemptOutcome;
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::BootId;
use kage_proto::client::Client;
use kage_proto::convert::agent::Hello;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as FromAgent;
use kage_proto::v1::connect_response::Message as ToAgent;
use prost::Message as _;

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
            origin: None,
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
    let long = "x".repeat(129);
    let long = tasks.create_task(request(&long, "a")).await.map_err(ApiError::from);
    assert_eq!(long.unwrap_err().reason(), "INVALID_ARGUMENT");
    // Without an id each call is separate.
    for _ in 0..2 {
        tasks.create_task(request("", "a")).await.unwrap();
    }
    let listed = tasks
        .list_tasks(v1::ListTasksRequest::default())
        .await
        .unwrap()
        .into_inner();
    let ids: BTreeSet<_> = listed.tasks.iter().map(|task| &task.id).collect();
    assert_eq!((ids.len(), listed.tasks.len()), (3, 3));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_many_bytes_travels_as_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut long = spec(&["one"]);
    long.prompt = "word ".repeat(40_000);
    let task = cluster.create(long.clone()).await;
    // A shortened task says so, and how much there is.
    assert_eq!(
        (task.view(), task.prompt_size),
        (v1::TaskView::Basic, long.prompt.len() as u64)
    );
    assert!(task.encoded_len() < 4096 && long.prompt.starts_with(&task.prompt_excerpt));
    let whole = cluster.get(&task.id[..8]).await;
    assert_eq!(
        (whole.view(), whole.spec.unwrap().prompt),
        (v1::TaskView::Full, long.prompt.clone())
    );
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
    // The same start reconnects without it: it cannot be running it.
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
    // A new start of the agent takes work again.
    let mut restarted = hello(1, 4);
    restarted.boot = BootId::from_random(7);
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

/// The same agent, restarted or copied: its identity with another boot id.
fn other_start_of(agent: &FakeAgent, n: u128) -> Hello {
    Hello {
        boot: BootId::from_random(n),
        name: "copy".to_owned(),
        running: Vec::new(),
        ..agent.hello.clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_an_identity_is_refused_while_the_agent_answers_and_ends_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one", "two"])).await;
    let mut agent = FakeAgent::connect(&cluster, answering(hello(1, 2))).await;
    let granted = agent.take().await;
    for n in 7..10 {
        let copy = FakeAgent::refused_by(&cluster.client, other_start_of(&agent, n));
        let refusal = agent.answering(copy).await;
        assert_eq!(refusal.reason(), "AGENT_ID_IN_USE");
        for words in ["as fake-1", "remove this copy's state folder", "kage agent run --join"] {
            assert!(refusal.to_string().contains(words), "{refusal}");
        }
    }
    // Two at once are refused like one.
    let one = FakeAgent::refused_by(&cluster.client, other_start_of(&agent, 11));
    let two = FakeAgent::refused_by(&cluster.client, other_start_of(&agent, 12));
    let (one, two) = agent.answering(async { tokio::join!(one, two) }).await;
    assert_eq!((one.reason(), two.reason()), ("AGENT_ID_IN_USE", "AGENT_ID_IN_USE"));

    // The store still has the first agent: its attempts continue, and it starts more.
    let agents = cluster
        .client
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await;
    let agents = agents.unwrap().into_inner().agents;
    let known: Vec<_> = agents.iter().map(|agent| (agent.name.as_str(), agent.busy)).collect();
    assert_eq!(known, [("fake-1", 2)]);
    let second = agent.take().await;
    for job in [granted, second] {
        assert_eq!(job.work.attempt, 1);
        agent.finish(&job.key, 1, AttemptOutcome::Claimed).await;
    }
    let task = cluster.get(&task.id).await;
    assert_eq!(task.state(), v1::TaskState::Succeeded);
    assert!(task.sessions.iter().all(|session| session.attempts == 1), "{task:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_knows_no_pings_lives_by_its_heartbeats() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let (client, copy) = (cluster.client.clone(), other_start_of(&agent, 7));
    let copy = tokio::spawn(async move { FakeAgent::refused_by(&client, copy).await });
    // The ping comes first, and is not answered; then the heartbeat that was due.
    let ToAgent::Ping(_) = agent.next().await else {
        panic!("it is pinged");
    };
    let sequence = 1;
    agent
        .say(FromAgent::Heartbeat(v1::Heartbeat {
            sequence,
            ..v1::Heartbeat::default()
        }))
        .await;
    assert_eq!(copy.await.unwrap().reason(), "AGENT_ID_IN_USE");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_takes_over_from_a_connection_that_is_closed_or_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, answering(hello(1, 1))).await;
    agent.take().await;
    // Half open: it is there, and answers nothing.
    let mut restarted = FakeAgent::connect(&cluster, other_start_of(&agent, 7)).await;
    let status = agent.end().await.expect("the older connection is told why");
    assert_eq!(ApiError::from(status).reason(), "CONFLICT");
    assert_eq!(restarted.take().await.work.attempt, 2, "what ran there ended");
    // The connection is closed: no ping is sent.
    let next = other_start_of(&restarted, 8);
    drop(restarted);
    let mut again = FakeAgent::connect(&cluster, next).await;
    let granted = again.take().await;
    assert_eq!(granted.work.attempt, 3);
    // The same start over a new connection takes over, and its attempts continue.
    let mut moved = again.hello.clone();
    moved.running = vec![granted.key.clone()];
    let mut moved = FakeAgent::connect(&cluster, moved).await;
    let status = again.end().await.expect("the older connection is told why");
    assert_eq!(ApiError::from(status).reason(), "CONFLICT");
    assert!(moved.welcome.stop.is_empty());
    moved.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Succeeded);
    cluster.stop().await;
}

fn answering(hello: Hello) -> Hello {
    Hello {
        answers_pings: true,
        ..hello
    }
}
