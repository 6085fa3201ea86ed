//! The private socket of the daemon's agent, by which commands of the same machine hand over the
//! variables of their shell. It is in the agent's state folder, which only its owner can enter; a line
//! of JSON asks and a line answers. Values pass through it, and are in no log.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::fleet::AdapterInfo;
use kage_core::id::Digest;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::equipment::{Equipments, TakenShell};
use crate::process::handed::Values;

/// The most bytes of a question or an answer.
const MOST: u64 = 1 << 20;
/// How long a command may take to send its question.
const QUESTION: Duration = Duration::from_secs(5);
/// How long the agent may take to answer: it may ask programs for their versions.
const ANSWER: Duration = Duration::from_secs(60);

/// How long to wait when no connection can be taken.
const PAUSE: Duration = Duration::from_millis(200);

/// What a command asks.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShellQuestion {
    /// To keep these variables for a task that will have this name, where they differ.
    Take { name: Digest, values: Values },
    /// How these variables differ.
    Compare { values: Values },
}

/// What the daemon's agent says of a shell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShellAnswer {
    /// The names of variables that differ from the daemon's start.
    pub differs: Vec<String>,
    /// The adapters, as the task will have them or, of a comparison, as the daemon started with them.
    pub adapters: Vec<AdapterInfo>,
    /// Why nothing can be made of it.
    pub problem: Option<String>,
}

/// The socket in the state folder of an agent.
#[derive(Debug, Clone)]
pub struct ShellSocket {
    path: PathBuf,
}

impl ShellSocket {
    /// That of the agent with this state folder.
    #[must_use]
    pub fn within(state: &Path) -> Self {
        Self {
            path: state.join("shell.sock"),
        }
    }

    /// Hands over the variables of a shell for a task that will have this name. `None`: nobody listens.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn take(&self, name: Digest, values: Values) -> io::Result<Option<ShellAnswer>> {
        self.ask(&ShellQuestion::Take { name, values }).await
    }

    /// Asks how the variables of a shell differ from those of the daemon. `None`: nobody listens.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn compare(&self, values: Values) -> io::Result<Option<ShellAnswer>> {
        self.ask(&ShellQuestion::Compare { values }).await
    }

    async fn ask(&self, question: &ShellQuestion) -> io::Result<Option<ShellAnswer>> {
        let Ok(mut stream) = UnixStream::connect(&self.path).await else {
            return Ok(None);
        };
        let asking = async {
            let mut line = serde_json::to_vec(question)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let line = line_of(&mut stream).await?;
            Ok::<ShellAnswer, io::Error>(serde_json::from_slice(&line)?)
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the daemon did not answer");
        let answered = tokio::time::timeout(ANSWER, asking).await;
        answered.map_err(|_| late())?.map(Some)
    }

    /// Answers commands until `end`. Where the socket cannot be, its path being too long for one, commands
    /// find nobody, and tasks work with the environment of the daemon's start.
    pub(crate) async fn serve(self, equipments: &Equipments, end: CancellationToken) {
        let listener = match self.listen() {
            Ok(listener) => listener,
            Err(error) => {
                let path = self.path.display();
                return tracing::warn!(%path, %error, "commands cannot hand over the environment of their shell");
            }
        };
        while let Some(accepted) = end.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _)) = accepted else {
                // Out of open files, for example: that passes.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // One after the other: each is short, and what one of them changes the next one sees.
            let answering = answer(stream, equipments);
            if let Some(Err(error)) = end.run_until_cancelled(answering).await {
                tracing::debug!(%error, "a command went away");
            }
        }
        drop(std::fs::remove_file(&self.path));
    }

    fn listen(&self) -> io::Result<UnixListener> {
        // What is there is of an earlier start: the state folder has one owner at a time.
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }
}

/// Whether a program of a session asks. Boxes of T1 do not keep it from a socket, and what a shell hands over
/// names programs that the agent runs outside of boxes.
#[cfg(target_os = "linux")]
fn is_of_a_session(stream: &UnixStream) -> io::Result<bool> {
    let this = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    match stream.peer_cred()?.pid() {
        Some(pid) if pid == this => Ok(false),
        Some(pid) => crate::process::is_below_this_process(pid),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// There are no boxes that it could be in.
#[cfg(not(target_os = "linux"))]
fn is_of_a_session(_stream: &UnixStream) -> io::Result<bool> {
    Ok(false)
}

async fn answer(mut stream: UnixStream, equipments: &Equipments) -> io::Result<()> {
    let line = tokio::time::timeout(QUESTION, line_of(&mut stream)).await??;
    if is_of_a_session(&stream)? {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a program of a session asked",
        ));
    }
    let taken = match serde_json::from_slice(&line) {
        Ok(ShellQuestion::Take { name, values }) => equipments.take(name, values).await,
        Ok(ShellQuestion::Compare { values }) => equipments.compare(&values).await,
        // Not with the error: it may quote a value.
        Err(_) => Err("the daemon of this machine has another version; `kage down` stops it".to_owned()),
    };
    let answer = match taken {
        Ok(TakenShell { differs, adapters }) => ShellAnswer {
            differs,
            adapters,
            problem: None,
        },
        Err(problem) => ShellAnswer {
            problem: Some(problem),
            ..ShellAnswer::default()
        },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn line_of(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MOST)).read_until(b'\n', &mut line).await?;
    Ok(line)
}
