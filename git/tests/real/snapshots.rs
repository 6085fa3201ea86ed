//! Snapshots of a person's repository: their content, and that the repository does not change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use kage_git::snapshot::{LeftOutReason, Receiver, Snapshot, SnapshotError, SnapshotOptions, Warning};
use kage_git::user_repo::{DiscoverError, UnusedExcludes};
use kage_git::{Auth, Mirror, UserRepo};

use crate::sandbox::{Sandbox, fingerprint, next_second, url, write};

async fn take(repository: &Path, options: &SnapshotOptions) -> Result<Snapshot, SnapshotError> {
    let found = UserRepo::discover(repository).await.unwrap();
    Snapshot::take(&found, options).await
}

/// The content of the snapshot's base, read from the repository that it was pushed to.
async fn pushed(sandbox: &Sandbox, snapshot: &Snapshot) -> Vec<String> {
    let mirror = Mirror::open_or_init(sandbox.path("pushed.git")).await.unwrap();
    snapshot
        .push(&url(mirror.path()), &Auth::None, Receiver::New)
        .await
        .unwrap();
    snapshot
        .push(&url(mirror.path()), &Auth::None, Receiver::New)
        .await
        .unwrap();
    let name = format!("refs/kage/bases/{}", snapshot.base);
    assert_eq!(mirror.resolve(&name).await.unwrap(), Some(snapshot.base.clone()));
    sandbox.git(mirror.path(), &["fsck", "--strict"]);
    let tree = sandbox.git(
        mirror.path(),
        &["ls-tree", "-r", "--format=%(objectmode) %(path)", &name],
    );
    tree.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn work_of_the_second_of_the_last_commit_comes_along() {
    let sandbox = Sandbox::new();
    for attempt in 0..50 {
        let source = sandbox.repository(&format!("source-{attempt}"), &[("a", "1\n")]);
        let file = source.join("a");
        let second = fs::metadata(&file).unwrap().ctime();
        write(&file, "2\n");
        if fs::metadata(&file).unwrap().ctime() != second {
            continue;
        }
        next_second(second).await;
        let head = sandbox.git(&source, &["rev-parse", "HEAD"]);
        let snapshot = take(&source, &SnapshotOptions::default()).await.unwrap();
        assert_ne!(snapshot.base.as_str(), head.trim());
        return;
    }
    panic!("no work fell into the second of its commit");
}

#[tokio::test]
async fn uncommitted_work_comes_along_and_nothing_changes() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository(
        "source",
        &[
            ("a", "a\n"),
            ("gone", "g\n"),
            ("kept", "k\n"),
            (".gitignore", "*.log\n"),
        ],
    );
    write(&source.join("a"), "edited\n");
    fs::remove_file(source.join("gone")).unwrap();
    write(&source.join("staged"), "s\n");
    sandbox.git(&source, &["add", "staged"]);
    write(&source.join("staged"), "s, and then edited\n");
    write(&source.join("new/run"), "#!/bin/sh\n");
    fs::set_permissions(source.join("new/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a", source.join("link")).unwrap();
    write(&source.join("x.log"), "ignored\n");
    write(&source.join("large"), vec![b'x'; (5 << 20) + 1]);
    write(&source.join(".env"), "KEY=1\n");
    write(&source.join(".env.example"), "KEY=\n");
    write(&source.join("wanted.pem"), "public\n");
    write(&source.join("nested/file"), "n\n");
    sandbox.git(&source.join("nested"), &["init", "-q"]);
    write(&source.join(".git/info/exclude"), "private\n");
    write(&source.join("private"), "p\n");
    sandbox.git(&source, &["stash", "list"]);

    let before = fingerprint(&source);
    let options = SnapshotOptions {
        committed: false,
        include: vec!["wanted.pem".to_owned()],
    };
    let snapshot = take(&source, &options).await.unwrap();
    let tree = pushed(&sandbox, &snapshot).await;
    assert_eq!(fingerprint(&source), before);

    assert_eq!(snapshot.head, sandbox.head(&source));
    assert_eq!(
        tree,
        [
            "100644 .env.example",
            "100644 .gitignore",
            "100644 a",
            "100644 kept",
            "120000 link",
            "100755 new/run",
            "100644 staged",
            "100644 wanted.pem",
        ]
    );
    let mirror = sandbox.path("pushed.git");
    let parent = sandbox.git(&mirror, &["rev-parse", &format!("{}^", snapshot.base)]);
    assert_eq!(parent, snapshot.head.as_str());
    let staged = sandbox.git(&mirror, &["show", &format!("{}:staged", snapshot.base)]);
    assert_eq!(staged, "s, and then edited");
    let left_out: Vec<_> = snapshot
        .left_out
        .iter()
        .map(|it| (it.path.as_str(), it.reason))
        .collect();
    assert_eq!(
        left_out,
        [
            (".env", LeftOutReason::SecretName),
            ("large", LeftOutReason::Large { size: (5 << 20) + 1 }),
            ("nested/", LeftOutReason::NestedRepository),
        ]
    );

    let committed = SnapshotOptions {
        committed: true,
        include: Vec::new(),
    };
    let snapshot = take(&source, &committed).await.unwrap();
    assert_eq!(snapshot.base, snapshot.head);
    assert_eq!(pushed(&sandbox, &snapshot).await.len(), 4);
    assert_eq!(fingerprint(&source), before);
}

#[tokio::test]
async fn a_clean_repository_and_a_linked_worktree_are_bases_as_they_are() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\r\n")]);
    let snapshot = take(&source, &SnapshotOptions::default()).await.unwrap();
    assert_eq!(snapshot.base, snapshot.head);
    sandbox.git(&source, &["worktree", "add", "-q", "-b", "other", "../linked"]);
    let linked = sandbox.path("linked");
    write(&linked.join("b"), "b\n");
    let found = UserRepo::discover(&linked).await.unwrap();
    assert_eq!((found.root(), found.name().as_str()), (linked.as_path(), "linked"));
    let snapshot = take(&linked, &SnapshotOptions::default()).await.unwrap();
    assert_eq!(pushed(&sandbox, &snapshot).await, ["100644 a", "100644 b"]);
}

#[tokio::test]
async fn line_endings_follow_the_persons_settings() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\nb\n")]);
    sandbox.git(&source, &["config", "core.autocrlf", "true"]);
    write(&source.join("a"), "a\r\nb\r\nc\r\n");
    let snapshot = take(&source, &SnapshotOptions::default()).await.unwrap();
    pushed(&sandbox, &snapshot).await;
    let name = format!("{}:a", snapshot.base);
    let stored = sandbox.git_with_input(&sandbox.path("pushed.git"), &["cat-file", "blob", &name], b"");
    assert_eq!(stored, b"a\nb\nc\n");
}

#[tokio::test]
async fn what_cannot_be_sent_whole_is_refused() {
    let sandbox = Sandbox::new();
    let outside = UserRepo::discover(&sandbox.path("home")).await;
    assert!(
        matches!(outside, Err(DiscoverError::NotARepository { .. })),
        "{outside:?}"
    );

    let empty = sandbox.path("empty");
    fs::create_dir(&empty).unwrap();
    sandbox.git(&empty, &["init", "-q"]);
    let refused = take(&empty, &SnapshotOptions::default()).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::NoCommits));
    assert!(refused.to_string().contains("git commit"));

    let source = sandbox.repository("source", &[("a", "a\n")]);
    sandbox.git(&source, &["commit", "-q", "--allow-empty", "-m", "two"]);
    sandbox.git(
        &sandbox.path(""),
        &["clone", "-q", "--depth=1", &url(&source), "shallow"],
    );
    let refused = take(&sandbox.path("shallow"), &SnapshotOptions::default()).await;
    assert!(matches!(refused, Err(SnapshotError::Shallow)), "{refused:?}");

    sandbox.git(&source, &["checkout", "-q", "-b", "side"]);
    write(&source.join("a"), "side\n");
    sandbox.commit(&source, "side");
    sandbox.git(&source, &["checkout", "-q", "main"]);
    write(&source.join("a"), "main\n");
    sandbox.commit(&source, "main");
    assert!(sandbox.try_git(&source, &["merge", "side"]).is_err());
    let refused = take(&source, &SnapshotOptions::default()).await;
    assert!(
        matches!(&refused, Err(SnapshotError::Unmerged { paths }) if paths == &["a"]),
        "{refused:?}"
    );
}

/// What Git LFS stores of a file that is nowhere.
fn lfs_pointer() -> String {
    let digest = "0".repeat(64);
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 12\n")
}

#[tokio::test]
async fn filters_are_not_run_and_submodules_are_told() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository(
        "source",
        &[
            ("plain", "p\n"),
            (".gitattributes", "*.enc filter=crypt\n*.bin filter=lfs\n"),
        ],
    );
    write(&source.join("secret.enc"), "cipher\n");
    write(&source.join("big.bin"), lfs_pointer());
    sandbox.commit(&source, "filtered");
    let inner = sandbox.repository("inner", &[("i", "i\n")]);
    let allow = "protocol.file.allow=always";
    sandbox.git(
        &source,
        &["-c", allow, "submodule", "--quiet", "add", &url(&inner), "sub"],
    );
    sandbox.commit(&source, "submodule");
    sandbox.git(&source, &["config", "filter.crypt.clean", "tr a-z A-Z"]);

    write(&source.join("plain"), "edited\n");
    let snapshot = take(&source, &SnapshotOptions::default()).await.unwrap();
    assert_eq!(
        snapshot.warnings,
        [
            Warning::Submodules {
                paths: vec!["sub".to_owned()]
            },
            Warning::LargeFilePointers {
                paths: vec!["big.bin".to_owned()]
            },
        ]
    );
    let tree = pushed(&sandbox, &snapshot).await;
    assert!(tree.contains(&"160000 sub".to_owned()) && tree.contains(&"100644 secret.enc".to_owned()));

    write(&source.join("secret.enc"), "plain text\n");
    let refused = take(&source, &SnapshotOptions::default()).await;
    assert!(
        matches!(&refused, Err(SnapshotError::FilteredPath { path, filter }) if path == "secret.enc" && filter == "crypt"),
        "{refused:?}"
    );
    let committed = SnapshotOptions {
        committed: true,
        include: Vec::new(),
    };
    assert!(take(&source, &committed).await.is_ok());
}

#[tokio::test]
async fn a_line_break_in_the_path_of_a_repository_is_what_is_complained_about() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("new\nline", &[("a", "a\n")]);
    let refused = UserRepo::discover(&source).await.unwrap_err();
    assert!(matches!(refused, DiscoverError::LineBreak { .. }), "{refused:?}");
    assert!(refused.to_string().contains(r"new\nline"), "{refused}");
}

#[tokio::test]
async fn an_index_in_two_files_is_read_as_one_in_one() {
    let sandbox = Sandbox::new();
    let attributes = ("inner/.gitattributes", "*.bin filter=lfs\n");
    let pointer = lfs_pointer();
    let source = sandbox.repository("source", &[("a", "a\n"), ("inner/big.bin", &pointer), attributes]);
    sandbox.git(&source, &["update-index", "--split-index"]);
    write(&source.join("staged"), "s\n");
    sandbox.git(&source, &["add", "staged"]);
    write(&source.join("a"), "edited\n");
    let before = fingerprint(&source);
    let snapshot = take(&source, &SnapshotOptions::default()).await.unwrap();
    assert_eq!(fingerprint(&source), before);
    let paths = vec!["inner/big.bin".to_owned()];
    assert_eq!(snapshot.warnings, [Warning::LargeFilePointers { paths }]);
    let tree = pushed(&sandbox, &snapshot).await;
    assert_eq!(
        tree,
        [
            "100644 a",
            "100644 inner/.gitattributes",
            "100644 inner/big.bin",
            "100644 staged"
        ]
    );
    let edited = sandbox.git(&sandbox.path("pushed.git"), &["show", &format!("{}:a", snapshot.base)]);
    assert_eq!(edited, "edited");
}

#[tokio::test]
async fn what_cannot_be_read_or_stored_is_left_out_and_told() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository(
        "source",
        &[("a", "a\n"), ("tracked", "committed\n"), (".gitignore", "*.env\n")],
    );
    write(&source.join("git~1"), "x\n");
    write(&source.join("line\nbreak"), "l\n");
    write(&source.join("new.env"), "n\n");
    write(&source.join("odd\n.env"), "o\n");
    symlink("new.env", source.join("link.env")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, source.join("pipe.env"), 0o600.into()).unwrap();
    write(&source.join("secret"), "s\n");
    write(&source.join("closed/file"), "c\n");
    write(&source.join("tracked"), "changed\n");
    write(&source.join("shut.env"), "s\n");
    for name in ["secret", "closed", "tracked", "shut.env"] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let reads_all = fs::File::open(source.join("secret")).is_ok();
    let options = SnapshotOptions {
        committed: false,
        include: ["*.env", "pipe.env", "none.env", "/tracked", "*.none"]
            .map(str::to_owned)
            .to_vec(),
    };
    let snapshot = take(&source, &options).await.unwrap();
    let patterns = ["none.env", "*.none"].map(str::to_owned).to_vec();
    assert_eq!(snapshot.warnings, [Warning::IncludesNothing { patterns }]);
    let left_out: BTreeMap<_, _> = snapshot
        .left_out
        .iter()
        .map(|it| (it.path.as_str(), it.reason))
        .collect();
    let mut expected = BTreeMap::from([
        ("git~1", LeftOutReason::Name),
        ("link.env", LeftOutReason::Link),
        ("pipe.env", LeftOutReason::NotAFile),
    ]);
    let mut included = vec!["new.env", "odd\\n.env"];
    if reads_all {
        included.push("shut.env");
    } else {
        let shut = ["closed/", "secret", "shut.env", "tracked"];
        expected.extend(shut.map(|path| (path, LeftOutReason::Unreadable)));
    }
    assert_eq!(left_out, expected);
    assert_eq!(snapshot.included.as_ref().unwrap().paths, included);
    let tree = pushed(&sandbox, &snapshot).await;
    assert!(tree.contains(&"100644 \"line\\nbreak\"".to_owned()), "{tree:?}");
    let committed = sandbox.git(
        &sandbox.path("pushed.git"),
        &["show", &format!("{}:tracked", snapshot.base)],
    );
    assert_eq!(committed, if reads_all { "changed" } else { "committed" });
    fs::set_permissions(source.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn the_persons_excludes_go_along_and_no_file_that_the_repository_names() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let excludes = async || UserRepo::discover(&source).await.unwrap().excludes().await.unwrap();
    write(
        &source.join(".git/info/exclude"),
        "# git writes this\n\n*.scratch\n!kept.scratch\n",
    );
    assert!(excludes().await.patterns.ends_with("*.scratch\n!kept.scratch\n"));
    // A repository that came from elsewhere would have this file sent.
    let secret = sandbox.path("secret");
    write(&secret, "key\n");
    sandbox.git(&source, &["config", "core.excludesFile", secret.to_str().unwrap()]);
    assert!(!excludes().await.patterns.contains("key"));
    fs::remove_file(source.join(".git/info/exclude")).unwrap();
    symlink(&secret, source.join(".git/info/exclude")).unwrap();
    assert!(!excludes().await.patterns.contains("key"));
    fs::remove_file(source.join(".git/info/exclude")).unwrap();
    for (content, why) in [
        (vec![b'x'; 40 << 10], UnusedExcludes::TooLarge),
        (b"caf\xe9\n".to_vec(), UnusedExcludes::NotText),
    ] {
        write(&source.join(".git/info/exclude"), content);
        let found = excludes().await;
        assert_eq!(found.unused.last().unwrap().1, why);
    }
}
