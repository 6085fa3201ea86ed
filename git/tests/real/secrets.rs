//! Files with secrets in checkpoints and results: held back, named, and never the person's own.

use std::fs;
use std::os::unix::fs::symlink;

use kage_git::{FileWithSecret, Secrets, Sought, Worktree};

use crate::sandbox::{Sandbox, write};

const KEY: &str = "sk-0123456789";
/// What a file of the base has.
const OWN: &str = "own-98765-secret";

fn sought() -> Secrets {
    let value = |name: &str, form: &str| Sought {
        name: name.to_owned(),
        forms: vec![form.as_bytes().to_vec()],
        broken: Vec::new(),
    };
    Secrets::new(&[value("KEY", KEY), value("OTHER", "other-secret"), value("OWN", OWN)])
}

fn names(held: &[FileWithSecret]) -> Vec<String> {
    let name = |file: &FileWithSecret| format!("{} {}", file.path, file.secrets.join(","));
    held.iter().map(name).collect()
}

#[tokio::test]
async fn a_file_with_a_secret_is_in_no_checkpoint_and_named_and_the_others_are() {
    let sandbox = Sandbox::new();
    let kept = format!("mine {OWN}\n");
    let source = sandbox.repository("source", &[("own", &kept), ("plain", "1\n"), ("big", "b\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    worktree.look_for(sought());
    let root = worktree.path().to_owned();
    write(&root.join("own"), format!("{kept}and more\n"));
    write(&root.join("copied/own"), &kept);
    write(&root.join("plain"), format!("2 {KEY}\n"));
    fs::create_dir(root.join("config")).unwrap();
    write(&root.join("config/.env"), format!("KEY={KEY}\n"));
    write(&root.join("honest"), "sk-012345678\n");
    write(&root.join(format!("{KEY}.txt")), "named\n");
    symlink(format!("/tmp/{KEY}"), root.join("link")).unwrap();
    // Larger than what is read at once, with the value near its end.
    let mut big = vec![0xff_u8; 17 << 20];
    let end = big.len() - 3;
    big.splice(end..end, KEY.bytes());
    fs::write(root.join("big"), big).unwrap();

    let taken = worktree.checkpoint(&base, "c").await.unwrap();
    let held = ["***.txt KEY", "big KEY", "config/.env KEY", "link KEY", "plain KEY"];
    assert_eq!(names(&worktree.held()), held);
    let list = sandbox.git(mirror.path(), &["ls-tree", "-r", "--name-only", taken.commit.as_str()]);
    assert_eq!(
        list.lines().collect::<Vec<_>>(),
        ["big", "copied/own", "honest", "own", "plain"]
    );
    let show = |path: &str| sandbox.git(mirror.path(), &["show", &format!("{}:{path}", taken.commit)]);
    assert_eq!((show("plain").trim(), show("big").trim()), ("1", "b"));
    assert!(show("own").contains("and more"), "the person's own value may stay");
    let all = sandbox.git(
        mirror.path(),
        &["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"],
    );
    let with: Vec<_> = all
        .lines()
        .filter(|id| sandbox.git(mirror.path(), &["cat-file", "-p", id]).contains(KEY))
        .collect();
    assert!(with.is_empty(), "{with:?}");

    // The person's file with another secret is not the person's own any more.
    write(&root.join("own"), format!("{kept}other-secret\n"));
    worktree.checkpoint(&taken.commit, "c").await.unwrap();
    assert!(names(&worktree.held()).contains(&"own OTHER".to_owned()));

    for path in ["plain", "big"] {
        write(&root.join(path), "clean\n");
    }
    for path in ["config/.env", "link"] {
        fs::remove_file(root.join(path)).unwrap();
    }
    fs::remove_file(root.join(format!("{KEY}.txt"))).unwrap();
    write(&root.join("own"), &kept);
    let clean = worktree.commit_result("r").await.unwrap().unwrap();
    assert_eq!(worktree.held(), []);
    assert_eq!(worktree.held_in(&clean.commit).await.unwrap(), []);
}

#[tokio::test]
async fn a_result_that_git_makes_is_searched_as_well() {
    let sandbox = Sandbox::new();
    let kept = format!("mine {OWN}\n");
    let files = [(".gitattributes", "*.txt text\n"), ("own.txt", &kept), ("a.txt", "1\n")];
    let source = sandbox.repository("source", &files);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    worktree.look_for(sought());
    let root = worktree.path().to_owned();
    write(&root.join("own.txt"), format!("{kept}more\r\n"));
    write(&root.join("moved.txt"), &kept);
    write(&root.join("a.txt"), format!("x\r\n{KEY}\r\n"));
    write(&root.join(format!("{KEY}.txt")), "named\n");
    let result = worktree.commit_result("r").await.unwrap().unwrap();
    let held = worktree.held_in(&result.commit).await.unwrap();
    assert_eq!(names(&held), ["a.txt KEY", "***.txt KEY"]);
}
