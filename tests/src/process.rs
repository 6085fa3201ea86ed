//! A daemon in a separate process: started with a clean environment, logged to a file, stopped
//! politely or killed, and never left behind.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::wait_for;

/// How to start a daemon, any number of times.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its name in logs and messages.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// The whole environment; nothing is inherited.
    pub environment: BTreeMap<String, OsString>,
    /// The file to which its output is appended.
    pub log: PathBuf,
}

/// A running daemon. Dropping it kills its process group.
#[derive(Debug)]
pub struct Daemon {
    launch: Launch,
    child: Child,
}

impl Launch {
    pub fn start(&self) -> std::io::Result<Daemon> {
        let log = File::options().append(true).create(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Ok(Daemon {
            launch: self.clone(),
            child,
        })
    }
}

impl Daemon {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.launch.log).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Asks it to end (SIGTERM) and waits until it has. Panics when it does not end in time.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let what = format!("{} ends after SIGTERM", self.launch.name);
        wait_for(&what, async || self.ended()).await
    }

    /// Sends a signal to the daemon itself, not to its children.
    pub fn signal(&self, signal: Signal) {
        // It may have ended, which its waiter notices.
        let _ended = kill_process(self.group(), signal);
    }

    /// Sends a signal to the daemon and to its children in its process group.
    pub fn signal_group(&self, signal: Signal) {
        let _ended = kill_process_group(self.group(), signal);
    }

    /// Kills it as a power cut would (SIGKILL to its whole group) and waits until it is gone.
    pub fn kill(&mut self) {
        let _ended = kill_process_group(self.group(), Signal::KILL);
        let _status = self.child.wait();
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.launch.name, tail(&self.log(), 80));
        }
        self.kill();
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The processes that work below a directory or have it in their environment: those that a daemon
/// started, wherever they are in the process tree.
#[must_use]
pub fn processes_of(directory: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let needle = directory.as_os_str().as_encoded_bytes();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| *pid != std::process::id())
        .filter(|pid| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let inside = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
            let told = std::fs::read(process.join("environ"))
                .is_ok_and(|environ| environ.windows(needle.len()).any(|window| window == needle));
            inside || told
        })
        .collect()
}

pub fn kill_processes_of(directory: &Path) {
    // Processes that one of them starts while it is killed are on the next list. Few lists are
    // needed; a process that the system does not let go is left to it.
    for _ in 0..20 {
        let processes = processes_of(directory);
        if processes.is_empty() {
            return;
        }
        for pid in processes {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let _ended = kill_process(pid, Signal::KILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(directory: &Path, script: &str) -> Launch {
        Launch {
            name: "sh".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::from([
                ("PATH".to_owned(), "/usr/bin:/bin".into()),
                ("HOME".to_owned(), directory.into()),
            ]),
            log: directory.join("log"),
        }
    }

    #[tokio::test]
    async fn a_daemon_ends_when_it_is_asked_to() {
        let directory = tempfile::tempdir().unwrap();
        let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done";
        let daemon = launch(directory.path(), script).start().unwrap();
        wait_for("it is ready", async || daemon.log().contains("ready").then_some(())).await;
        let status = daemon.stop().await;
        assert_eq!(status.code(), Some(3));
        assert_eq!(
            std::fs::read_to_string(directory.path().join("log")).unwrap(),
            "ready\nbye\n"
        );
    }

    #[tokio::test]
    async fn what_escaped_the_process_group_is_found_by_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let script = "setsid sh -c 'echo away; exec sleep 1000' & wait";
        let daemon = launch(directory.path(), script).start().unwrap();
        wait_for("it is away", async || daemon.log().contains("away").then_some(())).await;
        drop(daemon);
        assert_eq!(processes_of(directory.path()).len(), 1);
        kill_processes_of(directory.path());
        wait_for("it is gone", async || {
            processes_of(directory.path()).is_empty().then_some(())
        })
        .await;
    }
}
