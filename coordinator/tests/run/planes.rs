//! The HTTP planes: blobs, contexts over them, git, metrics, health.

use std::time::Duration;

use kage_core::context::Context;
use kage_core::event::EventBody;
use kage_core::id::{Digest, Oid};
use kage_core::task::RepositoryRef;
use kage_proto::convert::agent::WorkKind;
use kage_proto::status::ApiError;
use kage_proto::v1;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::claims::{claim, passed, said, unsaid};
use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_are_put_checked_and_fetched_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let bearer = cluster.bearer();
    let door = ("authorization", bearer.as_str());
    let body = b"some bytes";
    let digest = Digest::of(body);
    let path = |method: &str| format!("{method} /v1/blobs/default/{digest}");
    assert_eq!(cluster.http(&path("PUT"), &[], body).await.0, 401);
    assert_eq!(cluster.http(&path("HEAD"), &[door], b"").await.0, 404);
    assert_eq!(cluster.http(&path("PUT"), &[door], b"other bytes").await.0, 422);
    assert_eq!(cluster.http(&path("GET"), &[door], b"").await.0, 404);
    assert_eq!(cluster.http(&path("PUT"), &[door], body).await.0, 201);
    assert_eq!(cluster.http(&path("PUT"), &[door], body).await.0, 200);
    assert_eq!(cluster.http(&path("HEAD"), &[door], b"").await, (200, vec![]));
    assert_eq!(cluster.http(&path("GET"), &[door], b"").await, (200, body.to_vec()));
    let part = cluster.http(&path("GET"), &[door, ("range", "bytes=5-")], b"").await;
    assert_eq!(part, (206, b"bytes".to_vec()));
    assert_eq!(
        cluster.http(&path("GET"), &[door, ("range", "bytes=99-")], b"").await.0,
        416
    );
    assert_eq!(cluster.http("GET /v1/blobs/default/short", &[door], b"").await.0, 400);
    let (status, metrics) = cluster.http("GET /metrics", &[door], b"").await;
    assert_eq!(status, 200);
    let metrics = String::from_utf8(metrics).unwrap();
    for line in [
        "kage_agents_connected 0",
        "kage_sessions{state=\"queued\"} 0",
        "kage_sessions{state=\"verifying\"} 0",
        "kage_store_commit_commands_bucket{le=\"1\"}",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in {metrics}");
    }
    cluster.stop().await;
}

/// All files below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] });
    files.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_is_stored_once_and_what_was_sent_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let context = Context::parse(br#"{"b": 1, "a": "x"}"#).unwrap();
    let put = |id: &str, content: &str| v1::PutContextRequest {
        request_id: id.to_owned(),
        project: String::new(),
        digest: Digest::of(content.as_bytes()).into(),
        content: content.to_owned().into(),
    };
    let mut contexts = cluster.client.contexts();
    let loose = contexts
        .put_context(put("p0", r#"{"b": 1}"#))
        .await
        .map_err(ApiError::from);
    assert_eq!(loose.unwrap_err().reason(), "INVALID_ARGUMENT");
    let text = context.canonical();
    assert!(
        contexts
            .put_context(put("p1", &text))
            .await
            .unwrap()
            .into_inner()
            .created
    );
    assert!(
        !contexts
            .put_context(put("p2", &text))
            .await
            .unwrap()
            .into_inner()
            .created
    );

    let agent = hello(1, 1);
    let _agent = FakeAgent::connect(&cluster, agent.clone()).await;
    let bearer = cluster.bearer();
    let id = agent.agent.to_string();
    let door = ("authorization", bearer.as_str());
    let digest = context.digest();
    let path = format!("GET /v1/blobs/default/{digest}");
    let (_, body) = cluster.http(&path, &[door, ("x-kage-agent", &id)], b"").await;
    assert_eq!(body, text.as_bytes());
    cluster.http(&path, &[door], b"").await;
    cluster
        .http(&path, &[door, ("x-kage-agent", &id), ("range", "bytes=0-3")], b"")
        .await;
    let head = path.replace("GET", "HEAD");
    cluster.http(&head, &[door, ("x-kage-agent", &id)], b"").await;
    let stats = soon("the count", async {
        loop {
            let request = v1::GetContextStatsRequest {
                project: "default".into(),
                digest: digest.to_string(),
            };
            let stats = contexts.get_context_stats(request).await.unwrap().into_inner();
            if !stats.sent.is_empty() {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let sent = v1::AgentTransfers {
        agent: "fake-1".into(),
        times: 1,
        bytes: text.len() as u64,
    };
    assert_eq!(
        (stats.times_put, stats.size, stats.sent),
        (2, text.len() as u64, vec![sent])
    );

    // Its file is lost under the row, and a client that has the content brings it back.
    let digest_text = digest.to_string();
    let lost = walk(dir.path()).into_iter().filter(|file| file.ends_with(&digest_text));
    let lost: Vec<_> = lost.collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    std::fs::remove_file(&lost[0]).unwrap();
    let door = ("authorization", bearer.as_str());
    assert_eq!(cluster.http(&path, &[door], b"").await.0, 404);
    let again = contexts.put_context(put("p3", &text)).await.unwrap().into_inner();
    assert!(!again.created, "its row is there");
    assert_eq!(
        cluster.http(&path, &[door], b"").await,
        (200, text.clone().into_bytes())
    );

    let mut unknown = spec(&["one"]);
    unknown.context_base = Some(Digest::of(b"never put"));
    let request = v1::CreateTaskRequest {
        request_id: "t1".into(),
        spec: Some(unknown.into()),
        wait_for_agent: true,
        origin: None,
    };
    let refused = cluster
        .client
        .tasks()
        .create_task(request)
        .await
        .map_err(ApiError::from);
    assert_eq!(refused.unwrap_err().reason(), "FAILED_PRECONDITION");
    cluster.stop().await;
}

/// Runs git as a person would, without their configuration.
pub(crate) async fn git(dir: &std::path::Path, arguments: &[&str], bearer: Option<&str>) -> String {
    let mut command = tokio::process::Command::new("git");
    command
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0");
    if let Some(bearer) = bearer {
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "http.extraHeader")
            .env("GIT_CONFIG_VALUE_0", format!("authorization: {bearer}"));
    }
    let output = soon("git", command.output()).await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The objects of a commit that its base lacks.
pub(crate) fn thin_pack(repo: &std::path::Path, commit: &Oid, base: &Oid) -> Vec<u8> {
    let list = repo.join(".git/revs");
    std::fs::write(&list, format!("{commit}\n^{base}\n")).unwrap();
    let output = std::process::Command::new("git")
        .args(["pack-objects", "--revs", "--thin", "--stdout", "-q"])
        .stdin(std::fs::File::open(&list).unwrap())
        .current_dir(repo)
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A repository with one commit.
pub(crate) async fn repository(repo: &std::path::Path) -> Oid {
    std::fs::create_dir(repo).unwrap();
    git(repo, &["init", "-q", "-b", "main"], None).await;
    std::fs::write(repo.join("a.txt"), "base\n").unwrap();
    git(repo, &["add", "."], None).await;
    git(repo, &["commit", "-q", "-m", "base"], None).await;
    git(repo, &["rev-parse", "HEAD"], None).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_git_refuses_ends_the_attempt_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let bearer = cluster.bearer();
    let repo = dir.path().join("repo");
    let base = repository(&repo).await;
    let mut of_repo = spec(&["one"]);
    of_repo.repository = Some(RepositoryRef {
        name: "repo".parse().unwrap(),
        base: base.clone(),
        folder: None,
        names: None,
    });
    let url = format!("http://{}/git/default/repo", cluster.address);
    let refspec = format!("HEAD:refs/kage/bases/{base}");
    git(&repo, &["push", "-q", &url, &refspec], Some(&bearer)).await;
    let task = cluster.create(of_repo).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let modules = "[submodule \"x\"]\n\tpath = x\n\turl = -u./evil\n";
    std::fs::write(repo.join(".gitmodules"), modules).unwrap();
    git(&repo, &["add", "."], None).await;
    git(&repo, &["commit", "-q", "-m", "result"], None).await;
    let commit: Oid = git(&repo, &["rev-parse", "HEAD"], None).await.parse().unwrap();
    let blob = git(&repo, &["rev-parse", "HEAD:.gitmodules"], None).await;
    let packed = thin_pack(&repo, &commit, &base);
    let pack = Digest::of(&packed);
    let path = format!("PUT /v1/blobs/default/{pack}");
    let door = ("authorization", bearer.as_str());
    assert_eq!(cluster.http(&path, &[door], &packed).await.0, 201);
    let result = unsaid(&commit);
    agent
        .send_events(&granted.key, 1, vec![EventBody::ResultCommitted { result, pack }])
        .await;
    let told = agent.rejected().await;
    assert!(told.contains(&blob) && told.contains("gitmodulesUrl"), "{told}");
    let session = cluster.get(&task.id).await.sessions.remove(0);
    let failure = session.failure.clone().unwrap_or_default();
    assert_eq!((session.state(), session.attempts), (v1::SessionState::Failed, 1));
    assert_eq!(
        (failure.kind(), failure.message),
        (v1::FailureKind::ResultRefused, told)
    );
    let reference = format!("refs/kage/results/{}", granted.work.session);
    assert_eq!(git(&repo, &["ls-remote", &url, &reference], Some(&bearer)).await, "");
    let objects = dir.path().join("coordinator/repos/default/repo.git/objects");
    for entry in std::fs::read_dir(objects).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("incoming"), "{name}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_taken_in_before_it_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let bearer = cluster.bearer();
    let repo = dir.path().join("repo");
    let base = repository(&repo).await;

    let mut checked = spec(&["one"]);
    checked.repository = Some(RepositoryRef {
        name: "repo".parse().unwrap(),
        base: base.clone(),
        folder: None,
        names: None,
    });
    checked.policy.verify.verify = Some("true".into());
    let request = v1::CreateTaskRequest {
        request_id: "early".into(),
        spec: Some(checked.clone().into()),
        wait_for_agent: true,
        origin: None,
    };
    let early = cluster
        .client
        .tasks()
        .create_task(request)
        .await
        .map_err(ApiError::from);
    assert_eq!(
        early.unwrap_err().reason(),
        "FAILED_PRECONDITION",
        "the base is pushed first"
    );
    let url = format!("http://{}/git/default/repo", cluster.address);
    let refspec = format!("HEAD:refs/kage/bases/{base}");
    git(&repo, &["push", "-q", &url, &refspec], Some(&bearer)).await;
    let task = cluster.create(checked).await;

    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    std::fs::write(repo.join("a.txt"), "solved\n").unwrap();
    git(&repo, &["commit", "-q", "-a", "-m", "result"], None).await;
    let commit: Oid = git(&repo, &["rev-parse", "HEAD"], None).await.parse().unwrap();
    let pack = thin_pack(&repo, &commit, &base);
    let digest = Digest::of(&pack);
    let path = format!("PUT /v1/blobs/default/{digest}");
    let door = ("authorization", bearer.as_str());
    assert_eq!(cluster.http(&path, &[door], &pack).await.0, 201);
    let result = said(&commit, None);
    let claim = claim(result, digest);
    agent.send_events(&granted.key, 1, claim).await;
    agent.acked(2).await;
    let reference = format!("refs/kage/results/{}", granted.work.session);
    let found = git(&repo, &["ls-remote", &url, &reference], Some(&bearer)).await;
    assert!(found.starts_with(commit.as_str()), "{found:?}");

    let verify = agent.take().await;
    let WorkKind::Verify(work) = &verify.work.kind else {
        panic!("a verify job");
    };
    assert_eq!(work.commit, commit);
    agent.finish(&verify.key, 1, passed()).await;
    let request = v1::GetReportRequest {
        task_id: task.id.clone(),
    };
    let report = cluster.client.tasks().get_report(request).await.unwrap().into_inner();
    let report = report.report.unwrap();
    assert!(!report.provisional);
    assert_eq!(
        (report.best.as_ref().unwrap().session.as_str(), report.rows.len()),
        ("one", 1)
    );
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Succeeded);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_a_task_without_a_repository_fails_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let result = unsaid(&"a".repeat(40).parse().unwrap());
    let pack = Digest::of(b"never uploaded");
    agent
        .send_events(&granted.key, 1, vec![EventBody::ResultCommitted { result, pack }])
        .await;
    assert_eq!(
        agent.rejected().await,
        "the task has no repository to take a result into"
    );
    let session = cluster.get(&task.id).await.sessions.remove(0);
    let failure = session.failure.clone().unwrap_or_default();
    assert_eq!((session.state(), session.attempts), (v1::SessionState::Failed, 1));
    assert_eq!(failure.kind(), v1::FailureKind::ResultRefused);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_without_a_token_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    assert_eq!(cluster.http("GET /healthz", &[], b"").await, (200, b"ok\n".to_vec()));
    assert_eq!(cluster.http("GET /readyz", &[], b"").await, (200, b"ready\n".to_vec()));
    assert_eq!(cluster.http("HEAD /readyz", &[], b"").await, (200, vec![]));
    for refused in ["GET /metrics", "GET /healthz/", "GET /readyz/x", "GET /"] {
        assert_eq!(cluster.http(refused, &[], b"").await.0, 401, "{refused}");
    }
    // A token that is none is refused here, too.
    let wrong = ("authorization", "Bearer nonsense");
    assert_eq!(cluster.http("GET /healthz", &[wrong], b"").await.0, 401);

    let stranger = tonic::transport::Endpoint::from_shared(cluster.url.clone()).unwrap();
    let mut health = HealthClient::new(stranger.connect().await.unwrap());
    for service in [
        "",
        "kage.v1.TaskService",
        "kage.v1.AccessService",
        "kage.v1.ServerService",
    ] {
        let service = service.to_owned();
        let told = health.check(HealthCheckRequest { service }).await.unwrap().into_inner();
        assert_eq!(told.status(), ServingStatus::Serving);
    }
    let service = "kage.v1.NoService".to_owned();
    let unknown = health.check(HealthCheckRequest { service }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let watched = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(watched.code(), tonic::Code::Unauthenticated);
    cluster.stop().await;
}
