//! Where the program under test is, and how to treat missing programs that tests need.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The directory with the workspace's own program, which is built when it is not known to be up
/// to date.
///
/// # Panics
/// When it cannot be built: then no story can be told.
#[must_use]
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let this = std::env::current_exe().expect("a running program has a path");
        // target/debug/deps/e2e-0123 or target/debug/kage-bench
        let parent = this.parent().expect("a program is in a directory");
        let directory = if parent.ends_with("deps") {
            parent.parent().expect("deps is in the profile's directory")
        } else {
            parent
        };
        // `scripts/test` has built it; a lone `cargo test -p kage-tests` has not.
        if std::env::var_os("KAGE_BINARIES").is_none_or(|state| state != "ready") {
            build(directory.ends_with("release"));
        }
        directory.to_owned()
    })
}

/// Builds the whole workspace, like everything else: selecting packages would unify other features
/// and compile everything again.
fn build(optimized: bool) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--workspace", "--bin", "kage", "--quiet"])
        .args(optimized.then_some("--release"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the program under test does not build");
}

#[must_use]
pub fn kage() -> PathBuf {
    directory().join("kage")
}

/// The real `claude` program, if `scripts/test` has installed it or `KAGE_CLAUDE` names one.
#[must_use]
pub fn claude() -> Option<PathBuf> {
    std::env::var_os("KAGE_CLAUDE")
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .or_else(|| real("claude"))
}

/// A real program that `scripts/test` has installed, or that is in the folder `KAGE_TOOLS`.
#[must_use]
pub fn real(name: &str) -> Option<PathBuf> {
    let installed = || {
        let target = directory().parent()?;
        Some(target.join("npm/node_modules/.bin"))
    };
    let folder = std::env::var_os("KAGE_TOOLS").map(PathBuf::from).or_else(installed)?;
    Some(folder.join(name)).filter(|path| path.is_file())
}

/// Reports loudly that a test proves nothing here; `scripts/test` counts it. Panics in CI, where
/// everything that tests need is installed.
pub fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} would be skipped in CI: {reason}"
    );
    // Straight to the stream: the test harness hides the output of a passing test.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "!! SKIPPED {test}: {reason}").expect("stderr can be written");
    if let Some(path) = std::env::var_os("KAGE_SKIPPED") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("the list of skipped tests can be written");
        writeln!(file, "{test}: {reason}").expect("the list of skipped tests can be written");
    }
}

/// This process's PATH, with the directory of a program in front of it.
#[must_use]
pub fn path_with(program: &Path) -> OsString {
    let directory = program.parent().expect("a program is in a directory").as_os_str();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(directory.into()).chain(std::env::split_paths(&path));
    std::env::join_paths(paths).expect("no directory has a colon in its name")
}
