//! Tasks that are dropped by hand or because of their age: their files are removed, also after a
//! crash in between, and no other task's files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kage_coordinator::store::{DropTask, Store};
use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::id::{Digest, Oid};
use kage_core::retention::Limits;
use kage_core::task::RepositoryRef;
use kage_core::time::Timestamp;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};
use crate::custody::start_after;
use crate::planes::git;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A repository with a base that is pushed: of the files that are there.
pub(crate) async fn pushed(cluster: &Cluster, path: &Path) -> (Oid, Oid) {
    std::fs::create_dir_all(path).unwrap();
    git(path, &["init", "-q", "-b", "main"], None).await;
    git(path, &["add", "--all"], None).await;
    git(path, &["commit", "-q", "--allow-empty", "-m", "base"], None).await;
    let base: Oid = git(path, &["rev-parse", "HEAD"], None).await.parse().unwrap();
    let tree = git(path, &["rev-parse", "HEAD^{tree}"], None).await.parse().unwrap();
    let url = format!("http://{}/git/default/repo", cluster.address);
    let refspec = format!("HEAD:refs/kage/bases/{base}");
    git(path, &["push", "-q", &url, &refspec], Some(&cluster.bearer())).await;
    (base, tree)
}

/// The files of a task.
pub(crate) struct Left {
    pub(crate) task: String,
    pub(crate) output: PathBuf,
    pub(crate) blob: PathBuf,
}

impl Left {
    pub(crate) fn is_there(&self) -> (bool, bool) {
        (self.output.exists(), self.blob.exists())
    }
}

/// An ended task with output and a checkpoint of its own. Its blob is old by now.
pub(crate) async fn ended(
    cluster: &Cluster,
    dir: &Path,
    agent: &mut FakeAgent,
    repo: &(Oid, Oid),
    said: &[u8],
) -> Left {
    let mut spec = spec(&["one"]);
    spec.repository = Some(RepositoryRef {
        name: "repo".parse().unwrap(),
        base: repo.0.clone(),
        folder: None,
        names: None,
    });
    let task = cluster.create(spec).await.id;
    let granted = agent.take().await;
    let blob = cluster.put(said).await;
    let taken = TakenCheckpoint {
        commit: repo.0.clone(),
        parent: repo.0.clone(),
        tree: repo.1.clone(),
        reason: CheckpointReason::Baseline,
        note: String::new(),
        files_changed: 0,
        pack: None,
        transcript: Some(TranscriptSegment {
            blob: blob.clone(),
            from: 0,
            to: 1,
        }),
        calls: None,
        told: 0,
    };
    agent.send_output(&granted.key, 0, b"words").await;
    let told = vec![EventBody::CheckpointTaken(taken)];
    agent.send_events(&granted.key, 1, told).await;
    agent.acked(1).await;
    agent.finish(&granted.key, 2, AttemptOutcome::Claimed).await;
    let left = Left {
        task,
        output: dir.join("output").join(granted.key.attempt.to_string()),
        blob: dir.join("blobs/default").join(&blob.as_str()[..2]).join(blob.as_str()),
    };
    assert_eq!(left.is_there(), (true, true));
    let file = File::options().append(true).open(&left.blob).unwrap();
    file.set_modified(SystemTime::now() - 2 * DAY).unwrap();
    left
}

pub(crate) async fn gone(left: &Left) {
    soon("the files go", async {
        while left.is_there() != (false, false) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_task_leaves_nothing_also_after_a_crash_in_between() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let repo = pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let first = ended(&cluster, &dir, &mut agent, &repo, b"first").await;
    let second = ended(&cluster, &dir, &mut agent, &repo, b"second").await;
    let other = ended(&cluster, &dir, &mut agent, &repo, b"other").await;
    let fresh = cluster.put(b"not named by any row yet").await;

    let remove = |task: &str| v1::RemoveTaskRequest {
        request_id: format!("remove-{task}"),
        task_id: task.to_owned(),
        now: true,
    };
    let mut open = spec(&["one"]);
    open.prompt = "it waits".to_owned();
    let running = cluster.create(open).await.id;
    let refused = cluster.client.tasks().remove_task(remove(&running)).await.unwrap_err();
    assert_eq!(ApiError::from(refused).reason(), "FAILED_PRECONDITION");

    cluster.client.tasks().remove_task(remove(&first.task)).await.unwrap();
    gone(&first).await;
    let list = v1::ListTasksRequest::default();
    let listed = cluster
        .client
        .tasks()
        .list_tasks(list)
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert!(listed.iter().all(|task| task.id != first.task));
    assert_eq!((second.is_there(), other.is_there()), ((true, true), (true, true)));
    cluster.stop().await;

    // The rows are deleted, and then the coordinator died.
    let store = Store::open(&dir.join("kage.db")).unwrap();
    let dropping = DropTask {
        request: None,
        task: second.task.parse().unwrap(),
        now: Timestamp::from_millis(1),
    };
    store.apply(dropping).await.unwrap();
    store.close().await;
    assert_eq!(second.is_there(), (true, true));
    let cluster = start_after(&dir, 8).await;
    gone(&second).await;
    assert_eq!(other.is_there(), (true, true));
    let unnamed = dir
        .join("blobs/default")
        .join(&fresh.as_str()[..2])
        .join(fresh.as_str());
    assert!(unnamed.exists(), "somebody may be about to name it");
    assert_eq!(cluster.get(&other.task).await.state(), v1::TaskState::Succeeded);
    cluster.stop().await;

    // Nothing that ended is kept, and what waits is none of that.
    let keep_nothing = Limits {
        keep: Duration::ZERO,
        most_bytes: 0,
    };
    let cluster = Cluster::start_with(&dir, |config, _| config.retention = keep_nothing).await;
    gone(&other).await;
    assert_eq!(cluster.get(&running).await.state(), v1::TaskState::Running);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_removed_by_mistake_comes_back_with_the_database_of_before() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let base = pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let kept = ended(&cluster, &dir, &mut agent, &base, b"kept aside").await;
    let freed = ended(&cluster, &dir, &mut agent, &base, b"freed at once").await;
    cluster.stop().await;
    let before = std::fs::read(dir.join("kage.db")).unwrap();

    let cluster = Cluster::start(&dir).await;
    for (left, now) in [(&kept, false), (&freed, true)] {
        let remove = v1::RemoveTaskRequest {
            task_id: left.task.clone(),
            now,
            ..Default::default()
        };
        cluster.client.tasks().remove_task(remove).await.unwrap();
        gone(left).await;
    }
    cluster.stop().await;
    let aside = |left: &Left| {
        let batches = std::fs::read_dir(dir.join("quarantine")).unwrap();
        let name = left.output.strip_prefix(&dir).unwrap();
        batches
            .filter(|batch| batch.as_ref().unwrap().path().join(name).exists())
            .count()
    };
    assert_eq!((aside(&kept), aside(&freed)), (1, 0));

    std::fs::write(dir.join("kage.db"), before).unwrap();
    let cluster = Cluster::start_with(&dir, |config, _| config.accept_older = true).await;
    soon("the return", async {
        while kept.is_there() != (true, true) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(freed.is_there(), (false, false));
    cluster.stop().await;
}

/// Stores a base context that is old by now: where its file is, and its digest.
async fn old_context(cluster: &Cluster, dir: &Path, text: &str) -> (PathBuf, Digest) {
    let file = cluster.put_context(dir, text).await;
    aged(&file);
    (file, Digest::of(text.as_bytes()))
}

fn aged(file: &Path) {
    let opened = File::options().append(true).open(file).unwrap();
    opened.set_modified(SystemTime::now() - 2 * DAY).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_context_goes_with_the_last_task_that_needs_it_and_can_be_sent_again() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let (shared, shared_digest) = old_context(&cluster, &dir, r#"{"a":"shared"}"#).await;
    let (lone, lone_digest) = old_context(&cluster, &dir, r#"{"a":"of one task"}"#).await;
    let mut tasks = Vec::new();
    for base in [&shared_digest, &lone_digest, &shared_digest] {
        let mut spec = spec(&["one"]);
        spec.context_base = Some(base.clone());
        tasks.push(cluster.create(spec).await.id);
        let granted = agent.take().await;
        agent.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    }
    // Naming a context in a task counts as a use of its file.
    aged(&shared);
    aged(&lone);
    let remove = |task: &str| v1::RemoveTaskRequest {
        request_id: format!("remove-{task}"),
        task_id: task.to_owned(),
        now: true,
    };
    let is_gone = async |file: &Path| {
        soon("the context goes", async {
            while file.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    cluster.client.tasks().remove_task(remove(&tasks[0])).await.unwrap();
    cluster.client.tasks().remove_task(remove(&tasks[1])).await.unwrap();
    is_gone(&lone).await;
    assert!(shared.exists(), "another task needs it");
    let mut spec = spec(&["one"]);
    spec.context_base = Some(lone_digest);
    let request = v1::CreateTaskRequest {
        spec: Some(spec.clone().into()),
        ..v1::CreateTaskRequest::default()
    };
    // An agent might have it, and is asked; the one here does not.
    let refused = cluster.client.tasks().create_task(request).await;
    let refused = ApiError::from(refused.unwrap_err());
    assert_eq!(refused.reason(), "FAILED_PRECONDITION", "{refused}");
    old_context(&cluster, &dir, r#"{"a":"of one task"}"#).await;
    cluster.create(spec).await;

    cluster.client.tasks().remove_task(remove(&tasks[2])).await.unwrap();
    is_gone(&shared).await;
    cluster.stop().await;
}
