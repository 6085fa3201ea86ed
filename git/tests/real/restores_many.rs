//! Restores of so many files that several are written and placed at a time, and the new objects
//! become a pack.

use std::fs;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::restore::RestoreOptions;
use kage_git::{Mirror, Worktree};

use crate::checkpoints::worktree;
use crate::faults::{End, Fault, can_inject, run};
use crate::leftovers::leftovers;
use crate::restores::{careful, files, saving};
use crate::sandbox::{Sandbox, write};

const FOLDERS: usize = 20;
const FILES: usize = 10;

/// A worktree with two checkpoints that differ in every file.
struct Stage {
    sandbox: Sandbox,
    mirror: Mirror,
    worktree: Worktree,
    first: Oid,
    second: Oid,
    files_then: Vec<(PathBuf, u32, Vec<u8>)>,
}

impl Stage {
    async fn new() -> Self {
        let sandbox = Sandbox::new();
        let (mirror, worktree) = worktree(&sandbox, &[("base", "b\n")]).await;
        let top = worktree.path().to_owned();
        for (path, number) in all() {
            write(&top.join(path), format!("first {number}\n"));
        }
        let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
        assert_eq!(first.files_changed, (FOLDERS * FILES) as u64);
        let files_then = files(&top);
        for (path, number) in all() {
            write(&top.join(path), format!("second {number}\n"));
        }
        // A file where a folder was, a deleted folder, and a new one.
        fs::remove_dir_all(top.join("folder0")).unwrap();
        write(&top.join("folder0"), "no folder\n");
        fs::remove_dir_all(top.join("folder1")).unwrap();
        write(&top.join("new/file"), "n\n");
        let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
        Self {
            sandbox,
            mirror,
            worktree,
            first: first.commit,
            second: second.commit,
            files_then,
        }
    }

    fn top(&self) -> &Path {
        self.worktree.path()
    }

    /// The worktree as another process finds it.
    async fn open(&self) -> Worktree {
        Worktree::open(&self.mirror, self.top(), self.worktree.base())
            .await
            .unwrap()
    }
}

fn all() -> impl Iterator<Item = (String, usize)> {
    (0..FOLDERS * FILES).map(|number| (format!("folder{}/file{}", number / FILES, number % FILES), number))
}

#[tokio::test]
async fn many_new_files_become_one_pack_that_git_reads() {
    let stage = Stage::new().await;
    let mirror = stage.mirror.path();
    let list = fs::read_dir(mirror.join("objects/pack")).unwrap();
    let names: Vec<PathBuf> = list.map(|item| item.unwrap().path()).collect();
    let indexes: Vec<&PathBuf> = names
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "idx"))
        .collect();
    // One a checkpoint; what the base came in may be a third.
    assert!(matches!(indexes.len(), 2 | 3), "{names:?}");
    for index in indexes {
        stage.sandbox.git(mirror, &["verify-pack", index.to_str().unwrap()]);
    }
    stage
        .sandbox
        .git(mirror, &["fsck", "--strict", "--full", "--no-dangling"]);
    let shown = stage
        .sandbox
        .git(mirror, &["cat-file", "blob", &format!("{}:folder7/file3", stage.first)]);
    assert_eq!(shown, "first 73");
    assert_eq!(leftovers(mirror), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn many_files_come_back_and_go_again() {
    let stage = Stage::new().await;
    let now = files(stage.top());
    let there = stage.worktree.restore(&stage.first, &careful()).await.unwrap();
    assert_eq!(there.paths.len(), FOLDERS * FILES + 2);
    assert_eq!(files(stage.top()), stage.files_then);
    let back = stage.worktree.restore(&stage.second, &careful()).await.unwrap();
    assert_eq!(back.aside, []);
    assert_eq!(files(stage.top()), now);
}

/// As with few files, at some of the many steps.
#[tokio::test]
async fn a_restore_of_many_files_that_is_interrupted_is_finished() {
    let stage = Stage::new().await;
    let (mut stop, mut finished) = (3, 0);
    loop {
        let options = RestoreOptions {
            stop_before: Some(stop),
            ..careful()
        };
        let done = stage.open().await.restore(&stage.first, &options).await;
        let worktree = stage.open().await;
        if let Some(rest) = worktree.finish_restore().await.unwrap() {
            assert_eq!(rest.aside, [], "step {stop}");
            finished += 1;
        }
        if done.is_ok() || finished > 0 {
            assert_eq!(files(stage.top()), stage.files_then, "step {stop}");
            worktree.restore(&stage.second, &careful()).await.unwrap();
        }
        if done.is_ok() {
            break;
        }
        stop += 61;
    }
    assert!(finished > 5, "only {finished} were interrupted");
}

/// A change while files are placed is kept, whichever thread finds it.
#[tokio::test]
async fn what_is_written_while_many_files_are_restored_is_kept() {
    let stage = Stage::new().await;
    // After the new files are written, before most are placed.
    for stop in [FOLDERS * FILES + 10, FOLDERS * FILES + 120, FOLDERS * FILES + 300] {
        let options = RestoreOptions {
            stop_before: Some(stop as u64),
            ..careful()
        };
        let worktree = stage.open().await;
        assert!(worktree.restore(&stage.first, &options).await.is_err());
        for (path, number) in all().filter(|(_, number)| number % 7 == 0) {
            let path = stage.top().join(path);
            // A folder may not be there, or be a file.
            if path.parent().unwrap().is_dir() {
                write(&path, format!("foreign {stop} {number}\n"));
            }
        }
        fs::remove_dir_all(stage.top().join("folder5")).unwrap();
        write(&stage.top().join("folder5"), format!("foreign {stop}\n"));
        let rest = stage.open().await.finish_restore().await.unwrap().unwrap();
        assert_eq!(files(stage.top()), stage.files_then, "step {stop}");
        let kept = |text: &str| {
            let mut texts = rest.aside.iter().map(|(_, now_at)| fs::read_to_string(now_at).unwrap());
            texts.any(|kept| kept == text)
        };
        for (_, number) in all().filter(|(_, number)| number % 7 == 0 && number / FILES > 1 && number / FILES != 5) {
            assert!(
                kept(&format!("foreign {stop} {number}\n")),
                "step {stop}: {number} is lost"
            );
        }
        assert!(
            kept(&format!("foreign {stop}\n")),
            "step {stop}: what was no folder is lost"
        );
        stage.open().await.restore(&stage.second, &saving()).await.unwrap();
    }
}

/// Each thread counts its own calls: one of them dies in the middle of its share.
#[tokio::test]
async fn a_restore_of_many_files_that_is_killed_is_finished_or_never_began() {
    if !can_inject("a_restore_of_many_files_that_is_killed_is_finished_or_never_began") {
        return;
    }
    let stage = Stage::new().await;
    let (mirror, top) = (stage.mirror.path().to_str().unwrap(), stage.top().to_str().unwrap());
    let base = stage.worktree.base().to_string();
    let arguments = ["restore", mirror, top, &base, stage.first.as_str()];
    let mut hits = 0;
    for (call, number) in [
        ("write", 20),
        ("fchmod", 20),
        ("syncfs", 1),
        ("fsync", 1),
        ("renameat2", 1),
        ("renameat2", 25),
        ("unlinkat", 1),
        ("unlinkat", 25),
        ("mkdirat", 1),
    ] {
        let place = format!("{call} {number}");
        match run(&stage.sandbox.path(""), call, number, Fault::Kill, &arguments) {
            End::Hit { .. } => hits += 1,
            End::NotReached => {}
        }
        let worktree = stage.open().await;
        if worktree.finish_restore().await.unwrap().is_none() && files(stage.top()) != stage.files_then {
            worktree.restore(&stage.first, &careful()).await.unwrap();
        }
        assert_eq!(files(stage.top()), stage.files_then, "{place}");
        worktree.restore(&stage.second, &careful()).await.unwrap();
    }
    assert!(hits > 5, "only {hits} places");
}
