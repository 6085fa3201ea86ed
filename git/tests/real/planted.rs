//! A `git` that was put into PATH, or replaced git, after this process first ran git.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::sandbox::{Sandbox, write};

/// Puts a program there that leaves a mark.
fn plant(sandbox: &Sandbox, path: &Path) {
    let script = format!("#!/bin/sh\nenv > '{}'\nexit 0\n", sandbox.path("mark").display());
    let new = path.with_extension("new");
    write(&new, script);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, path).unwrap();
}

/// Asks git for its version, runs a function, and asks again. Returns what went wrong, or an empty
/// text if both answers were equal.
fn twice(sandbox: &Sandbox, path: &str, meanwhile: impl FnOnce()) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kage-git-step"))
        .arg("twice")
        .current_dir(sandbox.path("home"))
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (mut first, mut second) = (String::new(), String::new());
    stdout.read_line(&mut first).unwrap();
    assert!(first.starts_with(|c: char| c.is_ascii_digit()), "{first}");
    meanwhile();
    drop(child.stdin.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    stdout.read_line(&mut second).unwrap();
    assert_eq!(child.wait().unwrap().success(), said.is_empty(), "{said}");
    assert_eq!(first == second, said.is_empty(), "{first}{second}{said}");
    said
}

fn path(sandbox: &Sandbox, first: &str) -> String {
    let rest = std::env::var("PATH").unwrap();
    format!("{}:{rest}", sandbox.path(first).display())
}

#[test]
fn a_git_that_is_put_before_the_real_one_is_not_run() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("bin")).unwrap();
    let said = twice(&sandbox, &path(&sandbox, "bin"), || {
        plant(&sandbox, &sandbox.path("bin/git"))
    });
    assert_eq!(said, "");
    assert!(!sandbox.path("mark").exists());
}

#[test]
fn a_git_in_the_working_directory_is_not_run() {
    let sandbox = Sandbox::new();
    plant(&sandbox, &sandbox.path("home/git"));
    let said = twice(&sandbox, &format!(".::{}", std::env::var("PATH").unwrap()), || ());
    assert_eq!(said, "");
    assert!(!sandbox.path("mark").exists());
}

#[test]
fn a_git_in_the_place_of_the_real_one_is_not_run_and_that_is_told() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("bin")).unwrap();
    // A person's own git, which any program of the person can replace.
    let own = sandbox.path("bin/git");
    let real = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|folder| folder.join("git"))
        .find(|git| git.is_file())
        .unwrap();
    write(&own, format!("#!/bin/sh\nexec '{}' \"$@\"\n", real.display()));
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    let said = twice(&sandbox, &path(&sandbox, "bin"), || plant(&sandbox, &own));
    assert!(said.contains(&own.display().to_string()), "{said}");
    assert!(said.contains("restart the agent"), "{said}");
    assert!(!sandbox.path("mark").exists());
}
