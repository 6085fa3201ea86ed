//! What a verify checkout has is proved by hash: honest checkouts of every kind pass, and each way to put
//! another file into one is found - in the mirror's objects, loose and packed, and in the checkout itself.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::{GitError, Mirror, Worktree};

use crate::sandbox::{Sandbox, protecting, write};
use crate::submodules::{project, send};

const FILES: &[(&str, &str)] = &[
    ("a", "1\n"),
    ("b", "2\n"),
    ("check.sh", "test \"$(cat a)\" = 1\n"),
    ("folder/c", "3\n"),
    ("folder/deep/d", "4\n"),
    ("other/e", "5\n"),
];

/// A mirror whose objects are a file each.
async fn unpacked(sandbox: &Sandbox) -> (Mirror, Oid) {
    let repository = sandbox.repository("origin", FILES);
    symlink("a", repository.join("link")).unwrap();
    sandbox.commit(&repository, "with a link");
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    let packs = mirror.path().join("objects/pack");
    for entry in fs::read_dir(&packs).unwrap() {
        let path = entry.unwrap().path();
        let away = sandbox.path("away").join(path.file_name().unwrap());
        fs::create_dir_all(sandbox.path("away")).unwrap();
        fs::rename(&path, &away).unwrap();
        if away.extension().is_some_and(|kind| kind == "pack") {
            let bytes = fs::read(away).unwrap();
            sandbox.git_with_input(mirror.path(), &["unpack-objects", "-q"], &bytes);
        }
    }
    (mirror, base)
}

fn loose(mirror: &Path, id: &str) -> PathBuf {
    mirror.join("objects").join(&id[..2]).join(&id[2..])
}

/// Puts the object `wrong` under the name of what `name` is.
fn swap(sandbox: &Sandbox, mirror: &Path, name: &str, wrong: &str) {
    let right = loose(mirror, &sandbox.git(mirror, &["rev-parse", name]));
    fs::remove_file(&right).unwrap();
    fs::copy(loose(mirror, wrong), right).unwrap();
}

fn stored(sandbox: &Sandbox, mirror: &Path, content: &str) -> String {
    write(&sandbox.path("content"), content);
    let path = sandbox.path("content");
    sandbox.git(mirror, &["hash-object", "-w", path.to_str().unwrap()])
}

/// Replaces all objects by a pack that has them, the wrong ones under the right names.
fn pack(sandbox: &Sandbox, mirror: &Path) {
    let mut ids = String::new();
    for entry in fs::read_dir(mirror.join("objects")).unwrap() {
        let folder = entry.unwrap();
        let name = folder.file_name().into_string().unwrap();
        if name.len() == 2 {
            for entry in fs::read_dir(folder.path()).unwrap() {
                ids += &format!("{name}{}\n", entry.unwrap().file_name().into_string().unwrap());
            }
        }
    }
    let pack = mirror.join("objects/pack/pack");
    sandbox.git_with_input(mirror, &["pack-objects", "-q", pack.to_str().unwrap()], ids.as_bytes());
    for id in ids.lines() {
        fs::remove_file(loose(mirror, id)).unwrap();
    }
}

fn not_as_committed(proved: Result<(), GitError>) -> Option<String> {
    match proved {
        Ok(()) => None,
        Err(GitError::NotAsCommitted { path }) => Some(path.display().to_string()),
        Err(error) => panic!("{error:?}"),
    }
}

type Forge = fn(&Sandbox, &Path, &Oid);

const OBJECTS: [(&str, Forge); 4] = [
    ("a file", |sandbox, mirror, base| {
        let wrong = stored(sandbox, mirror, "9\n");
        swap(sandbox, mirror, &format!("{base}:folder/deep/d"), &wrong);
    }),
    ("a link", |sandbox, mirror, base| {
        let wrong = stored(sandbox, mirror, "b");
        swap(sandbox, mirror, &format!("{base}:link"), &wrong);
    }),
    ("a folder", |sandbox, mirror, base| {
        let wrong = sandbox.git(mirror, &["rev-parse", &format!("{base}:other")]);
        swap(sandbox, mirror, &format!("{base}:folder/deep"), &wrong);
    }),
    ("the commit", |sandbox, mirror, base| {
        let other = sandbox.git(mirror, &["rev-parse", &format!("{base}:folder")]);
        let wrong = sandbox.git(mirror, &["commit-tree", &other, "-m", "x"]);
        swap(sandbox, mirror, base.as_str(), &wrong);
    }),
];

#[tokio::test]
async fn each_forged_object_is_found_before_a_checkout_is_made_of_it() {
    for packed in [false, true] {
        for (name, forge) in [("nothing", None)]
            .into_iter()
            .chain(OBJECTS.map(|(name, forge)| (name, Some(forge))))
        {
            let sandbox = Sandbox::new();
            let (mirror, base) = unpacked(&sandbox).await;
            if let Some(forge) = forge {
                forge(&sandbox, mirror.path(), &base);
            }
            if packed {
                pack(&sandbox, mirror.path());
            }
            let checked = mirror.check_files_of(std::slice::from_ref(&base)).await;
            let is_damage = checked
                .as_ref()
                .is_err_and(|error| error.suggests_damage(mirror.path()));
            assert_eq!(
                (checked.is_ok(), is_damage),
                (forge.is_none(), forge.is_some()),
                "{name}: {checked:?}"
            );
            // And if it came to be in between.
            if forge.is_none() {
                let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
                assert_eq!(not_as_committed(tree.prove().await), None);
            } else if let Ok(tree) = Worktree::create(&mirror, sandbox.path("w"), &base).await {
                tree.prove().await.expect_err(name);
            }
        }
    }
}

#[tokio::test]
async fn an_object_without_its_end_is_found_and_not_waited_for() {
    for name in ["", ":folder", ":folder/deep/d", ":link"] {
        let sandbox = Sandbox::new();
        let (mirror, base) = unpacked(&sandbox).await;
        let id = sandbox.git(mirror.path(), &["rev-parse", &format!("{base}{name}")]);
        let file = loose(mirror.path(), &id);
        let whole = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        write(&file, &whole[..whole.len() - 6]);
        let found = mirror.check_files_of(std::slice::from_ref(&base)).await.unwrap_err();
        assert!(found.suggests_damage(mirror.path()), "{name}: {found:?}");
    }
}

#[tokio::test]
async fn a_file_that_was_forged_after_the_check_is_found_in_the_checkout() {
    let sandbox = Sandbox::new();
    let (mirror, base) = unpacked(&sandbox).await;
    mirror.check_files_of(std::slice::from_ref(&base)).await.unwrap();
    OBJECTS[0].1(&sandbox, mirror.path(), &base);
    let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    assert_eq!(fs::read_to_string(tree.path().join("folder/deep/d")).unwrap(), "9\n");
    let found = tree.prove().await.unwrap_err();
    assert!(found.suggests_damage(mirror.path()), "{found:?}");
}

#[tokio::test]
async fn a_large_file_is_hashed_too() {
    let sandbox = Sandbox::new();
    let mut large = vec![b'x'; 17 << 20];
    let repository = sandbox.repository("origin", &[("a", "1\n")]);
    write(&repository.join("large"), &large);
    sandbox.commit(&repository, "large");
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    mirror.check_files_of(std::slice::from_ref(&base)).await.unwrap();
    let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    assert_eq!(not_as_committed(tree.prove().await), None);
    large[16 << 20] = b'y';
    write(&tree.path().join("large"), &large);
    assert_eq!(not_as_committed(tree.prove().await).as_deref(), Some("large"));
    write(&sandbox.path("wrong"), &large);
    let wrong = sandbox.path("wrong");
    let wrong = sandbox.git(mirror.path(), &["hash-object", "-w", wrong.to_str().unwrap()]);
    let right = sandbox.git(mirror.path(), &["rev-parse", &format!("{base}:large")]);
    let place = loose(mirror.path(), &right);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    // The loose one counts once the pack is away.
    let packs = mirror.path().join("objects/pack");
    let kept = sandbox.git(mirror.path(), &["rev-list", "--objects", base.as_str()]);
    let kept: String = kept
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(|id| format!("{id}\n"))
        .collect();
    let kept = kept.replace(&format!("{right}\n"), "");
    fs::create_dir(sandbox.path("away")).unwrap();
    let old: Vec<_> = fs::read_dir(&packs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let new = packs.join("pack");
    sandbox.git_with_input(
        mirror.path(),
        &["pack-objects", "-q", new.to_str().unwrap()],
        kept.as_bytes(),
    );
    for path in old {
        fs::rename(&path, sandbox.path("away").join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(loose(mirror.path(), &wrong), place).unwrap();
    let found = mirror.check_files_of(std::slice::from_ref(&base)).await.unwrap_err();
    assert!(found.suggests_damage(mirror.path()), "{found:?}");
}

type Change = fn(&Path);

const CHANGES: [(&str, &str, Change); 11] = [
    ("a file", "folder/c", |top| write(&top.join("folder/c"), "9\n")),
    ("a missing file", "b", |top| fs::remove_file(top.join("b")).unwrap()),
    ("a missing folder", "folder/deep", |top| {
        fs::remove_dir_all(top.join("folder/deep")).unwrap()
    }),
    ("a new file", "folder/conftest.py", |top| {
        write(&top.join("folder/conftest.py"), "")
    }),
    ("a new folder", "new", |top| fs::create_dir(top.join("new")).unwrap()),
    ("a repository inside", "folder/.git", |top| {
        write(&top.join("folder/.git"), "gitdir: /tmp\n")
    }),
    ("another link", "link", |top| {
        fs::remove_file(top.join("link")).unwrap();
        symlink("b", top.join("link")).unwrap();
    }),
    ("a file for a link", "link", |top| {
        fs::remove_file(top.join("link")).unwrap();
        write(&top.join("link"), "a");
    }),
    ("a link for a file", "b", |top| {
        fs::rename(top.join("b"), top.join(".git/b")).unwrap();
        symlink(".git/b", top.join("b")).unwrap();
    }),
    ("a link for a folder", "folder", |top| {
        fs::rename(top.join("folder"), top.join(".git/folder")).unwrap();
        symlink(".git/folder", top.join("folder")).unwrap();
    }),
    ("a folder for a file", "b", |top| {
        fs::remove_file(top.join("b")).unwrap();
        fs::create_dir(top.join("b")).unwrap();
    }),
];

#[tokio::test]
async fn each_change_of_a_checkout_is_found_and_named() {
    let sandbox = Sandbox::new();
    let (mirror, base) = unpacked(&sandbox).await;
    for (number, (name, path, change)) in CHANGES.into_iter().enumerate() {
        let tree = Worktree::create(&mirror, sandbox.path(&format!("w{number}")), &base)
            .await
            .unwrap();
        assert_eq!(not_as_committed(tree.prove().await), None, "{name}");
        change(tree.path());
        assert_eq!(not_as_committed(tree.prove().await).as_deref(), Some(path), "{name}");
    }
}

#[tokio::test]
async fn a_kept_checkout_that_git_takes_for_unchanged_is_found() {
    let sandbox = Sandbox::new();
    let (mirror, base) = unpacked(&sandbox).await;
    for forged in [false, true] {
        let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        let folder = sandbox.path("kept");
        let aside = Worktree::set_aside(&mirror, tree.path(), &base, &folder).await.unwrap();
        if forged {
            // Beside the file, git's own note of it says that it is nobody's business.
            write(&folder.join("files/check.sh"), "exit 0\n");
            let index = folder.join("index");
            let mut skipping = sandbox.program("git", &folder.join("files"));
            skipping.args(["update-index", "--skip-worktree", "check.sh"]);
            skipping.env("GIT_DIR", mirror.path()).env("GIT_INDEX_FILE", &index);
            assert!(
                skipping
                    .env("GIT_WORK_TREE", folder.join("files"))
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let taken = Worktree::reuse(&mirror, &aside, sandbox.path("w2"), &base)
            .await
            .unwrap()
            .unwrap();
        let found = not_as_committed(taken.prove().await);
        assert_eq!(found.as_deref(), forged.then_some("check.sh"));
        Worktree::remove(&mirror, taken.path()).await.unwrap();
    }
}

#[tokio::test]
async fn files_that_git_writes_otherwise_than_it_stores_them_are_proved_as_they_are_written() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository(
        "origin",
        &[
            (
                ".gitattributes",
                "*.txt text eol=crlf\n*.auto text=auto eol=crlf\n*.id ident\n*.wide text working-tree-encoding=UTF-16LE\n",
            ),
            ("plain", "1\r\n2\n"),
            ("a.txt", "1\n2\n"),
            ("folder/b.txt", "1\n"),
            ("a.auto", "1\n2\n"),
            ("a.id", "$Id$\n"),
            ("a.wide", "1\n"),
            ("empty", ""),
        ],
    );
    write(&repository.join("run"), "#!/bin/sh\n");
    fs::set_permissions(repository.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.commit(&repository, "more");
    // As an old import has it: line ends that git would store otherwise by now.
    let odd = sandbox.git_with_input(
        &repository,
        &["hash-object", "-w", "--stdin", "--no-filters"],
        b"1\r\n2\n3\r\n",
    );
    let odd = String::from_utf8(odd).unwrap();
    for name in ["odd.txt", "odd.auto"] {
        let entry = format!("100644,{},{name}", odd.trim());
        sandbox.git(&repository, &["update-index", "--add", "--cacheinfo", &entry]);
    }
    sandbox.git(&repository, &["commit", "--quiet", "-m", "odd"]);
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    assert_eq!(fs::read(tree.path().join("a.txt")).unwrap(), b"1\r\n2\r\n");
    assert_ne!(fs::read(tree.path().join("a.id")).unwrap(), b"$Id$\n");
    assert_eq!(not_as_committed(tree.prove().await), None);
    for (name, content) in [
        ("a.txt", "1\r\n9\r\n"),
        ("folder/b.txt", "9\r\n"),
        ("a.id", "$Id: 9 $\n"),
        ("odd.txt", "1\r\n"),
    ] {
        let right = fs::read(tree.path().join(name)).unwrap();
        write(&tree.path().join(name), content);
        assert_eq!(not_as_committed(tree.prove().await).as_deref(), Some(name));
        write(&tree.path().join(name), right);
    }
    assert_eq!(not_as_committed(tree.prove().await), None);
}

#[tokio::test]
async fn protected_files_are_proved_when_they_are_put_back() {
    let sandbox = Sandbox::new();
    let (mirror, base) = unpacked(&sandbox).await;
    let session = Worktree::create(&mirror, sandbox.path("s"), &base).await.unwrap();
    write(&session.path().join("check.sh"), "exit 0\n");
    write(&session.path().join("a"), "9\n");
    let result = session.commit_result("r").await.unwrap().unwrap().commit;
    let protection = protecting(&["check.sh", "folder/**"]);
    let honest = Worktree::create(&mirror, sandbox.path("w1"), &result).await.unwrap();
    assert_eq!(honest.restore_paths(&base, &protection).await.unwrap(), ["check.sh"]);
    // To git, line ends may be no difference.
    write(&honest.path().join(".gitattributes"), "* text=auto\n");
    write(&honest.path().join("check.sh"), "test \"$(cat a)\" = 1\r\n");
    honest.restore_paths(&base, &protection).await.unwrap();
    let content = fs::read_to_string(honest.path().join("check.sh")).unwrap();
    assert_eq!(content, "test \"$(cat a)\" = 1\n");
    // The check passed; then an object of the base became the result's.
    let wrong = sandbox.git(mirror.path(), &["rev-parse", &format!("{result}:check.sh")]);
    swap(&sandbox, mirror.path(), &format!("{base}:check.sh"), &wrong);
    let forged = Worktree::create(&mirror, sandbox.path("w2"), &result).await.unwrap();
    let restored = forged.restore_paths(&base, &protection).await;
    let found = restored.as_ref().expect_err("it was put back from another object");
    assert!(found.suggests_damage(mirror.path()), "{found:?}");
}

#[tokio::test]
async fn files_of_submodules_are_proved_also_nested_ones() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = send(&sandbox, &source).await;
    let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    tree.give_names(&names).await.unwrap();
    write(&tree.path().join("vendor/part/planted"), "");
    assert_eq!(not_as_committed(tree.prove().await).as_deref(), Some("vendor/part"));
    fs::remove_file(tree.path().join("vendor/part/planted")).unwrap();
    assert_eq!(not_as_committed(tree.prove().await), None);
    tree.fill_submodules(&names).await.unwrap();
    assert_eq!(not_as_committed(tree.prove_submodules(&names).await), None);
    for file in ["vendor/part/p", "vendor/part/deep/d"] {
        let right = fs::read(tree.path().join(file)).unwrap();
        write(&tree.path().join(file), "forged\n");
        assert_eq!(
            not_as_committed(tree.prove_submodules(&names).await).as_deref(),
            Some(file)
        );
        write(&tree.path().join(file), right);
    }
    assert_eq!(not_as_committed(tree.prove_submodules(&names).await), None);
}
