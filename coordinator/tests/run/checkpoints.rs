//! Checkpoints over the wire: reported by an agent, listed, requested, restored.

use std::fs;
use std::path::{Path, PathBuf};

use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::id::{Digest, Oid};
use kage_core::task::RepositoryRef;
use kage_core::usage::Usage;
use kage_proto::convert::agent::WorkKind;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_response::Message as ToAgent;

use crate::cluster::{Cluster, DEADLINE, FakeAgent, hello, soon, spec};
use crate::planes::git;

/// A person's repository, in which checkpoints are made as an agent would.
pub(crate) struct Repo {
    pub(crate) path: PathBuf,
    pub(crate) base: Oid,
}

impl Repo {
    pub(crate) async fn pushed(cluster: &Cluster, path: &Path) -> Self {
        fs::create_dir(path).unwrap();
        git(path, &["init", "-q", "-b", "main"], None).await;
        fs::write(path.join("a.txt"), "base\n").unwrap();
        git(path, &["add", "."], None).await;
        git(path, &["commit", "-q", "-m", "base"], None).await;
        let base: Oid = git(path, &["rev-parse", "HEAD"], None).await.parse().unwrap();
        let url = format!("http://{}/git/default/repo", cluster.address);
        let refspec = format!("HEAD:refs/kage/bases/{base}");
        git(path, &["push", "-q", &url, &refspec], Some(&cluster.bearer())).await;
        Self {
            path: path.to_owned(),
            base,
        }
    }

    /// Commits what is there after `parent`, and uploads it.
    pub(crate) async fn checkpoint(
        &self,
        cluster: &Cluster,
        parent: &Oid,
        reason: CheckpointReason,
    ) -> TakenCheckpoint {
        git(&self.path, &["add", "-A"], None).await;
        let tree = git(&self.path, &["write-tree"], None).await;
        let commit = git(
            &self.path,
            &["commit-tree", &tree, "-p", parent.as_str(), "-m", "x"],
            None,
        )
        .await;
        let list = self.path.join(".git/revs");
        fs::write(&list, format!("{commit}\n^{parent}\n")).unwrap();
        let packed = std::process::Command::new("git")
            .args(["pack-objects", "--revs", "--thin", "--stdout", "-q"])
            .stdin(fs::File::open(&list).unwrap())
            .current_dir(&self.path)
            .output()
            .unwrap();
        assert!(packed.status.success());
        TakenCheckpoint {
            commit: commit.parse().unwrap(),
            parent: parent.clone(),
            tree: tree.parse().unwrap(),
            reason,
            note: String::new(),
            files_changed: 1,
            pack: Some(cluster.put(&packed.stdout).await),
            transcript: None,
            calls: None,
            told: 0,
        }
    }
}

fn called() -> EventBody {
    EventBody::UsageRecorded {
        model: "m".into(),
        usage: Usage::default(),
        reported: None,
        metered: true,
        tools: None,
        call: None,
    }
}

pub(crate) async fn start(cluster: &Cluster, repo: &Repo) -> v1::Task {
    let mut spec = spec(&["one"]);
    spec.repository = Some(RepositoryRef {
        name: "repo".parse().unwrap(),
        base: repo.base.clone(),
        folder: None,
        names: None,
    });
    cluster.create(spec).await
}

/// The next order to take a checkpoint.
async fn checkpoint_order(agent: &mut FakeAgent) -> v1::TakeCheckpoint {
    loop {
        if let ToAgent::TakeCheckpoint(order) = agent.next().await {
            return order;
        }
    }
}

fn restore(task_id: &str, checkpoint: &str, dry_run: bool) -> v1::RestoreSessionRequest {
    v1::RestoreSessionRequest {
        request_id: "restore".into(),
        task_id: task_id.to_owned(),
        checkpoint: checkpoint.to_owned(),
        dry_run,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_back_to_a_checkpoint_and_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let task = start(&cluster, &repo).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let WorkKind::Session(work) = &granted.work.kind else {
        panic!("a session");
    };
    assert_eq!(work.resume, None);

    fs::write(repo.path.join("b.txt"), "one\n").unwrap();
    let mut first = repo
        .checkpoint(&cluster, &repo.base, CheckpointReason::FilesChanged)
        .await;
    first.transcript = Some(TranscriptSegment {
        blob: cluster.put(b"said").await,
        from: 0,
        to: 3,
    });
    let told = vec![called(), EventBody::CheckpointTaken(first.clone()), called()];
    agent.send_events(&granted.key, 1, told).await;
    agent.acked(3).await;

    // A person requests a checkpoint; the agent answers with an event.
    let create = v1::CreateCheckpointRequest {
        request_id: "create".into(),
        task_id: task.id.clone(),
        session: "one".into(),
        note: "before `lunch`".into(),
    };
    let asking = tokio::spawn({
        let (client, create) = (cluster.client.clone(), create.clone());
        async move { client.checkpoints().create_checkpoint(create).await }
    });
    let order = checkpoint_order(&mut agent).await;
    assert_eq!(order.reason(), v1::CheckpointReason::Requested);
    assert_eq!(
        (order.attempt_id, order.note.as_str()),
        (granted.key.attempt.to_string(), "before `lunch`")
    );
    fs::write(repo.path.join("a.txt"), "two\n").unwrap();
    fs::write(repo.path.join("c.txt"), "two\n").unwrap();
    let mut second = repo
        .checkpoint(&cluster, &first.commit, CheckpointReason::Requested)
        .await;
    second.note = order.note;
    agent
        .send_events(&granted.key, 4, vec![EventBody::CheckpointTaken(second.clone())])
        .await;
    agent.acked(4).await;
    let created = soon("the checkpoint", asking).await.unwrap().unwrap().into_inner();
    assert_eq!(created.checkpoint.unwrap().number, 2);
    let again = cluster.client.checkpoints().create_checkpoint(create).await.unwrap();
    assert_eq!(
        again.into_inner().checkpoint.unwrap().number,
        2,
        "one call has one effect"
    );

    let list = v1::ListCheckpointsRequest {
        task_id: task.id.clone(),
        ..Default::default()
    };
    let listed = cluster
        .client
        .checkpoints()
        .list_checkpoints(list.clone())
        .await
        .unwrap()
        .into_inner();
    let shown: Vec<_> = listed
        .checkpoints
        .iter()
        .map(|c| (c.number, c.parent_number, c.position, c.calls, c.head))
        .collect();
    assert_eq!(shown, [(1, 0, 3, 1, false), (2, 1, 3, 2, true)]);
    let mut page = v1::ListCheckpointsRequest {
        page_size: 1,
        ..list.clone()
    };
    for (number, more) in [(1, true), (2, false)] {
        let listed = cluster.client.checkpoints().list_checkpoints(page.clone()).await;
        let listed = listed.unwrap().into_inner();
        assert_eq!(
            listed.checkpoints.iter().map(|c| c.number).collect::<Vec<_>>(),
            [number]
        );
        assert_eq!(listed.next_page_token.is_empty(), !more);
        page.page_token = listed.next_page_token;
    }
    let get = v1::GetCheckpointRequest {
        task_id: task.id.clone(),
        checkpoint: second.commit.as_str()[..10].to_owned(),
        ..Default::default()
    };
    let got = cluster
        .client
        .checkpoints()
        .get_checkpoint(get)
        .await
        .unwrap()
        .into_inner();
    let changes: Vec<_> = got.changes.iter().map(|c| (c.path.as_slice(), c.action())).collect();
    let expected = [
        (b"a.txt".as_slice(), v1::PathAction::Replace),
        (b"c.txt".as_slice(), v1::PathAction::Create),
    ];
    assert_eq!(changes, expected);

    // A dry run returns the plan, and does nothing.
    let plan = restore(&task.id, "1", true);
    let plan = cluster
        .client
        .checkpoints()
        .restore_session(plan)
        .await
        .unwrap()
        .into_inner();
    let paths: Vec<_> = plan.plan.iter().map(|c| (c.path.as_slice(), c.action())).collect();
    let expected = [
        (b"a.txt".as_slice(), v1::PathAction::Replace),
        (b"c.txt".as_slice(), v1::PathAction::Delete),
    ];
    assert_eq!((paths.as_slice(), plan.repeated_calls), (expected.as_slice(), 1));
    assert_eq!(
        cluster.get(&task.id).await.sessions[0].state(),
        v1::SessionState::Running
    );

    // The session's work since is saved before it is stopped, once for any number of calls.
    let restoring = tokio::spawn({
        let (client, request) = (cluster.client.clone(), restore(&task.id, "1", false));
        async move { client.checkpoints().restore_session(request).await }
    });
    let order = checkpoint_order(&mut agent).await;
    assert_eq!(order.reason(), v1::CheckpointReason::BeforeRestore);
    fs::write(repo.path.join("d.txt"), "since\n").unwrap();
    let saved = repo
        .checkpoint(&cluster, &second.commit, CheckpointReason::BeforeRestore)
        .await;
    agent
        .send_events(&granted.key, 5, vec![EventBody::CheckpointTaken(saved)])
        .await;
    agent.acked(5).await;
    let done = soon("the restore", restoring).await.unwrap().unwrap().into_inner();
    assert_eq!(done.checkpoint.unwrap().number, 1);
    assert_eq!(done.saved.map(|saved| saved.number), Some(3));
    let paths: Vec<_> = done.plan.iter().map(|c| c.path.as_slice()).collect();
    assert_eq!(paths, [b"a.txt", b"c.txt", b"d.txt"], "from what was kept");
    let again = restore(&task.id, "1", false);
    let again = cluster.client.checkpoints().restore_session(again).await.unwrap();
    assert_eq!(again.into_inner().checkpoint.unwrap().number, 1);
    agent.send_events(&granted.key, 6, vec![called()]).await;
    agent.rejected().await;
    let next = agent.take().await;
    let WorkKind::Session(work) = &next.work.kind else {
        panic!("a session");
    };
    let resume = work.resume.as_deref().expect("it goes on");
    assert_eq!((&resume.commit, &resume.tree), (&first.commit, &first.tree));
    assert_eq!(resume.packs, [first.pack.clone().unwrap()]);
    assert_eq!((resume.position, resume.repeated_calls, next.work.attempt), (3, 1, 2));
    let resumed = EventBody::Resumed {
        commit: first.commit.clone(),
        position: 3,
        repeated_calls: 1,
    };
    agent.send_events(&next.key, 1, vec![resumed]).await;
    agent.acked(1).await;
    agent.finish(&next.key, 2, AttemptOutcome::Claimed).await;
    let report = v1::GetReportRequest {
        task_id: task.id.clone(),
    };
    let report = cluster.client.tasks().get_report(report).await.unwrap().into_inner();
    let history = &report.report.unwrap().rows[0].history;
    let words = "attempt 2 continued from checkpoint 1; 1 model call made again";
    assert!(history.iter().any(|line| line == words), "{history:?}");

    // An ended session can go back, too.
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Succeeded);
    let mut back = restore(&task.id, "2", false);
    back.request_id = "back".into();
    cluster.client.checkpoints().restore_session(back).await.unwrap();
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Running);
    let third = agent.take().await;
    let WorkKind::Session(work) = &third.work.kind else {
        panic!("a session");
    };
    assert_eq!(work.resume.as_deref().map(|resume| resume.packs.len()), Some(2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_did_is_not_lost_unless_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(&dir.path().join("coordinator"), |config, _| {
        // The agent is away, and not yet lost.
        config.timings.grace = DEADLINE * 10;
    })
    .await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let task = start(&cluster, &repo).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    fs::write(repo.path.join("b.txt"), "one\n").unwrap();
    let first = repo
        .checkpoint(&cluster, &repo.base, CheckpointReason::FilesChanged)
        .await;
    agent
        .send_events(&granted.key, 1, vec![EventBody::CheckpointTaken(first)])
        .await;
    agent.acked(1).await;
    drop(agent);

    let request = restore(&task.id, "1", false);
    let error = cluster
        .client
        .checkpoints()
        .restore_session(request.clone())
        .await
        .unwrap_err();
    let error = ApiError::from(error);
    assert_eq!(error.reason(), "FAILED_PRECONDITION");
    let words = "what session one did since checkpoint 1 is in no checkpoint, and its agent fake-1 is not connected";
    assert!(error.to_string().contains(words), "{error}");
    let unchanged = cluster.get(&task.id).await.sessions[0].clone();
    assert_eq!((unchanged.state(), unchanged.attempts), (v1::SessionState::Running, 1));

    // The same call may say it.
    let discard = v1::RestoreSessionRequest {
        discard: true,
        ..request
    };
    let done = cluster.client.checkpoints().restore_session(discard).await.unwrap();
    assert_eq!(done.into_inner().saved, None);
    assert_eq!(
        cluster.get(&task.id).await.sessions[0].state(),
        v1::SessionState::Queued
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let task = start(&cluster, &repo).await;
    let refused = async |request: v1::RestoreSessionRequest| {
        let error = cluster.client.checkpoints().restore_session(request).await.unwrap_err();
        ApiError::from(error).reason()
    };
    assert_eq!(refused(restore(&task.id, "1", true)).await, "NOT_FOUND");
    assert_eq!(refused(restore("ffffffff", "1", true)).await, "NOT_FOUND");
    let create = v1::CreateCheckpointRequest {
        request_id: "create".into(),
        task_id: task.id.clone(),
        ..Default::default()
    };
    let error = cluster
        .client
        .checkpoints()
        .create_checkpoint(create.clone())
        .await
        .unwrap_err();
    assert_eq!(ApiError::from(error).reason(), "FAILED_PRECONDITION", "nothing runs");
    let long = v1::CreateCheckpointRequest {
        note: "x".repeat(2000),
        ..create
    };
    let error = cluster.client.checkpoints().create_checkpoint(long).await.unwrap_err();
    assert_eq!(ApiError::from(error).reason(), "INVALID_ARGUMENT");

    // A checkpoint counts when its objects are there, and not before.
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    fs::write(repo.path.join("b.txt"), "one\n").unwrap();
    let mut taken = repo
        .checkpoint(&cluster, &repo.base, CheckpointReason::FilesChanged)
        .await;
    taken.pack = Some(Digest::of(b"never uploaded"));
    agent
        .send_events(&granted.key, 1, vec![EventBody::CheckpointTaken(taken)])
        .await;
    let reason = agent.rejected().await;
    assert!(reason.contains("was not uploaded"), "{reason}");
    assert_eq!(cluster.get(&task.id).await.sessions[0].checkpoints, 0);

    // Nor one that follows a missing checkpoint: the next attempt continues from the last complete
    // one.
    let granted = agent.take().await;
    let whole = repo
        .checkpoint(&cluster, &repo.base, CheckpointReason::FilesChanged)
        .await;
    fs::write(repo.path.join("b.txt"), "two\n").unwrap();
    let untold = repo
        .checkpoint(&cluster, &whole.commit, CheckpointReason::FilesChanged)
        .await;
    fs::write(repo.path.join("b.txt"), "three\n").unwrap();
    let stray = repo
        .checkpoint(&cluster, &untold.commit, CheckpointReason::FilesChanged)
        .await;
    let told = vec![EventBody::CheckpointTaken(whole.clone())];
    agent.send_events(&granted.key, 1, told).await;
    agent.acked(1).await;
    let told = vec![EventBody::CheckpointTaken(stray)];
    agent.send_events(&granted.key, 2, told).await;
    let reason = agent.rejected().await;
    assert!(reason.contains("follows neither the base nor a checkpoint"), "{reason}");
    let next = agent.take().await;
    let WorkKind::Session(work) = &next.work.kind else {
        panic!("a session");
    };
    let resume = work.resume.as_deref().expect("it goes on");
    assert_eq!((&resume.commit, next.work.attempt), (&whole.commit, 3));
    cluster.stop().await;
}
