//! Checkpoints: their content, their cost for the session, and when there is none.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::{Mirror, Worktree};

use crate::sandbox::{Sandbox, fingerprint, write};

/// A worktree of a repository with these files.
pub(crate) async fn worktree(sandbox: &Sandbox, files: &[(&str, &str)]) -> (Mirror, Worktree) {
    let source = sandbox.repository("source", files);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    (mirror, worktree)
}

pub(crate) fn listed(sandbox: &Sandbox, mirror: &Mirror, commit: &Oid) -> Vec<String> {
    let args = ["ls-tree", "-r", "-z", "--format=%(objectmode) %(path)", commit.as_str()];
    let list = sandbox.git(mirror.path(), &args);
    list.split('\0')
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_checkpoint_holds_every_byte_that_is_not_ignored() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(
        &sandbox,
        &[
            (".gitignore", "ignored/\n*.log\n"),
            (".gitattributes", "* text=auto eol=lf\n"),
            ("edited", "1\n"),
            ("gone", "g\n"),
            ("script", "#!/bin/sh\n"),
            ("file-to-folder", "f\n"),
            ("folder-to-link/inner", "i\n"),
        ],
    )
    .await;
    let top = worktree.path();
    let first = worktree.checkpoint(worktree.base(), "baseline").await.unwrap();
    assert_eq!(first.files_changed, 0);

    write(&top.join("edited"), "1\r\n2\r\n");
    fs::remove_file(top.join("gone")).unwrap();
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(top.join("file-to-folder")).unwrap();
    write(&top.join("file-to-folder/inner"), "x");
    fs::remove_dir_all(top.join("folder-to-link")).unwrap();
    symlink("/etc", top.join("folder-to-link")).unwrap();
    write(&top.join("ignored/secret"), "s");
    write(&top.join("a.log"), "l");
    write(&top.join("with space\nand newline"), "n\n");
    write(&top.join(OsStr::from_bytes(b"latin-\xe9")), "b\n");
    write(&top.join("new/deep/er/file"), "n\n");
    write(&top.join("new/deep/er/noise.log"), "n\n");
    fs::create_dir(top.join("empty")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("pipe"), 0o600.into()).unwrap();
    let message = "$(touch x) `touch y`\n\n--amend\n\0odd\u{1F600} # kept\n\n\n";
    let second = worktree.checkpoint(&first.commit, message).await.unwrap();
    assert_eq!(
        listed(&sandbox, &mirror, &second.commit),
        [
            "100644 .gitattributes",
            "100644 .gitignore",
            "100644 edited",
            "100644 file-to-folder/inner",
            "120000 folder-to-link",
            "100644 \"latin-\\351\"",
            "100644 new/deep/er/file",
            "100755 script",
            "100644 \"with space\\nand newline\"",
        ]
    );
    assert_eq!(second.files_changed, 10);
    let raw = sandbox.git_with_input(mirror.path(), &["cat-file", "commit", second.commit.as_str()], b"");
    let raw = String::from_utf8(raw).unwrap();
    assert!(
        raw.ends_with(&format!("\n\n{}", message.replace('\0', "\u{fffd}"))),
        "{raw}"
    );
    assert!(raw.contains(&format!("tree {}\nparent {}\n", second.tree, first.commit)));
    let edited = format!("{}:edited", second.commit);
    let bytes = sandbox.git_with_input(mirror.path(), &["cat-file", "blob", &edited], b"");
    assert_eq!(bytes, b"1\r\n2\r\n", "line endings are content");
    // The same files make the same tree, in this process or another.
    let third = worktree.checkpoint(&second.commit, "again").await.unwrap();
    assert_eq!((third.tree, third.files_changed), (second.tree.clone(), 0));
    let other = Worktree::open(&mirror, top, worktree.base()).await.unwrap();
    assert_eq!(other.checkpoint(&first.commit, "b").await.unwrap().tree, second.tree);
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
}

#[tokio::test]
async fn small_changes_are_seen_however_they_are_hidden() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "1111"), ("b", "2222"), ("d/c", "c")]).await;
    let file = worktree.path().join("a");
    let mut parent = worktree.base().clone();
    let mut trees = Vec::new();
    for content in ["1112", "1113", "1114", "1115"] {
        // As long as before, in the same moment, and with a time from the past.
        fs::write(&file, content).unwrap();
        let past = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(past)
            .unwrap();
        let taken = worktree.checkpoint(&parent, "c").await.unwrap();
        assert_eq!(taken.files_changed, 1, "{content}");
        let there = sandbox.git(mirror.path(), &["cat-file", "blob", &format!("{}:a", taken.commit)]);
        assert_eq!(there, content);
        parent = taken.commit;
        trees.push(taken.tree);
    }
    // A folder that goes, one that is swapped for another.
    fs::rename(worktree.path().join("d"), worktree.path().join("e")).unwrap();
    let taken = worktree.checkpoint(&parent, "moved").await.unwrap();
    assert_eq!(
        listed(&sandbox, &mirror, &taken.commit),
        ["100644 a", "100644 b", "100644 e/c"]
    );
}

#[tokio::test]
async fn nested_repositories_and_submodules_keep_their_files() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let commit = sandbox.head(&source);
    for name in ["sub", "full"] {
        sandbox.git(
            &source,
            &[
                "update-index",
                "--add",
                "--cacheinfo",
                &format!("160000,{commit},{name}"),
            ],
        );
    }
    sandbox.git(&source, &["commit", "-qm", "submodules"]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let top = worktree.path();
    write(&top.join("full/file"), "f\n");
    for (nested, born) in [("born", true), ("unborn", false), ("born/deeper", true)] {
        let folder = top.join(nested);
        write(&folder.join("file"), "f\n");
        write(&folder.join("own"), "f\n");
        write(&folder.join(".gitignore"), "own\n");
        sandbox.git(&folder, &["init", "-q"]);
        if born {
            sandbox.commit(&folder, "nested");
        }
    }
    let before = fingerprint(top);
    let taken = worktree.checkpoint(&base, "nested").await.unwrap();
    assert_eq!(
        listed(&sandbox, &mirror, &taken.commit),
        [
            "100644 a",
            "100644 born/.gitignore",
            "100644 born/deeper/.gitignore",
            "100644 born/deeper/file",
            "100644 born/file",
            "100644 full/file",
            "160000 sub",
            "100644 unborn/.gitignore",
            "100644 unborn/file",
        ]
    );
    assert_eq!(fingerprint(top), before);
}

#[tokio::test]
async fn names_that_look_like_patterns_are_names() {
    let sandbox = Sandbox::new();
    let (mirror, worktree) = worktree(&sandbox, &[("a", "a\n"), (".gitignore", "*.log\n")]).await;
    let top = worktree.path();
    sandbox.git(top, &["init", "-q", "nested"]);
    for name in [
        ":(top)x",
        ":!y",
        "[a]",
        "*",
        "--help",
        "#z",
        "!n",
        ":x.log",
        "nested/:(bad)z",
        "back\\slash",
    ] {
        write(&top.join(name), "n\n");
    }
    let taken = worktree.checkpoint(worktree.base(), "odd").await.unwrap();
    assert_eq!(taken.files_changed, 9);
    let result = worktree.commit_result("odd").await.unwrap().unwrap();
    let tree = sandbox.git(mirror.path(), &["rev-parse", &format!("{}^{{tree}}", result.commit)]);
    assert_eq!(taken.tree.as_str(), tree);
    worktree
        .restore(worktree.base(), &kage_git::restore::RestoreOptions::default())
        .await
        .unwrap();
    assert!(!top.join(":(top)x").exists() && top.join(":x.log").exists());
}

#[tokio::test]
async fn many_worktrees_of_one_mirror_take_checkpoints_at_once() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n"), ("b/c", "c\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let mut work = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (mirror, base, path): (_, _, PathBuf) =
            (mirror.clone(), base.clone(), sandbox.path(&format!("w/{number}")));
        work.spawn(async move {
            let worktree = Worktree::create(&mirror, &path, &base).await.unwrap();
            let mut parent = base;
            for round in 0..4 {
                write(&path.join("b/own"), format!("{number} {round}\n"));
                parent = worktree.checkpoint(&parent, "c").await.unwrap().commit;
            }
            parent
        });
    }
    let mut commits = work.join_all().await;
    commits.sort();
    commits.dedup();
    assert_eq!(commits.len(), 16);
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
}

/// With many folders only those that a survey suspects are looked into.
#[tokio::test]
async fn every_kind_of_change_is_seen_in_a_wide_tree() {
    let sandbox = Sandbox::new();
    let files: Vec<(String, String)> = (0..40)
        .flat_map(|a| (0..5).map(move |b| (format!("d{a}/in/e{b}/f"), format!("{a} {b}\n"))))
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let (mirror, worktree) = worktree(&sandbox, &files).await;
    let top = worktree.path();
    let mut last = worktree.checkpoint(worktree.base(), "baseline").await.unwrap();
    let outside = sandbox.path("outside");
    write(&outside.join("f"), "not ours\n");
    let changes: [(&str, &dyn Fn()); 10] = [
        ("edited", &|| write(&top.join("d3/in/e1/f"), "edited\n")),
        ("new beside a known one", &|| write(&top.join("d4/in/e1/g"), "new\n")),
        ("new in a new folder", &|| write(&top.join("d5/in/new/deep/f"), "new\n")),
        ("new in a new folder of the top", &|| {
            write(&top.join("new/in/e/f"), "new\n")
        }),
        ("deleted", &|| fs::remove_file(top.join("d6/in/e2/f")).unwrap()),
        ("folder deleted", &|| fs::remove_dir_all(top.join("d7")).unwrap()),
        ("executable", &|| {
            fs::set_permissions(top.join("d8/in/e1/f"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
        ("folder to link", &|| {
            fs::remove_dir_all(top.join("d9/in/e1")).unwrap();
            symlink(&outside, top.join("d9/in/e1")).unwrap();
        }),
        ("top folder to file", &|| {
            fs::remove_dir_all(top.join("d10")).unwrap();
            write(&top.join("d10"), "file\n");
        }),
        ("two folders swapped", &|| {
            fs::rename(top.join("d11"), top.join("d")).unwrap();
            fs::rename(top.join("d12"), top.join("d11")).unwrap();
            fs::rename(top.join("d"), top.join("d12")).unwrap();
        }),
    ];
    for (what, change) in changes {
        change();
        let taken = worktree.checkpoint(&last.commit, what).await.unwrap();
        let expected = worktree.commit_result("as git sees it").await.unwrap().unwrap();
        let tree = sandbox.git(mirror.path(), &["rev-parse", &format!("{}^{{tree}}", expected.commit)]);
        assert_eq!(taken.tree.as_str(), tree, "{what}");
        assert_ne!(taken.tree, last.tree, "{what}");
        last = taken;
    }
    let options = kage_git::restore::RestoreOptions::default();
    worktree.restore(worktree.base(), &options).await.unwrap();
    assert_eq!(worktree.commit_result("none").await.unwrap(), None);
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "not ours\n");
}

#[tokio::test]
async fn a_session_is_rebuilt_on_another_machine_byte_for_byte() {
    let sandbox = Sandbox::new();
    let files = [
        (".gitattributes", "*.txt text eol=crlf\n"),
        ("a.txt", "one\n"),
        ("b", "b\n"),
    ];
    let (here, worktree) = worktree(&sandbox, &files).await;
    let top = worktree.path();
    let base = worktree.base().clone();
    write(&top.join("b"), "changed\n");
    let first = worktree.checkpoint_changes(&base, "first").await.unwrap();
    // Line endings as the session left them, not as a checkout would make them.
    write(&top.join("a.txt"), "one\ntwo\r\n");
    write(&top.join("new/file"), "n\n");
    fs::remove_file(top.join("b")).unwrap();
    let second = worktree.checkpoint_changes(&first.commit, "second").await.unwrap();
    let same = worktree.checkpoint_changes(&second.commit, "nothing").await.unwrap();
    assert_eq!((&same.commit, same.files_changed), (&second.commit, 0));
    assert_ne!(first.commit, second.commit);

    let source = sandbox.path("source");
    let (there, _) = sandbox.mirror("there.git", &source).await;
    let mut packs = Vec::new();
    for (commit, parent) in [(&first.commit, &base), (&second.commit, &first.commit)] {
        let pack = here.thin_pack(commit, std::slice::from_ref(parent)).await.unwrap();
        packs.push(pack.reopen().unwrap());
    }
    let gap = packs[1].try_clone().unwrap();
    assert!(there.ingest_pack(gap, &second.commit).await.is_err());
    assert!(!there.has_commit(&second.commit).await.unwrap());
    let incoming = there.incoming().unwrap();
    for mut pack in packs {
        use std::io::Seek as _;
        pack.rewind().unwrap();
        incoming.add(pack).await.unwrap();
    }
    assert!(
        !there.has_commit(&second.commit).await.unwrap(),
        "not before all are there"
    );
    incoming.admit(&second.commit).await.unwrap();
    let moved = Worktree::rebuild(&there, sandbox.path("moved"), &base, &second.commit)
        .await
        .unwrap();
    let files = |top: &Path| {
        let all = fingerprint(top).into_iter();
        let mut files: Vec<_> = all
            .map(|(path, mode, content)| (path.strip_prefix(top).unwrap().to_owned(), mode, content))
            .filter(|(path, _, _)| !path.starts_with(".git"))
            .collect();
        files.sort();
        files
    };
    assert_eq!(files(moved.path()), files(top));
    let third = moved.checkpoint_changes(&second.commit, "nothing").await.unwrap();
    assert_eq!(third.commit, second.commit);
    write(&moved.path().join("after"), "a\n");
    let result = moved.commit_result("result").await.unwrap().unwrap();
    let parent = sandbox.git(there.path(), &["rev-parse", &format!("{}^", result.commit)]);
    assert_eq!(parent, base.as_str());
    let removed = worktree.commit_result("result").await.unwrap().unwrap();
    assert_eq!(result.paths.len(), removed.paths.len() + 1);
    sandbox.git(there.path(), &["fsck", "--strict", "--no-dangling"]);
}
