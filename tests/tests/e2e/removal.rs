//! An ended task is removed with all its data, but not what a person has fetched of it or is still
//! reading.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kage_coordinator::store::Store;
use kage_core::id::TaskId;
use kage_tests::command::Person;
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::wait::wait_for;

/// Two days: unreferenced blobs are kept while they are young.
const OLD: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Every file below a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                // It went meanwhile.
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

/// Those of these files that still exist.
fn left(files: &[PathBuf]) -> Vec<&PathBuf> {
    files.iter().filter(|file| file.exists()).collect()
}

#[tokio::test]
async fn a_removed_task_leaves_nothing_behind_and_takes_nothing_else_along() {
    let person = Person::new();
    person.adapter(
        "fixer",
        "cat >/dev/null; echo mended; echo 'add() { echo $(($1 + $2)); }' > add.sh",
    );
    person.adapter("sleeper", "cat >/dev/null; echo asleep; sleep 1000");
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let run = [
        "run", "mend it", "--with", "fixer", "--verify", VERIFY, "--apply", "--format", "json",
    ];
    let fixed = kage(&run).await;
    assert_eq!(fixed.code, 0, "{fixed:#?}");
    let fixed = kage(&["show", "--format", "json"]).await.json();
    let task = fixed["id"].as_str().unwrap();
    let commit = fixed["sessions"][0]["result"]["commit"].as_str().unwrap();
    let checkpoints = kage(&["checkpoint", "ls", task, "--format", "json"]).await.json();
    assert_ne!(checkpoints.as_array().unwrap().len(), 0);

    let data = person.path("state/coordinator");
    let (blobs, output) = (files(&data.join("blobs")), files(&data.join("output")));
    assert!(!blobs.is_empty() && !output.is_empty(), "{blobs:#?} {output:#?}");
    let asleep = kage(&["run", "sleep", "--with", "sleeper", "-d", "--format", "json"]).await;
    let other = asleep.json()["id"].as_str().unwrap().to_owned();
    wait_for("the sleeper speaks", async || {
        kage(&["logs", &other]).await.out.contains("asleep").then_some(())
    })
    .await;
    let busy = kage(&["rm", &other]).await;
    assert_eq!(busy.code, 2, "{busy:#?}");
    assert!(busy.err.contains("is being worked on"), "{busy:#?}");

    for blob in &blobs {
        let file = File::options().append(true).open(blob).unwrap();
        file.set_modified(SystemTime::now() - OLD).unwrap();
    }
    let removed = kage(&["rm", task]).await;
    assert_eq!(removed.code, 0, "{removed:#?}");
    let results = |repository: PathBuf| {
        let references = ["for-each-ref", "--format=%(objectname)", "refs/kage/results"];
        let path = repository.to_str().unwrap().to_owned();
        repo.git(&[&["--git-dir", &path][..], &references].concat())
    };
    wait_for("its output, packs and references are gone", async || {
        let gone = left(&blobs).is_empty() && left(&output).is_empty();
        (gone && results(only_folder(&data.join("repos/default"))).is_empty()).then_some(())
    })
    .await;
    for arguments in [&["show"][..], &["logs"], &["diff"], &["checkpoint", "ls"], &["rm"]] {
        let said = kage(&[arguments, &[task]].concat()).await;
        assert_eq!(said.code, 4, "{arguments:?}: {said:#?}");
    }

    // The person's files stay, and the other task is unchanged.
    assert!(results(only_folder(&person.path("state/results/default"))).contains(commit));
    assert_ne!(repo.git(&["status", "--porcelain"]), "");
    let listed = kage(&["ls", "--format", "json"]).await.json();
    let [only] = listed.as_array().unwrap().as_slice() else {
        panic!("one task is left: {listed:#}");
    };
    assert_eq!(
        (&only["id"], &only["state"]),
        (&other.as_str().into(), &"TASK_STATE_RUNNING".into())
    );
    assert!(kage(&["logs", &other]).await.out.contains("asleep"));
    assert_eq!(kage(&["stop", &other]).await.code, 0);
    assert_eq!(kage(&["wait", &other]).await.code, 130);
    let down = kage(&["down"]).await;
    assert_eq!(down.code, 0, "{down:#?}");

    let store = Store::open(&data.join("kage.db")).unwrap();
    let id: TaskId = task.parse().unwrap();
    assert!(store.task(id).await.unwrap().is_none());
    assert_eq!(store.attempts_of(id).await.unwrap().len(), 0);
    assert_eq!(store.events(id, 0, 100).await.unwrap().len(), 0);
    let named = store.in_files().await.unwrap();
    assert_eq!(
        (named.attempts.len(), named.sessions.len()),
        (1, 1),
        "those of the other"
    );
    store.close().await;
}

/// The only folder in another: the one repository of a project.
fn only_folder(folder: &Path) -> PathBuf {
    let entries: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    let [Ok(only)] = entries.as_slice() else {
        panic!("one repository: {entries:?}");
    };
    only.path()
}
