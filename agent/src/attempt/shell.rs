//! Commands of a task in a shell: setup and verify. Their output is recorded as the attempt's, and
//! both ends of it are kept for whoever has to say what was wrong.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::contain::{refusal, refused_paths};
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::rework::MAX_EXCERPT;
use kage_core::test_counts::{Piped, TestCounter, TestTally};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::door::NetworkUse;
use super::{Attempt, AttemptEnded};
use crate::adapters::port::Reporter;
use crate::delivery::mask::{Masker, StreamMasker};
use crate::process::excerpt::HeadTail;
use crate::process::{Cause, Chunk, Command, Control, Environment, Limits, Pipe, Status, Stdin};

/// Chunks waiting for the recorder. When full, the command waits.
const CHUNKS: usize = 8;
/// Reports waiting for the recorder.
const REPORTS: usize = 32;
/// How much of the end of the output is searched for a line to quote.
const TAIL: usize = 2048;
/// Bytes of either end of the output that become an instruction; a line between them says how much
/// was left out.
const EXCERPT_END: usize = MAX_EXCERPT / 2 - 64;

/// How a command ended.
pub(super) enum Ran {
    Ended(Status),
    /// It could not run to its end, for this reason.
    Not(String),
}

/// Runs commands in the worktree, one after the other, with one common output.
pub(super) struct Shell<'a> {
    attempt: &'a Attempt,
    pub(super) worktree: PathBuf,
    pub(super) environment: Environment,
    /// What of the network the next command has.
    pub(super) network: NetworkUse,
    pub(super) began: Instant,
    deadline: Instant,
    reporter: Option<Reporter>,
    recorder: JoinSet<Result<(), crate::delivery::outbox::OutboxClosed>>,
    /// The end of the output.
    tail: VecDeque<u8>,
    /// Both ends of the output.
    pub(super) wrote: OutputEnds,
    /// Counts the tests of the last command that ran.
    counter: TestCounter,
    /// No program of these commands is left.
    pub(super) alone: bool,
}

/// Both ends of a command's output, masked before anything is left out: half a secret would not be
/// recognised.
pub(super) struct OutputEnds {
    stdout: StreamMasker,
    stderr: StreamMasker,
    kept: HeadTail,
}

impl OutputEnds {
    fn new(masker: &Masker) -> Self {
        Self {
            stdout: masker.stream(),
            stderr: masker.stream(),
            kept: HeadTail::new(EXCERPT_END),
        }
    }

    fn push(&mut self, chunk: &Chunk) {
        let masker = match chunk.pipe {
            Pipe::Stdout => &mut self.stdout,
            Pipe::Stderr => &mut self.stderr,
        };
        self.kept.push(&masker.push(chunk.bytes.clone()));
    }

    fn finish(&mut self) {
        for masker in [&mut self.stdout, &mut self.stderr] {
            self.kept.push(&masker.finish());
        }
    }

    pub(super) fn text(&self) -> String {
        self.kept.text()
    }
}

impl<'a> Shell<'a> {
    pub(super) fn new(attempt: &'a Attempt, worktree: PathBuf, environment: Environment, timeout: Duration) -> Self {
        let (reporter, reports) = Reporter::channel(REPORTS);
        let mut recorder = JoinSet::new();
        let (active, _) = watch::channel(Instant::now());
        recorder.spawn(attempt.recording.clone().run(reports, active).in_current_span());
        Self {
            attempt,
            worktree,
            environment,
            network: NetworkUse::Work,
            began: Instant::now(),
            deadline: Instant::now() + timeout,
            reporter: Some(reporter),
            recorder,
            tail: VecDeque::new(),
            wrote: OutputEnds::new(&attempt.recording.masker),
            counter: TestCounter::default(),
            alone: true,
        }
    }

    /// Runs one command in a shell.
    pub(super) async fn run(&mut self, command: &str, folder: PathBuf) -> Ran {
        self.tail.clear();
        self.wrote = OutputEnds::new(&self.attempt.recording.masker);
        self.counter = TestCounter::default();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let shell = match self.attempt.equipment.programs.shell() {
            Ok(shell) => shell,
            Err(changed) => return Ran::Not(changed.to_string()),
        };
        let command = Command {
            program: shell.into(),
            args: vec!["-c".into(), command.into()],
            env: self.environment.clone(),
            cwd: folder,
            stdin: Stdin::Null,
        };
        let limits = Limits {
            // A quiet test run is nothing unusual: only its time counts.
            timeout: Some(left),
            grace: self.attempt.resources.limits.stop_grace,
        };
        let control = Control {
            stop: self.attempt.stop.token().clone(),
            frozen: self.attempt.frozen.clone(),
        };
        let (sender, mut chunks) = mpsc::channel::<Chunk>(CHUNKS);
        let runner = self
            .attempt
            .resources
            .runner
            .within(self.attempt.room(Some(&self.worktree), self.network).as_ref());
        let running = runner.run(command, limits, control, sender);
        let reporter = self.reporter.clone();
        let (tail, wrote, counter) = (&mut self.tail, &mut self.wrote, &mut self.counter);
        // It ends by itself: a program whose output has no reader is ended.
        let forwarding = async move {
            while let Some(chunk) = chunks.recv().await {
                wrote.push(&chunk);
                let (stream, piped) = match chunk.pipe {
                    Pipe::Stdout => (OutputStream::Stdout, Piped::Stdout),
                    Pipe::Stderr => (OutputStream::Stderr, Piped::Stderr),
                };
                counter.push(piped, &chunk.bytes);
                tail.extend(&chunk.bytes[chunk.bytes.len().saturating_sub(TAIL)..]);
                let surplus = tail.len().saturating_sub(TAIL);
                tail.drain(..surplus);
                let sent = match &reporter {
                    Some(reporter) => reporter.output(stream, chunk.bytes).await,
                    None => Ok(()),
                };
                if sent.is_err() {
                    break;
                }
            }
            wrote.finish();
        };
        let (ended, ()) = tokio::join!(running, forwarding);
        self.alone &= ended.as_ref().is_ok_and(|ended| ended.survivors == 0);
        match ended {
            Ok(ended) => match ended.cause {
                Cause::Itself => Ran::Ended(ended.status),
                Cause::Stopped => Ran::Not("it was stopped".to_owned()),
                Cause::TimedOut => Ran::Not("it took longer than the time-out".to_owned()),
                Cause::Unread => Ran::Not("its output could not be kept".to_owned()),
            },
            Err(error) => Ran::Not(chain(&error)),
        }
    }

    /// Warns of what the box of the last command refused, as far as its output says so.
    pub(super) async fn warn_of_refusals(&self) -> Result<(), AttemptEnded> {
        let tier = self.attempt.resources.boxes.proved().tier;
        if tier.is_lowest() {
            return Ok(());
        }
        let (paths, id) = (&self.attempt.resources.paths, self.attempt.id);
        let own = [self.worktree.clone(), paths.scratch(id), paths.short_tmp().path(id)];
        let own: Vec<_> = own.iter().filter_map(|path| path.to_str()).collect();
        for path in refused_paths(&self.wrote.text(), &own) {
            let warning = EventBody::Warning(refusal(tier, &path));
            self.attempt.recording.post(warning).await?;
        }
        Ok(())
    }

    /// A sentence and the last line of the output; the rest is in the logs.
    pub(super) fn message(&self, what: &str) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&tail);
        match text.lines().map(str::trim).rfind(|line| !line.is_empty()) {
            Some(last) => format!("{what}: {last}"),
            None => what.to_owned(),
        }
    }

    /// What the last command's output tells of its tests.
    pub(super) fn tests(&mut self) -> TestTally {
        std::mem::take(&mut self.counter).finish()
    }

    /// Waits until all output is recorded, unless the attempt was stopped.
    pub(super) async fn finish(&mut self) -> Result<(), AttemptEnded> {
        self.reporter = None;
        let recorded = self.recorder.join_next();
        let recorded = if self.attempt.stop.reason().is_some() {
            tokio::time::timeout(self.attempt.resources.limits.stop_grace, recorded)
                .await
                .unwrap_or(None)
        } else {
            recorded.await
        };
        match recorded {
            Some(Ok(result)) => result.map_err(AttemptEnded::from),
            Some(Err(error)) => {
                let text = format!("the recorder crashed: {error}");
                Err(Failure::new(FailureKind::AdapterCrash, text).into())
            }
            None => Ok(()),
        }
    }
}
