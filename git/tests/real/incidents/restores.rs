//! Restores that lost work in other tools.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kage_core::id::Oid;
use kage_git::Worktree;
use kage_git::restore::{Becomes, RestoreError, RestoreOptions};

use crate::checkpoints::worktree;
use crate::restores::{careful, paths, saving};
use crate::sandbox::{Sandbox, fingerprint, write};

#[tokio::test]
async fn incident_1_a_reverted_gitignore_deletes_nothing() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), (".gitignore", "*.log\n")]).await;
    let top = worktree.path();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&top.join(".gitignore"), "*.log\nbuild/\n.env\n");
    write(&top.join("build/output"), "hours of work\n");
    write(&top.join(".env"), "SECRET=1\n");
    write(&top.join("made"), "m\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    worktree.restore(&first.commit, &careful()).await.unwrap();
    assert!(!top.join("made").exists());
    assert_eq!(fs::read_to_string(top.join("build/output")).unwrap(), "hours of work\n");
    assert_eq!(fs::read_to_string(top.join(".env")).unwrap(), "SECRET=1\n");
    // They are not ignored any more: changes that no checkpoint has, so the restore refuses.
    let refused = worktree.restore(&second.commit, &careful()).await;
    let Err(RestoreError::Foreign { paths }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(paths, [Path::new(".env"), Path::new("build/output")]);
    let restored = worktree.restore(&second.commit, &saving()).await.unwrap();
    // Deleted, since the target does not have them; but the safety checkpoint does.
    let back = worktree.restore(&restored.safety, &careful()).await.unwrap();
    assert_eq!(back.safety, second.commit);
    assert_eq!(fs::read_to_string(top.join("build/output")).unwrap(), "hours of work\n");
    assert_eq!(fs::read_to_string(top.join(".env")).unwrap(), "SECRET=1\n");
}

#[tokio::test]
async fn incident_2_no_head_branch_index_or_stash_moves() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), ("b", "b\n")]).await;
    let top = worktree.path();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    sandbox.git(top, &["checkout", "-q", "-b", "own"]);
    write(&top.join("a"), "stashed\n");
    sandbox.git(top, &["stash", "-q"]);
    write(&top.join("a"), "committed\n");
    sandbox.commit(top, "the session's own");
    write(&top.join("b"), "staged\n");
    sandbox.git(top, &["add", "b"]);
    write(&top.join("b"), "on the disk\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    let (own, refs) = (fingerprint(&top.join(".git")), fingerprint(&mirror.path().join("refs")));
    let config = fs::read(mirror.path().join("config")).unwrap();
    worktree.restore(&first.commit, &careful()).await.unwrap();
    assert_eq!(fs::read_to_string(top.join("a")).unwrap(), "a\n");
    worktree.restore(&second.commit, &careful()).await.unwrap();
    assert_eq!(fs::read_to_string(top.join("b")).unwrap(), "on the disk\n");
    assert_eq!(fingerprint(&top.join(".git")), own);
    assert_eq!(fingerprint(&mirror.path().join("refs")), refs);
    assert_eq!(fs::read(mirror.path().join("config")).unwrap(), config);
}

#[tokio::test]
async fn incident_5_a_session_in_a_subfolder_reverts_only_what_differs() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("one/a", "a\n"), ("two/b", "b\n")]).await;
    let top = worktree.path();
    write(&top.join("two/b"), "edited before the first checkpoint\n");
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&top.join("one/a"), "by the session\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    // Another worktree of the same mirror shares nothing with it but objects.
    let other = Worktree::create(&mirror, sandbox.path("other"), worktree.base())
        .await
        .unwrap();
    write(&other.path().join("two/b"), "other\n");
    other.checkpoint(worktree.base(), "other").await.unwrap();
    let restored = worktree.restore(&first.commit, &careful()).await.unwrap();
    assert_eq!(paths(&restored.paths), [("one/a", Becomes::Updated)]);
    assert_eq!(restored.safety, second.commit);
    let there = fs::read_to_string(top.join("two/b")).unwrap();
    assert_eq!(there, "edited before the first checkpoint\n");
    assert_eq!(fs::read_to_string(other.path().join("two/b")).unwrap(), "other\n");
}

#[tokio::test]
async fn incident_8_ignored_files_in_the_way_are_saved_first() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    let top = worktree.path();
    write(&top.join("config"), "base\n");
    write(&top.join("folder/file"), "f\n");
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    // It goes from the checkpoints and comes back as something ignored.
    fs::remove_file(top.join("config")).unwrap();
    fs::remove_dir_all(top.join("folder")).unwrap();
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    write(&top.join(".gitignore"), "config\nfolder\n");
    let third = worktree.checkpoint(&second.commit, "third").await.unwrap();
    write(&top.join("config"), "a person's\n");
    symlink("/etc", top.join("folder")).unwrap();
    let restored = worktree.restore(&first.commit, &careful()).await.unwrap();
    assert_ne!(restored.safety, third.commit);
    assert_eq!(fs::read_to_string(top.join("config")).unwrap(), "base\n");
    assert_eq!(fs::read_to_string(top.join("folder/file")).unwrap(), "f\n");
    assert!(!Path::new("/etc/file").exists());
    let [(path, now_at)] = restored.aside.as_slice() else {
        panic!("{:?}", restored.aside);
    };
    assert_eq!(path, Path::new("folder"));
    assert_eq!(fs::read_link(now_at).unwrap(), Path::new("/etc"));
    worktree.restore(&restored.safety, &careful()).await.unwrap();
    assert_eq!(fs::read_to_string(top.join("config")).unwrap(), "a person's\n");
}

#[tokio::test]
async fn incident_9_a_plan_that_deletes_much_of_the_project_is_refused() {
    let sandbox = Sandbox::new();
    let many: Vec<(String, String)> = (0..30).map(|n| (format!("f{n}"), format!("{n}\n"))).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let (_mirror, worktree) = worktree(&sandbox, &many).await;
    let top = worktree.path();
    for (name, _) in &many {
        fs::rename(top.join(name), sandbox.path(name)).unwrap();
    }
    let empty = worktree.checkpoint(worktree.base(), "all gone").await.unwrap();
    for (name, _) in &many {
        fs::rename(sandbox.path(name), top.join(name)).unwrap();
    }
    write(&top.join("own"), "o\n");
    worktree.checkpoint(&empty.commit, "back").await.unwrap();
    let before = fingerprint(top);
    let few = RestoreOptions {
        most_deletions: 29,
        ..careful()
    };
    for refused in [
        worktree.plan_restore(&empty.commit, &few).await.map(drop),
        worktree.restore(&empty.commit, &few).await.map(drop),
    ] {
        let counted = matches!(refused, Err(RestoreError::TooManyDeletions { count: 30, limit: 29 }));
        assert!(counted, "{refused:?}");
    }
    let unknown: Oid = "1111111111111111111111111111111111111111".parse().unwrap();
    let refused = worktree.restore(&unknown, &careful()).await;
    assert!(matches!(refused, Err(RestoreError::Unknown { .. })), "{refused:?}");
    assert_eq!(fingerprint(top), before);
    worktree.restore(&empty.commit, &careful()).await.unwrap();
    assert!(!top.join("f0").exists());
}

#[tokio::test]
async fn incident_10_changes_of_somebody_else_are_refused_or_saved() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), ("b", "b\n"), ("c", "c\n")]).await;
    let top = worktree.path();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&top.join("a"), "by the session\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    write(&top.join("b"), "by somebody\n");
    write(&top.join("theirs"), "by somebody\n");
    fs::remove_file(top.join("c")).unwrap();
    let before = fingerprint(top);
    let foreign = [Path::new("b"), Path::new("c"), Path::new("theirs")];
    let plan = worktree.plan_restore(&first.commit, &careful()).await.unwrap();
    assert_eq!(plan.foreign, foreign);
    // Another process that opens the same worktree sees the same.
    let other = Worktree::open(&mirror, top, worktree.base()).await.unwrap();
    for worktree in [&worktree, &other] {
        let refused = worktree.restore(&first.commit, &careful()).await;
        let Err(RestoreError::Foreign { paths }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(paths, foreign);
    }
    assert_eq!(fingerprint(top), before);
    let restored = other.restore(&first.commit, &saving()).await.unwrap();
    assert_ne!(restored.safety, second.commit);
    assert_eq!(fs::read_to_string(top.join("b")).unwrap(), "b\n");
    assert!(!top.join("theirs").exists());
    let parent = sandbox.git(mirror.path(), &["rev-parse", &format!("{}^", restored.safety)]);
    assert_eq!(parent, second.commit.as_str());
    worktree.restore(&restored.safety, &careful()).await.unwrap();
    assert_eq!(fingerprint(top), before);
}

#[tokio::test]
async fn incident_11_a_removed_worktree_leaves_its_checkpoints() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    write(&worktree.path().join("unpushed"), "work\n");
    let last = worktree.checkpoint(worktree.base(), "last").await.unwrap();
    Worktree::remove(&mirror, worktree.path()).await.unwrap();
    sandbox.git(mirror.path(), &["gc", "-q", "--prune=now"]);
    let next = Worktree::create(&mirror, sandbox.path("next"), worktree.base())
        .await
        .unwrap();
    next.restore(&last.commit, &careful()).await.unwrap();
    assert_eq!(fs::read_to_string(next.path().join("unpushed")).unwrap(), "work\n");
}
