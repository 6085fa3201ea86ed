//! Download caches of package managers in the home folders of attempts: looked at, and copied from the home
//! folder of the agent's user. Where the file system can, a copy shares its content with the cache until
//! one of the two is written; a hard link would let a session write into the cache. Nothing is ever written
//! back. What is a link, and what may say who somebody is, stays behind. `core::caches` decides how.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kage_core::caches::{CacheSettings, CacheSharing, CacheSize, MOST_FILES, is_credential, sharing};
use kage_core::task::TaskEnvironment;
use serde::Serialize;

/// How deep in a cache the package manager's own files are.
const OWN_FILES: usize = 2;

/// A cache that is there, and how attempts get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundCache {
    /// Below the home folder.
    pub path: String,
    pub size: CacheSize,
    pub sharing: CacheSharing,
}

/// The caches of a home folder as attempts with folders in `to`, which is there, get them. Blocks.
#[must_use]
pub fn look(home: &Path, to: &Path, settings: &CacheSettings) -> Vec<FoundCache> {
    let (mut found, mut room, mut seen) = (Vec::new(), settings.most_copied, HashSet::new());
    let mut files_left = MOST_FILES;
    for path in &settings.share {
        let path = path.trim_start_matches("~/").trim_end_matches('/');
        let Some(folder) = folder_of(home, path).filter(|_| seen.insert(path.to_owned())) else {
            continue;
        };
        let (mut size, mut sample) = (CacheSize::default(), None);
        let walked = walk(&folder, &mut |_, meta, full| {
            if meta.is_file() {
                size.files += 1;
                size.bytes = size.bytes.saturating_add(meta.len());
                if sample.is_none() && meta.len() > 0 {
                    sample = Some(full.to_owned());
                }
            }
            // More need not be counted.
            Ok(size.files <= files_left)
        });
        if walked.is_err() {
            continue;
        }
        let can_clone = sample.is_some_and(|sample| can_clone(&sample, to));
        let sharing = sharing(size, can_clone, (room, files_left));
        if sharing.is_given() {
            files_left = files_left.saturating_sub(size.files);
        }
        if sharing == CacheSharing::Copied {
            room = room.saturating_sub(size.bytes);
        }
        let path = path.to_owned();
        found.push(FoundCache { path, size, sharing });
    }
    found
}

/// Gives the caches to the home folder `to`. A cache that cannot be copied is not there, as if the package
/// manager had none. Blocks.
pub(crate) fn give(home: &Path, to: &Path, settings: &CacheSettings) {
    for cache in look(home, to, settings) {
        let Some(folder) = folder_of(home, &cache.path).filter(|_| cache.sharing.is_given()) else {
            continue;
        };
        let place = to.join(&cache.path);
        let is_new = fs::symlink_metadata(&place).is_err();
        if let Err(error) = copy(&folder, &place, cache.sharing == CacheSharing::CopiedOnWrite) {
            tracing::warn!(cache = cache.path, %error, "a cache is not copied");
            // What was there before is the task's.
            if is_new {
                fs::remove_dir_all(&place).ok();
            }
        }
    }
}

/// The folder of a cache, if it is below the home folder and holds no logins.
fn folder_of(home: &Path, path: &str) -> Option<PathBuf> {
    let home = fs::canonicalize(home).ok()?;
    if TaskEnvironment::refuses_file(path).is_some() {
        return None;
    }
    let folder = fs::canonicalize(home.join(path)).ok()?;
    let within = folder.strip_prefix(&home).ok()?.to_str()?;
    (!within.is_empty() && TaskEnvironment::refuses_file(within).is_none() && folder.is_dir()).then_some(folder)
}

/// Goes through the files and folders of a cache, folders first, until told to stop. Links and what may
/// say who somebody is are not there.
fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata, &Path) -> io::Result<bool>) -> io::Result<()> {
    let mut open = vec![PathBuf::new()];
    while let Some(here) = open.pop() {
        for entry in fs::read_dir(folder.join(&here))? {
            let entry = entry?;
            let (relative, full) = (here.join(entry.file_name()), entry.path());
            // It may be gone by now: caches are tidied.
            let Ok(meta) = fs::symlink_metadata(&full) else {
                continue;
            };
            // Deeper are the files of packages, which nobody may miss.
            let is_own = meta.is_file() && relative.components().count() <= OWN_FILES;
            let is_credential = is_own && entry.file_name().to_str().is_none_or(is_credential);
            if is_credential || !(meta.is_dir() || meta.is_file()) {
                continue;
            }
            if !visit(&relative, &meta, &full)? {
                return Ok(());
            }
            if meta.is_dir() {
                open.push(relative);
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, clone: bool) -> io::Result<()> {
    let make = |folder: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    make(to)?;
    walk(from, &mut |relative, meta, full| {
        let place = to.join(relative);
        if meta.is_dir() {
            make(&place)?;
            return Ok(true);
        }
        let mut source = match File::open(full) {
            Ok(source) => source,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let mode = meta.permissions().mode() & 0o777;
        let mut made = match File::options().write(true).create_new(true).mode(mode).open(&place) {
            Ok(made) => made,
            // A file that the task asked for, or another cache has it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(true),
            Err(error) => return Err(error),
        };
        if clone {
            share_content(&source, &made)?;
        } else {
            io::copy(&mut source, &mut made)?;
        }
        if let Ok(modified) = meta.modified() {
            made.set_modified(modified)?;
        }
        Ok(true)
    })
}

/// Whether files of a folder can share the content of a file.
fn can_clone(sample: &Path, to: &Path) -> bool {
    let tried = || share_content(&File::open(sample)?, &tempfile::tempfile_in(to)?);
    tried().is_ok()
}

/// Makes an empty file one with the content of another, which both have until one is written.
#[cfg(target_os = "linux")]
fn share_content(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

#[cfg(not(target_os = "linux"))]
fn share_content(_from: &File, _to: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    /// A home folder with caches, below a folder of its own.
    fn home(top: &Path) -> PathBuf {
        let home = top.join("home");
        for (path, content) in [
            (".npm/_cacache/content/ab", "a package"),
            (".npm/_cacache/.npmrc", "a token"),
            (".npm/.npmrc", "a token"),
            (".cache/pip/http/one", "0123456789"),
            (".cache/pip/pip.conf", "a password"),
            (".cache/pip/wheels/certifi/cacert.pem", "a part of a package"),
            (".ssh/id_rsa", "a key"),
        ] {
            let file = home.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        fs::set_permissions(home.join(".npm/_cacache/content/ab"), fs::Permissions::from_mode(0o444)).unwrap();
        symlink("/etc", home.join(".npm/_cacache/link")).unwrap();
        symlink("../../etc", home.join(".m2")).unwrap();
        home
    }

    fn settings(share: &[&str], most_copied: u64) -> CacheSettings {
        CacheSettings {
            share: share.iter().map(ToString::to_string).collect(),
            most_copied,
        }
    }

    #[test]
    fn an_attempt_gets_a_copy_of_its_own_without_logins() {
        let top = tempfile::tempdir().unwrap();
        let (home, to) = (home(top.path()), top.path().join("to"));
        fs::create_dir(&to).unwrap();
        let all = settings(
            &["~/.npm/", ".npm/_cacache", ".cache/pip", ".ssh", "../x", ".m2", ".none"],
            1000,
        );
        let found = look(&home, &to, &all);
        let paths: Vec<&str> = found.iter().map(|cache| cache.path.as_str()).collect();
        assert_eq!(paths, [".npm", ".npm/_cacache", ".cache/pip"]);
        let expected = match can_clone(&home.join(".cache/pip/http/one"), &to) {
            true => CacheSharing::CopiedOnWrite,
            false => CacheSharing::Copied,
        };
        assert!(found.iter().all(|cache| cache.sharing == expected), "{found:?}");
        give(&home, &to, &settings(&["~/.npm/", ".cache/pip", ".ssh"], 1000));
        let package = ".npm/_cacache/content/ab";
        assert_eq!(fs::read_to_string(to.join(package)).unwrap(), "a package");
        assert_eq!(
            fs::metadata(to.join(package)).unwrap().permissions().mode() & 0o777,
            0o444
        );
        let times = [&home, &to].map(|top| fs::metadata(top.join(package)).unwrap().modified().unwrap());
        assert_eq!(times[0], times[1]);
        for absent in [
            ".npm/.npmrc",
            ".npm/_cacache/.npmrc",
            ".npm/_cacache/link",
            ".cache/pip/pip.conf",
            ".ssh",
        ] {
            assert!(fs::symlink_metadata(to.join(absent)).is_err(), "{absent}");
        }
        assert!(to.join(".cache/pip/wheels/certifi/cacert.pem").exists());
        // Once more nothing changes, and nothing that was there is removed.
        fs::write(to.join(".cache/pip/own"), "the task's").unwrap();
        give(&home, &to, &settings(&["~/.npm/", ".npm/_cacache", ".cache/pip"], 1000));
        assert!(to.join(".cache/pip/own").exists() && to.join(package).exists());
        // Writing into one is not writing into the other.
        let (one, other) = (home.join(".cache/pip/http/one"), to.join(".cache/pip/http/one"));
        assert_ne!(fs::metadata(&one).unwrap().ino(), fs::metadata(&other).unwrap().ino());
        fs::write(&other, "changed").unwrap();
        assert_eq!(fs::read_to_string(&one).unwrap(), "0123456789");
    }

    #[test]
    fn what_is_too_large_for_a_plain_copy_is_not_given() {
        let top = tempfile::tempdir().unwrap();
        let (home, to) = (home(top.path()), top.path().join("to"));
        fs::create_dir(&to).unwrap();
        if can_clone(&home.join(".cache/pip/http/one"), &to) {
            eprintln!("SKIPPED: this file system shares content");
            return;
        }
        // Together they are too large.
        let both = settings(&[".cache/pip", ".npm/_cacache"], 31);
        let sharing: Vec<_> = look(&home, &to, &both).into_iter().map(|cache| cache.sharing).collect();
        assert_eq!(sharing, [CacheSharing::Copied, CacheSharing::TooLarge { most: 2 }]);
        give(&home, &to, &both);
        assert!(to.join(".cache/pip/http/one").exists() && !to.join(".npm").exists());
    }
}
