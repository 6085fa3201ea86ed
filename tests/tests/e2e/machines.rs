//! Several machines as folders, each with its own home, state folder and environment, and, if a
//! story needs it, its own network namespace.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kage_tests::process::{Daemon, Launch};
use kage_tests::programs;
use kage_tests::repo::SOLUTION;
use kage_tests::root::Root;
use kage_tests::wait::wait_for;

use crate::network::Network;

const MANIFEST: &str = r#"
name = "shell"
command = "sh"
args = ["{manifest_dir}/{model}.sh"]
prompt = { pass = "stdin" }
"#;

/// The machines. Their processes have ended when this is dropped.
pub(crate) struct Machines {
    // Their processes are killed before the network is removed.
    root: Root,
    network: Option<Network>,
}

impl Machines {
    /// On the network of this machine.
    pub(crate) fn new() -> Self {
        Self {
            root: Root::new("kage-machines-"),
            network: None,
        }
    }

    /// Each on its own end of a cable.
    pub(crate) fn on(network: Network) -> Self {
        Self {
            root: Root::new("kage-machines-"),
            network: Some(network),
        }
    }

    pub(crate) fn dir(&self, machine: &str) -> PathBuf {
        let dir = self.root.path().join(machine);
        std::fs::create_dir_all(dir.join("home")).unwrap();
        dir
    }

    fn environment(&self, machine: &str) -> BTreeMap<String, OsString> {
        let dir = self.dir(machine);
        BTreeMap::from([
            ("HOME".to_owned(), dir.join("home").into()),
            ("KAGE_STATE_DIR".to_owned(), dir.join("state").into()),
            ("PATH".to_owned(), std::env::var_os("PATH").unwrap_or_default()),
            ("GIT_CONFIG_NOSYSTEM".to_owned(), "1".into()),
            ("LANG".to_owned(), "C.UTF-8".into()),
        ])
    }

    /// The program and its first arguments that make it `kage` on that machine.
    fn program(&self, machine: &str) -> (PathBuf, Vec<OsString>) {
        let kage = programs::kage();
        match &self.network {
            None => (kage, Vec::new()),
            Some(network) => network.inside(machine, &kage),
        }
    }

    /// Starts `kage` with these arguments and leaves it running.
    pub(crate) fn daemon(&self, machine: &str, arguments: &[&str]) -> Daemon {
        let (program, mut all) = self.program(machine);
        all.extend(arguments.iter().map(OsString::from));
        let launch = Launch {
            name: machine.to_owned(),
            program,
            arguments: all,
            environment: self.environment(machine),
            log: self.dir(machine).join("log"),
        };
        launch.start().unwrap()
    }

    /// Runs one command and waits for its end.
    pub(crate) fn kage(&self, machine: &str, more: &[(&str, &Path)], arguments: &[&str]) -> Output {
        let (program, first) = self.program(machine);
        Command::new(program)
            .args(first)
            .args(arguments)
            .env_clear()
            .envs(self.environment(machine))
            .envs(more.iter().map(|(name, value)| (*name, value.as_os_str())))
            .current_dir(self.dir(machine))
            .output()
            .unwrap()
    }

    /// Runs one command that must succeed, and returns its output.
    pub(crate) fn done(&self, machine: &str, more: &[(&str, &Path)], arguments: &[&str]) -> String {
        let output = self.kage(machine, more, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The newest task of all, from `show`, as JSON.
    pub(crate) fn newest(&self, machine: &str, more: &[(&str, &Path)]) -> serde_json::Value {
        let json = |arguments: &[&str]| -> serde_json::Value {
            serde_json::from_str(&self.done(machine, more, arguments)).unwrap()
        };
        let listed = json(&["ls", "--format", "json"]);
        json(&["show", listed[0]["id"].as_str().unwrap(), "--format", "json"])
    }

    /// Waits until a coordinator listens, and returns the address that it says it has.
    pub(crate) async fn listens(&self, machine: &str, coordinator: &mut Daemon) -> String {
        let endpoint = self.dir(machine).join("state/coordinator/endpoint");
        let url = wait_for("the coordinator listens", async || {
            let ended = coordinator.ended();
            assert!(ended.is_none(), "it ended ({ended:?}):\n{}", coordinator.log());
            std::fs::read_to_string(&endpoint).ok()
        })
        .await;
        url.trim().to_owned()
    }

    /// Waits until a person sees the agents in these states, and returns the list.
    pub(crate) async fn agents(
        &self,
        machine: &str,
        settings: &[(&str, &Path)],
        wanted: &[(&str, &str)],
    ) -> serde_json::Value {
        wait_for(&format!("{wanted:?}"), async || {
            let listed = self.done(machine, settings, &["agent", "ls", "--format", "json"]);
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let is = |(name, state): &(&str, &str)| {
                let mut listed = listed.as_array().unwrap().iter();
                listed.any(|agent| agent["name"] == *name && agent["state"] == *state)
            };
            wanted.iter().all(is).then(|| listed.clone())
        })
        .await
    }

    /// A folder with an adapter whose program solves the sample's task.
    pub(crate) fn adapters(&self, machine: &str) -> String {
        let dir = self.dir(machine).join("adapters");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("shell.toml"), MANIFEST).unwrap();
        std::fs::write(dir.join("solve.sh"), format!("cat > add.sh <<'END'\n{SOLUTION}\nEND\n")).unwrap();
        dir.to_str().unwrap().to_owned()
    }
}

/// The standard error of a command.
pub(crate) fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
