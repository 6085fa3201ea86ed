//! One started program: behind a warden, or in a process group of its own.
//!
//! It owns starting, signalling and learning the end; output pipes are handed to the
//! driver. Everything ends when a [`Child`] is dropped.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStderr, ChildStdout};
use tokio::time::Instant;

use super::{Command, RunError, Runner, Status, Stdin};

/// What the agent writes to a warden: [`Order::Start`] first, with the bytes for standard
/// input after its line. A closed socket means the same as [`Order::Stop`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Start(Start),
    Freeze,
    Thaw,
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) program: OsString,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) cwd: PathBuf,
    pub(super) stdin: StartStdin,
    pub(super) grace: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StartStdin {
    Null,
    /// This many bytes follow.
    Bytes(usize),
    File(PathBuf),
}

/// What a warden writes to the agent, one line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Started { pid: i32 },
    SpawnFailed { os_error: Option<i32>, message: String },
    Ended { status: Status, survivors: u32 },
}

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
    Warden(Warden),
    Group(Group),
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Warden {
    orders: tokio::net::unix::OwnedWriteHalf,
    messages: tokio::io::Lines<tokio::io::BufReader<tokio::net::unix::OwnedReadHalf>>,
    /// The program's own group, to end what can be ended should the warden be lost.
    group: Option<Pid>,
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
            return Self::start_warden(executable, command, grace).await;
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

    #[cfg(target_os = "linux")]
    async fn start_warden(executable: &PathBuf, command: &Command, grace: Duration) -> Result<Self, RunError> {
        use std::os::fd::OwnedFd;
        use tokio::io::AsyncBufReadExt as _;

        let warden_error = |source| RunError::Warden {
            executable: executable.clone(),
            source,
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(warden_error)?;
        ours.set_nonblocking(true).map_err(warden_error)?;
        let mut process = {
            // The command owns the warden's end of the socket; dropping it here is what
            // makes the warden's death visible as an end of file.
            let mut warden = std::process::Command::new(executable);
            std::os::unix::process::CommandExt::arg0(&mut warden, "kage-warden");
            let mut warden = tokio::process::Command::from(warden);
            warden
                .arg(super::WARDEN_ARGUMENT)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            warden.spawn().map_err(warden_error)?
        };
        let (messages, orders) = tokio::net::UnixStream::from_std(ours)
            .map_err(warden_error)?
            .into_split();
        let mut warden = Warden {
            orders,
            messages: tokio::io::BufReader::new(messages).lines(),
            group: None,
        };

        let (stdin, bytes) = match &command.stdin {
            Stdin::Null => (StartStdin::Null, &[][..]),
            Stdin::Bytes(bytes) => (StartStdin::Bytes(bytes.len()), &bytes[..]),
            Stdin::File(path) => (StartStdin::File(path.clone()), &[][..]),
        };
        let start = Order::Start(Start {
            program: command.program.clone(),
            args: command.args.clone(),
            env: command.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            cwd: command.cwd.clone(),
            stdin,
            grace,
        });
        warden.send(&start).await.map_err(warden_error)?;
        warden.orders.write_all(bytes).await.map_err(warden_error)?;

        match warden.receive().await.map_err(warden_error)? {
            Some(Message::Started { pid }) => warden.group = Pid::from_raw(pid),
            Some(Message::SpawnFailed { os_error, message }) => {
                let source = os_error.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error);
                process.wait().await.map_err(warden_error)?;
                return Err(RunError::Spawn {
                    program: command.program.clone(),
                    source,
                });
            }
            Some(Message::Ended { .. }) | None => {
                process.wait().await.map_err(warden_error)?;
                return Err(RunError::WardenLost {
                    program: command.program.clone(),
                });
            }
        }
        Ok(Self {
            program: command.program.clone(),
            process,
            hold: Hold::Warden(warden),
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
            Hold::Warden(warden) => warden.order(&Order::Stop).await,
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
            Hold::Warden(warden) => warden.order(if frozen { &Order::Freeze } else { &Order::Thaw }).await,
            Hold::Group(group) => signal_group(group.pid, if frozen { Signal::STOP } else { Signal::CONT }),
        }
    }

    /// Waits until the program and what can be reached of its descendants is gone.
    /// Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<(Status, u32), RunError> {
        match &mut self.hold {
            #[cfg(target_os = "linux")]
            Hold::Warden(warden) => match warden.receive().await {
                Ok(Some(Message::Ended { status, survivors })) => Ok((status, survivors)),
                Ok(Some(Message::Started { .. } | Message::SpawnFailed { .. }) | None) | Err(_) => {
                    signal_group(warden.group, Signal::KILL);
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
            Hold::Warden(warden) => signal_group(warden.group, Signal::KILL),
            Hold::Group(group) => signal_group(group.pid, Signal::KILL),
        }
        RunError::WardenLost {
            program: self.program.clone(),
        }
    }
}

#[cfg(target_os = "linux")]
impl Warden {
    async fn send(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).await
    }

    /// Sends an order to a warden that may just have ended.
    async fn order(&mut self, order: &Order) {
        if let Err(error) = self.send(order).await {
            tracing::debug!(%error, "the warden takes no orders any more");
        }
    }

    async fn receive(&mut self) -> io::Result<Option<Message>> {
        match self.messages.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }
}
