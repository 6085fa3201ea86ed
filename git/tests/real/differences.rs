//! Differences file by file: what is told of each kind of change, and where a patch is cut.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::id::Oid;
use kage_git::Mirror;
use kage_git::diff::{DiffScope, FileDiff, FileLines, FileStatus, MAX_COMPARED, MAX_LINES, between, by_file, patch};

use crate::sandbox::{Sandbox, write};

const ALL: DiffScope = DiffScope {
    paths: Vec::new(),
    file_bytes: 1 << 20,
    total_bytes: 16 << 20,
};

/// A mirror with a commit of these files and a later one, after `change`.
async fn changed(files: &[(&str, &str)], change: impl FnOnce(&PathBuf)) -> (Sandbox, Mirror, Oid, Oid) {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", files);
    let from = sandbox.head(&source);
    change(&source);
    sandbox.commit(&source, "change");
    let (mirror, to) = sandbox.mirror("m.git", &source).await;
    (sandbox, mirror, from, to)
}

fn compared(mirror: &Mirror, from: &Oid, to: &Oid, scope: &DiffScope) -> Vec<FileDiff> {
    let mut files = Vec::new();
    let end = by_file(mirror.path(), from, to, scope, |file| {
        files.push(file);
        ControlFlow::Continue(())
    });
    assert!(end.unwrap().is_continue());
    files
}

fn counted(added: u64, removed: u64) -> FileLines {
    FileLines::Counted { added, removed }
}

fn lines(count: u32) -> String {
    (0..count).map(|n| format!("line {n}\n")).collect()
}

#[tokio::test]
async fn each_kind_of_change_is_told_and_the_patches_together_are_the_change() {
    let long = lines(40);
    let before = [
        ("edited", "1\n2\n3\n"),
        ("gone", "g\n"),
        ("link", "to be a link\n"),
        ("script", "#!/bin/sh\n"),
        ("old/name", long.as_str()),
    ];
    let (sandbox, mirror, from, to) = changed(&before, |top| {
        write(&top.join("edited"), "1\n2b\n3\n4\n");
        fs::remove_file(top.join("gone")).unwrap();
        fs::remove_file(top.join("link")).unwrap();
        symlink("/etc", top.join("link")).unwrap();
        fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
        write(&top.join("new/name"), format!("{}last\n", lines(40)));
        fs::remove_file(top.join("old/name")).unwrap();
        write(&top.join(OsStr::from_bytes(b"latin-\xe9")), "b\n");
        write(&top.join("picture"), b"\0\x01\x02");
    })
    .await;
    let files = compared(&mirror, &from, &to, &ALL);
    let told: Vec<_> = files
        .iter()
        .map(|file| (file.path.as_slice(), file.status, file.lines))
        .collect();
    let expected: [(&[u8], FileStatus, FileLines); 8] = [
        (b"edited", FileStatus::Modified, counted(2, 1)),
        (b"gone", FileStatus::Deleted, counted(0, 1)),
        (b"latin-\xe9", FileStatus::Added, counted(1, 0)),
        (b"link", FileStatus::Deleted, counted(0, 1)),
        (b"link", FileStatus::Added, counted(1, 0)),
        (b"new/name", FileStatus::Renamed, counted(1, 0)),
        (b"picture", FileStatus::Added, FileLines::Binary),
        (b"script", FileStatus::Modified, counted(0, 0)),
    ];
    assert_eq!(told, expected);
    let renamed = &files[5];
    assert_eq!(renamed.old_path.as_deref(), Some(&b"old/name"[..]));
    assert!(files.iter().all(|file| !file.truncated));
    let script = &files[7];
    let modes = [&script.before, &script.after].map(|side| side.as_ref().map(|entry| entry.mode));
    assert_eq!(modes, [Some(0o100_644), Some(0o100_755)]);
    assert_eq!((&files[1].after, &files[2].before), (&None, &None));

    // What is not binary is what git applies.
    let text = files.iter().filter(|file| file.lines != FileLines::Binary);
    let patch: Vec<u8> = text.flat_map(|file| file.patch.clone()).collect();
    let source = sandbox.path("source");
    sandbox.git(&source, &["checkout", "--quiet", from.as_str()]);
    sandbox.git_with_input(&source, &["apply", "--index"], &patch);
    sandbox.git(&source, &["rm", "--quiet", "--cached", "--ignore-unmatch", "picture"]);
    let left = sandbox.git(&source, &["diff", "--cached", "--name-only", to.as_str()]);
    assert_eq!(left.trim(), "picture");
}

#[tokio::test]
async fn only_the_paths_asked_for_are_compared_and_they_are_no_patterns() {
    let before = [("a/x", "1\n"), ("a/y", "1\n"), ("ab", "1\n"), ("[ab]", "1\n")];
    let (_sandbox, mirror, from, to) = changed(&before, |top| {
        for (path, _) in before {
            write(&top.join(path), "2\n");
        }
    })
    .await;
    let names = |paths: &[&[u8]]| {
        let scope = DiffScope {
            paths: paths.iter().map(|path| path.to_vec()).collect(),
            ..ALL
        };
        let files = compared(&mirror, &from, &to, &scope);
        let names = files.into_iter().map(|file| String::from_utf8(file.path).unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["[ab]", "a/x", "a/y", "ab"]);
    assert_eq!(names(&[b"a"]), ["a/x", "a/y"]);
    assert_eq!(names(&[b"[ab]", b"a/y"]), ["[ab]", "a/y"]);
    assert_eq!(names(&[b"*"]), Vec::<String>::new());
}

#[tokio::test]
async fn a_patch_is_cut_between_lines_where_its_limit_or_that_of_all_is_reached() {
    let (_sandbox, mirror, from, to) = changed(&[("x", "x\n")], |top| {
        for name in ["a", "b", "c"] {
            write(&top.join(name), lines(100));
        }
    })
    .await;
    let with = |file_bytes, total_bytes| DiffScope {
        paths: Vec::new(),
        file_bytes,
        total_bytes,
    };
    let whole = compared(&mirror, &from, &to, &ALL);
    let size = whole[0].patch.len();
    let cut = compared(&mirror, &from, &to, &with(size - 1, 1 << 20));
    for (cut, whole) in cut.iter().zip(&whole) {
        assert!(cut.truncated && !whole.truncated);
        assert!(whole.patch.starts_with(&cut.patch) && cut.patch.ends_with(b"\n"));
        assert_eq!(whole.patch.len() - cut.patch.len(), "+line 99\n".len());
        assert_eq!((cut.lines, cut.status), (counted(100, 0), FileStatus::Added));
    }
    let cut = compared(&mirror, &from, &to, &with(1 << 20, size + size / 2));
    let truncated: Vec<_> = cut.iter().map(|file| file.truncated).collect();
    assert_eq!(truncated, [false, true, true]);
    assert!(cut.iter().map(|file| file.patch.len()).sum::<usize>() <= size + size / 2);
    let none = compared(&mirror, &from, &to, &with(0, 1 << 20));
    assert!(none.iter().all(|file| file.patch.is_empty() && !file.truncated));
    assert_eq!(none[0].lines, counted(100, 0));

    let mut seen = 0;
    let end = by_file(mirror.path(), &from, &to, &ALL, |_| {
        seen += 1;
        ControlFlow::Break(())
    });
    assert_eq!(
        (end.unwrap(), seen),
        (ControlFlow::Break(()), 1),
        "whoever breaks off is given no more"
    );
}

#[tokio::test]
async fn a_file_that_is_too_large_to_compare_is_only_named() {
    let (_sandbox, mirror, from, to) = changed(&[("x", "x\n")], |top| {
        write(&top.join("large"), "a".repeat(MAX_COMPARED + 1));
        write(&top.join("lines"), "\n".repeat(MAX_LINES + 1));
        write(&top.join("most"), "\n".repeat(MAX_LINES));
        fs::rename(top.join("x"), top.join("y")).unwrap();
    })
    .await;
    let files = compared(&mirror, &from, &to, &ALL);
    let told: Vec<_> = files.iter().map(|file| (file.lines, file.truncated)).collect();
    let expected = [
        (FileLines::TooLarge, true),
        (FileLines::TooLarge, true),
        (counted(MAX_LINES as u64, 0), false),
        (counted(0, 0), false),
    ];
    assert_eq!(told, expected);
    assert_eq!(files[3].status, FileStatus::Renamed, "the same content is still found");
    assert_eq!(files[0].patch, b"");
}

/// What comparing two commits of a repository says, each way that there is. Fails when one does not end.
fn all_ways(git_dir: &Path, from: &Oid, to: &Oid) -> Vec<(&'static str, bool)> {
    let (told, heard) = std::sync::mpsc::channel();
    let (git_dir, from, to) = (git_dir.to_owned(), from.clone(), to.clone());
    // Not joined: one that hangs must not keep the test.
    std::thread::spawn(move || {
        let by_file = by_file(&git_dir, &from, &to, &ALL, |_| ControlFlow::Continue(())).is_ok();
        told.send(("by_file", by_file)).ok();
        told.send(("between", between(&git_dir, &from, &to).is_ok())).ok();
        told.send(("patch", patch(&git_dir, &from, &to).is_ok())).ok();
    });
    let limit = Duration::from_secs(60);
    let ways = (0..3).map(|_| heard.recv_timeout(limit).expect("a comparison that does not end"));
    ways.collect()
}

#[tokio::test]
async fn a_loose_object_that_was_cut_off_ends_a_comparison_with_an_error() {
    let sandbox = Sandbox::new();
    let long = lines(5_000);
    let source = sandbox.repository("source", &[("folder/edited", long.as_str()), ("same", "same\n")]);
    let from = sandbox.head(&source);
    write(&source.join("folder/edited"), long + "more\n");
    sandbox.commit(&source, "change");
    let (git_dir, to) = (source.join(".git"), sandbox.head(&source));
    assert!(all_ways(&git_dir, &from, &to).iter().all(|(_, ok)| *ok));
    for name in [
        "HEAD",
        "HEAD^{tree}",
        "HEAD:folder",
        "HEAD:folder/edited",
        "HEAD^",
        "HEAD^:folder/edited",
    ] {
        let id = sandbox.git(&source, &["rev-parse", name]);
        let (folder, rest) = id.trim().split_at(2);
        let file = git_dir.join("objects").join(folder).join(rest);
        let whole = fs::read(&file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        for length in [0, 1, 20, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..length.min(whole.len() - 1)]).unwrap();
            for (way, ok) in all_ways(&git_dir, &from, &to) {
                assert!(!ok, "{name} with {length} bytes: {way}");
            }
        }
        fs::write(&file, whole).unwrap();
    }
    assert!(all_ways(&git_dir, &from, &to).iter().all(|(_, ok)| *ok));
    // What is not compared does not matter.
    let id = sandbox.git(&source, &["rev-parse", "HEAD:same"]);
    let (folder, rest) = id.trim().split_at(2);
    fs::remove_file(git_dir.join("objects").join(folder).join(rest)).unwrap();
    assert!(all_ways(&git_dir, &from, &to).iter().all(|(_, ok)| *ok));
}
