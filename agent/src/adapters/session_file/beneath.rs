//! Files in the folders of a session, in which its programs make what they like. The agent reads and writes
//! there too, and may do more on this machine than they: so it follows no link there, reads nothing but
//! regular files, and never waits for one. Which files these are is not decided here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A place in a folder of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beneath {
    /// The agent made it, and no program of a session can put another in its place.
    root: PathBuf,
    below: PathBuf,
}

impl Beneath {
    /// The place with this path below a folder that no session can replace.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, below: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            below: below.into(),
        }
    }

    /// The place of a path that is in one of these folders; the first one counts. `None`: it is in none.
    pub(crate) fn one_of<'p>(roots: impl IntoIterator<Item = &'p Path>, path: &Path) -> Option<Self> {
        let mut roots = roots.into_iter().filter(|root| root.is_absolute());
        roots.find_map(|root| Some(Self::new(root, path.strip_prefix(root).ok()?)))
    }

    /// The place further below.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> Self {
        Self::new(self.root.clone(), self.below.join(name))
    }

    /// Its whole path.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(&self.below)
    }

    /// Opens it for reading; `None`: it is no regular file, or a link is on the way. Blocks.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn open(&self) -> io::Result<Option<File>> {
        let opened = self.parent(false).and_then(|(folder, name)| regular(&folder, name));
        match opened {
            Err(error) if is_nothing(error) => Ok(None),
            opened => Ok(opened?),
        }
    }

    /// The file below this folder whose path fits a pattern: the last by name when there are several. Blocks.
    pub(crate) fn find(&self, pattern: &str, fits: fn(&str, &str) -> bool) -> Option<File> {
        find(&self.folder(&self.below, false).ok()?, pattern, fits)
    }

    /// Makes this folder, and those above it. Blocks.
    ///
    /// # Errors
    /// When something else is there, or the system refuses it.
    pub(crate) fn make(&self) -> io::Result<()> {
        self.folder(&self.below, true).map_err(|error| self.refused(error))?;
        Ok(())
    }

    /// Writes a new file that only the agent's user can read, and the folders above it. A file or link that is
    /// there is removed: others may have the same file by another name. Blocks.
    ///
    /// # Errors
    /// When a folder above it is none, or the system refuses it.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let created = self.parent(true).and_then(|(folder, name)| {
            match unlinkat(&folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&folder, name, flags, Mode::from_raw_mode(0o600))
        });
        File::from(created.map_err(|error| self.refused(error))?).write_all(bytes)
    }

    fn refused(&self, error: Errno) -> io::Error {
        let path = self.path();
        match error {
            Errno::NOTDIR | Errno::LOOP => io::Error::other(format!(
                "a folder above {} is a link or a file, which the session's programs made; nothing is written there",
                path.display()
            )),
            error => io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", path.display())),
        }
    }

    fn parent(&self, make: bool) -> rustix::io::Result<(OwnedFd, &OsStr)> {
        let name = self.below.file_name().ok_or(Errno::INVAL)?;
        let above = self.below.parent().unwrap_or(Path::new(""));
        Ok((self.folder(above, make)?, name))
    }

    /// A folder below the root, opened name by name.
    fn folder(&self, below: &Path, make: bool) -> rustix::io::Result<OwnedFd> {
        let root = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::open(&self.root, root, Mode::empty())?;
        for part in below.components() {
            let Component::Normal(name) = part else {
                return Err(Errno::INVAL);
            };
            let mut opened = openat(&folder, name, FOLDER, Mode::empty());
            if make && matches!(opened, Err(Errno::NOENT)) {
                match mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
                    // Another process created it meanwhile.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                opened = openat(&folder, name, FOLDER, Mode::empty());
            }
            folder = opened?;
        }
        Ok(folder)
    }
}

/// Whether an error says that there is no such file.
fn is_nothing(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO)
}

/// Opens a regular file of a folder; `None`: it is something else.
fn regular(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<File>> {
    // Opening a named pipe would wait for who writes.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(folder, name, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(fstat(&opened)?.st_mode);
    Ok((kind == FileType::RegularFile).then(|| File::from(opened)))
}

fn find(folder: &OwnedFd, pattern: &str, fits: fn(&str, &str) -> bool) -> Option<File> {
    let (name, rest) = match pattern.split_once('/') {
        Some((name, rest)) => (name, Some(rest)),
        None => (pattern, None),
    };
    let mut names: Vec<String> = Dir::read_from(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned()))
        .filter(|found| !matches!(found.as_str(), "." | "..") && fits(name, found))
        .collect();
    names.sort_unstable();
    names.into_iter().rev().find_map(|name| match rest {
        Some(rest) => {
            let below = openat(folder, name.as_str(), FOLDER, Mode::empty()).ok()?;
            find(&below, rest, fits)
        }
        None => regular(folder, OsStr::new(&name)).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn text(file: Option<File>) -> Option<String> {
        let mut text = String::new();
        file?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    /// A session's folder, and one of a person's with a secret in it.
    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let (own, other) = (place.path().join("own"), place.path().join("other"));
        fs::create_dir_all(own.join("a/b")).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::write(own.join("a/b/file"), "own").unwrap();
        fs::write(other.join("file"), "secret").unwrap();
        symlink(&other, own.join("folder")).unwrap();
        symlink(other.join("file"), own.join("a/link")).unwrap();
        (place, own, other)
    }

    #[test]
    fn only_a_regular_file_that_no_link_leads_to_is_opened() {
        let (_place, own, _other) = place();
        let at = |below: &str| Beneath::new(&own, below).open().unwrap();
        assert_eq!(text(at("a/b/file")), Some("own".to_owned()));
        for below in ["a/link", "folder/file", "a/b", "a/absent", "absent/file", "a/b/file/x"] {
            assert_eq!(text(at(below)), None, "{below}");
        }
        for below in ["../other/file", "a/../../other/file", ""] {
            assert!(Beneath::new(&own, below).open().is_err(), "{below}");
        }
        let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
        let find = |pattern: &str| text(Beneath::new(&own, "").find(pattern, fits));
        assert_eq!(find("*/*/file"), Some("own".to_owned()));
        for pattern in ["*/link", "folder/file", "*/file", "../other/file"] {
            assert_eq!(find(pattern), None, "{pattern}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_named_pipe_is_nothing_and_is_not_waited_for() {
        let (_place, own, _other) = place();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, own.join("pipe"), FileType::Fifo, mode, 0).unwrap();
        assert_eq!(text(Beneath::new(&own, "pipe").open().unwrap()), None);
        let found = Beneath::new(&own, "").find("pipe", |pattern, name| pattern == name);
        assert_eq!(text(found), None);
    }

    #[test]
    fn nothing_is_written_where_a_link_leads() {
        let (_place, own, other) = place();
        let at = |below: &str| Beneath::new(&own, below);
        let secret = || fs::read_to_string(other.join("file")).unwrap();
        at("new/folder/file").write(b"new").unwrap();
        assert_eq!(fs::read(own.join("new/folder/file")).unwrap(), b"new");
        at("a/link").write(b"over").unwrap();
        assert!(fs::symlink_metadata(own.join("a/link")).unwrap().is_file());
        assert_eq!(
            (fs::read(own.join("a/link")).unwrap(), secret()),
            (b"over".to_vec(), "secret".to_owned())
        );
        fs::hard_link(other.join("file"), own.join("hard")).unwrap();
        at("hard").write(b"over").unwrap();
        assert_eq!(secret(), "secret");
        let refused = at("folder/file").write(b"over").unwrap_err().to_string();
        assert!(
            refused.contains("is a link or a file") && secret() == "secret",
            "{refused}"
        );
        at("folder/new/file").write(b"over").unwrap_err();
        at("folder/new").make().unwrap_err();
        assert!(!other.join("new").exists());
        at("made/below").make().unwrap();
        assert!(own.join("made/below").is_dir());
    }

    #[test]
    fn a_path_is_in_the_first_folder_that_has_it() {
        let roots = || ["/s", "/s/home"].map(Path::new);
        let found = Beneath::one_of(roots(), Path::new("/s/home/x"));
        assert_eq!(found, Some(Beneath::new("/s", "home/x")));
        assert_eq!(Beneath::one_of(roots(), Path::new("/so/x")), None);
    }
}
