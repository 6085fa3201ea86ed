//! The repositories of a case as they are on the disk, and what git itself makes of the same trees.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use git2::{Repository, Signature, Time};
use kage_core::id::Oid;
use kage_git::Mirror;

use super::case::{Case, Shape, Since};
use super::edits::{File, Files, PATHS, bytes, changed, start};
use crate::sandbox::{Sandbox, fingerprint, write};

/// A repository of the person's, the mirror with the result, and the judge.
pub(super) struct World {
    pub(super) sandbox: Sandbox,
    pub(super) person: PathBuf,
    pub(super) judge: PathBuf,
    pub(super) mirror: Mirror,
    /// Where git itself would land it, and Kage does not.
    pub(super) refused: Cell<u32>,
}

/// The commits of one case, and the files on the disk.
pub(super) struct Scene {
    pub(super) base: Oid,
    pub(super) result: Oid,
    pub(super) head: Oid,
    pub(super) head_files: Files,
    pub(super) disk: Files,
    /// Paths that the result changes.
    touched: BTreeSet<String>,
}

impl Scene {
    /// New files that git is told to ignore, and that the result has nothing at: to git they are not there.
    pub(super) fn unseen(&self, case: &Case) -> BTreeSet<String> {
        let within = |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        let is_at = |one: &str, other: &str| one == other || within(one, other);
        let of = |all: &[usize], path: &str| all.iter().any(|it| is_at(path, PATHS[*it]));
        let new = self.disk.keys().filter(|path| !self.head_files.contains_key(*path));
        let ignored = new.filter(|path| of(&case.ignored, path) && !of(&case.staged, path));
        let meets = |path: &str| {
            self.touched
                .iter()
                .any(|other| is_at(path, other) || within(other, path))
        };
        ignored.filter(|path| !meets(path)).cloned().collect()
    }
}

impl World {
    pub(super) async fn new() -> Self {
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
    pub(super) fn home(&self, shape: Shape) -> PathBuf {
        match shape {
            Shape::Linked => self.sandbox.path("home-of-it"),
            _ => self.person.clone(),
        }
    }

    /// Every file of the person's.
    pub(super) fn prints(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let home = self.sandbox.path("home-of-it");
        let mut all = fingerprint(&self.person);
        if home.exists() {
            all.extend(fingerprint(&home));
        }
        all
    }

    pub(super) fn commit(&self, repository: &Path, files: &Files, parents: &[&Oid]) -> Oid {
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

    pub(super) fn stage(&self, case: &Case) -> Scene {
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
        let result_files = changed(&base_files, &case.session);
        let result = self.commit(mirror, &result_files, &[&base]);
        let both = base_files.keys().chain(result_files.keys());
        let touched = both.filter(|path| base_files.get(*path) != result_files.get(*path));
        let touched = touched.cloned().collect();
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
            touched,
        }
    }

    /// The tree that git makes of the result on top of these files; `None` = it conflicts.
    pub(super) fn judged(&self, shape: Shape, scene: &Scene, ours: &Files) -> Option<String> {
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
    pub(super) fn git_would(&self, tree: &str) -> bool {
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
    pub(super) fn files(&self, tree: &str) -> BTreeMap<String, (String, String)> {
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
    pub(super) fn index(&self) -> BTreeMap<String, (String, String)> {
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
    pub(super) fn disk(&self) -> BTreeMap<String, (String, String)> {
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
}
