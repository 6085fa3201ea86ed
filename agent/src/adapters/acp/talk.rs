//! Carries a conversation on: reads what the agent prints, writes what it is told, does what it asks for, and
//! watches the time. The agent's program is run by its caller, at the same time.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::{FailureTable, Speaker};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::conversation::{ClientCall, Conversation, Effect, Ending};
use super::failures::Judge;
use super::files::Worktree;
use super::questions::{Asked, Decided, Questions};
use super::rpc::{self, Cut, LineCutter, RequestId, RpcError, code};
use super::terminal::{Called, Terminals};
use crate::adapters::cli::stuck::Stuck;
use crate::adapters::hearing::{Heard, Hearing};
use crate::adapters::local_time;
use crate::adapters::port::{AdapterEnd, Report, Reporter, ReporterClosed};
use crate::adapters::session_file::Conversation as ConversationId;
use crate::adapters::steps::Steps;
use crate::process::excerpt::{HeadTail, one_line};
use crate::process::feed::Feed;
use crate::process::{Chunk, Ended, Pipe};

/// How long an agent may take to end its turn when it is told to.
pub(super) const CANCELLING: Duration = Duration::from_secs(2);
/// How long an agent may take to end when nothing more is said.
const LEAVING: Duration = Duration::from_secs(2);
/// Bytes that may wait for an agent that does not read. Then it is not read either.
const UNREAD: usize = 64 << 20;
/// Requests for files that are carried out at the same time, each on a thread. Then the agent is not read.
const MAX_FILES: usize = 4;
/// How often it is told that a session waits for a person: more often than any limit of silence.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Bytes of an agent's standard error, from either end, in which a failure's reason is looked for.
const REASON: usize = 8 << 10;

/// What a conversation is carried on with.
pub(super) struct Talk<'a> {
    pub(super) conversation: Conversation,
    pub(super) table: &'a FailureTable,
    pub(super) speaker: Speaker<'a>,
    pub(super) stuck: Stuck<'a>,
    pub(super) reporter: Reporter,
    pub(super) steps: Steps,
    pub(super) id: ConversationId,
    /// Cancelled by the attempt.
    pub(super) stop: CancellationToken,
    /// Ends the program.
    pub(super) halt: CancellationToken,
    pub(super) frozen: watch::Receiver<bool>,
    pub(super) questions: Questions,
    pub(super) hearing: Hearing,
    pub(super) worktree: Option<Worktree>,
    pub(super) terminals: Option<Terminals>,
    pub(super) log: TalkLog,
}

/// What was seen of an agent's program.
pub(super) struct TalkLog {
    cutter: LineCutter,
    /// Lines of the last chunk that were not taken yet. The next chunk waits until they are.
    lines: VecDeque<Cut>,
    /// The agent has answered, so it has read.
    answered: bool,
    stderr: HeadTail,
    ending: Option<Ending>,
    over: Option<(FailureKind, String)>,
    files: JoinSet<(RequestId, Result<Value, RpcError>)>,
    /// When the program is ended although it goes on.
    until: Option<Instant>,
}

impl TalkLog {
    pub(super) fn new() -> Self {
        Self {
            cutter: LineCutter::default(),
            lines: VecDeque::new(),
            answered: false,
            stderr: HeadTail::new(REASON),
            ending: None,
            over: None,
            files: JoinSet::new(),
            until: None,
        }
    }
}

enum Input {
    Stop,
    Chunk(Option<Chunk>),
    Line,
    Written(std::io::Result<()>),
    Served(RequestId, Result<Value, RpcError>),
    Stuck,
    Heard(Heard),
    /// A question has waited long enough.
    Unanswered,
    /// Somebody is asked: that is no silence of the agent's.
    Waiting,
    Late,
}

impl Talk<'_> {
    /// Talks until the program closes its output. `first` are the effects of the beginning.
    pub(super) async fn carry_on(
        &mut self,
        first: Vec<Effect>,
        mut chunks: mpsc::Receiver<Chunk>,
        feed: Feed,
    ) -> Result<(), ReporterClosed> {
        let mut feed = Some(feed);
        self.perform(first, &mut feed).await?;
        loop {
            let room = self.has_room(feed.as_ref());
            let input = tokio::select! {
                biased;
                () = self.stop.cancelled(), if self.log.until.is_none() => Input::Stop,
                () = at(self.log.until) => Input::Late,
                () = at(self.stuck.until()), if self.log.over.is_none() => Input::Stuck,
                heard = self.hearing.next() => Input::Heard(heard),
                written = write(feed.as_mut()) => Input::Written(written),
                (id, result) = served(&mut self.log.files, self.terminals.as_mut()) => Input::Served(id, result),
                () = std::future::ready(()), if room && !self.log.lines.is_empty() => Input::Line,
                chunk = chunks.recv(), if room && self.log.lines.is_empty() => Input::Chunk(chunk),
                () = at(self.questions.until()) => Input::Unanswered,
                () = tokio::time::sleep(SIGN_OF_LIFE), if !self.questions.is_empty() => Input::Waiting,
            };
            let effects = match input {
                Input::Stop => {
                    self.log.until = Some(Instant::now() + CANCELLING);
                    self.conversation.cancel()
                }
                Input::Late => {
                    self.log.until = None;
                    self.halt.cancel();
                    // Only the end of its output is waited for now.
                    drop(feed.take());
                    self.rest(&mut chunks).await?;
                    break;
                }
                Input::Stuck => {
                    self.is_stuck();
                    Vec::new()
                }
                Input::Heard(Heard::Said(said)) => {
                    let line = format!("{}\n", said.line());
                    self.reporter.output(OutputStream::Stdout, Bytes::from(line)).await?;
                    self.conversation.said(said)
                }
                Input::Heard(Heard::Answered(number, answer)) => {
                    let decided = self.questions.answered(number, &answer);
                    self.decided(decided).await?
                }
                Input::Unanswered => {
                    let decided = self.questions.expired(Instant::now());
                    self.decided(decided).await?
                }
                Input::Waiting => {
                    self.reporter.alive();
                    Vec::new()
                }
                Input::Written(Ok(())) => Vec::new(),
                Input::Written(Err(error)) => {
                    tracing::debug!(%error, "the agent reads no more");
                    feed = None;
                    Vec::new()
                }
                Input::Served(id, result) => self.conversation.served(&id, result),
                Input::Line => match self.log.lines.pop_front() {
                    Some(cut) => self.line(cut).await?,
                    None => Vec::new(),
                },
                Input::Chunk(Some(chunk)) => {
                    self.chunk(chunk).await?;
                    Vec::new()
                }
                Input::Chunk(None) => break,
            };
            if self.log.answered
                && let Some(feed) = &mut feed
            {
                feed.was_read();
            }
            self.perform(effects, &mut feed).await?;
        }
        if let Some(cut) = self.log.cutter.end() {
            let effects = self.line(cut).await?;
            self.perform(effects, &mut None).await?;
        }
        let effects = self.conversation.cut();
        self.perform(effects, &mut None).await
    }

    /// Whether the next line can be taken: the agent reads its answers, and not too many of them are being made.
    fn has_room(&self, feed: Option<&Feed>) -> bool {
        self.log.files.len() < MAX_FILES && feed.is_none_or(|feed| feed.waiting() < UNREAD)
    }

    /// Takes what a program prints that is being ended. It is served with nothing any more.
    async fn rest(&mut self, chunks: &mut mpsc::Receiver<Chunk>) -> Result<(), ReporterClosed> {
        loop {
            while let Some(cut) = self.log.lines.pop_front() {
                let effects = self.line(cut).await?;
                self.perform(effects, &mut None).await?;
            }
            match chunks.recv().await {
                Some(chunk) => self.chunk(chunk).await?,
                None => return Ok(()),
            }
        }
    }

    async fn chunk(&mut self, Chunk { pipe, bytes }: Chunk) -> Result<(), ReporterClosed> {
        // Any byte counts, also half a message.
        self.reporter.alive();
        match pipe {
            Pipe::Stderr => {
                self.log.stderr.push(&bytes);
                self.stuck.stderr(&bytes, Instant::now());
                self.reporter.output(OutputStream::Stderr, bytes).await
            }
            Pipe::Stdout => {
                let lines = self.log.cutter.push(&bytes);
                self.log.lines.extend(lines);
                Ok(())
            }
        }
    }

    async fn line(&mut self, cut: Cut) -> Result<Vec<Effect>, ReporterClosed> {
        let line = match cut {
            Cut::Line(line) => line,
            Cut::Dropped(bytes) => {
                let text = format!("a message of {bytes} bytes was dropped: it is too long");
                self.reporter.event(EventBody::Warning(text)).await?;
                return Ok(Vec::new());
            }
        };
        let incoming = rpc::read(&line);
        if incoming == rpc::Incoming::NoMessage {
            let mut line = line;
            line.push(b'\n');
            self.reporter.output(OutputStream::Stdout, Bytes::from(line)).await?;
            return Ok(Vec::new());
        }
        self.log.answered |= matches!(incoming, rpc::Incoming::Answer { .. });
        let judge = Judge {
            table: self.table,
            speaker: self.speaker,
            heard: local_time(),
        };
        Ok(self.conversation.hear(incoming, judge))
    }

    async fn perform(&mut self, effects: Vec<Effect>, feed: &mut Option<Feed>) -> Result<(), ReporterClosed> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send(line) => {
                    if let Some(feed) = feed {
                        feed.push(&line);
                    }
                }
                Effect::Tell(Report::Event(body)) => {
                    self.stuck.progress();
                    self.reporter.event(body).await?;
                }
                Effect::Tell(Report::Output(stream, bytes)) => self.reporter.output(stream, bytes).await?,
                Effect::Tell(Report::Alive) => self.reporter.alive(),
                Effect::ToolsBegin => {
                    // An attempt that is told to stop takes no more checkpoints.
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => {}
                        () = self.steps.tools_begin() => {}
                    }
                }
                Effect::ToolsEnd => self.steps.tools_ended(),
                Effect::Ask(question) => {
                    let number = question.number;
                    match self.questions.ask(question, Instant::now()) {
                        Asked::Decided(decision) => effects.extend(self.conversation.decided(number, decision)),
                        Asked::Waits(event) => self.asked(*event).await?,
                    }
                }
                Effect::Withdrawn => {
                    for event in self.questions.withdrawn() {
                        self.reporter.event(event).await?;
                    }
                }
                Effect::Told(number) => {
                    self.steps.told(number);
                    self.reporter.event(EventBody::MessageTold(number)).await?;
                }
                Effect::Serve(id, call) => effects.extend(self.serve(id, call)),
                Effect::Conversation(id) => self.id.told(&id),
                Effect::Over(ending) => {
                    self.log.ending = Some(ending);
                    // The end of its input is the end of most agents.
                    let open = feed.as_mut();
                    flush(open).await;
                    *feed = None;
                    self.log.until = Some(Instant::now() + LEAVING);
                }
            }
        }
        Ok(())
    }

    /// Tells of a question that waits, in the log too.
    async fn asked(&self, event: EventBody) -> Result<(), ReporterClosed> {
        if let EventBody::PermissionAsked { number, about, .. } = &event {
            let line = format!("? question {number}, for a person: {about}\n");
            self.reporter.output(OutputStream::Stdout, Bytes::from(line)).await?;
        }
        self.reporter.event(event).await
    }

    async fn decided(&mut self, decided: Option<Decided>) -> Result<Vec<Effect>, ReporterClosed> {
        let Some((number, decision, event)) = decided else {
            return Ok(Vec::new());
        };
        self.reporter.event(event).await?;
        Ok(self.conversation.decided(number, decision))
    }

    fn serve(&mut self, id: RequestId, ClientCall { method, params }: ClientCall) -> Vec<Effect> {
        if method.starts_with("terminal/") {
            let called = match &mut self.terminals {
                Some(terminals) => terminals.call(id, &method, params),
                None => Called::Answer(id, Err(no_worktree())),
            };
            return match called {
                Called::Answer(id, result) => self.conversation.served(&id, result),
                Called::Later => Vec::new(),
            };
        }
        let Some(worktree) = self.worktree.clone() else {
            return self.conversation.served(&id, Err(no_worktree()));
        };
        self.log.files.spawn(async move {
            let done = tokio::task::spawn_blocking(move || worktree.call(&method, params)).await;
            let done = done.unwrap_or_else(|error| {
                let text = format!("the request broke: {error}");
                Err(RpcError::new(code::INTERNAL, text))
            });
            (id, done)
        });
        Vec::new()
    }

    fn is_stuck(&mut self) {
        let now = Instant::now();
        if *self.frozen.borrow() {
            self.stuck.again(now);
        } else if let Some(over) = self.stuck.over(now) {
            self.log.over = Some(over);
            self.halt.cancel();
        }
    }

    /// The end of the session; its program has ended.
    pub(super) async fn end(&mut self, ended: Ended) -> AdapterEnd {
        if ended.survivors > 0 {
            let text = format!("{} processes of the session could not be ended", ended.survivors);
            if self.reporter.event(EventBody::Warning(text)).await.is_err() {
                return AdapterEnd::Stopped;
            }
        }
        if self.stop.is_cancelled() {
            // The attempt knows why.
            return AdapterEnd::Stopped;
        }
        if let Some((kind, line)) = self.log.over.take() {
            let text = format!("the agent got no further and was ended; it said: {line}");
            return AdapterEnd::Failed(Failure::new(kind, text));
        }
        let wrote = self.log.stderr.text();
        let judge = Judge {
            table: self.table,
            speaker: self.speaker,
            heard: local_time(),
        };
        match self.log.ending.take() {
            Some(Ending::Done(summary)) => AdapterEnd::Done { summary },
            Some(Ending::Failed(failure)) => AdapterEnd::Failed(failure),
            Some(Ending::Nothing) => AdapterEnd::Failed(judge.nothing_happened(&wrote)),
            Some(Ending::Cancelled) => AdapterEnd::Stopped,
            None => AdapterEnd::Failed(judge.broke_off(ended.status, &wrote, last_line(&wrote))),
        }
    }
}

fn last_line(text: &str) -> &str {
    let mut lines = text.lines().rev();
    lines.find(|line| !line.trim().is_empty()).unwrap_or_default()
}

impl Judge<'_> {
    /// A program that ended before its turn did.
    fn broke_off(&self, status: crate::process::Status, wrote: &str, last: &str) -> Failure {
        self.table.classify(self.speaker, wrote, self.heard).unwrap_or_else(|| {
            let text = format!("the agent ended with {status} in the middle: {}", one_line(last, 400));
            Failure::new(FailureKind::AdapterCrash, text.trim_end_matches([':', ' ']))
        })
    }
}

fn no_worktree() -> RpcError {
    RpcError::new(code::INTERNAL, "the session has no worktree")
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn write(feed: Option<&mut Feed>) -> std::io::Result<()> {
    match feed {
        Some(feed) => feed.write().await,
        None => std::future::pending().await,
    }
}

/// Writes what waits as long as the program takes it at once.
async fn flush(feed: Option<&mut Feed>) {
    let Some(feed) = feed else { return };
    while feed.waiting() > 0 {
        let writing = tokio::time::timeout(LEAVING, feed.write()).await;
        if !matches!(writing, Ok(Ok(()))) {
            return;
        }
    }
}

/// The next answer to a request of the agent's that took a while.
async fn served(
    files: &mut JoinSet<(RequestId, Result<Value, RpcError>)>,
    terminals: Option<&mut Terminals>,
) -> (RequestId, Result<Value, RpcError>) {
    let waits = async {
        match terminals {
            Some(terminals) => terminals.ended().await,
            None => std::future::pending().await,
        }
    };
    let done = async {
        loop {
            match files.join_next().await {
                Some(Ok(done)) => return done,
                // Nobody aborts them, and they answer when they break.
                Some(Err(error)) => tracing::error!(%error, "a request for a file broke"),
                None => return std::future::pending().await,
            }
        }
    };
    tokio::select! {
        biased;
        done = done => done,
        (id, status) = waits => (id, Ok(status)),
    }
}
