//! What one caller may take of the coordinator, over its port.

use kage_coordinator::CallerLimits;
use kage_core::access::JoinToken;
use kage_core::event::EventBody;
use kage_core::id::TokenId;
use kage_core::usage::{PicoUsd, Usage};
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::admission::{call, member, person_of, request_id, stranger};
use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

async fn start(dir: &std::path::Path, change: impl FnOnce(&mut CallerLimits)) -> Cluster {
    Cluster::start_with(dir, |config, _| change(&mut config.callers)).await
}

/// When another try makes sense, of a call that met a limit.
fn retry(error: impl Into<ApiError>) -> std::time::Duration {
    match error.into() {
        ApiError::ResourceExhausted { retry, .. } => retry.expect("it says when to try again"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_of_an_address_are_refused_and_the_right_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), |limits| limits.wrong_tokens_per_minute = 2).await;
    let bearer = cluster.bearer();
    let get = async |token: &str| cluster.http("GET /metrics", &[("authorization", token)], b"").await.0;
    let mut statuses = Vec::new();
    for n in 0..5 {
        statuses.push(get(&format!("Bearer guess-{n}")).await);
    }
    assert_eq!(statuses, [401, 401, 429, 429, 429]);
    assert_eq!(get(&bearer).await, 200);
    // Who shows none has guessed none.
    assert_eq!(cluster.http("GET /metrics", &[], b"").await.0, 401);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_secret_is_looked_at_before_what_costs_more_and_guesses_are_few() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(dir.path(), |config, _| {
        config.tls = true;
        config.callers.wrong_tokens_per_minute = 2;
    })
    .await;
    let mut fleet = cluster.client.fleet();
    let created = fleet.create_join_token(v1::CreateJoinTokenRequest::default());
    let token: JoinToken = created.await.unwrap().into_inner().join_token.parse().unwrap();
    let caller = stranger(&cluster).await;
    let enrol = async |token_id: TokenId, secret: &str| {
        let request = v1::EnrollRequest {
            token_id: token_id.to_string(),
            secret: secret.to_owned(),
            project: String::new(),
            certificate_request: b"no request".to_vec(),
        };
        ApiError::from(caller.enrollment().enroll(request).await.unwrap_err())
    };
    // With the right secret the request itself is read.
    assert_eq!(enrol(token.id, &token.secret).await.reason(), "INVALID_ARGUMENT");
    assert_eq!(enrol(token.id, "wrong").await.reason(), "JOIN_TOKEN_UNKNOWN");
    assert_eq!(
        enrol(TokenId::from_random(1), &token.secret).await.reason(),
        "JOIN_TOKEN_UNKNOWN"
    );
    assert!(!retry(enrol(token.id, "wrong").await).is_zero());
    assert_eq!(enrol(token.id, &token.secret).await.reason(), "INVALID_ARGUMENT");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_has_so_many_calls_and_watches_and_the_owner_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), |limits| {
        limits.watches = 1;
        limits.calls_per_second = 50;
    })
    .await;
    let task = cluster.create(spec(&["waits"])).await;
    let viewer = person_of(&cluster, &cluster.client, v1::Role::View, "").await.unwrap();
    let watch = async |client: &kage_proto::client::Client| {
        let request = v1::WatchTaskRequest {
            task_id: task.id.clone(),
            follow: true,
            ..v1::WatchTaskRequest::default()
        };
        client
            .tasks()
            .watch_task(request)
            .await
            .map(tonic::Response::into_inner)
    };
    let first = watch(&viewer.client).await.unwrap();
    assert!(!retry(watch(&viewer.client).await.unwrap_err()).is_zero());
    let second = viewer
        .client
        .tasks()
        .watch_tasks(v1::WatchTasksRequest::default())
        .await;
    assert!(!retry(second.unwrap_err()).is_zero());
    let _owner = (
        watch(&cluster.client).await.unwrap(),
        watch(&cluster.client).await.unwrap(),
    );
    drop(first);
    soon("the first watch has ended", async {
        while watch(&viewer.client).await.is_err() {}
    })
    .await;

    let busy = person_of(&cluster, &cluster.client, v1::Role::View, "").await.unwrap();
    let limit = soon("the limit", async {
        loop {
            let calls = (0..100).map(|_| async {
                let mut fleet = busy.client.fleet();
                fleet.list_agents(v1::ListAgentsRequest::default()).await
            });
            let answers = futures_util::future::join_all(calls).await;
            if let Some(error) = answers.into_iter().find_map(Result::err) {
                return error;
            }
        }
    });
    assert!(!retry(limit.await).is_zero());
    assert!(
        cluster
            .client
            .fleet()
            .list_agents(v1::ListAgentsRequest::default())
            .await
            .is_ok()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_whose_queue_is_full_gets_no_new_task() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), |limits| limits.waiting_sessions = 2).await;
    let submitter = person_of(&cluster, &cluster.client, v1::Role::Submit, "")
        .await
        .unwrap();
    let create = async |id: String, project: &str| {
        let mut spec = spec(&["one", "two"]);
        spec.project = project.parse().unwrap();
        let request = v1::CreateTaskRequest {
            request_id: id,
            spec: Some(spec.into()),
            wait_for_agent: true,
            origin: None,
        };
        submitter.client.tasks().create_task(request).await
    };
    create("first".to_owned(), "default").await.unwrap();
    let full = create(request_id(), "default").await.unwrap_err();
    assert!(full.message().contains("project default"), "{full}");
    assert!(!retry(full).is_zero());
    // The answer to a call that was carried out may have been lost.
    create("first".to_owned(), "default").await.unwrap();
    create(request_id(), "elsewhere").await.unwrap();
    cluster.create(spec(&["of-the-owner"])).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_at_an_unknown_path() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let bearer = cluster.bearer();
    let door = ("authorization", bearer.as_str());
    for head in [
        "GET /",
        "GET /nothing/here",
        "POST /nothing/here",
        "GET /v1/blobs/a/../b/..",
        "GET /v1/blobs/a",
        "GET /kage.v1.TaskService/NoSuchCall",
    ] {
        let (status, body) = cluster.http(head, &[door], b"").await;
        assert_eq!(status, 404, "{head}");
        assert!(!body.is_empty(), "{head}");
    }
    let (status, _) = cluster.http("GET /nothing/here", &[], b"").await;
    assert_eq!(status, 401);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_says_too_much_of_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut many = hello(1, 1);
    many.adapters = vec![many.adapters[0].clone(); 300];
    let refused = FakeAgent::refused_by(&cluster.client, many).await;
    assert!(refused.to_string().contains("adapters"), "{refused}");
    let mut labelled = hello(1, 1);
    labelled.labels = (0..200).map(|n| (format!("label-{n}"), String::new())).collect();
    let refused = FakeAgent::refused_by(&cluster.client, labelled).await;
    assert!(refused.to_string().contains("labels"), "{refused}");
    // What programs say is cut: an agent cannot help it.
    let mut wordy = hello(1, 1);
    wordy.adapters[0].version = "x".repeat(100_000);
    wordy.adapters[0].unavailable = Some("y".repeat(100_000));
    let _agent = FakeAgent::connect(&cluster, wordy).await;
    let agents = cluster
        .client
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await;
    let agent = agents.unwrap().into_inner().agents.remove(0);
    assert!(agent.adapters[0].version.len() <= 1000 && agent.adapters[0].unavailable.len() <= 2000);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_has_an_end_and_absurd_usage_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), |limits| limits.output = 100).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let usage = |input, reported| EventBody::UsageRecorded {
        model: "m".to_owned(),
        usage: Usage {
            input,
            ..Usage::default()
        },
        reported: Some(PicoUsd(reported)),
        metered: true,
        tools: None,
        call: None,
    };
    let events = vec![usage(u64::MAX, 1), usage(1, -5), usage(7, 3)];
    agent.send_events(&granted.key, 1, events).await;
    agent.acked(3).await;
    let session = cluster.get(&task.id).await.sessions.remove(0);
    let told = format!("{:?}", session.usage);
    assert!(
        told.contains("input: 8") && !told.contains("18446744073709551615"),
        "{told}"
    );
    assert!(!told.contains("pico: Some(-"), "{told}");

    agent.send_output(&granted.key, 0, &[b'x'; 100]).await;
    agent.send_output(&granted.key, 100, b"y").await;
    let reason = agent.rejected().await;
    assert!(reason.contains("100 bytes"), "{reason}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_sends_so_much_and_a_project_has_so_much() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), |limits| {
        limits.upload_per_hour = 64 << 10;
        limits.project_bytes = 192 << 10;
    })
    .await;
    let bearer = async || {
        let token = v1::CreateTokenRequest {
            request_id: request_id(),
            role: v1::Role::Submit.into(),
            ..v1::CreateTokenRequest::default()
        };
        let token = cluster.client.access().create_token(token).await.unwrap();
        format!("Bearer {}", token.into_inner().bearer)
    };
    let put = async |bearer: &str, project: &str, byte: u8| {
        let bytes = vec![byte; 128 << 10];
        let path = format!("PUT /v1/blobs/{project}/{}", kage_core::id::Digest::of(&bytes));
        let (status, said) = cluster.http(&path, &[("authorization", bearer)], &bytes).await;
        (status, String::from_utf8_lossy(&said).into_owned())
    };
    let (one, other) = (bearer().await, bearer().await);
    assert_eq!(put(&one, "default", 1).await.0, 201);
    let (status, said) = put(&one, "default", 2).await;
    assert!(status == 429 && said.contains("in an hour"), "{status} {said}");
    // Another token may send, until the project has enough; another project has room.
    assert_eq!(put(&other, "default", 3).await.0, 201);
    let third = bearer().await;
    let (status, said) = put(&third, "default", 4).await;
    assert!(status == 429 && said.contains("project default has"), "{status} {said}");
    let push = "GET /git/default/repo/info/refs?service=git-receive-pack";
    let (status, said) = cluster.http(push, &[("authorization", third.as_str())], b"").await;
    assert_eq!(status, 429, "{}", String::from_utf8_lossy(&said));
    assert_eq!(put(&third, "elsewhere", 5).await.0, 201);
    assert_eq!(
        put(&cluster.bearer(), "default", 6).await.0,
        201,
        "the owner is not limited"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_project_gets_no_new_task_and_what_its_agents_made_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(dir.path(), |config, _| {
        config.tls = true;
        config.callers.project_bytes = 1000;
    })
    .await;
    let person = person_of(&cluster, &cluster.client, v1::Role::Submit, "")
        .await
        .unwrap();
    let create = async |id: &str| {
        let request = v1::CreateTaskRequest {
            request_id: id.to_owned(),
            spec: Some(spec(&["one"]).into()),
            wait_for_agent: true,
            origin: None,
        };
        person.client.tasks().create_task(request).await
    };
    // What is there is looked at by the first who asks.
    let folder = dir.path().join("blobs/default/00");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("much"), [b'x'; 1000]).unwrap();
    let full = create("first").await.unwrap_err();
    assert!(
        full.code() == tonic::Code::ResourceExhausted && full.message().contains("project default has"),
        "{full}"
    );
    let agent = member(&cluster, "").await;
    let path = format!("/v1/blobs/default/{}", kage_core::id::Digest::of(b""));
    assert_eq!(call(&person.client, "PUT", &path, &[]).await.0, 429);
    assert_eq!(call(&agent.client, "PUT", &path, &[]).await.0, 201);
    cluster.create(spec(&["of-the-owner"])).await;
    cluster.stop().await;
}
