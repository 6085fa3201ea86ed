//! What is known of a worktree's files without opening them, folder by folder: the content of each
//! file and its stat at the time. It is a checkpoint's tree in memory. It owns how that is loaded,
//! compared and written as tree objects; [`scan`] brings it up to date.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use git2::{Index, ObjectType, Oid as Id, Repository};

use crate::error::GitError;
use crate::objects::{Objects, Unflushed, mode};

mod stat;
mod survey;

pub(crate) mod scan;

pub(crate) use stat::Stat;

/// The cached state of a worktree's files.
#[derive(Debug)]
pub(crate) struct KnownFiles {
    /// The commit that the worktree was last known to equal.
    pub(crate) last: Id,
    pub(crate) top: KnownFolder,
    /// Objects of `top` that a power cut could still take.
    pub(crate) unflushed: Unflushed,
}

/// A file, a symbolic link or a submodule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownEntry {
    pub(crate) mode: u32,
    pub(crate) id: Id,
    /// While the file has this stat, its content is the one that `id` names.
    pub(crate) stat: Option<Stat>,
}

impl KnownEntry {
    pub(crate) fn new(mode: u32, id: Id) -> Self {
        Self { mode, id, stat: None }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.mode, self.id) == (other.mode, other.id)
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self.mode, mode::FILE | mode::PROGRAM)
    }

    pub(crate) fn is_link(&self) -> bool {
        self.mode == mode::LINK
    }
}

#[derive(Debug)]
pub(crate) enum Node {
    Entry(KnownEntry),
    Folder(KnownFolder),
}

/// A folder that holds at least one entry, at any depth.
#[derive(Debug, Default)]
pub(crate) struct KnownFolder {
    /// Its tree object, unless something in it changed after that was written.
    tree: Option<Id>,
    nodes: BTreeMap<OsString, Node>,
}

/// The two sides of a path that differs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Difference {
    pub(crate) before: Option<KnownEntry>,
    pub(crate) after: Option<KnownEntry>,
}

/// Stats of files by path, with the id of the content that the file had at that stat.
pub(crate) type Stats = HashMap<PathBuf, (Id, Stat)>;

impl KnownFolder {
    /// Loads a tree object and all below it.
    pub(crate) fn load(repository: &Repository, tree: Id, stats: &Stats) -> Result<Self, git2::Error> {
        Self::load_at(repository, tree, stats, Path::new(""))
    }

    fn load_at(repository: &Repository, id: Id, stats: &Stats, here: &Path) -> Result<Self, git2::Error> {
        let tree = repository.find_tree(id)?;
        let mut nodes = BTreeMap::new();
        for item in &tree {
            let name = OsStr::from_bytes(item.name_bytes());
            let path = here.join(name);
            let kind = u32::try_from(item.filemode_raw()).unwrap_or(0);
            let node = if kind == mode::FOLDER {
                Node::Folder(Self::load_at(repository, item.id(), stats, &path)?)
            } else {
                let mode = modern(kind);
                let known = stats.get(&path).filter(|(content, _)| *content == item.id());
                // A submodule's stat would be its folder's, which says nothing about content.
                let known = known.filter(|_| mode != mode::SUBMODULE);
                Node::Entry(KnownEntry {
                    mode,
                    id: item.id(),
                    stat: known.map(|(_, stat)| *stat),
                })
            };
            nodes.insert(name.to_owned(), node);
        }
        Ok(Self { tree: Some(id), nodes })
    }

    /// Returns its tree object after writing the missing ones.
    pub(crate) fn write(&mut self, objects: &mut Objects) -> Result<Id, GitError> {
        self.make_trees(&mut |bytes| objects.write(ObjectType::Tree, bytes))
    }

    /// The id that its tree object would have. Afterwards everything below counts as written: if no
    /// tree has that id, this value must be dropped.
    pub(crate) fn assume_written(&mut self) -> Result<Id, GitError> {
        self.make_trees(&mut |bytes| {
            let id = Id::hash_object(ObjectType::Tree, &bytes);
            id.map_err(GitError::library("hash an object"))
        })
    }

    fn make_trees(&mut self, make: &mut impl FnMut(Vec<u8>) -> Result<Id, GitError>) -> Result<Id, GitError> {
        if let Some(tree) = self.tree {
            return Ok(tree);
        }
        let mut items = Vec::with_capacity(self.nodes.len());
        for (name, node) in &mut self.nodes {
            let (kind, id) = match node {
                Node::Entry(entry) => (entry.mode, entry.id),
                Node::Folder(folder) => (mode::FOLDER, folder.make_trees(make)?),
            };
            // git orders a folder as if its name ended in a slash.
            let mut key = name.as_bytes().to_vec();
            if kind == mode::FOLDER {
                key.push(b'/');
            }
            items.push((key, name.as_bytes(), kind, id));
        }
        items.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut bytes = Vec::new();
        for (_, name, kind, id) in items {
            bytes.extend_from_slice(format!("{kind:o} ").as_bytes());
            bytes.extend_from_slice(name);
            bytes.push(0);
            bytes.extend_from_slice(id.as_bytes());
        }
        let tree = make(bytes)?;
        self.tree = Some(tree);
        Ok(tree)
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        let mut names = path.iter();
        let mut node = self.nodes.get(names.next()?)?;
        for name in names {
            match node {
                Node::Folder(folder) => node = folder.nodes.get(name)?,
                Node::Entry(_) => return None,
            }
        }
        Some(node)
    }

    /// Whether an entry, at any depth, is as wanted.
    pub(crate) fn has(&self, wanted: &impl Fn(&OsStr, &KnownEntry) -> bool) -> bool {
        self.nodes.iter().any(|(name, node)| match node {
            Node::Entry(entry) => wanted(name, entry),
            Node::Folder(folder) => folder.has(wanted),
        })
    }

    /// Puts an entry at a path, replacing whatever is known there or above it.
    pub(crate) fn insert(&mut self, path: &Path, entry: KnownEntry) {
        let mut names: Vec<&OsStr> = path.iter().collect();
        let Some(last) = names.pop() else { return };
        let mut folder = self;
        for name in names {
            folder.tree = None;
            let node = folder
                .nodes
                .entry(name.to_owned())
                .or_insert_with(|| Node::Folder(Self::default()));
            if let Node::Entry(_) = node {
                *node = Node::Folder(Self::default());
            }
            let Node::Folder(inner) = node else { return };
            folder = inner;
        }
        folder.tree = None;
        folder.nodes.insert(last.to_owned(), Node::Entry(entry));
    }

    /// Forgets an entry, and the folders that become empty.
    pub(crate) fn remove(&mut self, path: &Path) {
        let mut components = path.components();
        let Some(Component::Normal(name)) = components.next() else {
            return;
        };
        let rest = components.as_path();
        let gone = match self.nodes.get_mut(name) {
            Some(Node::Folder(inner)) if rest != Path::new("") => {
                inner.remove(rest);
                inner.nodes.is_empty()
            }
            Some(Node::Entry(_)) => rest == Path::new(""),
            Some(Node::Folder(_)) | None => false,
        };
        if gone {
            self.nodes.remove(name);
        }
        self.tree = None;
    }

    /// The differences between this folder, whose tree is written, and a tree object.
    pub(crate) fn differences(
        &self,
        repository: &Repository,
        tree: Id,
    ) -> Result<BTreeMap<PathBuf, Difference>, git2::Error> {
        let mut found = BTreeMap::new();
        self.compare(repository, tree, Path::new(""), &mut found)?;
        Ok(found)
    }

    fn compare(
        &self,
        repository: &Repository,
        tree: Id,
        here: &Path,
        found: &mut BTreeMap<PathBuf, Difference>,
    ) -> Result<(), git2::Error> {
        if self.tree == Some(tree) {
            return Ok(());
        }
        let tree = repository.find_tree(tree)?;
        let mut theirs = BTreeSet::new();
        for item in &tree {
            let name = OsStr::from_bytes(item.name_bytes());
            theirs.insert(name.to_owned());
            let path = here.join(name);
            let kind = u32::try_from(item.filemode_raw()).unwrap_or(0);
            let mine = self.nodes.get(name);
            if kind == mode::FOLDER {
                match mine {
                    Some(Node::Folder(folder)) => folder.compare(repository, item.id(), &path, found)?,
                    Some(Node::Entry(_)) | None => {
                        Self::default().compare(repository, item.id(), &path, found)?;
                        if let Some(node) = mine {
                            node.list(path, found);
                        }
                    }
                }
                continue;
            }
            let after = KnownEntry::new(modern(kind), item.id());
            let before = match mine {
                Some(Node::Entry(entry)) => Some(*entry),
                Some(node @ Node::Folder(_)) => {
                    node.list(path.clone(), found);
                    None
                }
                None => None,
            };
            if !before.is_some_and(|before| before.is_same(&after)) {
                let after = Some(after);
                found.insert(path, Difference { before, after });
            }
        }
        for (name, node) in &self.nodes {
            if !theirs.contains(name) {
                node.list(here.join(name), found);
            }
        }
        Ok(())
    }
}

impl Node {
    /// Lists all entries from here down as missing on the other side.
    fn list(&self, path: PathBuf, found: &mut BTreeMap<PathBuf, Difference>) {
        match self {
            Self::Entry(entry) => {
                let before = Some(*entry);
                found.insert(path, Difference { before, after: None });
            }
            Self::Folder(folder) => {
                for (name, node) in &folder.nodes {
                    node.list(path.join(name), found);
                }
            }
        }
    }
}

/// Maps old modes such as 100664 to those that git writes today.
fn modern(kind: u32) -> u32 {
    match kind {
        mode::LINK | mode::SUBMODULE => kind,
        kind if kind & 0o100 != 0 => mode::PROGRAM,
        _ => mode::FILE,
    }
}

/// The stats in the index at `path`, written when its files were checked out. Empty when the files
/// may differ from the blobs that they were made of.
pub(crate) fn stats_of_index(path: &Path) -> Stats {
    let mut stats = Stats::new();
    let (Ok(index), Ok(written)) = (Index::open(path), fs::metadata(path).and_then(|meta| meta.modified())) else {
        // The index only saves time.
        return stats;
    };
    for item in index.iter() {
        let path = PathBuf::from(OsString::from_vec(item.path.clone()));
        if path.file_name() == Some(OsStr::new(".gitattributes")) {
            return Stats::new();
        }
        let stat = Stat::of_index(&item);
        if stat.is_before(written) {
            stats.insert(path, (item.id, stat));
        }
    }
    stats
}
