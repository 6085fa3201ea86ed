//! Errors of git operations, run by either git or libgit2. Operations with refusals that a person
//! must hear about have error types of their own.

use std::io;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_core::left_out::in_units;

/// An object that is not taken, because somebody could be attacked with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedObject {
    pub object: Oid,
    /// git's name of the flaw, such as `hasDotgit`.
    pub flaw: String,
    /// git's words for it.
    pub words: String,
}

/// A push of which the other side took nothing, and said why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPush {
    /// The reason that git's protocol has for a reference: `ng REFERENCE REASON`.
    pub reason: String,
    /// The errors that the other side printed. Empty = none.
    pub words: Vec<String>,
    /// The machine of the other side is at fault: the same push may be taken later.
    pub by_machine: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("git {operation} could not be started; is git installed and on PATH?")]
    Spawn {
        /// The git command, such as `fetch`.
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    /// git ran and ended with an error.
    #[error("git {operation} failed ({exit}): {stderr}")]
    Failed {
        operation: &'static str,
        /// Exit code or signal, as text.
        exit: String,
        /// Trimmed and bounded.
        stderr: String,
    },
    /// git printed more than this crate can use.
    #[error("git {operation} printed more than {limit} bytes")]
    TooMuchOutput { operation: &'static str, limit: usize },
    /// git printed something that this crate does not understand.
    #[error("git {operation} printed something unexpected: {output:?}")]
    Unexpected {
        operation: &'static str,
        /// The beginning of the output.
        output: String,
    },
    #[error("could not {action}")]
    Library {
        /// What Kage attempted, as a clause.
        action: &'static str,
        #[source]
        source: git2::Error,
    },
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{pattern:?} is not a path pattern")]
    Pattern {
        pattern: String,
        #[source]
        source: globset::Error,
    },
    /// git left a file out without reporting a failure.
    #[error("git did not take {path:?}: it cannot store a file of that name")]
    NotTaken { path: String },
    /// The files that a session made are too many, or too large together.
    #[error(
        "the worktree has more new files than a result may have (at most {most_files} files of {} together), most of \
         them in {mostly}",
        in_units(*most_bytes)
    )]
    TooMuch {
        most_files: u64,
        most_bytes: u64,
        /// The name at the top that has most of them.
        mostly: String,
    },
    /// A pack that is none, or was changed on its way.
    #[error("the pack is damaged: {reason}")]
    PackDamaged {
        /// A clause that says where.
        reason: &'static str,
    },
    /// A pack is more than is taken.
    #[error("the pack is not taken: {reason}")]
    PackRefused {
        /// A clause that says what is too much.
        reason: String,
    },
    /// A checkout that is not what its commit says: what it was made of is damaged, or it was changed.
    #[error("the checkout is not as its commit has it: {}", path.display())]
    NotAsCommitted {
        /// The first path, relative to the checkout.
        path: PathBuf,
    },
    /// A path in a tree that must not be written to a disk.
    #[error("the path {path:?} is not safe to write")]
    UnsafePath { path: String },
    /// An invalid name for a reference.
    #[error("{name:?} is not a name for a reference")]
    ReferenceName {
        /// The beginning of the name.
        name: String,
    },
    /// The blocking thread panicked or was cancelled.
    #[error("could not finish {action}")]
    Interrupted { action: &'static str },
}

/// Output of git and libgit2 when the machine, not the repository, is at fault.
const MACHINE: [&str; 6] = [
    "No space left on device",
    "Disk quota exceeded",
    "Cannot allocate memory",
    "Out of memory",
    "Resource temporarily unavailable",
    "Too many open files",
];

/// Output of git when its own repository is damaged, in lower case.
const DAMAGE: [&str; 40] = [
    "corrupt",
    "bad object",
    "bad tree",
    "bad config",
    "bad index",
    "bad signature",
    "bad shallow",
    "bad ref",
    "broken ref",
    "badly formed",
    "hash mismatch",
    "checksum mismatch",
    "does not match",
    "does not point to a valid object",
    "doesn't point to a valid object",
    "invalid object",
    "invalid index-pack",
    "invalid sha1 pointer",
    "not a valid object",
    "not a git repository",
    "not a tree object",
    "unable to parse",
    "unable to read",
    "unable to unpack",
    "unable to find",
    "unable to open object",
    "unable to get",
    "unexpected line in",
    "unresolved delta",
    "could not parse",
    "cannot read existing object",
    "failed to read",
    "failed to unpack tree",
    "is empty",
    "missing ",
    "info/alternates",
    "mmap failed",
    "unterminated line in",
    "did not send all necessary objects",
    "did not receive expected object",
];

/// More output of git when the other side's repository is damaged.
const DAMAGE_THERE: [&str; 6] = [
    "is damaged",
    "abnormal exit",
    "unpacker error",
    "unresolved deltas",
    "not a git packfile",
    "missing necessary objects",
];

/// Output of git when files of a repository are altered or belong to another user.
const WRONG_FILES: [&str; 6] = [
    "Not a directory",
    "Is a directory",
    "Permission denied",
    "insufficient permission",
    "unable to create",
    "cannot lock ref",
];

/// Operations on the files of a worktree, which a session may have made unreadable. They name a file
/// of the repository by its absolute path.
const OF_WORKTREES: [&str; 7] = [
    "check-attr",
    "check-ignore",
    "checkout-index",
    "diff",
    "diff-files",
    "ls-files",
    "update-index",
];

/// Output of git when no server accepted its connection.
const AWAY: [&str; 4] = [
    "Failed to connect",
    "Could not connect",
    "Couldn't connect",
    "Could not resolve host",
];

/// Output of git when a connection ended before the answer did.
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

/// Why a fetch failed, as far as the failure tells something about the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchProblem {
    Away,
    /// The connection broke during the answer.
    BrokenOff,
    NoReference,
    /// Any other failure; it would repeat.
    Other,
}

impl GitError {
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

    /// True when the machine failed rather than git's input, so that the same operation may succeed
    /// later: no disk space, no memory, a killed program.
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
            | Self::TooMuch { .. }
            | Self::PackDamaged { .. }
            | Self::PackRefused { .. }
            | Self::UnsafePath { .. }
            | Self::NotAsCommitted { .. }
            | Self::ReferenceName { .. } => false,
        }
    }

    /// True when our repository at `path` may be damaged: something that git or libgit2 cannot
    /// read, or altered files. A check decides ([`crate::Mirror::heal`]).
    #[must_use]
    pub fn suggests_damage(&self, path: &Path) -> bool {
        match self {
            Self::Failed {
                operation,
                stderr,
                exit,
            } => {
                let is_ours = |line: &str| {
                    !OF_WORKTREES.contains(operation) || path.to_str().is_none_or(|path| line.contains(path))
                };
                // Lines from the other side are about its repository.
                let own = stderr.lines().filter(|line| !is_theirs(line));
                let machine = |line: &&str| MACHINE.iter().any(|words| line.contains(words));
                let mut own = own.filter(|line| !machine(line));
                let is_damage = |line: &str| {
                    let small = line.to_ascii_lowercase();
                    DAMAGE.iter().any(|words| small.contains(words))
                        || (WRONG_FILES.iter().any(|words| line.contains(words)) && is_ours(line))
                };
                // A bug in git on unexpected data.
                own.any(is_damage) || exit.contains("SIGSEGV") || exit.contains("SIGBUS")
            }
            Self::Library { source, .. } => {
                let machine = MACHINE.iter().any(|words| source.message().contains(words));
                !machine && is_of_repository(source.class())
            }
            Self::Io { path: of, source, .. } => of.starts_with(path) && is_wrong_file(source),
            Self::Unexpected { .. } | Self::NotAsCommitted { .. } => true,
            Self::Spawn { .. }
            | Self::Interrupted { .. }
            | Self::TooMuchOutput { .. }
            | Self::Pattern { .. }
            | Self::NotTaken { .. }
            | Self::UnsafePath { .. }
            | Self::TooMuch { .. }
            | Self::PackDamaged { .. }
            | Self::PackRefused { .. }
            | Self::ReferenceName { .. } => false,
        }
    }

    /// Why the other side of a push did not take it, if it said so and its repository is sound.
    #[must_use]
    pub fn refused_push(&self) -> Option<RefusedPush> {
        let Self::Failed { stderr, .. } = self else {
            return None;
        };
        // ` ! [remote rejected] FROM -> TO (REASON)`; git calls it another word for some reasons.
        let reason = |line: &str| {
            let rejected = line.trim_start().strip_prefix("! [")?;
            let (_, reason) = rejected.strip_suffix(')')?.split_once(" (")?;
            (rejected.starts_with("remote") || rejected.starts_with("rejected")).then(|| reason.to_owned())
        };
        let words = |line: &str| {
            let said = line.strip_prefix("remote:")?.trim();
            let said = said.strip_prefix("error: ").or_else(|| said.strip_prefix("fatal: "))?;
            // A program that Kage turns off there.
            (!said.starts_with("cannot run :")).then(|| without_folders(said))
        };
        if self.suggests_damage_there() {
            return None;
        }
        Some(RefusedPush {
            reason: stderr.lines().find_map(reason)?,
            words: stderr.lines().filter_map(words).collect(),
            by_machine: MACHINE.iter().any(|words| stderr.contains(words)),
        })
    }

    /// The object that was not taken from a pack, here or by the other side of a push, if that is
    /// why it failed.
    #[must_use]
    pub fn refused_object(&self) -> Option<RefusedObject> {
        let Self::Failed { stderr, .. } = self else {
            return None;
        };
        let object = |line: &str| {
            let rest = line.strip_prefix("remote:").unwrap_or(line).trim_start();
            let rest = rest.strip_prefix("error: ").or_else(|| rest.strip_prefix("fatal: "))?;
            let (object, said) = rest.strip_prefix("object ")?.split_once(": ")?;
            let (flaw, words) = said.split_once(": ")?;
            Some(RefusedObject {
                object: object.parse().ok()?,
                flaw: flaw.to_owned(),
                words: words.trim().to_owned(),
            })
        };
        stderr.lines().find_map(object)
    }

    /// True when a fetch or push failed because the other side's repository is damaged.
    #[must_use]
    pub fn suggests_damage_there(&self) -> bool {
        let Self::Failed { stderr, .. } = self else {
            return false;
        };
        let machine = MACHINE.iter().any(|words| stderr.contains(words));
        let says = |line: &str| {
            let small = line.to_ascii_lowercase();
            DAMAGE.iter().chain(&DAMAGE_THERE).any(|words| small.contains(words))
        };
        !machine && stderr.lines().filter(|line| is_theirs(line)).any(says)
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

/// A line of git's with the names of quoted files, and not the folders that they are in, which are
/// nobody's matter on another machine.
fn without_folders(line: &str) -> String {
    let shortened = |(number, part): (usize, &str)| match part.rsplit_once('/') {
        Some((_, name)) if number % 2 == 1 && part.starts_with('/') => name.to_owned(),
        Some(_) | None => part.to_owned(),
    };
    let parts: Vec<String> = line.split('\'').enumerate().map(shortened).collect();
    parts.join("'")
}

/// Whether a line of git's output came from the other side of a fetch or push.
fn is_theirs(line: &str) -> bool {
    [
        "remote:",
        "error: remote",
        "fatal: remote error:",
        " ! [remote rejected]",
    ]
    .iter()
    .any(|start| line.starts_with(start))
}

/// Whether libgit2's error is about a repository's own files.
const fn is_of_repository(class: git2::ErrorClass) -> bool {
    use git2::ErrorClass as Class;
    matches!(
        class,
        Class::Odb
            | Class::Zlib
            | Class::Object
            | Class::Tree
            | Class::Reference
            | Class::Repository
            | Class::Config
            | Class::Indexer
            | Class::Index
            | Class::Invalid
            | Class::Os
            | Class::Sha1
    )
}

/// Whether a file had the wrong content or kind, while the system itself worked.
fn is_wrong_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Runs `work`, which uses libgit2 or many files, on a thread that may block.
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
mod tests;
