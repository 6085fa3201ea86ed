//! A running git process, its end, and reading its output so that it never waits for the reader.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;

use crate::error::GitError;

/// How many times a start is repeated while the system refuses another process, and the pause
/// between.
pub(super) const NO_ROOM: (u32, Duration) = (30, Duration::from_millis(100));

/// True when the system could not make another process just now.
pub(super) fn no_room(error: &io::Error) -> bool {
    let error = rustix::io::Errno::from_io_error(error);
    matches!(error, Some(rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM))
}

/// A running git and its children; dropping it before its end kills them all.
#[derive(Debug)]
pub(crate) struct ProcessGroup {
    pub(crate) child: Child,
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // No id: it ended and was reaped, and the number may belong to another process by now.
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(rustix::process::Pid::from_raw)
            && let Err(error) = rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
        {
            tracing::debug!(%error, "git was gone already");
        }
    }
}

pub(super) struct Done {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Done {
    pub(super) fn failure(&self, operation: &'static str) -> GitError {
        failure(operation, self.status, &self.stderr)
    }
}

/// The error for a git that did not end with success.
pub(crate) fn failure(operation: &'static str, status: ExitStatus, stderr: &[u8]) -> GitError {
    GitError::Failed {
        operation,
        exit: status.to_string(),
        stderr: String::from_utf8_lossy(stderr).trim().to_owned(),
    }
}

/// The beginning of a stream, up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Bounded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) cut: bool,
}

/// Reads a stream to its end, so that the writer never waits, and keeps at most `limit` bytes.
pub(crate) async fn read_bounded(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Bounded> {
    let mut kept = Bounded::default();
    let Some(mut stream) = stream else {
        return Ok(kept);
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(kept);
        }
        let room = limit.saturating_sub(kept.bytes.len()).min(read);
        kept.bytes.extend_from_slice(&buffer[..room]);
        kept.cut |= room < read;
    }
}
