//! Base contexts between coordinator and agents: deltas in the version that an agent reads, and bases whose bytes
//! are lost while a task needs them.

use std::time::Duration;

use kage_core::context::{Context, Delta};
use kage_core::id::Digest;
use kage_proto::blob::{AGENT_HEADER, LOST_HEADER, blob_path};
use kage_proto::convert::agent::{Hello, SessionWork, WorkKind};
use kage_proto::v1;
use kage_proto::v1::connect_response::Message as ToAgent;

use crate::cluster::{Cluster, FakeAgent, Granted, hello, soon, spec};

fn context(text: &str) -> Context {
    Context::parse(text.as_bytes()).unwrap()
}

fn session(granted: Granted) -> SessionWork {
    match granted.work.kind {
        WorkKind::Session(work) => work,
        WorkKind::Verify(_) => panic!("it is a session"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_gets_deltas_of_no_newer_version_than_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let long = "keep functions small and tests near the code; ".repeat(4);
    let base = context(&format!(r#"{{"a":"{long}","l":[1,2],"n":1}}"#));
    let own = context(&format!(r#"{{"a":"{long}!","l":[1,2],"n":2}}"#));
    let fine = Delta::between(&base, &own).unwrap();
    assert_eq!(fine.version(), 2);
    cluster.put_context(dir.path(), &base.canonical()).await;

    let mut asked = spec(&["one"]);
    asked.context_base = Some(base.digest());
    asked.assignments[0].context_delta = Some(fine.canonical());
    // An agent of an earlier version says nothing of deltas.
    for (n, says, version) in [(1, 0, 1), (2, 1, 1), (3, 2, 2), (4, 7, 2)] {
        let agent = Hello {
            context_deltas: says,
            ..hello(n, 1)
        };
        let mut agent = FakeAgent::connect(&cluster, agent).await;
        let task = cluster.create(asked.clone()).await;
        let granted = agent.take().await;
        let key = granted.key.clone();
        let work = session(granted);
        let text = work.context_delta.unwrap();
        let delta = Delta::parse(text.as_bytes()).unwrap();
        assert_eq!(delta.version(), version, "{says}: {text}");
        assert_eq!(delta.apply(&base).as_ref(), Ok(&own));
        assert_eq!(work.overridden, ["/a", "/n"]);
        // What is kept is what was sent.
        let kept = cluster.get(&task.id).await.spec.unwrap();
        assert_eq!(kept.assignments[0].context_delta, fine.canonical());
        agent.finish(&key, 1, kage_core::event::AttemptOutcome::Claimed).await;
        drop(agent);
    }
    cluster.stop().await;
}

/// Asks for a lost context as an agent does.
async fn get_lost(cluster: &Cluster, agent: &Hello, digest: &Digest) -> (u16, Vec<u8>) {
    let (bearer, id) = (cluster.bearer(), agent.agent.to_string());
    let headers = [
        ("authorization", bearer.as_str()),
        (AGENT_HEADER, id.as_str()),
        (LOST_HEADER, "1"),
    ];
    let path = format!("GET {}", blob_path(&Default::default(), digest));
    cluster.http(&path, &headers, b"").await
}

/// The context that the coordinator asks an agent for.
async fn wanted(agent: &mut FakeAgent) -> v1::SendContext {
    soon("the question for a context", async {
        loop {
            if let ToAgent::SendContext(wanted) = agent.next().await {
                return wanted;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_context_comes_back_from_an_agent_or_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let base = context(r#"{"a":"what all sessions share"}"#);
    let (digest, text) = (base.digest(), base.canonical());
    let file = cluster.put_context(dir.path(), &base.canonical()).await;
    let asker = hello(1, 1);
    let _asking = FakeAgent::connect(&cluster, asker.clone()).await;
    let mut other = FakeAgent::connect(&cluster, hello(2, 1)).await;
    assert_eq!(get_lost(&cluster, &asker, &digest).await.0, 200, "it is not lost");

    std::fs::remove_file(&file).unwrap();
    let (answer, ()) = tokio::join!(get_lost(&cluster, &asker, &digest), async {
        let asked = wanted(&mut other).await;
        assert_eq!((asked.project.as_str(), asked.digest), ("default", digest.to_string()));
        cluster.put(text.as_bytes()).await;
    });
    assert_eq!(answer, (200, text.clone().into_bytes()));

    std::fs::remove_file(&file).unwrap();
    let (answer, file) = tokio::join!(get_lost(&cluster, &asker, &digest), async {
        wanted(&mut other).await;
        cluster.put_context(dir.path(), &base.canonical()).await
    });
    assert_eq!(answer, (200, text.into_bytes()));

    // Nobody waits for what no client ever stored as a context, or without saying so.
    std::fs::remove_file(&file).unwrap();
    let unknown = Digest::of(b"never stored");
    assert_eq!(get_lost(&cluster, &asker, &unknown).await.0, 404);
    let bearer = cluster.bearer();
    let path = format!("GET {}", blob_path(&Default::default(), &digest));
    let headers = [("authorization", bearer.as_str())];
    let plain = cluster.http(&path, &headers, b"");
    let plain = tokio::time::timeout(Duration::from_secs(10), plain).await.unwrap();
    assert_eq!(plain.0, 404);
    cluster.stop().await;
}
