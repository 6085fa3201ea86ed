//! Runs programs so that nothing of them is left behind: not after they end, not after
//! they are stopped, not when the agent dies.
//!
//! On Linux a *warden* stands between the agent and the program (see [`warden`]). A *keeper* in the
//! agent kills what a warden leaves when the warden itself was killed, stopped or traced (see
//! [`keeper`]). On other systems only the program's process group is known. This file owns the
//! interface for callers; [`drive`] moves output and watches the time, [`child`] starts and
//! signals.
//!
//! ```text
//! agent (subreaper) --socket--> warden (own session, subreaper) --> program (own group) --> anything
//!   ^------- stdout, stderr: pipes, read only while the caller takes output -------'
//! ```

pub(crate) mod allowance;
mod secret;
mod child;
#[cfg(target_os = "linux")]
mod confined;
mod drive;
mod environment;
pub(crate) mod excerpt;
pub(crate) mod feed;
pub mod handed;
pub(crate) mod programs;
pub(crate) mod machine;
pub(crate) mod short_tmp;
mod turns;
#[cfg(target_os = "linux")]
mod departing;
#[cfg(target_os = "linux")]
mod keeper;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod tree;
#[cfg(target_os = "linux")]
mod warden;

#[cfg(target_os = "linux")]
pub(crate) use tree::is_below_this_process;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::contain::{self, Room};

pub use environment::{
    AgentEnvironment, Environment, EnvironmentParts, LoginVariable, ManifestVariables, Places, TaskVariables, Variable,
    VariableSource, WorkNames,
};
pub use secret::Secret;
pub use turns::Turns;

/// The hidden first argument that turns this executable into a warden.
pub const WARDEN_ARGUMENT: &str = "__warden";

/// How long a stopped program may take to end after its grace period, before this process kills it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The standard input of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// These bytes, then end of file.
    Bytes(Bytes),
    File(PathBuf),
}

/// A program to run, with exactly this environment.
#[derive(Debug, Clone)]
pub struct Command {
    /// A path, or a name to look up in the `PATH` of `env`.
    pub program: OsString,
    /// Its arguments, without the program's own name.
    pub args: Vec<OsString>,
    /// The whole environment; nothing is inherited.
    pub env: Environment,
    pub cwd: PathBuf,
    pub stdin: Stdin,
}

/// Time limits of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Wall-clock limit, frozen time not counted; `None` = its caller watches the time.
    pub timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// Control over a running program.
#[derive(Debug, Clone)]
pub struct Control {
    /// Cancelled = end the program and everything it started.
    pub stop: CancellationToken,
    /// True = the program must not run for now.
    pub frozen: watch::Receiver<bool>,
}

impl Control {
    /// A control that can stop but never freezes.
    #[must_use]
    pub fn stop_only(stop: CancellationToken) -> Self {
        Self {
            stop,
            frozen: watch::channel(false).1,
        }
    }
}

/// Which of a program's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    Stdout,
    Stderr,
}

/// Some output, in the order in which it was read; 64 KiB at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub pipe: Pipe,
    pub bytes: Bytes,
}

/// How the program itself exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Code(i32),
    Signal(i32),
}

impl Status {
    #[must_use]
    pub const fn success(self) -> bool {
        matches!(self, Self::Code(0))
    }

    /// The exit code as a shell would show it: 128 + the signal for a killed program.
    #[must_use]
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It exited by itself.
    Itself,
    Stopped,
    /// It exceeded [`Limits::timeout`].
    TimedOut,
    /// The reader of its output is gone.
    Unread,
}

/// The end of a program and of everything it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub cause: Cause,
    pub status: Status,
    /// Descendants that could not be killed (another user's, or stuck in the kernel).
    pub survivors: u32,
}

/// Why a program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot start {program:?}")]
    Spawn {
        program: OsString,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the warden {executable:?}")]
    Warden {
        /// The executable of the warden.
        executable: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The warden ended without a report, so the program's end is unknown. Everything that the
    /// program had started was killed.
    #[error("the warden of {program:?} was lost: {how}{}", left(*survivors))]
    WardenLost {
        program: OsString,
        how: WardenLoss,
        survivors: u32,
    },
    /// Its end cannot be waited for.
    #[error("cannot wait for {program:?}")]
    Wait {
        program: OsString,
        #[source]
        source: std::io::Error,
    },
}

fn left(survivors: u32) -> String {
    match survivors {
        0 => "; all that the program had started was killed".to_owned(),
        some => format!("; {some} processes that the program had started could not be killed"),
    }
}

/// How a warden was lost. It has the rights of the program that it guards, so that the
/// program can do all of this to it; so can a system that is short of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WardenLoss {
    Killed(i32),
    /// It exited without a report.
    Ended,
    Stopped,
    Traced,
    /// It did not answer in time.
    Silent,
}

impl fmt::Display for WardenLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(signal) => write!(f, "signal {signal} killed it"),
            Self::Ended => f.write_str("it ended without a report"),
            Self::Stopped => f.write_str("a signal stopped it"),
            Self::Traced => f.write_str("a process traced it"),
            Self::Silent => f.write_str("it did not answer in time"),
        }
    }
}

/// How far a program can be kept from leaving something behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containment {
    /// A warden: every descendant is found and killed, also when the agent dies.
    Warden,
    /// The process group only: a descendant that leaves the group survives, and so does
    /// everything when the agent is killed.
    ProcessGroup,
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warden => "warden (every descendant is ended, also when the agent dies)",
            Self::ProcessGroup => "process group (a descendant that leaves its group survives)",
        })
    }
}

/// What runs instead of a program where there are none: it gets what a program would get, and ends
/// as one would.
pub type Play = Arc<
    dyn Fn(Command, Limits, Control, mpsc::Sender<Chunk>) -> BoxFuture<'static, Result<Ended, RunError>> + Send + Sync,
>;

#[derive(Clone, Default)]
pub enum Runner {
    /// Each in a process group of its own.
    #[default]
    ProcessGroup,
    /// Behind a warden with this executable, whose `main` begins with [`warden_main_if_asked`].
    Warden(PathBuf),
    /// The same, in a box.
    Contained(PathBuf, Arc<Room>),
    /// A simulation plays them.
    Played(Play),
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProcessGroup => f.write_str("ProcessGroup"),
            Self::Warden(executable) => f.debug_tuple("Warden").field(executable).finish(),
            Self::Contained(executable, room) => f.debug_tuple("Contained").field(executable).field(room).finish(),
            Self::Played(_) => f.debug_tuple("Played").finish_non_exhaustive(),
        }
    }
}

impl Runner {
    /// The best runner of this system, for an executable whose `main` begins with
    /// [`warden_main_if_asked`].
    #[must_use]
    pub fn this_executable() -> Self {
        // Not `current_exe`: this link also works after the file was replaced by an upgrade.
        if cfg!(target_os = "linux") {
            Self::Warden(PathBuf::from("/proc/self/exe"))
        } else {
            Self::ProcessGroup
        }
    }

    /// How far programs are kept from leaving something behind.
    #[must_use]
    pub fn containment(&self) -> Containment {
        match self {
            Self::Warden(_) | Self::Contained(..) if cfg!(target_os = "linux") => Containment::Warden,
            Self::Warden(_) | Self::Contained(..) | Self::ProcessGroup | Self::Played(_) => Containment::ProcessGroup,
        }
    }

    /// The executable that becomes a warden, if there is one.
    #[must_use]
    pub fn executable(&self) -> Option<&std::path::Path> {
        match self {
            Self::Warden(executable) | Self::Contained(executable, _) => Some(executable),
            Self::ProcessGroup | Self::Played(_) => None,
        }
    }

    /// The same runner for programs in this box; without one, they run as they did. A box is proved with the
    /// warden that builds it, so there is none without a warden.
    #[must_use]
    pub fn within(&self, room: Option<&Arc<Room>>) -> Self {
        match (self, room) {
            (Self::Warden(executable), Some(room)) => Self::Contained(executable.clone(), Arc::clone(room)),
            (Self::Warden(_) | Self::Contained(..) | Self::ProcessGroup | Self::Played(_), _) => self.clone(),
        }
    }

    /// Runs a program until it and everything it started have ended.
    ///
    /// Output goes to `output`; while that is full the program's pipes are not read, so the
    /// program waits. Dropping the future ends the program too, without waiting for it.
    ///
    /// # Errors
    /// When the program cannot be started, or its end cannot be learnt. How it ended
    /// (an exit code, a time limit) is no error.
    pub async fn run(
        &self,
        command: Command,
        limits: Limits,
        control: Control,
        output: mpsc::Sender<Chunk>,
    ) -> Result<Ended, RunError> {
        if let Self::Played(play) = self {
            return play(command, limits, control, output).await;
        }
        let child = child::Child::start(self, &command, limits.grace).await?;
        drive::drive(child, limits, control, output).await
    }
}

/// Waits until nothing is left of ended programs that only this process can kill; not longer
/// than that. To be called before a process ends that ran programs.
pub async fn settle(patience: Duration) {
    #[cfg(target_os = "linux")]
    keeper::settle(patience).await;
    #[cfg(not(target_os = "linux"))]
    let _ = patience;
}

/// Becomes a warden, or a program in its box, if the command line says so, and then never returns. Call it
/// first in `main`, before any thread starts.
pub fn warden_main_if_asked() {
    contain::contain_main_if_asked();
    #[cfg(target_os = "linux")]
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == WARDEN_ARGUMENT)
    {
        std::process::exit(warden::main());
    }
}

#[cfg(test)]
mod tests;
