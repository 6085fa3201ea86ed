//! The files in `deploy/` fit the program: systemd reads the units, and gives an agent the time for
//! its drain. The licences that the packages name are present.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kage_agent::Limits;
use kage_tests::command::Person;
use kage_tests::programs;
use tokio::net::UnixDatagram;

const INSTALLED: &str = "/usr/local/bin/kage";

fn unit(name: &str) -> String {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd")).join(name);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn systemd_reads_the_units() {
    let dir = tempfile::tempdir().unwrap();
    let kage = programs::kage();
    let units: Vec<PathBuf> = ["kage-coordinator.service", "kage-agent.service"]
        .map(|name| {
            let text = unit(name);
            assert!(text.contains(INSTALLED), "{name}");
            let path = dir.path().join(name);
            std::fs::write(&path, text.replace(INSTALLED, kage.to_str().unwrap())).unwrap();
            path
        })
        .into();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(units)
        .output();
    let output = match verify {
        Ok(output) => output,
        Err(error) => return programs::skip("deploy", &format!("systemd-analyze cannot be run: {error}")),
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// The service manager's end of what a daemon tells it.
struct Manager(UnixDatagram);

impl Manager {
    /// The next message with this word. There may be others before.
    async fn told(&self, word: &str) -> String {
        let mut message = [0; 1024];
        loop {
            let read = tokio::time::timeout(Duration::from_secs(30), self.0.recv(&mut message)).await;
            let length = read.unwrap_or_else(|_| panic!("{word} is not told")).unwrap();
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if text.contains(word) {
                return text;
            }
        }
    }
}

#[tokio::test]
async fn a_coordinator_tells_its_service_manager_that_it_is_ready_lives_and_ends() {
    let person = Person::new();
    let socket = person.path("notify");
    let manager = Manager(UnixDatagram::bind(&socket).unwrap());
    let mut command = person.command(&person.path(""), &["coordinator", "--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let mut coordinator = command.kill_on_drop(true).spawn().unwrap();
    let ready = manager.told("READY=1").await;
    assert!(ready.contains("STATUS=serves http://127.0.0.1:"), "{ready}");
    for _ in 0..3 {
        manager.told("WATCHDOG=1").await;
    }
    let pid = coordinator.id().unwrap().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    manager.told("STOPPING=1").await;
    assert!(coordinator.wait().await.unwrap().success());
}

#[test]
fn a_stop_gives_an_agent_the_time_of_its_drain() {
    let text = unit("kage-agent.service");
    let seconds = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let given = Duration::from_secs(seconds.unwrap().parse().unwrap());
    let limits = Limits::default();
    // The drain, then stopping running programs, then the last delivery.
    let needed = limits.drain + 2 * limits.stop_grace + Duration::from_secs(10 + 5);
    assert!(given > needed, "{given:?} is not more than {needed:?}");
    for name in ["kage-coordinator.service", "kage-agent.service"] {
        // Otherwise the programs that a drain waits for get the signal too.
        assert!(unit(name).lines().any(|line| line == "KillMode=mixed"), "{name}");
    }
}

#[test]
fn the_unit_of_an_agent_leaves_it_its_tiers() {
    let text = unit("kage-agent.service");
    let set = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let (state, home) = (set("Environment=KAGE_STATE_DIR="), set("Environment=HOME="));
    // What is below the state is hidden from sessions, and their CLIs are in HOME.
    let (state, home) = (Path::new(state.unwrap()), Path::new(home.unwrap()));
    assert!(!home.starts_with(state), "{home:?} is in {state:?}");
    let made = set("StateDirectory=").unwrap().split(' ');
    let made: Vec<_> = made.map(|name| Path::new("/var/lib").join(name)).collect();
    assert_eq!(made, [state, home]);
    // With any of these no user namespace gets a /proc of its own.
    for key in ["ProtectKernelTunables=", "ProtectKernelLogs=", "ProcSubset="] {
        assert_eq!(set(key), None, "{key}");
    }
}

#[test]
fn every_licence_that_the_packages_name_is_there_in_full() {
    let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let manifest = std::fs::read_to_string(top.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("license = \"MIT OR Apache-2.0\""), "{manifest}");
    let readme = std::fs::read_to_string(top.join("README.md")).unwrap();
    let ends = [
        ("LICENSE-MIT", "OTHER DEALINGS IN THE\nSOFTWARE."),
        ("LICENSE-APACHE", "END OF TERMS AND CONDITIONS"),
    ];
    for (name, end) in ends {
        let text = std::fs::read_to_string(top.join(name)).unwrap();
        assert!(text.contains("The Kage Bunshin developers"), "{name}");
        assert!(text.contains(end), "{name} is not whole");
        assert!(readme.contains(name), "README.md does not name {name}");
    }
}
