//! One started program: behind a warden, or in a process group of its own.
//!
//! It owns starting, signalling and learning the end; output pipes are handed to the
//! driver. Everything ends when a [`Child`] is dropped.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStderr, ChildStdout};
use tokio::time::Instant;

#[cfg(target_os = "linux")]
use super::link::{Link, Message, Order};
use super::{Command, RunError, Runner, Status, Stdin};

/// A running program. Dropping it ends the program and what belongs to it.
#[derive(Debug)]
pub(super) struct Child {
    program: OsString,
    process: tokio::process::Child,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    #[cfg(target_os = "linux")]
    Warden(Link),
    Group(Group),
}

#[derive(Debug)]
struct Group {
    pid: Option<Pid>,
    grace: Duration,
    kill_at: Option<Instant>,
    feeding: tokio::task::JoinSet<()>,
}

impl Drop for Group {
    fn drop(&mut self) {
        signal_group(self.pid, Signal::KILL);
    }
}

/// Signals a group that may be gone already.
fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        match kill_process_group(group, signal) {
            // Gone, or (macOS) only zombies are left in it.
            Ok(()) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => {}
            Err(error) => tracing::warn!(%error, ?group, "cannot signal a process group"),
        }
    }
}

fn pid_of(process: &tokio::process::Child) -> Option<Pid> {
    process
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
}

fn status_of(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(code),
        (None, signal) => Status::Signal(signal.unwrap_or(0)),
    }
}

impl Child {
    /// Starts the program; when this returns, it runs.
    pub(super) async fn start(runner: &Runner, command: &Command, grace: Duration) -> Result<Self, RunError> {
        #[cfg(target_os = "linux")]
        if let Some(executable) = &runner.warden {
            let (link, process) = Link::start(executable, command, grace).await?;
            return Ok(Self {
                program: command.program.clone(),
                process,
                hold: Hold::Warden(link),
            });
        }
        #[cfg(not(target_os = "linux"))]
        let _ = runner;
        Self::start_group(command, grace)
    }

    fn start_group(command: &Command, grace: Duration) -> Result<Self, RunError> {
        let spawn_error = |source| RunError::Spawn {
            program: command.program.clone(),
            source,
        };
        let stdin = match &command.stdin {
            Stdin::Null => Stdio::null(),
            Stdin::Bytes(_) => Stdio::piped(),
            Stdin::File(path) => Stdio::from(std::fs::File::open(path).map_err(spawn_error)?),
        };
        let mut process = tokio::process::Command::new(&command.program)
            .args(&command.args)
            .env_clear()
            .envs(&command.env)
            .current_dir(&command.cwd)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn_error)?;
        let mut feeding = tokio::task::JoinSet::new();
        if let (Stdin::Bytes(bytes), Some(mut pipe)) = (&command.stdin, process.stdin.take()) {
            let bytes = bytes.clone();
            feeding.spawn(async move {
                if let Err(error) = pipe.write_all(&bytes).await {
                    tracing::debug!(%error, "the program did not read all of its input");
                }
            });
        }
        Ok(Self {
            program: command.program.clone(),
            hold: Hold::Group(Group {
                pid: pid_of(&process),
                grace,
                kill_at: None,
                feeding,
            }),
            process,
        })
    }

    /// The program's pipes; there the first time only.
    pub(super) fn take_pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.process.stdout.take(), self.process.stderr.take())
    }

    /// Asks politely; whatever is left after the grace period is killed while
    /// [`Child::ended`] is awaited.
    pub(super) async fn stop(&mut self) {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => link.order(&Order::Stop).await,
            Hold::Group(group) => {
                signal_group(group.pid, Signal::TERM);
                // A stopped program takes the polite signal only when it goes on.
                signal_group(group.pid, Signal::CONT);
                group.kill_at = Some(Instant::now() + group.grace);
            }
        }
    }

    /// Stops the program from running, or lets it go on.
    pub(super) async fn freeze(&mut self, frozen: bool) {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => link.order(if frozen { &Order::Freeze } else { &Order::Thaw }).await,
            Hold::Group(group) => signal_group(group.pid, if frozen { Signal::STOP } else { Signal::CONT }),
        }
    }

    /// Waits until the program and what can be reached of its descendants is gone.
    /// Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<(Status, u32), RunError> {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => match link.receive().await {
                Ok(Some(Message::Ended { status, survivors })) => Ok((status, survivors)),
                Ok(Some(Message::Started { .. } | Message::SpawnFailed { .. }) | None) | Err(_) => {
                    signal_group(link.group, Signal::KILL);
                    Err(RunError::WardenLost {
                        program: self.program.clone(),
                    })
                }
            },
            Hold::Group(group) => {
                let wait_error = |source| RunError::Wait {
                    program: self.program.clone(),
                    source,
                };
                let status = loop {
                    let kill_at = group.kill_at;
                    tokio::select! {
                        status = self.process.wait() => break status.map_err(wait_error)?,
                        () = async {
                            match kill_at {
                                Some(at) => tokio::time::sleep_until(at).await,
                                None => std::future::pending().await,
                            }
                        } => {
                            signal_group(group.pid, Signal::KILL);
                            group.kill_at = None;
                        }
                    }
                };
                // Now, while the number still means this group; `drop` must not do it again.
                signal_group(group.pid.take(), Signal::KILL);
                group.feeding.abort_all();
                Ok((status_of(status), 0))
            }
        }
    }

    /// Gives up on a warden that does not answer.
    pub(super) fn abandon(&mut self) -> RunError {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => signal_group(link.group, Signal::KILL),
            Hold::Group(group) => signal_group(group.pid, Signal::KILL),
        }
        RunError::WardenLost {
            program: self.program.clone(),
        }
    }
}
