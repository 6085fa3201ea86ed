//! How much a commit has beyond the files that were here before: files, bytes, depth. A tree may name
//! the same folder many times, so that a few objects become more files than any disk has. Each folder
//! is looked at once, and counted as often as it is named.

use std::collections::HashMap;

use git2::{ObjectType, Oid as Id, Repository};
use kage_core::task::ResultRules;

use crate::large::{MAX_POINTER_BYTES, Pointer};
use crate::objects::mode;

/// The deepest path, in names: sessions make at most 128 ([`crate::left_out`]), and persons have
/// what their systems take.
const MOST_NAMES: u32 = 512;
/// The most commits that are followed to one that is here.
const MOST_COMMITS: usize = 100_000;

/// What a commit may have beyond the files that were here before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GrowthLimits {
    /// Files at paths where none was.
    pub(super) files: u64,
    /// Their bytes, and those by which other files became more than twice as large.
    pub(super) bytes: u64,
}

impl GrowthLimits {
    /// Twice what a session may make: git stores some files in another size than a disk has.
    #[must_use]
    pub(super) const fn of_result(rules: &ResultRules) -> Self {
        Self {
            files: rules.max_new_files.saturating_mul(2),
            bytes: rules.max_new_bytes.saturating_mul(2),
        }
    }
}

/// What a folder has beyond another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Growth {
    files: u64,
    bytes: u64,
    /// Names from here down.
    depth: u32,
}

/// Why a commit is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum TooGrown {
    #[error("it has {files} files that were not there before, and at most {most} are taken; max_new_files allows more")]
    Files { files: u64, most: u64 },
    #[error("its new files have {} together, and at most {} are taken; max_new_mib allows more", kage_core::left_out::in_units(*.bytes), kage_core::left_out::in_units(*.most))]
    Bytes { bytes: u64, most: u64 },
    #[error("it has a path of more than {MOST_NAMES} names")]
    Depth,
    #[error("an object of it cannot be read")]
    Git(#[source] git2::Error),
}

impl From<git2::Error> for TooGrown {
    fn from(error: git2::Error) -> Self {
        Self::Git(error)
    }
}

/// Compares `tip`, which is in `all`, with its newest ancestor that is in `here` as well.
pub(super) fn check(all: &Repository, here: &Repository, tip: Id, limits: GrowthLimits) -> Result<(), TooGrown> {
    let commit = all.find_commit(tip)?;
    let mut before = commit.clone();
    let known = here.odb()?;
    let mut base = None;
    for _ in 0..MOST_COMMITS {
        if known.exists(before.id()) {
            base = Some(before.tree_id());
            break;
        }
        match before.parent(0) {
            Ok(parent) => before = parent,
            // It has none, or lacks it, which is found when all of it is checked.
            Err(_) => break,
        }
    }
    let mut count = Count {
        repository: all,
        counted: HashMap::new(),
    };
    let growth = count.growth(commit.tree_id(), base, 0)?;
    if growth.files > limits.files {
        let (files, most) = (growth.files, limits.files);
        return Err(TooGrown::Files { files, most });
    }
    if growth.bytes > limits.bytes {
        let (bytes, most) = (growth.bytes, limits.bytes);
        return Err(TooGrown::Bytes { bytes, most });
    }
    Ok(())
}

struct Count<'a> {
    repository: &'a Repository,
    /// By folder, and what was at its path before.
    counted: HashMap<(Id, Option<Id>), Growth>,
}

impl Count<'_> {
    fn growth(&mut self, folder: Id, before: Option<Id>, depth: u32) -> Result<Growth, TooGrown> {
        if Some(folder) == before {
            return Ok(Growth::default());
        }
        let known = self.counted.get(&(folder, before)).copied();
        let growth = match known {
            Some(growth) => growth,
            None if depth >= MOST_NAMES => return Err(TooGrown::Depth),
            None => {
                let growth = self.count(folder, before, depth)?;
                self.counted.insert((folder, before), growth);
                growth
            }
        };
        if depth.saturating_add(growth.depth) > MOST_NAMES {
            return Err(TooGrown::Depth);
        }
        Ok(growth)
    }

    fn count(&mut self, folder: Id, before: Option<Id>, depth: u32) -> Result<Growth, TooGrown> {
        let folder = self.repository.find_tree(folder)?;
        let before = before.map(|before| self.repository.find_tree(before)).transpose()?;
        let mut growth = Growth::default();
        for item in &folder {
            // Entries are sorted, so a name is found without a look at all of them.
            let was = before
                .as_ref()
                .and_then(|before| before.get_name_bytes(item.name_bytes()));
            let was = was.map(|was| (was.kind(), was.id()));
            let inner = match item.kind() {
                Some(ObjectType::Tree) => {
                    let was = was.filter(|(kind, _)| *kind == Some(ObjectType::Tree));
                    self.growth(item.id(), was.map(|(_, id)| id), depth + 1)?
                }
                _ => self.file(
                    &item,
                    was.filter(|(kind, _)| *kind != Some(ObjectType::Tree))
                        .map(|(_, id)| id),
                ),
            };
            growth.files = growth.files.saturating_add(inner.files);
            growth.bytes = growth.bytes.saturating_add(inner.bytes);
            growth.depth = growth.depth.max(inner.depth.saturating_add(1));
        }
        Ok(growth)
    }

    fn file(&self, item: &git2::TreeEntry<'_>, before: Option<Id>) -> Growth {
        if before == Some(item.id()) {
            return Growth::default();
        }
        // Of a submodule there is the id of a commit only.
        let is_submodule = u32::try_from(item.filemode()) == Ok(mode::SUBMODULE);
        let size = if is_submodule { 0 } else { self.size(item.id()) };
        let had = before.map_or(0, |before| self.content_size(before).saturating_mul(2));
        Growth {
            files: u64::from(before.is_none()),
            bytes: size.saturating_sub(had),
            depth: 0,
        }
    }

    /// Of a pointer of Git LFS the size of its content.
    fn content_size(&self, id: Id) -> u64 {
        let size = self.size(id);
        if size >= MAX_POINTER_BYTES as u64 {
            return size;
        }
        let text = self.repository.find_blob(id).ok();
        let pointer = text.and_then(|text| Pointer::read(text.content()));
        pointer.map_or(size, |pointer| pointer.size)
    }

    /// 0 for an object that is missing, which is found when all of it is checked.
    fn size(&self, id: Id) -> u64 {
        let header = self.repository.odb().and_then(|odb| odb.read_header(id));
        header.map_or(0, |(size, _)| size as u64)
    }
}

#[cfg(test)]
mod tests {
    use git2::Signature;

    use super::*;

    struct Place {
        _folder: tempfile::TempDir,
        repository: Repository,
        here: Repository,
        _here: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            Self {
                repository: Repository::init_bare(folder.path()).unwrap(),
                here: Repository::init_bare(other.path()).unwrap(),
                _folder: folder,
                _here: other,
            }
        }

        fn blob(&self, size: usize) -> Id {
            self.repository.blob(&vec![b'x'; size]).unwrap()
        }

        fn tree(&self, entries: &[(&str, Id, u32)]) -> Id {
            let mut builder = self.repository.treebuilder(None).unwrap();
            for (name, id, mode) in entries {
                builder.insert(name, *id, i32::try_from(*mode).unwrap()).unwrap();
            }
            builder.write().unwrap()
        }

        fn commit(&self, tree: Id, parents: &[Id]) -> Id {
            let who = Signature::new("a", "b", &git2::Time::new(0, 0)).unwrap();
            let tree = self.repository.find_tree(tree).unwrap();
            let parents: Vec<_> = parents
                .iter()
                .map(|id| self.repository.find_commit(*id).unwrap())
                .collect();
            let parents: Vec<_> = parents.iter().collect();
            self.repository.commit(None, &who, &who, "m", &tree, &parents).unwrap()
        }

        /// Puts a commit where everybody looks first.
        fn known(&self, commit: Id) {
            let odb = self.repository.odb().unwrap();
            let object = odb.read(commit).unwrap();
            self.here
                .odb()
                .unwrap()
                .write(ObjectType::Commit, object.data())
                .unwrap();
        }

        fn check(&self, tip: Id, files: u64, bytes: u64) -> Result<(), TooGrown> {
            check(&self.repository, &self.here, tip, GrowthLimits { files, bytes })
        }
    }

    #[test]
    fn a_few_folders_that_are_named_often_count_as_often() {
        let place = Place::new();
        let leaf = place.blob(10);
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut tree = place.tree(&names.map(|name| (name, leaf, mode::FILE)));
        for _ in 0..6 {
            tree = place.tree(&names.map(|name| (name, tree, mode::FOLDER)));
        }
        let bomb = place.commit(tree, &[]);
        let refused = place.check(bomb, 40_000, u64::MAX);
        assert!(
            matches!(refused, Err(TooGrown::Files { files: 279_936, .. })),
            "{refused:?}"
        );
        assert!(place.check(bomb, 279_936, 2_799_360).is_ok());
        let refused = place.check(bomb, u64::MAX, 2_799_359);
        assert!(
            matches!(refused, Err(TooGrown::Bytes { bytes: 2_799_360, .. })),
            "{refused:?}"
        );
        // A hundred levels overflow any number.
        for _ in 0..100 {
            tree = place.tree(&names.map(|name| (name, tree, mode::FOLDER)));
        }
        let refused = place.check(place.commit(tree, &[]), 1 << 60, u64::MAX);
        assert!(
            matches!(refused, Err(TooGrown::Files { files: u64::MAX, .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn what_was_there_before_does_not_count() {
        let place = Place::new();
        let (small, large) = (place.blob(10), place.blob(1000));
        let many: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), small, mode::FILE)).collect();
        let folder = place.tree(&many);
        let base = place.commit(
            place.tree(&[("d", folder, mode::FOLDER), ("x", small, mode::FILE)]),
            &[],
        );
        let grown = place.tree(&[
            ("d", folder, mode::FOLDER),
            ("new", large, mode::FILE),
            ("x", large, mode::FILE),
        ]);
        let between = place.commit(grown, &[base]);
        let tip = place.commit(grown, &[between]);
        // Nothing is known, so everything is new.
        assert!(place.check(tip, 201, u64::MAX).is_err());
        place.known(base);
        assert!(place.check(tip, 1, 1980).is_ok());
        assert!(matches!(
            place.check(tip, 0, 1980),
            Err(TooGrown::Files { files: 1, .. })
        ));
        assert!(matches!(
            place.check(tip, 1, 1979),
            Err(TooGrown::Bytes { bytes: 1980, .. })
        ));
        assert!(place.check(base, 0, 0).is_ok());
    }

    #[test]
    fn depth_has_a_limit_and_needs_no_stack() {
        let place = Place::new();
        let deep = |levels: u32| {
            let mut tree = place.tree(&[("f", place.blob(1), mode::FILE)]);
            for _ in 1..levels {
                tree = place.tree(&[("d", tree, mode::FOLDER)]);
            }
            place.commit(tree, &[])
        };
        assert!(place.check(deep(MOST_NAMES), 1, 1).is_ok());
        assert!(matches!(place.check(deep(MOST_NAMES + 1), 1, 1), Err(TooGrown::Depth)));
        assert!(matches!(place.check(deep(5000), 1, 1), Err(TooGrown::Depth)));
    }
}
