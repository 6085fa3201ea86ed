//! Programs in boxes of each tier: what they cannot do, each beside the same outside, and what goes on as
//! before. Linux only.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod attacks;
mod escapes;
mod goes_on;
mod managers;
mod network;
mod toolchains;

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_agent::contain::{AskedTier, BoxParts, Boxes, ContainSettings, Room};
use kage_agent::process::{Chunk, Command, Control, Ended, Environment, Limits, RunError, Runner, Stdin};
use kage_core::contain::Tier;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What every program of these tests gets.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is in every file that no program in a box may read.
const SECRET: &str = "s3cret-of-the-agent";

/// The tiers that are built here.
const TIERS: [(Tier, AskedTier); 2] = [(Tier::T1, AskedTier::T1), (Tier::T2, AskedTier::T2)];

/// The variable that names the program of boxes, where it is not the one that was built.
const PROGRAM: &str = "KAGE_TEST_PROGRAM";

fn executable() -> PathBuf {
    std::env::var_os(PROGRAM).map_or_else(|| env!("CARGO_BIN_EXE_kage").into(), PathBuf::from)
}

fn limits() -> Limits {
    Limits {
        timeout: Some(Duration::from_secs(60)),
        grace: Duration::from_secs(5),
    }
}

/// A machine with an agent's state, a person's home, and an attempt that has files of its own.
struct Machine {
    _folder: tempfile::TempDir,
    /// Real paths.
    state: PathBuf,
    home: PathBuf,
    /// A file outside of the state that is the agent's.
    token: PathBuf,
    worktree: PathBuf,
    scratch: PathBuf,
    objects: PathBuf,
    socket: PathBuf,
    abstract_socket: String,
    _listening: [UnixListener; 2],
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        let (state, home) = (top.join("state"), top.join("home"));
        for file in [
            "state/outbox.db",
            "state/tls/agent.key",
            "state/handed/1",
            "state/worktrees/other/file",
            "state/scratch/other/home/file",
            "state/mirrors/p/r.git/config",
            "state/mirrors/p/other.git/objects/ab/cd",
            "state/contexts/other",
            "token",
            "home/.ssh/id_rsa",
            "home/.aws/credentials",
        ] {
            write(&top.join(file), SECRET);
        }
        let objects = state.join("mirrors/p/r.git/objects");
        write(&objects.join("ab/cd"), "an object");
        let (worktree, scratch) = (state.join("worktrees/own"), state.join("scratch/own"));
        for own in [worktree.clone(), scratch.join("home"), scratch.join("tmp")] {
            fs::create_dir_all(own).unwrap();
        }
        let socket = top.join("service.sock");
        let abstract_socket = format!("kage-test-{}", top.display());
        let address = SocketAddr::from_abstract_name(&abstract_socket).unwrap();
        let listening = [UnixListener::bind(&socket), UnixListener::bind_addr(&address)].map(Result::unwrap);
        Self {
            token: top.join("token"),
            _folder: folder,
            state,
            home,
            worktree,
            scratch,
            objects,
            socket,
            abstract_socket,
            _listening: listening,
        }
    }

    /// The boxes of an agent of this machine.
    fn boxes(&self, asked: AskedTier) -> Boxes {
        Boxes::prove(&BoxParts {
            state: &self.state,
            own: &[],
            settings: &ContainSettings {
                tier: asked,
                hidden: vec![self.token.clone()],
                ..ContainSettings::default()
            },
            home: Some(self.home.clone()),
            executable: &executable(),
        })
    }

    /// The box of the attempt.
    fn room(&self, tier: Tier, asked: AskedTier) -> Arc<Room> {
        let boxes = self.boxes(asked);
        assert_eq!(boxes.proved().tier, tier, "{}", boxes.proved().short_of);
        boxes
            .room(
                vec![self.worktree.clone(), self.scratch.clone()],
                vec![self.objects.clone()],
            )
            .unwrap()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [
            ("PATH", PATH.to_owned()),
            ("HOME", text(&self.scratch.join("home"))),
            ("TMPDIR", text(&self.scratch.join("tmp"))),
            ("STATE", text(&self.state)),
            ("PERSON", text(&self.home)),
            ("TOKEN", text(&self.token)),
            ("SOCKET", text(&self.socket)),
            ("ABSTRACT", self.abstract_socket.clone()),
            ("VICTIM", std::process::id().to_string()),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn sh(&self, script: &str) -> Command {
        Command {
            program: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: Environment::from_iter(self.environment()),
            cwd: self.worktree.clone(),
            stdin: Stdin::Null,
        }
    }
}

/// Says loudly that a test proves nothing here; `scripts/test` counts it.
fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    // Straight to the stream: the test harness hides the output of a passing test.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "!! SKIPPED {test}: {reason}").unwrap();
    if let Some(path) = std::env::var_os("KAGE_SKIPPED") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn free() -> Control {
    Control::stop_only(CancellationToken::new())
}

/// Runs a program; without a box, outside. All that it prints is the second value.
async fn run(room: Option<&Arc<Room>>, command: Command, control: Control) -> (Result<Ended, RunError>, String) {
    let runner = Runner::Warden(executable()).within(room);
    let (sender, mut chunks) = mpsc::channel::<Chunk>(1);
    let gather = async {
        let mut output = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            output.extend_from_slice(&chunk.bytes);
        }
        String::from_utf8_lossy(&output).into_owned()
    };
    tokio::join!(runner.run(command, limits(), control, sender), gather)
}
