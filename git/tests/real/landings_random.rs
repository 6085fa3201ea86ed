//! Random states of a person's repository and random results, compared with git itself: a
//! cherry-pick of the result, which merges the same three trees, in another repository. If that is
//! clean and no uncommitted work is in the way, exactly its tree is landed, in commits of HEAD and
//! ours only, and what was staged stays staged. Otherwise nothing changes, and the paths are named.
//! What git itself would land in the person's folder is refused only where that would lose something, and
//! seldom: where it would write a file again that the person removed, and where it would write over a file
//! that it is told to ignore or, with a sparse checkout, over a new one. The repository has any shape that
//! people's have.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use git2::{Repository, Signature, Time};
use kage_core::id::Oid;
use kage_git::landing::{
    LandingError, LandingMessage, MergeEnd, Merged, Obstacle, Strategy as Landing, plan_apply, plan_merge,
};
use kage_git::{Mirror, UserRepo};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::sandbox::{Sandbox, fingerprint, message, write};

mod edits;

use edits::{Edit, File, Files, MODULE, PATHS, bytes, changed, edit, start};

/// What happened to the person's uncommitted work after the task began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Kept,
    Committed,
    Gone,
}

/// What kind of repository the person has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Plain,
    /// Its index is in two files.
    Split,
    /// Some files are not on the disk.
    Sparse,
    /// Its history is cut off.
    Shallow,
    /// A working tree that `git worktree add` made.
    Linked,
    /// It has a submodule, which is not checked out.
    Module,
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        3 => Just(Shape::Plain),
        1 => Just(Shape::Split),
        1 => Just(Shape::Sparse),
        1 => Just(Shape::Shallow),
        1 => Just(Shape::Linked),
        1 => Just(Shape::Module),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    shape: Shape,
    uncommitted: Vec<Edit>,
    session: Vec<Edit>,
    since: Since,
    /// Commits after the base.
    mine: Vec<Edit>,
    /// The base's last commit is replaced by them.
    amended: bool,
    /// Uncommitted work when it lands.
    dirty: Vec<Edit>,
    /// Paths of which the index has what is on the disk.
    staged: Vec<usize>,
    /// Paths that git is told to ignore.
    ignored: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let since = prop_oneof![Just(Since::Kept), Just(Since::Committed), Just(Since::Gone)];
    let few = |most| prop_oneof![Just(Vec::new()), vec(edit(), 0..most)];
    let paths = || vec(0..PATHS.len(), 0..3);
    let of_session = vec(edit(), 0..5);
    (
        shape(),
        few(4),
        of_session,
        since,
        few(4),
        any::<bool>(),
        few(3),
        paths(),
        paths(),
    )
        .prop_map(
            |(shape, mut uncommitted, session, since, mine, amended, mut dirty, staged, ignored)| {
                uncommitted.retain(Edit::is_of_disk);
                dirty.retain(Edit::is_of_disk);
                Case {
                    shape,
                    uncommitted,
                    session,
                    since,
                    mine,
                    amended,
                    dirty,
                    staged,
                    ignored,
                }
            },
        )
}

/// A repository of the person's, the mirror with the result, and the judge.
struct World {
    sandbox: Sandbox,
    person: PathBuf,
    judge: PathBuf,
    mirror: Mirror,
    /// Where git itself would land it, and Kage does not.
    refused: Cell<u32>,
}

/// The commits of one case, and the files on the disk.
struct Scene {
    base: Oid,
    result: Oid,
    head: Oid,
    head_files: Files,
    disk: Files,
}

impl World {
    async fn new() -> Self {
        let sandbox = Sandbox::new();
        let mirror = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
        let judge = sandbox.repository("judge", &[("x", "x\n")]);
        let person = sandbox.path("person");
        Self {
            sandbox,
            person,
            judge,
            mirror,
            refused: Cell::new(0),
        }
    }

    /// The repository that has the person's branches and objects.
    fn home(&self, shape: Shape) -> PathBuf {
        match shape {
            Shape::Linked => self.sandbox.path("home-of-it"),
            _ => self.person.clone(),
        }
    }

    /// Every file of the person's.
    fn prints(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let home = self.sandbox.path("home-of-it");
        let mut all = fingerprint(&self.person);
        if home.exists() {
            all.extend(fingerprint(&home));
        }
        all
    }

    fn commit(&self, repository: &Path, files: &Files, parents: &[&Oid]) -> Oid {
        let repository = Repository::open(repository).unwrap();
        let mut index = git2::Index::new().unwrap();
        for (path, file) in files {
            let id = match file {
                File::Module(number) => git2::Oid::from_str(&format!("{number:040x}")).unwrap(),
                File::Text(..) | File::Link(_) => repository.blob(&bytes(file)).unwrap(),
            };
            let mode = match file {
                File::Text(_, false) => 0o100_644,
                File::Text(_, true) => 0o100_755,
                File::Link(_) => 0o120_000,
                File::Module(_) => 0o160_000,
            };
            let none = git2::IndexTime::new(0, 0);
            let entry = git2::IndexEntry {
                ctime: none,
                mtime: none,
                dev: 0,
                ino: 0,
                mode,
                uid: 0,
                gid: 0,
                file_size: 0,
                id,
                flags: 0,
                flags_extended: 0,
                path: path.clone().into_bytes(),
            };
            index.add(&entry).unwrap();
        }
        let tree = repository.find_tree(index.write_tree_to(&repository).unwrap()).unwrap();
        let parents: Vec<_> = parents
            .iter()
            .map(|id| {
                repository
                    .find_commit(git2::Oid::from_str(id.as_str()).unwrap())
                    .unwrap()
            })
            .collect();
        let who = Signature::new("Ann", "ann@example.com", &Time::new(1_700_000_000, 0)).unwrap();
        let parents: Vec<_> = parents.iter().collect();
        let made = repository.commit(None, &who, &who, "made", &tree, &parents).unwrap();
        made.to_string().parse().unwrap()
    }

    fn stage(&self, case: &Case) -> Scene {
        for folder in [self.person.clone(), self.sandbox.path("home-of-it")] {
            if folder.exists() {
                fs::remove_dir_all(&folder).unwrap();
            }
        }
        let home = self.home(case.shape);
        let repository = Repository::init(&home).unwrap();
        let (person, mirror) = (self.person.as_path(), self.mirror.path());
        let first = start(case.shape == Shape::Module);
        let began = [home.as_path(), mirror].map(|place| {
            let older = self.commit(place, &Files::new(), &[]);
            self.commit(place, &first, &[&older])
        });
        let [began, _] = began;
        if case.shape == Shape::Shallow {
            write(&home.join(".git/shallow"), format!("{began}\n"));
        }
        let base_files = changed(&first, &case.uncommitted);
        let base = if base_files == first {
            began.clone()
        } else {
            self.commit(mirror, &base_files, &[&began])
        };
        let result = self.commit(mirror, &changed(&base_files, &case.session), &[&base]);
        let ground = if case.since == Since::Committed {
            &base_files
        } else {
            &first
        };
        let head_files = changed(ground, &case.mine);
        let head = match (head_files == first, case.amended) {
            (true, false) => began,
            (_, true) => self.commit(&home, &head_files, &[]),
            (false, false) => self.commit(&home, &head_files, &[&began]),
        };
        let id = git2::Oid::from_str(head.as_str()).unwrap();
        repository.reference("refs/heads/master", id, true, "made").unwrap();
        if case.shape == Shape::Linked {
            repository.set_head("refs/heads/elsewhere").unwrap();
            let add = [
                "worktree",
                "add",
                "-q",
                "--no-checkout",
                person.to_str().unwrap(),
                "master",
            ];
            self.sandbox.git(&home, &add);
        } else {
            repository.set_head("refs/heads/master").unwrap();
        }
        let repository = Repository::open(person).unwrap();
        let mut force = git2::build::CheckoutBuilder::new();
        repository.checkout_head(Some(force.force())).unwrap();
        if case.shape == Shape::Sparse {
            let set = ["sparse-checkout", "set", "--no-cone", "/*", "!/s/"];
            self.sandbox.git(person, &set);
        }
        let kept = if case.since == Since::Kept {
            case.uncommitted.as_slice()
        } else {
            &[]
        };
        let disk = changed(&changed(&head_files, kept), &case.dirty);
        for path in head_files.keys().filter(|path| !disk.contains_key(*path)) {
            fs::remove_file(person.join(path)).unwrap();
            let mut folder = person.join(path);
            while folder.pop() && folder != person && fs::remove_dir(&folder).is_ok() {}
        }
        for (path, file) in disk.iter().filter(|(path, file)| head_files.get(*path) != Some(file)) {
            let full = person.join(path);
            fs::remove_file(&full).ok();
            match file {
                File::Text(_, executable) => {
                    write(&full, bytes(file));
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
                }
                File::Link(to) => {
                    fs::create_dir_all(full.parent().unwrap()).unwrap();
                    symlink(to, &full).unwrap();
                }
                File::Module(_) => unreachable!("it has no content"),
            }
        }
        let ignored: String = case.ignored.iter().map(|path| format!("/{}\n", PATHS[*path])).collect();
        write(&home.join(".git/info/exclude"), ignored);
        for path in &case.staged {
            // A path that is nowhere is refused.
            self.sandbox
                .try_git(person, &["add", "-A", "-f", "--", PATHS[*path]])
                .ok();
        }
        if case.shape == Shape::Split {
            self.sandbox.git(person, &["update-index", "--split-index"]);
        }
        Scene {
            base,
            result,
            head,
            head_files,
            disk,
        }
    }

    /// The tree that git makes of the result on top of these files; `None` = it conflicts.
    fn judged(&self, shape: Shape, scene: &Scene, ours: &Files) -> Option<String> {
        let store = self.judge.join(".git/objects/info/alternates");
        let stores = [
            self.mirror.path().join("objects"),
            self.home(shape).join(".git/objects"),
        ];
        let text: String = stores.iter().map(|it| format!("{}\n", it.display())).collect();
        fs::write(store, text).unwrap();
        let ours = self.commit(&self.judge, ours, &[]);
        self.sandbox.git(&self.judge, &["reset", "-q", "--hard", ours.as_str()]);
        self.sandbox.git(&self.judge, &["clean", "-qfdx"]);
        let picked = self
            .sandbox
            .try_git(&self.judge, &["cherry-pick", "-n", scene.result.as_str()]);
        picked.is_ok().then(|| self.sandbox.git(&self.judge, &["write-tree"]))
    }

    /// Whether git itself goes from HEAD to this tree in the person's folder, as it is.
    fn git_would(&self, tree: &str) -> bool {
        let copy = self.sandbox.path("copy");
        if copy.exists() {
            fs::remove_dir_all(&copy).unwrap();
        }
        let copied = Command::new("cp")
            .arg("-a")
            .args([&self.person, &copy])
            .status()
            .unwrap();
        assert!(copied.success());
        let store = copy.join(".git/objects/info/alternates");
        fs::copy(self.judge.join(".git/objects/info/alternates"), &store).unwrap();
        let objects = self.judge.join(".git/objects");
        let text = fs::read_to_string(&store).unwrap() + &format!("{}\n", objects.display());
        fs::write(&store, text).unwrap();
        self.sandbox.try_git(&copy, &["update-index", "-q", "--refresh"]).ok();
        self.sandbox
            .try_git(&copy, &["read-tree", "-m", "-u", "HEAD", tree])
            .is_ok()
    }

    /// The files of a tree of the judge.
    fn files(&self, tree: &str) -> BTreeMap<String, (String, String)> {
        let listed = self.sandbox.git(&self.judge, &["ls-tree", "-r", "-z", tree]);
        let lines = listed.split('\0').filter(|line| !line.is_empty());
        let entry = |line: &str| {
            let (what, path) = line.split_once('\t').unwrap();
            let fields: Vec<&str> = what.split(' ').collect();
            (path.to_owned(), (fields[0].to_owned(), fields[2].to_owned()))
        };
        lines.map(entry).collect()
    }

    /// The files of the person's index.
    fn index(&self) -> BTreeMap<String, (String, String)> {
        let listed = self.sandbox.git(&self.person, &["ls-files", "--stage", "-z"]);
        let lines = listed.split('\0').filter(|line| !line.is_empty());
        let entry = |line: &str| {
            let (what, path) = line.split_once('\t').unwrap();
            let fields: Vec<&str> = what.split(' ').collect();
            (path.to_owned(), (fields[0].to_owned(), fields[1].to_owned()))
        };
        lines.map(entry).collect()
    }

    /// The disk's content, as git would store it.
    fn disk(&self) -> BTreeMap<String, (String, String)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.person.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let full = entry.unwrap().path();
                let meta = fs::symlink_metadata(&full).unwrap();
                // It is a file in a working tree that is linked.
                if full.ends_with(".git") {
                    continue;
                }
                if meta.is_dir() {
                    folders.push(full);
                    continue;
                }
                let (mode, content) = if meta.is_symlink() {
                    let to = fs::read_link(&full).unwrap();
                    ("120000", to.to_str().unwrap().as_bytes().to_vec())
                } else if meta.permissions().mode() & 0o100 != 0 {
                    ("100755", fs::read(&full).unwrap())
                } else {
                    ("100644", fs::read(&full).unwrap())
                };
                let id = git2::Oid::hash_object(git2::ObjectType::Blob, &content).unwrap();
                let path = full.strip_prefix(&self.person).unwrap().to_str().unwrap().to_owned();
                found.insert(path, (mode.to_owned(), id.to_string()));
            }
        }
        found
    }

    async fn merges(&self, case: &Case) {
        let scene = self.stage(case);
        let judged = self.judged(case.shape, &scene, &scene.head_files);
        let before = (self.prints(), self.disk());
        let repository = UserRepo::discover(&self.person).await.unwrap();
        let message = message();
        let (base, result) = (&scene.base, &scene.result);
        let planned = plan_merge(&repository, &self.mirror, base, result, Landing::Auto, &message).await;
        let ours = self.sandbox.git(&self.person, &["rev-parse", "HEAD^{tree}"]);
        let Some(tree) = judged else {
            assert!(matches!(planned, Err(LandingError::Conflicts { .. })), "{planned:?}");
            assert_eq!(self.prints(), before.0);
            return;
        };
        if tree == ours {
            assert_eq!(planned.unwrap().end(), MergeEnd::AlreadyThere);
            return;
        }
        let (old, new) = (self.files(&ours), self.files(&tree));
        let paths = old.keys().chain(new.keys());
        let touched: Vec<&String> = paths.filter(|path| old.get(*path) != new.get(*path)).collect();
        let is_dirty = |path: &str| scene.head_files.get(path) != scene.disk.get(path);
        // git leaves alone what was staged as it is going to be, whatever the disk has.
        let index = self.index();
        let is_staged = |path: &String| {
            let staged = index.get(path);
            staged.is_some() && staged == new.get(path) && staged != old.get(path)
        };
        let in_the_way: Vec<&&String> = touched
            .iter()
            .filter(|path| is_dirty(path) && before.1.get(**path) != new.get(**path) && !is_staged(path))
            .collect();
        let dirty: Vec<&String> = scene
            .head_files
            .keys()
            .chain(scene.disk.keys())
            .filter(|it| is_dirty(it))
            .collect();
        let beside = |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        let near = touched
            .iter()
            .any(|path| dirty.iter().any(|other| beside(path, other) || beside(other, path)));
        let staged = || {
            self.sandbox.git(
                &self.person,
                &["diff", "--cached", "--no-renames", "--raw", "--abbrev=40"],
            )
        };
        let staged_before = staged();
        let in_the_index = touched
            .iter()
            .any(|path| staged_before.lines().any(|line| line.ends_with(path.as_str())));
        let plan = match planned {
            Err(LandingError::Dirty { paths, fits_back }) => {
                assert!(near || in_the_index || !in_the_way.is_empty(), "{paths:?}");
                let named: Vec<&str> = paths.iter().map(|it| it.path.as_str()).collect();
                assert!(
                    in_the_way.iter().all(|path| named.contains(&path.as_str())),
                    "{named:?} {in_the_way:?}"
                );
                assert_eq!(self.prints(), before.0);
                // A copy of a working tree that is linked would be the same one.
                let git_would = case.shape != Shape::Linked && self.git_would(&tree);
                // git would write files again that the person removed without telling it, and write over
                // files that it is told to ignore and, with a sparse checkout, over new files.
                let removed = |path: &str| scene.head_files.contains_key(path) && !scene.disk.contains_key(path);
                let ignored = |path: &str| {
                    let of = |it: &usize| PATHS[*it] == path || beside(path, PATHS[*it]) || beside(PATHS[*it], path);
                    !scene.head_files.contains_key(path) && case.ignored.iter().any(of)
                };
                let new = |path: &str| case.shape == Shape::Sparse && !scene.head_files.contains_key(path);
                assert!(
                    named.iter().any(|path| removed(path) || ignored(path) || new(path)) || !git_would,
                    "git lands it: {named:?}"
                );
                self.refused.set(self.refused.get() + u32::from(git_would));
                if fits_back {
                    self.put_aside(&scene, &named, &message).await;
                }
                return;
            }
            other => other.unwrap(),
        };
        assert!(in_the_way.is_empty(), "{in_the_way:?} would be lost");
        if near && plan.paths().len() < touched.len() {
            return;
        }
        let executed = plan.execute().await;
        if near && executed.is_err() {
            return;
        }
        let Merged::Committed(commit) = executed.unwrap() else {
            panic!("it is clean");
        };
        assert_eq!(self.sandbox.git(&self.person, &["rev-parse", "HEAD^{tree}"]), tree);
        let log = |args: &[&str]| self.sandbox.git(&self.person, &[&["rev-list"], args].concat());
        let ours: Vec<String> = log(&["HEAD", &format!("^{}", scene.head)])
            .lines()
            .map(str::to_owned)
            .collect();
        let parents = self.sandbox.git(&self.person, &["log", "-1", "--format=%P"]);
        match ours.as_slice() {
            [one] => assert_eq!((one.as_str(), parents.as_str()), (commit.as_str(), scene.head.as_str())),
            [one, change] => {
                assert_eq!(
                    (one.as_str(), parents),
                    (commit.as_str(), format!("{} {change}", scene.head))
                );
                let of_change = self.sandbox.git(&self.person, &["log", "-1", "--format=%P", change]);
                assert_eq!(of_change, scene.base.as_str());
            }
            more => panic!("{more:?}"),
        }
        let left = staged();
        for line in staged_before.lines() {
            let lands = touched.iter().any(|path| line.ends_with(path.as_str()));
            assert!(
                lands || left.lines().any(|it| it == line),
                "{line} is no longer staged: {left}"
            );
        }
        let after = self.disk();
        for path in dirty {
            assert_eq!(after.get(path), before.1.get(path), "{path}");
        }
        for path in touched {
            let is_apart = case.shape == Shape::Sparse && path.starts_with("s/");
            let expected = match is_staged(path) {
                true => before.1.get(path),
                false => new.get(path).filter(|(kind, _)| !is_apart && kind != "160000"),
            };
            assert_eq!(after.get(path), expected, "{path}");
        }
        let objects = self
            .sandbox
            .git(&self.person, &["cat-file", "--batch-all-objects", "--batch-check"]);
        if scene.base != scene.head && !log(&["HEAD"]).contains(scene.base.as_str()) {
            assert!(!objects.contains(scene.result.as_str()));
            let uncommitted = case.since != Since::Committed && !case.amended;
            assert!(!uncommitted || !objects.contains(scene.base.as_str()));
        }
        self.sandbox.git(&self.person, &["fsck", "--strict"]);
    }

    async fn applies(&self, case: &Case) {
        let scene = self.stage(case);
        let judged = self.judged(case.shape, &scene, &scene.disk);
        let before = self.prints();
        let repository = UserRepo::discover(&self.person).await.unwrap();
        let planned = plan_apply(&repository, &self.mirror, &scene.base, &scene.result).await;
        // Whether git takes the change of a submodule or not.
        if let Err(LandingError::Unsupported { paths }) = &planned {
            assert_eq!(self.prints(), before);
            if judged.is_some() {
                self.by_git(case, &scene, paths);
            }
            return;
        }
        let Some(tree) = judged else {
            let Err(LandingError::Conflicts { conflicts }) = planned else {
                panic!("{planned:?}");
            };
            assert!(!conflicts.is_empty());
            assert_eq!(self.prints(), before);
            return;
        };
        let git_dir = fingerprint(&self.home(case.shape).join(".git"));
        planned.unwrap().execute().await.unwrap();
        let mut expected = self.files(&tree);
        expected.retain(|_, (kind, _)| kind != "160000");
        if case.shape == Shape::Sparse {
            // What is not on the disk and does not change stays so.
            let ours = self.commit(&self.judge, &scene.disk, &[]);
            let ours = self.files(ours.as_str());
            expected.retain(|path, file| !path.starts_with("s/") || ours.get(path) != Some(file));
        }
        assert_eq!(self.disk(), expected);
        assert_eq!(fingerprint(&self.home(case.shape).join(".git")), git_dir);
    }

    /// Files alone do not change a submodule, so `apply` leaves a result that does to git: the command
    /// that it names brings it in.
    fn by_git(&self, case: &Case, scene: &Scene, paths: &[Obstacle]) {
        assert!(paths.iter().all(|it| it.path == MODULE), "{paths:?}");
        if scene.disk != scene.head_files || !case.staged.is_empty() {
            return;
        }
        let (base, result) = (scene.base.as_str(), scene.result.as_str());
        let change = self
            .sandbox
            .git(&self.judge, &["diff", "--binary", "--full-index", base, result]);
        let apply = ["apply", "--3way", "--whitespace=nowarn"];
        self.sandbox
            .git_with_input(&self.person, &apply, format!("{change}\n").as_bytes());
    }

    /// Uncommitted work in the way is put aside meanwhile, and goes back on top.
    async fn put_aside(&self, scene: &Scene, named: &[&str], message: &LandingMessage) {
        let literal = ["--literal-pathspecs", "stash", "push", "-q", "--"];
        self.sandbox.git(&self.person, &[&literal[..], named].concat());
        let repository = UserRepo::discover(&self.person).await.unwrap();
        let (base, result) = (&scene.base, &scene.result);
        let plan = plan_merge(&repository, &self.mirror, base, result, Landing::Auto, message).await;
        let merged = plan.unwrap().execute().await.unwrap();
        assert!(matches!(merged, Merged::Committed(_)), "{merged:?}");
        self.sandbox.git(&self.person, &["stash", "pop", "-q"]);
    }
}

/// Cases in which Kage and git once differed.
fn found_before() -> [Case; 2] {
    let plain = || Case {
        shape: Shape::Plain,
        uncommitted: Vec::new(),
        session: Vec::new(),
        since: Since::Kept,
        mine: Vec::new(),
        amended: false,
        dirty: Vec::new(),
        staged: Vec::new(),
        ignored: Vec::new(),
    };
    [
        // The person committed a link, and renamed its folder; the session deleted it.
        Case {
            uncommitted: vec![Edit::Link(2)],
            session: vec![Edit::Rename(0, 2), Edit::Rename(2, 0)],
            since: Since::Committed,
            mine: vec![Edit::RenameFolder],
            ..plain()
        },
        // A stash of one path has what is staged for another, which does not fit back.
        Case {
            session: vec![Edit::RenameFolder],
            dirty: vec![Edit::Rename(4, 2)],
            staged: vec![4],
            ..plain()
        },
    ]
}

#[test]
fn what_lands_is_what_git_makes_of_the_same_three_trees() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let world = runtime.block_on(World::new());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let cases = config.cases;
    // The long tier looks for new cases; everywhere else they are the same ones each time.
    let mut runner = if std::env::var("KAGE_TIER").is_ok_and(|tier| tier == "long") {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    };
    for case in found_before() {
        runtime.block_on(async {
            world.merges(&case).await;
            world.applies(&case).await;
        });
    }
    runner
        .run(&case(), |case| {
            runtime.block_on(async {
                world.merges(&case).await;
                world.applies(&case).await;
            });
            Ok(())
        })
        .unwrap();
    let (refused, most) = (world.refused.get(), (cases / 50).max(2));
    assert!(
        refused <= most,
        "{refused} of {cases} cases are refused, and git lands them"
    );
}
