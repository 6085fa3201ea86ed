//! What a watcher sees while a session still runs.

use std::collections::BTreeSet;

use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::watch_task_response::Item;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::tasks::{Describe, Seen, session, task};
use kage_tests::wait::DEADLINE;

#[tokio::test]
async fn file_changes_are_seen_before_the_session_ends() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let script = format!(
        "cat >/dev/null; echo changed >> add.sh; echo new > new.txt\nuntil [ -e '{}' ]; do sleep 0.05; done\n",
        gate.display()
    );
    cluster
        .add_agent(AgentOptions::named("agent").script("wait", script))
        .await;
    let repo = cluster.sample();
    let spec = task("change something").on(&repo).session("only", SHELL, "wait");
    let id = cluster.create(spec).await;

    let mut responses = cluster.watch(&id, &[]).await;
    let mut seen = Seen::default();
    let mut changed = BTreeSet::new();
    let watching = async {
        while changed.len() < 2 {
            let response = responses.message().await.unwrap().expect("the task has not ended");
            if let Some(Item::Event(event)) = &response.item
                && let Some(Body::FilesChanged(change)) = event.event.as_ref().and_then(|event| event.body.as_ref())
            {
                changed.extend(change.files.iter().map(|file| (file.path.clone(), file.kind())));
            }
            seen.add(response);
        }
    };
    tokio::time::timeout(DEADLINE, watching)
        .await
        .expect("changes are seen");
    let expected = [
        ("add.sh".to_owned(), v1::ChangeKind::Modified),
        ("new.txt".to_owned(), v1::ChangeKind::Added),
    ];
    assert_eq!(changed, BTreeSet::from(expected));
    let task = seen.task.unwrap();
    assert_eq!(session(&task, "only").state(), v1::SessionState::Running);

    std::fs::write(gate, "").unwrap();
    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
}
