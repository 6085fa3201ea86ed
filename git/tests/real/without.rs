//! A checkout of a result from which the result's change is taken out.

use std::fs;
use std::os::unix::fs::symlink;

use kage_git::{Mirror, Worktree};

use crate::sandbox::{Sandbox, write};

fn is_a_test(path: &str) -> bool {
    path.starts_with("tests/")
}

#[tokio::test]
async fn a_change_is_taken_out_and_its_tests_and_what_was_built_stay() {
    let sandbox = Sandbox::new();
    let files = [
        ("edited", "e\n"),
        ("removed/file", "r\n"),
        ("turned", "t\n"),
        ("same", "s\n"),
        ("tests/old", "o\n"),
        (".gitignore", "out/\n"),
    ];
    let source = sandbox.repository("source", &files);
    let base = sandbox.head(&source);
    let mirror = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
    sandbox.git(
        &source,
        &["push", "-q", mirror.path().to_str().unwrap(), "HEAD:refs/heads/base"],
    );
    let session = Worktree::create(&mirror, sandbox.path("session"), &base).await.unwrap();
    let top = session.path();
    write(&top.join("edited"), "changed\n");
    fs::remove_dir_all(top.join("removed")).unwrap();
    fs::remove_file(top.join("turned")).unwrap();
    write(&top.join("turned/new"), "n\n");
    write(&top.join("added/deep/file"), "a\n");
    symlink("/etc/hostname", top.join("link")).unwrap();
    write(&top.join("tests/old"), "more\n");
    write(&top.join("tests/new"), "new\n");
    let result = session.commit_result("result\n").await.unwrap().unwrap().commit;

    let check = Worktree::create(&mirror, sandbox.path("check"), &result).await.unwrap();
    let top = check.path();
    write(&top.join("out/built"), "b\n");
    write(&top.join("added/built"), "b\n");
    let outside = sandbox.path("outside");
    write(&outside.join("file"), "of somebody else\n");
    fs::remove_dir_all(top.join("added/deep")).unwrap();
    symlink(&outside, top.join("added/deep")).unwrap();
    let taken = check.take_out(&base, &result, is_a_test).await.unwrap();
    assert_eq!(taken, ["edited", "link", "removed/file", "turned", "turned/new"]);
    let read = |path: &str| fs::read_to_string(top.join(path)).ok();
    let kept = [
        ("edited", Some("e\n")),
        ("removed/file", Some("r\n")),
        ("turned", Some("t\n")),
        ("same", Some("s\n")),
        ("link", None),
        ("tests/old", Some("more\n")),
        ("tests/new", Some("new\n")),
        ("out/built", Some("b\n")),
        ("added/built", Some("b\n")),
    ];
    for (path, content) in kept {
        assert_eq!(read(path).as_deref(), content, "{path}");
    }
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "of somebody else\n");
    assert!(
        check.take_out(&base, &result, is_a_test).await.unwrap().is_empty(),
        "it is out"
    );
}
