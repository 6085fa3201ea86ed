//! What `scripts/release` makes can be installed where there is nothing, without cargo, and works there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use kage_tests::programs;
use serde_json::Value;
use tempfile::TempDir;

/// The folder with a release of the program under test.
fn release() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/release"))
            .args(["--fast", "--binary"])
            .arg(programs::kage())
            .arg(folder.path()));
        folder
    });
    made.path()
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// The only file of the release whose name ends so.
fn made(beginning: &str, end: &str) -> PathBuf {
    let files = std::fs::read_dir(release()).unwrap().map(|entry| entry.unwrap().path());
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(beginning) && name.ends_with(end)
    };
    let found: Vec<_> = files.filter(fits).collect();
    assert_eq!(found.len(), 1, "{beginning}*{end}: {found:?}");
    found.into_iter().next().unwrap()
}

/// What the demo printed as JSON: two of its sessions are verified, and the first wins.
fn assert_demo(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let sessions = report["sessions"].as_array().unwrap();
    let passed = sessions.iter().filter(|session| session["verdict"] == "passed");
    assert_eq!((sessions.len(), passed.count()), (3, 2), "{report:#}");
    assert_eq!(report["winner"], "claude-api-1", "{report:#}");
}

/// Installs the package in the folder `$1`, lends it what every system has besides, and runs the demo in it.
const IN_AN_EMPTY_ROOT: &str = r#"
set -eu
root=$1
mkdir -p "$root"/var/lib/dpkg/info "$root"/var/lib/dpkg/updates "$root"/host/bin "$root"/usr/lib "$root"/usr/lib64 \
    "$root"/etc/ssl "$root"/proc "$root"/dev "$root"/tmp "$root"/root
: >"$root/var/lib/dpkg/status"
# What it depends on are no packages there.
dpkg --root="$root" --force-depends --log=/dev/null -i "$2" >&2
dpkg --root="$root" --verify kage >&2
test -f "$root/usr/share/man/man1/kage-run.1.gz"
test -f "$root/usr/share/bash-completion/completions/kage"
mount --bind /usr/bin "$root/host/bin"
mount --bind /usr/lib "$root/usr/lib"
mount --bind /etc/ssl "$root/etc/ssl"
[ ! -d /usr/lib64 ] || mount --bind /usr/lib64 "$root/usr/lib64"
ln -s host/bin "$root/bin"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot "$root" /host/bin/env -i HOME=/root PATH=/usr/bin:/bin kage demo --format json
"#;

#[test]
fn the_debian_package_shows_the_demo_in_an_empty_root() {
    if !rustix::process::geteuid().is_root() {
        return programs::skip("installed", "only root can install a Debian package");
    }
    let root = tempfile::tempdir().unwrap();
    let deb = made("kage_", ".deb");
    let output = run(Command::new("unshare")
        .args(["--mount", "sh", "-c", IN_AN_EMPTY_ROOT, "sh"])
        .arg(root.path())
        .arg(deb));
    assert_demo(&output);
}

#[test]
fn the_npm_package_shows_the_demo_and_hands_on_how_the_program_ended() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path();
    let (launcher, program) = (made("kage-bunshin-0", ".tgz"), made("kage-bunshin-linux-", ".tgz"));
    // The packages for other machines are optional, and in no registry yet.
    run(Command::new("npm")
        .args(["install", "--offline", "--no-audit", "--no-fund", "--prefix"])
        .arg(prefix)
        .args([program, launcher])
        .env("npm_config_cache", prefix.join("cache")));
    let installed = |arguments: &[&str]| {
        let mut command = Command::new(prefix.join("node_modules/.bin/kage"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", prefix)
            .current_dir(prefix)
            .stdin(Stdio::null());
        command
    };
    assert_demo(&run(&mut installed(&["demo", "--format", "json"])));
    let refused = installed(&["ls", "--no-such-flag"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn an_archive_has_everything_and_the_checksums_hold() {
    run(Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(release()));
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("tar")
        .arg("-xzf")
        .arg(made("kage-0", ".tar.gz"))
        .arg("--strip-components=1")
        .current_dir(folder.path()));
    let version = run(Command::new(folder.path().join("kage")).arg("--version"));
    assert!(
        String::from_utf8_lossy(&version.stdout).starts_with("kage "),
        "{version:?}"
    );
    for file in [
        "README.md",
        "LICENSE-MIT",
        "man/kage.1",
        "completions/kage.zsh",
        "docs/json.md",
    ] {
        assert!(folder.path().join(file).is_file(), "{file}");
    }
    let parts: Value = serde_json::from_slice(&std::fs::read(made("kage-0", ".cdx.json")).unwrap()).unwrap();
    assert_eq!(parts["bomFormat"], "CycloneDX");
    let components = parts["components"].as_array().unwrap();
    let has = |name: &str| components.iter().any(|part| part["name"] == name);
    assert!(
        has("tonic") && has("kage-agent") && !has("proptest"),
        "{} parts",
        components.len()
    );
    let from_outside = components.iter().filter(|part| part["purl"].is_string());
    for part in from_outside {
        assert!(
            part["hashes"][0]["content"].is_string() && part["licenses"].is_array(),
            "{part:#}"
        );
    }
}
