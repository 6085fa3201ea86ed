//! Backups that are made while the coordinator works: each has everything that its database names,
//! and a coordinator starts on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use kage_coordinator::backup::{self, BackupError, Flaw};
use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::id::Digest;
use kage_core::time::Timestamp;
use kage_proto::v1;

use crate::checkpoints::{Repo, start};
use crate::claims::unsaid;
use crate::cluster::{Cluster, FakeAgent, hello};
use crate::planes::git;
use crate::retention::{ended, gone, pushed};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A task that ends with a result, output, and a blob that is old by now.
async fn solved(cluster: &Cluster, dir: &Path, repo: &Repo, agent: &mut FakeAgent, n: usize) -> (String, PathBuf) {
    let task = start(cluster, repo).await;
    let granted = agent.take().await;
    fs::write(repo.path.join("a.txt"), format!("solved {n}\n")).unwrap();
    let taken = repo.checkpoint(cluster, &repo.base, CheckpointReason::Final).await;
    let pack = taken.pack.clone().unwrap();
    let result = unsaid(&taken.commit);
    agent.send_output(&granted.key, 0, b"words").await;
    let told = vec![
        EventBody::CheckpointTaken(taken),
        EventBody::ResultCommitted {
            result,
            pack: pack.clone(),
        },
        EventBody::Finished(AttemptOutcome::Claimed),
    ];
    agent.send_events(&granted.key, 1, told).await;
    agent.acked(3).await;
    let blob = blob(dir, &pack);
    let file = File::options().append(true).open(&blob).unwrap();
    file.set_modified(SystemTime::now() - 2 * DAY).unwrap();
    (task.id, blob)
}

fn blob(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/default")
        .join(&digest.as_str()[..2])
        .join(digest.as_str())
}

async fn removed(cluster: &Cluster, task: &str) {
    let remove = v1::RemoveTaskRequest {
        task_id: task.to_owned(),
        ..Default::default()
    };
    cluster.client.tasks().remove_task(remove).await.unwrap();
}

async fn tasks(cluster: &Cluster) -> Vec<v1::Task> {
    let list = v1::ListTasksRequest {
        page_size: 1000,
        ..Default::default()
    };
    cluster
        .client
        .tasks()
        .list_tasks(list)
        .await
        .unwrap()
        .into_inner()
        .tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_whole_and_a_coordinator_starts_on_it() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let repo = Repo::pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let (first, _) = solved(&cluster, &dir, &repo, &mut agent, 0).await;

    let enough = Arc::new(AtomicBool::new(false));
    let load = async {
        let mut earlier = Vec::new();
        for n in 1.. {
            earlier.push(solved(&cluster, &dir, &repo, &mut agent, n).await.0);
            // Every other one is removed soon after, with its files.
            if n % 2 == 0 {
                removed(&cluster, &earlier.remove(0)).await;
            }
            if enough.load(Ordering::Relaxed) && n >= 6 {
                return n;
            }
        }
        unreachable!("it ends when it is enough")
    };
    let backups = async {
        let mut made = Vec::new();
        for n in 0..3 {
            let to = home.path().join(format!("backup-{n}"));
            let contained = backup::make(&dir, &to, NOW).await.unwrap();
            assert_eq!(contained.flaws, []);
            made.push((to, contained));
        }
        enough.store(true, Ordering::Relaxed);
        made
    };
    let (solved, made) = tokio::join!(load, backups);
    assert!(solved >= 6);
    let live = backup::verify(&dir).await.unwrap();
    assert_eq!(live.flaws, [], "while it runs");
    cluster.stop().await;

    for (n, (backup, contained)) in made.iter().enumerate() {
        let checked = backup::verify(backup).await.unwrap();
        assert_eq!(checked.flaws, []);
        assert_eq!((checked.tasks, checked.blobs), (contained.tasks, contained.blobs));
        let data = home.path().join(format!("restored-{n}"));
        backup::restore(backup, &data, false, NOW).await.unwrap();
        let cluster = Cluster::start(&data).await;
        let listed = tasks(&cluster).await;
        assert_eq!(listed.len() as u64, contained.tasks);
        let known = cluster.get(&first).await;
        let result = known.sessions[0].result.clone().unwrap();
        let url = format!("http://{}/git/default/repo", cluster.address);
        let reference = format!("refs/kage/results/{}", known.sessions[0].id);
        let shown = git(&repo.path, &["ls-remote", &url, &reference], Some(&cluster.bearer())).await;
        assert!(shown.starts_with(&result.commit), "{shown}");
        cluster.stop().await;
        let again = backup::restore(backup, &data, false, NOW).await.unwrap_err();
        assert!(matches!(again, BackupError::NotEmpty { .. }), "{again}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_removed_while_a_backup_is_made() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let base = pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let left = ended(&cluster, &dir, &mut agent, &base, b"first").await;
    let other_backup = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("backup.lock"))
        .unwrap();
    // A sweep may be at it.
    other_backup.lock_shared().unwrap();
    removed(&cluster, &left.task).await;
    let contained = backup::make(&dir, &home.path().join("backup"), NOW).await.unwrap();
    assert_eq!(contained.tasks, 0);
    assert_eq!(left.is_there(), (true, true));
    drop(other_backup);
    gone(&left).await;
    cluster.stop().await;
}

/// Every file below a folder, with its length and when it was written.
fn listed(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let (path, meta) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
        if meta.is_dir() {
            all.extend(listed(&path));
        }
        all.push((path, meta.len(), meta.modified().unwrap()));
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_only_read_when_it_is_checked_or_put_back() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let repo = Repo::pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    solved(&cluster, &dir, &repo, &mut agent, 0).await;
    cluster.stop().await;
    let to = home.path().join("backup");
    backup::make(&dir, &to, NOW).await.unwrap();
    let before = listed(&to);
    assert_eq!(backup::verify(&to).await.unwrap().flaws, []);
    backup::restore(&to, &home.path().join("restored"), false, NOW)
        .await
        .unwrap();
    // It may be on a medium that cannot be written to.
    assert_eq!(listed(&to), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_backup_lacks_is_found_before_it_is_put_back() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let repo = Repo::pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let (task, at) = solved(&cluster, &dir, &repo, &mut agent, 0).await;
    let session = cluster.get(&task).await.sessions[0].id.clone();
    cluster.stop().await;
    let inside = backup::make(&dir, &dir.join("backup"), NOW).await.unwrap_err();
    assert!(matches!(inside, BackupError::Inside { .. }), "{inside}");
    let of_nothing = backup::make(home.path(), &home.path().join("x"), NOW)
        .await
        .unwrap_err();
    assert!(matches!(of_nothing, BackupError::NoData { .. }), "{of_nothing}");

    let place = at.strip_prefix(&dir).unwrap().to_owned();
    let bare = "repos/default/repo.git";
    let made = |n: usize| home.path().join(format!("backup-{n}"));
    let is = |flaws: &[Flaw], words: &str| {
        let told: Vec<_> = flaws.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|flaw| flaw.contains(words)), "{words}: {told:?}");
    };
    type Harm<'a> = &'a dyn Fn(&Path);
    let harms: [(&str, Harm<'_>); 6] = [
        ("is missing", &|backup| fs::remove_file(backup.join(&place)).unwrap()),
        ("has other bytes", &|backup| {
            fs::write(backup.join(&place), "other").unwrap()
        }),
        ("the reference to the result of session", &|backup| {
            fs::remove_file(backup.join(bare).join("refs/kage/results").join(&session)).unwrap();
        }),
        ("is missing or damaged", &|backup| {
            fs::remove_dir_all(backup.join(bare).join("objects")).unwrap();
            fs::create_dir_all(backup.join(bare).join("objects/pack")).unwrap();
        }),
        ("repository repo of project default is missing", &|backup| {
            fs::remove_dir_all(backup.join(bare)).unwrap();
        }),
        ("the folder is of store", &|backup| {
            fs::write(backup.join("store-id"), format!("{} 1\n", "0".repeat(32))).unwrap();
        }),
    ];
    for (n, (words, harm)) in harms.iter().enumerate() {
        let backup = made(n);
        assert_eq!(backup::make(&dir, &backup, NOW).await.unwrap().flaws, []);
        assert_eq!(backup::verify(&backup).await.unwrap().flaws, []);
        harm(&backup);
        is(&backup::verify(&backup).await.unwrap().flaws, words);
        let data = home.path().join("new");
        let refused = backup::restore(&backup, &data, false, NOW).await.unwrap_err();
        assert!(matches!(refused, BackupError::Flawed { .. }), "{refused}");
        assert!(!data.exists());
    }
    // As it is, when somebody says so.
    let data = home.path().join("as-it-is");
    let lacks = backup::restore(&made(0), &data, true, NOW).await.unwrap();
    assert_eq!(lacks.flaws.len(), 1);
    Cluster::start(&data).await.stop().await;

    // A database with a damaged page, and a backup that was cut off.
    let damaged = made(9);
    backup::make(&dir, &damaged, NOW).await.unwrap();
    let mut bytes = fs::read(damaged.join("kage.db")).unwrap();
    bytes[4096..8192].fill(0xa5);
    fs::write(damaged.join("kage.db"), bytes).unwrap();
    for error in [
        backup::verify(&damaged).await.unwrap_err(),
        backup::restore(&damaged, &home.path().join("new"), true, NOW)
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, BackupError::Database(_)), "{error}");
    }
    fs::remove_file(damaged.join("backup.json")).unwrap();
    let cut_off = backup::restore(&damaged, &home.path().join("new"), true, NOW)
        .await
        .unwrap_err();
    assert!(matches!(cut_off, BackupError::Unfinished { .. }), "{cut_off}");
}
