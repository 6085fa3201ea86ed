//! The tree of a result, beside what plain git stores of the same files: `git add --all` in the
//! session's own repository, which is at the base.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use kage_git::Worktree;
use proptest::prelude::*;

use crate::sandbox::{Sandbox, write};

const FILES: &[(&str, &str)] = &[
    (".gitignore", "built/\n*.log\n"),
    ("a", "1\n"),
    ("folder/b", "2\n"),
    ("folder/deep/c", "3\r\n"),
    ("kept.txt", "4\r\nmixed\n"),
    ("built/tracked", "5\n"),
    ("script", "#!/bin/sh\n"),
];

const PLACES: &[&str] = &[
    "a",
    "folder",
    "folder/b",
    "folder/deep",
    "folder/deep/c",
    "folder/new.txt",
    "kept.txt",
    "script",
    "new.txt",
    "x.log",
    "built/tracked",
    "built/x",
    ".gitignore",
    ".gitattributes",
];

#[derive(Debug, Clone)]
enum Deed {
    Write(&'static str),
    Delete,
    Folder,
    Link,
    Chmod(u32),
    /// A checkpoint is taken here.
    Checkpoint,
}

fn deed() -> impl Strategy<Value = (usize, Deed)> {
    let text = prop::sample::select(
        &[
            "new\n",
            "a\r\nb\r\n",
            "* text=auto\n",
            "*.txt text eol=crlf\n",
            "*.txt\nkept.txt\n",
            "",
        ][..],
    );
    let kind = prop_oneof![
        4 => text.prop_map(Deed::Write),
        2 => Just(Deed::Delete),
        1 => Just(Deed::Folder),
        1 => Just(Deed::Link),
        1 => prop_oneof![Just(0o644), Just(0o755)].prop_map(Deed::Chmod),
        1 => Just(Deed::Checkpoint),
    ];
    // Not the attributes: whether git stores an unchanged file anew after they changed depends on
    // whether its time is that of the index.
    (0..PLACES.len() - 1, kind)
}

fn perform(top: &Path, place: &str, deed: &Deed) {
    let path = top.join(place);
    // What is impossible after an earlier deed is not done.
    let _done = match deed {
        Deed::Write(text) => fs::create_dir_all(path.parent().unwrap()).and_then(|()| fs::write(&path, text)),
        Deed::Delete => fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)),
        Deed::Folder => fs::create_dir_all(path.join("made")).and_then(|()| fs::write(path.join("made/file"), place)),
        Deed::Link => fs::remove_file(&path).and_then(|()| symlink("kept.txt", &path)),
        Deed::Chmod(mode) => match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => fs::set_permissions(&path, fs::Permissions::from_mode(*mode)),
            _ => Ok(()),
        },
        Deed::Checkpoint => Ok(()),
    };
}

async fn holds(deeds: &[(usize, Deed)], attributes: Option<&str>) {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", FILES);
    sandbox.git(&source, &["add", "--force", "built/tracked"]);
    if let Some(text) = attributes {
        write(&source.join(".gitattributes"), text);
    }
    sandbox.commit(&source, "with what is ignored");
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    for (place, deed) in deeds {
        if matches!(deed, Deed::Checkpoint) {
            worktree.checkpoint(&base, "on the way").await.unwrap();
        }
        perform(worktree.path(), PLACES[*place], deed);
    }
    let result = worktree.commit_result("result").await.unwrap();
    sandbox.git(worktree.path(), &["add", "--all"]);
    let expected = sandbox.git(worktree.path(), &["write-tree"]);
    let of_base = sandbox.git(mirror.path(), &["rev-parse", &format!("{base}^{{tree}}")]);
    let Some(result) = result else {
        assert_eq!(expected, of_base, "nothing changed");
        return;
    };
    let tree = sandbox.git(mirror.path(), &["rev-parse", &format!("{}^{{tree}}", result.commit)]);
    let listed = |tree: &str| sandbox.git(worktree.path(), &["ls-tree", "-r", tree]);
    assert_eq!(listed(&tree), listed(&expected));
    assert_eq!(
        (tree.as_str(), result.tree.unwrap().as_str()),
        (expected.as_str(), expected.as_str())
    );
    assert_ne!(expected, of_base);
    let whole = [
        "rev-list",
        "--objects",
        "--verify-objects",
        "--quiet",
        result.commit.as_str(),
    ];
    sandbox.git(mirror.path(), &whole);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 100, ..ProptestConfig::with_cases(ProptestConfig::default().cases.min(60)) })]

    #[test]
    fn a_result_is_what_git_stores(
        deeds in prop::collection::vec(deed(), 0..10),
        attributes in prop::option::weighted(0.3, prop::sample::select(&["* text=auto\n", "*.txt text eol=crlf\n", "a -text\n"][..])),
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(holds(&deeds, attributes));
    }
}

/// What a checkpoint holds and git's result does not, or the other way round.
#[tokio::test]
async fn where_a_checkpoint_differs_the_result_is_gits() {
    let place = |name: &str| PLACES.iter().position(|place| *place == name).unwrap();
    // Ignored since a checkpoint took it.
    let deeds = [
        (place("new.txt"), Deed::Write("new\n")),
        (place("a"), Deed::Checkpoint),
        (place(".gitignore"), Deed::Write("*.txt\nkept.txt\n")),
    ];
    holds(&deeds, None).await;
    // Deleted when a checkpoint looked, there again, and ignored although the base has it.
    let deeds = [
        (place("built/tracked"), Deed::Delete),
        (place("a"), Deed::Checkpoint),
        (place("built/tracked"), Deed::Write("new\n")),
    ];
    holds(&deeds, None).await;
    // Only on the disk, ignored, and still in force.
    let deeds = [
        (place(".gitignore"), Deed::Write(".gitattributes\n")),
        (place(".gitattributes"), Deed::Write("* text=auto\n")),
        (place("new.txt"), Deed::Write("a\r\nb\r\n")),
    ];
    holds(&deeds, None).await;
}
