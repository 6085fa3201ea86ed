//! Mirrors: references, packs in and out.

use std::fs::{self, File};

use kage_git::{Auth, Expected, GitError, Mirror};

use crate::sandbox::{Sandbox, url, write};

#[tokio::test]
async fn a_thin_pack_carries_a_commit_to_another_mirror() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "one\n"), ("big", &"line\n".repeat(5000))]);
    let (there, _) = sandbox.mirror("there.git", &source).await;
    write(&source.join("big"), "line\n".repeat(5000) + "end\n");
    let result = sandbox.commit(&source, "change");
    let (here, _) = sandbox.mirror("here.git", &source).await;
    let base = sandbox.git(&source, &["rev-parse", "HEAD~1"]).parse().unwrap();

    let pack = here.thin_pack(&result, std::slice::from_ref(&base)).await.unwrap();
    assert!(fs::metadata(pack.path()).unwrap().len() < 2000, "it leans on the base");
    assert!(!there.has_commit(&result).await.unwrap());
    there
        .ingest_pack(File::open(pack.path()).unwrap(), &result)
        .await
        .unwrap();
    assert!(there.has_commit(&result).await.unwrap());

    let name = "refs/kage/results/0123";
    there.update_ref(name, &result, &Expected::Absent).await.unwrap();
    assert_eq!(there.resolve(name).await.unwrap(), Some(result.clone()));
    assert_eq!(there.resolve("refs/kage/results/none").await.unwrap(), None);
    let again = there.update_ref(name, &base, &Expected::Absent).await;
    assert!(matches!(again, Err(GitError::Failed { .. })), "{again:?}");
    let stale = there.update_ref(name, &base, &Expected::At(base.clone())).await;
    assert!(matches!(stale, Err(GitError::Failed { .. })), "{stale:?}");
    there
        .update_ref(name, &base, &Expected::At(result.clone()))
        .await
        .unwrap();
    assert_eq!(there.resolve(name).await.unwrap(), Some(base));
    sandbox.git(there.path(), &["fsck", "--strict", "--no-dangling"]);
}

#[tokio::test]
async fn a_pack_that_is_damaged_or_incomplete_leaves_nothing() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "one\n")]);
    let empty = Mirror::open_or_init(sandbox.path("empty.git")).await.unwrap();
    write(&source.join("a"), "two\n");
    let result = sandbox.commit(&source, "change");
    let (here, _) = sandbox.mirror("here.git", &source).await;
    let base = sandbox.git(&source, &["rev-parse", "HEAD~1"]).parse().unwrap();

    let whole = here.thin_pack(&result, &[]).await.unwrap();
    let mut bytes = fs::read(whole.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    let damaged = sandbox.path("damaged.pack");
    fs::write(&damaged, bytes).unwrap();
    let thin = here.thin_pack(&result, &[base]).await.unwrap();

    for pack in [damaged.as_path(), thin.path()] {
        let refused = empty.ingest_pack(File::open(pack).unwrap(), &result).await;
        let is_refused = matches!(
            refused,
            // Changed bytes may also say that it is too much.
            Err(GitError::Failed { .. } | GitError::PackDamaged { .. } | GitError::PackRefused { .. })
        );
        assert!(is_refused, "{refused:?}");
        assert!(!empty.has_commit(&result).await.unwrap());
        let objects = empty.path().join("objects");
        let mut left: Vec<_> = fs::read_dir(&objects)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["info", "pack"]);
        assert_eq!(fs::read_dir(objects.join("pack")).unwrap().count(), 0);
    }
    empty
        .ingest_pack(File::open(whole.path()).unwrap(), &result)
        .await
        .unwrap();
}

#[tokio::test]
async fn opening_a_mirror_again_keeps_it_and_a_failed_fetch_says_why() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "one\n")]);
    let (mirror, head) = sandbox.mirror("m.git", &source).await;
    let again = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
    assert!(again.has_commit(&head).await.unwrap());
    let failed = mirror
        .fetch(&url(&source), &Auth::None, &["refs/heads/none:refs/kage/bases/x"])
        .await;
    let Err(GitError::Failed { operation, stderr, .. }) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(operation, "fetch");
    assert!(stderr.contains("refs/heads/none"), "{stderr}");
}

#[tokio::test]
async fn folders_that_become_more_files_than_a_result_may_have_are_refused() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "one\n")]);
    let (there, base) = sandbox.mirror("there.git", &source).await;
    let tree = |entries: String| {
        let made = sandbox.git_with_input(&source, &["mktree"], entries.as_bytes());
        String::from_utf8(made).unwrap().trim().to_owned()
    };
    let leaf = sandbox.git(&source, &["rev-parse", "HEAD:a"]);
    let names = ["a", "b", "c", "d", "e", "f"];
    let folder = |kind: &str, id: &str| names.map(|name| format!("{kind} {id}\t{name}\n")).concat();
    let mut top = tree(folder("100644 blob", leaf.trim()));
    let few = top.clone();
    for _ in 0..6 {
        top = tree(folder("040000 tree", &top));
    }
    let commit = |tree: &str| {
        let made = sandbox.git(&source, &["commit-tree", "-m", "x", "-p", base.as_str(), tree]);
        let commit: kage_core::id::Oid = made.trim().parse().unwrap();
        sandbox.git(
            &source,
            &["update-ref", &format!("refs/heads/x{tree}"), commit.as_str()],
        );
        commit
    };
    let (bomb, honest) = (commit(&top), commit(&few));
    let (here, _) = sandbox.mirror("here.git", &source).await;
    for commit in [&bomb, &honest] {
        let refspec = format!("+refs/heads/*:refs/heads/{commit}/*");
        here.fetch(&url(&source), &Auth::None, &[&refspec]).await.unwrap();
    }
    let pack = async |commit| here.thin_pack(commit, std::slice::from_ref(&base)).await.unwrap();
    let bombs = pack(&bomb).await;
    assert!(fs::metadata(bombs.path()).unwrap().len() < 1000);
    let refused = there.ingest_pack(File::open(bombs.path()).unwrap(), &bomb).await;
    let Err(GitError::PackRefused { reason }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("279936 files"), "{reason}");
    assert!(!there.has_commit(&bomb).await.unwrap());
    // A person may allow as many.
    let many = kage_core::task::ResultRules {
        max_new_files: 279_936,
        ..Default::default()
    };
    there
        .ingest_result(File::open(bombs.path()).unwrap(), &bomb, &many)
        .await
        .unwrap();
    let few = pack(&honest).await;
    there
        .ingest_pack(File::open(few.path()).unwrap(), &honest)
        .await
        .unwrap();
    assert!(there.has_commit(&honest).await.unwrap());
}
