//! The adapter for the Messages API: an agentic loop in the agent itself.
//!
//! This file owns the loop: call, run the tools that the model asks for, call again.
//! [`call`] makes one call with its retries, [`conversation`] holds what is sent,
//! [`stream`] reads what comes, [`usage`] counts it.
//!
//! ```text
//!        +--------------- tool results, "go on" ---------------+
//!        v                                                     |
//! wait while frozen -> call (few retries) -> message -> stop reason -> Done | Failed
//! ```

mod call;
mod conversation;
mod stream;
pub(super) mod usage;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::fleet::AdapterInfo;
use kage_core::id::AdapterName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{AdapterConfig, LoadError, name_session, text};
use crate::adapters::port::{
    Adapter, AdapterEnd, Beginning, Reporter, ReporterClosed, Resumes, SessionInput, next_message,
};
use crate::adapters::steps::Steps;
use crate::adapters::tools::{ToolResult, Toolbox, describe};
use crate::process::allowance::Allowance;
use crate::process::excerpt::HeadTail;
use crate::process::{Control, Environment, Runner, proxy_secrets};
use call::Caller;
use conversation::{Conversation, ToolAnswer};
use stream::{Message, StopReason};

/// What tasks call this adapter.
pub const NAME: &str = "claude-api";
/// Where requests go when nothing else is said.
pub const DEFAULT_BASE_URL: &str = "https://api.anthropic.com";
/// The model when the task names none.
pub const DEFAULT_MODEL: &str = "claude-sonnet-5-5";

/// How the adapter works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaudeApiConfig {
    /// Where requests go; before `ANTHROPIC_BASE_URL` when set.
    pub base_url: Option<String>,
    /// A file with the key, used when `ANTHROPIC_API_KEY` is not set.
    pub key_file: Option<PathBuf>,
    /// The model when the task names none.
    pub model: String,
    /// The most tokens of one answer, thinking included.
    pub max_output_tokens: NonZeroU32,
    /// The most calls of one attempt, repetitions not counted: what ends a model that goes in
    /// circles while nothing else bounds what it may cost.
    pub max_turns: NonZeroU32,
    /// How often one call is made at most.
    pub max_calls: u32,
    /// Wait before the first repetition; each further one doubles it.
    pub backoff: Duration,
}

impl Default for ClaudeApiConfig {
    fn default() -> Self {
        Self {
            base_url: None,
            key_file: None,
            model: DEFAULT_MODEL.to_owned(),
            max_output_tokens: const { NonZeroU32::new(32_000).unwrap() },
            max_turns: const { NonZeroU32::new(200).unwrap() },
            max_calls: 4,
            backoff: Duration::from_secs(1),
        }
    }
}

/// The adapter.
#[derive(Debug)]
pub struct ClaudeApi {
    config: ClaudeApiConfig,
    base_url: String,
    key: Option<String>,
    client: reqwest::Client,
    env: BTreeMap<OsString, OsString>,
    runner: Runner,
}

/// Why the loop ended early.
enum Halt {
    Failed(Failure),
    Stopped,
}

impl From<ReporterClosed> for Halt {
    fn from(_: ReporterClosed) -> Self {
        Self::Stopped
    }
}

impl ClaudeApi {
    /// The adapter with its key, base URL and HTTP client. A missing key makes it
    /// unavailable and is no error.
    ///
    /// # Errors
    /// When the key file that was named cannot be read, or there can be no HTTP client.
    pub fn new(config: &AdapterConfig) -> Result<Self, LoadError> {
        let own = config.claude_api.clone();
        let key = match (text(&config.env, "ANTHROPIC_API_KEY"), &own.key_file) {
            (Some(key), _) => Some(key.to_owned()),
            (None, Some(path)) => {
                let key = std::fs::read_to_string(path).map_err(|source| LoadError::KeyFile {
                    path: path.clone(),
                    source,
                })?;
                Some(key.trim().to_owned()).filter(|key| !key.is_empty())
            }
            (None, None) => None,
        };
        let base_url = own
            .base_url
            .as_deref()
            .or_else(|| text(&config.env, "ANTHROPIC_BASE_URL"));
        Ok(Self {
            base_url: base_url.unwrap_or(DEFAULT_BASE_URL).trim_end_matches('/').to_owned(),
            config: own,
            key,
            client: call::client().map_err(LoadError::Http)?,
            env: config.env.clone(),
            runner: config.runner.clone(),
        })
    }

    /// Runs the loop within the session's time, then makes sure that it has really ended.
    async fn run_within(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> AdapterEnd {
        let Some(key) = &self.key else {
            return AdapterEnd::Failed(Failure::new(FailureKind::AdapterUnavailable, NO_KEY));
        };
        let (timeout, frozen) = (input.timeout, input.frozen.clone());
        let halt = stop.child_token();
        let mut session = match self.session(key, input, reporter, halt.clone()).await {
            Ok(session) => session,
            Err(failure) => return AdapterEnd::Failed(failure),
        };
        let mut work = std::pin::pin!(session.work());
        let (end, timed_out) = tokio::select! {
            end = &mut work => (end, false),
            () = Allowance::new(timeout).used_up_unless(frozen) => {
                // The loop is told to stop instead of dropped: it ends the tool it runs.
                halt.cancel();
                (work.await, true)
            }
        };
        match end {
            Ok(summary) => AdapterEnd::Done { summary },
            Err(Halt::Failed(failure)) => AdapterEnd::Failed(failure),
            Err(Halt::Stopped) if timed_out && !stop.is_cancelled() => {
                let message = format!("the session ran for {} seconds and was ended", timeout.as_secs());
                AdapterEnd::Failed(Failure::new(FailureKind::Timeout, message))
            }
            Err(Halt::Stopped) => AdapterEnd::Stopped,
        }
    }

    async fn session(
        &self,
        key: &str,
        input: SessionInput,
        reporter: Reporter,
        halt: CancellationToken,
    ) -> Result<Session<'_>, Failure> {
        let mut env = Environment::for_session(&self.env, &input.scratch);
        name_session(&mut env, &input);
        let (runner, worktree, scratch) = (self.runner.clone(), input.worktree.clone(), input.scratch.clone());
        let tools = tokio::task::spawn_blocking(move || {
            for folder in ["home", "tmp"] {
                std::fs::create_dir_all(scratch.join(folder))?;
            }
            let folder = match worktree {
                Some(worktree) => worktree,
                None => {
                    let work = scratch.join("work");
                    std::fs::create_dir_all(&work)?;
                    work
                }
            };
            Toolbox::open(&folder, env.into_map(), runner)
        });
        let tools = tools
            .await
            .map_err(std::io::Error::other)
            .and_then(|opened| opened)
            .map_err(|error| {
                let problem = format!("cannot open the session's folders: {error}");
                local_failure(FailureKind::CorruptedState, problem)
            })?;
        let model = input.model.unwrap_or_else(|| self.config.model.clone());
        let new = Conversation::new(model, self.config.max_output_tokens.get(), &input.prompt);
        let conversation = match input.beginning {
            Beginning::New => new,
            Beginning::GoOn {
                said,
                note,
                instruction,
            } => new.go_on(&said, &next_message(&note, &instruction)).map_err(|error| {
                let problem = format!("the conversation of the checkpoint cannot be read: {error}");
                local_failure(FailureKind::CorruptedState, problem)
            })?,
        };
        Ok(Session {
            config: &self.config,
            conversation,
            steps: input.steps,
            caller: Caller {
                client: self.client.clone(),
                url: format!("{}/v1/messages", self.base_url),
                key: key.to_owned(),
                idle: input.idle_timeout,
                max_calls: self.config.max_calls,
                backoff: self.config.backoff,
            },
            tools,
            reporter,
            control: Control {
                stop: halt,
                frozen: input.frozen,
            },
            useless: 0,
        })
    }
}

/// Bytes of a tool's answer, from either end, that people are shown.
const SHOWN: usize = 2048;
const NO_KEY: &str = "set ANTHROPIC_API_KEY in the agent's environment, or name a key file";

/// Messages in a row of which nothing can be used.
const MAX_USELESS: u32 = 3;
/// What the model hears of a call that was cut.
const CUT_CALL: &str = "not run: your message was cut off at the limit of tokens; use smaller steps";
/// What it hears of a call whose input cannot be read.
const BROKEN_CALL: &str = "not run: the input is not a complete JSON object; make the call again";

/// How a message was dealt with.
enum Answered {
    /// The model is done, and says this.
    Done(String),
    /// Its tools ran.
    Tools,
    /// It was answered in words, or goes on by itself.
    Words,
}

/// One session's loop.
struct Session<'a> {
    config: &'a ClaudeApiConfig,
    conversation: Conversation,
    steps: Steps,
    caller: Caller,
    tools: Toolbox,
    reporter: Reporter,
    control: Control,
    /// Messages in a row of which nothing could be used.
    useless: u32,
}

impl Session<'_> {
    async fn work(&mut self) -> Result<String, Halt> {
        self.written().await?;
        let turns = self.config.max_turns.get();
        for _ in 0..turns {
            self.thawed().await?;
            let message = self
                .caller
                .call(&self.conversation.body(), &self.reporter, &self.control)
                .await?;
            self.steps.answered();
            self.transcript(message.transcript_line()).await?;
            let ran_tools = match self.answer(&message).await? {
                Answered::Done(summary) => return Ok(summary),
                Answered::Tools => true,
                Answered::Words => false,
            };
            self.written().await?;
            if ran_tools {
                self.steps.tools_ended();
            }
        }
        let plural = if turns == 1 { "" } else { "s" };
        let text = format!("the model was not done after {turns} turn{plural} ([adapter.{NAME}] max_turns)");
        Err(Halt::Failed(Failure::new(FailureKind::TurnLimit, text)))
    }

    /// Deals with a message. Its calls are run whatever it stopped for: the reason tells how it
    /// ended, and a call without an answer would be refused with the next request.
    async fn answer(&mut self, message: &Message) -> Result<Answered, Halt> {
        let failed = |kind, text: &str| Err(Halt::Failed(Failure::new(kind, text)));
        // The provider takes such an answer back, with all that is in it.
        if message.stop_reason == StopReason::Refusal {
            return failed(FailureKind::InvalidRequest, "the model refused the task");
        }
        if message.tool_calls().next().is_some() {
            return self.answer_calls(message).await;
        }
        match &message.stop_reason {
            StopReason::EndTurn | StopReason::StopSequence => Ok(Answered::Done(message.text())),
            StopReason::ToolUse => failed(
                FailureKind::AdapterCrash,
                "the model stopped for a tool that it did not name",
            ),
            StopReason::MaxTokens => {
                self.conversation.assistant(message);
                self.useless(message.text().is_empty(), message)?;
                self.conversation
                    .user("Your message was cut off at the limit of tokens. Go on.");
                Ok(Answered::Words)
            }
            // The provider paused a long turn; sending it back lets it go on.
            StopReason::PauseTurn => {
                self.conversation.assistant(message);
                Ok(Answered::Words)
            }
            StopReason::ContextWindow => failed(
                FailureKind::ContextOverflow,
                "the conversation no longer fits the model",
            ),
            StopReason::Refusal | StopReason::Other(_) => {
                let text = format!(
                    "the model stopped for a reason that is not known: {}",
                    message.raw_stop_reason()
                );
                failed(FailureKind::Unknown, &text)
            }
        }
    }

    /// Runs the calls of a message, those that are whole.
    async fn answer_calls(&mut self, message: &Message) -> Result<Answered, Halt> {
        self.conversation.assistant(message);
        let runs = message.tool_calls().any(|call| call.input.is_some());
        self.useless(!runs, message)?;
        if runs {
            self.files_kept().await?;
        }
        let answers = self.run_tools(message).await?;
        self.conversation.tool_results(answers);
        Ok(if runs { Answered::Tools } else { Answered::Words })
    }

    /// Counts messages of which nothing could be used, and gives up after a few in a row: each
    /// one is paid for.
    fn useless(&mut self, useless: bool, message: &Message) -> Result<(), Halt> {
        self.useless = if useless { self.useless + 1 } else { 0 };
        if self.useless < MAX_USELESS {
            return Ok(());
        }
        let failure = if message.stop_reason.cuts() {
            let text = format!(
                "{MAX_USELESS} answers in a row were cut off at {} tokens before anything in them could be used \
                 ([adapter.{NAME}] max_output_tokens)",
                self.config.max_output_tokens
            );
            Failure::new(FailureKind::InvalidRequest, text)
        } else {
            let text = format!("the input of tool calls was broken in {MAX_USELESS} answers in a row");
            Failure::new(FailureKind::AdapterCrash, text)
        };
        Err(Halt::Failed(failure))
    }

    async fn run_tools(&mut self, message: &Message) -> Result<Vec<ToolAnswer>, Halt> {
        let mut answers = Vec::new();
        for call in message.tool_calls() {
            let line = describe(call.name, call.input.unwrap_or_default());
            self.print(format!("> {line}\n")).await?;
            self.reporter.event(EventBody::Activity(line)).await?;
            let result = match call.input {
                Some(input) => self.tools.call(call.name, input, &self.control, &self.reporter).await,
                None if message.stop_reason.cuts() => ToolResult::refused(CUT_CALL),
                None => ToolResult::refused(BROKEN_CALL),
            };
            if self.control.stop.is_cancelled() {
                return Err(Halt::Stopped);
            }
            if call.name == "bash" || result.is_error {
                let mut shown = HeadTail::new(SHOWN);
                shown.push(result.text.as_bytes());
                self.print(format!("{}\n", shown.text().trim_end())).await?;
            }
            answers.push(ToolAnswer {
                id: call.id.to_owned(),
                text: result.text,
                is_error: result.is_error,
            });
        }
        Ok(answers)
    }

    async fn thawed(&mut self) -> Result<(), Halt> {
        thawed(&mut self.control.frozen, &self.control.stop).await
    }

    /// Waits until the files are in a checkpoint, if one is being taken.
    async fn files_kept(&self) -> Result<(), Halt> {
        let stop = &self.control.stop;
        let kept = stop.run_until_cancelled(self.steps.tools_begin()).await;
        kept.ok_or(Halt::Stopped)
    }

    /// Writes what the conversation got from elsewhere than the model.
    async fn written(&mut self) -> Result<(), ReporterClosed> {
        for line in self.conversation.unwritten() {
            self.transcript(line).await?;
        }
        Ok(())
    }

    async fn print(&self, text: String) -> Result<(), ReporterClosed> {
        self.reporter.output(OutputStream::Stdout, Bytes::from(text)).await
    }

    async fn transcript(&self, mut line: String) -> Result<(), ReporterClosed> {
        self.steps.message(line.clone());
        line.push('\n');
        self.reporter.output(OutputStream::Transcript, Bytes::from(line)).await
    }
}

/// Waits until the attempt may work.
async fn thawed(frozen: &mut watch::Receiver<bool>, stop: &CancellationToken) -> Result<(), Halt> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Halt::Stopped),
        // An error means that nobody can freeze or thaw any more; then it is not frozen.
        _thawed_or_nobody = frozen.wait_for(|frozen| !frozen) => Ok(()),
    }
}

impl Adapter for ClaudeApi {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: NAME.parse::<AdapterName>().expect("the name is a literal that fits"),
            version: String::new(),
            unavailable: self.key.is_none().then(|| NO_KEY.to_owned()),
            resumes: self.resumes(),
        }
    }

    fn secrets(&self) -> Vec<String> {
        self.key.iter().cloned().chain(proxy_secrets(&self.env)).collect()
    }

    fn resumes(&self) -> Resumes {
        Resumes::Position
    }

    fn tells_steps(&self) -> bool {
        true
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(self.run_within(input, reporter, stop))
    }
}

#[cfg(test)]
mod tests;
