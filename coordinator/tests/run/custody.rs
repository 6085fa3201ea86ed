//! Databases that are missing, truncated, of another store, or old: a coordinator does not delete
//! the data beside them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::id::{AttemptId, Oid};
use kage_proto::v1;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};
use crate::planes::git;
use crate::retention::{Left, ended, pushed};

const DATABASE: [&str; 3] = ["kage.db", "kage.db-wal", "kage.db-shm"];

/// Data of a coordinator that ran, with a task that has output, a blob and a result.
struct Ran {
    home: tempfile::TempDir,
    dir: PathBuf,
    left: Left,
    base: (Oid, Oid),
}

async fn ran() -> Ran {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let base = pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let left = ended(&cluster, &dir, &mut agent, &base, b"first").await;
    cluster.stop().await;
    Ran { home, dir, left, base }
}

impl Ran {
    /// Everything as a crash leaves it at this moment.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.home.path().join(name);
        copy(&self.dir, &to);
        to
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Every file with its bytes, without the lock and the files that SQLite makes for a reader.
fn files(of: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(of).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("lock") && !path.ends_with("kage.db-shm") {
            let bytes = std::fs::read(&path).unwrap();
            if !bytes.is_empty() {
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

/// Refuses twice and changes nothing; the words.
async fn refused(dir: &Path) -> String {
    let before = files(dir);
    let words = Cluster::refused(dir).await;
    assert_eq!(Cluster::refused(dir).await, words);
    assert!(files(dir) == before, "{words}");
    for said in [dir.to_str().unwrap(), "kage.db", "nothing was changed"] {
        assert!(words.contains(said), "{said}: {words}");
    }
    let flag = words.contains("--adopt-data") || words.contains("--accept-older");
    assert!(flag, "{words}");
    words
}

async fn tasks(cluster: &Cluster) -> Vec<String> {
    let list = v1::ListTasksRequest::default();
    let listed = cluster.client.tasks().list_tasks(list).await.unwrap();
    listed.into_inner().tasks.into_iter().map(|task| task.id).collect()
}

/// Starts a coordinator whose clock is so many days ahead, also on an older database.
pub(crate) async fn start_after(dir: &Path, days: u64) -> Cluster {
    Cluster::start_with(dir, |config, ports| {
        config.accept_older = true;
        let system = Arc::clone(&ports.clock);
        let ahead = Duration::from_secs(days * 24 * 60 * 60);
        ports.clock = Arc::new(move || system() + ahead);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_database_nothing_starts_and_nothing_goes() {
    let ran = ran().await;
    let aside = ran.home.path().join("kage.db");
    std::fs::rename(ran.dir.join("kage.db"), &aside).unwrap();
    let words = refused(&ran.dir).await;
    assert!(words.contains("the output of 1 attempt, "), "{words}");
    assert!(words.contains("kage.db is missing"), "{words}");

    std::fs::write(ran.dir.join("kage.db"), "").unwrap();
    assert!(refused(&ran.dir).await.contains("has no bytes"));

    // As a version without ids would leave it.
    for mark in ["store-id", "kage.db"] {
        std::fs::remove_file(ran.dir.join(mark)).unwrap();
    }
    assert!(refused(&ran.dir).await.contains("kage.db is missing"));

    std::fs::copy(&aside, ran.dir.join("kage.db")).unwrap();
    let cluster = Cluster::start(&ran.dir).await;
    assert_eq!(tasks(&cluster).await, std::slice::from_ref(&ran.left.task));
    assert_eq!(ran.left.is_there(), (true, true));
    cluster.stop().await;
    assert!(ran.dir.join("store-id").exists(), "it is taken once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_store_or_a_new_one_is_refused() {
    let ran = ran().await;
    let other = ran.home.path().join("other");
    Cluster::start(&other).await.stop().await;
    let own = std::fs::read(ran.dir.join("kage.db")).unwrap();
    std::fs::copy(other.join("kage.db"), ran.dir.join("kage.db")).unwrap();
    let words = refused(&ran.dir).await;
    assert!(
        words.contains("belongs to store ") && words.contains("kage.db to store "),
        "{words}"
    );

    // Beside data without a store id it counts as new.
    std::fs::remove_file(ran.dir.join("store-id")).unwrap();
    assert!(refused(&ran.dir).await.contains("has never been used"));

    // A person's word counts, and still nothing goes.
    let cluster = Cluster::start_with(&ran.dir, |config, _| config.adopt_data = true).await;
    assert_eq!(tasks(&cluster).await, Vec::<String>::new());
    cluster.stop().await;
    assert_eq!(ran.left.is_there(), (true, true));

    // What was swept after that returns with its database.
    let cluster = start_after(&ran.dir, 8).await;
    soon("the sweep", async {
        while ran.left.is_there() != (false, false) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cluster.stop().await;
    std::fs::write(ran.dir.join("kage.db"), own).unwrap();
    let cluster = Cluster::start_with(&ran.dir, |config, _| config.adopt_data = true).await;
    soon("the return", async {
        while ran.left.is_there() != (true, true) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(tasks(&cluster).await, std::slice::from_ref(&ran.left.task));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_lost_with_what_was_in_it_is_missed() {
    let ran = ran().await;
    let cluster = Cluster::start(&ran.dir).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let second = ended(&cluster, &ran.dir, &mut agent, &ran.base, b"second").await;
    let crashed = ran.copy("crashed");
    let whole = ran.copy("whole");
    cluster.stop().await;

    std::fs::remove_file(crashed.join("kage.db-wal")).unwrap();
    let words = refused(&crashed).await;
    assert!(words.contains("the output of 1 attempts that its database"), "{words}");
    std::fs::copy(whole.join("kage.db-wal"), crashed.join("kage.db-wal")).unwrap();
    let cluster = Cluster::start(&crashed).await;
    assert_eq!(tasks(&cluster).await, [second.task.clone(), ran.left.task.clone()]);
    cluster.stop().await;

    // Another program that opened the database wrote the log into it: nothing is lost.
    let looked = rusqlite::Connection::open(whole.join("kage.db")).unwrap();
    looked
        .query_row("SELECT count(*) FROM tasks", [], |row| row.get::<_, i64>(0))
        .unwrap();
    looked.close().unwrap();
    assert!(!whole.join("kage.db-wal").exists());
    Cluster::start(&whole).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_run_whose_log_is_lost_is_not_begun_anew() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let base = pushed(&cluster, &home.path().join("repo")).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    ended(&cluster, &dir, &mut agent, &base, b"first").await;
    let crashed = home.path().join("crashed");
    copy(&dir, &crashed);
    cluster.stop().await;
    for lost in &DATABASE[1..] {
        std::fs::remove_file(crashed.join(lost)).unwrap();
    }
    assert!(refused(&crashed).await.contains("has never been used"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_newer_than_a_backup_that_was_put_back_stays() {
    let ran = ran().await;
    let backup = std::fs::read(ran.dir.join("kage.db")).unwrap();
    let cluster = Cluster::start(&ran.dir).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let newer = ended(&cluster, &ran.dir, &mut agent, &ran.base, b"newer").await;
    let session = cluster.get(&newer.task).await.sessions[0].id.clone();
    cluster.stop().await;
    let right = std::fs::read(ran.dir.join("kage.db")).unwrap();
    let repository = ran.dir.join("repos/default/repo.git");
    let result = format!("refs/kage/results/{session}");
    git(&repository, &["update-ref", &result, ran.base.0.as_str()], None).await;

    std::fs::write(ran.dir.join("kage.db"), backup).unwrap();
    assert!(refused(&ran.dir).await.contains("is older than the data"));
    for days in [0, 1, 6, 8] {
        let cluster = start_after(&ran.dir, days).await;
        let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
        assert_eq!(tasks(&cluster).await.len(), 1);
        // A task that is dropped by hand goes at once, with a sweep.
        let task = ended(&cluster, &ran.dir, &mut agent, &ran.base, b"at once").await;
        let remove = v1::RemoveTaskRequest {
            request_id: format!("remove-{days}"),
            task_id: task.task.clone(),
            now: true,
        };
        cluster.client.tasks().remove_task(remove).await.unwrap();
        crate::retention::gone(&task).await;
        if days > 7 {
            assert_eq!(newer.is_there(), (false, false));
            let attempt: AttemptId = newer.output.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let batches = std::fs::read_dir(ran.dir.join("quarantine")).unwrap();
            let kept: Vec<_> = batches
                .map(|batch| batch.unwrap().path().join("output").join(attempt.to_string()))
                .collect();
            assert_eq!(kept.len(), 1, "the task that was dropped is not in it");
            assert_eq!(std::fs::read(kept[0].join("stdout")).unwrap(), b"words");
        } else {
            assert_eq!(newer.is_there(), (true, true), "nothing is put aside on day {days}");
        }
        cluster.stop().await;
    }
    let shown = |name: &'static str| {
        let repository = repository.clone();
        async move { git(&repository, &["for-each-ref", "--format=%(refname)", name], None).await }
    };
    assert_eq!(shown("refs/kage/results").await, "");
    assert!(shown("refs/kage/swept").await.ends_with(&session));

    // The right database returns, and everything with it.
    std::fs::write(ran.dir.join("kage.db"), right).unwrap();
    assert!(
        refused(&ran.dir).await.contains("is older than the data"),
        "each is behind the other"
    );
    let cluster = Cluster::start_with(&ran.dir, |config, _| config.accept_older = true).await;
    soon("the return", async {
        while newer.is_there() != (true, true) || shown("refs/kage/results").await != result {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_cut_off_is_repeated() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    let crashed = |name: &str| {
        let to = home.path().join(name);
        copy(&dir, &to);
        to
    };
    let (no_mark, no_database) = (crashed("no-mark"), crashed("no-database"));
    cluster.stop().await;
    std::fs::remove_file(no_mark.join("store-id")).unwrap();
    Cluster::start(&no_mark).await.stop().await;
    for name in DATABASE.iter().chain(&["store-id", "kage.db-open"]) {
        std::fs::remove_file(no_database.join(name)).unwrap();
    }
    // The token was drawn by then.
    let cluster = Cluster::start(&no_database).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let task = cluster.create(spec(&["one"])).await;
    let granted = agent.take().await;
    let told = vec![EventBody::Activity("it works".to_owned())];
    agent.send_events(&granted.key, 1, told).await;
    agent.finish(&granted.key, 2, AttemptOutcome::Claimed).await;
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Succeeded);
    cluster.stop().await;
}

/// A call that stores something, and whether it was acknowledged.
async fn acknowledged(cluster: &Cluster, n: u32) -> bool {
    let request = v1::CreateTaskRequest {
        request_id: format!("acknowledged-{n}"),
        spec: Some(spec(&["one"]).into()),
        wait_for_agent: true,
        origin: None,
    };
    cluster.client.tasks().create_task(request).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_same_run_is_older_by_one_commit() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    assert!(acknowledged(&cluster, 1).await);
    let older = home.path().join("older");
    copy(&dir, &older);
    assert!(acknowledged(&cluster, 2).await);
    let crashed = home.path().join("crashed");
    copy(&dir, &crashed);
    cluster.stop().await;
    // Put back whole: the database knows everything up to its note.
    let cluster = Cluster::start(&older).await;
    assert_eq!(tasks(&cluster).await.len(), 1);
    cluster.stop().await;

    // What a crash leaves is whole. Without the log, or its end, nothing starts.
    let log = crashed.join("kage.db-wal");
    let whole = std::fs::read(&log).unwrap();
    let middle = whole.len() / 2;
    let mut damaged = whole.clone();
    for byte in &mut damaged[middle..middle + 64] {
        *byte ^= 0xff;
    }
    for lost in [&whole[..middle], &damaged] {
        std::fs::write(&log, lost).unwrap();
        let words = refused(&crashed).await;
        assert!(words.contains("is older than the data"), "{words}");
    }
    std::fs::remove_file(&log).unwrap();
    let words = refused(&crashed).await;
    assert!(words.contains("is older than the data"), "{words}");
    std::fs::write(&log, &whole).unwrap();
    let cluster = Cluster::start(&crashed).await;
    assert_eq!(tasks(&cluster).await.len(), 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_into_a_file_that_nobody_finds_again() {
    let both = &DATABASE[..2];
    for (lost, is_replaced) in [(&both[..1], false), (both, true), (&both[1..], false)] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("coordinator");
        let cluster = Cluster::start(&dir).await;
        assert!(acknowledged(&cluster, 1).await);
        let earlier = home.path().join("earlier");
        copy(&dir, &earlier);
        assert!(acknowledged(&cluster, 2).await);

        let aside = home.path().join("aside");
        std::fs::create_dir(&aside).unwrap();
        for name in lost {
            std::fs::rename(dir.join(name), aside.join(name)).unwrap();
            if is_replaced {
                std::fs::copy(earlier.join(name), dir.join(name)).unwrap();
            }
        }
        assert!(!acknowledged(&cluster, 3).await, "{lost:?} {is_replaced}");
        let words = cluster.died().await;
        assert!(words.contains("was removed or replaced while"), "{words}");
        if is_replaced {
            assert!(refused(&dir).await.contains("is older than the data"));
        }

        for name in lost {
            std::fs::rename(aside.join(name), dir.join(name)).unwrap();
        }
        let cluster = Cluster::start(&dir).await;
        let kept = tasks(&cluster).await.len();
        assert!(kept >= 2, "{lost:?}: everything that was acknowledged is there: {kept}");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_coordinator_does_not_start_although_the_lock_file_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("coordinator");
    let cluster = Cluster::start(&dir).await;
    std::fs::remove_file(dir.join("lock")).unwrap();
    let words = Cluster::refused(&dir).await;
    assert!(words.contains("is in use by another coordinator"), "{words}");
    assert!(acknowledged(&cluster, 1).await, "the first goes on");
    cluster.stop().await;
    Cluster::start(&dir).await.stop().await;
}
