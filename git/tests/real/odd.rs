//! Odd files in a worktree: each costs that file, which is named, and never the checkpoint, the result
//! or the session.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_core::left_out::{LeftOut, LeftOutReason};
use kage_core::task::ResultRules;
use kage_git::{GitError, Mirror, Worktree};

use crate::checkpoints::{listed, worktree};
use crate::sandbox::{Sandbox, write};

mod random;

/// With attributes git takes the result, without them the scan does.
const WAYS: [&[(&str, &str)]; 2] = [
    &[("a", "a\n"), (".gitignore", "*.log\n")],
    &[
        ("a", "a\n"),
        (".gitignore", "*.log\n"),
        (".gitattributes", "*.txt text\n"),
    ],
];

fn told(worktree: &Worktree) -> Vec<(String, LeftOutReason)> {
    let told = worktree.left_out();
    told.into_iter()
        .map(|LeftOut { path, reason }| (path, reason))
        .collect()
}

/// That the commit is taken by a mirror that believes nothing.
async fn arrives(sandbox: &Sandbox, from: &Mirror, base: &Oid, commit: &Oid) {
    let there = sandbox.path("there.git");
    let _gone = fs::remove_dir_all(&there);
    let (there, _) = sandbox.mirror("there.git", &sandbox.path("source")).await;
    let pack = from.thin_pack(commit, std::slice::from_ref(base)).await.unwrap();
    let taken = there.ingest_pack(fs::File::open(pack.path()).unwrap(), commit).await;
    taken.unwrap();
}

/// Makes the files below `top`, checks that both a checkpoint and a result have `expected` besides the
/// base's files, and that the rest is told.
async fn taken(make: impl Fn(&Path), expected: &[&str], left_out: &[(&str, LeftOutReason)]) {
    for files in WAYS {
        let sandbox = Sandbox::new();
        let (mirror, worktree) = worktree(&sandbox, files).await;
        let base = worktree.base().clone();
        make(worktree.path());
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        let left_out: Vec<_> = left_out.iter().map(|(path, why)| ((*path).to_owned(), *why)).collect();
        let added = |commit: &Oid| {
            let of_base = listed(&sandbox, &mirror, &base);
            let all = listed(&sandbox, &mirror, commit).into_iter();
            all.filter(|path| !of_base.contains(path)).collect::<Vec<_>>()
        };
        for _ in 0..2 {
            let checkpoint = worktree.checkpoint(&base, "odd").await.unwrap();
            assert_eq!(added(&checkpoint.commit), expected);
            assert_eq!(told(&worktree), left_out);
            arrives(&sandbox, &mirror, &base, &checkpoint.commit).await;
        }
        let result = worktree.commit_result("odd").await.unwrap();
        match result {
            None => assert_eq!(expected, Vec::<String>::new()),
            Some(result) => {
                assert_eq!(added(&result.commit), expected);
                let missed = worktree
                    .left_out()
                    .into_iter()
                    .filter(|file| file.reason.may_be_missed());
                assert_eq!(result.left_out, missed.collect::<Vec<_>>());
                arrives(&sandbox, &mirror, &base, &result.commit).await;
            }
        }
        for (path, why) in &left_out {
            let known_to_git = *why != LeftOutReason::NotAFile && *why != LeftOutReason::NestedHistory;
            assert!(
                !known_to_git
                    || told(&worktree)
                        .iter()
                        .any(|told| told.0.starts_with(path) && told.1 == *why),
                "{path}: {:?}",
                told(&worktree)
            );
        }
    }
}

#[tokio::test]
async fn names_that_git_does_not_store_are_left_out_and_others_are_not() {
    let make = |top: &Path| {
        for name in [
            "git~1",
            ".GIT",
            "deep/.git. /x",
            "d/.g\u{200c}it",
            "..a",
            "a\nb",
            "t\tb",
            "q\"uote",
            "A",
        ] {
            write(&top.join(name), "x\n");
        }
        write(&top.join(OsStr::from_bytes(b"caf\xe9")), "x\n");
        symlink("a", top.join(".gitmodules")).unwrap();
    };
    let name = LeftOutReason::Name;
    taken(
        make,
        &[
            "100644 ..a",
            "100644 A",
            "100644 \"a\\nb\"",
            "100644 \"caf\\351\"",
            "100644 \"q\\\"uote\"",
            "100644 \"t\\tb\"",
        ],
        &[
            (".GIT", name),
            (".gitmodules", name),
            ("d/.g\u{200c}it", name),
            ("deep/.git. ", name),
            ("git~1", name),
        ],
    )
    .await;
}

#[tokio::test]
async fn pipes_sockets_links_and_nested_repositories_cost_nothing_else() {
    let make = |top: &Path| {
        rustix::fs::mkfifoat(rustix::fs::CWD, top.join("pipe"), 0o600.into()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap());
        // What is ignored is nobody's business.
        rustix::fs::mkfifoat(rustix::fs::CWD, top.join("pipe.log"), 0o600.into()).unwrap();
        symlink("/etc/passwd", top.join("outside")).unwrap();
        symlink("itself", top.join("itself")).unwrap();
        symlink("../..", top.join("up")).unwrap();
        for (name, args) in [("empty", None), ("full", Some("x"))] {
            let here = top.join(name);
            write(&here.join("file"), "n\n");
            let git = |args: &[&str]| {
                let mut git = std::process::Command::new("git");
                let git = git
                    .current_dir(&here)
                    .args(["-c", "user.name=a", "-c", "user.email=a@b"]);
                assert!(git.args(args).status().unwrap().success());
            };
            git(&["init", "--quiet"]);
            if let Some(message) = args {
                git(&["add", "-A"]);
                git(&["commit", "--quiet", "-m", message]);
            }
        }
        write(&top.join("linked/.git"), "gitdir: /nowhere\n");
        write(&top.join("linked/file"), "l\n");
    };
    let (odd, nested) = (LeftOutReason::NotAFile, LeftOutReason::NestedHistory);
    taken(
        make,
        &[
            "100644 empty/file",
            "100644 full/file",
            "120000 itself",
            "100644 linked/file",
            "120000 outside",
            "120000 up",
        ],
        &[
            ("empty/.git", nested),
            ("full/.git", nested),
            ("linked/.git", nested),
            ("pipe", odd),
            ("socket", odd),
        ],
    )
    .await;
}

#[tokio::test]
async fn files_above_the_limit_are_left_out_at_once_and_those_of_the_base_may_double() {
    for files in WAYS {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source", files);
        for name in ["grows", "doubles"] {
            write(&source.join(name), "x".repeat(1000));
        }
        sandbox.commit(&source, "large ones");
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let mut worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        let rules = ResultRules {
            max_file_bytes: 500,
            ..ResultRules::default()
        };
        worktree.set_rules(rules).await.unwrap();
        let top = worktree.path();
        // As large as no disk is: nothing reads it.
        fs::File::create(top.join("core")).unwrap().set_len(2 << 40).unwrap();
        write(&top.join("small"), "s".repeat(500));
        write(&top.join("grows"), "x".repeat(2001));
        write(&top.join("doubles"), "x".repeat(2000));
        let large = |path: &str, size| (path.to_owned(), LeftOutReason::Large { size });
        let expected = [large("core", 2 << 40), large("grows", 2001)];
        let checkpoint = worktree.checkpoint(&base, "c").await.unwrap();
        assert_eq!(told(&worktree), expected);
        assert_eq!(checkpoint.files_changed, 2);
        let result = worktree.commit_result("r").await.unwrap().unwrap();
        assert_eq!(told(&worktree), expected);
        assert_eq!(
            (result.paths, result.left_out.len()),
            (vec!["doubles".to_owned(), "small".to_owned()], 2)
        );
        let of = |commit: &Oid, path: &str| sandbox.git(mirror.path(), &["rev-parse", &format!("{commit}:{path}")]);
        assert_eq!(of(&result.commit, "grows"), of(&base, "grows"), "it is not deleted");
        assert_eq!(of(&checkpoint.commit, "grows"), of(&base, "grows"));

        // One that was taken, and grows.
        write(&top.join("small"), "s".repeat(501));
        let checkpoint = worktree.checkpoint(&checkpoint.commit, "c").await.unwrap();
        assert!(!listed(&sandbox, &mirror, &checkpoint.commit).contains(&"100644 small".to_owned()));
        assert!(told(&worktree).contains(&large("small", 501)));
    }
}

#[tokio::test]
async fn more_new_files_than_the_rules_allow_are_no_result() {
    for files in WAYS {
        for (max_new_files, max_new_bytes) in [(3, 1 << 20), (100, 39)] {
            let sandbox = Sandbox::new();
            let (mirror, mut worktree) = worktree(&sandbox, files).await;
            let base = worktree.base().clone();
            worktree
                .set_rules(ResultRules {
                    max_new_files,
                    max_new_bytes,
                    ..ResultRules::default()
                })
                .await
                .unwrap();
            let top = worktree.path().to_owned();
            for name in ["one", "deps/two", "deps/three"] {
                write(&top.join(name), "x".repeat(13));
            }
            write(
                &top.join("a"),
                "changed, which counts for nothing, however long it is now\n",
            );
            assert!(worktree.checkpoint(&base, "c").await.is_ok());
            assert_eq!(worktree.commit_result("r").await.unwrap().unwrap().paths.len(), 4);
            write(&top.join("deps/four"), "x");
            // One by one they pass, together they do not.
            let kept = worktree.checkpoint(&base, "c").await;
            let refused = worktree.commit_result("r").await;
            let Err(GitError::TooMuch { mostly, .. }) = &refused else {
                panic!("{refused:?}")
            };
            assert_eq!(mostly, "deps");
            drop(kept);
            let fresh = Worktree::open(&mirror, &top, &base).await.unwrap();
            let mut fresh = fresh;
            fresh.set_rules(worktree.rules().clone()).await.unwrap();
            write(&top.join("deps/five"), "x");
            fs::remove_dir_all(top.join("deps")).unwrap();
            assert!(fresh.commit_result("r").await.unwrap().is_some(), "it is taken again");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_costs_that_file_and_known_content_stays() {
    let sandbox = Sandbox::new();
    let chmod = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let probe = sandbox.path("probe");
    write(&probe, "");
    chmod(&probe, 0);
    if fs::File::open(&probe).is_ok() {
        eprintln!("this user reads everything: nothing to test");
        return;
    }
    for (number, files) in WAYS.into_iter().enumerate() {
        let source = sandbox.repository(&format!("source{number}"), files);
        write(&source.join("kept"), "k\n");
        write(&source.join("shut/inner"), "i\n");
        sandbox.commit(&source, "more");
        let (mirror, base) = sandbox.mirror(&format!("m{number}.git"), &source).await;
        let path = sandbox.path(&format!("w{number}"));
        let worktree = Worktree::create(&mirror, &path, &base).await.unwrap();
        let top = worktree.path();
        worktree.checkpoint(&base, "first").await.unwrap();
        write(&top.join("new"), "n\n");
        write(&top.join("secret"), "s\n");
        write(&top.join("closed/deep/file"), "c\n");
        write(&top.join("unsearchable/file"), "u\n");
        chmod(&top.join("secret"), 0);
        chmod(&top.join("kept"), 0);
        chmod(&top.join("closed"), 0);
        chmod(&top.join("unsearchable"), 0o600);
        chmod(&top.join("shut"), 0);
        let shut = |path: &str| (path.to_owned(), LeftOutReason::Unreadable);
        let checkpoint = worktree.checkpoint(&base, "c").await.unwrap();
        assert_eq!(
            told(&worktree),
            [
                shut("closed"),
                shut("kept"),
                shut("secret"),
                shut("shut"),
                shut("unsearchable")
            ]
        );
        let mut expected = listed(&sandbox, &mirror, &base);
        expected.push("100644 new".to_owned());
        expected.sort_by(|a, b| a[7..].cmp(&b[7..]));
        assert_eq!(listed(&sandbox, &mirror, &checkpoint.commit), expected);
        let result = worktree.commit_result("r").await.unwrap().unwrap();
        assert_eq!(result.paths, ["new"], "nothing that cannot be seen is deleted");
        for name in ["closed", "unsearchable", "shut"] {
            chmod(&top.join(name), 0o755);
        }
    }
}

#[tokio::test]
async fn what_the_person_ignores_is_in_no_result_and_what_the_base_has_stays() {
    for files in WAYS {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source", files);
        write(&source.join(".idea/tracked"), "t\n");
        write(&source.join("sub/kept.log"), "k\n");
        sandbox.git(&source, &["add", "--force", "sub/kept.log"]);
        sandbox.commit(&source, "tracked all the same");
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let mut worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        let excludes = ".idea/\n.DS_Store\n.claude/settings.local.json\n/top-only\n*.tmp\n!wanted.tmp\n";
        worktree
            .set_rules(ResultRules {
                excludes: excludes.to_owned(),
                ..ResultRules::default()
            })
            .await
            .unwrap();
        let top = worktree.path();
        for name in [
            ".idea/workspace.xml",
            "sub/.idea/x",
            ".DS_Store",
            "sub/.DS_Store",
            ".claude/settings.local.json",
            ".claude/settings.json",
            "top-only",
            "sub/top-only",
            "x.tmp",
            "sub/wanted.tmp",
            "own.junk",
            "session.log",
        ] {
            write(&top.join(name), "x\n");
        }
        write(&top.join(".git/info/exclude"), "*.junk\n!.DS_Store\n");
        write(&top.join(".idea/tracked"), "changed\n");
        fs::remove_dir_all(top.join("sub/.idea")).unwrap();
        let expected = [
            ".claude/settings.json",
            ".idea/tracked",
            "sub/top-only",
            "sub/wanted.tmp",
        ];
        let result = worktree.commit_result("r").await.unwrap().unwrap();
        assert_eq!(result.paths, expected);
        assert_eq!(told(&worktree), []);
        let checkpoint = worktree.checkpoint(&base, "c").await.unwrap();
        assert_eq!(checkpoint.files_changed, 4);

        // Deleted, and made again: it is the base's all the same.
        fs::remove_dir_all(top.join(".idea")).unwrap();
        fs::remove_file(top.join("sub/kept.log")).unwrap();
        let without = worktree.checkpoint(&checkpoint.commit, "c").await.unwrap();
        write(&top.join(".idea/tracked"), "again\n");
        write(&top.join(".idea/new"), "n\n");
        write(&top.join("sub/kept.log"), "again\n");
        let again = worktree.checkpoint(&without.commit, "c").await.unwrap();
        let all = listed(&sandbox, &mirror, &again.commit);
        assert!(all.contains(&"100644 .idea/tracked".to_owned()) && all.contains(&"100644 sub/kept.log".to_owned()));
        assert!(!all.contains(&"100644 .idea/new".to_owned()), "{all:?}");
        let result = worktree.commit_result("r").await.unwrap().unwrap();
        assert!(result.deleted.is_empty() && result.paths.contains(&".idea/tracked".to_owned()));
    }
}

#[tokio::test]
async fn a_pipe_in_place_of_gits_rules_holds_nothing_up() {
    let files: &[(&str, &str)] = &[(".gitignore", "*.log\n"), ("fine", "x")];
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, files).await;
    let base = worktree.base().clone();
    let pipes = [".gitignore", "d/.gitattributes", "d/e/.gitignore"];
    for pipe in pipes {
        let path = worktree.path().join(pipe);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(fs::remove_file(&path));
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    }
    write(&worktree.path().join("d/e/new"), "n");
    worktree.checkpoint(&base, "odd").await.unwrap();
    assert_eq!(
        told(&worktree),
        pipes.map(|pipe| (pipe.to_owned(), LeftOutReason::NotAFile))
    );
    let result = worktree.commit_result("odd").await.unwrap().unwrap();
    assert_eq!(result.paths, [".gitignore", "d/e/new"].map(str::to_owned));
}

#[tokio::test]
async fn a_pipe_where_git_stores_nothing_holds_nothing_up() {
    for files in WAYS {
        let sandbox = Sandbox::new();
        let (_mirror, worktree) = worktree(&sandbox, files).await;
        let base = worktree.base().clone();
        // Ignored, in a folder that git cannot store, and in one of the name of rules.
        for pipe in ["x.log/.gitignore", ".GIT/.gitignore", "git~1/.gitignore/.gitignore"] {
            let path = worktree.path().join(pipe);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        }
        write(&worktree.path().join("d/new.txt"), "n");
        let changes = worktree.changes().await.unwrap();
        assert_eq!(
            changes.iter().map(|change| &*change.path).collect::<Vec<_>>(),
            ["d/new.txt"]
        );
        worktree.checkpoint(&base, "odd").await.unwrap();
        let unstored = [".GIT", "git~1"].map(|name| (name.to_owned(), LeftOutReason::Name));
        assert_eq!(told(&worktree), unstored);
        let result = worktree.commit_result("odd").await.unwrap().unwrap();
        assert_eq!(result.paths, ["d/new.txt"]);
        assert_eq!(told(&worktree), unstored);
    }
}

#[tokio::test]
async fn a_look_at_the_changes_does_not_wait_for_a_pipe_that_a_checkpoint_removes() {
    let sandbox = Sandbox::new();
    let (_mirror, worktree) = worktree(&sandbox, WAYS[1]).await;
    let base = worktree.base().clone();
    write(&worktree.path().join("d/new.txt"), "n");
    rustix::fs::mkfifoat(rustix::fs::CWD, worktree.path().join("d/.gitattributes"), 0o600.into()).unwrap();
    let error = worktree.changes().await.unwrap_err();
    assert!(error.to_string().contains("d/.gitattributes"), "{error}");
    worktree.checkpoint(&base, "odd").await.unwrap();
    assert_eq!(worktree.changes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_restore_brings_back_a_file_that_became_too_large() {
    let sandbox = Sandbox::new();
    let (_mirror, mut worktree) = worktree(&sandbox, &[("data", "small"), ("other", "x")]).await;
    let rules = ResultRules {
        max_file_bytes: 30,
        ..ResultRules::default()
    };
    worktree.set_rules(rules).await.unwrap();
    let base = worktree.base().clone();
    write(&worktree.path().join("other"), "y");
    let first = worktree.checkpoint(&base, "first").await.unwrap();
    let data = worktree.path().join("data");
    write(&data, "large".repeat(20));
    let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
    assert_eq!(
        told(&worktree),
        [("data".to_owned(), LeftOutReason::Large { size: 100 })]
    );
    for target in [&second.commit, &first.commit] {
        write(&data, "large".repeat(20));
        let restored = worktree.restore(target, &crate::restores::saving()).await.unwrap();
        assert_eq!(fs::read_to_string(&data).unwrap(), "small");
        assert!(!restored.aside.is_empty(), "{restored:?}");
    }
}

#[tokio::test]
async fn too_deep_and_too_long_paths_are_left_out() {
    let long = "n".repeat(200);
    let make = |top: &Path| {
        let deep: PathBuf = std::iter::repeat_n("d", 140).collect();
        fs::create_dir_all(top.join(&deep)).unwrap();
        fs::write(top.join(&deep).join("file"), "x").unwrap();
        write(&top.join(&long).join("fine"), "x");
    };
    let fine = format!("100644 {long}/fine");
    let deep = ["d"; 129].join("/");
    taken(make, &[&fine], &[(&deep, LeftOutReason::LongPath)]).await;
}
