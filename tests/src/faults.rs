//! What breaks a system: links that are cut or bad, disks that are full, power that goes
//! away, calls to the kernel that fail. Each is undone when its value is dropped.

pub mod disk;
pub mod image;
pub mod link;
pub mod syscalls;

use std::process::Command;

/// True when this process may mount; a test that must is skipped loudly otherwise.
#[must_use]
pub fn may_mount() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program of the system and returns what it printed.
///
/// # Panics
/// When it is missing or fails.
fn system(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
