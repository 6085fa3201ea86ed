//! Download caches of package managers in the home folders of attempts: looked at, and copied from the home
//! folder of the agent's user. Where the file system can, a copy shares its content with the cache until
//! one of the two is written; a hard link would let a session write into the cache. Nothing is ever written
//! back. What is a link, and what may say who somebody is, stays behind. `core::caches` decides how.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_core::caches::{CacheSettings, CacheSharing, CacheSize, MOST_FILES, is_credential, sharing};
use kage_core::task::TaskEnvironment;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ports::{Blocking, Interrupted};

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

/// How long what was found in caches counts: attempts that begin together look once.
const FOUND_COUNTS: Duration = Duration::from_secs(60);

/// The caches of home folders, as attempts get them.
#[derive(Debug)]
pub(crate) struct Caches {
    settings: CacheSettings,
    /// By home folder. Whoever looks holds it, so that others wait for what it finds.
    found: Mutex<HashMap<PathBuf, Found>>,
}

#[derive(Debug)]
struct Found {
    at: Instant,
    caches: Arc<[FoundCache]>,
}

impl Caches {
    pub(crate) fn new(settings: CacheSettings) -> Self {
        Self {
            settings,
            found: Mutex::default(),
        }
    }

    /// Gives the caches to the home folder `to`, until `stop`. A cache that cannot be copied is not there, as if
    /// the package manager had none.
    pub(crate) async fn give(
        &self,
        blocking: &Blocking,
        home: &Path,
        to: &Path,
        stop: &CancellationToken,
    ) -> Result<(), Interrupted> {
        let looking = self.found(blocking, home, to, stop);
        let Some(Ok(Some(caches))) = stop.run_until_cancelled(looking).await else {
            return Ok(());
        };
        let (home, to, stop) = (home.to_owned(), to.to_owned(), stop.clone());
        // Seen to its end, which is soon after a stop: the folder is removed then.
        blocking.run(move || copy_all(&home, &to, &caches, &stop)).await
    }

    /// `None` when it was stopped.
    async fn found(
        &self,
        blocking: &Blocking,
        home: &Path,
        to: &Path,
        stop: &CancellationToken,
    ) -> Result<Option<Arc<[FoundCache]>>, Interrupted> {
        if self.settings.share.is_empty() {
            return Ok(None);
        }
        let mut found = self.found.lock().await;
        found.retain(|_, found| found.at.elapsed() < FOUND_COUNTS);
        if let Some(found) = found.get(home) {
            return Ok(Some(Arc::clone(&found.caches)));
        }
        let (from, to, settings, stop) = (home.to_owned(), to.to_owned(), self.settings.clone(), stop.clone());
        let looked = blocking.run(move || look_until(&from, &to, &settings, &stop)).await?;
        let Some(caches) = looked.map(Arc::<[FoundCache]>::from) else {
            return Ok(None);
        };
        let entry = Found {
            at: Instant::now(),
            caches: Arc::clone(&caches),
        };
        found.insert(home.to_owned(), entry);
        Ok(Some(caches))
    }
}

/// The caches of a home folder as attempts with folders in `to`, which is there, get them. Blocks.
#[must_use]
pub fn look(home: &Path, to: &Path, settings: &CacheSettings) -> Vec<FoundCache> {
    look_until(home, to, settings, &CancellationToken::new()).unwrap_or_default()
}

/// `None` when it was stopped.
fn look_until(home: &Path, to: &Path, settings: &CacheSettings, stop: &CancellationToken) -> Option<Vec<FoundCache>> {
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
            Ok(size.files <= files_left && !stop.is_cancelled())
        });
        if stop.is_cancelled() {
            return None;
        }
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
    Some(found)
}

/// Copies the caches that attempts get to the home folder `to`, until it is stopped.
fn copy_all(home: &Path, to: &Path, caches: &[FoundCache], stop: &CancellationToken) {
    for cache in caches {
        let Some(folder) = folder_of(home, &cache.path).filter(|_| cache.sharing.is_given()) else {
            continue;
        };
        let place = to.join(&cache.path);
        let is_new = fs::symlink_metadata(&place).is_err();
        if let Err(error) = copy(&folder, &place, cache.sharing == CacheSharing::CopiedOnWrite, stop) {
            tracing::warn!(cache = cache.path, %error, "a cache is not copied");
            // What was there before is the task's.
            if is_new {
                fs::remove_dir_all(&place).ok();
            }
        }
        if stop.is_cancelled() {
            return;
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

fn copy(from: &Path, to: &Path, clone: bool, stop: &CancellationToken) -> io::Result<()> {
    let make = |folder: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    make(to)?;
    walk(from, &mut |relative, meta, full| {
        if stop.is_cancelled() {
            return Ok(false);
        }
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
mod tests;
