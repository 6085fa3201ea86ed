//! Which agents may say that a result is good: those that were let in for it, and no agent that only
//! holds the owner's token.

use std::path::Path;

use kage_coordinator::OwnAgent;
use kage_core::access::Capabilities;
use kage_core::id::{AgentId, Oid};
use kage_core::task::{RepositoryRef, TaskSpec};
use kage_proto::client::{Client, Credentials};
use kage_proto::convert::agent::WorkKind;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::claims::{claim, said};
use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};
use crate::planes::{git, repository, thin_pack};

/// The token of the agent in the coordinator's process.
const OWN: &str = "in-memory-only";

async fn can(cluster: &Cluster, name: &str) -> Vec<i32> {
    let request = v1::ListAgentsRequest::default();
    let agents = cluster
        .client
        .fleet()
        .list_agents(request)
        .await
        .unwrap()
        .into_inner()
        .agents;
    agents.into_iter().find(|agent| agent.name == name).unwrap().can
}

/// A task whose results are checked, with its base pushed; and that base.
async fn checked_task(cluster: &Cluster, repo: &Path) -> (TaskSpec, Oid) {
    let base = repository(repo).await;
    let mut checked = spec(&["one"]);
    checked.repository = Some(RepositoryRef {
        name: "repo".parse().unwrap(),
        base: base.clone(),
        folder: None,
        names: None,
    });
    checked.policy.verify.verify = Some("true".into());
    let url = format!("http://{}/git/default/repo", cluster.address);
    let refspec = format!("HEAD:refs/kage/bases/{base}");
    git(repo, &["push", "-q", &url, &refspec], Some(&cluster.bearer())).await;
    (checked, base)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_agent_with_the_owners_token_is_offered_no_check() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(&dir.path().join("coordinator"), |config, ports| {
        config.token_agents = Capabilities::RUN;
        ports.own_agent = Some(OwnAgent {
            id: AgentId::from_random(2),
            token: OWN.to_owned(),
        });
    })
    .await;
    let repo = dir.path().join("repo");
    let (checked, base) = checked_task(&cluster, &repo).await;
    let task = cluster.create(checked).await;

    // It is the only agent, has room for everything, and solved the task: it would be given the check.
    let mut unknown = FakeAgent::connect(&cluster, hello(1, 8)).await;
    let granted = unknown.take().await;
    std::fs::write(repo.join("a.txt"), "solved\n").unwrap();
    git(&repo, &["commit", "-q", "-a", "-m", "result"], None).await;
    let commit: Oid = git(&repo, &["rev-parse", "HEAD"], None).await.parse().unwrap();
    let pack = thin_pack(&repo, &commit, &base);
    let result = said(&commit, None);
    let claim = claim(result, cluster.put(&pack).await);
    unknown.send_events(&granted.key, 1, claim).await;
    unknown.acked(2).await;
    let waits = soon("the reason of the wait", async {
        loop {
            let session = cluster.get(&task.id).await.sessions.remove(0);
            if !session.waiting.is_empty() {
                return session.waiting;
            }
        }
    });
    let waits = waits.await;
    assert!(waits.starts_with("no agent may verify results; "), "{waits}");
    assert_eq!(can(&cluster, "fake-1").await, [v1::Capability::Run as i32]);

    // The agent of the process gets it.
    let own = Client::connect_as(&cluster.url, &Credentials::bearer(OWN))
        .await
        .unwrap();
    let mut own = FakeAgent::connect_by(&own, hello(2, 1)).await;
    let check = own.take().await;
    assert!(matches!(check.work.kind, WorkKind::Verify(_)), "{:?}", check.work.kind);
    let all = [v1::Capability::Run as i32, v1::Capability::Verify as i32];
    assert_eq!(can(&cluster, "fake-2").await, all);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_the_owners_token_cannot_be_an_agent_that_may_verify() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(dir.path(), |config, ports| {
        config.token_agents = Capabilities::RUN;
        ports.own_agent = Some(OwnAgent {
            id: AgentId::from_random(2),
            token: OWN.to_owned(),
        });
    })
    .await;
    let client = Client::connect_as(&cluster.url, &Credentials::bearer(OWN))
        .await
        .unwrap();
    let own = FakeAgent::connect_by(&client, hello(2, 1)).await;
    assert_eq!(can(&cluster, "fake-2").await.len(), 2);
    // Its token is good for itself, and for nothing that people do.
    let refused = FakeAgent::refused_by(&client, hello(3, 1)).await;
    assert_eq!(refused.reason(), "PERMISSION_DENIED");
    let listed = client.fleet().list_agents(v1::ListAgentsRequest::default()).await;
    assert_eq!(listed.unwrap_err().code(), tonic::Code::PermissionDenied);
    drop(own);
    let _forger = FakeAgent::connect(&cluster, hello(2, 1)).await;
    assert_eq!(can(&cluster, "fake-2").await, [v1::Capability::Run as i32]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_results_nobody_may_check_is_refused_at_once_unless_it_is_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(&dir.path().join("coordinator"), |config, ports| {
        config.token_agents = Capabilities::RUN;
        ports.own_agent = Some(OwnAgent {
            id: AgentId::from_random(2),
            token: OWN.to_owned(),
        });
    })
    .await;
    let (checked, _) = checked_task(&cluster, &dir.path().join("repo")).await;
    let _agent = FakeAgent::connect(&cluster, hello(1, 8)).await;
    let create = async |id: &str, spec: &TaskSpec, wait_for_agent| {
        let request = v1::CreateTaskRequest {
            request_id: id.to_owned(),
            spec: Some(spec.clone().into()),
            wait_for_agent,
            origin: None,
        };
        cluster.client.tasks().create_task(request).await
    };
    let error = ApiError::from(create("one", &checked, false).await.unwrap_err());
    assert_eq!(error.reason(), "NO_AGENT");
    let words = error.to_string();
    for part in [
        "its results could not be checked: no agent may verify results",
        "--token-agents run,verify",
        "--can verify",
    ] {
        assert!(words.contains(part), "{words}");
    }
    create("one", &checked, true).await.unwrap();
    // Nothing is checked of this one.
    let mut unchecked = checked.clone();
    unchecked.policy.verify.verify = None;
    create("two", &unchecked, false).await.unwrap();
    let own = Client::connect_as(&cluster.url, &Credentials::bearer(OWN))
        .await
        .unwrap();
    let _own = FakeAgent::connect_by(&own, hello(2, 1)).await;
    create("three", &checked, false).await.unwrap();
    cluster.stop().await;
}
