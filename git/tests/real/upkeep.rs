//! What is removed from a mirror when space is needed, and what stays.

use std::fs;

use kage_git::Worktree;

use crate::checkpoints::worktree;
use crate::sandbox::{Sandbox, write};

#[tokio::test]
async fn what_is_forgotten_is_collected_and_the_rest_stays() {
    let sandbox = Sandbox::new();
    let (mirror, first) = worktree(&sandbox, &[("a", "1\n")]).await;
    let base = first.base().clone();
    let second = Worktree::create(&mirror, sandbox.path("w2"), &base).await.unwrap();
    let content: String = (0..20_000)
        .map(|n: u32| n.wrapping_mul(2_654_435_761).to_string())
        .collect();
    write(&first.path().join("big"), &content);
    let gone = first.checkpoint(&base, "goes").await.unwrap();
    write(&second.path().join("small"), "s\n");
    let stays = second.checkpoint(&base, "stays").await.unwrap();

    let kept = mirror.kept().await.unwrap();
    let names: Vec<_> = kept.iter().map(|kept| kept.worktree.clone()).collect();
    let name = |tree: &Worktree| Worktree::name(tree.path()).unwrap();
    assert_eq!(names, [name(&first), name(&second)]);
    let large = mirror.size_of(&kept[0]).await.unwrap();
    let small = mirror.size_of(&kept[1]).await.unwrap();
    assert!(large > 50_000 && small < 1000, "{large} {small}");

    mirror.forget(&names[0]).await.unwrap();
    Worktree::remove(&mirror, first.path()).await.unwrap();
    // Only old files without an owner are removed.
    let mut folders = vec![mirror.path().join("objects")];
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let file = fs::File::open(&path).unwrap();
                file.set_modified(old).unwrap();
            }
        }
    }
    mirror.collect().await.unwrap();
    assert!(!mirror.has_commit(&gone.commit).await.unwrap());
    assert!(mirror.has_commit(&stays.commit).await.unwrap());
    assert_eq!(mirror.kept().await.unwrap().len(), 1);
    sandbox.git(mirror.path(), &["fsck", "--strict", "--no-dangling"]);
    // The remaining worktree continues.
    write(&second.path().join("small"), "t\n");
    second.checkpoint(&stays.commit, "next").await.unwrap();
}

#[tokio::test]
async fn a_start_forgets_worktrees_but_not_their_checkpoints() {
    let sandbox = Sandbox::new();
    let (mirror, tree) = worktree(&sandbox, &[("a", "1\n")]).await;
    let kept = tree.checkpoint(tree.base(), "kept").await.unwrap();
    // A git that outlived the process that started it may be writing this.
    let written = mirror.path().join("objects/pack/tmp_pack_X");
    write(&written, "half");
    mirror.forget_worktrees().await.unwrap();
    mirror.forget_worktrees().await.unwrap();
    assert!(!mirror.path().join("checkouts").exists() && written.exists());
    assert!(mirror.has_commit(&kept.commit).await.unwrap());
}
