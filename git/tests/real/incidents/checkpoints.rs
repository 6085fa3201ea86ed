//! Checkpoints that were not there, not whole, or not harmless in other tools.
use std::fs;
use std::path::Path;

use kage_core::id::Oid;
use kage_core::left_out::LeftOutReason;
use kage_git::restore::RestoreOptions;
use kage_git::{Auth, Worktree};
use tokio::task::JoinSet;

use crate::checkpoints::{listed, worktree};
use crate::sandbox::{Sandbox, fingerprint, url, write};

/// A nested repository stays where and as it was, whatever happens in between.
#[tokio::test]
async fn incident_3_a_nested_repository_is_never_moved() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    let nested = worktree.path().join("nested");
    write(&nested.join("file"), "f\n");
    sandbox.git(&nested, &["init", "-q", "-b", "main"]);
    sandbox.commit(&nested, "own");
    let before = fingerprint(&nested.join(".git"));
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&nested.join("file"), "changed\n");
    worktree.checkpoint(&first.commit, "second").await.unwrap();
    assert_eq!(fingerprint(&nested.join(".git")), before);
    // As if everything ended at each step in turn.
    for stop in 0.. {
        let options = RestoreOptions {
            stop_before: Some(stop),
            foreign: kage_git::restore::Foreign::Save,
            ..RestoreOptions::default()
        };
        let done = worktree.restore(&first.commit, &options).await;
        assert_eq!(fingerprint(&nested.join(".git")), before, "step {stop}");
        if done.is_ok() {
            break;
        }
        let reopened = Worktree::open(&mirror, worktree.path(), worktree.base()).await.unwrap();
        reopened.finish_restore().await.unwrap();
        assert_eq!(fingerprint(&nested.join(".git")), before, "step {stop}");
        write(&nested.join("file"), "changed\n");
    }
    assert_eq!(fs::read_to_string(nested.join("file")).unwrap(), "f\n");
    assert_eq!(sandbox.git(&nested, &["status", "--short"]), "");
}

/// Equal content is stored once, and failed operations leave nothing behind.
#[tokio::test]
async fn incident_6_the_store_does_not_grow_without_new_content() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    write(&worktree.path().join("large"), &large);
    let mut last = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    let size = |folder: &Path| -> usize { fingerprint(folder).iter().map(|(_, _, bytes)| bytes.len()).sum() };
    let before = size(mirror.path());
    for number in 0..20 {
        write(&worktree.path().join("a"), format!("{number}\n"));
        // The same content at another place, and with another time.
        fs::rename(worktree.path().join("large"), worktree.path().join("moved")).unwrap();
        write(&worktree.path().join("large"), &large);
        last = worktree.checkpoint(&last.commit, "again").await.unwrap();
        worktree
            .restore(&last.commit, &RestoreOptions::default())
            .await
            .unwrap();
        // A file that cannot be in a checkpoint.
        write(&worktree.path().join("z/.git. "), "x");
        let without = worktree.checkpoint_changes(&last.commit, "without it").await.unwrap();
        assert_eq!(without.commit, last.commit);
        fs::remove_dir_all(worktree.path().join("z")).unwrap();
    }
    let grown = size(mirror.path()) - before;
    assert!(grown < 40_000, "{grown} bytes more for 20 checkpoints of a few bytes");
    let damaged = sandbox.path("damaged");
    write(&damaged, "PACK\0\0\0\x02no");
    let before = fingerprint(mirror.path()).len();
    let taken = mirror
        .ingest_pack(fs::File::open(&damaged).unwrap(), worktree.base())
        .await;
    assert!(taken.is_err());
    assert_eq!(fingerprint(mirror.path()).len(), before);
    // A reference to anything but a commit breaks other tools.
    let kinds = sandbox.git(mirror.path(), &["for-each-ref", "--format=%(objecttype)"]);
    assert!(kinds.lines().all(|kind| kind == "commit"), "{kinds}");
}

/// If a person's home is a repository, a snapshot would contain all their files.
#[test]
fn incident_6_a_home_folder_is_not_a_project() {
    let sandbox = Sandbox::new();
    let home = sandbox.repository("all", &[("a", "a\n")]);
    for (path, is_refused) in [(home.clone(), true), (sandbox.path("home"), false)] {
        let work = sandbox.path(&format!("work-{is_refused}"));
        fs::create_dir(&work).unwrap();
        let done = sandbox
            .program(env!("CARGO_BIN_EXE_kage-git-step"), &work)
            .env("HOME", path)
            .args(["session".as_ref(), home.as_os_str(), work.as_os_str()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(
            !done.status.success() && said.contains("is all of"),
            is_refused,
            "{said}"
        );
    }
}

/// 48 rounds; elsewhere one in twelve failed.
#[tokio::test(flavor = "multi_thread")]
async fn incident_12_worktrees_are_made_while_others_fetch() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n"), ("b/c", "c\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let mut work = JoinSet::new();
    for number in 0..8 {
        let (mirror, base) = (mirror.clone(), base.clone());
        let (top, url) = (sandbox.path(&format!("w{number}")), url(&source));
        work.spawn(async move {
            for round in 0..6 {
                let spec = format!("HEAD:refs/kage/bases/{number}-{round}");
                let (specs, path) = ([spec.as_str()], top.join(round.to_string()));
                let fetch = mirror.fetch(&url, &Auth::None, &specs);
                let (fetched, worktree) = tokio::join!(fetch, Worktree::create(&mirror, &path, &base));
                fetched.unwrap();
                worktree.unwrap().checkpoint(&base, "c").await.unwrap();
            }
        });
    }
    assert_eq!(work.join_all().await.len(), 8);
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
}

/// Incidents 3 and 4: an unborn nested repository must not make a checkpoint of the past.
#[tokio::test]
async fn incident_4_a_file_that_cannot_be_taken_is_told_and_costs_only_itself() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    let top = worktree.path();
    sandbox.git(top, &["init", "-q", "nested"]);
    write(&top.join("nested/file"), "n\n");
    let taken = worktree.checkpoint(worktree.base(), "unborn").await.unwrap();
    assert_eq!(
        listed(&sandbox, &mirror, &taken.commit),
        ["100644 a", "100644 nested/file"]
    );
    for name in ["git~1", ".GIT", "deep/.git. /x"] {
        write(&top.join(name), "x\n");
        let without = worktree.checkpoint(&taken.commit, "without it").await.unwrap();
        assert_eq!(without.tree, taken.tree, "{name}");
        let told = worktree.left_out();
        assert!(
            told.iter().any(|file| file.reason == LeftOutReason::Name),
            "{name}: {told:?}"
        );
        let first = Path::new(name).iter().next().unwrap();
        let path = top.join(first);
        if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
        .unwrap();
    }
    assert!(worktree.checkpoint(&taken.commit, "yes").await.is_ok());
    let unknown: Oid = "1111111111111111111111111111111111111111".parse().unwrap();
    assert!(worktree.checkpoint(&unknown, "no parent").await.is_err());
}

/// Incident 8: staged, stashed and configured data of the session stays untouched.
#[tokio::test]
async fn incident_8_the_sessions_own_repository_is_not_touched() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), ("b", "b\n")]).await;
    let top = worktree.path();
    write(&top.join("a"), "stashed\n");
    sandbox.git(top, &["stash", "-q"]);
    write(&top.join("a"), "staged\n");
    sandbox.git(top, &["add", "a"]);
    write(&top.join("a"), "on the disk\n");
    write(&top.join("new"), "n\n");
    sandbox.git(top, &["checkout", "-q", "-b", "own"]);
    sandbox.git(top, &["config", "core.fileMode", "false"]);
    write(&top.join(".git/info/exclude"), "tool-state\n");
    write(&top.join("tool-state"), "t\n");
    let before = fingerprint(top);
    let taken = worktree.checkpoint(worktree.base(), "c").await.unwrap();
    assert_eq!(taken.files_changed, 2);
    assert_eq!(fingerprint(top), before);
}

/// Incident 7 in the mirror: each checkpoint has its own reference.
#[tokio::test]
async fn incident_7_a_checkpoint_survives_collection() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    let mut taken = Vec::new();
    for number in 0..3 {
        write(&worktree.path().join("a"), format!("{number}\n"));
        // None is the parent of another.
        taken.push(worktree.checkpoint(worktree.base(), "c").await.unwrap().commit);
    }
    sandbox.git(mirror.path(), &["gc", "-q", "--prune=now"]);
    for commit in taken {
        sandbox.git(mirror.path(), &["cat-file", "-e", &format!("{commit}:a")]);
    }
}
