//! The output of one run of a program: the reports made of it, and whether the program succeeded.

use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use tokio::sync::mpsc;

use super::CliAdapter;
use super::formats::{Outcome, Reader, Rules};
use super::own_words::OwnWords;
use crate::adapters::local_time;
use crate::adapters::port::{AdapterEnd, Report, Reporter, ReporterClosed};
use crate::process::excerpt::{HeadTail, one_line};
use crate::process::{Cause, Chunk, Ended, Pipe, Status};

/// Bytes of output, from either end, in which the rules of a manifest look for a failure's reason.
const REASON: usize = 8 << 10;

/// The output of one run of the program.
pub(super) struct Run<'a> {
    adapter: &'a CliAdapter,
    reader: Box<dyn Reader>,
    /// Both ends of all its output, for the rules of its manifest.
    wrote: HeadTail,
    /// Its own error messages, for the rules for all programs.
    own: OwnWords,
    reporter: Reporter,
}

impl<'a> Run<'a> {
    pub(super) fn new(adapter: &'a CliAdapter, reporter: Reporter) -> Self {
        Self {
            adapter,
            reader: (adapter.manifest.parser.0.reader)(),
            wrote: HeadTail::new(REASON),
            own: OwnWords::new(),
            reporter,
        }
    }

    /// Reads everything that the program prints, until it closes its output.
    pub(super) async fn take(&mut self, mut chunks: mpsc::Receiver<Chunk>) -> Result<(), ReporterClosed> {
        while let Some(Chunk { pipe, bytes }) = chunks.recv().await {
            self.wrote.push(&bytes);
            match pipe {
                Pipe::Stdout => self.own.stdout(&bytes),
                Pipe::Stderr => self.own.stderr(&bytes),
            }
            // Any byte counts, also half a line or a line that is not shown.
            self.reporter.alive();
            let reports = match pipe {
                Pipe::Stdout => self.reader.read(bytes),
                Pipe::Stderr => vec![Report::Output(OutputStream::Stderr, bytes)],
            };
            self.tell(reports).await?;
        }
        self.own.finish();
        let reports = self.reader.finish();
        self.tell(reports).await
    }

    async fn tell(&self, reports: Vec<Report>) -> Result<(), ReporterClosed> {
        for report in reports {
            match report {
                Report::Event(body) => self.reporter.event(body).await?,
                Report::Output(stream, bytes) => self.reporter.output(stream, bytes).await?,
                Report::Alive => self.reporter.alive(),
            }
        }
        Ok(())
    }

    /// Classifies the end of the program.
    pub(super) async fn end(&mut self, ended: Ended) -> AdapterEnd {
        if ended.survivors > 0 {
            let warning = format!("{} processes of the session could not be ended", ended.survivors);
            if self.reporter.event(EventBody::Warning(warning)).await.is_err() {
                return AdapterEnd::Stopped;
            }
        }
        match ended.cause {
            // The attempt knows why it stopped the program.
            Cause::Stopped | Cause::Unread | Cause::TimedOut => AdapterEnd::Stopped,
            Cause::Itself => match self.judge(ended.status) {
                Ok(summary) => AdapterEnd::Done { summary },
                Err(failure) => AdapterEnd::Failed(failure),
            },
        }
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
        self.adapter.manifest.failures.iter().find_map(|rule| {
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
        let (name, heard) = (self.adapter.manifest.name.as_str(), local_time());
        let mut reasons = told.iter().cloned().chain(self.own.reasons());
        let known = reasons.find_map(|words| self.adapter.failures.classify(name, &words, heard));
        known.unwrap_or_else(|| {
            let last = told.as_deref().unwrap_or_else(|| self.own.last_line());
            let message = format!("the program ended with {status}: {}", one_line(last, 400));
            Failure::new(FailureKind::AdapterCrash, message.trim_end_matches([':', ' ']))
        })
    }
}

fn line_around(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    text[start..].lines().next().unwrap_or_default()
}
