//! A home of cargo for one attempt: cargo writes locks, indexes and packages into its home, and the
//! person's is read-only in a box. What was downloaded is linked and not copied; what is new lands in the
//! attempt's own folder, so that no session changes what another one builds. Logins stay behind.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Links as a whole: nothing in it changes.
const WHOLE: &[&str] = &["config", "config.toml", "env"];

/// Written when everything is there.
const DONE: &str = ".kage-linked";

/// Makes the home of cargo `to` from the one of a person, unless that was done. Blocks.
///
/// # Errors
/// When a folder or a link cannot be made.
pub(super) fn furnish(from: &Path, to: &Path) -> io::Result<()> {
    if to.join(DONE).exists() || !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for name in WHOLE {
        if from.join(name).exists() {
            link(&from.join(name), &to.join(name))?;
        }
    }
    let registry = from.join("registry");
    // Every package is a file, and unpacked a folder.
    for kind in ["cache", "src"] {
        for source in folders(&registry.join(kind)) {
            let place = to
                .join("registry")
                .join(kind)
                .join(source.file_name().unwrap_or_default());
            fs::create_dir_all(&place)?;
            for package in entries(&source) {
                link(&package, &place.join(package.file_name().unwrap_or_default()))?;
            }
        }
    }
    for source in folders(&registry.join("index")) {
        // One that git keeps changes in place, and is fetched anew.
        if !source.join(".git").exists() {
            let place = to.join("registry/index").join(source.file_name().unwrap_or_default());
            link_files(&source, &place)?;
        }
    }
    fs::write(to.join(DONE), "")
}

/// The same folders, and links to the files.
fn link_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in entries(from) {
        let place = to.join(entry.file_name().unwrap_or_default());
        match entry.is_dir() {
            true => link_files(&entry, &place)?,
            false => link(&entry, &place)?,
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    match symlink(from, to) {
        // The task's own.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn folders(folder: &Path) -> Vec<std::path::PathBuf> {
    entries(folder).into_iter().filter(|entry| entry.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_there_and_logins_and_writes_are_not_shared() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to/.cargo"));
        for path in [
            "registry/cache/x/a-1.crate",
            "registry/src/x/a-1/lib.rs",
            "registry/index/x/.cache/a/b",
            "registry/index/old/.git/HEAD",
            "credentials.toml",
            "config.toml",
            ".package-cache",
        ] {
            let path = from.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "theirs").unwrap();
        }
        for _ in 0..2 {
            furnish(&from, &to).unwrap();
        }
        let read = |path: &str| fs::read_to_string(to.join(path)).ok();
        for path in [
            "registry/cache/x/a-1.crate",
            "registry/src/x/a-1/lib.rs",
            "registry/index/x/.cache/a/b",
            "config.toml",
        ] {
            assert_eq!(read(path).as_deref(), Some("theirs"), "{path}");
        }
        for path in ["credentials.toml", ".package-cache", "registry/index/old"] {
            assert!(!to.join(path).exists(), "{path}");
        }
        fs::write(to.join("registry/cache/x/b-2.crate"), "own").unwrap();
        fs::write(to.join(".package-cache"), "own").unwrap();
        assert!(!from.join("registry/cache/x/b-2.crate").exists());
        assert_eq!(fs::read_to_string(from.join(".package-cache")).unwrap(), "theirs");
        furnish(&place.path().join("none"), &place.path().join("other")).unwrap();
        assert!(!place.path().join("other").exists());
    }
}
