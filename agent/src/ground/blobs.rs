//! The agent's client of the blob plane: gets and puts by digest over HTTP. It waits for an
//! unreachable coordinator without a limit, because that is only a long disconnect; the caller
//! drops the future when it has to stop, at the latest when its lease is over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use kage_core::cause::chain;
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::{AgentId, Digest, ProjectId};
use kage_proto::blob::{AGENT_HEADER, BROUGHT_BY_HEADER, LOST_HEADER, blob_path};
use reqwest::StatusCode;
use sha2::Digest as _;
use tokio::io::{AsyncRead, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use crate::backoff::Backoff;
use crate::identity::trust::{Keyring, SILENCE};
use crate::ports::Random;

/// The most requests for one blob that a reachable coordinator may refuse or cut short.
pub(crate) const TRIES: u32 = 60;

/// Silence allowed after the last byte was sent: the coordinator writes it to the disk then.
const ANSWER: Duration = Duration::from_secs(5 * 60);
/// Bytes that are sent at once.
const PIECE: usize = 64 << 10;

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("the request failed")]
    Request(#[from] reqwest::Error),
    #[error("no byte was sent or received for too long")]
    Stuck,
}

/// Why a blob could not be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// The coordinator does not have it.
    #[error("the coordinator has no blob {digest}")]
    Missing { digest: Digest },
    /// The received content has another digest.
    #[error("the coordinator sent other content as blob {digest}")]
    Mismatch { digest: Digest },
    /// The coordinator refuses, and would refuse again.
    #[error("the coordinator answered {status} for blob {digest}")]
    Refused { digest: Digest, status: StatusCode },
    /// The coordinator is reachable, but no request was completed.
    #[error("the coordinator did not answer, {TRIES} times")]
    Unanswered(#[source] Lost),
    /// A local file could not be used.
    #[error("cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Lost {
    /// True when the coordinator was unreachable: the request was not even sent.
    fn is_away(&self) -> bool {
        match self {
            Self::Request(error) => error.is_connect(),
            Self::Stuck => false,
        }
    }
}

impl BlobError {
    /// The failure of an attempt that needs the blob.
    pub(crate) fn failure(&self, what: &str) -> Failure {
        let kind = match self {
            Self::Missing { .. } | Self::Mismatch { .. } => FailureKind::ContextUnavailable,
            Self::Refused { .. } | Self::Io { .. } => FailureKind::Unknown,
            Self::Unanswered(_) => FailureKind::Network,
        };
        Failure::new(kind, format!("{what}: {}", chain(self)))
    }
}

/// A client of the blob plane. Cloning shares its connections.
#[derive(Clone)]
pub(crate) struct Blobs {
    keyring: Keyring,
    coordinator_url: String,
    agent: AgentId,
    random: Random,
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").finish_non_exhaustive()
    }
}

impl Blobs {
    pub(crate) fn new(coordinator_url: &str, keyring: Keyring, agent: AgentId, random: Random) -> Self {
        Self {
            keyring,
            coordinator_url: coordinator_url.trim_end_matches('/').to_owned(),
            agent,
            random,
        }
    }

    fn request(
        &self,
        client: reqwest::Client,
        method: reqwest::Method,
        project: &ProjectId,
        digest: &Digest,
    ) -> reqwest::RequestBuilder {
        let url = format!("{}{}", self.coordinator_url, blob_path(project, digest));
        client.request(method, url).header(AGENT_HEADER, self.agent.to_string())
    }

    fn get_request(&self, project: &ProjectId, digest: &Digest) -> reqwest::RequestBuilder {
        self.request(self.keyring.http(), reqwest::Method::GET, project, digest)
    }

    /// Gets a whole blob and checks it.
    pub(crate) async fn get(&self, project: &ProjectId, digest: &Digest) -> Result<Bytes, BlobError> {
        Ok(self.whole(digest, || self.get_request(project, digest)).await?.0)
    }

    /// Gets a base context that the coordinator lost, as soon as somebody brings it; and who that was, for
    /// people. A coordinator that cannot ask for it answers as if for [`get`](Self::get).
    pub(crate) async fn get_lost(
        &self,
        project: &ProjectId,
        digest: &Digest,
    ) -> Result<(Bytes, Option<String>), BlobError> {
        let request = || self.get_request(project, digest).header(LOST_HEADER, "1");
        self.whole(digest, request).await
    }

    async fn whole(
        &self,
        digest: &Digest,
        request: impl Fn() -> reqwest::RequestBuilder + Send,
    ) -> Result<(Bytes, Option<String>), BlobError> {
        let mut tries = Tries::default();
        loop {
            let received = async {
                let response = request().send().await?;
                let status = response.status();
                let by = response.headers().get(BROUGHT_BY_HEADER);
                let by = by.and_then(|by| by.to_str().ok()).map(str::to_owned);
                Ok::<_, Lost>((status, response.bytes().await?, by))
            };
            match received.await {
                Ok((StatusCode::OK, bytes, by)) => {
                    return if Digest::of(&bytes) == *digest {
                        Ok((bytes, by))
                    } else {
                        Err(BlobError::Mismatch { digest: digest.clone() })
                    };
                }
                Ok((status, ..)) => tries.refused(status, digest, &self.random).await?,
                Err(error) => tries.failed(error, &self.random).await?,
            }
        }
    }

    /// Gets a blob of any size into a file of `folder` and checks it.
    pub(crate) async fn get_file(
        &self,
        project: &ProjectId,
        digest: &Digest,
        folder: &Path,
    ) -> Result<std::fs::File, BlobError> {
        let io = |source| BlobError::Io {
            path: folder.to_owned(),
            source,
        };
        let mut tries = Tries::default();
        loop {
            let answered = self.get_request(project, digest).send().await;
            let mut response = match answered {
                Ok(response) if response.status() == StatusCode::OK => response,
                Ok(response) => {
                    tries.refused(response.status(), digest, &self.random).await?;
                    continue;
                }
                Err(error) => {
                    tries.failed(error, &self.random).await?;
                    continue;
                }
            };
            let mut file = tokio::fs::File::from_std(tempfile::tempfile_in(folder).map_err(io)?);
            let mut hasher = sha2::Sha256::new();
            let ended = loop {
                match response.chunk().await {
                    Ok(Some(chunk)) => {
                        hasher.update(&chunk);
                        file.write_all(&chunk).await.map_err(io)?;
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match ended {
                Ok(()) if Digest::from_raw(hasher.finalize().into()) == *digest => {
                    file.rewind().await.map_err(io)?;
                    return Ok(file.into_std().await);
                }
                Ok(()) => return Err(BlobError::Mismatch { digest: digest.clone() }),
                Err(error) => tries.failed(error, &self.random).await?,
            }
        }
    }

    /// Puts bytes and returns their digest. They are durable when this returns.
    pub(crate) async fn put(&self, project: &ProjectId, bytes: Bytes) -> Result<Digest, BlobError> {
        let (digest, length) = (Digest::of(&bytes), bytes.len() as u64);
        let mut tries = Tries::default();
        loop {
            let content = std::io::Cursor::new(bytes.clone());
            match self.send(project, &digest, content, length).await {
                Ok(status) if status.is_success() => return Ok(digest),
                Ok(status) => tries.refused(status, &digest, &self.random).await?,
                Err(error) => tries.failed(error, &self.random).await?,
            }
        }
    }

    /// Puts a file's content and returns its digest. It is durable when this returns.
    pub(crate) async fn put_file(&self, project: &ProjectId, path: &Path) -> Result<Digest, BlobError> {
        let io = |source| BlobError::Io {
            path: path.to_owned(),
            source,
        };
        let owned = path.to_owned();
        let (digest, length) = tokio::task::spawn_blocking(move || digest_of(&owned))
            .await
            .map_err(|error| io(std::io::Error::other(error)))?
            .map_err(io)?;
        let mut tries = Tries::default();
        loop {
            let file = tokio::fs::File::open(path).await.map_err(io)?;
            match self.send(project, &digest, file, length).await {
                Ok(status) if status.is_success() => return Ok(digest),
                Ok(status) => tries.refused(status, &digest, &self.random).await?,
                Err(error) => tries.failed(error, &self.random).await?,
            }
        }
    }

    /// Sends content once. It may take as long as the network needs while any of it moves.
    async fn send(
        &self,
        project: &ProjectId,
        digest: &Digest,
        content: impl AsyncRead + Send + 'static,
        length: u64,
    ) -> Result<StatusCode, Lost> {
        let (moved, moving) = watch::channel(Instant::now());
        let pieces = ReaderStream::with_capacity(content, PIECE).inspect(move |_| {
            moved.send_replace(Instant::now());
        });
        let sent = self
            .request(self.keyring.sending(), reqwest::Method::PUT, project, digest)
            .header(http::header::CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap_stream(pieces))
            .send();
        tokio::select! {
            answer = sent => Ok(answer?.status()),
            () = stuck(moving) => Err(Lost::Stuck),
        }
    }
}

/// Returns when nothing of a body moved for [`SILENCE`], or when all of it had moved and no answer
/// came for [`ANSWER`].
async fn stuck(mut moving: watch::Receiver<Instant>) {
    loop {
        let last = *moving.borrow_and_update();
        match tokio::time::timeout_at(last + SILENCE, moving.changed()).await {
            Ok(Ok(())) => {}
            // The body is complete.
            Ok(Err(_)) => return tokio::time::sleep(ANSWER).await,
            Err(_) => return,
        }
    }
}

/// Counts the requests for one blob to a reachable coordinator.
#[derive(Default)]
struct Tries {
    made: u32,
    backoff: Backoff,
}

impl Tries {
    /// Counts a request that had no answer. False when it was the last.
    fn may_go_on(&mut self, lost: &Lost) -> bool {
        if !lost.is_away() {
            self.made += 1;
        }
        self.made < TRIES
    }

    async fn refused(&mut self, status: StatusCode, digest: &Digest, random: &Random) -> Result<(), BlobError> {
        self.made += 1;
        let passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        match status {
            StatusCode::NOT_FOUND => Err(BlobError::Missing { digest: digest.clone() }),
            _ if passing && self.made < TRIES => {
                tokio::time::sleep(self.backoff.next(random)).await;
                Ok(())
            }
            status => Err(BlobError::Refused {
                digest: digest.clone(),
                status,
            }),
        }
    }

    async fn failed(&mut self, error: impl Into<Lost>, random: &Random) -> Result<(), BlobError> {
        let error = error.into();
        if !self.may_go_on(&error) {
            return Err(BlobError::Unanswered(error));
        }
        tracing::debug!(%error, "blob request failed");
        tokio::time::sleep(self.backoff.next(random)).await;
        Ok(())
    }
}

fn digest_of(path: &Path) -> std::io::Result<(Digest, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let length = std::io::copy(&mut file, &mut HashWriter(&mut hasher))?;
    Ok((Digest::from_raw(hasher.finalize().into()), length))
}

struct HashWriter<'h>(&'h mut sha2::Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use kage_proto::client::Dial;

    use super::*;

    #[tokio::test]
    async fn a_coordinator_that_is_away_is_waited_for_and_one_that_only_fails_is_not() {
        let keyring = Keyring::new(kage_proto::client::Credentials::default(), Dial::default()).unwrap();
        // Nothing listens on a port that was given back.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let away = Lost::Request(keyring.http().get(&url).send().await.unwrap_err());
        let mut tries = Tries::default();
        for _ in 0..2 * TRIES {
            assert!(tries.may_go_on(&away));
        }
        for _ in 1..TRIES {
            assert!(tries.may_go_on(&Lost::Stuck));
        }
        assert!(!tries.may_go_on(&Lost::Stuck));
    }

    #[tokio::test]
    async fn an_upload_is_stuck_when_nothing_of_it_moves() {
        let long_ago = Instant::now() - SILENCE;
        let (moved, moving) = watch::channel(long_ago);
        stuck(moving.clone()).await;
        moved.send_replace(Instant::now());
        assert!(stuck(moving.clone()).now_or_never().is_none());
        // All of it was received long ago, and is being written to the disk.
        moved.send_replace(long_ago);
        drop(moved);
        assert!(stuck(moving).now_or_never().is_none());
    }
}
