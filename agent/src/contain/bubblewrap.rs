//! Bubblewrap, which builds T2: where it is, and the arguments that make it mount what
//! [`super::policy::mounts`] says.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::policy::{Confinement, Mount, Network, Scene, TEMPORARY, mounts};

/// Where it is looked for. PATH is the person's, or a session's that planted something.
const FOLDERS: &[&str] = &["/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin"];

/// The oldest version that does what is asked of it here.
const OLDEST: (u32, u32) = (0, 4);

/// What may not be set for the group or others.
const WRITABLE: u32 = 0o022;

/// Finds it, or says why T2 cannot be had. Blocks.
pub(super) fn find() -> Result<PathBuf, String> {
    let candidates = FOLDERS.iter().map(|folder| Path::new(folder).join("bwrap"));
    let Some(path) = candidates.into_iter().find(|path| path.exists()) else {
        return Err("bubblewrap is not installed (Debian: apt-get install bubblewrap)".to_owned());
    };
    let unsafe_to_run = |why: &str| format!("{} is not used: {why}", path.display());
    let found = fs::metadata(&path).map_err(|error| unsafe_to_run(&error.to_string()))?;
    if found.uid() != 0 || found.mode() & WRITABLE != 0 {
        return Err(unsafe_to_run("others than root can change it"));
    }
    let mut asking = Command::new(&path);
    let told = asking.arg("--version").env_clear().output();
    let told = told.map_err(|error| unsafe_to_run(&error.to_string()))?;
    let told = String::from_utf8_lossy(&told.stdout).trim().to_owned();
    match version(&told) {
        Some(version) if version >= OLDEST => Ok(path),
        Some(_) | None => Err(unsafe_to_run(&format!(
            "it says {told:?}, and version {}.{} is the oldest that works",
            OLDEST.0, OLDEST.1
        ))),
    }
}

/// The version in `bubblewrap 0.8.0`.
fn version(told: &str) -> Option<(u32, u32)> {
    let mut numbers = told.split_ascii_whitespace().next_back()?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The arguments before the program.
pub(super) fn arguments(confinement: &Confinement, scene: &Scene) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--die-with-parent",
    ]
    .map(OsString::from)
    .into();
    match confinement.network {
        Network::Open => {}
        Network::None => arguments.push("--unshare-net".into()),
    }
    arguments.extend(["--cap-drop", "ALL"].map(OsString::from));
    let mounts = mounts(confinement, scene);
    let empty = mounts.iter().filter(|(_, mount)| **mount == Mount::Empty);
    let empty: Vec<_> = empty.map(|(path, _)| path.clone()).collect();
    for (path, mount) in mounts {
        let mut mount_at = |how: &str, from: Option<&OsStr>| {
            arguments.push(how.into());
            arguments.extend(from.map(OsStr::to_owned));
            arguments.push(path.clone().into_os_string());
        };
        match mount {
            // What is not there, or goes meanwhile, is not there in the box either.
            Mount::ReadOnly => mount_at("--ro-bind-try", Some(path.as_os_str())),
            Mount::Writable => mount_at("--bind-try", Some(path.as_os_str())),
            Mount::Empty => mount_at("--tmpfs", None),
            Mount::Nothing => mount_at("--ro-bind", Some(OsStr::new("/dev/null"))),
            Mount::Link(target) => mount_at("--symlink", Some(target.as_os_str())),
            Mount::Processes => mount_at("--proc", None),
            Mount::Devices => mount_at("--dev", None),
        }
    }
    // What looks like a place of the machine takes nothing that would be gone with the box.
    let closed = empty
        .iter()
        .filter(|path| !TEMPORARY.iter().any(|open| path.as_path() == Path::new(open)));
    for path in closed.map(PathBuf::as_path).chain([Path::new("/")]) {
        arguments.extend([OsStr::new("--remount-ro"), path.as_os_str()].map(OsStr::to_owned));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_last_word() {
        for (told, expected) in [
            ("bubblewrap 0.8.0", Some((0, 8))),
            ("bubblewrap 0.11.2", Some((0, 11))),
            ("bubblewrap", None),
            ("", None),
        ] {
            assert_eq!(version(told), expected, "{told}");
        }
        assert!(version("bubblewrap 0.11.0") > version("bubblewrap 0.8.0"));
    }
}
