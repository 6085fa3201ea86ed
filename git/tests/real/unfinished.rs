//! The result that is made of checkpoints is the one that the worktree would have given.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use kage_git::Worktree;

use crate::checkpoints::{listed, worktree};
use crate::sandbox::{Sandbox, write};

/// What is left of the folders in which results are made.
fn left(mirror: &kage_git::Mirror) -> usize {
    let objects = fs::read_dir(mirror.path().join("objects")).unwrap();
    let names = objects.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("incoming-")).count()
}

#[tokio::test]
async fn it_is_the_result_of_the_worktree() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(
        &sandbox,
        &[
            (".gitattributes", "*.bat text eol=crlf\n*.id ident\n"),
            ("edited.bat", "1\n2\n"),
            ("kept.bat", "1\n"),
            ("sub/.gitattributes", "raw.bat -text\n"),
            ("sub/raw.bat", "1\n"),
            ("a.id", "$Id$\n"),
            ("gone", "g\n"),
            ("script", "s\n"),
            ("file", "f\n"),
            ("folder/inner", "i\n"),
        ],
    )
    .await;
    let (top, base) = (worktree.path(), worktree.base().clone());
    let first = worktree.checkpoint(&base, "first").await.unwrap();
    write(&top.join("edited.bat"), "1\r\n2\r\n3\r\n");
    write(&top.join("sub/raw.bat"), "1\r\n");
    write(&top.join("a.id"), "$Id$\nmore\n");
    fs::remove_file(top.join("gone")).unwrap();
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(top.join("file")).unwrap();
    write(&top.join("file/inner"), "i\n");
    fs::remove_dir_all(top.join("folder")).unwrap();
    symlink("/etc", top.join("folder")).unwrap();
    write(&top.join("new/deep/er.bat"), "n\r\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();

    let result = worktree.commit_result("m").await.unwrap().unwrap();
    let (mirror_ref, from, to) = (&mirror, &first.commit, &second.commit);
    let made = mirror_ref
        .commit_unfinished(&base, from, to, "m")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        listed(&sandbox, &mirror, &made.commit),
        listed(&sandbox, &mirror, &result.commit)
    );
    assert_eq!(made.tree, result.tree);
    assert_eq!(
        (made.diff, &made.paths, &made.deleted),
        (result.diff, &result.paths, &result.deleted)
    );
    let parents = sandbox.git(mirror.path(), &["log", "-1", "--format=%P", made.commit.as_str()]);
    assert_eq!(parents.trim(), base.as_str());
    assert!(made.paths.iter().any(|path| path == "gone") && !made.paths.iter().any(|path| path == "kept.bat"));
    assert_eq!(left(&mirror), 0);
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
}

#[tokio::test]
async fn what_comes_to_nothing_is_no_result() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[(".gitattributes", "*.bat text\n"), ("a.bat", "1\n")]).await;
    let base = worktree.base().clone();
    let first = worktree.checkpoint(&base, "first").await.unwrap();
    let made = mirror.commit_unfinished(&base, &first.commit, &first.commit, "m").await;
    assert_eq!(made.unwrap(), None);
    // Only line endings, which git does not store.
    write(&worktree.path().join("a.bat"), "1\r\n");
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    assert_ne!(first.tree, second.tree);
    let made = mirror
        .commit_unfinished(&base, &first.commit, &second.commit, "m")
        .await;
    assert_eq!(made.unwrap(), None);
    assert_eq!(left(&mirror), 0);
}

#[tokio::test]
async fn of_a_submodule_there_is_the_commit_id_only() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let commit = sandbox.head(&source);
    for name in ["full", "dropped", "other"] {
        let entry = format!("160000,{commit},{name}");
        sandbox.git(&source, &["update-index", "--add", "--cacheinfo", &entry]);
    }
    sandbox.git(&source, &["commit", "-qm", "submodules"]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let first = worktree.checkpoint(&base, "first").await.unwrap();
    write(&worktree.path().join("full/file"), "f\n");
    write(&worktree.path().join("new"), "n\n");
    fs::remove_dir(worktree.path().join("dropped")).unwrap();
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    let made = mirror
        .commit_unfinished(&base, &first.commit, &second.commit, "m")
        .await;
    let made = made.unwrap().unwrap();
    assert_eq!(
        listed(&sandbox, &mirror, &made.commit),
        ["100644 a", "160000 full", "100644 new", "160000 other"]
    );
    assert_eq!(
        (made.paths, made.deleted),
        (vec!["dropped".to_owned(), "new".to_owned()], vec!["dropped".to_owned()])
    );
}
