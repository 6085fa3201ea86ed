//! Stored commands take effect although their caller got no answer, or was gone before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kage_coordinator::store::{Fault, Store, Visit};
use kage_core::event::{AttemptOutcome, EventBody};
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

/// A coordinator whose disk does something to the first command of a name.
async fn cluster(dir: &std::path::Path, name: &'static str, visit: Visit) -> Cluster {
    let done = AtomicBool::new(false);
    let store = Store::in_memory_on(Arc::new(move |command| {
        let meant = command.is_some_and(|command| command.ends_with(name));
        match meant && !done.swap(true, Ordering::Relaxed) {
            true => visit,
            false => Visit::default(),
        }
    }));
    Cluster::start_with(dir, |_, ports| ports.store = Some(store)).await
}

const UNANSWERED: Visit = Visit {
    before: Duration::ZERO,
    fault: Some(Fault::Unanswered),
    after: Duration::ZERO,
};

fn creation() -> v1::CreateTaskRequest {
    v1::CreateTaskRequest {
        request_id: "only".to_owned(),
        spec: Some(spec(&["one"]).into()),
        wait_for_agent: true,
        origin: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_placed_although_nobody_knows_whether_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), "CreateTask", UNANSWERED).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    cluster.client.tasks().create_task(creation()).await.unwrap_err();
    agent.take().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_placed_although_its_creator_left() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Visit {
        after: Duration::from_millis(500),
        ..Visit::default()
    };
    let cluster = cluster(dir.path(), "CreateTask", slow).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let mut tasks = cluster.client.tasks();
    let creating = tasks.create_task(creation());
    // Dropping the call resets its stream: the coordinator hears of it long before the store answers.
    tokio::time::timeout(Duration::from_millis(100), creating)
        .await
        .expect_err("the creator leaves first");
    agent.take().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_the_end_although_nobody_knows_whether_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), "AppendEvents", UNANSWERED).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut watch = cluster.watch(&task.id, "", true).await;
    let granted = agent.take().await;
    let end = EventBody::Finished(AttemptOutcome::Claimed);
    agent.send_events(&granted.key, 1, vec![end]).await;
    let mut last = None;
    while let Some(response) = soon("a watched item", watch.message()).await.unwrap() {
        if let Some(Item::Task(task)) = response.item {
            last = Some(task.state());
        }
    }
    assert_eq!(last, Some(v1::TaskState::Succeeded));
    cluster.stop().await;
}
