//! Faults: links that are cut or bad, full disks, machines without room, power cuts, failing system calls. Each is undone
//! when its value is dropped.

pub mod crowd;
pub mod disk;
pub mod image;
pub mod link;
pub mod syscalls;

use std::process::Command;

/// True when this process may mount; otherwise tests that need it are skipped loudly.
#[must_use]
pub fn may_mount() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program of the system and returns its output.
fn system(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
