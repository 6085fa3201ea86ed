//! Trees with paths or links that lead out of a worktree or into git's own files.

use std::fs;
use std::os::unix::fs::symlink;

use kage_core::id::Oid;
use kage_git::landing::{LandingError, plan_apply};
use kage_git::restore::{Foreign, RestoreOptions};
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, UserRepo, Worktree};

use super::Field;
use crate::sandbox::{fingerprint, protecting, url, write};

const FILE: &str = "100644";
const LINK: &str = "120000";
const FOLDER: &str = "40000";

/// Entries that no honest git makes: mode, name, content.
const ENTRIES: &[(&str, &str, &str)] = &[
    (FOLDER, "..", "f"),
    (FOLDER, ".", "f"),
    (FOLDER, ".git", "config"),
    (FOLDER, ".GIT", "config"),
    (FOLDER, ".Git", "config"),
    (FOLDER, "git~1", "config"),
    (FOLDER, ".git ", "config"),
    (FOLDER, ".git.", "config"),
    (FOLDER, ".git::$INDEX_ALLOCATION", "config"),
    (FOLDER, ".g\u{200c}it", "config"),
    (FILE, "../escape", "x"),
    (FILE, "folder/../../escape", "x"),
    (FILE, "/etc/escape", "x"),
    (FILE, ".git", "gitdir: /elsewhere\n"),
    (LINK, ".git", "/elsewhere"),
    (LINK, ".gitmodules", "/elsewhere"),
    (FILE, ".gitmodules", "[submodule \"../x\"]\n\tpath = x\n\turl = y\n"),
    (FILE, ".gitmodules", "[submodule \"x\"]\n\tpath = -x\n\turl = y\n"),
    (
        FILE,
        ".gitmodules",
        "[submodule \"x\"]\n\tpath = x\n\turl = y\n\tupdate = !evil\n",
    ),
];

#[tokio::test]
async fn no_tree_with_such_a_path_gets_in() {
    let field = Field::new();
    let ground = field.ground("source");
    let repo = ground.repo();
    let (mirror, base) = field.sandbox.mirror("m.git", &repo).await;
    for (mode, name, content) in ENTRIES {
        let make = |kind: &str, bytes: &[u8]| {
            let arguments = ["hash-object", "-t", kind, "-w", "--stdin", "--literally"];
            let id = field.sandbox.git_with_input(&repo, &arguments, bytes);
            String::from_utf8(id).unwrap().trim().to_owned()
        };
        let entry = |mode: &str, name: &str, id: &str| {
            let raw: Vec<u8> = (0..40)
                .step_by(2)
                .map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap())
                .collect();
            [format!("{mode} {name}\0").as_bytes(), &raw].concat()
        };
        let blob = make("blob", content.as_bytes());
        let inner = if *mode == FOLDER {
            make("tree", &entry(FILE, content, &blob))
        } else {
            blob
        };
        let tree = make("tree", &entry(mode, name, &inner));
        let text = format!("tree {tree}\nparent {base}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n");
        let commit: Oid = make("commit", text.as_bytes()).parse().unwrap();
        field
            .sandbox
            .git(&repo, &["update-ref", "refs/heads/evil", commit.as_str()]);

        // Plain git accepts it from any remote.
        let plain = ground.folder.join(commit.as_str());
        fs::create_dir(&plain).unwrap();
        field.sandbox.git(&plain, &["init", "-q", "--bare"]);
        field.sandbox.git(&plain, &["fetch", "-q", &url(&repo), "evil"]);
        field.sandbox.git(&plain, &["cat-file", "-e", tree.as_str()]);

        let spec = format!("refs/heads/evil:refs/kage/results/{commit}");
        let fetched = mirror.fetch(&url(&repo), &Auth::None, &[&spec]).await;
        assert!(fetched.is_err(), "{mode} {name:?} {content:?}: {fetched:?}");
        let revisions = format!("{commit}\n--not\n{base}\n");
        let arguments = ["pack-objects", "--revs", "--thin", "--stdout", "-q"];
        let pack = field.sandbox.git_with_input(&repo, &arguments, revisions.as_bytes());
        let path = ground.folder.join("pack");
        write(&path, pack);
        let taken = mirror.ingest_pack(fs::File::open(&path).unwrap(), &commit).await;
        assert!(taken.is_err(), "{mode} {name:?} {content:?}");
        assert!(!mirror.has_commit(&commit).await.unwrap(), "{mode} {name:?}");
    }
    field.sandbox.git(mirror.path(), &["fsck", "--strict"]);
}

/// A result has a folder where the person has a link to another place.
#[tokio::test]
async fn a_result_is_not_written_through_a_link() {
    let field = Field::new();
    let ground = field.ground("source");
    write(&ground.repo().join("text"), "one\n2\n3\n");
    write(&ground.repo().join(".git/info/exclude"), "link\n");
    let repository = UserRepo::discover(&ground.repo()).await.unwrap();
    let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
    let mirror = Mirror::open_or_init(ground.folder.join("m.git")).await.unwrap();
    snapshot
        .push(&url(mirror.path()), &Auth::None, Receiver::New)
        .await
        .unwrap();
    let worktree = Worktree::create(&mirror, ground.folder.join("w"), &snapshot.base)
        .await
        .unwrap();
    write(&worktree.path().join("link/file"), "from the session\n");
    let result = worktree.commit_result("r\n").await.unwrap().unwrap().commit;

    let outside = ground.folder.join("outside");
    write(&outside.join("file"), "not ours\n");
    symlink(&outside, ground.repo().join("link")).unwrap();
    let done = match plan_apply(&repository, &mirror, &snapshot.base, &result).await {
        Ok(plan) => plan.execute().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(done, Err(LandingError::Conflicts { .. })), "{done:?}");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "not ours\n");
    // The control: a program that writes to the path writes through the link.
    write(&ground.repo().join("link/file"), "x\n");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "x\n");
}

/// A session replaces folders by links to other places, before every operation of ours.
#[tokio::test]
async fn nothing_is_written_or_read_through_a_link_of_a_session() {
    let field = Field::new();
    let repo = field
        .sandbox
        .repository("deep", &[("a/b/file", "f\n"), ("a/other", "o\n")]);
    let (mirror, base) = field.sandbox.mirror("m.git", &repo).await;
    let worktree = Worktree::create(&mirror, field.sandbox.path("w"), &base).await.unwrap();
    let first = worktree.checkpoint(&base, "first").await.unwrap();
    let outside = field.sandbox.path("outside");
    write(&outside.join("b/file"), "not ours\n");
    write(&outside.join("secret"), "s\n");
    write(&outside.join(".git/HEAD"), "ref: refs/heads/x\n");
    let before = fingerprint(&outside);
    let saving = RestoreOptions {
        foreign: Foreign::Save,
        complete: true,
        ..RestoreOptions::default()
    };
    for (path, target) in [
        ("a", outside.clone()),
        ("a/b", outside.join("b")),
        ("a/b", "../..".into()),
    ] {
        fs::remove_dir_all(worktree.path().join(path)).unwrap();
        symlink(&target, worktree.path().join(path)).unwrap();
        // The control: it does lead there.
        assert!(
            worktree
                .path()
                .join(path)
                .canonicalize()
                .is_ok_and(|at| !at.starts_with(worktree.path().join("a")))
        );
        worktree.changes().await.unwrap();
        let taken = worktree.checkpoint(&base, "links").await.unwrap();
        let listed = field.sandbox.git(
            mirror.path(),
            &["ls-tree", "-r", "--format=%(objectmode) %(path)", taken.commit.as_str()],
        );
        assert!(listed.contains(&format!("120000 {path}")), "{listed}");
        assert!(!listed.contains("secret"), "{listed}");
        worktree.commit_result("r\n").await.unwrap().unwrap();
        worktree.restore_paths(&base, &protecting(&["a/b/*"])).await.unwrap();
        fs::remove_dir_all(worktree.path().join("a"))
            .or_else(|_| fs::remove_file(worktree.path().join("a")))
            .unwrap();
        symlink(&outside, worktree.path().join("a")).unwrap();
        worktree.restore(&first.commit, &saving).await.unwrap();
        assert_eq!(fs::read_to_string(worktree.path().join("a/b/file")).unwrap(), "f\n");
        assert_eq!(fingerprint(&outside), before, "{path}");
    }
    symlink(&outside, worktree.path().join("there")).unwrap();
    Worktree::remove(&mirror, worktree.path()).await.unwrap();
    assert_eq!(fingerprint(&outside), before);
}
