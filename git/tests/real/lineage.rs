//! The lineage of real repositories: one for all clones of a history, another one for every other.

use std::fs;
use std::path::Path;

use kage_core::task::{Lineage, LineageId};
use kage_git::UserRepo;
use kage_git::user_repo::DiscoverError;

use crate::sandbox::Sandbox;

async fn of(path: &Path) -> Option<Lineage> {
    UserRepo::discover(path).await.unwrap().lineage().await.unwrap()
}

async fn settled(path: &Path, fresh: u128) -> Lineage {
    let found = UserRepo::discover(path).await.unwrap();
    found.settled_lineage(LineageId::from_random(fresh)).await.unwrap()
}

/// A repository with two commits, and the first of them.
fn two_commits(sandbox: &Sandbox, name: &str) -> (std::path::PathBuf, Lineage) {
    let path = sandbox.repository(name, &[("a", name)]);
    let root = sandbox.git(&path, &["rev-parse", "HEAD"]).parse().unwrap();
    sandbox.git(&path, &["commit", "-q", "--allow-empty", "-m", "second"]);
    (path, Lineage::Root(root))
}

#[tokio::test]
async fn clones_working_trees_and_moved_folders_share_the_root_of_their_history() {
    let sandbox = Sandbox::new();
    let (main, root) = two_commits(&sandbox, "main");
    let clone = |name: &str, arguments: &[&str]| {
        let path = sandbox.path(name);
        let command = [
            &["clone", "-q"],
            arguments,
            &[main.to_str().unwrap(), path.to_str().unwrap()],
        ]
        .concat();
        sandbox.git(&sandbox.path("home"), &command);
        path
    };
    let (plain, lonely, packed) = (
        clone("plain", &[]),
        clone("lonely", &[]),
        clone("packed", &["--no-local"]),
    );
    sandbox.git(&lonely, &["remote", "remove", "origin"]);
    let linked = sandbox.path("linked");
    sandbox.git(&main, &["worktree", "add", "-q", "--detach", linked.to_str().unwrap()]);
    sandbox.git(&plain, &["commit", "-q", "--allow-empty", "-m", "of the clone only"]);
    for path in [&main, &plain, &lonely, &packed, &linked] {
        assert_eq!(of(path).await.as_ref(), Some(&root), "{path:?}");
    }
    let moved = sandbox.path("moved");
    fs::rename(&plain, &moved).unwrap();
    assert_eq!(of(&moved).await, Some(root.clone()));

    // What is merged in does not change the root, and another history has another one.
    let (other, other_root) = two_commits(&sandbox, "other");
    assert_ne!(other_root, root);
    assert_eq!(of(&other).await, Some(other_root));
    sandbox.git(&moved, &["fetch", "-q", other.to_str().unwrap(), "HEAD"]);
    let merge = [
        "merge",
        "-q",
        "--allow-unrelated-histories",
        "-s",
        "ours",
        "-m",
        "merged",
        "FETCH_HEAD",
    ];
    sandbox.git(&moved, &merge);
    assert_eq!(of(&moved).await, Some(root.clone()));
    // Neither does a commit that only seems to be another.
    let (first, second) = (
        sandbox.git(&main, &["rev-parse", "HEAD~1"]),
        sandbox.git(&main, &["rev-parse", "HEAD"]),
    );
    sandbox.git(&main, &["replace", "--graft", &second]);
    assert_ne!(first, second);
    assert_eq!(of(&main).await, Some(root));
}

#[tokio::test]
async fn a_history_that_is_cut_off_or_not_begun_is_told_by_its_remote() {
    let sandbox = Sandbox::new();
    let (main, root) = two_commits(&sandbox, "main");
    let shallow = sandbox.path("shallow");
    let from = format!("file://{}", main.display());
    sandbox.git(
        &sandbox.path("home"),
        &["clone", "-q", "--depth", "1", &from, shallow.to_str().unwrap()],
    );
    let begun = sandbox.path("begun");
    sandbox.git(&sandbox.path("home"), &["init", "-q", begun.to_str().unwrap()]);
    let remote =
        |path: &Path, name: &str, url: &str| sandbox.git(path, &["config", &format!("remote.{name}.url"), url]);

    // A path is no remote that another machine knows.
    assert_eq!(of(&shallow).await, None);
    remote(&begun, "origin", "/somewhere");
    assert_eq!(of(&begun).await, None);
    for (path, origin) in [
        (&shallow, "https://bob:hunter2@example.org/team/project.git"),
        (&begun, "git@example.org:team/project"),
    ] {
        remote(path, "aaa", "https://example.org/fork/project");
        let Some(Lineage::Remote(fork)) = of(path).await else {
            panic!("{path:?} has a remote");
        };
        remote(path, "origin", origin);
        let Some(Lineage::Remote(project)) = of(path).await else {
            panic!("{path:?} has a remote");
        };
        assert_ne!(fork, project, "{path:?}: origin comes first");
        assert!(!format!("{project:?}").contains("hunter2"));
    }
    assert_eq!(of(&shallow).await, of(&begun).await);
    assert!(!begun.join(".git/kage").exists(), "asking keeps nothing");
    sandbox.git(&shallow, &["config", "remote.origin.url", &from]);
    sandbox.git(&shallow, &["fetch", "-q", "--unshallow"]);
    assert_eq!(of(&shallow).await, Some(root));
}

#[tokio::test]
async fn a_repository_that_nothing_tells_keeps_an_id_for_all_its_working_trees() {
    let sandbox = Sandbox::new();
    let (main, _) = two_commits(&sandbox, "main");
    let alone = sandbox.path("alone");
    let from = format!("file://{}", main.display());
    sandbox.git(
        &sandbox.path("home"),
        &["clone", "-q", "--depth", "1", &from, alone.to_str().unwrap()],
    );
    let empty = sandbox.path("empty");
    sandbox.git(&sandbox.path("home"), &["init", "-q", empty.to_str().unwrap()]);
    for (n, path) in (1..).zip([&alone, &empty]) {
        assert_eq!(of(path).await, None);
        let kept = settled(path, n).await;
        assert_eq!(kept, Lineage::Kept(LineageId::from_random(n)));
        assert_eq!(settled(path, n + 10).await, kept, "the first id stays");
        assert_eq!(of(path).await, Some(kept));
    }
    let linked = sandbox.path("linked");
    sandbox.git(&alone, &["worktree", "add", "-q", "--detach", linked.to_str().unwrap()]);
    assert_eq!(of(&linked).await, of(&alone).await);
    assert_eq!(sandbox.git(&alone, &["status", "--porcelain"]), "");
    // Told by its history, a repository keeps nothing.
    settled(&main, 5).await;
    assert!(!main.join(".git/kage").exists());

    fs::write(alone.join(".git/kage/repository-id"), "x\n").unwrap();
    let damaged = UserRepo::discover(&alone).await.unwrap().lineage().await.unwrap_err();
    assert!(damaged.to_string().contains("repository-id"), "{damaged}");
}

#[tokio::test]
async fn another_object_format_is_refused_before_its_lineage_is_asked_for() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("sha256");
    sandbox.git(
        &sandbox.path("home"),
        &["init", "-q", "--object-format=sha256", path.to_str().unwrap()],
    );
    sandbox.git(&path, &["commit", "-q", "--allow-empty", "-m", "start"]);
    let found = UserRepo::discover(&path).await;
    assert!(
        matches!(&found, Err(DiscoverError::ObjectFormat { format }) if format == "sha256"),
        "{found:?}"
    );
}
