//! The adapter for programs: runs one as its manifest says and turns its output into reports.
//!
//! Exit codes alone lie, so a run has succeeded only when the program ended with 0 *and* its
//! output says so. Whether the tree really changed is decided by the attempt.

mod claude_stream;
mod launch;
mod lines;
mod own_words;
mod text_output;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::{FailureTable, local_failure};
use kage_core::fleet::AdapterInfo;
use kage_core::usage::Usage;
use kage_git::executable::Executable;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::manifest::{Manifest, ParserKind, Version, fill};
use super::{AdapterConfig, local_time, text};
use crate::adapters::port::{Adapter, AdapterEnd, Report, Reporter, ReporterClosed, Resumes, SessionInput};
use crate::adapters::session_file::SessionFile;
use crate::process::excerpt::{HeadTail, one_line};
use crate::process::{
    Cause, Chunk, Command, Control, Ended, Limits, Pipe, RunError, Runner, Status, Stdin, proxy_secrets,
};
pub mod decoders;

use claude_stream::ClaudeStream;
use lines::{Line, Lines};
use own_words::OwnWords;
use text_output::TextOutput;

/// The longest line of machine output that is understood.
const MAX_LINE: usize = 16 << 20;
/// Bytes of output, from either end, in which the rules of a manifest look for a failure's reason.
const REASON: usize = 8 << 10;
/// How long a program may take to tell its version.
const VERSION_TIME: Duration = Duration::from_secs(20);
/// Time between the polite signal and the last one.
const GRACE: Duration = Duration::from_secs(5);

/// A program as an adapter.
#[derive(Debug)]
pub struct CliAdapter {
    manifest: Manifest,
    /// The program, or why it cannot be used.
    program: Result<Executable, String>,
    version: String,
    snapshot: BTreeMap<OsString, OsString>,
    runner: Runner,
    failures: FailureTable,
}

impl CliAdapter {
    /// Looks for the program and asks for its version.
    pub async fn new(manifest: Manifest, config: &AdapterConfig) -> Self {
        let dir = manifest.source.parent().unwrap_or(Path::new("")).display().to_string();
        let command = fill(&manifest.command, &BTreeMap::from([("manifest_dir", dir)]));
        let mut adapter = Self {
            program: config.program(&command),
            version: String::new(),
            manifest,
            snapshot: config.env.clone(),
            runner: config.runner.clone(),
            failures: FailureTable::builtin().clone().overlay(config.failures.clone()),
        };
        if let Ok(program) = adapter.program.clone() {
            match adapter.ask_version(program.path()).await {
                Ok(version) => adapter.version = version,
                Err(problem) => adapter.program = Err(problem),
            }
        }
        let require = &adapter.manifest.env.require;
        if adapter.program.is_ok()
            && !require.is_empty()
            && !require.iter().any(|name| text(&config.env, name).is_some())
        {
            adapter.program = Err(format!("set {} in the agent's environment", require.join(" or ")));
        }
        adapter
    }

    /// The version that the program prints, when it is one that works.
    async fn ask_version(&self, program: &Path) -> Result<String, String> {
        let Some(rule) = &self.manifest.version else {
            return Ok(String::new());
        };
        let failed = |problem: String| format!("{} does not tell its version: {problem}", program.display());
        let home = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        for folder in ["home", "tmp"] {
            std::fs::create_dir(home.path().join(folder)).map_err(|error| failed(error.to_string()))?;
        }
        let command = Command {
            program: program.into(),
            args: rule.args.iter().map(OsString::from).collect(),
            env: crate::process::Environment::for_session(&self.snapshot, home.path()).into_map(),
            cwd: home.path().to_owned(),
            stdin: Stdin::Null,
        };
        let limits = Limits {
            timeout: VERSION_TIME,
            idle_timeout: VERSION_TIME,
            grace: Duration::from_secs(1),
        };
        // The reader below waits for nothing else.
        let (sender, mut chunks) = mpsc::channel::<Chunk>(4);
        let gather = async {
            let mut printed = HeadTail::new(4096);
            while let Some(chunk) = chunks.recv().await {
                if chunk.pipe == Pipe::Stdout {
                    printed.push(&chunk.bytes);
                }
            }
            printed.text()
        };
        let control = Control::stop_only(CancellationToken::new());
        let (ended, printed) = tokio::join!(self.runner.run(command, limits, control, sender), gather);
        let ended = ended.map_err(|error| failed(error.to_string()))?;
        let line = one_line(printed.lines().find(|line| !line.trim().is_empty()).unwrap_or(""), 100);
        if !ended.status.success() {
            return Err(failed(format!("it ended with {}", ended.status)));
        }
        match (&rule.min, Version::find(&line)) {
            (Some(min), Some(found)) if found < *min => Err(format!(
                "{} is version {found}, and {min} is the oldest that works",
                program.display()
            )),
            (Some(_), None) => Err(failed(format!("{line:?} is no version"))),
            (Some(_) | None, Some(_) | None) => Ok(line),
        }
    }

    fn limits(&self, input: &SessionInput) -> Limits {
        let watchdog = &self.manifest.watchdog;
        let within = |asked: Duration, limit: Option<Duration>| limit.map_or(asked, |limit| asked.min(limit));
        Limits {
            timeout: within(input.timeout, watchdog.timeout_seconds),
            idle_timeout: within(input.idle_timeout, watchdog.idle_seconds),
            grace: GRACE,
        }
    }

    async fn work(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> AdapterEnd {
        let program: Result<PathBuf, String> = match &self.program {
            Ok(program) => program.to_run().map(Into::into).map_err(|changed| changed.to_string()),
            Err(problem) => Err(problem.clone()),
        };
        let program = match program {
            Ok(program) => program,
            Err(problem) => return AdapterEnd::Failed(Failure::new(FailureKind::AdapterUnavailable, problem)),
        };
        let limits = self.limits(&input);
        let control = Control {
            stop,
            frozen: input.frozen.clone(),
        };
        let (manifest, snapshot) = (self.manifest.clone(), self.snapshot.clone());
        let command = tokio::task::spawn_blocking(move || {
            let place = launch::Place {
                program: &program,
                snapshot: &snapshot,
                root: rustix::process::geteuid().is_root(),
            };
            launch::command(&manifest, &input, place)
        });
        let command = match command.await.map_err(std::io::Error::other).and_then(|made| made) {
            Ok(command) => command,
            Err(error) => {
                let problem = format!("cannot prepare the session's folders: {error}");
                return AdapterEnd::Failed(local_failure(FailureKind::AdapterCrash, problem));
            }
        };
        let mut run = Run {
            adapter: self,
            parser: Parser::new(self.manifest.parser),
            wrote: HeadTail::new(REASON),
            own: OwnWords::new(),
            reporter,
        };
        // Full while the attempt's outbox is: then the program's pipes are not read.
        let (sender, chunks) = mpsc::channel(4);
        let (ended, told) = tokio::join!(self.runner.run(command, limits, control, sender), run.take(chunks));
        match (ended, told) {
            (Err(error), _) => AdapterEnd::Failed(start_failure(&error)),
            (Ok(_), Err(ReporterClosed)) => AdapterEnd::Stopped,
            (Ok(ended), Ok(())) => run.end(ended, limits).await,
        }
    }
}

fn start_failure(error: &RunError) -> Failure {
    let kind = match error {
        RunError::Spawn { .. } | RunError::Warden { .. } => FailureKind::AdapterUnavailable,
        RunError::WardenLost { .. } | RunError::Wait { .. } => FailureKind::AdapterCrash,
    };
    Failure::new(kind, chain(error))
}

#[derive(Debug)]
enum Parser {
    Text(TextOutput),
    Claude(Lines, Box<ClaudeStream>),
}

impl Parser {
    fn new(kind: ParserKind) -> Self {
        match kind {
            ParserKind::Text => Self::Text(TextOutput::new()),
            ParserKind::ClaudeStreamJson => Self::Claude(Lines::new(MAX_LINE), Box::default()),
        }
    }

    fn stdout(&mut self, bytes: Bytes) -> Vec<Report> {
        match self {
            Self::Text(output) => output.chunk(bytes),
            Self::Claude(lines, stream) => lines
                .push(&bytes)
                .into_iter()
                .flat_map(|line| of_line(stream, line))
                .collect(),
        }
    }

    fn finish(&mut self) -> Vec<Report> {
        match self {
            // Unknown is not nothing.
            Self::Text(_) => vec![Report::Event(EventBody::UsageRecorded {
                model: String::new(),
                usage: Usage::UNKNOWN,
                reported: None,
                metered: false,
            })],
            Self::Claude(lines, stream) => {
                let mut reports: Vec<Report> = lines.finish().map(|line| of_line(stream, line)).unwrap_or_default();
                reports.extend(stream.unreported());
                reports
            }
        }
    }
}

fn of_line(stream: &mut ClaudeStream, line: Line) -> Vec<Report> {
    match line {
        Line::Whole(line) if line.is_empty() => Vec::new(),
        Line::Whole(line) => stream.line(&line),
        Line::TooLong { bytes } => vec![Report::Event(EventBody::Warning(format!(
            "a line of {bytes} bytes in the program's output was dropped"
        )))],
    }
}

/// One run of the program, as far as its output goes.
struct Run<'a> {
    adapter: &'a CliAdapter,
    parser: Parser,
    /// Both ends of everything it wrote: what the rules of its manifest are about.
    wrote: HeadTail,
    /// What it says of its own failure: what rules for all programs are about.
    own: OwnWords,
    reporter: Reporter,
}

impl Run<'_> {
    async fn take(&mut self, mut chunks: mpsc::Receiver<Chunk>) -> Result<(), ReporterClosed> {
        while let Some(Chunk { pipe, bytes }) = chunks.recv().await {
            self.wrote.push(&bytes);
            match pipe {
                Pipe::Stdout => self.own.stdout(&bytes),
                Pipe::Stderr => self.own.stderr(&bytes),
            }
            // Bytes of any kind: half a line, or one that nobody sees.
            self.reporter.alive();
            let reports = match pipe {
                Pipe::Stdout => self.parser.stdout(bytes),
                Pipe::Stderr => vec![Report::Output(OutputStream::Stderr, bytes)],
            };
            self.tell(reports).await?;
        }
        self.own.finish();
        let reports = self.parser.finish();
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

    async fn end(&mut self, ended: Ended, limits: Limits) -> AdapterEnd {
        if ended.survivors > 0 {
            let warning = format!("{} processes of the session could not be ended", ended.survivors);
            if self.reporter.event(EventBody::Warning(warning)).await.is_err() {
                return AdapterEnd::Stopped;
            }
        }
        let too_long = |what: &str, limit: Duration| {
            let message = format!("the program {what} for {} seconds and was ended", limit.as_secs());
            AdapterEnd::Failed(Failure::new(FailureKind::Timeout, message))
        };
        match ended.cause {
            Cause::Stopped | Cause::Unread => AdapterEnd::Stopped,
            Cause::TimedOut => too_long("ran", limits.timeout),
            Cause::Idle => too_long("wrote nothing", limits.idle_timeout),
            Cause::Itself => match self.judge(ended.status) {
                Ok(summary) => AdapterEnd::Done { summary },
                Err(failure) => AdapterEnd::Failed(failure),
            },
        }
    }

    /// Success or not, by everything that the program said.
    fn judge(&mut self, status: Status) -> Result<String, Failure> {
        let wrote = match self.parser {
            Parser::Text(_) => self.wrote.text(),
            // Its answers and its tools' output are told from its own words.
            Parser::Claude(..) => self.own.reasons().join("\n"),
        };
        if let Some(failure) = self.by_manifest(status, &wrote) {
            return Err(failure);
        }
        match &mut self.parser {
            Parser::Text(output) if status.success() => Ok(output.summary()),
            Parser::Text(_) => Err(self.by_words(status, None)),
            Parser::Claude(_, stream) => match stream.outcome(local_time()) {
                Some(Ok(summary)) if status.success() => Ok(summary),
                Some(Err(failure)) if failure.kind != FailureKind::Unknown => Err(failure),
                Some(Err(failure)) => Err(self.by_words(status, Some(failure.message))),
                None if status.success() => Err(Failure::new(
                    FailureKind::AdapterCrash,
                    "the program ended without a result, as when it is interrupted",
                )),
                Some(Ok(_)) | None => Err(self.by_words(status, None)),
            },
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

    /// By what the program says of its own failure; `told` is what its parser found.
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

impl Adapter for CliAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: self.manifest.name.clone(),
            version: self.version.clone(),
            unavailable: self.program.as_ref().err().cloned(),
            resumes: self.resumes(),
        }
    }

    fn secrets(&self) -> Vec<String> {
        let names = self.manifest.env.secret.iter();
        names
            .filter_map(|name| text(&self.snapshot, name))
            .map(str::to_owned)
            .chain(proxy_secrets(&self.snapshot))
            .collect()
    }

    fn resumes(&self) -> Resumes {
        self.manifest.resume
    }

    fn session_file(&self, input: &SessionInput) -> Option<SessionFile> {
        let root = rustix::process::geteuid().is_root();
        launch::session_file(&self.manifest, input, &self.snapshot, root)
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(self.work(input, reporter, stop))
    }
}

#[cfg(test)]
mod tests;
