//! The output of one run of a program: the reports made of it, and whether the program succeeded.

use std::io::Read as _;

use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::usage::Usage;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::CliAdapter;
use super::formats::{Outcome, Reader, Rules};
use super::own_words::OwnWords;
use super::stuck::Stuck;
use crate::adapters::local_time;
use crate::adapters::metered::GatewayPass;
use crate::adapters::port::{AdapterEnd, Beginning, Report, Reporter, ReporterClosed};
use crate::adapters::session_file::{Conversation, FilePlace};
use crate::process::excerpt::{HeadTail, one_line};
use crate::process::{Cause, Chunk, Ended, Pipe, Status};

/// Bytes of output, from either end, in which the rules of a manifest look for a failure's reason.
const REASON: usize = 8 << 10;
/// The largest file in which a program counts tokens, in bytes.
const USAGE_FILE: u64 = 64 << 20;

/// What a run's output is read with.
pub(super) struct Watched {
    /// Cancelled by the attempt.
    pub(super) stop: CancellationToken,
    /// Ends the program; cancelled with `stop`.
    pub(super) halt: CancellationToken,
    /// True while the program is not let run.
    pub(super) frozen: watch::Receiver<bool>,
    /// The model that the program was asked to use.
    pub(super) model: Option<String>,
    pub(super) beginning: Beginning,
    /// Where the id goes that the program gives its conversation.
    pub(super) conversation: Conversation,
    /// The file in which the program counts tokens.
    pub(super) usage_file: Option<FilePlace>,
    /// Who counts its calls; `None`: nobody but the program.
    pub(super) gateway: Option<GatewayPass>,
}

/// The output of one run of the program.
pub(super) struct Run<'a> {
    adapter: &'a CliAdapter,
    reader: Box<dyn Reader>,
    /// Both ends of all its output, for the rules of its manifest.
    wrote: HeadTail,
    /// Its own error messages, for the rules for all programs.
    own: OwnWords,
    /// Whether it only says the same and gets nothing done.
    stuck: Stuck<'a>,
    /// What it was ended for.
    over: Option<(FailureKind, String)>,
    watched: Watched,
    reporter: Reporter,
}

impl<'a> Run<'a> {
    pub(super) fn new(adapter: &'a CliAdapter, reporter: Reporter, watched: Watched) -> Self {
        let mut reader = (adapter.manifest.parser.0.reader)();
        if let Beginning::GoOn { said, .. } = &watched.beginning {
            reader.resumed(said);
        }
        Self {
            adapter,
            reader,
            wrote: HeadTail::new(REASON),
            own: OwnWords::new(),
            stuck: Stuck::new(&adapter.manifest.failures),
            over: None,
            watched,
            reporter,
        }
    }

    /// Reads everything that the program prints, until it closes its output.
    pub(super) async fn take(&mut self, mut chunks: mpsc::Receiver<Chunk>) -> Result<(), ReporterClosed> {
        let enough = self.watched.gateway.as_ref().map(|gateway| gateway.enough.clone());
        loop {
            let until = self.stuck.until().filter(|_| self.over.is_none());
            tokio::select! {
                biased;
                chunk = chunks.recv() => match chunk {
                    Some(chunk) => self.chunk(chunk).await?,
                    None => break,
                },
                () = at(until) => self.out_of_time(),
                () = cancelled(enough.as_ref()), if !self.watched.halt.is_cancelled() => self.watched.halt.cancel(),
            }
        }
        self.own.finish();
        if let Some(place) = self.watched.usage_file.clone() {
            let reports = match read_small(place).await {
                Some(bytes) => self.reader.usage_file(&bytes),
                None => Vec::new(),
            };
            self.tell(reports).await?;
        }
        let reports = self.reader.finish();
        self.tell(reports).await
    }

    async fn chunk(&mut self, Chunk { pipe, bytes }: Chunk) -> Result<(), ReporterClosed> {
        self.wrote.push(&bytes);
        // Any byte counts, also half a line or a line that is not shown.
        self.reporter.alive();
        let now = Instant::now();
        let reports = match pipe {
            Pipe::Stdout => {
                self.own.stdout(&bytes);
                let other_lines = self.stuck.stdout(&bytes, now);
                let reports = self.reader.read(bytes);
                if let Some(id) = self.reader.conversation() {
                    self.watched.conversation.told(id);
                }
                let progress = match self.adapter.manifest.parser.0.rules {
                    Rules::Everything => other_lines,
                    Rules::OwnWords => reports.iter().any(is_progress),
                };
                if progress {
                    self.stuck.progress();
                }
                reports
            }
            Pipe::Stderr => {
                self.own.stderr(&bytes);
                self.stuck.stderr(&bytes, now);
                vec![Report::Output(OutputStream::Stderr, bytes)]
            }
        };
        self.tell(reports).await
    }

    /// Ends a program that got nothing done for as long as a rule allows.
    fn out_of_time(&mut self) {
        let now = Instant::now();
        if *self.watched.frozen.borrow() {
            self.stuck.again(now);
        } else if let Some(over) = self.stuck.over(now) {
            self.over = Some(over);
            self.watched.halt.cancel();
        }
    }

    async fn tell(&self, reports: Vec<Report>) -> Result<(), ReporterClosed> {
        for report in reports {
            match report {
                Report::Event(body) => {
                    if let Some(body) = self.beside_gateway(self.with_model(body)) {
                        self.reporter.event(body).await?;
                    }
                }
                Report::Output(stream, bytes) => self.reporter.output(stream, bytes).await?,
                Report::Alive => self.reporter.alive(),
            }
        }
        Ok(())
    }

    /// The event with the model that was asked for, where the program counts tokens and names no model.
    fn with_model(&self, mut body: EventBody) -> EventBody {
        if let (EventBody::UsageRecorded { model, usage, .. }, Some(asked)) = (&mut body, &self.watched.model)
            && model.is_empty()
            && *usage != Usage::UNKNOWN
        {
            asked.clone_into(model);
        }
        body
    }

    /// What is reported of an event where a gateway counts: the program's own numbers stand beside its, and
    /// are not added to them. Of its calls of tools only the program knows.
    fn beside_gateway(&self, body: EventBody) -> Option<EventBody> {
        let Some(gateway) = &self.watched.gateway else {
            return Some(body);
        };
        match body {
            EventBody::UsageRecorded {
                model,
                usage,
                reported,
                tools,
                ..
            } => {
                gateway.own_count.add(usage, reported);
                tools.map(|tools| EventBody::UsageRecorded {
                    model,
                    usage: Usage::default(),
                    reported: None,
                    metered: false,
                    tools: Some(tools),
                    call: None,
                })
            }
            other => Some(other),
        }
    }

    /// Classifies the end of the program.
    pub(super) async fn end(&mut self, ended: Ended) -> AdapterEnd {
        if ended.survivors > 0 {
            let warning = format!("{} processes of the session could not be ended", ended.survivors);
            if self.reporter.event(EventBody::Warning(warning)).await.is_err() {
                return AdapterEnd::Stopped;
            }
        }
        let refused = self
            .watched
            .gateway
            .as_ref()
            .and_then(|gateway| gateway.refusing.borrow().clone());
        if let Some((kind, line)) = self.over.take()
            && !self.watched.stop.is_cancelled()
        {
            // A wait in the line is how long the program would have waited, not what the provider asked for.
            let message = format!("the program got no further and was ended; it said: {line}");
            // What it says of a refused call is what the gateway told it.
            return AdapterEnd::Failed(refused.unwrap_or_else(|| Failure::new(kind, message)));
        }
        match ended.cause {
            // It was refused its calls, and went on.
            Cause::Stopped if refused.is_some() && !self.watched.stop.is_cancelled() => {
                refused.map_or(AdapterEnd::Stopped, AdapterEnd::Failed)
            }
            // The attempt knows why it stopped the program.
            Cause::Stopped | Cause::Unread | Cause::TimedOut => AdapterEnd::Stopped,
            Cause::Itself => match self.judge(ended.status) {
                Ok(summary) => AdapterEnd::Done { summary },
                // What the program says of a refused call is what the gateway told it.
                Err(failure) => AdapterEnd::Failed(refused.unwrap_or_else(|| self.with_asked_wait(failure))),
            },
        }
    }

    /// A failure that passes with time, with the wait that the provider asked for where the program tells none.
    fn with_asked_wait(&self, mut failure: Failure) -> Failure {
        let passes = matches!(
            failure.kind,
            FailureKind::RateLimited | FailureKind::Overloaded | FailureKind::QuotaExhausted
        );
        if passes && failure.retry_after.is_none() {
            let gateway = self.watched.gateway.as_ref();
            failure.retry_after = gateway.and_then(|gateway| gateway.asked_wait.left(local_time().now));
        }
        failure
    }

    /// Decides between success and failure by everything that the program reported.
    fn judge(&self, status: Status) -> Result<String, Failure> {
        let wrote = match self.adapter.manifest.parser.0.rules {
            Rules::Everything => self.wrote.text(),
            Rules::OwnWords => self.own.reasons().join("\n"),
        };
        if let Some(failure) = self.by_manifest(status, &wrote) {
            return Err(failure);
        }
        match self.reader.outcome(local_time()) {
            Outcome::ExitCode(words) | Outcome::Done(words) if status.success() => Ok(words),
            Outcome::Failed(failure) if failure.kind != FailureKind::Unknown => Err(failure),
            Outcome::Failed(failure) => Err(self.by_words(status, Some(failure.message))),
            Outcome::Missing if status.success() => Err(Failure::new(
                FailureKind::AdapterCrash,
                "the program ended without a result, as when it is interrupted",
            )),
            Outcome::ExitCode(_) | Outcome::Done(_) | Outcome::Missing => Err(self.by_words(status, None)),
        }
    }

    fn by_manifest(&self, status: Status, wrote: &str) -> Option<Failure> {
        let code = match status {
            Status::Code(code) => Some(code),
            Status::Signal(_) => None,
        };
        let rules = self.adapter.manifest.failures.iter();
        rules.filter(|rule| rule.while_running.is_none()).find_map(|rule| {
            let applies = match rule.exit_code {
                Some(of) => code == Some(of),
                None => !status.success(),
            };
            if !applies {
                return None;
            }
            let message = match &rule.pattern {
                Some(pattern) => {
                    let found = pattern.find(wrote)?;
                    one_line(line_around(wrote, found.start()), 400)
                }
                None => format!("the program ended with {status}"),
            };
            Some(Failure::new(rule.kind, message))
        })
    }

    /// Classifies the failure by the program's own messages; `told` is the failure that its parser
    /// found.
    fn by_words(&self, status: Status, told: Option<String>) -> Failure {
        let (speaker, heard) = (self.adapter.speaker(), local_time());
        let mut reasons = told.iter().cloned().chain(self.own.reasons());
        let known = reasons.find_map(|words| self.adapter.failures.classify(speaker, &words, heard));
        known.unwrap_or_else(|| {
            let last = told.as_deref().unwrap_or_else(|| self.own.last_line());
            let message = format!("the program ended with {status}: {}", one_line(last, 400));
            Failure::new(FailureKind::AdapterCrash, message.trim_end_matches([':', ' ']))
        })
    }
}

/// A file of the session's; `None`: it is not there, or no file that a program would count in.
async fn read_small(place: FilePlace) -> Option<Vec<u8>> {
    let read = tokio::task::spawn_blocking(move || {
        let file = place.open().ok()??;
        let mut bytes = Vec::new();
        file.take(USAGE_FILE + 1).read_to_end(&mut bytes).ok()?;
        let fits = u64::try_from(bytes.len()).is_ok_and(|length| length <= USAGE_FILE);
        fits.then_some(bytes)
    });
    read.await.ok().flatten()
}

/// Whether the program got something done.
fn is_progress(report: &Report) -> bool {
    matches!(
        report,
        Report::Event(EventBody::Activity(_) | EventBody::UsageRecorded { .. })
    )
}

async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn line_around(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    text[start..].lines().next().unwrap_or_default()
}
