//! The agent's side of a warden: it starts the warden, talks to it over its socket, and learns how
//! it ended. A warden's report counts only when the warden also ends properly, because a session
//! can get hold of the socket.
//!
//! The messages are here too, as lines of JSON; the other side is in `warden`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::confined::{Confined, confined};
use super::departing::Departed;
use super::keeper::Ward;
use super::{Command, PATIENCE, RunError, Status, Stdin, WARDEN_ARGUMENT, WardenLoss};
use crate::contain::{Confinement, Room};

/// How often a warden is observed, because a stopped or traced one cannot report it.
const LOOK: Duration = Duration::from_millis(250);
/// The longest line of a warden, in bytes. Otherwise a process that holds its socket could fill the
/// agent's memory.
const LONGEST: usize = 64 << 10;
/// How long a warden may take to exit after its last message.
const LEAVING: Duration = Duration::from_secs(2);

/// Orders to a warden: [`Order::Start`] first, followed by the bytes for standard input. A closed
/// socket means [`Order::Stop`].
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
    /// The program's box, if it runs in one.
    #[serde(default)]
    pub(super) confinement: Option<Box<Confinement>>,
    /// The home of cargo of a person, and the one that the program gets instead.
    #[serde(default)]
    pub(super) cargo: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StartStdin {
    Null,
    Bytes(usize),
    File(PathBuf),
}

/// Messages of a warden, one per line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Started,
    SpawnFailed { os_error: Option<i32>, message: String },
    Ended { status: Status, survivors: u32 },
}

/// A warden and the socket to it. Closing it makes the warden end everything.
#[derive(Debug)]
pub(super) struct Link {
    orders: OwnedWriteHalf,
    messages: Messages<OwnedReadHalf>,
    ward: Ward,
    look_at: Instant,
    /// It had exited at the last observation.
    ended: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Running,
    /// It sent its last message, or was given up.
    Leaving(Option<(Status, u32)>, oneshot::Receiver<Departed>),
    Left(Result<(Status, u32), Lost>),
}

/// The loss of a warden.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    pub(super) how: WardenLoss,
    /// Processes that could not be killed.
    pub(super) survivors: u32,
}

/// An observation of a warden.
enum Heard {
    Message(Message),
    /// Its socket is closed, or has invalid content.
    Nothing,
    Lost(WardenLoss),
}

/// Variables as they are sent.
fn owned<'a>(pairs: impl Iterator<Item = (&'a OsStr, &'a OsStr)>) -> Vec<(OsString, OsString)> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl Link {
    /// Starts a warden and lets it start the program; when this returns, it runs.
    pub(super) async fn start(
        executable: &Path,
        room: Option<&Room>,
        command: &Command,
        grace: Duration,
    ) -> Result<Self, RunError> {
        let warden_error = |source| RunError::Warden {
            executable: executable.to_owned(),
            source,
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(warden_error)?;
        ours.set_nonblocking(true).map_err(warden_error)?;
        let ward = {
            // The command owns the warden's end of the socket; dropping it here makes the warden's
            // death visible as end of file.
            let mut warden = std::process::Command::new(executable);
            warden
                .arg0("kage-warden")
                .arg(WARDEN_ARGUMENT)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            Ward::start(&mut warden, grace + PATIENCE).map_err(warden_error)?
        };
        let (messages, orders) = UnixStream::from_std(ours).map_err(warden_error)?.into_split();
        let mut link = Self {
            orders,
            messages: Messages::new(messages),
            ward,
            look_at: Instant::now() + LOOK,
            ended: false,
            stage: Stage::Running,
        };

        let (stdin, bytes) = match &command.stdin {
            Stdin::Null => (StartStdin::Null, &[][..]),
            Stdin::Bytes(bytes) => (StartStdin::Bytes(bytes.len()), &bytes[..]),
            Stdin::File(path) => (StartStdin::File(path.clone()), &[][..]),
        };
        let (confinement, env, cargo) = match room.map(|room| confined(room, command)) {
            Some(Confined {
                confinement,
                env,
                cargo,
            }) => (Some(Box::new(confinement)), env, cargo),
            None => (None, owned(command.env.pairs()), None),
        };
        let start = Order::Start(Start {
            program: command.program.clone(),
            args: command.args.clone(),
            env,
            cwd: command.cwd.clone(),
            stdin,
            grace,
            confinement,
            cargo,
        });
        link.send(&start).await.map_err(warden_error)?;
        link.orders.write_all(bytes).await.map_err(warden_error)?;

        // Observe it here too: the program may attack it before it reports the start.
        let lost = match link.hear().await {
            Heard::Message(Message::Started) => return Ok(link),
            Heard::Message(Message::SpawnFailed { os_error, message }) => {
                let source = os_error.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error);
                return Err(RunError::Spawn {
                    program: command.program.clone(),
                    source,
                });
            }
            Heard::Message(Message::Ended { .. }) | Heard::Nothing => link.abandon(LEAVING, None).await,
            Heard::Lost(how) => link.abandon(Duration::ZERO, Some(how)).await,
        };
        Err(lost.error(&command.program))
    }

    /// The program's pipes; there the first time only.
    pub(super) fn take_pipes(&mut self) -> io::Result<(Option<ChildStdout>, Option<ChildStderr>)> {
        let (stdout, stderr) = self.ward.take_pipes();
        Ok((
            stdout.map(ChildStdout::from_std).transpose()?,
            stderr.map(ChildStderr::from_std).transpose()?,
        ))
    }

    async fn send(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).await
    }

    /// Sends an order to a warden that may have ended just now.
    pub(super) async fn order(&mut self, order: &Order) {
        if let Err(error) = self.send(order).await {
            tracing::debug!(%error, "the warden takes no orders any more");
        }
    }

    /// Waits until the warden and all its descendants have ended. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<(Status, u32), Lost> {
        if let Stage::Running = self.stage {
            match self.hear().await {
                Heard::Message(Message::Ended { status, survivors }) => {
                    self.leave(Some((status, survivors)), LEAVING, None);
                }
                // It has exited, and its status tells why.
                Heard::Message(Message::Started | Message::SpawnFailed { .. }) | Heard::Nothing => {
                    self.leave(None, LEAVING, None);
                }
                Heard::Lost(how) => self.leave(None, Duration::ZERO, Some(how)),
            }
        }
        if let Stage::Leaving(reported, told) = &mut self.stage {
            let departed = told.await.unwrap_or(Departed {
                loss: Some(WardenLoss::Silent),
                survivors: 0,
            });
            self.stage = Stage::Left(match (*reported, departed.loss) {
                (Some(reported), None) => Ok(reported),
                // Processes that it could not kill are now ours to kill.
                (Some((status, 1..)), Some(WardenLoss::Ended)) => Ok((status, departed.survivors)),
                (_, how) => Err(Lost {
                    how: how.unwrap_or(WardenLoss::Ended),
                    survivors: departed.survivors,
                }),
            });
        }
        match self.stage {
            Stage::Left(end) => end,
            Stage::Running | Stage::Leaving(..) => std::future::pending().await,
        }
    }

    /// Gives up a warden that should have ended, and waits until nothing is left.
    pub(super) async fn abandon(&mut self, within: Duration, how: Option<WardenLoss>) -> Lost {
        if let Stage::Running = self.stage {
            self.leave(None, within, how);
        }
        match self.ended().await {
            Ok((_, survivors)) => Lost {
                how: WardenLoss::Silent,
                survivors,
            },
            Err(lost) => lost,
        }
    }

    fn leave(&mut self, reported: Option<(Status, u32)>, within: Duration, loss: Option<WardenLoss>) {
        self.stage = Stage::Leaving(reported, self.ward.depart(within, loss));
    }

    /// Waits for the next message, or for something that blocks the warden. Cancel-safe.
    async fn hear(&mut self) -> Heard {
        loop {
            let look_at = self.look_at;
            tokio::select! {
                biased;
                message = self.messages.next() => return message.map_or(Heard::Nothing, Heard::Message),
                () = sleep_until(look_at) => {
                    self.look_at = Instant::now() + LOOK;
                    match self.ward.look() {
                        // Its last message may still be arriving, for example when this process was
                        // stopped meanwhile. If that is still so at the second observation, another
                        // process holds its socket.
                        Some(WardenLoss::Ended) if !self.ended => self.ended = true,
                        Some(WardenLoss::Ended) => return Heard::Nothing,
                        Some(how) => return Heard::Lost(how),
                        None => {}
                    }
                }
            }
        }
    }
}

/// The lines that are read from a socket.
#[derive(Debug)]
struct Messages<R> {
    from: BufReader<R>,
    /// The incomplete line.
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    fn new(from: R) -> Self {
        Self {
            from: BufReader::new(from),
            line: Vec::new(),
        }
    }

    /// The next message. `None` when the socket is closed or its content is invalid. Cancel-safe.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let read = self.from.fill_buf().await.ok()?;
            if read.is_empty() {
                return None;
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            if self.line.len() + taken > LONGEST {
                return None;
            }
            self.line.extend_from_slice(&read[..taken]);
            self.from.consume(taken);
            if end.is_some() {
                return serde_json::from_slice(&std::mem::take(&mut self.line)).ok();
            }
        }
    }
}

impl Lost {
    /// As an error of the program's run.
    pub(super) fn error(self, program: &OsStr) -> RunError {
        RunError::WardenLost {
            program: program.to_owned(),
            how: self.how,
            survivors: self.survivors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_comes_in_pieces_and_none_is_longer_than_a_warden_makes_it() {
        let (mut warden, agent) = UnixStream::pair().unwrap();
        let mut messages = Messages::new(agent);
        warden.write_all(b"\"star").await.unwrap();
        tokio::select! {
            biased;
            message = messages.next() => panic!("{message:?}"),
            () = std::future::ready(()) => {}
        }
        warden.write_all(b"ted\"\n\"started\"\n").await.unwrap();
        for _ in 0..2 {
            assert!(matches!(messages.next().await, Some(Message::Started)));
        }
        let (wrote, message) = tokio::join!(
            async {
                // Until it is not read any more: the socket stays open.
                loop {
                    let write = warden.write_all(&[b'x'; 4096]);
                    if tokio::time::timeout(Duration::from_millis(200), write).await.is_err() {
                        break true;
                    }
                }
            },
            messages.next()
        );
        assert!(wrote && message.is_none());
        assert!(messages.line.len() <= LONGEST);
    }
}
