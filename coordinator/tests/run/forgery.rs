//! Results that are not what their agent says: an agent that lies over the public protocol, and beside each
//! lie the honest result of the same kind.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use kage_core::event::ResultCommit;
use kage_core::id::{Digest, Oid};
use kage_core::task::{RepositoryRef, TaskSpec};
use kage_proto::convert::agent::WorkKind;
use kage_proto::v1;
use tokio::io::AsyncWriteExt as _;

use crate::checkpoints::Repo;
use crate::claims::{claim, passed, said};
use crate::cluster::{Cluster, FakeAgent, Granted, hello, spec};
use crate::planes::git;

/// A task that is checked, and tried once.
fn checked(base: &Oid) -> TaskSpec {
    let mut spec = spec(&["one"]);
    spec.repository = Some(RepositoryRef {
        name: "repo".parse().unwrap(),
        base: base.clone(),
        folder: None,
        names: None,
    });
    spec.policy.verify.verify = Some("true".into());
    spec.policy.max_attempts = 1;
    spec
}

/// Commits files, right on these parents.
async fn commit(repo: &Path, files: &[(&str, &str)], parents: &[&Oid]) -> Oid {
    git(repo, &["read-tree", "--empty"], None).await;
    for (name, content) in files {
        fs::write(repo.join(name), content).unwrap();
        git(repo, &["add", name], None).await;
    }
    let tree = git(repo, &["write-tree"], None).await;
    let mut arguments = vec!["commit-tree", &tree, "-m", "x"];
    for parent in parents {
        arguments.extend(["-p", parent.as_str()]);
    }
    git(repo, &arguments, None).await.parse().unwrap()
}

async fn tree(repo: &Path, commit: &Oid) -> Oid {
    let name = format!("{commit}^{{tree}}");
    git(repo, &["rev-parse", &name], None).await.parse().unwrap()
}

/// Packs what git lists for a commit but for `without`, and stores it.
async fn pack(cluster: &Cluster, repo: &Path, commit: &Oid, without: Option<&str>) -> Digest {
    let listed = git(repo, &["rev-list", "--objects", commit.as_str()], None).await;
    let ids = listed.lines().filter_map(|line| line.split(' ').next());
    let wanted: String = ids
        .filter(|id| Some(*id) != without)
        .map(|id| format!("{id}\n"))
        .collect();
    let mut packing = tokio::process::Command::new("git")
        .args(["pack-objects", "--stdout", "-q"])
        .current_dir(repo)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = packing.stdin.take().unwrap();
    input.write_all(wanted.as_bytes()).await.unwrap();
    drop(input);
    let packed = packing.wait_with_output().await.unwrap();
    assert!(packed.status.success());
    cluster.put(&packed.stdout).await
}

async fn report(cluster: &Cluster, task: &v1::Task) -> v1::Report {
    let request = v1::GetReportRequest {
        task_id: task.id.clone(),
    };
    let report = cluster.client.tasks().get_report(request).await.unwrap().into_inner();
    report.report.unwrap()
}

/// The result of a task as it is told, once an agent claimed it and said that verify passed.
async fn verified(cluster: &Cluster, agent: &mut FakeAgent, repo: &Repo, result: ResultCommit) -> v1::Report {
    let task = cluster.create(checked(&repo.base)).await;
    let granted = agent.take().await;
    let sent = pack(cluster, &repo.path, &result.commit, None).await;
    agent.send_events(&granted.key, 1, claim(result, sent)).await;
    agent.acked(2).await;
    let verify = agent.take().await;
    assert!(matches!(verify.work.kind, WorkKind::Verify(_)));
    agent.finish(&verify.key, 1, passed()).await;
    report(cluster, &task).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn risk_paths_and_size_are_those_of_the_objects_whatever_the_agent_says() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;

    let honest = commit(&repo.path, &[("a.txt", "solved\n")], &[&repo.base]).await;
    let of_honest = tree(&repo.path, &honest).await;
    let told = verified(&cluster, &mut agent, &repo, said(&honest, Some(of_honest.clone()))).await;
    let row = &told.rows[0];
    let result = row.session.as_ref().unwrap().result.as_ref().unwrap();
    assert_eq!(
        (row.risk(), told.best.unwrap().session.as_str()),
        (v1::Risk::None, "one")
    );
    assert_eq!(
        (&result.tree, result.paths.as_slice()),
        (&of_honest.to_string(), &["a.txt".to_owned()][..])
    );

    // It edits the tests, deletes a file and says that it edited one line.
    let files = [("b.txt", "solved\n"), ("test.sh", "exit 0\n"), ("more", "1\n2\n")];
    let lie = commit(&repo.path, &files, &[&repo.base]).await;
    let told = verified(&cluster, &mut agent, &repo, said(&lie, None)).await;
    let row = &told.rows[0];
    let result = row.session.as_ref().unwrap().result.as_ref().unwrap();
    assert_eq!(row.risk(), v1::Risk::High, "{row:?}");
    let flags = row.flags.join("\n");
    assert!(
        flags.contains("test.sh") && flags.contains("deletes files: a.txt"),
        "{flags}"
    );
    assert_eq!(told.best.unwrap().session, "", "nothing wins by a lie");
    assert_eq!(result.paths, ["a.txt", "b.txt", "more", "test.sh"]);
    assert_eq!(result.deleted, ["a.txt"]);
    let stat = result.diff.unwrap();
    assert_eq!((stat.files, stat.added, stat.removed), (4, 4, 1));
    assert_eq!(result.tree, tree(&repo.path, &lie).await.to_string());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_agent_needs_to_say_is_read_and_its_exaggerations_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let honest = commit(&repo.path, &[("a.txt", "solved\n")], &[&repo.base]).await;
    // A result of no risk is not pushed down by somebody's words either.
    let mut much = said(&honest, None);
    much.diff.files = 99;
    much.paths = vec!["Makefile".into(), "test.sh".into()];
    much.deleted = vec!["a.txt".into()];
    let told = verified(&cluster, &mut agent, &repo, much).await;
    assert_eq!((told.rows[0].risk(), told.rows[0].flags.len()), (v1::Risk::None, 0));
    cluster.stop().await;
}

/// A session that claims this, and what became of it.
async fn claimed(
    cluster: &Cluster,
    agent: &mut FakeAgent,
    base: &Oid,
    result: ResultCommit,
    pack: Digest,
) -> (Granted, String, v1::Session) {
    // Nothing but the session waits for the agent then.
    let mut spec = checked(base);
    spec.policy.verify.verify = None;
    let task = cluster.create(spec).await;
    let granted = agent.take().await;
    assert_eq!(
        (granted.work.task.to_string(), granted.work.attempt),
        (task.id.clone(), 1)
    );
    agent.send_events(&granted.key, 1, claim(result, pack)).await;
    let told = agent.rejected().await;
    let session = cluster.get(&task.id).await.sessions.remove(0);
    (granted, told, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_result_fails_its_session_at_once_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let (top, base) = (repo.path.as_path(), &repo.base);
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let solved = [("a.txt", "solved\n")];
    let honest = commit(top, &solved, &[base]).await;
    let root = commit(top, &solved, &[]).await;
    let stranger = commit(top, &[("a.txt", "better\n")], &[&root]).await;
    let merge = commit(top, &solved, &[base, &root]).await;
    let swapped = commit(top, &solved, &[&root, base]).await;
    let later = commit(top, &[("a.txt", "better\n")], &[&honest]).await;
    let same = commit(top, &[("a.txt", "base\n")], &[base]).await;
    let other_tree = tree(top, &later).await;
    let on = |rest: &str| format!("it does not stand on the task's base {base}: {rest}");
    let cases = [
        ("the base", base, None, "it is the base of the task".to_owned()),
        ("another history", &root, None, on("it has no parent")),
        (
            "a commit of another history",
            &stranger,
            None,
            on(&format!("its parent is {root}")),
        ),
        ("a merge", &merge, None, on("it has 2 parents")),
        ("a merge the other way round", &swapped, None, on("it has 2 parents")),
        (
            "a commit on a result",
            &later,
            None,
            on(&format!("its parent is {honest}")),
        ),
        ("the base's files again", &same, None, "it changes nothing".to_owned()),
        (
            "another tree",
            &honest,
            Some(other_tree.clone()),
            format!(
                "its tree is {}, and not {other_tree} as its agent said",
                tree(top, &honest).await
            ),
        ),
    ];
    for (name, commit, tree, why) in cases {
        let sent = pack(&cluster, top, commit, None).await;
        let (granted, told, session) = claimed(&cluster, &mut agent, base, said(commit, tree), sent).await;
        let expected = format!("the commit that was sent is no result of this task: {why}");
        assert_eq!(told, expected, "{name}");
        let failure = session.failure.clone().unwrap_or_default();
        assert_eq!(
            (session.state(), failure.kind(), failure.message.as_str()),
            (v1::SessionState::Failed, v1::FailureKind::ResultRefused, told.as_str()),
            "{name}: {session:?}"
        );
        assert_eq!((session.attempts, session.result), (1, None), "{name}");
        let url = format!("http://{}/git/default/repo", cluster.address);
        let reference = format!("refs/kage/results/{}", granted.work.session);
        let found = git(top, &["ls-remote", &url, &reference], Some(&cluster.bearer())).await;
        assert_eq!(found, "", "{name}");
    }
    let told = verified(&cluster, &mut agent, &repo, said(&honest, None)).await;
    assert_eq!(told.best.unwrap().session, "one");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_whose_objects_cannot_be_read_is_refused_and_may_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let honest = commit(&repo.path, &[("a.txt", "solved\n")], &[&repo.base]).await;
    let blob = git(&repo.path, &["rev-parse", &format!("{honest}:a.txt")], None).await;
    let of_honest = tree(&repo.path, &honest).await;
    let cases = [
        ("no pack", Digest::of(b"never uploaded")),
        ("no file", pack(&cluster, &repo.path, &honest, Some(&blob)).await),
        (
            "no tree",
            pack(&cluster, &repo.path, &honest, Some(of_honest.as_str())).await,
        ),
        (
            "no commit",
            pack(&cluster, &repo.path, &honest, Some(honest.as_str())).await,
        ),
        ("no pack at all", cluster.put(b"PACK and nothing else").await),
    ];
    for (name, sent) in cases {
        let (_, told, session) = claimed(&cluster, &mut agent, &repo.base, said(&honest, None), sent).await;
        let failure = session.failure.clone().unwrap_or_default();
        assert_eq!(
            failure.kind(),
            v1::FailureKind::CorruptedState,
            "{name}: {told}: {session:?}"
        );
    }
    let told = verified(&cluster, &mut agent, &repo, said(&honest, None)).await;
    assert_eq!(told.best.unwrap().session, "one");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_sent_again_is_taken_again_and_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let task = cluster.create(checked(&repo.base)).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let honest = commit(&repo.path, &[("a.txt", "solved\n")], &[&repo.base]).await;
    let sent = pack(&cluster, &repo.path, &honest, None).await;
    let mut events = claim(said(&honest, None), sent.clone());
    events.pop();
    for _ in 0..2 {
        agent.send_events(&granted.key, 1, events.clone()).await;
        agent.acked(1).await;
    }
    // The reference is there, and the agent has other words for it now.
    let mut lie = said(&honest, None);
    lie.paths = vec!["Makefile".into()];
    agent.send_events(&granted.key, 2, claim(lie, sent)).await;
    agent.acked(3).await;
    let session = cluster.get(&task.id).await.sessions.remove(0);
    assert_eq!(session.result.unwrap().paths, ["a.txt"]);
    cluster.stop().await;
}
