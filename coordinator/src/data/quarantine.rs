//! Unreferenced files, kept for a while before they are deleted: the database may be the wrong one,
//! and the right one may come back. There is a folder per sweep, named by its time, in which each
//! file has the path that it had in the data folder. References of results are kept likewise in
//! their repositories. `retention` decides what is put here, and when.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use kage_core::id::{AttemptId, Digest, ProjectId, RepositoryName};
use kage_core::retention::QUARANTINE;
use kage_core::time::Timestamp;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QuarantinedData {
    Output(AttemptId),
    Blob(ProjectId, Digest),
}

/// A file in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Aside {
    pub(crate) thing: QuarantinedData,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Deleted {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Quarantine {
    root: PathBuf,
    output: PathBuf,
    blobs: PathBuf,
}

impl Quarantine {
    /// Quarantine in `root` for files from these folders.
    pub(crate) const fn new(root: PathBuf, output: PathBuf, blobs: PathBuf) -> Self {
        Self { root, output, blobs }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// The path for something that is put aside at this time.
    pub(crate) fn place(&self, at: Timestamp, thing: &QuarantinedData) -> PathBuf {
        self.batch(at).join(inside(thing))
    }

    /// The path for a repository that a person deletes at this time. A person can bring it back.
    pub(crate) fn place_of_repository(&self, at: Timestamp, project: &ProjectId, name: &RepositoryName) -> PathBuf {
        self.batch(at)
            .join("repos")
            .join(project.as_str())
            .join(format!("{name}.git"))
    }

    fn batch(&self, at: Timestamp) -> PathBuf {
        self.root.join(at.as_millis().to_string())
    }

    fn home(&self, thing: &QuarantinedData) -> PathBuf {
        match thing {
            QuarantinedData::Output(attempt) => self.output.join(attempt.to_string()),
            QuarantinedData::Blob(project, digest) => self.blobs.join(project.as_str()).join(sharded(digest)),
        }
    }

    pub(crate) async fn list(&self) -> io::Result<Vec<Aside>> {
        let root = self.root.clone();
        blocking(move || {
            let mut aside = Vec::new();
            for batch in entries(&root)? {
                for path in entries(&batch.join("output"))? {
                    if let Some(attempt) = parsed(&path) {
                        let thing = QuarantinedData::Output(attempt);
                        aside.push(Aside { thing, path });
                    }
                }
                for project in entries(&batch.join("blobs"))? {
                    let Some(name) = parsed::<ProjectId>(&project) else {
                        continue;
                    };
                    for folder in entries(&project)? {
                        for path in entries(&folder)? {
                            if let Some(digest) = parsed(&path) {
                                let thing = QuarantinedData::Blob(name.clone(), digest);
                                aside.push(Aside { thing, path });
                            }
                        }
                    }
                }
            }
            Ok(aside)
        })
        .await
    }

    /// Puts files back where they were, unless a file is there again.
    pub(crate) async fn give_back(&self, things: Vec<Aside>) -> io::Result<()> {
        let moves: Vec<_> = things
            .into_iter()
            .map(|aside| (aside.path, self.home(&aside.thing)))
            .collect();
        blocking(move || {
            for (from, to) in moves {
                if to.exists() {
                    continue;
                }
                if let Some(folder) = to.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                std::fs::rename(&from, &to)?;
            }
            Ok(())
        })
        .await
    }

    /// Makes the folder of everything that is put aside at this time; its mtime tells the age.
    pub(crate) async fn begin(&self, at: Timestamp) -> io::Result<()> {
        let batch = self.batch(at);
        blocking(move || std::fs::create_dir_all(batch)).await
    }

    /// The batches that are too young to be deleted by their folder's mtime: the clock that named
    /// them may have been wrong then, or be wrong now.
    pub(crate) async fn young(&self) -> io::Result<HashSet<Timestamp>> {
        let root = self.root.clone();
        blocking(move || {
            let mut young = HashSet::new();
            for batch in entries(&root)? {
                let Some(at) = time_of(&batch) else { continue };
                let changed = std::fs::symlink_metadata(&batch)?.modified()?;
                if changed.elapsed().map_or(true, |age| age < QUARANTINE) {
                    young.insert(at);
                }
            }
            Ok(young)
        })
        .await
    }

    /// The free and all bytes of the disk; `None` when the system does not say.
    pub(crate) async fn disk(&self) -> Option<(u64, u64)> {
        // Quarantine itself may not exist.
        let root = self.output.clone();
        let found = blocking(move || Ok(rustix::fs::statvfs(&root)?)).await.ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some((bytes(found.f_bavail), bytes(found.f_blocks)))
    }

    /// The bytes of every batch, by its time.
    pub(crate) async fn sizes(&self) -> io::Result<Vec<(Timestamp, u64)>> {
        let root = self.root.clone();
        blocking(move || {
            let mut sizes = Vec::new();
            for batch in entries(&root)? {
                let Some(at) = time_of(&batch) else { continue };
                let mut found = Deleted::default();
                count(&batch, &mut found)?;
                sizes.push((at, found.bytes));
            }
            Ok(sizes)
        })
        .await
    }

    /// Deletes these batches, whatever their age.
    pub(crate) async fn delete_batches(&self, batches: Vec<Timestamp>) -> io::Result<Deleted> {
        let paths: Vec<_> = batches.into_iter().map(|at| self.batch(at)).collect();
        blocking(move || {
            let mut deleted = Deleted::default();
            for batch in paths {
                count(&batch, &mut deleted)?;
                std::fs::remove_dir_all(&batch)?;
            }
            Ok(deleted)
        })
        .await
    }

    /// Deletes everything that was put aside before a time, except young batches.
    pub(crate) async fn delete(&self, before: Timestamp, young: HashSet<Timestamp>) -> io::Result<Deleted> {
        let root = self.root.clone();
        blocking(move || {
            let mut deleted = Deleted::default();
            for batch in entries(&root)? {
                if time_of(&batch).is_some_and(|at| at < before && !young.contains(&at)) {
                    count(&batch, &mut deleted)?;
                    std::fs::remove_dir_all(&batch)?;
                }
            }
            Ok(deleted)
        })
        .await
    }
}

/// When the data in a folder was put aside.
fn time_of(batch: &Path) -> Option<Timestamp> {
    parsed(batch).map(Timestamp::from_millis)
}

fn inside(thing: &QuarantinedData) -> PathBuf {
    match thing {
        QuarantinedData::Output(attempt) => Path::new("output").join(attempt.to_string()),
        QuarantinedData::Blob(project, digest) => Path::new("blobs").join(project.as_str()).join(sharded(digest)),
    }
}

/// The path of a blob, as in the folder of blobs.
fn sharded(digest: &Digest) -> PathBuf {
    let digest = digest.as_str();
    Path::new(&digest[..2]).join(digest)
}

/// The entries of a folder; empty when it does not exist.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn parsed<T: std::str::FromStr>(path: &Path) -> Option<T> {
    path.file_name()?.to_str()?.parse().ok()
}

fn count(path: &Path, deleted: &mut Deleted) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        deleted.files += 1;
        deleted.bytes += found.len();
        return Ok(());
    }
    for entry in entries(path)? {
        count(&entry, deleted)?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_put_aside_comes_back_or_is_deleted_by_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let quarantine = Quarantine::new(at("quarantine"), at("output"), at("blobs"));
        assert_eq!(quarantine.list().await.unwrap(), []);
        let early = Timestamp::from_millis(1_000);
        let late = Timestamp::from_millis(2_000);
        let output = QuarantinedData::Output(AttemptId::from_random(1));
        let blob = QuarantinedData::Blob(ProjectId::default(), Digest::of(b"blob"));
        for (when, thing, file) in [(early, &output, Some("stdout")), (late, &blob, None)] {
            let place = quarantine.place(when, thing);
            let file = file.map_or(place.clone(), |name| place.join(name));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "words").unwrap();
        }
        std::fs::write(at("quarantine/README"), "a person's").unwrap();
        let mut sizes = quarantine.sizes().await.unwrap();
        sizes.sort_unstable();
        assert_eq!(sizes, [(early, 5), (late, 5)]);
        let mut listed = quarantine.list().await.unwrap();
        listed.sort_by_key(|aside| aside.path.clone());
        let things: Vec<_> = listed.iter().map(|aside| aside.thing.clone()).collect();
        assert_eq!(things, [output, blob.clone()]);

        let blobs = listed.split_off(1);
        quarantine.give_back(blobs).await.unwrap();
        assert_eq!(std::fs::read(quarantine.home(&blob)).unwrap(), b"words");
        let delete = async |before| {
            let young = quarantine.young().await.unwrap();
            quarantine.delete(before, young).await.unwrap()
        };
        assert_eq!(
            delete(late).await,
            Deleted::default(),
            "young by the file system's clock"
        );
        for (batch, days) in [("1000", 8), ("2000", 6)] {
            let batch = std::fs::File::open(at("quarantine").join(batch)).unwrap();
            let age = std::time::Duration::from_secs(days * 24 * 60 * 60);
            batch.set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        assert_eq!(quarantine.young().await.unwrap(), HashSet::from([late]));
        assert_eq!(delete(early).await, Deleted::default(), "not old enough");
        let deleted = delete(Timestamp::from_millis(3_000)).await;
        assert_eq!(deleted, Deleted { files: 1, bytes: 5 });
        assert_eq!(quarantine.list().await.unwrap(), []);

        quarantine.begin(late).await.unwrap();
        std::fs::write(at("quarantine/2000/file"), "words").unwrap();
        let deleted = quarantine.delete_batches(vec![late]).await.unwrap();
        assert_eq!(deleted, Deleted { files: 1, bytes: 5 });
        assert_eq!(quarantine.sizes().await.unwrap(), []);
        assert!(at("quarantine/README").exists());
    }
}
