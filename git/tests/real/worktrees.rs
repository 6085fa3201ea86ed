//! Worktrees: what a session does to one, and the result.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use kage_core::event::{ChangeKind, DiffStat};
use kage_core::protect::Protection;
use kage_core::task::VerifyPolicy;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Worktree};
use tokio::task::JoinSet;

use crate::sandbox::{Sandbox, next_second, protecting, url, write};

#[tokio::test]
async fn a_change_of_the_second_of_the_checkout_is_in_the_result() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "1\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    for attempt in 0..50 {
        let place = sandbox.path("w").join(attempt.to_string());
        let worktree = Worktree::create(&mirror, place, &base).await.unwrap();
        let file = worktree.path().join("a");
        let second = fs::metadata(&file).unwrap().ctime();
        // In place and of the same length: nothing but the time tells.
        write(&file, "2\n");
        if fs::metadata(&file).unwrap().ctime() != second {
            continue;
        }
        next_second(second).await;
        assert!(worktree.commit_result("two").await.unwrap().is_some());
        return;
    }
    panic!("no change fell into the second of its checkout");
}

#[tokio::test]
async fn a_result_holds_the_whole_state() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository(
        "source",
        &[
            (".gitignore", "ignored/\n*.log\n"),
            ("kept", "k\n"),
            ("edited", "1\n2\n3\n"),
            ("gone", "g\n"),
            ("script", "#!/bin/sh\n"),
            ("file-to-folder", "f\n"),
            ("folder-to-link/inner", "i\n"),
            ("link-to-file-target", "t\n"),
        ],
    );
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w/1"), &base).await.unwrap();
    let top = worktree.path().to_owned();
    assert_eq!(worktree.changes().await.unwrap(), []);
    assert_eq!(worktree.commit_result("none").await.unwrap(), None);
    assert_eq!(sandbox.git(&top, &["status", "--porcelain"]), "");

    write(&top.join("edited"), "1\ntwo\n3\n4\n");
    fs::remove_file(top.join("gone")).unwrap();
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(top.join("file-to-folder")).unwrap();
    write(&top.join("file-to-folder/inner"), "x\ny");
    fs::remove_dir_all(top.join("folder-to-link")).unwrap();
    symlink("/etc", top.join("folder-to-link")).unwrap();
    write(&top.join("ignored/secret"), "s");
    write(&top.join("a.log"), "l");
    write(&top.join("with space\nand newline"), "n\n");
    write(&top.join(OsStr::from_bytes(b"latin-\xe9")), "b\n");
    write(&top.join("binary"), b"\0\x01\x02\n");
    // A session's use of git affects only its own repository.
    sandbox.git(&top, &["add", "edited"]);
    sandbox.git(&top, &["commit", "-q", "-m", "the session's own"]);
    sandbox.git(&top, &["config", "core.fileMode", "false"]);
    sandbox.git(&top, &["rm", "-q", "--cached", "kept"]);

    let changes = worktree.changes().await.unwrap();
    let shown: Vec<_> = changes
        .iter()
        .map(|c| (c.path.as_str(), c.kind, c.added, c.removed))
        .collect();
    let expected = [
        ("binary", ChangeKind::Added, 0, 0),
        ("edited", ChangeKind::Modified, 2, 1),
        ("file-to-folder", ChangeKind::Deleted, 0, 1),
        ("file-to-folder/inner", ChangeKind::Added, 2, 0),
        ("folder-to-link", ChangeKind::Added, 1, 0),
        ("folder-to-link/inner", ChangeKind::Deleted, 0, 1),
        ("gone", ChangeKind::Deleted, 0, 1),
        ("latin-\u{fffd}", ChangeKind::Added, 1, 0),
        ("script", ChangeKind::Modified, 0, 0),
        ("with space\nand newline", ChangeKind::Added, 1, 0),
    ];
    assert_eq!(shown, expected);

    let result = worktree.commit_result("the result\n").await.unwrap().unwrap();
    assert_eq!(
        result.diff,
        DiffStat {
            files: 10,
            added: 7,
            removed: 4
        }
    );
    assert_eq!(result.deleted, ["file-to-folder", "folder-to-link/inner", "gone"]);
    let show = |format: &str| sandbox.git(mirror.path(), &["log", "-1", format, result.commit.as_str()]);
    assert_eq!(
        show("--format=%P|%an|%ae|%cn|%ce|%B"),
        format!("{base}|Kage Bunshin|kage@localhost|Kage Bunshin|kage@localhost|the result")
    );
    let tree = sandbox.git(
        mirror.path(),
        &[
            "ls-tree",
            "-r",
            "-z",
            "--format=%(objectmode) %(path)",
            result.commit.as_str(),
        ],
    );
    let tree: Vec<_> = tree.split('\0').filter(|line| !line.is_empty()).collect();
    assert_eq!(
        tree,
        [
            "100644 .gitignore",
            "100644 binary",
            "100644 edited",
            "100644 file-to-folder/inner",
            "120000 folder-to-link",
            "100644 kept",
            "100644 \"latin-\\351\"",
            "100644 link-to-file-target",
            "100755 script",
            "100644 \"with space\\nand newline\"",
        ]
    );
    assert!(top.join("ignored/secret").exists() && top.join("a.log").exists());

    Worktree::remove(&mirror, &top).await.unwrap();
    Worktree::remove(&mirror, &top).await.unwrap();
    assert!(!top.exists());
    assert_eq!(fs::read_dir(mirror.path().join("checkouts")).unwrap().count(), 0);
}

#[tokio::test]
async fn nested_repositories_come_along_as_files() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n"), (".gitignore", "*.log\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let top = worktree.path();
    for (nested, commits) in [("born", true), ("unborn", false), ("born/deeper", true)] {
        let folder = top.join(nested);
        write(&folder.join("file"), "f\n");
        write(&folder.join("hidden.log"), "f\n");
        write(&folder.join("own"), "f\n");
        write(&folder.join(".gitignore"), "own\n");
        sandbox.git(&folder, &["init", "-q"]);
        if commits {
            sandbox.commit(&folder, "nested");
        }
    }
    let expected = [
        "born/.gitignore",
        "born/deeper/.gitignore",
        "born/deeper/file",
        "born/file",
        "unborn/.gitignore",
        "unborn/file",
    ];
    let changes = worktree.changes().await.unwrap();
    let paths: Vec<_> = changes.iter().map(|c| c.path.as_str()).collect();
    assert_eq!(paths, expected);
    let result = worktree.commit_result("nested").await.unwrap().unwrap();
    assert_eq!(result.paths, expected);
    for nested in ["born", "unborn", "born/deeper"] {
        assert!(top.join(nested).join(".git/HEAD").exists(), "nothing was renamed");
    }
}

#[tokio::test]
async fn a_session_that_wrecks_its_git_directory_loses_nothing() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    fs::remove_dir_all(worktree.path().join(".git")).unwrap();
    write(&worktree.path().join(".git"), "gitdir: /nowhere\n");
    write(&worktree.path().join("b"), "b\n");
    let result = worktree.commit_result("b").await.unwrap().unwrap();
    assert_eq!(result.paths, ["b"]);
}

#[tokio::test]
async fn restoring_protected_paths_undoes_every_kind_of_change() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository(
        "source",
        &[
            ("src/lib.rs", "lib\n"),
            ("tests/edited.rs", "e\n"),
            ("tests/gone.rs", "g\n"),
            ("tests/deep/x.rs", "x\n"),
            ("ci/check", "c\n"),
            ("Makefile", "m\n"),
        ],
    );
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let session = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let top = session.path();
    write(&top.join("src/lib.rs"), "better\n");
    write(&top.join("tests/edited.rs"), "weaker\n");
    fs::remove_file(top.join("tests/gone.rs")).unwrap();
    write(&top.join("tests/added.rs"), "a\n");
    fs::remove_dir_all(top.join("tests/deep")).unwrap();
    let outside = sandbox.path("outside");
    write(&outside.join("x.rs"), "untouched\n");
    symlink(&outside, top.join("tests/deep")).unwrap();
    fs::remove_dir_all(top.join("ci")).unwrap();
    write(&top.join("ci"), "a file now\n");
    fs::remove_file(top.join("Makefile")).unwrap();
    write(&top.join("Makefile/inner"), "a folder now\n");
    let result = session.commit_result("r").await.unwrap().unwrap();

    let clean = Worktree::create(&mirror, sandbox.path("v"), &result.commit)
        .await
        .unwrap();
    let protection = protecting(&["tests/**", "ci/*", "Makefile"]);
    let restored = clean.restore_paths(&base, &protection).await.unwrap();
    assert_eq!(
        restored,
        [
            "Makefile",
            "Makefile/inner",
            "ci/check",
            "tests/added.rs",
            "tests/deep",
            "tests/deep/x.rs",
            "tests/edited.rs",
            "tests/gone.rs"
        ]
    );
    let read = |path: &str| fs::read_to_string(clean.path().join(path)).unwrap();
    assert_eq!(read("src/lib.rs"), "better\n");
    assert_eq!(read("tests/edited.rs"), "e\n");
    assert_eq!(read("tests/gone.rs"), "g\n");
    assert_eq!(read("tests/deep/x.rs"), "x\n");
    assert_eq!(read("ci/check"), "c\n");
    assert_eq!(read("Makefile"), "m\n");
    assert!(!clean.path().join("tests/added.rs").exists());
    assert_eq!(fs::read_to_string(outside.join("x.rs")).unwrap(), "untouched\n");
}

#[tokio::test]
async fn files_that_a_command_names_are_the_bases_and_what_the_base_lacks_stays() {
    let sandbox = Sandbox::new();
    let files = [
        ("test.sh", "t\n"),
        ("gone.sh", "g\n"),
        ("link.sh", "l\n"),
        ("folder.sh", "f\n"),
        ("sub/check.sh", "s\n"),
        ("sub/test.sh", "another\n"),
        ("add.sh", "a\n"),
        ("src/lib.rs", "good\n"),
    ];
    let source = sandbox.repository("source", &files);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let session = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let top = session.path();
    for path in [
        "test.sh",
        "sub/check.sh",
        "sub/test.sh",
        "add.sh",
        "src/lib.rs",
        "new.sh",
    ] {
        write(&top.join(path), "exit 0\n");
    }
    for path in ["gone.sh", "link.sh", "folder.sh"] {
        fs::remove_file(top.join(path)).unwrap();
    }
    symlink("new.sh", top.join("link.sh")).unwrap();
    write(&top.join("folder.sh/inner"), "x\n");
    let result = session.commit_result("r").await.unwrap().unwrap();

    let clean = Worktree::create(&mirror, sandbox.path("v"), &result.commit)
        .await
        .unwrap();
    let policy = VerifyPolicy {
        setup: Some("sh folder.sh link.sh".to_owned()),
        verify: Some("./test.sh; sh gone.sh; test -f new.sh; sh add.sh; cd sub && sh check.sh".to_owned()),
        ..VerifyPolicy::default()
    };
    let protection = Protection::new(&policy, vec!["add.sh".to_owned()]).unwrap();
    let restored = clean.restore_paths(&base, &protection).await.unwrap();
    assert_eq!(restored, ["folder.sh", "gone.sh", "link.sh", "sub/check.sh", "test.sh"]);
    let read = |path: &str| fs::read_to_string(clean.path().join(path)).unwrap();
    for (path, content) in files {
        let left = ["add.sh", "src/lib.rs", "sub/test.sh"].contains(&path);
        assert_eq!(read(path), if left { "exit 0\n" } else { content }, "{path}");
    }
    assert_eq!(read("new.sh"), "exit 0\n", "there is nothing to put in its place");
}

#[tokio::test]
async fn many_worktrees_are_made_while_the_mirror_fetches() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n"), ("b/c", "c\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    write(&source.join("a"), "newer\n");
    let newer = sandbox.commit(&source, "newer");
    let mut work = JoinSet::new();
    for number in 0..8 {
        let (mirror, base, newer) = (mirror.clone(), base.clone(), newer.clone());
        let (path, url) = (sandbox.path(&format!("w/{number}")), url(&source));
        work.spawn(async move {
            let spec = format!("HEAD:refs/kage/bases/{newer}");
            let specs = [spec.as_str()];
            let fetch = mirror.fetch(&url, &Auth::None, &specs);
            let create = Worktree::create(&mirror, &path, &base);
            let (fetched, worktree) = tokio::join!(fetch, create);
            fetched.unwrap();
            let worktree = worktree.unwrap();
            write(&path.join("own"), format!("{number}\n"));
            worktree.commit_result("own").await.unwrap().unwrap().commit
        });
    }
    let mut results = work.join_all().await;
    results.sort();
    results.dedup();
    assert_eq!(results.len(), 8);
    assert!(mirror.has_commit(&newer).await.unwrap());
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
}

#[tokio::test]
async fn a_result_and_a_checkpoint_leave_out_the_same_files() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[(".gitignore", "*.log\n"), ("a", "1\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let top = worktree.path().to_owned();
    write(&top.join(".git/info/exclude"), "*.local\n");
    let nested = top.join("nested");
    fs::create_dir(&nested).unwrap();
    sandbox.git(&nested, &["init", "--quiet"]);
    for folder in [&top, &nested] {
        for name in ["kept", "tool.local", "made.log"] {
            write(&folder.join(name), "x\n");
        }
    }
    let result = worktree.commit_result("result").await.unwrap().unwrap();
    let checkpoint = worktree.checkpoint(&base, "checkpoint").await.unwrap();
    assert_eq!(result.tree, Some(checkpoint.tree));
    let listed = sandbox.git(mirror.path(), &["ls-tree", "-r", "--name-only", result.commit.as_str()]);
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        [".gitignore", "a", "kept", "nested/kept"]
    );
}

#[tokio::test]
async fn ignored_files_that_are_included_are_put_into_worktrees_and_never_taken_from_one() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[(".gitignore", ".env\ndata/\n*.log\n"), ("a", "1\n")]);
    write(&source.join(".worktreeinclude"), "/.env\ndata/*.db\n*.txt\n");
    write(&source.join(".env"), "KEY=secret\r\n");
    write(&source.join("data/one.db"), "db");
    write(&source.join("data/other"), "not named");
    write(&source.join("of-base.txt"), "named, and not ignored");
    write(&source.join("x.log"), "by a pattern");
    let repository = kage_git::UserRepo::discover(&source).await.unwrap();
    let options = SnapshotOptions {
        include: vec!["x.log".to_owned()],
        ..SnapshotOptions::default()
    };
    let snapshot = Snapshot::take(&repository, &options).await.unwrap();
    let included = snapshot.included.clone().unwrap();
    assert_eq!(included.paths, [".env", "data/one.db", "x.log"]);
    let again = Snapshot::take(&repository, &options).await.unwrap();
    assert_eq!(again.included, Some(included.clone()), "it is the same commit");
    let mirror = kage_git::Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
    snapshot
        .push(&url(mirror.path()), &Auth::None, Receiver::New)
        .await
        .unwrap();

    let worktree = Worktree::create(&mirror, sandbox.path("w"), &snapshot.base)
        .await
        .unwrap();
    worktree.include(&included.commit).await.unwrap();
    let file = |name: &str| worktree.path().join(name);
    assert_eq!(fs::read_to_string(file(".env")).unwrap(), "KEY=secret\r\n");
    assert_eq!(fs::metadata(file(".env")).unwrap().mode() & 0o777, 0o600);
    assert!(file("data/one.db").exists() && file("x.log").exists() && !file("data/other").exists());
    assert!(worktree.commit_result("nothing").await.unwrap().is_none());

    // The session ignores nothing any more, and changes one of them.
    write(&file(".gitignore"), "");
    write(&file(".env"), "KEY=another\n");
    write(&file("data/new"), "the session's own");
    let changes = worktree.changes().await.unwrap();
    let changed: Vec<_> = changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(changed, [".gitignore", "data/new"]);
    let checkpoint = worktree.checkpoint(&snapshot.base, "checkpoint").await.unwrap();
    let result = worktree.commit_result("result").await.unwrap().unwrap();
    for commit in [&checkpoint.commit, &result.commit] {
        let tree = sandbox.git(mirror.path(), &["ls-tree", "-r", "--name-only", commit.as_str()]);
        assert_eq!(
            tree.lines().collect::<Vec<_>>(),
            [".gitignore", ".worktreeinclude", "a", "data/new", "of-base.txt"]
        );
    }
    // Verify has them, also where protected paths are restored.
    let verify = Worktree::create(&mirror, sandbox.path("v"), &result.commit)
        .await
        .unwrap();
    verify.include(&included.commit).await.unwrap();
    verify
        .restore_paths(&snapshot.base, &protecting(&["data/**"]))
        .await
        .unwrap();
    assert!(verify.path().join("data/one.db").exists() && !verify.path().join("data/new").exists());
    assert_eq!(
        fs::read_to_string(verify.path().join(".env")).unwrap(),
        "KEY=secret\r\n"
    );
}

#[tokio::test]
async fn what_a_base_has_at_the_path_of_an_included_file_stays_and_too_much_is_refused() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[(".gitignore", "*.db\n"), ("a", "1\n")]);
    write(&source.join("one.db"), "included");
    let options = SnapshotOptions {
        include: vec!["*.db".to_owned()],
        ..SnapshotOptions::default()
    };
    let repository = kage_git::UserRepo::discover(&source).await.unwrap();
    let snapshot = Snapshot::take(&repository, &options).await.unwrap();
    let (mirror, _) = sandbox.mirror("m.git", &source).await;
    snapshot
        .push(&url(mirror.path()), &Auth::None, Receiver::New)
        .await
        .unwrap();
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &snapshot.base)
        .await
        .unwrap();
    let link = worktree.path().join("one.db");
    symlink("../outside", &link).unwrap();
    let included = snapshot.included.clone().unwrap();
    worktree.include(&included.commit).await.unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && !sandbox.path("outside").exists());

    let large = fs::File::create(source.join("large.db")).unwrap();
    large.set_len(kage_git::included::MAX_INCLUDED_BYTES).unwrap();
    let refused = Snapshot::take(&repository, &options).await.unwrap_err().to_string();
    assert!(
        refused.contains("the largest is large.db with 16777216 bytes"),
        "{refused}"
    );
}
