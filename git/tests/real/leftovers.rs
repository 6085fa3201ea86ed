//! Leftovers of a dead process in a mirror: the next process that opens it sweeps them, but never
//! while another process works there.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kage_git::{Expected, Mirror, Worktree};

use crate::sandbox::{Sandbox, fingerprint, write};

/// Files that should not exist, relative to the mirror.
pub(crate) fn leftovers(mirror: &Path) -> Vec<PathBuf> {
    let is_left = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let starts = ["incoming-", "tmp_", ".tmp", "index-"]
            .iter()
            .any(|start| name.starts_with(start));
        let is_unread = name.ends_with(".pack") && !path.with_extension("idx").exists();
        starts || is_unread || name.ends_with(".lock") && name != "kage.lock" && name != "users.lock"
    };
    let files = fingerprint(mirror).into_iter().map(|(path, _, _)| path);
    files.filter(is_left).collect()
}

/// Everything that an earlier git, of ours or another, is known to have left.
fn leave(mirror: &Path, base: &str) {
    let checkout = std::fs::read_dir(mirror.join("checkouts"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for name in [
        "objects/incoming-a1b2c3/pack/tmp_pack_a1b2c3",
        "objects/tmp_objdir-incoming-a1b2c3/pack/pack-1.pack",
        "objects/tmp_objdir-bulk-fsync-a1b2c3/x",
        "objects/tmp_obj_a1b2c3",
        "objects/ab/tmp_obj_a1b2c3",
        "objects/pack/tmp_pack_a1b2c3",
        "objects/pack/tmp_idx_a1b2c3",
        "objects/pack/pack-a1b2c3.pack",
        ".tmpA1b2C3",
        "packed-refs.lock",
        "config.lock",
        "refs/kage/results/x.lock",
        "refs/kage/checkpoints/w/.tmpA1b2C3",
    ] {
        write(&mirror.join(name), "left\n");
    }
    write(&mirror.join(format!("refs/kage/bases/{base}.lock")), "");
    write(&checkout.join("index.lock"), "");
    write(&checkout.join("index-a1b2c3"), "");
    write(&mirror.join("objects/pack/pack-1.keep"), "fetch-pack 1 on host\n");
    write(&mirror.join("objects/pack/pack-2.keep"), "somebody wants it\n");
}

/// A process that has the mirror open.
fn hold(mirror: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kage-git-step"))
        .args(["hold".as_ref(), mirror.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "open\n");
    child
}

async fn prepared(sandbox: &Sandbox) -> (PathBuf, kage_core::id::Oid) {
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    worktree.checkpoint(&base, "kept").await.unwrap();
    (mirror.path().to_owned(), base)
}

#[tokio::test]
async fn the_next_who_opens_a_mirror_alone_sweeps_it() {
    let sandbox = Sandbox::new();
    let (path, base) = prepared(&sandbox).await;
    let before = fingerprint(&path);
    // It died in the middle of everything.
    let mut other = hold(&path);
    leave(&path, base.as_str());
    let left = fingerprint(&path);
    let mirror = Mirror::open_or_init(&path).await.unwrap();
    assert_eq!(fingerprint(&path), left, "another process has it open");
    let blocked = mirror
        .update_ref("refs/kage/results/x", &base, &Expected::Anything)
        .await;
    assert!(blocked.is_err(), "a lock file that is left does block");
    drop(mirror);
    other.kill().unwrap();
    other.wait().unwrap();

    // By a process that never saw it before.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !leftovers(&path).is_empty() {
        assert!(Instant::now() < deadline, "{:?} are left", leftovers(&path));
        // A git that another test of this process is starting has all its files for a moment, and
        // so this process's lock.
        drop(hold(&path).wait_with_output().unwrap());
    }
    let swept = fingerprint(&path);
    for file in &before {
        assert!(swept.contains(file), "{} is gone", file.0.display());
    }
    assert!(path.join("objects/pack/pack-2.keep").exists() && !path.join("objects/pack/pack-1.keep").exists());
    let mirror = Mirror::open_or_init(&path).await.unwrap();
    mirror
        .update_ref("refs/kage/results/x", &base, &Expected::Anything)
        .await
        .unwrap();
    sandbox.git(&path, &["fsck", "--strict", "--no-dangling"]);
}

#[tokio::test]
async fn nothing_is_swept_while_an_orphaned_git_is_at_work() {
    if !Path::new("/proc/self/environ").exists() {
        // There the age of a file decides.
        return;
    }
    let sandbox = Sandbox::new();
    let (path, base) = prepared(&sandbox).await;
    leave(&path, base.as_str());
    let left = fingerprint(&path);
    let mut orphan = Command::new("git")
        .args(["cat-file", "--batch"])
        .env("GIT_DIR", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(hold(&path).wait_with_output().unwrap());
    assert_eq!(fingerprint(&path), left);
    orphan.kill().unwrap();
    orphan.wait().unwrap();
    drop(hold(&path).wait_with_output().unwrap());
    assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
}

/// A process that opens the mirror while others work and end never sweeps anything in use.
#[tokio::test(flavor = "multi_thread")]
async fn opening_and_closing_at_once_disturbs_nobody() {
    let sandbox = Sandbox::new();
    let (path, base) = prepared(&sandbox).await;
    let mut work = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (path, base, top) = (path.clone(), base.clone(), sandbox.path(&format!("s{number}")));
        work.spawn(async move {
            for round in 0..5 {
                let mirror = Mirror::open_or_init(&path).await.unwrap();
                let worktree = Worktree::create(&mirror, top.join(round.to_string()), &base)
                    .await
                    .unwrap();
                write(&worktree.path().join("own"), format!("{number} {round}\n"));
                let taken = worktree.checkpoint(&base, "c").await.unwrap();
                let pack = mirror
                    .thin_pack(&taken.commit, std::slice::from_ref(&base))
                    .await
                    .unwrap();
                mirror.ingest_pack(pack.reopen().unwrap(), &taken.commit).await.unwrap();
                assert!(pack.path().exists());
            }
        });
    }
    for _ in 0..12 {
        let path = path.clone();
        let held = tokio::task::spawn_blocking(move || hold(&path).wait_with_output().unwrap());
        held.await.unwrap();
    }
    assert_eq!(work.join_all().await.len(), 4);
    assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
    sandbox.git(&path, &["fsck", "--strict", "--no-dangling"]);
}
