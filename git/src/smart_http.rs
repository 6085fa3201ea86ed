//! The server side of git's smart HTTP protocol, by git itself.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::io::AsyncRead;

use crate::error::GitError;
use crate::mirror::Mirror;

/// The two halves of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Fetching.
    UploadPack,
    /// Pushing.
    ReceivePack,
}

impl Service {
    /// `git-upload-pack` or `git-receive-pack`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    /// The service of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::UploadPack, Self::ReceivePack]
            .into_iter()
            .find(|service| service.name() == name)
    }

    /// The content type of [`advertise`]'s reply.
    #[must_use]
    pub const fn advertisement_type(self) -> &'static str {
        match self {
            Self::UploadPack => "application/x-git-upload-pack-advertisement",
            Self::ReceivePack => "application/x-git-receive-pack-advertisement",
        }
    }

    /// The content type of [`serve`]'s request body.
    #[must_use]
    pub const fn request_type(self) -> &'static str {
        match self {
            Self::UploadPack => "application/x-git-upload-pack-request",
            Self::ReceivePack => "application/x-git-receive-pack-request",
        }
    }

    /// The content type of [`serve`]'s reply.
    #[must_use]
    pub const fn result_type(self) -> &'static str {
        match self {
            Self::UploadPack => "application/x-git-upload-pack-result",
            Self::ReceivePack => "application/x-git-receive-pack-result",
        }
    }
}

/// Says why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A push of something other than a base.
    #[error("push refused: {reason}")]
    Refused {
        /// Why, in words.
        reason: String,
    },
    /// The client does not speak the protocol.
    #[error("malformed request: {reason}")]
    Malformed {
        /// Why, in words.
        reason: &'static str,
    },
    /// The request could not be read.
    #[error("could not read the request")]
    Body(#[source] io::Error),
    /// git failed.
    #[error("could not serve the repository")]
    Git(#[from] GitError),
}

/// The reply's bytes, as git makes them. Dropping it kills git.
#[derive(Debug)]
pub struct Reply {}

impl Stream for Reply {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

/// The reply to `GET info/refs?service=...`. `protocol` is the `Git-Protocol` header.
///
/// # Errors
/// When git fails.
pub async fn advertise(mirror: &Mirror, service: Service, protocol: Option<&str>) -> Result<Bytes, ServeError> {
    let _ = (mirror, service, protocol);
    unimplemented!("next push")
}

/// The reply to `POST git-upload-pack` or `git-receive-pack`. `gzip` = the body comes with
/// `Content-Encoding: gzip`. A push only takes `refs/kage/bases/<the pushed commit>` and is
/// durable when the reply begins.
///
/// # Errors
/// When the request is refused or malformed, or git fails before it replies.
pub async fn serve(
    mirror: &Mirror,
    service: Service,
    protocol: Option<&str>,
    gzip: bool,
    body: impl AsyncRead + Send + Unpin + 'static,
) -> Result<Reply, ServeError> {
    let _ = (mirror, service, protocol, gzip, body);
    unimplemented!("next push")
}
