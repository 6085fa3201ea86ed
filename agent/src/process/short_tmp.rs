//! The TMPDIR of attempts: a folder with a short path. Programs make sockets in TMPDIR, the path of
//! a socket has about a hundred bytes at most on every system, and the state folder of an agent is
//! often longer than what test runners leave of that.
//!
//! ```text
//!   /tmp/kage-<of the state folder>/<of the attempt>/
//! ```
//!
//! Everybody may write to the system's temporary folder, so the outer folder is used only when it is
//! a folder (and no link) of this user that nobody else may enter. Where it is not, TMPDIR stays in
//! the attempt's scratch folder. The names follow from the state folder and from the attempt:
//! what a crash leaves is found at the next start.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use kage_core::id::{AttemptId, Digest};
use kage_git::removal::remove_folder;

/// The system's folder for temporary files, which TMPDIR of the agent does not change.
const SYSTEM: &str = if cfg!(target_os = "macos") {
    "/private/tmp"
} else {
    "/tmp"
};

/// Digits of the state folder's digest in a name.
const OWNER_DIGITS: usize = 12;
/// Digits of an attempt in a name.
const ATTEMPT_DIGITS: usize = 16;

/// How often making a folder is tried again because its parent was just removed, being empty.
const TRIES: usize = 8;

/// The bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;
/// Everybody may write to a folder, and everybody may remove and rename only what is their own.
const WRITABLE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why there is no short TMPDIR.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShortTmpError {
    /// Somebody else could put other files in its place.
    #[error("{path} is {what}")]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It cannot be made.
    #[error("cannot make {path}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The short temporary folders of one agent.
#[derive(Debug, Clone)]
pub(crate) struct ShortTmp {
    folder: PathBuf,
}

impl ShortTmp {
    /// Those of the agent with this state folder.
    #[must_use]
    pub(crate) fn of(state: &Path) -> Self {
        Self::beneath(Path::new(SYSTEM), state)
    }

    fn beneath(system: &Path, state: &Path) -> Self {
        let digest = Digest::of(state.as_os_str().as_encoded_bytes());
        let name = format!("kage-{}", &digest.as_str()[..OWNER_DIGITS]);
        Self {
            folder: system.join(name),
        }
    }

    /// The folder of all of them.
    #[must_use]
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of an attempt.
    #[must_use]
    pub(crate) fn path(&self, attempt: AttemptId) -> PathBuf {
        let id = attempt.to_string();
        self.folder.join(&id[id.len() - ATTEMPT_DIGITS..])
    }

    /// Makes the folder of an attempt, which must not be there yet. Blocks.
    ///
    /// # Errors
    /// When it cannot be made, or other users could change what is in it.
    pub(crate) fn make(&self, attempt: AttemptId) -> Result<PathBuf, ShortTmpError> {
        if let Some(system) = self.folder.parent() {
            checked(system, shared_safely)?;
        }
        let path = self.path(attempt);
        let mut tries = 0;
        loop {
            tries += 1;
            match private_folder(&self.folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error(&self.folder, error));
                }
                Ok(()) | Err(_) => {}
            }
            let made = checked(&self.folder, private)
                .and_then(|()| private_folder(&path).map_err(|error| io_error(&path, error)));
            match made {
                // The last attempt of the moment before removed the outer folder.
                Err(ShortTmpError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
                made => return made.map(|()| path),
            }
        }
    }

    /// Removes the folder of an attempt, and the outer one when no other is in it. Blocks.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        self.drop_folder(&self.path(attempt));
        // It stays while others are in it.
        let _others = std::fs::remove_dir(&self.folder);
    }

    /// Removes what earlier starts of the agent left. Blocks.
    pub(crate) fn sweep(&self) {
        self.drop_folder(&self.folder);
    }

    fn drop_folder(&self, path: &Path) {
        if std::fs::symlink_metadata(path).is_err() || checked(&self.folder, ones_own).is_err() {
            return;
        }
        if let Err(error) = remove_folder(path) {
            tracing::warn!(path = %path.display(), error = kage_core::cause::chain(&error), "folder was not removed");
        }
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn io_error(path: &Path, source: io::Error) -> ShortTmpError {
    ShortTmpError::Io {
        path: path.to_owned(),
        source,
    }
}

fn checked(path: &Path, rule: impl Fn(&Metadata) -> Result<(), &'static str>) -> Result<(), ShortTmpError> {
    let found = std::fs::symlink_metadata(path).map_err(|error| io_error(path, error))?;
    rule(&found).map_err(|what| ShortTmpError::Unsafe {
        path: path.to_owned(),
        what,
    })
}

/// A folder of this user. Programs of sessions may have changed its mode.
fn ones_own(found: &Metadata) -> Result<(), &'static str> {
    if !found.is_dir() {
        Err("not a folder")
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        Err("another user's")
    } else {
        Ok(())
    }
}

/// A folder of this user that nobody else may enter.
fn private(found: &Metadata) -> Result<(), &'static str> {
    ones_own(found)?;
    if found.mode() & OTHERS != 0 {
        Err("open to other users")
    } else {
        Ok(())
    }
}

/// A folder in which nobody else can remove or rename what this user makes.
fn shared_safely(found: &Metadata) -> Result<(), &'static str> {
    let owner = found.uid();
    if !found.is_dir() {
        Err("not a folder")
    } else if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Err("another user's")
    } else if found.mode() & WRITABLE != 0 && found.mode() & STICKY == 0 {
        Err("a folder in which every user may rename the files of others")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn place() -> (tempfile::TempDir, ShortTmp, AttemptId) {
        let system = tempfile::tempdir().unwrap();
        let short = ShortTmp::beneath(system.path(), Path::new("/home/somebody/.local/state/kage/agent"));
        (system, short, AttemptId::from_random(7))
    }

    #[test]
    fn a_socket_with_a_name_of_sixty_bytes_fits() {
        let short = ShortTmp::of(Path::new("/home/somebody/with/a/long/name/.local/state/kage/agent"));
        let path = short.path(AttemptId::from_random(u128::MAX));
        assert!(path.as_os_str().len() <= 45, "{}", path.display());
    }

    #[test]
    fn folders_are_private_and_go_with_their_attempt() {
        let (_system, short, attempt) = place();
        let path = short.make(attempt).unwrap();
        for folder in [path.as_path(), short.folder()] {
            let mode = std::fs::metadata(folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
        }
        assert!(
            matches!(short.make(attempt), Err(ShortTmpError::Io { .. })),
            "it is one attempt's"
        );
        let other = short.make(AttemptId::from_random(8)).unwrap();
        std::fs::write(path.join("file"), "").unwrap();
        short.remove(attempt);
        assert!(!path.exists() && other.exists());
        short.remove(AttemptId::from_random(8));
        assert!(!short.folder().exists());
        short.remove(attempt);
    }

    #[test]
    fn what_somebody_else_could_change_is_not_used() {
        let (system, short, attempt) = place();
        let elsewhere = system.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let kept = elsewhere.join(short.path(attempt).file_name().unwrap());
        std::fs::create_dir(&kept).unwrap();
        symlink(&elsewhere, short.folder()).unwrap();
        let refused = |short: &ShortTmp| short.make(attempt).unwrap_err().to_string();
        assert!(refused(&short).ends_with("is not a folder"));
        short.remove(attempt);
        short.sweep();
        assert!(kept.exists(), "nothing behind a link is removed");

        std::fs::remove_file(short.folder()).unwrap();
        std::fs::create_dir(short.folder()).unwrap();
        std::fs::set_permissions(short.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refused(&short).ends_with("is open to other users"));

        std::fs::remove_dir(short.folder()).unwrap();
        std::fs::set_permissions(system.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused(&short).contains("every user may rename"));
        std::fs::set_permissions(system.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        short.make(attempt).unwrap();
    }

    #[test]
    fn a_start_removes_what_a_crash_left() {
        let (_system, short, attempt) = place();
        let path = short.make(attempt).unwrap();
        std::fs::write(path.join("file"), "").unwrap();
        short.sweep();
        assert!(!short.folder().exists());
    }
}
