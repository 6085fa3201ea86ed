//! The data directory: its lock, the record of its store, its token, its endpoint file, its TLS
//! files, and the paths in it.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_git::lock_file::{self, LockFile};
use kage_git::private::make_private;

use crate::data::custody::{self, Folder, Mark};
use crate::ports::Random;

/// How often to retry a held lock before it counts as another coordinator's.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "the data directory {path} is in use by another coordinator{}; end that one, or give each its own",
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
    /// Another user may read or could have guessed the token.
    #[error("the token file {path} {problem}; remove it to get a new one")]
    Token { path: PathBuf, problem: &'static str },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

/// The locks of a data directory.
#[derive(Debug)]
struct Locks {
    /// On the directory itself: nobody can remove that lock while its database stays.
    _folder: LockFile,
    /// On a file in it, which says who has it.
    _file: LockFile,
}

/// A locked data directory. The lock lasts as long as this value and its [`Announced`].
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    locks: Arc<Locks>,
}

impl DataDir {
    /// Creates and locks the directory. Only its owner can enter a new one: it holds sources,
    /// prompts and the output of programs.
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        for path in [
            root.to_owned(),
            root.join("repos"),
            root.join("blobs"),
            root.join("output"),
        ] {
            make_private(&path).map_err(failed(&path))?;
        }
        let folder = LockFile::open_existing(root).map_err(failed(root))?;
        // Some network file systems lock no folders. There the file has to do.
        match patiently(|| folder.try_lock()) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(root)),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %root.display(), %error, "the data folder itself cannot be locked");
            }
        }
        let path = root.join("lock");
        let file = LockFile::open(&path).map_err(failed(&path))?;
        match patiently(|| file.try_own()) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(root)),
            Err(TryLockError::Error(source)) => return Err(DataDirError::Io { path, source }),
        }
        Ok(Self {
            root: root.to_owned(),
            locks: Arc::new(Locks {
                _folder: folder,
                _file: file,
            }),
        })
    }

    /// Removes the address that a killed coordinator left: no coordinator answers there.
    pub(crate) fn forget_endpoint(&self) -> Result<(), DataDirError> {
        let path = self.root.join("endpoint");
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DataDirError::Io { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Reads the token, or draws one at the first start.
    pub(crate) fn token(&self, random: &Random) -> Result<String, DataDirError> {
        let path = self.root.join("token");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let token = text.trim();
                if token.len() < 32 || !token.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(DataDirError::Token {
                        path,
                        problem: "does not hold a token of at least 32 printable characters",
                    });
                }
                if !is_private(&path).map_err(failed(&path))? {
                    return Err(DataDirError::Token {
                        path,
                        problem: "can be read by other users",
                    });
                }
                Ok(token.to_owned())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let token = format!("{:032x}{:032x}", random(), random());
                self.write_private("token", &token)?;
                Ok(token)
            }
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Tells clients of this machine where calls are answered. The file is removed when the
    /// returned value is dropped.
    pub(crate) fn announce(&self, scheme: &str, mut address: SocketAddr) -> Result<Announced, DataDirError> {
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        self.write_private("endpoint", &format!("{scheme}://{address}\n"))?;
        Ok(Announced {
            path: self.root.join("endpoint"),
            _locks: Arc::clone(&self.locks),
        })
    }

    pub(crate) fn tls(&self) -> Result<TlsDir, DataDirError> {
        TlsDir::open(&self.root)
    }

    /// Writes a file atomically, readable only by its owner.
    fn write_private(&self, name: &str, content: &str) -> Result<(), DataDirError> {
        write_private(&self.root, name, content)
    }

    /// The folder's content, as it was found.
    pub(crate) fn look(&self, adopt: bool) -> Result<Folder, custody::LookError> {
        Folder::look(&self.root, adopt)
    }

    /// Records which store is here, and that it is open.
    pub(crate) fn opened(&self, mark: Mark) -> Result<(), DataDirError> {
        self.write_private(custody::open_file(), &format!("{}\n", mark.opened))?;
        self.mark(mark)
    }

    /// Records which store is here.
    pub(crate) fn mark(&self, mark: Mark) -> Result<(), DataDirError> {
        self.write_private(custody::mark_file(), &format!("{mark}\n"))
    }

    /// Records that the store is about to end cleanly. This comes before its end: after a clean
    /// end, anything lost with its log was in the database.
    pub(crate) fn closing(&self) {
        let path = self.root.join(custody::open_file());
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot say that the store is closed");
        }
    }

    /// The file with the position of the last acknowledged commit.
    pub(crate) fn position(&self) -> PathBuf {
        self.root.join(custody::position_file())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("kage.db")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn repositories(&self) -> PathBuf {
        self.root.join("repos")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }
}

/// Tries to lock for a while: a program that only checks whether a coordinator runs holds a lock for
/// a moment.
fn patiently(lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    for _look in 0..LOOKS {
        match lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            locked => return locked,
        }
    }
    lock()
}

fn locked(root: &Path) -> DataDirError {
    DataDirError::Locked {
        path: root.to_owned(),
        holder: lock_file::holder(&root.join("lock")),
    }
}

fn write_private(folder: &Path, name: &str, content: &str) -> Result<(), DataDirError> {
    let path = folder.join(name);
    // A temporary file is made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed(&path))?;
    file.write_all(content.as_bytes()).map_err(failed(&path))?;
    file.as_file().sync_all().map_err(failed(&path))?;
    file.persist(&path).map_err(|error| failed(&path)(error.error))?;
    // The name has to survive a power failure as the content does: others rely on both.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed(&path))
}

/// The folder of certificates and keys, readable only by its owner.
#[derive(Debug)]
pub(crate) struct TlsDir(PathBuf);

impl TlsDir {
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        let path = root.join("tls");
        make_private(&path).map_err(failed(&path))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// `None` if the file does not exist.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, DataDirError> {
        let path = self.0.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<(), DataDirError> {
        write_private(&self.0, name, content)
    }
}

/// The endpoint file; dropping this removes it.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
    /// Keeps another coordinator from announcing meanwhile: its file would be removed.
    _locks: Arc<Locks>,
}

impl Drop for Announced {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the endpoint file");
        }
    }
}

#[cfg(unix)]
fn is_private(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 == 0)
}

#[cfg(not(unix))]
fn is_private(_path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn counting() -> Random {
        let next = std::sync::atomic::AtomicU32::new(1);
        Arc::new(move || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed).into())
    }

    #[test]
    fn one_coordinator_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let second = DataDir::open(dir.path()).unwrap_err();
        let expected = format!(
            "the data directory {} is in use by another coordinator (process {}); end that one, or give each its own",
            dir.path().display(),
            std::process::id()
        );
        assert_eq!(second.to_string(), expected);
        // The file is how others see who has it, and not what keeps them out.
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        let third = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(third, DataDirError::Locked { holder: None, .. }), "{third}");
        assert!(!dir.path().join("lock").exists());
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn what_a_killed_one_announced_goes_with_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = dir.path().join("endpoint");
        std::fs::write(&endpoint, "http://127.0.0.1:1\n").unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.forget_endpoint().unwrap();
        assert!(!endpoint.exists());
        // A second one must not remove the announcement of the first.
        let announced = data.announce("http", SocketAddr::from(([127, 0, 0, 1], 7443))).unwrap();
        assert!(DataDir::open(dir.path()).is_err() && endpoint.exists());
        drop(announced);
    }

    #[test]
    fn somebody_who_looks_whether_it_runs_does_not_keep_it_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        let look = LockFile::open_existing(&dir.path().join("lock")).unwrap();
        look.try_lock_shared().unwrap();
        let starting = std::thread::scope(|scope| {
            let starting = scope.spawn(|| DataDir::open(dir.path()));
            drop(look);
            starting.join().unwrap()
        });
        starting.unwrap();
    }

    #[test]
    fn a_new_directory_is_its_owners_and_an_old_one_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let fresh = dir.path().join("state/coordinator");
        let data = DataDir::open(&fresh).unwrap();
        let tls = data.tls().unwrap();
        for path in [fresh.as_path(), &data.blobs(), &data.output(), tls.path()] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        let shared = dir.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o750)).unwrap();
        DataDir::open(&shared).unwrap();
        assert_eq!(mode(&shared), 0o750);
    }

    #[test]
    fn the_token_is_drawn_once_and_stays_private() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let random = counting();
        let token = data.token(&random).unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(data.token(&random).unwrap(), token);
        let path = dir.path().join("token");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(data.token(&random), Err(DataDirError::Token { .. })));
    }

    #[test]
    fn the_endpoint_file_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let announced = data.announce("http", SocketAddr::from(([127, 0, 0, 1], 7443))).unwrap();
        let path = dir.path().join("endpoint");
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), "http://127.0.0.1:7443");
        drop(announced);
        assert!(!path.exists());
        // While the file exists no other coordinator starts, which would announce another one.
        let announced = data.announce("http", SocketAddr::from(([127, 0, 0, 1], 7443))).unwrap();
        drop(data);
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Locked { .. })));
        drop(announced);
        let data = DataDir::open(dir.path()).unwrap();
        let announced = data.announce("https", SocketAddr::from(([0, 0, 0, 0], 7443))).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), "https://127.0.0.1:7443");
        drop(announced);
    }
}
