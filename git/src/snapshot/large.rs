//! Files behind Git LFS in a base, as far as this machine has their contents: where git-lfs keeps them, or
//! in the working file itself. Each is hashed before it is taken. What the person changed and did not
//! commit becomes a pointer in the base, as `git add` would make it, with its content beside it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use git2::{Oid as Id, Repository};
use kage_core::id::{Digest, Oid};
use kage_core::left_out::shown;

use super::Filters;
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::large::{FILTER, MAX_LARGE_FILES, Pointer, stored_as};
use crate::left_out::entry_in;
use crate::objects::{id_of, mode, open_file};
use crate::patterns::Patterns;
use crate::shadow::Shadow;
use crate::user_repo::UserRepo;

/// Larger contents are left out unless a pattern includes them: they are sent to every machine.
pub const MAX_LARGE_BYTES: u64 = 64 << 20;

/// The most bytes of all contents together.
pub const MAX_ALL_LARGE_BYTES: u64 = 512 << 20;

/// What this machine has of the files behind Git LFS.
#[derive(Debug, Default)]
pub(super) struct FoundLarge {
    /// Paths with the contents that their pointers name.
    pub(super) files: Vec<(Vec<u8>, Digest)>,
    /// The blobs with the contents.
    pub(super) contents: BTreeMap<Digest, Id>,
    /// The contents are not on this machine.
    pub(super) missing: Vec<String>,
    /// They are too large, with their sizes.
    pub(super) too_large: Vec<(String, u64)>,
}

/// Looks for the contents of the files of the base that `filters` names. They become blobs of `shadow`.
pub(super) async fn find(
    repository: &UserRepo,
    shadow: &Shadow,
    base: &Oid,
    filters: &Filters,
    include: &[String],
) -> Result<FoundLarge, GitError> {
    let mut paths: Vec<Vec<u8>> = filters
        .iter()
        .filter(|(_, filter)| *filter == FILTER)
        .map(|(path, _)| path.clone())
        .collect();
    if paths.is_empty() {
        return Ok(FoundLarge::default());
    }
    paths.sort();
    let included = Patterns::new(include)?;
    let (root, git_dirs) = (repository.root().to_owned(), repository.git_dirs());
    let (git_dir, base) = (shadow.git_dir().to_owned(), base.clone());
    blocking("looking for files of Git LFS", move || {
        let library = || GitError::library("read a base");
        let objects = Repository::open_bare(&git_dir).map_err(library())?;
        let tree = objects.find_commit(id_of(&base)?).map_err(library())?.tree_id();
        let places = Places {
            beneath: Beneath::open(&root).map_err(GitError::io("open", &root))?,
            git_dirs,
        };
        let (mut found, mut bytes) = (FoundLarge::default(), 0);
        for path in paths {
            let relative = Path::new(OsStr::from_bytes(&path));
            let Some((mode::FILE | mode::PROGRAM, id)) = entry_in(&objects, tree, relative) else {
                continue;
            };
            let text = objects.find_blob(id).map_err(library())?;
            // Whoever committed it did so without git-lfs.
            let Some(pointer) = Pointer::read(text.content()) else {
                continue;
            };
            if found.contents.contains_key(&pointer.digest) {
                found.files.push((path, pointer.digest));
                continue;
            }
            let is_too_large = pointer.size > MAX_LARGE_BYTES && !included.matches(relative);
            if is_too_large || bytes + pointer.size > MAX_ALL_LARGE_BYTES || found.files.len() >= MAX_LARGE_FILES {
                found.too_large.push((shown(&path), pointer.size));
                continue;
            }
            let Some(content) = places.content(relative, &pointer) else {
                found.missing.push(shown(&path));
                continue;
            };
            bytes += pointer.size;
            let blob = objects
                .blob(&content)
                .map_err(GitError::library("store a file of Git LFS"))?;
            found.contents.insert(pointer.digest.clone(), blob);
            found.files.push((path, pointer.digest));
        }
        Ok(found)
    })
    .await
}

/// Where contents may be.
struct Places {
    beneath: Beneath,
    git_dirs: [PathBuf; 2],
}

impl Places {
    /// What a pointer names.
    fn content(&self, path: &Path, pointer: &Pointer) -> Option<Vec<u8>> {
        // Other programs made the content of it, and would have to make the file of it again.
        if pointer.has_extensions {
            return None;
        }
        let kept = self.git_dirs.iter().map(|dir| dir.join(pointer.place()));
        let kept = kept.filter_map(|place| {
            let meta = fs::symlink_metadata(&place).ok()?;
            (meta.is_file() && meta.len() == pointer.size).then(|| fs::read(&place).ok())?
        });
        let working = || {
            let Ok(Parent::Open(folder, name)) = self.beneath.parent(path, false) else {
                return None;
            };
            read(&open_file(&folder, name).ok()?, pointer.size)
        };
        let mut kept = kept.filter(|content| pointer.is_of(content));
        kept.next()
            .or_else(|| working().filter(|content| pointer.is_of(content)))
    }
}

/// A file of that size.
fn read(mut file: &fs::File, size: u64) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.len() != size {
        return None;
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).ok()?;
    Some(content)
}

/// Puts changed files behind Git LFS into the index of `shadow` as the pointers that git-lfs makes of
/// them. Returns whether the index changed.
pub(super) async fn stage(repository: &UserRepo, shadow: &Shadow, paths: Vec<Vec<u8>>) -> Result<bool, GitError> {
    if paths.is_empty() {
        return Ok(false);
    }
    let (root, git_dir) = (repository.root().to_owned(), shadow.git_dir().to_owned());
    let trusts_mode = repository.trusts_mode();
    let lines = blocking("reading files of Git LFS", move || {
        let objects = Repository::open_bare(&git_dir).map_err(GitError::library("open a git directory"))?;
        let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
        let mut lines = Vec::new();
        for path in paths {
            let relative = Path::new(OsStr::from_bytes(&path));
            let failed = |error| GitError::io("read", &root.join(relative))(error);
            let Parent::Open(folder, name) = beneath.parent(relative, false).map_err(failed)? else {
                continue;
            };
            let file = open_file(&folder, name).map_err(|error| failed(error.into()))?;
            let meta = file.metadata().map_err(failed)?;
            let changed = || io::Error::other("it cannot be read, or changes all the time");
            let content = read(&file, meta.len()).ok_or_else(|| failed(changed()))?;
            let stored = stored_as(&content).map(|pointer| pointer.to_text().into_bytes());
            let id = objects.blob(stored.as_deref().unwrap_or(&content));
            let id = id.map_err(GitError::library("store a pointer of Git LFS"))?;
            let is_program = trusts_mode && meta.permissions().mode() & 0o100 != 0;
            let mode = if is_program { mode::PROGRAM } else { mode::FILE };
            lines.extend_from_slice(format!("{mode:06o} {id}\t").as_bytes());
            lines.extend_from_slice(&[&path[..], b"\0"].concat());
        }
        Ok::<_, GitError>(lines)
    })
    .await?;
    let update = shadow.git("update-index").args(["--add", "-z", "--index-info"]);
    update.stdin(lines).run().await?;
    Ok(true)
}
