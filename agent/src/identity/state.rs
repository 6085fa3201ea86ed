//! The agent's state directory: its lock, the agent's id, and the paths in it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use kage_core::id::{AgentId, AttemptId, Digest, InvalidId, ProjectId, RepositoryName};
use kage_git::lock_file::{self, LockFile};
use kage_git::private::make_private;

use crate::ports::Random;
use crate::process::handed::Handed;
use crate::process::short_tmp::ShortTmp;
use crate::shell_socket::ShellSocket;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A person's own files are in it.
    #[error("{path} cannot be a state directory: it is {what}; choose a separate folder with --state")]
    Unfit { path: PathBuf, what: &'static str },
    #[error(
        "the state directory {path} is in use by another agent{}; give each its own with --state",
        holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    Locked {
        path: PathBuf,
        /// The process that holds it, if that is known.
        holder: Option<u32>,
    },
    #[error("cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The id file holds something else.
    #[error("{path} does not hold an agent id; remove it to be a new agent")]
    AgentId {
        path: PathBuf,
        #[source]
        source: InvalidId,
    },
}

/// A locked state directory. The lock lasts as long as this value.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    agent: AgentId,
    _lock: LockFile,
}

impl StateDir {
    /// Creates and locks the directory, and reads the agent's id or draws a new one.
    pub fn open(root: &Path, random: &Random) -> Result<Self, StateError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        if let Some(what) = not_ones_own(root) {
            return Err(StateError::Unfit {
                path: root.to_owned(),
                what,
            });
        }
        make_private(root).map_err(io(root))?;
        let lock_path = root.join("lock");
        let lock = LockFile::open(&lock_path).map_err(io(&lock_path))?;
        lock.try_own().map_err(|error| match error {
            TryLockError::WouldBlock => StateError::Locked {
                path: root.to_owned(),
                holder: lock_file::holder(&lock_path),
            },
            TryLockError::Error(source) => io(&lock_path)(source),
        })?;
        let agent = agent_id(&root.join("agent-id"), random)?;
        Ok(Self {
            // One folder has one name, whatever the working directory and links are.
            root: std::fs::canonicalize(root).map_err(io(root))?,
            agent,
            _lock: lock,
        })
    }

    /// It stays the same across restarts.
    #[must_use]
    pub const fn agent(&self) -> AgentId {
        self.agent
    }

    /// Stores the id that a coordinator assigned.
    pub(crate) fn adopt(&self, agent: AgentId) -> Result<(), StateError> {
        let path = self.root.join("agent-id");
        write_id(&path, agent).map_err(|source| StateError::Io { path, source })
    }

    #[must_use]
    pub fn paths(&self) -> Paths {
        Paths::at(&self.root)
    }
}

/// What a folder is that no program may use as its own; `None` for any other.
#[must_use]
pub fn not_ones_own(folder: &Path) -> Option<&'static str> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = real(folder);
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    if folder == Path::new("/") {
        Some("the root of the file system")
    } else if home.is_some_and(|home| real(Path::new(&home)) == folder) {
        Some("your home folder")
    } else {
        None
    }
}

/// The id of the agent of a state directory, which is made if there is none. For whoever starts that agent
/// and has to know its id before.
pub fn agent_id_in(root: &Path, random: &Random) -> Result<AgentId, StateError> {
    make_private(root).map_err(|source| StateError::Io {
        path: root.to_owned(),
        source,
    })?;
    agent_id(&root.join("agent-id"), random)
}

fn agent_id(path: &Path, random: &Random) -> Result<AgentId, StateError> {
    let io = |source| StateError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|source| StateError::AgentId {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = AgentId::from_random(random());
            write_id(path, id).map_err(io)?;
            Ok(id)
        }
        Err(error) => Err(io(error)),
    }
}

fn write_id(path: &Path, id: AgentId) -> io::Result<()> {
    // Renamed into place, so that a crash leaves no half id.
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, format!("{id}\n"))?;
    File::open(&fresh).and_then(|file| file.sync_all())?;
    std::fs::rename(&fresh, path)
}

/// The paths in a state directory.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The paths of the state directory at `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.root.join("outbox.db")
    }

    /// Which programs were in PATH at the starts so far.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// The containment that the last start proved.
    #[must_use]
    pub fn containment(&self) -> PathBuf {
        self.root.join("containment.json")
    }

    /// Output that is not delivered yet, a folder per attempt.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    /// The bare mirror of one repository.
    #[must_use]
    pub fn mirror(&self, project: &ProjectId, repository: &RepositoryName) -> PathBuf {
        self.root
            .join("mirrors")
            .join(project.as_str())
            .join(format!("{repository}.git"))
    }

    #[must_use]
    pub fn mirrors(&self) -> PathBuf {
        self.root.join("mirrors")
    }

    /// Worktrees, one per attempt.
    #[must_use]
    pub fn worktrees(&self) -> PathBuf {
        self.root.join("worktrees")
    }

    #[must_use]
    pub fn worktree(&self, attempt: AttemptId) -> PathBuf {
        self.worktrees().join(attempt.to_string())
    }

    /// Checkouts that wait for an attempt.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// Scratch folders, one per attempt.
    #[must_use]
    pub fn scratches(&self) -> PathBuf {
        self.root.join("scratch")
    }

    #[must_use]
    pub fn scratch(&self, attempt: AttemptId) -> PathBuf {
        self.scratches().join(attempt.to_string())
    }

    /// Where boxes of attempts find their doors.
    #[must_use]
    pub fn doors(&self) -> PathBuf {
        self.root.join("doors")
    }

    /// The folder with the door of an attempt.
    #[must_use]
    pub fn door(&self, attempt: AttemptId) -> PathBuf {
        self.doors().join(attempt.to_string())
    }

    /// TMPDIRs of attempts, which are not in the state directory: their paths are short.
    #[must_use]
    pub(crate) fn short_tmp(&self) -> ShortTmp {
        ShortTmp::of(&self.root)
    }

    /// Values of variables that clients of this machine left.
    #[must_use]
    pub(crate) fn handed(&self) -> Handed {
        Handed::within(&self.root)
    }

    /// Variables of the shells in which commands of this machine were typed.
    #[must_use]
    pub(crate) fn shells(&self) -> Handed {
        Handed::shells_within(&self.root)
    }

    /// Where commands of this machine hand them over.
    #[must_use]
    pub(crate) fn shell_socket(&self) -> ShellSocket {
        ShellSocket::within(&self.root)
    }

    /// Base contexts by digest.
    #[must_use]
    pub fn contexts(&self) -> PathBuf {
        self.root.join("contexts")
    }

    #[must_use]
    pub fn context(&self, digest: &Digest) -> PathBuf {
        self.contexts().join(digest.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn home_and_root_are_refused() {
        let random: Random = Arc::new(rand::random::<u128>);
        let home = std::env::var_os("HOME").unwrap();
        for root in [
            "/".into(),
            "/tmp/..".into(),
            PathBuf::from(&home),
            Path::new(&home).join("."),
        ] {
            let opened = StateDir::open(&root, &random);
            assert!(matches!(opened, Err(StateError::Unfit { .. })), "{}", root.display());
        }
        assert_eq!(not_ones_own(Path::new("/tmp")), None);
    }

    #[test]
    fn keeps_its_id_and_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let random: Random = Arc::new(rand::random::<u128>);
        let root = dir.path().join("state/agent");
        let first = StateDir::open(&root, &random).unwrap();
        let mode = std::fs::metadata(&root).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let id = first.agent();
        let second = StateDir::open(&root, &random).unwrap_err();
        let expected = format!("is in use by another agent (process {})", std::process::id());
        assert!(second.to_string().contains(&expected), "{second}");
        drop(first);
        assert_eq!(StateDir::open(&root, &random).unwrap().agent(), id);
    }
}
