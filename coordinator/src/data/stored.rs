//! How many bytes projects have in blobs and repositories, and whether they may have more. What a folder has is
//! looked at now and then, and what comes in is added to it meanwhile; what is removed counts at the next look.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kage_core::id::ProjectId;
use kage_core::left_out::in_units;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long what was found in a project's folders counts. Looking takes as long as listing its files.
const COUNTS: Duration = Duration::from_secs(5 * 60);

/// A project has as much as it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "project {project} has {} stored, and may have {}: remove tasks of it (`kage rm --now`), or ask for more \
     (`project_mib` of the coordinator's `[limits]`)", in_units(*.bytes), in_units(*.most)
)]
pub(crate) struct ProjectFull {
    project: ProjectId,
    bytes: u64,
    most: u64,
}

/// What comes into a project while this is held counts at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Incoming(Option<Arc<AtomicU64>>);

impl Incoming {
    pub(crate) fn add(&self, bytes: u64) {
        if let Some(stored) = &self.0 {
            stored.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Measured {
    at: Instant,
    bytes: Arc<AtomicU64>,
}

type Place = Arc<Mutex<Option<Measured>>>;

/// The bytes of each project.
#[derive(Debug)]
pub(crate) struct StoredBytes {
    /// The folders that have one for each project.
    roots: Vec<PathBuf>,
    /// 0 = no limit, and nothing is looked at.
    most: u64,
    /// Whoever looks at a project's folders holds its lock; other projects go on.
    measured: std::sync::Mutex<HashMap<ProjectId, Place>>,
}

impl StoredBytes {
    pub(crate) fn new(roots: impl IntoIterator<Item = PathBuf>, most: u64) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            most,
            measured: std::sync::Mutex::default(),
        }
    }

    /// Whether a project may have more. A folder that cannot be read refuses nobody.
    pub(crate) async fn room(&self, project: &ProjectId) -> Result<Incoming, ProjectFull> {
        if self.most == 0 {
            return Ok(Incoming::default());
        }
        // Whoever asks meanwhile waits for what is found.
        let place = self.place(project);
        let mut measured = place.lock().await;
        let known = measured.as_ref().filter(|known| known.at.elapsed() < COUNTS);
        let stored = match known {
            Some(known) => Arc::clone(&known.bytes),
            None => {
                let folders: Vec<_> = self.roots.iter().map(|root| root.join(project.as_str())).collect();
                let all = move || folders.iter().map(|folder| bytes_in(folder)).sum::<io::Result<u64>>();
                let found = tokio::task::spawn_blocking(all).await;
                let bytes = match found.map_err(io::Error::other).and_then(|found| found) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        tracing::warn!(%error, "a project was not measured");
                        return Ok(Incoming::default());
                    }
                };
                let bytes = Arc::new(AtomicU64::new(bytes));
                *measured = Some(Measured {
                    at: Instant::now(),
                    bytes: Arc::clone(&bytes),
                });
                bytes
            }
        };
        drop(measured);
        let (bytes, most) = (stored.load(Ordering::Relaxed), self.most);
        if bytes >= most {
            let project = project.clone();
            return Err(ProjectFull { project, bytes, most });
        }
        Ok(Incoming(Some(stored)))
    }

    /// Counts what comes into a project, however much it has. What was never looked at is not: the first look
    /// finds all of it.
    pub(crate) async fn incoming(&self, project: &ProjectId) -> Incoming {
        if self.most == 0 {
            return Incoming::default();
        }
        let place = self.place(project);
        let measured = place.lock().await;
        Incoming(measured.as_ref().map(|known| Arc::clone(&known.bytes)))
    }

    fn place(&self, project: &ProjectId) -> Place {
        // Places are only added.
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(measured.entry(project.clone()).or_default())
    }
}

/// The bytes of all files below a folder; none when it is not there.
fn bytes_in(folder: &Path) -> io::Result<u64> {
    let (mut waiting, mut bytes) = (vec![folder.to_owned()], 0_u64);
    while let Some(folder) = waiting.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Files come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(found) if found.is_dir() => waiting.push(entry.path()),
                Ok(found) => bytes = bytes.saturating_add(found.len()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, bytes: usize) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![b'x'; bytes]).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_project_has_what_is_in_its_folders_and_what_came_since() {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["blobs", "repos"].map(|name| dir.path().join(name));
        file(&roots[0].join("a/00/one"), 400);
        file(&roots[1].join("a/r.git/pack"), 500);
        file(&roots[0].join("b/00/one"), 5000);
        let stored = StoredBytes::new(roots.clone(), 1000);
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let room = stored.room(&a).await.unwrap();
        let full = stored.room(&b).await.unwrap_err();
        assert!(full.to_string().contains("project b has"), "{full}");
        assert!(stored.room(&"none".parse().unwrap()).await.is_ok());
        room.add(99);
        assert!(stored.room(&a).await.is_ok());
        room.add(1);
        assert_eq!(stored.room(&a).await.unwrap_err().bytes, 1000);
        // What may not be refused is counted.
        stored.incoming(&a).await.add(5);
        assert_eq!(stored.room(&a).await.unwrap_err().bytes, 1005);
        // What was removed counts a little later.
        std::fs::remove_dir_all(roots[0].join("b")).unwrap();
        assert!(stored.room(&b).await.is_err());
        tokio::time::advance(COUNTS).await;
        assert!(stored.room(&b).await.is_ok() && stored.room(&a).await.is_ok());
        let unlimited = StoredBytes::new(roots, 0);
        unlimited.room(&b).await.unwrap().add(u64::MAX);
        assert!(unlimited.room(&b).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_project_that_is_looked_at_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let stored = StoredBytes::new([dir.path().to_owned()], 1000);
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let place = stored.place(&a);
        let looking = place.lock().await;
        assert!(stored.room(&b).await.is_ok());
        let waits = tokio::time::timeout(Duration::from_secs(1), stored.room(&a)).await;
        assert!(waits.is_err());
        drop(looking);
        assert!(stored.room(&a).await.is_ok());
    }
}
