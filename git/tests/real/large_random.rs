//! Random states of a repository with files behind Git LFS and random results, compared with what git makes
//! of the same three trees of pointers: a cherry-pick in another repository. A case needs some 30
//! processes, so one of twenty-five of `PROPTEST_CASES` is run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::Mirror;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::large::{ATTRIBUTES, content, install, land, place, pointer};
use crate::sandbox::{Sandbox, fingerprint, write};

const PATHS: &[&str] = &["a.bin", "d/b.bin", "d/text", "new.bin", "e/other.bin", "text"];

/// Contents by their paths.
type Files = BTreeMap<&'static str, String>;

#[derive(Debug, Clone)]
enum Edit {
    Put(usize, u8),
    Delete(usize),
    Rename(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let path = || 0..PATHS.len();
    prop_oneof![
        3 => (path(), 0..5_u8).prop_map(|(path, what)| Edit::Put(path, what)),
        1 => path().prop_map(Edit::Delete),
        1 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    session: Vec<Edit>,
    mine: Vec<Edit>,
    dirty: Vec<Edit>,
}

fn case() -> impl Strategy<Value = Case> {
    let few = || prop_oneof![2 => Just(Vec::new()), 1 => vec(edit(), 1..3)];
    (vec(edit(), 1..5), few(), few()).prop_map(|(session, mine, dirty)| Case { session, mine, dirty })
}

fn changed(files: &Files, edits: &[Edit]) -> Files {
    let mut files = files.clone();
    for edit in edits {
        match edit {
            Edit::Put(path, what) => drop(files.insert(PATHS[*path], content(&format!("content {what}")))),
            Edit::Delete(path) => drop(files.remove(PATHS[*path])),
            Edit::Rename(from, to) => {
                if let Some(file) = files.remove(PATHS[*from]) {
                    files.insert(PATHS[*to], file);
                }
            }
        }
    }
    files
}

/// Commits the files on a commit. `before`: files that are pointers if they are the same; of none, all are.
fn commit(repository: &Path, files: &Files, parent: Option<&Oid>, before: Option<&Files>) -> Oid {
    let repository = git2::Repository::open(repository).unwrap();
    let mut index = git2::Index::new().unwrap();
    let attributes = (".gitattributes", ATTRIBUTES.to_owned());
    let stored = files.iter().map(|(path, content)| {
        let is_same = before.is_none_or(|before| before.get(path) == Some(content));
        let text = if path.ends_with(".bin") && is_same {
            pointer(content)
        } else {
            content.clone()
        };
        (*path, text)
    });
    for (path, text) in stored.chain([attributes]) {
        let none = git2::IndexTime::new(0, 0);
        let entry = git2::IndexEntry {
            ctime: none,
            mtime: none,
            dev: 0,
            ino: 0,
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            file_size: 0,
            id: repository.blob(text.as_bytes()).unwrap(),
            flags: 0,
            flags_extended: 0,
            path: path.as_bytes().to_vec(),
        };
        index.add(&entry).unwrap();
    }
    let tree = repository.find_tree(index.write_tree_to(&repository).unwrap()).unwrap();
    let who = git2::Signature::new("Ann", "ann@example.com", &git2::Time::new(1_700_000_000, 0)).unwrap();
    let parent = parent.map(|parent| {
        repository
            .find_commit(git2::Oid::from_str(parent.as_str()).unwrap())
            .unwrap()
    });
    let parents: Vec<_> = parent.iter().collect();
    let made = repository.commit(None, &who, &who, "made", &tree, &parents).unwrap();
    made.to_string().parse().unwrap()
}

async fn lands(sandbox: &Sandbox, mirror: &Mirror, judge: &Path, case: &Case) {
    let person: PathBuf = sandbox.path("person");
    if person.exists() {
        fs::remove_dir_all(&person).unwrap();
    }
    git2::Repository::init(&person).unwrap();
    let first: Files = PATHS[..3].iter().map(|path| (*path, content(path))).collect();
    let (theirs, ours) = (changed(&first, &case.session), changed(&first, &case.mine));
    let disk = changed(&ours, &case.dirty);
    let base = commit(&person, &first, None, None);
    let head = if ours == first {
        base.clone()
    } else {
        commit(&person, &ours, Some(&base), None)
    };
    // What a session leaves: contents where it changed something.
    commit(mirror.path(), &first, None, None);
    let result = commit(mirror.path(), &theirs, Some(&base), Some(&first));
    for all in [&first, &ours, &disk] {
        all.values()
            .for_each(|content| write(&place(&person, content), content));
    }
    sandbox.git(&person, &["update-ref", "refs/heads/master", head.as_str()]);
    sandbox.git(&person, &["symbolic-ref", "HEAD", "refs/heads/master"]);
    sandbox.git(&person, &["reset", "-q", "--hard"]);
    for path in ours.keys().filter(|path| !disk.contains_key(*path)) {
        fs::remove_file(person.join(path)).unwrap();
    }
    for (path, content) in disk.iter().filter(|(path, content)| ours.get(*path) != Some(content)) {
        write(&person.join(path), content);
    }
    // The judge has pointers on its disk.
    for (files, parent) in [(&first, None), (&ours, Some(&base)), (&theirs, Some(&base))] {
        commit(judge, files, parent, None);
    }
    let picked = commit(judge, &theirs, Some(&base), None);
    sandbox.git(judge, &["reset", "-q", "--hard", head.as_str()]);
    sandbox.git(judge, &["clean", "-qfdx"]);
    let tree = sandbox.try_git(judge, &["cherry-pick", "-n", picked.as_str()]);
    let tree = tree.is_ok().then(|| sandbox.git(judge, &["write-tree"]));
    let before = fingerprint(&person);
    let landed = land(sandbox, "merge", &person, mirror, &base, &result);
    let Some(tree) = tree else {
        assert!(
            landed.as_ref().is_err_and(|said| said.contains("Conflicts")),
            "{landed:?}"
        );
        assert_eq!(fingerprint(&person), before);
        return;
    };
    if tree == sandbox.git(&person, &["rev-parse", &format!("{head}^{{tree}}")]) {
        assert_eq!(landed.unwrap(), "AlreadyThere");
        return;
    }
    let touched = sandbox.git(judge, &["diff", "--no-renames", "--name-only", head.as_str(), &tree]);
    let is_dirty = |path: &str| ours.get(path) != disk.get(path);
    match landed {
        Ok(landed) => assert!(landed.starts_with("Committed"), "{landed}"),
        Err(said) => {
            assert!(said.contains("Dirty") && touched.lines().any(is_dirty), "{said}");
            assert_eq!(fingerprint(&person), before);
            return;
        }
    }
    assert_eq!(sandbox.git(&person, &["rev-parse", "HEAD^{tree}"]), tree);
    let status = sandbox.git(&person, &["status", "--porcelain", "--untracked-files=all"]);
    let mut left: Vec<&str> = status.lines().map(|line| &line[3..]).collect();
    left.retain(|path| !is_dirty(path));
    assert!(left.is_empty(), "{status}");
    for path in touched.lines().filter(|path| !is_dirty(path) && path.ends_with(".bin")) {
        if let Some(content) = theirs.get(path) {
            assert_eq!(fs::read_to_string(person.join(path)).unwrap(), *content, "{path}");
            assert_eq!(fs::read_to_string(place(&person, content)).unwrap(), *content, "{path}");
        }
    }
}

#[test]
fn what_lands_behind_lfs_is_what_git_makes_of_the_same_pointers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let sandbox = Sandbox::new();
    let judge = sandbox.repository("judge", &[("x", "x\n")]);
    install(&sandbox, &["clean", "smudge", "process"]);
    // It merges pointers.
    sandbox.git(&judge, &["config", "filter.lfs.process", ""]);
    sandbox.git(&judge, &["config", "filter.lfs.required", "false"]);
    let mirror = runtime.block_on(Mirror::open_or_init(sandbox.path("m.git"))).unwrap();
    let config = Config::default();
    let (cases, failure_persistence) = ((config.cases / 25).max(1), None);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence,
        ..config
    });
    runner
        .run(&case(), |case| {
            runtime.block_on(lands(&sandbox, &mirror, &judge, &case));
            Ok(())
        })
        .unwrap();
}
