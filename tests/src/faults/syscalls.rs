//! Failing system calls: a program runs under `strace`, which answers some of its calls with an
//! error instead of executing them.

use std::ffi::OsString;
use std::path::Path;

use crate::cluster::Programs;

/// True when `strace` is installed and permitted; otherwise tests that need it are skipped loudly.
#[must_use]
pub fn may_inject() -> bool {
    let traced = std::process::Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status();
    traced.is_ok_and(|status| status.success())
}

/// Which calls fail, and how.
#[derive(Debug, Clone)]
pub struct Failing {
    /// The system call: "fdatasync", "pwrite64", ...
    pub call: &'static str,
    /// The error: "EIO", "ENOSPC", ...
    pub error: &'static str,
    /// The first failing call, from 1.
    pub first: u32,
    /// Further failures come after every so many calls.
    pub every: u32,
}

impl Failing {
    /// The same programs, with a coordinator some of whose calls fail. The injected errors are
    /// written to `log`.
    #[must_use]
    pub fn coordinator(&self, programs: &Programs, log: &Path) -> Programs {
        let mut programs = programs.clone();
        let (program, arguments) = programs.coordinator;
        let inject = format!(
            "inject={}:error={}:when={}+{}",
            self.call, self.error, self.first, self.every
        );
        let mut all: Vec<OsString> = ["-f", "-qq", "--seccomp-bpf", "-o"].map(Into::into).to_vec();
        all.extend([log.into(), "-e".into()]);
        all.extend([format!("trace={}", self.call).into(), "-e".into(), inject.into()]);
        all.push(program.into());
        all.extend(arguments);
        programs.coordinator = ("strace".into(), all);
        programs
    }
}

/// The number of injected errors in a log.
pub fn injected(log: &Path) -> std::io::Result<usize> {
    let text = std::fs::read(log)?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter(|line| line.ends_with(b"(INJECTED)")).count())
}
