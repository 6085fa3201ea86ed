//! A checkpoint and a restore that are killed, or get an error, at every system call that changes
//! something. The next operation finds the old state or the new one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::restore::{Foreign, RestoreOptions};
use kage_git::{Mirror, Worktree};

use crate::faults::{End, Fault, MUTATING, can_inject, run};
use crate::leftovers::leftovers;
use crate::sandbox::{Sandbox, copy_folder, fingerprint, write};

type Files = Vec<(PathBuf, u32, Vec<u8>)>;

/// A mirror and a worktree, with copies of both to begin again from.
struct Stage {
    sandbox: Sandbox,
    base: Oid,
    /// An earlier checkpoint.
    first: Oid,
    /// The tree of what is on the disk now.
    now: String,
    /// What is on the disk now.
    files: Files,
    /// What was on the disk at `first`.
    files_then: Files,
}

impl Stage {
    async fn new() -> Self {
        let sandbox = Sandbox::new();
        let source = sandbox.repository(
            "source",
            &[
                (".gitignore", "*.log\n"),
                ("edited", "1\n"),
                ("folder/gone", "g\n"),
                ("file", "f\n"),
            ],
        );
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        let top = worktree.path().to_owned();
        symlink("edited", top.join("link")).unwrap();
        let first = worktree.checkpoint(&base, "first").await.unwrap().commit;
        let files_then = files(&top);
        write(&top.join("edited"), "2\n");
        fs::remove_dir_all(top.join("folder")).unwrap();
        fs::remove_file(top.join("file")).unwrap();
        write(&top.join("file/inner"), "x\n");
        fs::remove_file(top.join("link")).unwrap();
        symlink("elsewhere", top.join("link")).unwrap();
        write(&top.join("made"), "m\n");
        write(&top.join("ignored.log"), "l\n");
        let files = files(&top);
        // What a checkpoint of it would be, made where it does not matter.
        copy_folder(&sandbox.path("m.git"), &sandbox.path("m.first"));
        let now = worktree.checkpoint(&first, "now").await.unwrap().tree.to_string();
        fs::remove_dir_all(sandbox.path("m.git")).unwrap();
        copy_folder(&sandbox.path("m.first"), &sandbox.path("m.git"));
        copy_folder(&top, &sandbox.path("w.first"));
        Self {
            sandbox,
            base,
            first,
            now,
            files,
            files_then,
        }
    }

    fn begin_again(&self) {
        for (name, copy) in [("m.git", "m.first"), ("w", "w.first")] {
            fs::remove_dir_all(self.sandbox.path(name)).unwrap();
            copy_folder(&self.sandbox.path(copy), &self.sandbox.path(name));
        }
    }

    fn files(&self) -> Files {
        files(&self.sandbox.path("w"))
    }

    async fn open(&self) -> Worktree {
        let mirror = Mirror::open_or_init(self.sandbox.path("m.git")).await.unwrap();
        Worktree::open(&mirror, self.sandbox.path("w"), &self.base)
            .await
            .unwrap()
    }

    /// The checkpoints that references name, with their trees; each is whole.
    fn checkpoints(&self) -> BTreeSet<(String, String)> {
        let mirror = self.sandbox.path("m.git");
        let format = "--format=%(objectname) %(tree)";
        let list = self
            .sandbox
            .git(&mirror, &["for-each-ref", format, "refs/kage/checkpoints"]);
        self.sandbox
            .git(&mirror, &["fsck", "--strict", "--no-dangling", "--connectivity-only"]);
        list.lines()
            .map(|line| {
                let (commit, tree) = line.split_once(' ').unwrap();
                (commit.to_owned(), tree.to_owned())
            })
            .collect()
    }

    fn last(&self) -> String {
        let checkouts = self.sandbox.path("m.git").join("checkouts");
        let checkout = fs::read_dir(checkouts).unwrap().next().unwrap().unwrap().path();
        fs::read_to_string(checkout.join("last")).unwrap().trim().to_owned()
    }

    /// Runs one step with a fault in every call of every kind, and lets `check` look at what
    /// it left. `Some(true)` = the step said that it is done. Returns how many faults hit.
    async fn torture(&self, fault: Fault, arguments: &[&str], check: impl AsyncFn(&str, bool)) -> usize {
        let mut hits = 0;
        for call in MUTATING {
            for number in 1.. {
                self.begin_again();
                let folder = self.sandbox.path("");
                let End::Hit { succeeded, said } = run(&folder, call, number, fault, arguments) else {
                    break;
                };
                hits += 1;
                let place = format!("{call} {number} {fault:?}: {said}");
                check(&place, succeeded).await;
            }
        }
        hits
    }

    async fn torture_checkpoint(&self, fault: Fault) -> usize {
        let (mirror, worktree) = (self.sandbox.path("m.git"), self.sandbox.path("w"));
        let arguments = ["checkpoint", text(&mirror), text(&worktree), self.base.as_str()];
        let before = BTreeSet::from([(self.first.to_string(), self.tree(&self.first))]);
        self.torture(fault, &arguments, async |place, succeeded| {
            assert_eq!(self.files(), self.files, "{place}: a checkpoint changes no file");
            let there = self.checkpoints();
            let new: Vec<_> = there.difference(&before).collect();
            assert!(there.is_superset(&before) && new.len() <= 1, "{place}: {there:?}");
            let is_new = self.last() != self.first.as_str();
            if let [(commit, tree)] = new.as_slice() {
                assert_eq!(*tree, self.now, "{place}: half of the files");
                assert!(!is_new || self.last() == *commit, "{place}");
            } else {
                assert!(!is_new && !succeeded, "{place}: nothing keeps it");
            }
            assert!(!succeeded || is_new, "{place}: it said that it is done");
            let worktree = self.open().await;
            let taken = worktree.checkpoint(&self.first, "again").await.unwrap();
            assert_eq!(taken.tree.as_str(), self.now, "{place}");
            drop(worktree);
            assert_eq!(leftovers(&mirror), Vec::<PathBuf>::new(), "{place}");
            self.checkpoints();
        })
        .await
    }

    async fn torture_restore(&self, fault: Fault) -> usize {
        let (mirror, worktree) = (self.sandbox.path("m.git"), self.sandbox.path("w"));
        let (base, first) = (self.base.as_str(), self.first.as_str());
        let arguments = ["restore", text(&mirror), text(&worktree), base, first];
        self.torture(fault, &arguments, async |place, succeeded| {
            let worktree = self.open().await;
            let finished = worktree.finish_restore().await.unwrap();
            let is_now = self.files();
            assert!(!(finished.is_some() && succeeded), "{place}: it said that it is done");
            if finished.is_none() && is_now == self.files {
                assert!(!succeeded, "{place}: it said that it is done");
                // Nothing had begun, so it is as good as never asked for.
                let options = RestoreOptions {
                    foreign: Foreign::Save,
                    complete: true,
                    ..RestoreOptions::default()
                };
                worktree.restore(&self.first, &options).await.unwrap();
                assert_eq!(self.files(), self.files_then, "{place}: the second time");
            } else {
                assert_eq!(
                    is_now, self.files_then,
                    "{place}: neither the old files nor the new ones"
                );
            }
            assert_eq!(self.last(), self.first.as_str(), "{place}");
            let there = self.checkpoints();
            assert!(
                there.iter().any(|(_, tree)| *tree == self.now),
                "{place}: what was there is in no checkpoint"
            );
            let aside = fingerprint(&mirror.join("checkouts"));
            let log = aside
                .iter()
                .any(|(path, _, bytes)| path.ends_with("ignored.log") && bytes == b"l\n");
            assert!(log, "{place}: what no checkpoint has is gone");
            // Nothing is foreign afterwards, and the way back is open.
            let (safety, _) = there.iter().find(|(_, tree)| *tree == self.now).unwrap();
            let options = RestoreOptions::default();
            let back = worktree.restore(&safety.parse().unwrap(), &options).await;
            assert!(back.is_ok(), "{place}: {back:?}");
            drop(worktree);
            assert_eq!(leftovers(&mirror), Vec::<PathBuf>::new(), "{place}");
        })
        .await
    }

    fn tree(&self, commit: &Oid) -> String {
        let name = format!("{commit}^{{tree}}");
        self.sandbox.git(&self.sandbox.path("m.git"), &["rev-parse", &name])
    }
}

/// The files of a worktree without its `.git`.
fn files(top: &Path) -> Files {
    let own = top.join(".git");
    fingerprint(top)
        .into_iter()
        .filter(|(path, _, _)| !path.starts_with(&own))
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_checkpoint_that_is_killed_at_any_change_is_there_or_not() {
    if can_inject("a_checkpoint_that_is_killed_at_any_change_is_there_or_not") {
        let hits = Stage::new().await.torture_checkpoint(Fault::Kill).await;
        assert!(hits > 20, "only {hits} places");
    }
}

#[tokio::test]
async fn a_checkpoint_whose_disk_fails_is_there_or_not() {
    if can_inject("a_checkpoint_whose_disk_fails_is_there_or_not") {
        let hits = Stage::new().await.torture_checkpoint(Fault::Error("EIO")).await;
        assert!(hits > 20, "only {hits} places");
    }
}

#[tokio::test]
async fn a_restore_that_is_killed_at_any_change_is_finished_or_never_began() {
    if can_inject("a_restore_that_is_killed_at_any_change_is_finished_or_never_began") {
        let hits = Stage::new().await.torture_restore(Fault::Kill).await;
        assert!(hits > 40, "only {hits} places");
    }
}

#[tokio::test]
async fn a_restore_whose_disk_is_full_is_finished_or_never_began() {
    if can_inject("a_restore_whose_disk_is_full_is_finished_or_never_began") {
        let hits = Stage::new().await.torture_restore(Fault::Error("ENOSPC")).await;
        assert!(hits > 40, "only {hits} places");
    }
}
