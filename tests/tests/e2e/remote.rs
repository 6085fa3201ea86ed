//! A coordinator, two agents that join it, and a person with a token, each with a home and
//! a state directory of its own, over TLS: nothing is shared but the network.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kage_tests::process::{Daemon, Launch, kill_processes_of};
use kage_tests::programs;
use kage_tests::repo::{Repo, SOLUTION, VERIFY};
use kage_tests::wait::wait_for;
use tempfile::TempDir;

const MANIFEST: &str = r#"
name = "shell"
command = "sh"
args = ["{manifest_dir}/{model}.sh"]
prompt = { pass = "stdin" }
"#;

/// The machines, as folders. Whatever runs there is gone when this is dropped.
struct Machines(TempDir);

impl Drop for Machines {
    fn drop(&mut self) {
        kill_processes_of(self.0.path());
    }
}

impl Machines {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self, machine: &str) -> PathBuf {
        let dir = self.0.path().join(machine);
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

    fn daemon(&self, machine: &str, arguments: &[&str]) -> Daemon {
        let launch = Launch {
            name: machine.to_owned(),
            program: programs::own("kage"),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: self.environment(machine),
            log: self.dir(machine).join("log"),
        };
        launch.start().unwrap()
    }

    /// Runs one command to its end.
    fn kage(&self, machine: &str, more: &[(&str, &Path)], arguments: &[&str]) -> Output {
        Command::new(programs::own("kage"))
            .args(arguments)
            .env_clear()
            .envs(self.environment(machine))
            .envs(more.iter().map(|(name, value)| (*name, value.as_os_str())))
            .current_dir(self.dir(machine))
            .output()
            .unwrap()
    }

    /// Runs one command that ends well, and returns what it printed.
    fn done(&self, machine: &str, more: &[(&str, &Path)], arguments: &[&str]) -> String {
        let output = self.kage(machine, more, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn adapters(&self, machine: &str) -> String {
        let dir = self.dir(machine).join("adapters");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("shell.toml"), MANIFEST).unwrap();
        std::fs::write(dir.join("solve.sh"), format!("cat > add.sh <<'END'\n{SOLUTION}\nEND\n")).unwrap();
        dir.to_str().unwrap().to_owned()
    }
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn agents_join_over_tls_and_work_for_a_person_with_a_token() {
    let machines = Machines::new();
    let mut coordinator = machines.daemon("b", &["-v", "coordinator", "--listen", "0.0.0.0:0"]);
    let endpoint = machines.dir("b").join("state/coordinator/endpoint");
    let url = wait_for("the coordinator listens", async || {
        let ended = coordinator.ended();
        assert!(ended.is_none(), "it ended ({ended:?}):\n{}", coordinator.log());
        std::fs::read_to_string(&endpoint).ok()
    })
    .await;
    let url = url.trim();
    let address = url.strip_prefix("https://").unwrap();

    // Agents. A token whose CA is another one is not shown to anybody.
    let join = |labels: &[&str]| {
        let mut arguments = vec!["token", "create", "--role", "agent"];
        arguments.extend(labels);
        machines.done("b", &[], &arguments)
    };
    let first = join(&["--label", "gpu=true"]);
    let parts: Vec<_> = first.split('.').collect();
    let elsewhere = format!("{}.{}.{}.{}", parts[0], "0".repeat(64), parts[2], parts[3]);
    let misled = machines.kage("c", &[], &["agent", "run", "--join", &elsewhere, address]);
    assert_eq!(misled.status.code(), Some(5), "{misled:?}");
    assert!(says(&misled).contains("nothing was sent"), "{}", says(&misled));
    let adapters = machines.adapters("c");
    let arguments = [
        "agent",
        "run",
        "--join",
        &first,
        address,
        "--adapters",
        &adapters,
        "--name",
        "c",
    ];
    let c = machines.daemon("c", &arguments);
    let second = join(&[]);
    let adapters_d = machines.adapters("d");
    let arguments = [
        "agent",
        "run",
        "--join",
        &second,
        address,
        "--adapters",
        &adapters_d,
        "--name",
        "d",
    ];
    let _d = machines.daemon("d", &arguments);

    // A person, who got two files and an address.
    let a = machines.dir("a");
    let (token, ca) = (a.join("token"), a.join("ca.pem"));
    std::fs::write(
        &token,
        machines.done("b", &[], &["token", "create", "--role", "submit", "--name", "a"]),
    )
    .unwrap();
    std::fs::copy(machines.dir("b").join("state/coordinator/tls/ca.pem"), &ca).unwrap();
    let settings = [
        ("KAGE__COORDINATOR__URL", Path::new(url)),
        ("KAGE__COORDINATOR__TOKEN_FILE", token.as_path()),
        ("KAGE__COORDINATOR__CA_FILE", ca.as_path()),
    ];
    let agents = async |wanted: &[(&str, &str)]| {
        wait_for(&format!("{wanted:?}"), async || {
            let listed = machines.done("a", &settings, &["agent", "ls", "--format", "json"]);
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let is = |(name, state): &(&str, &str)| {
                let mut listed = listed.as_array().unwrap().iter();
                listed.any(|agent| agent["name"] == *name && agent["state"] == *state)
            };
            wanted.iter().all(is).then(|| listed.clone())
        })
        .await
    };
    let listed = agents(&[("c", "connected"), ("d", "connected")]).await;
    let labels = |name: &str| {
        let mut listed = listed.as_array().unwrap().iter();
        listed.find(|agent| agent["name"] == name).unwrap()["labels"].clone()
    };
    assert_eq!(labels("c")["gpu"], "true");
    assert_eq!(labels("d").get("gpu"), None);

    // The task: base up, result down, and nothing of the others' folders needed.
    let repo = Repo::sample(&a.join("repo"));
    let path = repo.path().to_str().unwrap();
    let run = [
        "run",
        "make the test pass",
        "--with",
        "shell:solve",
        "--verify",
        VERIFY,
        "--agents",
        "gpu=true",
        "--repo",
        path,
    ];
    machines.done("a", &settings, &run);
    machines.done("a", &settings, &["apply", "--repo", path]);
    assert_eq!(
        std::fs::read_to_string(repo.path().join("add.sh")).unwrap().trim(),
        SOLUTION.trim()
    );
    let shown = machines.done("a", &settings, &["show", "--format", "json"]);
    assert!(shown.contains("\"c\""), "{shown}");

    // What a submit token may not, and what a used join token is worth.
    let drained = machines.kage("a", &settings, &["agent", "drain", "d"]);
    assert_eq!(drained.status.code(), Some(5), "{drained:?}");
    let stolen = machines.kage("e", &[], &["agent", "run", "--join", &first, address]);
    assert_eq!(stolen.status.code(), Some(5), "{stolen:?}");
    assert!(says(&stolen).contains("used already"), "{}", says(&stolen));

    // A later start needs the address only; the key is its owner's alone.
    let key = machines.dir("c").join("state/agent/tls/agent.key");
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(c.stop().await.success());
    agents(&[("c", "disconnected")]).await;
    let arguments = [
        "agent",
        "run",
        "--coordinator",
        url,
        "--adapters",
        &adapters,
        "--name",
        "c",
    ];
    let _c = machines.daemon("c", &arguments);
    agents(&[("c", "connected")]).await;

    machines.done("b", &[], &["agent", "revoke", "d"]);
    agents(&[("c", "connected"), ("d", "disconnected")]).await;
}
