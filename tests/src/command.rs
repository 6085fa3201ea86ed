//! The command line as a person uses it: `kage` in a state directory and a home of its own,
//! with adapters made of shell scripts. The daemon it starts is killed on drop.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::programs;
use crate::root::Root;

/// A person's machine.
#[derive(Debug)]
pub struct Person {
    root: Root,
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// The last line of standard output, as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Person {
    /// A machine on which nothing of Kage has run yet.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes folders")]
    pub fn new() -> Self {
        let root = Root::new("kage-person-");
        std::fs::create_dir_all(root.path().join("config/kage/adapters")).expect("a folder");
        Self { root }
    }

    /// A path of this machine.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Adds an adapter that runs a shell script.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn adapter(&self, name: &str, script: &str) {
        let text = format!("name = {name:?}\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\n");
        let path = self.path(&format!("config/kage/adapters/{name}.toml"));
        std::fs::write(path, text).expect("a manifest");
    }

    /// A command of this person's, in a folder, not started yet.
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
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn kage(&self, folder: &Path, arguments: &[&str]) -> Said {
        said(
            self.command(folder, arguments)
                .output()
                .await
                .expect("kage can be started"),
        )
    }
}

/// What a finished command said.
#[must_use]
pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
