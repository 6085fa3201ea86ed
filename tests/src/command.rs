//! The command line as a person uses it: `kage` in its own state directory and home, with adapters
//! made of shell scripts. The daemon it starts is killed on drop.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::programs;
use crate::root::Root;

#[derive(Debug)]
pub struct Person {
    root: Root,
}

/// The exit code and output of a command.
#[derive(Debug)]
pub struct Said {
    /// -1 when a signal ended it.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The last line of standard output, as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// Where programs of sessions may write besides their own folders.
const OUTSIDE: &str = "outside";

impl Person {
    /// A machine on which nothing of Kage has run yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes folders")]
    pub fn new() -> Self {
        let root = Root::new("kage-person-");
        std::fs::create_dir_all(root.path().join("config/kage/adapters")).expect("a folder");
        std::fs::create_dir(root.path().join(OUTSIDE)).expect("a folder");
        let open = format!("[agent.contain]\nwrite = [{:?}]\n", root.path().join(OUTSIDE));
        std::fs::write(root.path().join("config/kage/config.toml"), open).expect("settings");
        Self { root }
    }

    /// A folder outside of every worktree to which programs of sessions may write, whatever box they are in,
    /// unless a test brings settings of its own.
    #[must_use]
    pub fn outside(&self, name: &str) -> PathBuf {
        self.path(OUTSIDE).join(name)
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Adds an adapter that runs a shell script.
    pub fn adapter(&self, name: &str, script: &str) {
        let text = format!("name = {name:?}\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\n");
        let path = self.path(&format!("config/kage/adapters/{name}.toml"));
        std::fs::write(path, text).expect("a manifest");
    }

    /// A command of this person in a folder, not started yet.
    #[must_use]
    pub fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::kage());
        command
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("KAGE_STATE_DIR", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs `kage` in a folder to its end.
    pub async fn kage(&self, folder: &Path, arguments: &[&str]) -> Said {
        said(
            self.command(folder, arguments)
                .output()
                .await
                .expect("kage can be started"),
        )
    }
}

/// The exit code and output of a finished command.
#[must_use]
pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
