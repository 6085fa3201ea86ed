//! Calls to the kernel that fail: a program runs under `strace`, which answers some of its
//! calls with an error instead of carrying them out.

use std::ffi::OsString;
use std::path::Path;

use crate::cluster::Programs;

/// True when `strace` is here and may do its work; a test that needs it is skipped loudly
/// otherwise.
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
    /// The call: "fdatasync", "pwrite64", ...
    pub call: &'static str,
    /// The error: "EIO", "ENOSPC", ...
    pub error: &'static str,
    /// The first that fails, from 1.
    pub first: u32,
    /// And every so many after it.
    pub every: u32,
}

impl Failing {
    /// The same programs, with a coordinator of whose calls some fail. What was answered in the
    /// kernel's place is written to `log`.
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

/// How many calls were answered with an error, as a log says.
///
/// # Errors
/// When there is no log.
pub fn injected(log: &Path) -> std::io::Result<usize> {
    let text = std::fs::read(log)?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter(|line| line.ends_with(b"(INJECTED)")).count())
}
