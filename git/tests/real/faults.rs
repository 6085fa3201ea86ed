//! Runs an operation as a process whose n-th system call of a kind kills it or fails.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The system calls that change something on a disk.
pub(crate) const MUTATING: &[&str] = &[
    "write",
    "pwrite64",
    "writev",
    "copy_file_range",
    "sendfile",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "truncate",
    "ftruncate",
    "fallocate",
    "chmod",
    "fchmod",
    "fchmodat",
    "utimensat",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "syncfs",
];

/// The replacement of the system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process and all its threads end before it.
    Kill,
    Error(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The operation made fewer such calls, and succeeded.
    NotReached,
    /// The operation, or a git that it ran, was killed or had its call fail; and whether it then
    /// succeeded.
    Hit { succeeded: bool, said: String },
}

/// True if this machine can inject faults. Otherwise a loud message is printed, and CI fails.
pub(crate) fn can_inject(test: &str) -> bool {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(
        !(in_ci && rustix::process::geteuid().is_root()),
        "{test} would be skipped in CI: strace is not installed"
    );
    // Straight to the stream: the test harness hides what a passing test prints.
    let line = format!("{test}: strace is not installed\n");
    std::io::stderr()
        .write_all(format!("!! SKIPPED {line}").as_bytes())
        .unwrap();
    if let Some(path) = std::env::var_os("KAGE_SKIPPED") {
        let mut list = fs::File::options().append(true).create(true).open(path).unwrap();
        list.write_all(line.as_bytes()).unwrap();
    }
    false
}

/// One step of [`kage_git`] in a separate process, whose `number`th `call` has a fault. The calls
/// of each thread and each git are counted separately.
pub(crate) fn run(folder: &Path, call: &str, number: usize, fault: Fault, arguments: &[&str]) -> End {
    let trace = folder.join("trace");
    let fault = match fault {
        Fault::Kill => format!("inject=?{call}:signal=KILL:when={number}"),
        Fault::Error(error) => format!("inject=?{call}:error={error}:when={number}"),
    };
    let done = Command::new("timeout")
        .args(["--signal=KILL", "60", "strace", "-f", "-qq", "-e"])
        .arg(format!("trace=?{call}"))
        .args(["-e", &fault, "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_kage-git-step"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let trace = fs::read(&trace).unwrap();
    let trace = String::from_utf8_lossy(&trace);
    if trace.contains("killed by SIGKILL") || trace.contains("(INJECTED)") {
        return End::Hit {
            succeeded: done.status.success(),
            said,
        };
    }
    assert!(
        done.status.success(),
        "{call} {number}: it failed without a fault: {said}"
    );
    End::NotReached
}
