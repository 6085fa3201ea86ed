//! Checkouts that are used again: whatever a session did, the next worktree is as a new one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::{Auth, Mirror, SetAside, Worktree};
use proptest::prelude::*;

use crate::sandbox::{Sandbox, next_second, url, write};

const FILES: &[(&str, &str)] = &[
    (".gitignore", "built/\n*.log\n"),
    ("a", "1\n"),
    ("folder/b", "2\n"),
    ("folder/deep/c", "3\n"),
    ("other/d", "4\n"),
    ("script", "#!/bin/sh\n"),
];

/// Paths with the kind, permissions and content of each, without `.git`.
fn listed(top: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_owned();
            if name == Path::new(".git") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                folders.push(path);
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            all.insert(name, (meta.mode(), content));
        }
    }
    all
}

/// Sets the worktree aside and makes one of `commit` of it, and a new one to compare with.
async fn reused(sandbox: &Sandbox, mirror: &Mirror, old: Worktree, commit: &Oid) -> (Worktree, Worktree) {
    let base = old.base().clone();
    let (path, folder) = (old.path().to_owned(), sandbox.path("pool/1"));
    let aside = Worktree::set_aside(mirror, &path, &base, &folder).await.unwrap();
    assert!(!path.exists());
    assert_eq!(SetAside::open(&folder), Some(aside.clone()), "a later process finds it");
    let taken = Worktree::reuse(mirror, &aside, sandbox.path("w/taken"), commit).await;
    let taken = taken.unwrap().expect("the same attributes apply");
    assert!(!folder.exists());
    let fresh = Worktree::create(mirror, sandbox.path("w/fresh"), commit).await.unwrap();
    (taken, fresh)
}

async fn assert_alike(sandbox: &Sandbox, taken: &Worktree, fresh: &Worktree) {
    assert_eq!(listed(taken.path()), listed(fresh.path()));
    for worktree in [taken, fresh] {
        assert_eq!(
            sandbox.git(worktree.path(), &["status", "--porcelain", "--ignored"]),
            ""
        );
        assert_eq!(worktree.changes().await.unwrap(), []);
        worktree.prove().await.unwrap();
    }
    let head = |worktree: &Worktree| sandbox.git(worktree.path(), &["rev-parse", "HEAD"]);
    assert_eq!(head(taken), head(fresh));
    let refs = sandbox.git(taken.path(), &["for-each-ref"]);
    assert_eq!(refs, "", "no branch of the session before");
}

#[tokio::test]
async fn what_a_session_left_is_gone_and_the_new_base_is_there() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", FILES);
    let (mirror, old) = sandbox.mirror("m.git", &source).await;
    write(&source.join("a"), "a newer one\n");
    fs::remove_file(source.join("other/d")).unwrap();
    write(&source.join("new/file"), "n\n");
    sandbox.commit(&source, "moved");
    let (_, new) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w/1"), &old).await.unwrap();
    let top = worktree.path().to_owned();
    let outside = sandbox.path("outside");
    fs::create_dir(&outside).unwrap();
    write(&outside.join("kept"), "k\n");

    // Of the same length, at another second, with its old time: only the change time tells.
    let edited = top.join("folder/b");
    let meta = fs::metadata(&edited).unwrap();
    next_second(meta.ctime()).await;
    write(&edited, "!\n");
    let file = fs::File::options().write(true).open(&edited).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o4777)).unwrap();
    write(&top.join("built/cache/object"), "ignored\n");
    write(&top.join("x.log"), "ignored\n");
    write(&top.join("untracked"), "u\n");
    sandbox.git(&top, &["init", "--quiet", "nested"]);
    write(&top.join("nested/inner"), "i\n");
    fs::remove_file(top.join("a")).unwrap();
    write(&top.join("a/is/a/folder"), "f\n");
    fs::remove_dir_all(top.join("folder/deep")).unwrap();
    symlink(&outside, top.join("folder/deep")).unwrap();
    fs::remove_dir_all(top.join("other")).unwrap();
    write(&top.join("other"), "a file\n");
    fs::hard_link(top.join(".gitignore"), outside.join("linked")).unwrap();
    sandbox.git(&top, &["checkout", "--quiet", "-b", "mine"]);
    sandbox.git(&top, &["config", "core.hooksPath", "/evil"]);
    write(&top.join(".git/info/exclude"), "*\n");
    fs::set_permissions(top.join("folder"), fs::Permissions::from_mode(0o2500)).unwrap();

    let (taken, fresh) = reused(&sandbox, &mirror, worktree, &new).await;
    assert_alike(&sandbox, &taken, &fresh).await;
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "k\n");
    // What another name shares with the worktree is not shared any more.
    write(&outside.join("linked"), "changed\n");
    assert_eq!(taken.changes().await.unwrap(), []);
    let hooks = sandbox.try_git(taken.path(), &["config", "core.hooksPath"]);
    assert!(hooks.is_err(), "{hooks:?}");

    // Its results and checkpoints are those of any worktree.
    write(&taken.path().join("a"), "by the next session\n");
    let result = taken.commit_result("next").await.unwrap().unwrap();
    assert_eq!(result.paths, ["a"]);
    let checkpoint = taken.checkpoint(&new, "next").await.unwrap();
    assert_eq!(Some(checkpoint.tree), result.tree);
}

#[tokio::test]
async fn unchanged_files_stay_where_they_are_on_the_disk() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", FILES);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w/1"), &base).await.unwrap();
    let inodes = |top: &Path| -> Vec<u64> {
        let inode = |(file, _): &(&str, &str)| fs::metadata(top.join(file)).unwrap().ino();
        FILES.iter().map(inode).collect()
    };
    let before = inodes(worktree.path());
    let (taken, _) = reused(&sandbox, &mirror, worktree, &base).await;
    assert_eq!(inodes(taken.path()), before);
}

#[tokio::test]
async fn a_checkout_to_which_other_attributes_apply_is_not_used() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", FILES);
    let (mirror, old) = sandbox.mirror("m.git", &source).await;
    write(&source.join("folder/.gitattributes"), "* text eol=crlf\n");
    sandbox.commit(&source, "other line endings");
    let (_, new) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w/1"), &old).await.unwrap();
    let (path, folder) = (worktree.path().to_owned(), sandbox.path("pool/1"));
    let aside = Worktree::set_aside(&mirror, &path, &old, &folder).await.unwrap();
    let taken = Worktree::reuse(&mirror, &aside, sandbox.path("w/2"), &new).await;
    assert!(taken.unwrap().is_none());
    let again = Worktree::reuse(&mirror, &aside, sandbox.path("w/2"), &old).await;
    assert!(again.unwrap().is_some(), "it is as it was");
}

#[tokio::test]
async fn one_that_was_not_finished_or_whose_commit_is_gone_is_not_used() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", FILES);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w/1"), &base).await.unwrap();
    let (path, folder) = (worktree.path().to_owned(), sandbox.path("pool/1"));
    let aside = Worktree::set_aside(&mirror, &path, &base, &folder).await.unwrap();
    // The same repository's mirror, made anew from a later commit without the old one's history.
    let later = sandbox.repository("later", &[("z", "z\n")]);
    let (anew, other) = sandbox.mirror("anew.git", &later).await;
    let taken = Worktree::reuse(&anew, &aside, sandbox.path("w/2"), &other).await;
    assert!(taken.unwrap().is_none());
    fs::remove_file(folder.join("index")).unwrap();
    assert_eq!(SetAside::open(&folder), None);
    assert_eq!(SetAside::open(&sandbox.path("pool/none")), None);
}

/// Something that a program does to a path.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Write,
    Delete,
    Folder,
    Link,
    Chmod(u32),
}

fn deed() -> impl Strategy<Value = (usize, Deed)> {
    let kind = prop_oneof![
        Just(Deed::Write),
        Just(Deed::Delete),
        Just(Deed::Folder),
        Just(Deed::Link),
        prop_oneof![Just(0o000), Just(0o444), Just(0o755), Just(0o777), Just(0o7777)].prop_map(Deed::Chmod),
    ];
    (0..PLACES.len(), kind)
}

const PLACES: &[&str] = &[
    "a",
    "folder",
    "folder/b",
    "folder/deep",
    "folder/deep/c",
    "other/d",
    "script",
    "new",
    "folder/new",
    "built",
    "built/x",
    ".gitignore",
    ".git",
    ".git/index",
];

fn perform(top: &Path, place: &str, deed: Deed) {
    let path = top.join(place);
    // What is impossible after an earlier deed is not done.
    let _done = match deed {
        Deed::Write => fs::write(&path, place),
        Deed::Delete => fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)),
        Deed::Folder => fs::create_dir_all(path.join("made")),
        Deed::Link => fs::remove_file(&path).and_then(|()| symlink("/etc", &path)),
        Deed::Chmod(mode) => match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.is_symlink() => fs::set_permissions(&path, fs::Permissions::from_mode(mode)),
            _ => Ok(()),
        },
    };
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..ProptestConfig::with_cases(ProptestConfig::default().cases.min(30)) })]

    #[test]
    fn after_any_deeds_it_is_as_a_new_one(deeds in prop::collection::vec(deed(), 0..12), moved in any::<bool>()) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let sandbox = Sandbox::new();
            let source = sandbox.repository("source", FILES);
            let (mirror, old) = sandbox.mirror("m.git", &source).await;
            if moved {
                write(&source.join("folder/b"), "moved\n");
                write(&source.join("built-not"), "n\n");
                let head = sandbox.commit(&source, "moved");
                let spec = format!("HEAD:refs/kage/bases/{head}");
                mirror.fetch(&url(&source), &Auth::None, &[&spec]).await.unwrap();
            }
            let worktree = Worktree::create(&mirror, sandbox.path("w/1"), &old).await.unwrap();
            for (place, deed) in &deeds {
                perform(worktree.path(), PLACES[*place], *deed);
            }
            let head = sandbox.head(&source);
            let (taken, fresh) = reused(&sandbox, &mirror, worktree, &head).await;
            assert_alike(&sandbox, &taken, &fresh).await;
        });
    }
}
