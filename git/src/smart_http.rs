//! The server side of git's smart HTTP protocol, by git itself. It owns which references are shown
//! and which pushes are allowed, how bytes get to git and back without either side waiting for the
//! other, and that git ends when the client disconnects. The HTTP server owns routes, headers and
//! permissions.
//!
//! A push is checked before git sees it: hooks are off, and git has no setting for "only
//! `refs/kage/bases/<the pushed commit>`". Hidden references keep results of other tasks out of
//! sight; like git itself under protocol v2, they do not make an object whose id is known
//! unreadable.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use futures_util::{Stream, StreamExt as _, stream};
use kage_core::id::Oid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinSet;

use crate::command::{self, GitCommand, ProcessGroup};
use crate::error::GitError;
use crate::mirror::Mirror;
use crate::mirror::pack_scan::{PackLimits, PackProblem, PackScan, STREAMED};

/// References are hidden unless listed here.
const SHOWN: &[&str] = &["refs/kage/bases/", "refs/kage/results/"];
/// The only namespace that a push may write to.
const BASES: &str = "refs/kage/bases/";
/// Limit of a push before its pack; a reference takes about 150 bytes.
const MAX_COMMAND_BYTES: usize = 64 << 10;
/// Limit of the reply to a push: a line per reference, and progress.
const MAX_PUSH_REPLY: usize = 1 << 20;
const STDERR_LIMIT: usize = 16 << 10;
/// Small, because compressed bytes may grow a thousandfold.
const CHUNK: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    UploadPack,
    ReceivePack,
}

impl Service {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

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

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A push of something other than a base.
    #[error("push refused: {reason}")]
    Refused { reason: String },
    /// The client does not speak the protocol.
    #[error("malformed request: {reason}")]
    Malformed { reason: &'static str },
    #[error("could not read the request")]
    Body(#[source] io::Error),
    #[error("could not serve the repository")]
    Git(#[from] GitError),
}

impl ServeError {
    fn pack(problem: &PackProblem) -> Self {
        Self::Refused {
            reason: format!("the pack is not taken: {problem}"),
        }
    }
}

/// The bytes of git's reply. Dropping it kills git.
pub struct Reply {
    bytes: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

impl Stream for Reply {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.bytes.poll_next_unpin(cx)
    }
}

/// The reply to `GET info/refs?service=...`. `protocol` is the `Git-Protocol` header.
pub async fn advertise(mirror: &Mirror, service: Service, protocol: Option<&str>) -> Result<Bytes, ServeError> {
    let references = server(mirror, service, protocol)
        .args(["--stateless-rpc", "--http-backend-info-refs"])
        .arg(mirror.path())
        .run()
        .await?;
    let mut reply = BytesMut::new();
    // Version 2 has no service line; git answers a push in an older version.
    if !references.starts_with(b"000eversion 2\n") {
        let line = format!("# service={}\n", service.name());
        reply.extend_from_slice(format!("{:04x}{line}0000", line.len() + 4).as_bytes());
    }
    reply.extend_from_slice(&references);
    Ok(reply.freeze())
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
    let mut body = Body::new(body, gzip);
    match service {
        Service::UploadPack => {
            let (running, stdout) = Running::start(mirror, service, protocol, BytesMut::new(), body)?;
            Ok(Reply {
                bytes: Box::pin(stream::try_unfold((running, stdout), next_chunk)),
            })
        }
        Service::ReceivePack => {
            let (commands, references) = read_commands(&mut body).await?;
            let mut scan = PackScan::new(PackLimits::of_push());
            let begun = scan.push(commands.get(pack_start(&commands)..).unwrap_or_default());
            begun.map_err(|problem| ServeError::pack(&problem))?;
            body.scan = Some(scan);
            let (running, stdout) = Running::start(mirror, service, protocol, commands, body)?;
            let read = command::read_bounded(Some(stdout), MAX_PUSH_REPLY).await;
            running.finish().await?;
            let reply = read.map_err(ServeError::Body)?;
            // git flushed files; the folders that name them are flushed here, before the reply.
            mirror.flush(references).await?;
            let bytes = Bytes::from(reply.bytes);
            Ok(Reply {
                bytes: Box::pin(stream::once(async { Ok(bytes) })),
            })
        }
    }
}

/// A git process that serves a request.
struct Running {
    service: Service,
    group: ProcessGroup,
    /// Copies the request to git; ends early when git needs no more. Aborted on drop.
    pump: JoinSet<io::Result<()>>,
    /// Collects git's standard error. Aborted on drop.
    complaints: JoinSet<io::Result<command::Bounded>>,
    /// Why the pump gave up on a pack.
    problem: Arc<Mutex<Option<PackProblem>>>,
}

impl Running {
    fn start<R: AsyncRead + Send + Unpin + 'static>(
        mirror: &Mirror,
        service: Service,
        protocol: Option<&str>,
        first: BytesMut,
        body: Body<R>,
    ) -> Result<(Self, ChildStdout), GitError> {
        let mut command = server(mirror, service, protocol).arg("--stateless-rpc");
        if service == Service::UploadPack {
            command = command.arg("--strict");
        }
        let mut group = command.arg(mirror.path()).spawn_piped()?;
        let streams = (group.child.stdin.take(), group.child.stdout.take());
        let (Some(stdin), Some(stdout)) = streams else {
            return Err(GitError::Spawn {
                operation: service.name(),
                source: io::Error::other("its pipes are missing"),
            });
        };
        let (mut pump, mut complaints) = (JoinSet::new(), JoinSet::new());
        let problem = Arc::clone(&body.problem);
        pump.spawn(feed(stdin, first, body));
        complaints.spawn(command::read_bounded(group.child.stderr.take(), STDERR_LIMIT));
        let running = Self {
            service,
            group,
            pump,
            complaints,
            problem,
        };
        Ok((running, stdout))
    }

    /// Waits for git's end; its standard output was read to the end before.
    async fn finish(mut self) -> Result<(), ServeError> {
        let failed = |source| GitError::Spawn {
            operation: self.service.name(),
            source,
        };
        let status = self.group.child.wait().await.map_err(failed)?;
        if let Some(problem) = self.problem.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(ServeError::pack(&problem));
        }
        // git has ended, so the rest of the request has no reader.
        if let Some(Ok(Err(error))) = self.pump.try_join_next() {
            return Err(ServeError::Body(error));
        }
        if status.success() {
            return Ok(());
        }
        let complaints = match self.complaints.join_next().await {
            Some(Ok(Ok(kept))) => kept.bytes,
            Some(Ok(Err(_)) | Err(_)) | None => Vec::new(),
        };
        Err(command::failure(self.service.name(), status, &complaints).into())
    }
}

async fn next_chunk(state: (Running, ChildStdout)) -> io::Result<Option<(Bytes, (Running, ChildStdout))>> {
    let (running, mut stdout) = state;
    let mut chunk = BytesMut::with_capacity(64 << 10);
    if stdout.read_buf(&mut chunk).await? > 0 {
        return Ok(Some((chunk.freeze(), (running, stdout))));
    }
    running.finish().await.map_err(io::Error::other)?;
    Ok(None)
}

async fn feed<R: AsyncRead + Unpin>(mut git: ChildStdin, first: BytesMut, mut body: Body<R>) -> io::Result<()> {
    let mut chunk = Some(first.freeze());
    while let Some(bytes) = chunk {
        match git.write_all(&bytes).await {
            // git read as much as it needed; its exit code says whether that was enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        chunk = body.next().await?;
    }
    Ok(())
}

fn server(mirror: &Mirror, service: Service, protocol: Option<&str>) -> GitCommand {
    let operation = match service {
        Service::UploadPack => "upload-pack",
        Service::ReceivePack => "receive-pack",
    };
    let mut command = GitCommand::new(operation)
        .current_dir(mirror.path())
        .config("transfer.hideRefs", "refs/")
        .config("uploadpack.allowFilter", "true")
        .config("receive.denyDeletes", "true")
        .config("receive.denyNonFastForwards", "true")
        .config("receive.shallowUpdate", "false")
        .config("receive.autogc", "false");
    match service {
        Service::UploadPack => command = command.config("core.bigFileThreshold", &STREAMED.to_string()),
        Service::ReceivePack => {
            for (name, value) in PackLimits::of_push().settings() {
                command = command.config(name, &value);
            }
        }
    }
    for prefix in SHOWN {
        command = command.config("transfer.hideRefs", &format!("!{prefix}"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b':');
    match protocol {
        Some(text) if text.len() <= 64 && text.bytes().all(plain) => command.env("GIT_PROTOCOL", text),
        // git ignores unknown versions too.
        Some(_) | None => command,
    }
}

/// A request's body, decompressed if necessary.
struct Body<R> {
    source: R,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    /// Looks at the pack of a push before git has it.
    scan: Option<PackScan>,
    /// What it found.
    problem: Arc<Mutex<Option<PackProblem>>>,
}

impl<R: AsyncRead + Unpin> Body<R> {
    fn new(source: R, gzip: bool) -> Self {
        Self {
            source,
            decoder: gzip.then(|| MultiGzDecoder::new(Vec::new())),
            scan: None,
            problem: Arc::default(),
        }
    }

    /// At least one byte; `None` at the end. A pack that is not taken ends in an error.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let bytes = self.read().await?;
        if let (Some(scan), Some(bytes)) = (&mut self.scan, &bytes)
            && let Err(problem) = scan.push(bytes)
        {
            let error = io::Error::new(io::ErrorKind::InvalidData, problem.to_string());
            *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
            return Err(error);
        }
        Ok(bytes)
    }

    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            let read = self.source.read_buf(&mut chunk).await?;
            let Some(decoder) = &mut self.decoder else {
                return Ok((read > 0).then(|| chunk.freeze()));
            };
            if read == 0 {
                decoder.try_finish()?;
            } else {
                decoder.write_all(&chunk)?;
            }
            let plain = std::mem::take(decoder.get_mut());
            if !plain.is_empty() {
                return Ok(Some(plain.into()));
            }
            if read == 0 {
                return Ok(None);
            }
        }
    }
}

/// Reads a push up to its pack and decides whether it is allowed. Returns all bytes read so far and
/// the references that the push writes.
async fn read_commands<R: AsyncRead + Unpin>(body: &mut Body<R>) -> Result<(BytesMut, Vec<String>), ServeError> {
    let mut bytes = BytesMut::new();
    loop {
        if let Some(references) = allowed_references(&bytes)? {
            return Ok((bytes, references));
        }
        if bytes.len() > MAX_COMMAND_BYTES {
            return Err(ServeError::Malformed {
                reason: "too many commands",
            });
        }
        match body.next().await.map_err(ServeError::Body)? {
            Some(chunk) => bytes.extend_from_slice(&chunk),
            None => {
                return Err(ServeError::Malformed {
                    reason: "it ends in the middle of its commands",
                });
            }
        }
    }
}

/// Where the pack of a push begins: after the commands, which are allowed.
fn pack_start(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(digits) = bytes.get(at..at + 4) {
        let length = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok());
        match length {
            Some(length @ 1..) => at += length,
            Some(0) | None => return at + 4,
        }
    }
    bytes.len()
}

/// The references that a push writes, if all of them are allowed; `None`: more bytes are needed.
pub(crate) fn allowed_references(bytes: &[u8]) -> Result<Option<Vec<String>>, ServeError> {
    let malformed = |reason| ServeError::Malformed { reason };
    let mut references = Vec::new();
    let mut rest = bytes;
    while let Some((digits, after)) = rest.split_at_checked(4) {
        let length = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .ok_or(malformed("a line without a length"))?;
        if length == 0 {
            return Ok(Some(references));
        }
        let length = length.checked_sub(4).ok_or(malformed("a line of impossible length"))?;
        let Some((line, after)) = after.split_at_checked(length) else {
            return Ok(None);
        };
        // Capabilities follow the first command after a NUL.
        let command = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let command = std::str::from_utf8(command).map_err(|_| malformed("a command that is not text"))?;
        references.push(allowed_reference(command.trim_end_matches('\n'))?);
        rest = after;
    }
    Ok(None)
}

fn allowed_reference(command: &str) -> Result<String, ServeError> {
    let refused = |reason: String| ServeError::Refused { reason };
    let mut words = command.splitn(3, ' ');
    let (Some(old), Some(new), Some(name)) = (words.next(), words.next(), words.next()) else {
        return Err(refused("only plain updates of references are taken".to_owned()));
    };
    if name.strip_prefix(BASES) != Some(new) {
        return Err(refused(format!("{name:?} is not {BASES}<the pushed commit>")));
    }
    let new: Oid = new.parse().map_err(|error| refused(format!("{name:?}: {error}")))?;
    if new.as_str().bytes().all(|digit| digit == b'0') {
        return Err(refused(format!("{name:?} cannot be deleted")));
    }
    if !old.bytes().all(|digit| digit == b'0') && old != new.as_str() {
        return Err(refused(format!("{name:?} never changes")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests;
