//! Resolves a program's name once, to an absolute path, and makes sure that the same file is run
//! every time. Sessions have the rights of the user who runs them, so a later lookup of the name
//! might find a file that a session placed there.
//!
//! The rule for a file that changed since it was found: where this user can write neither the file
//! nor any folder above it, the system updated it, and it is run. Elsewhere it is not run until the
//! process restarts, since a session could have changed it. Where only a link on the way changed,
//! as when a tool updates itself beside its old version, the file that the link led to is run. Where
//! only the ctime changed, somebody linked the file (a backup, a store of packages) or set its mode,
//! or wrote it and reset its mtime: its content decides. A change in place that keeps length, number
//! and both times is not seen; no ordinary user can make one.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kage_core::id::Digest;

/// The content of larger programs is not read: each start of this process would wait for that.
const LARGEST: u64 = 64 << 20;

/// What distinguishes a file from a replacement, and from itself after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// The time of the last status change, which no program can set.
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let found = path.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether only the ctime differs, which a new link to the file changes too.
    fn is_the_same_but_touched(self, other: Self) -> bool {
        let changed = other.changed;
        Self { changed, ..self } == other
    }
}

/// The content of a file, unless it is too large or cannot be read.
fn content(path: &Path, identity: Identity) -> Option<Digest> {
    if identity.size > LARGEST {
        return None;
    }
    Some(Digest::of(&fs::read(path).ok()?))
}

/// A program as it was when it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// The path at which it was found: programs that act by the name they are called by need this
    /// one.
    found: PathBuf,
    /// The file that `found` led to.
    real: PathBuf,
    identity: Identity,
    /// Its content, where a session could change it.
    content: Option<Digest>,
}

/// The program is no longer the file that was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} changed after this program started, so it is not run; if you updated it, restart the agent",
    path.display()
)]
pub struct Changed {
    pub path: PathBuf,
}

impl Changed {
    /// Converts this to an error of starting the program.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, self)
    }
}

impl Executable {
    /// Finds a program as a shell does: by its path, or by its name in `folders`.
    #[must_use]
    pub fn find(name: &OsStr, folders: &[PathBuf]) -> Option<Self> {
        if Path::new(name).components().count() > 1 {
            return Self::at(&std::path::absolute(name).ok()?);
        }
        folders.iter().find_map(|folder| Self::at(&folder.join(name)))
    }

    /// The program at a path; `None` when there is none.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        if !is_executable(path) {
            return None;
        }
        let real = path.canonicalize().ok()?;
        let identity = Identity::of(&real).ok()?;
        Some(Self {
            found: path.to_owned(),
            identity,
            content: is_ours(path).then(|| content(&real, identity)).flatten(),
            real,
        })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.found
    }

    /// True when it is in this folder, or is a link into it.
    #[must_use]
    pub fn is_inside(&self, folder: &Path) -> bool {
        let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        self.found.starts_with(folder) || self.found.starts_with(&real) || self.real.starts_with(&real)
    }

    /// The path to run now.
    ///
    /// # Errors
    /// When the file changed and a session could have changed it.
    pub fn to_run(&self) -> Result<&Path, Changed> {
        if Identity::of(&self.real).is_ok_and(|now| self.is_unchanged(now)) {
            let leads_there = self.found.canonicalize().is_ok_and(|now| now == self.real);
            return Ok(if leads_there { &self.found } else { &self.real });
        }
        if is_executable(&self.found) && !is_ours(&self.found) {
            return Ok(&self.found);
        }
        Err(Changed {
            path: self.found.clone(),
        })
    }

    fn is_unchanged(&self, now: Identity) -> bool {
        let holds_the_same = || self.content.is_some() && content(&self.real, now) == self.content;
        now == self.identity || (now.is_the_same_but_touched(self.identity) && holds_the_same())
    }
}

#[must_use]
pub fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// True when this user, and so any session, can change what a path names: the file itself or an
/// entry of a folder on the way, links followed and not followed.
#[must_use]
pub fn is_ours(path: &Path) -> bool {
    let writable = |path: &Path| {
        path.ancestors().any(|part| {
            rustix::fs::accessat(
                rustix::fs::CWD,
                part,
                rustix::fs::Access::WRITE_OK,
                rustix::fs::AtFlags::EACCESS,
            )
            .is_ok()
        })
    };
    writable(path) || path.canonicalize().is_ok_and(|real| writable(&real))
}

/// The search path when PATH is missing or has no usable folder.
pub const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The folders of a `PATH` in which programs are searched, without relative ones (which mean
/// another place in every working directory), those for temporary files, and those inside
/// `kept_out`. When none is left, the system's folders: a shell takes a `PATH` without folders for
/// the working directory.
#[must_use]
pub fn search_folders(path: &OsStr, kept_out: &[PathBuf]) -> Vec<PathBuf> {
    let folders = usable(path, kept_out);
    if folders.is_empty() {
        return usable(OsStr::new(SYSTEM_PATH), kept_out);
    }
    folders
}

fn usable(path: &OsStr, kept_out: &[PathBuf]) -> Vec<PathBuf> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let temporary = real(&std::env::temp_dir());
    let kept_out: Vec<_> = kept_out.iter().map(|folder| (folder, real(folder))).collect();
    let mut folders = Vec::new();
    for folder in std::env::split_paths(path) {
        let there = real(&folder);
        let inside = |(named, resolved): &(&PathBuf, PathBuf)| folder.starts_with(named) || there.starts_with(resolved);
        if folder.is_absolute()
            && there != temporary
            && !kept_out.iter().any(inside)
            && !folder.components().any(|part| part == std::path::Component::ParentDir)
            && !folders.contains(&folder)
        {
            folders.push(folder);
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn program(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn only_folders_that_mean_one_place_are_searched() {
        let place = tempfile::tempdir().unwrap();
        let state = place.path().join("state");
        fs::create_dir_all(state.join("worktrees/bin")).unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(state.join("worktrees"), &link).unwrap();
        let path = format!(
            "bin::.:./x:/usr/bin:{temp}:{state}/worktrees/bin:{link}/bin:{state}-beside:/usr/../usr/bin:/usr/bin:/bin",
            temp = std::env::temp_dir().display(),
            state = state.display(),
            link = link.display(),
        );
        let folders = search_folders(OsStr::new(&path), std::slice::from_ref(&state));
        let beside = format!("{}-beside", state.display());
        assert_eq!(folders, [Path::new("/usr/bin"), Path::new(&beside), Path::new("/bin")]);
    }

    #[test]
    fn without_a_folder_of_use_it_is_the_systems() {
        let place = tempfile::tempdir().unwrap();
        for path in [
            "",
            ":",
            ".",
            "bin:../bin",
            "/usr/../bin",
            place.path().join("in/bin").to_str().unwrap(),
        ] {
            let folders = search_folders(OsStr::new(path), &[place.path().to_owned()]);
            assert_eq!(std::env::join_paths(folders).unwrap(), SYSTEM_PATH, "{path:?}");
        }
    }

    #[test]
    fn the_first_folder_wins_and_what_cannot_be_run_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let folders = ["a", "b"].map(|name| place.path().join(name));
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        fs::write(folders[0].join("tool"), "not executable").unwrap();
        fs::create_dir(folders[0].join("other")).unwrap();
        program(&folders[1].join("tool"), "x");
        let found = Executable::find(OsStr::new("tool"), &folders).unwrap();
        assert_eq!(found.to_run().unwrap(), folders[1].join("tool"));
        assert_eq!(Executable::find(OsStr::new("other"), &folders), None);
        assert!(found.is_inside(place.path()) && !found.is_inside(&folders[0]));
    }

    #[test]
    fn a_program_that_was_replaced_written_or_removed_is_not_run() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("tool");
        let replace = || {
            let other = place.path().join("other");
            program(&other, "a");
            fs::rename(other, &path).unwrap();
        };
        let write_with_its_old_time = || {
            let before = path.metadata().unwrap().modified().unwrap();
            fs::write(&path, "b").unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(before).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 4] = [
            ("written", &|| fs::write(&path, "b").unwrap()),
            ("written with its old time", &write_with_its_old_time),
            ("replaced", &replace),
            ("removed", &|| fs::remove_file(&path).unwrap_or_default()),
        ];
        for (what, change) in changes {
            program(&path, "a");
            let found = Executable::at(&path).unwrap();
            assert!(found.to_run().is_ok(), "{what}");
            // The clock of the file system may have a coarse tick.
            let deadline = Instant::now() + Duration::from_secs(10);
            let changed = loop {
                change();
                match found.to_run() {
                    Err(changed) => break changed,
                    Ok(_) => assert!(Instant::now() < deadline, "{what}"),
                }
            };
            assert_eq!(changed.path, path, "{what}");
            assert!(changed.to_string().contains("restart the agent"), "{what}");
        }
    }

    #[test]
    fn a_program_that_got_a_second_name_or_its_mode_again_is_run() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("tool");
        program(&path, "a");
        let found = Executable::at(&path).unwrap();
        let changed = || {
            let now = path.metadata().unwrap();
            (now.ctime(), now.ctime_nsec())
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        for touch in [
            &|| {
                let second = place.path().join("second");
                fs::hard_link(&path, &second).unwrap();
                fs::remove_file(second).unwrap();
            },
            &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap(),
        ] as [&dyn Fn(); 2]
        {
            let before = changed();
            // The clock of the file system may have a coarse tick.
            while changed() == before {
                assert!(Instant::now() < deadline);
                touch();
            }
            assert_eq!(found.to_run().unwrap(), path);
        }
        let other = Executable { content: None, ..found };
        assert!(other.to_run().is_err(), "nobody knows what it held");
    }

    #[test]
    fn a_link_that_leads_elsewhere_by_now_does_not_change_what_is_run() {
        let place = tempfile::tempdir().unwrap();
        let (old, new, link) = (
            place.path().join("1.0"),
            place.path().join("1.1"),
            place.path().join("tool"),
        );
        program(&old, "old");
        std::os::unix::fs::symlink(&old, &link).unwrap();
        let found = Executable::at(&link).unwrap();
        assert_eq!(found.to_run().unwrap(), link);
        program(&new, "new");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&new, &link).unwrap();
        assert_eq!(found.to_run().unwrap(), old.canonicalize().unwrap());
        fs::remove_file(&old).unwrap();
        assert!(found.to_run().is_err());
    }
}
