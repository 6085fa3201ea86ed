//! Blobs: bytes addressed by their SHA-256, written atomically and durable before they are
//! reported. `http::blobs` owns HTTP; the store owns the rows that refer to blobs.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use kage_core::id::{Digest, ProjectId};
use object_store::local::LocalFileSystem;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore as _, ObjectStoreExt as _, WriteMultipart,
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// The content does not match its digest.
    #[error("the content has digest {actual}")]
    DigestMismatch { actual: Digest },
    #[error("there is no blob {0}")]
    NotFound(Digest),
    #[error("a blob has at most {MAX_BLOB_BYTES} bytes")]
    TooLarge,
    /// The sender stopped before the end.
    #[error("the upload ended before its last byte")]
    Body(#[source] axum::Error),
    /// A temporary copy could not be made.
    #[error("a temporary copy could not be written")]
    Spool(#[source] std::io::Error),
    #[error("the disk of the blobs failed")]
    Disk(#[source] io::Error),
    /// The disk or object store failed.
    #[error("the blob store failed")]
    Store(#[source] object_store::Error),
}

pub(crate) const MAX_BLOB_BYTES: u64 = 8 << 30;
/// The most read into memory at once, for packs and contexts.
const CHUNK: usize = 1 << 20;

/// A blob that is being read.
pub(crate) struct Blob {
    /// Size of the whole blob.
    pub(crate) size: u64,
    /// The part of the blob that `bytes` holds.
    pub(crate) range: Range<u64>,
    pub(crate) bytes: BoxStream<'static, object_store::Result<Bytes>>,
}

/// An unreferenced blob lives at least this long after its last use.
pub(crate) const UNNAMED: Duration = Duration::from_secs(24 * 60 * 60);

/// The blobs of every project.
///
/// A client that finds a blob relies on it until a row names it. So looking for a blob renews its
/// file's time when half of the age for removal has passed; that time decides about removal.
#[derive(Debug)]
pub(crate) struct Blobs {
    store: LocalFileSystem,
    root: PathBuf,
    /// Held while a blob's age decides about its removal.
    ages: Arc<Mutex<()>>,
}

/// A blob as a folder lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) project: ProjectId,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

impl Blobs {
    /// Opens the blobs under this directory, which exists.
    pub(crate) fn open(root: &Path) -> Result<Self, BlobError> {
        let store = LocalFileSystem::new_with_prefix(root)
            .map_err(BlobError::Store)?
            .with_fsync(true);
        Ok(Self {
            store,
            root: root.to_owned(),
            ages: Arc::default(),
        })
    }

    /// Stores a stream of bytes that must have this digest. False when it existed.
    pub(crate) async fn put(
        &self,
        project: &ProjectId,
        digest: &Digest,
        mut body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    ) -> Result<bool, BlobError> {
        let path = location(project, digest);
        let known = self.size(project, digest).await?.is_some();
        let mut hasher = Sha256::new();
        let mut size = 0_u64;
        let mut upload = if known {
            // The bytes are checked nevertheless: the caller may have sent other content.
            None
        } else {
            let upload = self.store.put_multipart(&path).await.map_err(BlobError::Store)?;
            Some(WriteMultipart::new_with_chunk_size(upload, CHUNK))
        };
        let problem = loop {
            match body.next().await {
                None => break None,
                Some(Err(error)) => break Some(BlobError::Body(error)),
                Some(Ok(bytes)) => {
                    size += bytes.len() as u64;
                    if size > MAX_BLOB_BYTES {
                        break Some(BlobError::TooLarge);
                    }
                    hasher.update(&bytes);
                    if let Some(upload) = &mut upload {
                        if let Err(error) = upload.wait_for_capacity(4).await {
                            break Some(BlobError::Store(error));
                        }
                        upload.put(bytes);
                    }
                }
            }
        };
        let problem = problem.or_else(|| {
            let actual = Digest::from_raw(hasher.finalize().into());
            (actual != *digest).then_some(BlobError::DigestMismatch { actual })
        });
        match (problem, upload) {
            (None, Some(upload)) => {
                upload.finish().await.map_err(BlobError::Store)?;
                Ok(true)
            }
            (None, None) => Ok(false),
            (Some(problem), upload) => {
                if let Some(upload) = upload
                    && let Err(error) = upload.abort().await
                {
                    tracing::warn!(%digest, %error, "cannot remove a part of a blob");
                }
                Err(problem)
            }
        }
    }

    /// Stores bytes in memory. False when they existed.
    pub(crate) async fn put_bytes(&self, project: &ProjectId, bytes: Bytes) -> Result<(Digest, bool), BlobError> {
        let digest = Digest::of(&bytes);
        let body = futures_util::stream::iter([Ok(bytes)]);
        let created = self.put(project, &digest, body).await?;
        Ok((digest, created))
    }

    /// The size of a blob; `None` when there is none. Asking keeps it for a while, even without a
    /// row.
    pub(crate) async fn size(&self, project: &ProjectId, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let (path, ages) = (self.file_of(project, digest), Arc::clone(&self.ages));
        blocking(move || match std::fs::metadata(&path) {
            Ok(found) if is_younger(&found, UNNAMED / 2)? => Ok(Some(found.len())),
            Ok(_) => {
                let _deciding = ages.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(file) = there(File::options().append(true).open(&path))? else {
                    return Ok(None);
                };
                file.set_modified(SystemTime::now())?;
                Ok(Some(file.metadata()?.len()))
            }
            Err(error) => there(Err(error)),
        })
        .await
    }

    /// Lists complete blobs only.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, BlobError> {
        let root = self.root.clone();
        blocking(move || {
            let mut listed = Vec::new();
            for project in folders(&root)? {
                let Some(name) = parsed::<ProjectId>(&project) else {
                    continue;
                };
                for folder in folders(&project)? {
                    for entry in std::fs::read_dir(&folder)? {
                        let entry = entry?;
                        // Other names are parts of blobs that are being written.
                        let Some(digest) = parsed::<Digest>(&entry.path()) else {
                            continue;
                        };
                        if let Some(found) = there(entry.metadata())? {
                            listed.push(Listed {
                                project: name.clone(),
                                digest,
                                bytes: found.len(),
                            });
                        }
                    }
                }
            }
            Ok(listed)
        })
        .await
    }

    /// Removes an unreferenced blob, or moves it to `aside`, unless it was used within `age`. True
    /// when it is gone.
    pub(crate) async fn remove_unnamed(
        &self,
        blob: &Listed,
        age: Duration,
        aside: Option<PathBuf>,
    ) -> Result<bool, BlobError> {
        let (path, ages) = (self.file_of(&blob.project, &blob.digest), Arc::clone(&self.ages));
        blocking(move || {
            let _deciding = ages.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(found) = there(std::fs::metadata(&path))? else {
                return Ok(true);
            };
            if is_younger(&found, age)? {
                return Ok(false);
            }
            match aside {
                None => std::fs::remove_file(&path)?,
                Some(aside) => {
                    if let Some(folder) = aside.parent() {
                        std::fs::create_dir_all(folder)?;
                    }
                    std::fs::rename(&path, &aside)?;
                }
            }
            Ok(true)
        })
        .await
    }

    fn file_of(&self, project: &ProjectId, digest: &Digest) -> PathBuf {
        let digest = digest.as_str();
        self.root.join(project.as_str()).join(&digest[..2]).join(digest)
    }

    /// Opens a blob, or a part of it.
    pub(crate) async fn get(
        &self,
        project: &ProjectId,
        digest: &Digest,
        range: Option<GetRange>,
    ) -> Result<Blob, BlobError> {
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let result = self.find(project, digest, options).await?;
        Ok(Blob {
            size: result.meta.size,
            range: result.range.clone(),
            bytes: result.into_stream(),
        })
    }

    /// Opens a blob as a file.
    pub(crate) async fn file(&self, project: &ProjectId, digest: &Digest) -> Result<std::fs::File, BlobError> {
        let result = self.find(project, digest, GetOptions::default()).await?;
        match result.payload {
            GetResultPayload::File(file, _) => Ok(file),
            GetResultPayload::Stream(mut bytes) => {
                let file = tempfile::tempfile().map_err(BlobError::Spool)?;
                let mut spool = tokio::fs::File::from_std(file);
                while let Some(bytes) = bytes.next().await {
                    let bytes = bytes.map_err(BlobError::Store)?;
                    spool.write_all(&bytes).await.map_err(BlobError::Spool)?;
                }
                spool.rewind().await.map_err(BlobError::Spool)?;
                Ok(spool.into_std().await)
            }
        }
    }

    async fn find(&self, project: &ProjectId, digest: &Digest, options: GetOptions) -> Result<GetResult, BlobError> {
        let found = self.store.get_opts(&location(project, digest), options).await;
        found.map_err(|error| match error {
            object_store::Error::NotFound { .. } => BlobError::NotFound(digest.clone()),
            error => BlobError::Store(error),
        })
    }

    /// Reads a whole blob that is known to be small.
    pub(crate) async fn read(&self, project: &ProjectId, digest: &Digest) -> Result<Bytes, BlobError> {
        let result = self.find(project, digest, GetOptions::default()).await?;
        result.bytes().await.map_err(BlobError::Store)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, BlobError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).flatten().map_err(BlobError::Disk)
}

/// `None` when it does not exist.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A time in the future counts as young.
fn is_younger(file: &Metadata, age: Duration) -> io::Result<bool> {
    Ok(file.modified()?.elapsed().is_ok_and(|old| old < age) || file.modified()? > SystemTime::now())
}

fn folders(of: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn parsed<T: FromStr>(path: &Path) -> Option<T> {
    path.file_name()?.to_str()?.parse().ok()
}

/// A folder of two hex digits keeps directories small.
fn location(project: &ProjectId, digest: &Digest) -> object_store::path::Path {
    let digest = digest.as_str();
    object_store::path::Path::from_iter([project.as_str(), &digest[..2], digest])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(parts: &[&'static [u8]]) -> impl Stream<Item = Result<Bytes, axum::Error>> + Unpin + use<> {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part))).collect();
        futures_util::stream::iter(parts)
    }

    #[tokio::test]
    async fn stores_what_has_the_digest_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let project = ProjectId::default();
        let digest = Digest::of(b"hello world");
        assert_eq!(blobs.size(&project, &digest).await.unwrap(), None);
        let wrong = blobs.put(&project, &digest, body(&[b"hello"])).await;
        assert!(matches!(wrong, Err(BlobError::DigestMismatch { .. })));
        assert_eq!(blobs.size(&project, &digest).await.unwrap(), None);
        assert!(
            blobs
                .put(&project, &digest, body(&[b"hello ", b"world"]))
                .await
                .unwrap()
        );
        assert!(!blobs.put(&project, &digest, body(&[b"hello world"])).await.unwrap());
        assert_eq!(&blobs.read(&project, &digest).await.unwrap()[..], b"hello world");
        let part = blobs
            .get(&project, &digest, Some(GetRange::Bounded(6..11)))
            .await
            .unwrap();
        assert_eq!((part.size, part.range.clone()), (11, 6..11));
        let other = "other".parse().unwrap();
        assert!(matches!(blobs.read(&other, &digest).await, Err(BlobError::NotFound(_))));
    }

    #[tokio::test]
    async fn a_blob_that_somebody_looked_for_stays() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let project = ProjectId::default();
        let (digest, _) = blobs.put_bytes(&project, Bytes::from_static(b"said")).await.unwrap();
        let listed = blobs.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].bytes), (1, 4));
        let age = |hours: u64| {
            let file = File::options()
                .append(true)
                .open(blobs.file_of(&project, &digest))
                .unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600))
                .unwrap();
        };
        assert!(
            !blobs.remove_unnamed(&listed[0], UNNAMED, None).await.unwrap(),
            "it is young"
        );
        age(30);
        assert_eq!(blobs.size(&project, &digest).await.unwrap(), Some(4));
        assert!(
            !blobs.remove_unnamed(&listed[0], UNNAMED, None).await.unwrap(),
            "it is young again"
        );
        age(30);
        assert!(blobs.remove_unnamed(&listed[0], UNNAMED, None).await.unwrap());
        assert_eq!(blobs.size(&project, &digest).await.unwrap(), None);
        assert!(
            blobs.remove_unnamed(&listed[0], UNNAMED, None).await.unwrap(),
            "it is gone already"
        );
    }

    #[tokio::test]
    async fn a_broken_upload_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let project = ProjectId::default();
        let digest = Digest::of(b"hello");
        let broken = futures_util::stream::iter([
            Ok(Bytes::from_static(b"hello")),
            Err(axum::Error::new(std::io::Error::other("gone"))),
        ]);
        assert!(matches!(
            blobs.put(&project, &digest, broken).await,
            Err(BlobError::Body(_))
        ));
        assert_eq!(blobs.size(&project, &digest).await.unwrap(), None);
    }
}
