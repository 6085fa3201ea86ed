//! What git and blobs would hold in a simulated world, in memory: commits are files and a parent,
//! names follow from what is named. The coordinator's and each agent's objects survive their
//! crashes, as files do; nothing here waits or fails. What must not happen is written down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kage_core::checkpoint::Work;
use kage_core::event::{ChangeKind, DiffStat, FileChange, ResultCommit};
use kage_core::id::{Digest, Oid, SessionId};

/// The files of a tree: their paths and what is in them.
pub(crate) type Files = BTreeMap<String, String>;

/// The name of the one repository.
pub(crate) const REPOSITORY: &str = "forge";
/// A file that verify does not like.
const BAD: &str = "bad";

/// A commit: all files, and the commit before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) files: Files,
    parent: Option<Oid>,
}

/// What is stored by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Blob {
    /// A commit, over one that its receiver must have.
    Pack(Oid, Commit),
    Bytes(Bytes),
}

/// What verify said of a tree, when it came to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judged {
    /// The session whose result, or for whose task, it was.
    pub(crate) session: String,
    pub(crate) tree: Oid,
    pub(crate) passed: bool,
}

/// Every object of a world.
#[derive(Debug, Default)]
pub(crate) struct Forge {
    /// The coordinator's repository.
    taken: BTreeMap<Oid, Commit>,
    /// The references of results.
    results: BTreeMap<SessionId, Oid>,
    blobs: BTreeMap<Digest, Blob>,
    /// By agent.
    mirrors: BTreeMap<String, BTreeMap<Oid, Commit>>,
    /// By path.
    worktrees: BTreeMap<PathBuf, Files>,
    pub(crate) judged: Vec<Judged>,
}

fn oid(text: &str) -> Oid {
    let digest = Digest::of(text.as_bytes()).to_string();
    digest[..40].parse().expect("it is hexadecimal")
}

/// The name of a tree.
pub(crate) fn tree_of(files: &Files) -> Oid {
    oid(&format!("tree {files:?}"))
}

/// Whether verify likes a tree.
pub(crate) fn is_good(files: &Files) -> bool {
    !files.values().any(|text| text.contains(BAD))
}

/// What a file has that is changed for the nth time.
pub(crate) fn text(n: u64, good: bool) -> String {
    format!("{n} {}", if good { "good" } else { BAD })
}

/// How files differ, in the order of their paths.
pub(crate) fn changes(from: &Files, to: &Files) -> Vec<FileChange> {
    let gone = from.keys().filter(|path| !to.contains_key(*path));
    let gone = gone.map(|path| (path, ChangeKind::Deleted));
    let there = to.iter().filter_map(|(path, text)| match from.get(path) {
        None => Some((path, ChangeKind::Added)),
        Some(before) => (before != text).then_some((path, ChangeKind::Modified)),
    });
    let mut changes: Vec<_> = gone.chain(there).collect();
    changes.sort_by_key(|(path, _)| *path);
    let change = |(path, kind): (&String, ChangeKind)| FileChange {
        path: path.clone(),
        kind,
        added: 1,
        removed: u64::from(kind != ChangeKind::Added),
    };
    changes.into_iter().map(change).collect()
}

impl Forge {
    /// Puts a base into the coordinator's repository.
    pub(crate) fn base(&mut self, files: Files) -> Oid {
        let commit = oid(&format!("base {files:?}"));
        self.taken.insert(commit.clone(), Commit { files, parent: None });
        commit
    }

    /// The commit as the coordinator's repository has it.
    pub(crate) fn taken(&self, commit: &Oid) -> Option<&Commit> {
        self.taken.get(commit)
    }

    /// Fetches a commit into an agent's mirror. False when the coordinator has it not.
    pub(crate) fn fetch(&mut self, agent: &str, commit: &Oid) -> bool {
        let Some(found) = self.taken.get(commit) else {
            return false;
        };
        let mirror = self.mirrors.entry(agent.to_owned()).or_default();
        mirror.insert(commit.clone(), found.clone());
        true
    }

    /// A commit as an agent's mirror has it.
    pub(crate) fn mirrored(&self, agent: &str, commit: &Oid) -> Option<&Commit> {
        self.mirrors.get(agent)?.get(commit)
    }

    /// An agent's mirror is gone.
    pub(crate) fn lose_mirror(&mut self, agent: &str) {
        self.mirrors.remove(agent);
    }

    /// Commits files in an agent's mirror.
    pub(crate) fn commit(&mut self, agent: &str, files: &Files, parent: &Oid, message: &str) -> Oid {
        let name = oid(&format!("commit {files:?} {parent} {message}"));
        let commit = Commit {
            files: files.clone(),
            parent: Some(parent.clone()),
        };
        let mirror = self.mirrors.entry(agent.to_owned()).or_default();
        mirror.insert(name.clone(), commit);
        name
    }

    /// A result of these files over a base, as it is told.
    pub(crate) fn result(commit: Oid, base: &Files, files: &Files) -> ResultCommit {
        let changes = changes(base, files);
        let deleted = changes.iter().filter(|change| change.kind == ChangeKind::Deleted);
        ResultCommit {
            commit,
            tree: Some(tree_of(files)),
            diff: DiffStat {
                files: u32::try_from(changes.len()).unwrap(),
                added: changes.iter().map(|change| change.added).sum(),
                removed: changes.iter().map(|change| change.removed).sum(),
            },
            deleted: deleted.map(|change| change.path.clone()).collect(),
            paths: changes.into_iter().map(|change| change.path).collect(),
            large: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Stores what an agent has of a commit, over its parent; `wrong`: with another file.
    pub(crate) fn upload(&mut self, agent: &str, commit: &Oid, wrong: bool) -> Option<Digest> {
        let mut content = self.mirrored(agent, commit)?.clone();
        if wrong {
            content.files.insert("c".to_owned(), text(0, true));
        }
        let digest = Digest::of(format!("pack {commit}").as_bytes());
        self.blobs.insert(digest.clone(), Blob::Pack(commit.clone(), content));
        Some(digest)
    }

    pub(crate) fn put(&mut self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.insert(digest.clone(), Blob::Bytes(bytes));
        digest
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        match self.blobs.get(digest)? {
            Blob::Bytes(bytes) => Some(bytes.clone()),
            Blob::Pack(..) => None,
        }
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// The commit in a pack, and its files.
    pub(crate) fn packed(&self, digest: &Digest) -> Option<(&Oid, &Files)> {
        match self.blobs.get(digest)? {
            Blob::Pack(commit, content) => Some((commit, &content.files)),
            Blob::Bytes(_) => None,
        }
    }

    /// Unpacks into an agent's mirror. False when the pack, or what it stands on, is not there.
    pub(crate) fn unpack(&mut self, agent: &str, digest: &Digest) -> bool {
        let Some(Blob::Pack(commit, content)) = self.blobs.get(digest).cloned() else {
            return false;
        };
        let mirror = self.mirrors.entry(agent.to_owned()).or_default();
        if content
            .parent
            .as_ref()
            .is_some_and(|parent| !mirror.contains_key(parent))
        {
            return false;
        }
        mirror.insert(commit, content);
        true
    }

    /// Takes a result into the coordinator's repository. False when its pack is not there.
    pub(crate) fn take_in(&mut self, session: SessionId, commit: &Oid, pack: &Digest) -> bool {
        match self.blobs.get(pack) {
            Some(Blob::Pack(packed, content)) if packed == commit => {
                self.taken.insert(commit.clone(), content.clone());
                self.results.insert(session, commit.clone());
                true
            }
            Some(Blob::Pack(..) | Blob::Bytes(_)) | None => false,
        }
    }

    /// Makes a result of what a session had done, and takes it into the coordinator's repository.
    pub(crate) fn save(
        &mut self,
        session: SessionId,
        base: &Oid,
        work: &Work,
        message: &str,
    ) -> Result<Option<ResultCommit>, String> {
        let mut there = self.taken.clone();
        for pack in &work.packs {
            let Some(Blob::Pack(commit, content)) = self.blobs.get(pack) else {
                return Err(format!("pack {pack} is not there"));
            };
            there.insert(commit.clone(), content.clone());
        }
        let files = |commit: &Oid| {
            let found = there.get(commit).map(|commit| commit.files.clone());
            found.ok_or_else(|| format!("{commit} is in none of its packs"))
        };
        let (base_files, from, to) = (files(base)?, files(&work.from)?, files(&work.to)?);
        let mut made = base_files.clone();
        for change in changes(&from, &to) {
            match to.get(&change.path) {
                Some(text) => made.insert(change.path, text.clone()),
                None => made.remove(&change.path),
            };
        }
        if made == base_files {
            return Ok(None);
        }
        let commit = oid(&format!("commit {made:?} {base} {message}"));
        let result = Self::result(commit.clone(), &base_files, &made);
        let content = Commit {
            files: made,
            parent: Some(base.clone()),
        };
        self.taken.insert(commit.clone(), content);
        self.results.insert(session, commit);
        Ok(Some(result))
    }

    /// The reference of a session's result.
    pub(crate) fn result_of(&self, session: SessionId) -> Option<&Oid> {
        self.results.get(&session)
    }

    /// The files at a path; `None` when they were removed.
    pub(crate) fn files(&self, path: &Path) -> Option<&Files> {
        self.worktrees.get(path)
    }

    /// Writes a file of a worktree that is still there.
    pub(crate) fn write(&mut self, path: &Path, name: &str, text: String) {
        if let Some(files) = self.worktrees.get_mut(path) {
            files.insert(name.to_owned(), text);
        }
    }

    /// Makes the files at a path these.
    pub(crate) fn check_out(&mut self, path: &Path, files: Files) {
        self.worktrees.insert(path.to_owned(), files);
    }

    /// Removes the files below a path.
    pub(crate) fn remove(&mut self, path: &Path) {
        self.worktrees.retain(|other, _| !other.starts_with(path));
    }
}
