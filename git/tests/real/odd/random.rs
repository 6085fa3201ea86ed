//! Random trees of odd files: of every name one can say where it went.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use kage_core::id::Oid;
use kage_core::left_out::LeftOutReason;
use kage_core::task::ResultRules;
use proptest::prelude::*;

use super::{WAYS, arrives, told};
use crate::checkpoints::{listed, worktree};
use crate::sandbox::Sandbox;

/// A name in a random tree: any bytes that a file system takes.
fn name() -> impl Strategy<Value = OsString> {
    let odd = prop::sample::select(&[".git", "git~1", ".GIT", "x.log", "a", ".gitignore", "..b", " ", "-n"][..]);
    let bytes = prop::collection::vec(1_u8.., 1..12).prop_map(|mut bytes| {
        bytes
            .iter_mut()
            .filter(|byte| **byte == b'/')
            .for_each(|byte| *byte = b'_');
        bytes
    });
    prop_oneof![
        2 => odd.prop_map(OsString::from),
        3 => bytes.prop_filter("no name", |bytes| !matches!(bytes.as_slice(), b"." | b"..")).prop_map(OsString::from_vec),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Thing {
    File(u64),
    Link,
    Pipe,
    Folder,
}

fn thing() -> impl Strategy<Value = (Vec<OsString>, Thing)> {
    let what = prop_oneof![
        4 => (0..40_u64).prop_map(Thing::File),
        1 => Just(Thing::Link),
        1 => Just(Thing::Pipe),
        1 => Just(Thing::Folder),
    ];
    (prop::collection::vec(name(), 1..4), what)
}

async fn random_tree_is_taken(things: Vec<(Vec<OsString>, Thing)>, files: &[(&str, &str)]) {
    let sandbox = Sandbox::new();
    let (mirror, mut worktree) = worktree(&sandbox, files).await;
    let base = worktree.base().clone();
    let rules = ResultRules {
        max_file_bytes: 30,
        ..ResultRules::default()
    };
    worktree.set_rules(rules).await.unwrap();
    for (names, thing) in things {
        let path = names
            .iter()
            .fold(worktree.path().to_owned(), |path, name| path.join(name));
        // What stands in the way of an earlier one is not made, and the session's own `.git` stays.
        if names[0] == ".git" || fs::create_dir_all(path.parent().unwrap()).is_err() {
            continue;
        }
        let _made = match thing {
            // Over a pipe that is there already, a write would wait for ever.
            Thing::File(size) => fs::File::create_new(&path)
                .and_then(|mut file| file.write_all("x".repeat(usize::try_from(size).unwrap()).as_bytes())),
            Thing::Link => symlink("a", &path),
            Thing::Pipe => rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).map_err(Into::into),
            Thing::Folder => fs::create_dir(&path),
        };
    }
    let checkpoint = worktree.checkpoint(&base, "odd").await.unwrap();
    let left_out = told(&worktree);
    arrives(&sandbox, &mirror, &base, &checkpoint.commit).await;
    let result = worktree.commit_result("odd").await.unwrap();
    let commit = result.map_or(base.clone(), |result| result.commit);
    let tree = |commit: &Oid| listed(&sandbox, &mirror, commit);
    assert_eq!(tree(&commit), tree(&checkpoint.commit));
    if commit != base {
        arrives(&sandbox, &mirror, &base, &commit).await;
    }
    // Every name is a part of the commit, is ignored, or is told.
    let all = tree(&commit).len();
    let mut there = 0;
    let mut folders = vec![worktree.path().to_owned()];
    let ignored = |path: &Path| {
        let args = [
            "-C",
            worktree.path().to_str().unwrap(),
            "check-ignore",
            "--no-index",
            "-q",
        ];
        let mut git = sandbox.program("git", worktree.path());
        let status = git.args(args).arg(Path::new(".").join(path)).status().unwrap();
        status.success()
    };
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let relative = path.strip_prefix(worktree.path()).unwrap();
            let shown = kage_core::left_out::shown(relative.as_os_str().as_bytes());
            if let Some((_, why)) = left_out.iter().find(|(told, _)| *told == shown) {
                // Of the base's file that became too large, the base's content stays.
                let kept = matches!(why, LeftOutReason::Large { .. }) && files.iter().any(|(name, _)| *name == shown);
                there += usize::from(kept);
                continue;
            }
            if relative == Path::new(".git") || ignored(relative) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                there += 1;
            }
        }
    }
    assert_eq!(there, all, "{left_out:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn of_random_odd_trees_everything_is_taken_ignored_or_told(
        things in prop::collection::vec(thing(), 1..12),
        way in 0..2_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(random_tree_is_taken(things, WAYS[way]));
    }
}
