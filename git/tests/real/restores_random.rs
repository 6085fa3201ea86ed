//! Random trees, changes and restores, compared with full copies of the folder: no byte is lost,
//! and only differences are touched. `PROPTEST_CASES` sets their number.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::restore::{Foreign, RestoreError, RestoreOptions};
use kage_git::{Mirror, Worktree};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::sandbox::{Sandbox, copy_folder, fingerprint, write};

/// The names in a tree; sometimes one is ignored, and some are not UTF-8.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"sub",
    b"x.log",
    b"latin-\xe9",
    b"new\nline",
    b"node_modules",
    b"-rf",
];

const IGNORES: &[&str] = &[
    "",
    "*.log\n",
    "node_modules/\n",
    "*.log\nnode_modules\n!sub/x.log\n",
    "sub\n",
];

#[derive(Debug, Clone)]
enum Change {
    Write(PathBuf, u8, bool),
    Link(PathBuf, PathBuf),
    Delete(PathBuf),
    Move(PathBuf, PathBuf),
    Ignore(usize),
    NestedRepository(PathBuf),
    SameSize(PathBuf),
}

#[derive(Debug, Clone)]
enum Action {
    Edit(Vec<Change>),
    Checkpoint,
    Restore {
        to: usize,
        save: bool,
        stop_before: Option<u64>,
    },
}

fn path() -> impl Strategy<Value = PathBuf> {
    vec(0..NAMES.len(), 1..4).prop_map(|names| names.into_iter().map(|n| OsStr::from_bytes(NAMES[n])).collect())
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (path(), any::<u8>(), any::<bool>()).prop_map(|(path, byte, exec)| Change::Write(path, byte, exec)),
        1 => (path(), path()).prop_map(|(path, to)| Change::Link(path, to)),
        3 => path().prop_map(Change::Delete),
        2 => (path(), path()).prop_map(|(from, to)| Change::Move(from, to)),
        1 => (0..IGNORES.len()).prop_map(Change::Ignore),
        1 => path().prop_map(Change::NestedRepository),
        2 => path().prop_map(Change::SameSize),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => vec(change(), 1..8).prop_map(Action::Edit),
        2 => Just(Action::Checkpoint),
        3 => (any::<usize>(), any::<bool>(), proptest::option::weighted(0.3, 0..40_u64))
            .prop_map(|(to, save, stop_before)| Action::Restore { to, save, stop_before }),
    ]
}

fn apply(top: &Path, change: &Change) {
    let clear = |path: &Path| {
        let full = top.join(path);
        // Something that is not a folder may be above it.
        match fs::symlink_metadata(&full) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&full).unwrap(),
            Ok(_) => fs::remove_file(&full).unwrap(),
            Err(_) => {}
        }
        let mut above = PathBuf::new();
        for name in path.parent().into_iter().flatten() {
            above.push(name);
            let full = top.join(&above);
            if fs::symlink_metadata(&full).is_ok_and(|meta| !meta.is_dir()) {
                fs::remove_file(&full).unwrap();
            }
        }
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        full
    };
    match change {
        Change::Write(path, byte, executable) => {
            let full = clear(path);
            let content: Vec<u8> = match byte % 4 {
                0 => Vec::new(),
                1 => b"crlf\r\n".repeat(usize::from(*byte)),
                2 => vec![*byte; 70_000],
                _ => format!("{byte}\n").into_bytes(),
            };
            fs::write(&full, content).unwrap();
            let mode = if *executable { 0o755 } else { 0o644 };
            fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
        }
        Change::Link(path, to) => symlink(to, clear(path)).unwrap(),
        Change::Delete(path) => drop(clear(path)),
        Change::Move(from, to) => {
            if !to.starts_with(from) && !from.starts_with(to) && is_inside(top, from) {
                let moved = top.join("moved-meanwhile");
                fs::rename(top.join(from), &moved).unwrap();
                fs::rename(&moved, clear(to)).unwrap();
            }
        }
        Change::Ignore(number) => fs::write(top.join(".gitignore"), IGNORES[*number]).unwrap(),
        Change::NestedRepository(path) => {
            let full = clear(path);
            for file in [".git/HEAD", ".git/objects/x", "inside", "x.log"] {
                write(&full.join(file), "ref: refs/heads/main\n");
            }
        }
        Change::SameSize(path) => {
            if is_inside(top, path)
                && let Ok(mut bytes) = fs::read(top.join(path))
                && let Some(first) = bytes.first_mut()
            {
                *first = first.wrapping_add(1);
                fs::write(top.join(path), bytes).unwrap();
            }
        }
    }
}

/// Whether something is there and no link leads to it.
fn is_inside(top: &Path, path: &Path) -> bool {
    let folders = path.ancestors().skip(1).filter(|above| *above != Path::new(""));
    fs::symlink_metadata(top.join(path)).is_ok()
        && folders
            .into_iter()
            .all(|above| fs::symlink_metadata(top.join(above)).is_ok_and(|meta| meta.is_dir()))
}

/// A full copy: every file and link with its content and whether it may be executed.
type Copy = BTreeMap<PathBuf, (bool, Vec<u8>)>;

fn copy(top: &Path) -> Copy {
    let mut copy = Copy::new();
    for (path, mode, content) in fingerprint(top) {
        let relative = path.strip_prefix(top).unwrap().to_owned();
        if mode & 0o170_000 != 0o040_000 && !relative.starts_with(".git") {
            copy.insert(relative, (mode & 0o170_111 == 0o100_111, content));
        }
    }
    copy
}

/// The content of a commit, by git itself.
fn stored(sandbox: &Sandbox, mirror: &Mirror, commit: &Oid) -> Copy {
    let list = sandbox.git_with_input(mirror.path(), &["ls-tree", "-r", "-z", commit.as_str()], b"");
    let mut entries = Vec::new();
    let mut wanted = String::new();
    for line in list.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let tab = line.iter().position(|byte| *byte == b'\t').unwrap();
        let words = std::str::from_utf8(&line[..tab]).unwrap();
        wanted.push_str(&words[12..]);
        wanted.push('\n');
        let path = PathBuf::from(OsStr::from_bytes(&line[tab + 1..]));
        entries.push((path, words.starts_with("100755")));
    }
    let contents = sandbox.git_with_input(mirror.path(), &["cat-file", "--batch=%(objectsize)"], wanted.as_bytes());
    let mut rest = contents.as_slice();
    let mut copy = Copy::new();
    for (path, executable) in entries {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
        let size: usize = std::str::from_utf8(&rest[..end]).unwrap().parse().unwrap();
        copy.insert(path, (executable, rest[end + 1..][..size].to_vec()));
        // A line feed comes after each.
        rest = &rest[end + size + 2..];
    }
    copy
}

struct Taken {
    commit: Oid,
    content: Copy,
}

struct World {
    sandbox: Sandbox,
    mirror: Mirror,
    worktree: Worktree,
    taken: Vec<Taken>,
}

impl World {
    async fn new(template: &Path, start: &[Change]) -> Self {
        let sandbox = Sandbox::new();
        let source = sandbox.path("source");
        copy_folder(template, &source);
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        for change in start {
            apply(worktree.path(), change);
        }
        let mut world = Self {
            sandbox,
            mirror,
            worktree,
            taken: Vec::new(),
        };
        world.checkpoint(base).await.unwrap();
        world
    }

    fn top(&self) -> &Path {
        self.worktree.path()
    }

    async fn checkpoint(&mut self, parent: Oid) -> Result<(), TestCaseError> {
        let before = copy(self.top());
        let checkpoint = self.worktree.checkpoint(&parent, "c").await.unwrap();
        prop_assert_eq!(copy(self.top()), before.clone(), "a checkpoint changes nothing");
        let content = stored(&self.sandbox, &self.mirror, &checkpoint.commit);
        for (path, file) in &content {
            prop_assert_eq!(before.get(path), Some(file), "{}", path.display());
        }
        self.taken.push(Taken {
            commit: checkpoint.commit,
            content,
        });
        Ok(())
    }

    async fn restore(&mut self, to: usize, save: bool, stop_before: Option<u64>) -> Result<(), TestCaseError> {
        let index = to % self.taken.len();
        let target = self.taken[index].commit.clone();
        let wanted = self.taken[index].content.clone();
        let before = copy(self.top());
        let options = RestoreOptions {
            foreign: if save { Foreign::Save } else { Foreign::Refuse },
            stop_before,
            ..RestoreOptions::default()
        };
        let plan = self.worktree.plan_restore(&target, &options).await.unwrap();
        prop_assert_eq!(copy(self.top()), before.clone(), "a plan changes nothing");
        let restored = match self.worktree.restore(&target, &options).await {
            Ok(restored) => restored,
            Err(RestoreError::Foreign { paths }) => {
                prop_assert_eq!(&paths, &plan.foreign);
                prop_assert!(!save && !paths.is_empty());
                prop_assert_eq!(copy(self.top()), before, "a refusal changes nothing");
                return Ok(());
            }
            Err(error) => {
                prop_assert!(stop_before.is_some(), "{error:?}");
                self.worktree = Worktree::open(&self.mirror, self.top(), self.worktree.base())
                    .await
                    .unwrap();
                match self.worktree.finish_restore().await.unwrap() {
                    Some(restored) => restored,
                    None => {
                        prop_assert_eq!(copy(self.top()), before, "nothing had begun");
                        return Ok(());
                    }
                }
            }
        };
        prop_assert!(save || plan.foreign.is_empty());
        prop_assert_eq!(&restored.paths, &plan.paths);
        let after = copy(self.top());
        let safety = stored(&self.sandbox, &self.mirror, &restored.safety);
        for (path, file) in &wanted {
            prop_assert_eq!(after.get(path), Some(file), "{} is restored", path.display());
        }
        for (path, file) in &before {
            let stays = after.get(path) == Some(file);
            let saved = safety.get(path) == Some(file);
            let aside = restored.aside.iter().any(|(moved, now_at)| {
                path.strip_prefix(moved).is_ok_and(|rest| {
                    let there = if rest == Path::new("") {
                        now_at.clone()
                    } else {
                        now_at.join(rest)
                    };
                    fs::symlink_metadata(&there).is_ok()
                        && (there.is_symlink() || fs::read(there).is_ok_and(|bytes| bytes == file.1))
                })
            });
            prop_assert!(stays || saved || aside, "{} is lost", path.display());
            let planned = plan.paths.iter().any(|it| path.starts_with(&it.path));
            prop_assert!(stays || planned, "{} was not on the list", path.display());
        }
        for path in after.keys() {
            prop_assert!(
                before.contains_key(path) || wanted.contains_key(path),
                "{} is new",
                path.display()
            );
        }
        self.taken.push(Taken {
            commit: restored.safety,
            content: safety,
        });
        Ok(())
    }
}

/// A person's data: staged, stashed, committed and other work, and settings.
fn persons_repository(sandbox: &Sandbox) -> PathBuf {
    let source = sandbox.repository("template", &[("a", "a\n"), ("sub/a", "a\n")]);
    sandbox.git(&source, &["branch", "other"]);
    sandbox.git(&source, &["config", "user.name", "Ann"]);
    write(&source.join("a"), "stashed\n");
    sandbox.git(&source, &["stash", "-q"]);
    write(&source.join("a"), "staged\n");
    sandbox.git(&source, &["add", "a"]);
    write(&source.join("a"), "on the disk\n");
    write(&source.join("untracked"), "u\n");
    source
}

/// `PROPTEST_CASES` is what `scripts/test` says: 300 in CI. A long run has time for 5,000.
fn config() -> Config {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse::<u32>().ok());
    Config {
        cases: asked.unwrap_or(60).min(5000),
        max_shrink_iters: 200,
        ..Config::default()
    }
}

#[test]
fn no_byte_is_lost() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let template = Sandbox::new();
    let source = persons_repository(&template);
    let strategy = (vec(change(), 0..12), vec(action(), 1..8));
    let mut runner = TestRunner::new(config());
    let done = runner.run(&strategy, |(start, actions)| {
        runtime.block_on(async {
            let mut world = World::new(&source, &start).await;
            let persons = fingerprint(&world.sandbox.path("source"));
            let mirror_config = fs::read(world.mirror.path().join("config")).unwrap();
            let own = fingerprint(&world.top().join(".git"));
            for action in &actions {
                match action {
                    Action::Edit(changes) => changes.iter().for_each(|change| apply(world.top(), change)),
                    Action::Checkpoint => {
                        let parent = world.taken[world.taken.len() - 1].commit.clone();
                        world.checkpoint(parent).await?;
                    }
                    Action::Restore { to, save, stop_before } => world.restore(*to, *save, *stop_before).await?,
                }
            }
            let own_now = fingerprint(&world.top().join(".git"));
            prop_assert_eq!(own_now, own, "the session's repository is untouched");
            // HEAD, references, index, stash, settings and files.
            let persons_now = fingerprint(&world.sandbox.path("source"));
            prop_assert_eq!(persons_now, persons, "the person's repository is untouched");
            prop_assert_eq!(fs::read(world.mirror.path().join("config")).unwrap(), mirror_config);
            let fsck = ["fsck", "--strict", "--no-dangling"];
            world.sandbox.git(world.mirror.path(), &fsck);
            Ok(())
        })
    });
    if let Err(error) = done {
        panic!("{error}");
    }
}
