//! Moves a program's output to its reader, and watches its time limit, if it has one.
//!
//! At most one chunk waits for the reader. Meanwhile no pipe is read, so the program blocks and
//! memory does not fill up. Stop, freeze and the clock still work.

use std::future::pending;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::child::Child;
use super::{Cause, Chunk, Control, Ended, Limits, PATIENCE, Pipe, RunError, Status};
use crate::process::allowance::Allowance;

/// The most bytes in a chunk.
const CHUNK: usize = 64 * 1024;
/// How long, after the end, a pipe may stay open and silent: only something that escaped
/// holds it then.
const QUIET: Duration = Duration::from_secs(1);

struct Reader<R> {
    pipe: Pipe,
    from: Option<R>,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    fn new(pipe: Pipe, from: Option<R>) -> Self {
        Self {
            pipe,
            from,
            buffer: BytesMut::new(),
        }
    }

    /// The next bytes; empty at the end, after which it must not be called. Cancel-safe.
    async fn next(&mut self) -> Bytes {
        let Some(from) = &mut self.from else {
            return pending().await;
        };
        if self.buffer.capacity() < 4096 {
            self.buffer.reserve(CHUNK);
        }
        let room = self.buffer.capacity().min(CHUNK);
        match from.take(room as u64).read_buf(&mut self.buffer).await {
            Ok(0) => self.from = None,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot read output");
                self.from = None;
            }
        }
        self.buffer.split().freeze()
    }

    fn chunk(&self, bytes: Bytes) -> Option<Chunk> {
        (!bytes.is_empty()).then_some(Chunk { pipe: self.pipe, bytes })
    }
}

enum Input {
    Stop,
    Frozen(bool),
    NoFreezer,
    TimedOut,
    Output(Option<Chunk>),
    Taken,
    NobodyTakes,
    Ended(Result<(Status, u32), RunError>),
    Overdue,
}

/// The status of a program whose own end is unknown because it was killed.
const KILLED: Status = Status::Signal(9);

/// The end of a program for its caller. A program that was being stopped ended as it was told,
/// whatever happened to its warden meanwhile.
fn closing(cause: Option<Cause>, end: Result<(Status, u32), RunError>) -> Result<Ended, RunError> {
    let (status, survivors) = match (end, cause) {
        (Ok(end), _) => end,
        (Err(RunError::WardenLost { survivors, how, .. }), Some(Cause::Stopped | Cause::TimedOut | Cause::Unread)) => {
            tracing::warn!(%how, "the warden was lost while it ended its program");
            (KILLED, survivors)
        }
        (Err(error), _) => return Err(error),
    };
    Ok(Ended {
        cause: cause.unwrap_or(Cause::Itself),
        status,
        survivors,
    })
}

fn freeze(allowance: &mut Option<Allowance>, frozen: bool) {
    if let Some(allowance) = allowance {
        allowance.freeze(frozen);
    }
}

/// Waits until the time is used up; forever when the caller watches it.
async fn used_up(allowance: Option<&Allowance>) {
    match allowance {
        Some(allowance) => allowance.used_up().await,
        None => pending().await,
    }
}

/// Runs the child to its end.
pub(super) async fn drive(
    mut child: Child,
    limits: Limits,
    mut control: Control,
    output: mpsc::Sender<Chunk>,
) -> Result<Ended, RunError> {
    let (stdout, stderr) = child.take_pipes();
    let mut stdout = Reader::new(Pipe::Stdout, stdout);
    let mut stderr = Reader::new(Pipe::Stderr, stderr);

    let mut allowance = limits.timeout.map(Allowance::new);
    let mut active = Instant::now();
    let mut waiting: Option<Chunk> = None;
    let mut freezer = true;
    let mut taken = true;
    let mut cause: Option<Cause> = None;
    // Set when the program is told to end, and again when it has ended.
    let mut overdue: Option<Instant> = None;
    let mut end: Option<Result<(Status, u32), RunError>> = None;

    if *control.frozen.borrow_and_update() {
        freeze(&mut allowance, true);
        child.freeze(true).await;
    }
    loop {
        if waiting.is_none()
            && stdout.from.is_none()
            && stderr.from.is_none()
            && let Some(end) = end.take()
        {
            return closing(cause, end);
        }
        let running = end.is_none() && cause.is_none();
        let quiet_at = active + QUIET;
        let input = tokio::select! {
            biased;
            () = control.stop.cancelled(), if cause.is_none() => Input::Stop,
            changed = control.frozen.changed(), if freezer && running => match changed {
                Ok(()) => Input::Frozen(*control.frozen.borrow_and_update()),
                Err(_) => Input::NoFreezer,
            },
            () = used_up(allowance.as_ref()), if running => Input::TimedOut,
            ended = child.ended(), if end.is_none() => Input::Ended(ended),
            () = sleep_until(overdue.unwrap_or(active)), if overdue.is_some() => Input::Overdue,
            () = sleep_until(quiet_at), if end.is_some() && waiting.is_none() => Input::Overdue,
            permit = output.reserve(), if taken && waiting.is_some() => match (permit, waiting.take()) {
                (Ok(permit), Some(chunk)) => {
                    permit.send(chunk);
                    Input::Taken
                }
                (Ok(_), None) => Input::Taken,
                (Err(_), _) => Input::NobodyTakes,
            },
            bytes = stdout.next(), if waiting.is_none() && stdout.from.is_some() => Input::Output(stdout.chunk(bytes)),
            bytes = stderr.next(), if waiting.is_none() && stderr.from.is_some() => Input::Output(stderr.chunk(bytes)),
        };
        let reason = match input {
            Input::Output(chunk) => {
                active = Instant::now();
                waiting = chunk.filter(|_| taken);
                None
            }
            Input::Taken => {
                active = Instant::now();
                None
            }
            Input::Frozen(now) => {
                freeze(&mut allowance, now);
                active = Instant::now();
                child.freeze(now).await;
                None
            }
            Input::NoFreezer => {
                // The sender is gone, so nothing can unfreeze it: its time continues, or it would
                // never end.
                freezer = false;
                freeze(&mut allowance, false);
                None
            }
            Input::Ended(ended) => {
                end = Some(ended);
                active = Instant::now();
                // A caller that stopped the program may not be taking its last words.
                overdue = cause.map(|_| Instant::now() + limits.grace);
                None
            }
            Input::Overdue => {
                let end = match end.take() {
                    Some(end) => end,
                    None => Ok((KILLED, child.abandon().await)),
                };
                return closing(cause, end);
            }
            Input::Stop => Some(Cause::Stopped),
            Input::TimedOut => Some(Cause::TimedOut),
            Input::NobodyTakes => {
                taken = false;
                cause.is_none().then_some(Cause::Unread)
            }
        };
        if let Some(reason) = reason {
            if end.is_none() {
                cause = Some(reason);
                child.stop().await;
                overdue = Some(Instant::now() + limits.grace + PATIENCE);
            } else {
                // It had ended by itself; only its output is still arriving.
                cause = Some(Cause::Itself);
                overdue = Some(Instant::now() + limits.grace);
            }
        }
    }
}
