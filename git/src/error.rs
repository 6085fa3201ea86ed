//! How a git operation fails, whichever of the two ways to run git it used. Operations that
//! can be refused for reasons a person must hear about have error types of their own.

use std::io;
use std::path::{Path, PathBuf};

/// Says why a git operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// git could not be started.
    #[error("git {operation} could not be started; is git installed and on PATH?")]
    Spawn {
        /// What was wanted, such as `fetch`.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// git ran and said no.
    #[error("git {operation} failed ({exit}): {stderr}")]
    Failed {
        /// What was wanted.
        operation: &'static str,
        /// Exit code or signal, as text.
        exit: String,
        /// What git printed, trimmed and bounded.
        stderr: String,
    },
    /// git printed more than anything here can use.
    #[error("git {operation} printed more than {limit} bytes")]
    TooMuchOutput {
        /// What was wanted.
        operation: &'static str,
        /// The bound.
        limit: usize,
    },
    /// git printed something that this crate does not understand.
    #[error("git {operation} printed something unexpected: {output:?}")]
    Unexpected {
        /// What was wanted.
        operation: &'static str,
        /// The start of what it printed.
        output: String,
    },
    /// libgit2 failed.
    #[error("could not {action}")]
    Library {
        /// What was wanted, in words.
        action: &'static str,
        /// The cause.
        #[source]
        source: git2::Error,
    },
    /// The file system failed.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was wanted, in words.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A pattern is not a glob.
    #[error("{pattern:?} is not a path pattern")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The cause.
        #[source]
        source: globset::Error,
    },
    /// git left a file out without calling that a failure.
    #[error("git did not take {path:?}: it cannot store a file of that name")]
    NotTaken {
        /// Which.
        path: String,
    },
    /// A path of a tree may not be written to a disk.
    #[error("the path {path:?} is not safe to write")]
    UnsafePath {
        /// The path.
        path: String,
    },
    /// No reference may have that name.
    #[error("{name:?} is not a name for a reference")]
    ReferenceName {
        /// The start of it.
        name: String,
    },
    /// The blocking thread did not come back.
    #[error("could not finish {action}")]
    Interrupted {
        /// What was wanted, in words.
        action: &'static str,
    },
}

/// What git and libgit2 print when the machine, not the repository, is at fault.
const MACHINE: [&str; 6] = [
    "No space left on device",
    "Disk quota exceeded",
    "Cannot allocate memory",
    "Out of memory",
    "Resource temporarily unavailable",
    "Too many open files",
];

/// What git prints when nobody took its connection.
const AWAY: [&str; 4] = [
    "Failed to connect",
    "Could not connect",
    "Couldn't connect",
    "Could not resolve host",
];

/// What git prints when a connection ended before the answer did.
const BROKEN_OFF: [&str; 8] = [
    "Connection reset",
    "Operation too slow",
    "Recv failure",
    "Send failure",
    "Empty reply from server",
    "RPC failed",
    "early EOF",
    "hung up unexpectedly",
];

/// Why a fetch failed, as far as it says something about the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchProblem {
    /// Nobody was there.
    Away,
    /// Somebody was there, and the answer broke off.
    BrokenOff,
    /// The remote does not have the reference.
    NoReference,
    /// Anything else, which would be the same next time.
    Other,
}

impl GitError {
    /// What a fetch that failed says about the remote.
    #[must_use]
    pub fn fetch_problem(&self) -> FetchProblem {
        let Self::Failed { stderr, .. } = self else {
            return FetchProblem::Other;
        };
        let says = |words: &[&str]| words.iter().any(|words| stderr.contains(words));
        if says(&["couldn't find remote ref"]) {
            FetchProblem::NoReference
        } else if says(&AWAY) {
            FetchProblem::Away
        } else if says(&BROKEN_OFF) {
            FetchProblem::BrokenOff
        } else {
            FetchProblem::Other
        }
    }

    /// True when the machine failed and not what git was given, so that the same operation
    /// may succeed later: no room, no memory, a program that was killed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let machine = |text: &str| MACHINE.iter().any(|words| text.contains(words));
        match self {
            Self::Spawn { .. } | Self::Io { .. } | Self::Interrupted { .. } => true,
            Self::Failed { exit, stderr, .. } => exit.starts_with("signal") || machine(stderr),
            Self::Library { source, .. } => machine(source.message()),
            Self::TooMuchOutput { .. }
            | Self::Unexpected { .. }
            | Self::Pattern { .. }
            | Self::NotTaken { .. }
            | Self::UnsafePath { .. }
            | Self::ReferenceName { .. } => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn library(action: &'static str) -> impl FnOnce(git2::Error) -> Self {
        move |source| Self::Library { action, source }
    }

    pub(crate) fn unexpected(operation: &'static str, output: &[u8]) -> Self {
        let shown = output.get(..200).unwrap_or(output);
        Self::Unexpected {
            operation,
            output: String::from_utf8_lossy(shown).into_owned(),
        }
    }
}

/// Runs `work`, which uses libgit2 or many files, where it may block.
pub(crate) async fn blocking<T, E>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<GitError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(GitError::Interrupted { action }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_did_may_pass() {
        let failed = |exit: &str, stderr: &str| GitError::Failed {
            operation: "index-pack",
            exit: exit.to_owned(),
            stderr: stderr.to_owned(),
        };
        let full = failed("exit status: 128", "fatal: write error: No space left on device");
        assert!(full.is_transient());
        assert!(failed("signal: 9 (SIGKILL)", "").is_transient());
        assert!(GitError::io("create", Path::new("x"))(io::Error::other("x")).is_transient());
        assert!(!failed("exit status: 128", "fatal: pack is corrupted (SHA1 mismatch)").is_transient());
        assert!(!GitError::unexpected("rev-parse", b"?").is_transient());
    }

    #[tokio::test]
    async fn a_fetch_tells_who_was_not_there_from_what_was_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let mirror = crate::Mirror::open_or_init(folder.path().join("to.git")).await.unwrap();
        crate::Mirror::open_or_init(folder.path().join("from.git"))
            .await
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        // Takes a connection and says nothing.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = listener.local_addr().unwrap();
        std::thread::spawn(move || while listener.accept().is_ok() {});
        for (url, problem) in [
            (format!("http://{closed}/x.git"), FetchProblem::Away),
            (format!("http://{silent}/x.git"), FetchProblem::BrokenOff),
            (
                format!("file://{}/from.git", folder.path().display()),
                FetchProblem::NoReference,
            ),
            (
                format!("file://{}/none.git", folder.path().display()),
                FetchProblem::Other,
            ),
        ] {
            let fetched = mirror.fetch(&url, &crate::Auth::None, &["refs/a:refs/a"]).await;
            let error = fetched.unwrap_err();
            assert_eq!(error.fetch_problem(), problem, "{error}");
        }
    }
}
