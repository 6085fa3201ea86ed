//! A started program, behind a warden or in its own process group.
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
use super::WardenLoss;
#[cfg(target_os = "linux")]
use super::link::{Link, Order};
use super::{Command, RunError, Runner, Status, Stdin, environment};
use crate::contain::NOT_BUILT;

/// A running program. Dropping it ends the program and its descendants.
#[derive(Debug)]
pub(super) struct Child {
    program: OsString,
    pipes: (Option<ChildStdout>, Option<ChildStderr>),
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
    process: tokio::process::Child,
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

/// Signals a group that may have ended already.
fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        match kill_process_group(group, signal) {
            // The group has ended, or (macOS) has only zombies.
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

/// How many times a start is repeated while the system refuses another process, and the pause
/// between. In that time a session that starts too many processes is ended.
const NO_ROOM: (u32, Duration) = (30, Duration::from_millis(100));

/// True when the system could not make another process just now.
fn no_room(error: &RunError) -> bool {
    match error {
        RunError::Spawn { source, .. } | RunError::Warden { source, .. } => {
            let error = rustix::io::Errno::from_io_error(source);
            // What builds a box says of a process that it could not make no more than that it failed.
            matches!(error, Some(rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM))
                || (error.is_none() && source.to_string() == NOT_BUILT)
        }
        RunError::WardenLost { .. } | RunError::Wait { .. } => false,
    }
}

impl Child {
    /// Starts the program; when this returns, it runs.
    pub(super) async fn start(runner: &Runner, command: &Command, grace: Duration) -> Result<Self, RunError> {
        for _ in 0..NO_ROOM.0 {
            match Self::start_once(runner, command, grace).await {
                Err(error) if no_room(&error) => tokio::time::sleep(NO_ROOM.1).await,
                started => return started,
            }
        }
        Self::start_once(runner, command, grace).await
    }

    async fn start_once(runner: &Runner, command: &Command, grace: Duration) -> Result<Self, RunError> {
        #[cfg(target_os = "linux")]
        if let Some(executable) = runner.executable() {
            let room = match runner {
                Runner::Contained(_, room) => Some(&**room),
                Runner::Warden(_) | Runner::ProcessGroup | Runner::Played(_) => None,
            };
            let mut link = Link::start(executable, room, command, grace).await?;
            let pipes = link.take_pipes().map_err(|source| RunError::Warden {
                executable: executable.to_owned(),
                source,
            })?;
            return Ok(Self {
                program: command.program.clone(),
                pipes,
                hold: Hold::Warden(link),
            });
        }
        match runner {
            // Nothing runs outside of its box.
            Runner::Contained(..) => Err(RunError::Spawn {
                program: command.program.clone(),
                source: std::io::ErrorKind::Unsupported.into(),
            }),
            Runner::Warden(_) | Runner::ProcessGroup | Runner::Played(_) => Self::start_group(command, grace),
        }
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
        let mut process = tokio::process::Command::new(&command.program);
        environment::set(process.as_std_mut(), command.env.pairs());
        let mut process = process
            .args(&command.args)
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
            pipes: (process.stdout.take(), process.stderr.take()),
            hold: Hold::Group(Group {
                pid: pid_of(&process),
                process,
                grace,
                kill_at: None,
                feeding,
            }),
        })
    }

    /// The program's pipes; there the first time only.
    pub(super) fn take_pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.pipes.0.take(), self.pipes.1.take())
    }

    /// Sends SIGTERM. What is left after the grace period is killed while [`Child::ended`] is
    /// awaited.
    pub(super) async fn stop(&mut self) {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => link.order(&Order::Stop).await,
            Hold::Group(group) => {
                signal_group(group.pid, Signal::TERM);
                // A stopped program handles the signal only after SIGCONT.
                signal_group(group.pid, Signal::CONT);
                group.kill_at = Some(Instant::now() + group.grace);
            }
        }
    }

    /// Stops the program, or continues it.
    pub(super) async fn freeze(&mut self, frozen: bool) {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => link.order(if frozen { &Order::Freeze } else { &Order::Thaw }).await,
            Hold::Group(group) => signal_group(group.pid, if frozen { Signal::STOP } else { Signal::CONT }),
        }
    }

    /// Waits until the program and its reachable descendants have ended. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<(Status, u32), RunError> {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => link.ended().await.map_err(|lost| lost.error(&self.program)),
            Hold::Group(group) => {
                let wait_error = |source| RunError::Wait {
                    program: self.program.clone(),
                    source,
                };
                let status = loop {
                    let kill_at = group.kill_at;
                    tokio::select! {
                        status = group.process.wait() => break status.map_err(wait_error)?,
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

    /// Kills what should have ended, and waits. Returns the number of processes that are left.
    pub(super) async fn abandon(&mut self) -> u32 {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(link) => link.abandon(Duration::ZERO, Some(WardenLoss::Silent)).await.survivors,
            Hold::Group(group) => {
                signal_group(group.pid, Signal::KILL);
                1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_what_time_cures_is_waited_for() {
        let spawn = |errno: Errno| RunError::Spawn {
            program: "sh".into(),
            source: errno.into(),
        };
        let warden = |errno: Errno| RunError::Warden {
            executable: "kage".into(),
            source: errno.into(),
        };
        for (errno, cured) in [
            (Errno::AGAIN, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::TOOBIG, false),
        ] {
            assert_eq!(no_room(&spawn(errno)), cured, "{errno}");
            assert_eq!(no_room(&warden(errno)), cured, "{errno}");
        }
        for (words, cured) in [(NOT_BUILT, true), ("another", false)] {
            let source = std::io::Error::other(words);
            let program = "sh".into();
            assert_eq!(no_room(&RunError::Spawn { program, source }), cured, "{words}");
        }
    }
}
