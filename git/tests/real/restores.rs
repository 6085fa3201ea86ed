//! Restores: their effect on every kind of change, refusals, and interruption at every step.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_git::Worktree;
use kage_git::restore::{Becomes, Foreign, RestoreError, RestoreOptions, RestoredPath};

use crate::checkpoints::worktree;
use crate::sandbox::{Sandbox, fingerprint, write};

pub(crate) fn careful() -> RestoreOptions {
    RestoreOptions::default()
}

pub(crate) fn saving() -> RestoreOptions {
    RestoreOptions {
        foreign: Foreign::Save,
        ..RestoreOptions::default()
    }
}

pub(crate) fn paths(list: &[RestoredPath]) -> Vec<(&str, Becomes)> {
    list.iter().map(|it| (it.path.to_str().unwrap(), it.becomes)).collect()
}

/// The files of a worktree without its `.git`.
pub(crate) fn files(top: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let own = top.join(".git");
    fingerprint(top)
        .into_iter()
        .filter(|(path, _, _)| !path.starts_with(&own))
        .collect()
}

#[tokio::test]
async fn large_files_come_back_too_from_a_file_of_the_store_and_from_a_pack() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n")]).await;
    let large = worktree.path().join("large");
    let content: Vec<u8> = (0..(16_u32 << 20) + 3).map(|at| (at >> 10) as u8).collect();
    fs::write(&large, &content).unwrap();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&large, "small");
    worktree.restore(&first.commit, &saving()).await.unwrap();
    assert!(fs::read(&large).unwrap() == content);

    sandbox.git(mirror.path(), &["repack", "-q", "-a", "-d"]);
    fs::remove_file(&large).unwrap();
    worktree.restore(&first.commit, &saving()).await.unwrap();
    assert!(fs::read(&large).unwrap() == content);
}

#[tokio::test]
async fn a_restore_undoes_every_kind_of_change_and_can_be_undone() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(
        &sandbox,
        &[
            ("same", "s\n"),
            ("edited", "1\n"),
            ("gone", "g\n"),
            ("script", "#!/bin/sh\n"),
            ("file-to-folder", "f\n"),
            ("folder-to-file/inner", "i\n"),
            ("folder-to-link/inner", "i\n"),
        ],
    )
    .await;
    let top = worktree.path();
    fs::set_permissions(top.join("edited"), fs::Permissions::from_mode(0o600)).unwrap();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    let (before, git) = (files(top), fingerprint(&top.join(".git")));
    let outside = sandbox.path("outside");
    write(&outside.join("inner"), "not ours\n");

    write(&top.join("edited"), "2\n");
    fs::remove_file(top.join("gone")).unwrap();
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(top.join("file-to-folder")).unwrap();
    write(&top.join("file-to-folder/deep/inner"), "x");
    fs::remove_dir_all(top.join("folder-to-file")).unwrap();
    write(&top.join("folder-to-file"), "x");
    fs::remove_dir_all(top.join("folder-to-link")).unwrap();
    symlink(&outside, top.join("folder-to-link")).unwrap();
    write(&top.join("new/file"), "n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    let after = files(top);

    let plan = worktree.plan_restore(&first.commit, &careful()).await.unwrap();
    assert_eq!(
        paths(&plan.paths),
        [
            ("edited", Becomes::Updated),
            ("file-to-folder", Becomes::Created),
            ("file-to-folder/deep/inner", Becomes::Deleted),
            ("folder-to-file", Becomes::Deleted),
            ("folder-to-file/inner", Becomes::Created),
            ("folder-to-link", Becomes::Deleted),
            ("folder-to-link/inner", Becomes::Created),
            ("gone", Becomes::Created),
            ("new/file", Becomes::Deleted),
            ("script", Becomes::Updated),
        ]
    );
    assert_eq!(files(top), after, "a plan changes nothing");
    let untouched = fs::metadata(top.join("same")).unwrap().modified().unwrap();
    let restored = worktree.restore(&first.commit, &careful()).await.unwrap();
    assert_eq!((&restored.target, &restored.safety), (&first.commit, &second.commit));
    assert_eq!((restored.paths, restored.aside), (plan.paths, Vec::new()));
    assert_eq!(files(top), before);
    assert_eq!(fs::metadata(top.join("same")).unwrap().modified().unwrap(), untouched);

    // Nothing is foreign now, and the way back is as good.
    worktree.restore(&second.commit, &careful()).await.unwrap();
    assert_eq!(files(top), after);
    let again = worktree.checkpoint(&second.commit, "again").await.unwrap();
    assert_eq!((again.tree, again.files_changed), (second.tree, 0));
    assert_eq!(fingerprint(&top.join(".git")), git);
    assert_eq!(fs::read_to_string(outside.join("inner")).unwrap(), "not ours\n");
}

#[tokio::test]
async fn a_complete_restore_moves_new_ignored_files_aside() {
    let sandbox = Sandbox::new();
    let ignore = (".gitignore", "old/\nnew/\n*.log\n");
    let (_mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), ignore]).await;
    let top = worktree.path();
    write(&top.join("old/kept"), "k\n");
    write(&top.join("before.log"), "b\n");
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&top.join("old/later"), "l\n");
    write(&top.join("new/deep/file"), "n\n");
    write(&top.join("after.log"), "a\n");
    write(&top.join("made"), "m\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    let complete = RestoreOptions {
        complete: true,
        ..careful()
    };
    let plan = worktree.plan_restore(&first.commit, &complete).await.unwrap();
    let expected = [
        ("after.log", Becomes::MovedAside),
        ("made", Becomes::Deleted),
        ("new", Becomes::MovedAside),
    ];
    assert_eq!(paths(&plan.paths), expected);
    let restored = worktree.restore(&first.commit, &complete).await.unwrap();
    assert!(!top.join("new").exists() && !top.join("after.log").exists());
    assert!(top.join("old/kept").exists() && top.join("old/later").exists() && top.join("before.log").exists());
    let (_, new) = restored
        .aside
        .iter()
        .find(|(path, _)| path == Path::new("new"))
        .unwrap();
    assert_eq!(fs::read_to_string(new.join("deep/file")).unwrap(), "n\n");
    assert_eq!(restored.safety, second.commit);
    // A commit that is no checkpoint has no record of ignored files.
    let refused = worktree.restore(worktree.base(), &complete).await;
    assert!(matches!(refused, Err(RestoreError::NoRecord { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_no_checkpoint_can_hold_is_moved_out_of_the_way() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, &[("pipe", "p\n"), ("folder", "f\n"), ("x/y", "y\n")]).await;
    let top = worktree.path();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    for name in ["pipe", "folder"] {
        fs::remove_file(top.join(name)).unwrap();
    }
    fs::remove_dir_all(top.join("x")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("pipe"), 0o600.into()).unwrap();
    sandbox.git(top, &["init", "-q", "folder"]);
    write(&top.join("folder/in"), "i\n");
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("x"), 0o600.into()).unwrap();
    worktree.checkpoint(&first.commit, "second").await.unwrap();
    let restored = worktree.restore(&first.commit, &careful()).await.unwrap();
    let moved: Vec<_> = restored.aside.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(moved, ["folder", "pipe", "x"]);
    assert!(restored.aside[0].1.join(".git/HEAD").exists());
    for (name, content) in [("pipe", "p\n"), ("folder", "f\n"), ("x/y", "y\n")] {
        assert_eq!(fs::read_to_string(top.join(name)).unwrap(), content);
    }
}

/// Each round stops one step later. Before the journal nothing has happened; after it the next use
/// of the worktree finishes the restore.
#[tokio::test]
async fn a_restore_that_is_interrupted_anywhere_is_finished() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("edited", "1\n"), ("folder/gone", "g\n"), ("file", "f\n")]).await;
    let top = worktree.path();
    symlink("edited", top.join("link")).unwrap();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    let old = files(top);
    write(&top.join("edited"), "2\n");
    fs::remove_dir_all(top.join("folder")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("folder"), 0o600.into()).unwrap();
    fs::remove_file(top.join("file")).unwrap();
    write(&top.join("file/inner/most"), "x");
    fs::remove_file(top.join("link")).unwrap();
    symlink("elsewhere", top.join("link")).unwrap();
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    let (mut stop, mut begun) = (0, false);
    loop {
        let worktree = Worktree::open(&mirror, top, worktree.base()).await.unwrap();
        let options = RestoreOptions {
            stop_before: Some(stop),
            ..careful()
        };
        let done = worktree.restore(&first.commit, &options).await;
        let stopped = done.is_err();
        // Again in another process, which may also use it for something else.
        let worktree = Worktree::open(&mirror, top, worktree.base()).await.unwrap();
        let finished = worktree.finish_restore().await.unwrap();
        begun |= finished.is_some();
        if !begun {
            assert!(stopped, "nothing was decided yet");
            let taken = worktree.checkpoint(&second.commit, "as it was").await.unwrap();
            assert_eq!(taken.tree, second.tree);
        } else {
            assert_eq!(finished.is_some(), stopped, "step {stop}");
            assert_eq!(files(top), old, "step {stop}");
            for (path, now_at) in finished.iter().flat_map(|it| &it.aside) {
                assert!(now_at.symlink_metadata().is_ok(), "step {stop}: {}", path.display());
                assert_eq!(path, Path::new("folder"), "step {stop}: nothing but the pipe is aside");
            }
            let taken = worktree.checkpoint(&first.commit, "c").await.unwrap();
            assert_eq!(taken.tree, first.tree, "step {stop}");
            // Back to the start, with changes that no checkpoint has.
            worktree.restore(&second.commit, &careful()).await.unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, top.join("folder"), 0o600.into()).unwrap();
        }
        if !stopped {
            break;
        }
        stop += 1;
    }
    assert!(stop > 20, "only {stop} steps");
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
}

/// A change between the plan and the rename is kept, whichever step it hits.
#[tokio::test]
async fn a_change_during_a_restore_is_never_overwritten() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), ("b/c", "c\n")]).await;
    let top = worktree.path();
    let first = worktree.checkpoint(worktree.base(), "first").await.unwrap();
    write(&top.join("a"), "changed\n");
    fs::remove_dir_all(top.join("b")).unwrap();
    write(&top.join("new"), "n\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    for stop in 0..60 {
        let options = RestoreOptions {
            stop_before: Some(stop),
            ..careful()
        };
        if worktree.restore(&first.commit, &options).await.is_ok() {
            assert!(stop > 10, "only {stop} steps");
            return;
        }
        let foreign = format!("foreign {stop}\n");
        for name in ["a", "b", "new"] {
            let path = top.join(name);
            if path.is_dir() {
                write(&path.join("foreign"), &foreign);
            } else {
                write(&path, &foreign);
            }
        }
        let Some(finished) = worktree.finish_restore().await.unwrap() else {
            // Nothing had begun: these are ordinary changes.
            let refused = worktree.restore(&first.commit, &careful()).await;
            assert!(
                matches!(&refused, Err(RestoreError::Foreign { .. })),
                "step {stop}: {refused:?}"
            );
            worktree.restore(&second.commit, &saving()).await.unwrap();
            continue;
        };
        for name in ["a", "b", "new"] {
            let here = [top.join(name), top.join(name).join("foreign")];
            let aside = finished.aside.iter().filter(|(path, _)| path.starts_with(name));
            let places: Vec<PathBuf> = aside.map(|(_, now_at)| now_at.clone()).chain(here).collect();
            let found = places
                .iter()
                .any(|path| fs::read_to_string(path).is_ok_and(|text| text == foreign));
            assert!(
                found,
                "step {stop}: what was written to {name} is lost; looked at {places:?}"
            );
        }
        worktree.restore(&second.commit, &saving()).await.unwrap();
        assert_eq!(fs::read_to_string(top.join("a")).unwrap(), "changed\n");
    }
    panic!("it never got to its end");
}
