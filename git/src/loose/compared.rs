//! Proves the files of loose objects before libgit2 reads them to compare two commits: where such a file has no
//! end, libgit2 does not come to one either. Objects in packs are libgit2's matter, which hashes what it reads.

use std::collections::BTreeMap;

use git2::{ErrorClass, ErrorCode, FileMode, Oid as Id, Repository, Tree};
use kage_core::cause::chain;

use super::check_loose;
use crate::error::GitError;

/// How much of two trees is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compared<'a> {
    /// Files, too, and not only which of them differ.
    pub(crate) content: bool,
    /// Files and folders; empty: everything.
    pub(crate) paths: &'a [Vec<u8>],
}

impl Compared<'_> {
    pub(crate) const NAMES: Self = Self {
        content: false,
        paths: &[],
    };
    pub(crate) const ALL: Self = Self {
        content: true,
        paths: &[],
    };

    fn has(&self, path: &[u8]) -> bool {
        let is_in = |path: &[u8], folder: &[u8]| {
            path.strip_prefix(folder)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let mut meant = self.paths.iter().map(|path| path.strip_suffix(b"/").unwrap_or(path));
        self.paths.is_empty() || meant.any(|meant| is_in(path, meant) || is_in(meant, path))
    }
}

/// The files of a commit.
pub(crate) fn tree_of<'a>(repository: &'a Repository, commit: Id) -> Result<Tree<'a>, git2::Error> {
    proved(repository, commit)?;
    folder(repository, repository.find_commit(commit)?.tree_id())
}

/// A folder.
pub(crate) fn folder<'a>(repository: &'a Repository, id: Id) -> Result<Tree<'a>, git2::Error> {
    proved(repository, id)?;
    repository.find_tree(id)
}

/// Proves what a comparison of two folders reads: folders and files that differ, and nothing else.
pub(crate) fn prove_compared(
    repository: &Repository,
    before: &Tree<'_>,
    after: &Tree<'_>,
    compared: Compared<'_>,
) -> Result<(), git2::Error> {
    type Sides = [Option<(Id, i32)>; 2];
    let mut waiting = vec![(Vec::new(), [Some(before.id()), Some(after.id())])];
    while let Some((path, sides)) = waiting.pop() {
        if sides[0] == sides[1] {
            continue;
        }
        let mut names: BTreeMap<Vec<u8>, Sides> = BTreeMap::new();
        for (side, id) in sides.into_iter().enumerate() {
            let Some(id) = id else { continue };
            for entry in &folder(repository, id)? {
                let sides = names.entry(entry.name_bytes().to_vec()).or_default();
                sides[side] = Some((entry.id(), entry.filemode()));
            }
        }
        for (name, sides) in names {
            let path = [path.as_slice(), name.as_slice()].concat();
            if sides[0] == sides[1] || !compared.has(&path) {
                continue;
            }
            let of = |wanted: &dyn Fn(i32) -> bool| sides.map(|side| side.filter(|(_, mode)| wanted(*mode)));
            if compared.content {
                // The commit of a submodule is not here.
                let is_file = |mode| mode != i32::from(FileMode::Tree) && mode != i32::from(FileMode::Commit);
                for (id, _) in of(&is_file).into_iter().flatten() {
                    proved(repository, id)?;
                }
            }
            let folders = of(&|mode| mode == i32::from(FileMode::Tree)).map(|side| side.map(|(id, _)| id));
            if folders.iter().any(Option::is_some) {
                waiting.push(([path.as_slice(), b"/"].concat(), folders));
            }
        }
    }
    Ok(())
}

/// Proves the file of a loose object, if there is one.
fn proved(repository: &Repository, id: Id) -> Result<(), git2::Error> {
    check_loose(repository.commondir(), id).map_err(|error| {
        let class = match &error {
            GitError::Library { .. } => ErrorClass::Odb,
            _ => ErrorClass::Os,
        };
        git2::Error::new(ErrorCode::GenericError, class, chain(&error))
    })
}
