//! The identity of a repository: the same from every working tree and every path to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kage_core::id::Oid;
use kage_git::UserRepo;

use crate::sandbox::Sandbox;

async fn at(path: &Path) -> UserRepo {
    UserRepo::discover(path).await.unwrap()
}

#[tokio::test]
async fn working_trees_subfolders_and_links_are_of_one_repository() {
    let sandbox = Sandbox::new();
    let main = sandbox.repository("main", &[("a", "1\n"), ("deep/er/b", "2\n")]);
    let linked = sandbox.path("linked");
    sandbox.git(&main, &["worktree", "add", "-q", "--detach", linked.to_str().unwrap()]);
    let (link, to_linked) = (sandbox.path("link"), sandbox.path("to-linked"));
    symlink(&main, &link).unwrap();
    symlink(&linked, &to_linked).unwrap();
    for (path, root) in [
        (main.clone(), &main),
        (main.join("deep/er"), &main),
        (link.join("deep"), &main),
        (linked.clone(), &linked),
        (to_linked.join("deep"), &linked),
    ] {
        let found = at(&path).await;
        assert_eq!(
            (found.home(), found.root()),
            (main.as_path(), root.as_path()),
            "{path:?}"
        );
    }
    let clone = sandbox.path("clone");
    sandbox.git(&main, &["clone", "-q", ".", clone.to_str().unwrap()]);
    assert_eq!(at(&clone).await.home(), clone, "a clone is a repository of its own");
}

#[tokio::test]
async fn a_repository_that_is_not_beside_its_files_is_where_git_keeps_it() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "1\n")]);
    let (bare, tree) = (sandbox.path("kept.git"), sandbox.path("tree"));
    sandbox.git(&source, &["clone", "-q", "--bare", ".", bare.to_str().unwrap()]);
    sandbox.git(&bare, &["worktree", "add", "-q", "--detach", tree.to_str().unwrap()]);
    assert_eq!(at(&tree).await.home(), bare);

    let (apart, files) = (sandbox.path("apart"), sandbox.path("files"));
    let separate = format!("--separate-git-dir={}", apart.display());
    sandbox.git(&source, &["clone", "-q", &separate, ".", files.to_str().unwrap()]);
    let more = sandbox.path("more");
    sandbox.git(&files, &["worktree", "add", "-q", "--detach", more.to_str().unwrap()]);
    for path in [files, more] {
        assert_eq!(at(&path).await.home(), apart, "{path:?}");
    }
}

#[tokio::test]
async fn a_commit_is_known_where_it_is_and_nowhere_else() {
    let sandbox = Sandbox::new();
    let one = sandbox.repository("one", &[("a", "1\n")]);
    let other = sandbox.repository("other", &[("b", "1\n")]);
    let commit = |path: &Path| -> Oid { sandbox.git(path, &["rev-parse", "HEAD"]).parse().unwrap() };
    let (of_one, of_other) = (commit(&one), commit(&other));
    let here = at(&one).await;
    assert!(here.has_commit(&of_one).await.unwrap());
    assert!(!here.has_commit(&of_other).await.unwrap());
    let tree: Oid = sandbox.git(&one, &["rev-parse", "HEAD^{tree}"]).parse().unwrap();
    assert!(!here.has_commit(&tree).await.unwrap(), "a tree is no commit");
    // Amended away, it is still there until git throws it out.
    fs::write(one.join("a"), "2\n").unwrap();
    sandbox.git(&one, &["commit", "-q", "--amend", "-a", "-m", "other words"]);
    assert!(here.has_commit(&of_one).await.unwrap());
}
