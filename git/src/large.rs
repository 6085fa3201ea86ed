//! Files behind Git LFS. git stores a pointer of three lines; the content lies where git-lfs keeps it on
//! the person's machine. What of it goes along with a base is a commit beside it, as submodules are:
//!
//! ```text
//! refs/kage/bases/<commit of names>
//!   └─ a parent      file `lfs`: the text below
//!                    file `o<digest>`: each content, once
//!
//! <digest> NUL <path> NUL ...
//! <private>/lfs      the files that have their content in a worktree: what git has of each there
//! ```
//!
//! In a worktree such a file has its content, and counts as the pointer while it has: no checkpoint and no
//! result holds the content of a file that nobody changed. It owns pointers, that text and that file;
//! `snapshot::large` finds the contents, `worktree::large` writes them, `landing::large` makes pointers of
//! what a session changed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use git2::Oid as Id;
use kage_core::id::Digest;

use crate::beneath::{Beneath, Parent};
use crate::error::GitError;
use crate::objects::{hash_open_file, is_plain, open_file};
use crate::shadow::Shadow;
use crate::staging::split;

/// The name of the filter.
pub(crate) const FILTER: &str = "lfs";

/// The file with the text.
pub(crate) const LARGE: &str = "lfs";

/// What git-lfs takes for a pointer is shorter than this.
pub(crate) const MAX_POINTER_BYTES: usize = 1024;

/// More files are left as pointers: each is read and hashed for every task.
pub(crate) const MAX_LARGE_FILES: usize = 10_000;

const VERSION: &str = "https://git-lfs.github.com/spec/v1";
const FORMER_VERSIONS: [&str; 2] = ["https://hawser.github.com/spec/v1", "http://git-media.io/v/2"];

/// What git stores in place of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The content went through other programs before it was hashed.
    pub(crate) has_extensions: bool,
}

impl Pointer {
    /// The pointer to a content.
    pub(crate) fn to(content: &[u8]) -> Self {
        Self {
            digest: Digest::of(content),
            size: content.len() as u64,
            has_extensions: false,
        }
    }

    /// Reads the text of a pointer; `None`: it is a content.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        if text.len() >= MAX_POINTER_BYTES {
            return None;
        }
        let mut lines = std::str::from_utf8(text).ok()?.trim().lines();
        let version = lines.next()?.strip_prefix("version ")?;
        if version != VERSION && !FORMER_VERSIONS.contains(&version) {
            return None;
        }
        let (mut digest, mut size, mut has_extensions) = (None, None, false);
        for line in lines {
            match line.split_once(' ')? {
                ("oid", id) => digest = Some(id.strip_prefix("sha256:")?.parse().ok()?),
                ("size", bytes) => size = Some(bytes.parse().ok()?),
                (key, _) => has_extensions |= key.starts_with("ext-"),
            }
        }
        Some(Self {
            digest: digest?,
            size: size?,
            has_extensions,
        })
    }

    /// The text that git-lfs writes.
    pub(crate) fn to_text(&self) -> String {
        format!("version {VERSION}\noid sha256:{}\nsize {}\n", self.digest, self.size)
    }

    /// Where git-lfs keeps the content, below a git directory.
    pub(crate) fn place(&self) -> PathBuf {
        let name = self.digest.as_str();
        let part = |from: usize| name.get(from..from + 2).unwrap_or_default();
        ["lfs", "objects", part(0), part(2), name].iter().collect()
    }

    /// Whether this is what it points to.
    pub(crate) fn is_of(&self, content: &[u8]) -> bool {
        self.size == content.len() as u64 && self.digest == Digest::of(content)
    }
}

/// What git stores of a content behind the filter: git-lfs leaves pointers and nothing as they are.
pub(crate) fn stored_as(content: &[u8]) -> Option<Pointer> {
    (!content.is_empty() && Pointer::read(content).is_none()).then(|| Pointer::to(content))
}

/// The name of a content in the commit beside a base.
pub(crate) fn entry_of(digest: &Digest) -> String {
    format!("o{digest}")
}

pub(crate) fn to_text<'a>(all: impl Iterator<Item = (&'a Digest, &'a [u8])>) -> Vec<u8> {
    let mut text = Vec::new();
    for (digest, path) in all {
        text.extend_from_slice(&[digest.as_str().as_bytes(), b"\0", path, b"\0"].concat());
    }
    text
}

/// The contents and paths of a text of anybody; what is not usable is left out.
pub(crate) fn read(text: &[u8]) -> Vec<(Digest, PathBuf)> {
    let mut found = Vec::new();
    let mut parts = split(text);
    while let (Some(digest), Some(path)) = (parts.next(), parts.next()) {
        let digest = std::str::from_utf8(digest).ok().and_then(|digest| digest.parse().ok());
        let Some(digest) = digest.filter(|_| found.len() < MAX_LARGE_FILES) else {
            break;
        };
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        if is_plain(&path) {
            found.push((digest, path));
        }
    }
    found
}

/// A file of a worktree that has its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filled {
    /// The blob with the text of the pointer.
    pub(crate) pointer: Id,
    /// The blob with the content.
    pub(crate) content: Id,
    pub(crate) size: u64,
}

/// The files of a worktree that have their content, by their paths.
pub(crate) type FilledFiles = HashMap<PathBuf, Filled>;

fn filled_file(shadow: &Shadow) -> PathBuf {
    shadow.git_dir().join(LARGE)
}

/// The files of the worktree that `shadow` is of.
pub(crate) fn filled(shadow: &Shadow) -> Result<FilledFiles, GitError> {
    let path = filled_file(shadow);
    let list = match fs::read(&path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FilledFiles::new()),
        Err(error) => return Err(GitError::io("read", &path)(error)),
    };
    let mut files = FilledFiles::new();
    let mut parts = split(&list);
    while let (Some(about), Some(path)) = (parts.next(), parts.next()) {
        let mut words = std::str::from_utf8(about).unwrap_or_default().split(' ');
        let mut id = || Id::from_str(words.next()?).ok();
        if let (Some(pointer), Some(content)) = (id(), id())
            && let Some(size) = words.next().and_then(|size| size.parse().ok())
        {
            let path = PathBuf::from(OsString::from_vec(path.to_vec()));
            files.insert(path, Filled { pointer, content, size });
        }
    }
    Ok(files)
}

/// Puts on record which files have their content.
pub(crate) fn record(shadow: &Shadow, files: &FilledFiles) -> Result<(), GitError> {
    let path = filled_file(shadow);
    let mut list = Vec::new();
    for (path, file) in files {
        list.extend_from_slice(format!("{} {} {}\0", file.pointer, file.content, file.size).as_bytes());
        list.extend_from_slice(&[path.as_os_str().as_bytes(), b"\0"].concat());
    }
    fs::write(&path, list).map_err(GitError::io("write", &path))
}

/// Whether a file, which is open, has that content.
pub(crate) fn has_content(file: &fs::File, filled: &Filled) -> io::Result<bool> {
    Ok(file.metadata()?.len() == filled.size && hash_open_file(file)? == filled.content)
}

/// Those of `paths` whose file has its content still, and whether it may be executed.
pub(crate) fn unchanged<'a>(
    root: &Path,
    files: &FilledFiles,
    paths: impl Iterator<Item = &'a Path>,
) -> Result<HashMap<PathBuf, (Filled, bool)>, GitError> {
    use std::os::unix::fs::PermissionsExt as _;
    let beneath = Beneath::open(root).map_err(GitError::io("open", root))?;
    let mut found = HashMap::new();
    for path in paths {
        let Some(filled) = files.get(path) else { continue };
        let look = || {
            let Parent::Open(folder, name) = beneath.parent(path, false)? else {
                return Ok(None);
            };
            let Ok(file) = open_file(&folder, name) else {
                return Ok(None);
            };
            let meta = file.metadata()?;
            let is_it = meta.is_file() && has_content(&file, filled)?;
            Ok::<_, io::Error>(is_it.then(|| meta.permissions().mode() & 0o100 != 0))
        };
        if let Some(is_program) = look().map_err(GitError::io("read", &root.join(path)))? {
            found.insert(path.to_owned(), (*filled, is_program));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_read_as_it_was_written_and_a_content_is_none() {
        let pointer = Pointer::to(b"large\n");
        let text = pointer.to_text();
        assert_eq!(Pointer::read(text.as_bytes()), Some(pointer.clone()));
        assert_eq!(stored_as(text.as_bytes()), None, "a pointer stays one");
        assert_eq!(stored_as(b""), None);
        assert_eq!(stored_as(b"large\n"), Some(pointer.clone()));
        assert!(pointer.is_of(b"large\n") && !pointer.is_of(b"other\n"));
        let place = format!(
            "lfs/objects/{}/{}/{}",
            &pointer.digest.as_str()[..2],
            &pointer.digest.as_str()[2..4],
            pointer.digest
        );
        assert_eq!(pointer.place(), Path::new(&place));
        let old = text.replace("git-lfs", "hawser");
        assert_eq!(Pointer::read(old.as_bytes()), Some(pointer.clone()));
        let extended = text.replace("\noid", &format!("\next-0-foo sha256:{}\noid", pointer.digest));
        assert!(Pointer::read(extended.as_bytes()).unwrap().has_extensions);
        let others = [
            text.replace("version", "Version"),
            text.replace("spec/v1", "spec/v9"),
            text.replace("sha256", "sha1"),
            text.replace("size 6", "size six"),
            text.replace("size 6\n", ""),
            format!("{text}{}", " ".repeat(MAX_POINTER_BYTES)),
        ];
        for other in others {
            assert_eq!(Pointer::read(other.as_bytes()), None, "{other}");
        }
        for cut in 0..text.len() - 1 {
            Pointer::read(&text.as_bytes()[..cut]);
        }
    }

    #[test]
    fn what_was_listed_is_read_and_odd_paths_are_left_out() {
        let digest = Digest::of(b"x");
        let all: [&[u8]; 4] = [b"a", b"d/b c", b"../x", b"d/.git/x"];
        let text = to_text(all.iter().map(|path| (&digest, *path)));
        let paths: Vec<PathBuf> = read(&text).into_iter().map(|(_, path)| path).collect();
        assert_eq!(paths, [Path::new("a"), Path::new("d/b c")]);
        for cut in 0..text.len() {
            read(&text[..cut]);
        }
        assert!(read(b"nonsense\0a\0").is_empty());
    }
}
