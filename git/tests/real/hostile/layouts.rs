//! Misleading git directories: with another folder's files, another repository's, one among the
//! files, replaced history, hidden changes.

use std::fs;
use std::os::unix::fs::symlink;

use kage_core::id::Oid;
use kage_git::restore::RestoreOptions;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::user_repo::DiscoverError;
use kage_git::{Mirror, UserRepo, Worktree};

use super::{Field, PLAIN, Trap};
use crate::sandbox::{fingerprint, write};

/// `core.worktree` makes another folder's files the repository's.
#[tokio::test]
async fn the_files_of_another_folder_are_not_taken() {
    let field = Field::new();
    for (number, worktree) in ["{folder}", "/"].iter().enumerate() {
        let ground = field.ground(&number.to_string());
        write(&ground.folder.join("secret"), "s\n");
        let trap = Trap {
            config: &[("core.worktree", "{folder}")],
            ..PLAIN
        };
        ground.set(&trap, &ground.repo());
        field
            .sandbox
            .git(&ground.repo(), &["config", "core.worktree", &ground.fill(worktree)]);
        let found = UserRepo::discover(&ground.repo()).await;
        assert!(matches!(found, Err(DiscoverError::Elsewhere { .. })), "{found:?}");
        let secret = ground.folder.join("secret");
        let listed = field.sandbox.git(
            &ground.repo(),
            &["ls-files", "--others", "--full-name", secret.to_str().unwrap()],
        );
        assert!(listed.ends_with("secret"), "plain git takes it: {listed}");
    }
}

/// A bare repository among the files: git in its folder would work on it.
#[tokio::test]
async fn a_repository_inside_the_files_is_not_worked_on() {
    let field = Field::new();
    let ground = field.ground("bare");
    let inner = ground.repo().join("inner");
    write(&inner.join("HEAD"), "ref: refs/heads/x\n");
    write(&inner.join("objects/x"), "");
    write(&inner.join("refs/x"), "");
    let config = "[core]\n\trepositoryFormatVersion = 0\n\tbare = false\n\tworktree = ..\n\tfsmonitor = {marker}\n";
    write(&inner.join("config"), ground.fill(config));
    ground.walk(&[&["add", "inner"], &["commit", "-q", "-m", "inner", "inner"]]);
    let found = UserRepo::discover(&inner).await;
    assert!(found.is_err(), "{found:?}");
    ground.session(&PLAIN).await.unwrap();
    assert!(!ground.has_sprung(), "it ran");
    ground.walk(&[&["sh", "-c", "cd inner; git add ../other; git status"]]);
    assert!(ground.has_sprung(), "plain git did not walk into it");
}

/// The session's `.git` leads to another repository.
#[tokio::test]
async fn another_repository_in_place_of_the_sessions_is_not_touched() {
    let field = Field::new();
    let victim = field.ground("victim").repo();
    let repo = field.sandbox.path("template");
    let (mirror, base) = field.sandbox.mirror("m.git", &repo).await;
    for kind in ["link", "file", "commondir", "alternates"] {
        let path = field.sandbox.path(kind);
        let worktree = Worktree::create(&mirror, &path, &base).await.unwrap();
        let own = path.join(".git");
        let git = victim.join(".git");
        match kind {
            "commondir" => write(&own.join("commondir"), git.to_str().unwrap()),
            "alternates" => write(
                &own.join("objects/info/alternates"),
                format!("{}/objects\n", git.display()),
            ),
            _ => fs::remove_dir_all(&own).unwrap(),
        }
        match kind {
            "link" => symlink(&git, &own).unwrap(),
            "file" => write(&own, format!("gitdir: {}\n", git.display())),
            _ => {}
        }
        let before = fingerprint(&victim);
        let first = worktree.checkpoint(&base, "first").await.unwrap();
        write(&path.join("new"), "n\n");
        worktree.changes().await.unwrap();
        worktree.checkpoint(&first.commit, "second").await.unwrap();
        worktree.commit_result("r\n").await.unwrap().unwrap();
        worktree
            .restore(&first.commit, &RestoreOptions::default())
            .await
            .unwrap();
        // Objects of the other repository are not here.
        let secret: Oid = field
            .sandbox
            .git_with_input(&victim, &["hash-object", "-t", "tree", "-w", "--stdin"], b"")
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .trim()
            .parse()
            .unwrap();
        let text = format!("tree {secret}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n{kind}\n");
        let commit = field.sandbox.git_with_input(
            &victim,
            &["hash-object", "-t", "commit", "-w", "--stdin"],
            text.as_bytes(),
        );
        let commit: Oid = String::from_utf8(commit).unwrap().trim().parse().unwrap();
        let taken = worktree.checkpoint(&commit, "of theirs").await;
        assert!(taken.is_err(), "{kind}: {taken:?}");
        let reached = field.sandbox.try_git(&path, &["cat-file", "-e", commit.as_str()]);
        assert!(reached.is_ok(), "{kind}: plain git reaches it: {reached:?}");
        if kind != "alternates" {
            let refs = fingerprint(&git.join("refs"));
            field
                .sandbox
                .try_git(
                    &path,
                    &[
                        "-c",
                        "core.logAllRefUpdates=false",
                        "update-ref",
                        "refs/heads/by-plain-git",
                        "main",
                    ],
                )
                .ok();
            assert_ne!(
                fingerprint(&git.join("refs")),
                refs,
                "{kind}: plain git did not walk into it"
            );
            fs::remove_file(git.join("refs/heads/by-plain-git")).unwrap();
        }
        Worktree::remove(&mirror, &path).await.unwrap();
        // Objects are all that this test itself put there.
        let files = |list: Vec<(std::path::PathBuf, u32, Vec<u8>)>| -> Vec<_> {
            let objects = git.join("objects");
            list.into_iter()
                .filter(|(path, _, _)| !path.starts_with(&objects))
                .collect()
        };
        assert_eq!(files(fingerprint(&victim)), files(before), "{kind}");
    }
}

/// Replaced commits and grafts show plain git another history than the one that is sent.
#[tokio::test]
async fn a_replaced_history_is_not_believed() {
    let field = Field::new();
    let by_replacement = field.ground("replace");
    field.sandbox.git(&by_replacement.repo(), &["replace", "main", "side"]);
    let by_graft = field.ground("graft");
    let head = field.sandbox.head(&by_graft.repo());
    write(&by_graft.repo().join(".git/info/grafts"), format!("{head}\n"));
    for ground in [by_replacement, by_graft] {
        write(&ground.repo().join("text"), "one\n2\n3\n");
        // The control: plain git believes it.
        let shown = field.sandbox.git(&ground.repo(), &["log", "--format=%s", "main"]);
        assert_ne!(shown, "main\nstart", "plain git was not fooled");
        let repository = UserRepo::discover(&ground.repo()).await.unwrap();
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
        assert_eq!(snapshot.base, head, "nothing differs from the real commit");
        let mirror = Mirror::open_or_init(ground.folder.join("m.git")).await.unwrap();
        snapshot
            .push(
                &crate::sandbox::url(mirror.path()),
                &kage_git::Auth::None,
                Receiver::New,
            )
            .await
            .unwrap();
        let sent = field.sandbox.git(mirror.path(), &["log", "--format=%s", head.as_str()]);
        assert_eq!(sent, "main\nstart");
    }
}

/// Bits in the session's index that make plain git blind for a file.
#[tokio::test]
async fn a_hidden_change_is_seen() {
    let field = Field::new();
    let repo = field.sandbox.path("template");
    let (mirror, base) = field.sandbox.mirror("m.git", &repo).await;
    for bit in ["--assume-unchanged", "--skip-worktree"] {
        let path = field.sandbox.path(bit);
        let worktree = Worktree::create(&mirror, &path, &base).await.unwrap();
        field.sandbox.git(&path, &["update-index", bit, "text"]);
        write(&path.join("text"), "hidden\n");
        assert_eq!(
            field.sandbox.git(&path, &["status", "--short"]),
            "",
            "plain git sees it"
        );
        assert_eq!(worktree.changes().await.unwrap().len(), 1, "{bit}");
        assert_eq!(worktree.checkpoint(&base, "c").await.unwrap().files_changed, 1, "{bit}");
        assert!(worktree.commit_result("r\n").await.unwrap().is_some(), "{bit}");
    }
}
