//! The agent's side of a warden: starting one and talking to it over its socket.
//!
//! What is said is here too, as lines of JSON; the warden's side is in `warden`.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Command, RunError, Status, Stdin, WARDEN_ARGUMENT};

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

/// The socket to a warden. Closing it makes the warden end everything.
#[derive(Debug)]
pub(super) struct Link {
    orders: OwnedWriteHalf,
    messages: Lines<BufReader<OwnedReadHalf>>,
    /// The program's own group, to end what can be ended should the warden be lost.
    pub(super) group: Option<Pid>,
}

impl Link {
    /// Starts a warden and lets it start the program; when this returns, it runs.
    pub(super) async fn start(
        executable: &Path,
        command: &Command,
        grace: Duration,
    ) -> Result<(Self, tokio::process::Child), RunError> {
        let warden_error = |source| RunError::Warden {
            executable: executable.to_owned(),
            source,
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(warden_error)?;
        ours.set_nonblocking(true).map_err(warden_error)?;
        let mut process = {
            // The command owns the warden's end of the socket; dropping it here is what
            // makes the warden's death visible as an end of file.
            let mut warden = tokio::process::Command::new(executable);
            warden
                .arg0("kage-warden")
                .arg(WARDEN_ARGUMENT)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            warden.spawn().map_err(warden_error)?
        };
        let (messages, orders) = UnixStream::from_std(ours).map_err(warden_error)?.into_split();
        let mut link = Self {
            orders,
            messages: BufReader::new(messages).lines(),
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
        link.send(&start).await.map_err(warden_error)?;
        link.orders.write_all(bytes).await.map_err(warden_error)?;

        match link.receive().await.map_err(warden_error)? {
            Some(Message::Started { pid }) => link.group = Pid::from_raw(pid),
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
        Ok((link, process))
    }

    async fn send(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).await
    }

    /// Sends an order to a warden that may just have ended.
    pub(super) async fn order(&mut self, order: &Order) {
        if let Err(error) = self.send(order).await {
            tracing::debug!(%error, "the warden takes no orders any more");
        }
    }

    pub(super) async fn receive(&mut self) -> io::Result<Option<Message>> {
        match self.messages.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }
}
