//! The fleet over the wire: tasks that no agent can run, cordons, priorities.

use kage_core::checkpoint::Resumes;
use kage_core::fleet::AdapterInfo;
use kage_core::priority::Priority;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

fn asking(id: &str, adapter: &str, wait_for_agent: bool) -> v1::CreateTaskRequest {
    let mut spec = spec(&["s"]);
    spec.assignments[0].adapter = adapter.parse().unwrap();
    v1::CreateTaskRequest {
        request_id: id.to_owned(),
        spec: Some(spec.into()),
        wait_for_agent,
        origin: None,
    }
}

#[tokio::test]
async fn a_task_that_nobody_can_run_is_refused_at_once_unless_it_is_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut tasks = cluster.client.tasks();
    let mut refused = async |request| ApiError::from(tasks.create_task(request).await.unwrap_err());

    let error = refused(asking("early", "noop", false)).await;
    assert_eq!(error.reason(), "NO_AGENT");
    assert!(error.to_string().ends_with("no agent is connected"), "{error}");
    let mut hello = hello(1, 1);
    hello.adapters.push(AdapterInfo {
        name: "broken".parse().unwrap(),
        version: String::new(),
        unavailable: Some("there is no program broken".to_owned()),
        resumes: Resumes::None,
        access: None,
        slots: 0,
        hears: false,
    });
    let agent = FakeAgent::connect(&cluster, hello).await;
    let cases = [
        ("codex", "no agent has the adapter codex; the fleet has noop"),
        (
            "broken",
            "the adapter broken does not work on fake-1: there is no program broken",
        ),
    ];
    for (adapter, words) in cases {
        let error = refused(asking(adapter, adapter, false)).await;
        assert_eq!(error.reason(), "NO_AGENT");
        assert!(error.to_string().ends_with(words), "{error}");
    }
    let mut picky = asking("picky", "noop", false);
    if let Some(policy) = picky.spec.as_mut().and_then(|spec| spec.policy.as_mut()) {
        policy.requirements.insert("gpu".to_owned(), "true".to_owned());
    }
    let error = refused(picky).await;
    assert!(error.to_string().contains("carries gpu=true"), "{error}");
    let listed = cluster.client.tasks().list_tasks(v1::ListTasksRequest::default()).await;
    assert!(listed.unwrap().into_inner().tasks.is_empty(), "nothing was stored");

    let mut tasks = cluster.client.tasks();
    tasks.create_task(asking("waits", "codex", true)).await.unwrap();
    // The agent is disconnected and may return: its tasks are accepted. A repeat is the same call.
    tasks.create_task(asking("fits", "noop", false)).await.unwrap();
    drop(agent);
    tasks.create_task(asking("fits", "noop", false)).await.unwrap();
    tasks.create_task(asking("later", "noop", false)).await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn a_cordoned_agent_finishes_and_waits_also_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 2)).await;
    let first = cluster.create(spec(&["one"])).await;
    let job = agent.take().await;
    let cordon = v1::CordonAgentRequest {
        request_id: "cordon".to_owned(),
        agent: "fake-1".to_owned(),
    };
    let cordoned = cluster.client.fleet().cordon_agent(cordon).await.unwrap();
    let cordoned = cordoned.into_inner().agent.unwrap();
    assert!(cordoned.cordoned);
    assert_eq!(cordoned.state(), v1::AgentState::Connected, "it stays");
    let second = cluster.create(spec(&["two"])).await;
    let waiting = "waits for an agent with noop; only fake-1 has it, and is cordoned";
    assert_eq!(cluster.get(&second.id).await.sessions[0].waiting, waiting);
    agent
        .finish(&job.key, 1, kage_core::event::AttemptOutcome::Claimed)
        .await;
    let first = cluster.get(&first.id).await;
    assert_eq!(first.state(), v1::TaskState::Succeeded, "what runs goes on");

    // Neither a restart of the coordinator nor one of the agent makes it forget.
    cluster.stop().await;
    let cluster = Cluster::start(dir.path()).await;
    let mut again = hello(1, 2);
    again.boot = kage_core::id::BootId::from_random(2);
    let mut agent = FakeAgent::connect(&cluster, again).await;
    assert_eq!(cluster.get(&second.id).await.sessions[0].waiting, waiting);
    let uncordon = v1::UncordonAgentRequest {
        request_id: "uncordon".to_owned(),
        agent: "fake-1".to_owned(),
    };
    cluster.client.fleet().uncordon_agent(uncordon).await.unwrap();
    let job = agent.take().await;
    assert_eq!(job.work.task.to_string(), second.id);
    cluster.stop().await;
}

#[tokio::test]
async fn the_urgent_task_goes_first_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let of = |priority| {
        let mut spec = spec(&["one"]);
        spec.policy.priority = priority;
        spec
    };
    let low = cluster.create(of(Priority::LOW)).await;
    let normal = cluster.create(of(Priority::NORMAL)).await;
    let high = cluster.create(of(Priority::HIGH)).await;
    cluster.stop().await;
    let cluster = Cluster::start(dir.path()).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    for (task, left) in [(&high, 2), (&normal, 1), (&low, 0)] {
        let job = soon("the next job", agent.take()).await;
        assert_eq!(job.work.task.to_string(), task.id, "{left} left");
        agent
            .finish(&job.key, 1, kage_core::event::AttemptOutcome::Claimed)
            .await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_next_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    // The author of this client did not know the limit.
    let mut tasks = v1::task_service_client::TaskServiceClient::new(cluster.client.channel());
    let mut large = asking("large", "noop", true);
    if let Some(spec) = &mut large.spec {
        spec.prompt = "x".repeat(kage_proto::MAX_TASK_MESSAGE + 1);
    }
    let error = ApiError::from(tasks.create_task(large).await.unwrap_err());
    assert_eq!(error.reason(), "INVALID_ARGUMENT");
    assert!(error.to_string().contains("limit"), "{error}");
    tasks.create_task(asking("small", "noop", true)).await.unwrap();
    cluster.stop().await;
}
