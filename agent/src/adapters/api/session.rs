//! The loop of a session: call the model, run the tools that it asks for, call again.
//!
//! ```text
//!        +--------------- tool results, "go on" ---------------+
//!        v                                                     |
//! wait while frozen -> call (few retries) -> answer -> why it stopped -> done | failed
//! ```

use std::num::NonZeroU32;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::AdapterName;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::answer::{Answer, Stop};
use super::asked::Asked;
use super::caller::Caller;
use super::circles::{Circle, Circles, Step};
use super::halt::{Halt, thawed};
use super::pauses::Pauses;
use super::turn::ToolAnswer;
use super::turns::Conversation;
use super::wire::Request;
use crate::adapters::hearing::{Hearing, Said};
use crate::adapters::port::{Reporter, ReporterClosed};
use crate::adapters::steps::Steps;
use crate::adapters::tools::{ToolResult, Toolbox, describe};
use crate::process::Control;
use crate::process::excerpt::HeadTail;

/// Bytes of a tool's answer, from either end, that people are shown.
const SHOWN: usize = 2048;

/// Answers in a row of which nothing can be used.
const MAX_USELESS: u32 = 3;
/// The result of a call that was cut, for the model.
const CUT_CALL: &str = "not run: your message was cut off at the limit of tokens; use smaller steps";
/// The result of a call with unreadable input, for the model.
const BROKEN_CALL: &str = "not run: the input is not a complete JSON object; make the call again";

/// How an answer was dealt with.
enum Answered {
    /// The model is done; this is its last text.
    Done(String),
    Tools,
    /// A text answer, or an answer that continues by itself.
    Words,
}

/// The loop of one session.
pub(super) struct Session {
    /// The adapter's name in messages.
    pub(super) name: AdapterName,
    /// The task's id.
    pub(super) task: String,
    pub(super) asked: Asked,
    pub(super) pauses: Pauses,
    /// Maximum of model calls.
    pub(super) max_turns: NonZeroU32,
    pub(super) tool_definitions: Box<RawValue>,
    /// The first system texts.
    pub(super) system: Vec<String>,
    pub(super) conversation: Conversation,
    pub(super) steps: Steps,
    /// What people say to it while it works.
    pub(super) hearing: Hearing,
    pub(super) caller: Caller,
    pub(super) tools: Toolbox,
    pub(super) reporter: Reporter,
    pub(super) control: Control,
    /// Answers in a row of which nothing could be used.
    pub(super) useless: u32,
    pub(super) circles: Circles,
}

impl Session {
    /// Works until the model is done, and returns its last text.
    pub(super) async fn work(&mut self) -> Result<String, Halt> {
        self.written().await?;
        let turns = self.max_turns.get();
        for _ in 0..turns {
            self.thawed().await?;
            let answer = self.call().await?;
            self.steps.answered();
            self.transcript(answer.transcript_line()).await?;
            let answered = self.deal_with(&answer).await?;
            let said = self.hearing.messages();
            let ran_tools = match answered {
                Answered::Done(summary) if said.is_empty() => return Ok(summary),
                Answered::Done(_) => {
                    self.conversation.model(&answer);
                    false
                }
                Answered::Tools => true,
                Answered::Words => false,
            };
            self.told(said).await?;
            self.written().await?;
            if ran_tools {
                self.steps.tools_ended();
            }
        }
        let plural = if turns == 1 { "" } else { "s" };
        let text = format!(
            "the model was not done after {turns} turn{plural} ([adapter.{}] max_turns)",
            self.name
        );
        Err(Halt::Failed(Failure::new(FailureKind::TurnLimit, text)))
    }

    /// Calls the model. Where images may be why that was refused, it is called once more without them: one
    /// that the provider does not take would end every further call too.
    async fn call(&mut self) -> Result<Answer, Halt> {
        let failure = match self.call_once().await {
            Err(Halt::Failed(failure)) => failure,
            end => return end,
        };
        let refused = matches!(failure.kind, FailureKind::InvalidRequest | FailureKind::ContextOverflow);
        if failure.kind == FailureKind::InvalidRequest && self.conversation_stays_long(&failure.message) {
            let words = format!("the conversation is not made shorter here: {}", failure.message);
            self.reporter.event(EventBody::Warning(words)).await?;
            return self.call_once().await;
        }
        if !refused || !self.conversation.hide_images() {
            return Err(Halt::Failed(failure));
        }
        let words = format!("the model is no longer shown images: {}", failure.message);
        self.reporter.event(EventBody::Warning(words)).await?;
        self.call_once().await
    }

    /// Stops asking for shorter conversations where a server says that it does not know how: some that stand before
    /// the provider do not. Returns whether that was asked for.
    fn conversation_stays_long(&mut self, message: &str) -> bool {
        let about = ["context_management", "anthropic-beta", "compact"];
        if !about.iter().any(|word| message.contains(word)) {
            return false;
        }
        let beta = (self.caller.wire.beta)(&self.asked);
        if let Some((_, value)) = beta {
            self.caller.without_beta(value);
        }
        self.caller.compact_at = None;
        self.asked.compact_at.take().is_some()
    }

    async fn call_once(&mut self) -> Result<Answer, Halt> {
        let wire = self.caller.wire;
        let cache = self.pauses.call(Instant::now());
        // The body of the call, for an answer of so many tokens.
        let body = |limit: NonZeroU32| {
            let lower = (limit < self.asked.max_output).then(|| Asked {
                max_output: limit,
                output_is_known: true,
                ..self.asked.clone()
            });
            let request = Request {
                asked: lower.as_ref().unwrap_or(&self.asked),
                task: &self.task,
                tools: &self.tool_definitions,
                system: &self.system,
                turns: self.conversation.turns(),
                cache,
            };
            let body = (wire.body)(&request);
            match (wire.too_large)(&request, &body) {
                None => Ok(body),
                Some(failure) => Err(Halt::Failed(failure)),
            }
        };
        let most = self.asked.max_output;
        self.caller.call(&body, most, &self.reporter, &self.control).await
    }

    /// Handles an answer. Its calls always run, whatever the stop reason says: a call without a
    /// result would be refused in the next request.
    async fn deal_with(&mut self, answer: &Answer) -> Result<Answered, Halt> {
        let failed = |kind, text: &str| Err(Halt::Failed(Failure::new(kind, text)));
        // The provider accepts such an answer, with all its content, in later requests.
        if answer.stop == Stop::Refused {
            return failed(
                FailureKind::ModelRefused,
                "the model refused the task; word it differently, or use another model",
            );
        }
        if !answer.calls.is_empty() {
            return self.answer_calls(answer).await;
        }
        match answer.stop {
            Stop::Done => Ok(Answered::Done(answer.words.clone())),
            Stop::Tools => failed(
                FailureKind::AdapterCrash,
                "the model stopped for a tool that it did not name",
            ),
            Stop::Cut => {
                self.conversation.model(answer);
                self.useless(answer.words.is_empty(), answer)?;
                self.conversation
                    .user("Your message was cut off at the limit of tokens. Go on.");
                Ok(Answered::Words)
            }
            Stop::BrokenCall => {
                self.conversation.model(answer);
                self.useless(true, answer)?;
                self.conversation.user(BROKEN_CALL);
                Ok(Answered::Words)
            }
            // Sending it back continues the answer.
            Stop::Paused => {
                self.conversation.model(answer);
                Ok(Answered::Words)
            }
            Stop::NoRoom => failed(
                FailureKind::ContextOverflow,
                "the conversation no longer fits the model",
            ),
            Stop::Refused | Stop::Other => {
                let text = format!("the model stopped for a reason that is not known: {}", answer.raw_stop);
                failed(FailureKind::Unknown, &text)
            }
        }
    }

    /// Runs the complete calls of an answer.
    async fn answer_calls(&mut self, answer: &Answer) -> Result<Answered, Halt> {
        self.conversation.model(answer);
        let runs = answer.calls.iter().any(|call| call.input.is_some());
        self.useless(!runs, answer)?;
        if runs {
            self.files_kept().await?;
        }
        let begun = Instant::now();
        let answers = self.run_tools(answer).await?;
        let mut step = Step::default();
        for (call, given) in answer.calls.iter().zip(&answers) {
            step.add(&call.name, call.input.as_deref(), given);
        }
        self.conversation.tool_results(answers);
        match self.circles.after(&step, begun.elapsed()) {
            Circle::None => {}
            Circle::Told(words) => self.conversation.user(words),
            Circle::Again => {
                self.written().await?;
                let text =
                    "the model makes the same calls with the same results again and again, also after it was told";
                return Err(Halt::Failed(Failure::new(FailureKind::TurnLimit, text)));
            }
        }
        Ok(if runs { Answered::Tools } else { Answered::Words })
    }

    /// Counts consecutive answers without usable content, and gives up after a few, because each
    /// one costs money.
    fn useless(&mut self, useless: bool, answer: &Answer) -> Result<(), Halt> {
        self.useless = if useless { self.useless + 1 } else { 0 };
        if self.useless < MAX_USELESS {
            return Ok(());
        }
        let failure = if answer.stop.cuts() {
            let text = format!(
                "{MAX_USELESS} answers in a row were cut off at {} tokens before anything in them could be used \
                 ([adapter.{}] max_output_tokens)",
                self.asked.max_output, self.name
            );
            Failure::new(FailureKind::InvalidRequest, text)
        } else {
            let text = format!("the input of tool calls was broken in {MAX_USELESS} answers in a row");
            Failure::new(FailureKind::AdapterCrash, text)
        };
        Err(Halt::Failed(failure))
    }

    async fn run_tools(&mut self, answer: &Answer) -> Result<Vec<ToolAnswer>, Halt> {
        let mut answers = Vec::new();
        for call in &answer.calls {
            let line = describe(&call.name, call.input.as_deref().unwrap_or_default());
            self.print(format!("> {line}\n")).await?;
            self.reporter.event(EventBody::Activity(line)).await?;
            let result = match &call.input {
                Some(input) => self.tools.call(&call.name, input, &self.control, &self.reporter).await,
                None if answer.stop.cuts() => ToolResult::refused(CUT_CALL),
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
                id: call.id.clone(),
                text: result.text,
                is_error: result.is_error,
                image: result.image,
            });
        }
        Ok(answers)
    }

    /// Tells the model what people said meanwhile.
    async fn told(&mut self, said: Vec<Said>) -> Result<(), Halt> {
        for said in said {
            self.conversation.user(&said.for_model());
            self.written().await?;
            self.steps.told(said.number);
            self.print(format!("{}\n", said.line())).await?;
            self.reporter.event(EventBody::MessageTold(said.number)).await?;
        }
        Ok(())
    }

    async fn thawed(&mut self) -> Result<(), Halt> {
        thawed(&mut self.control.frozen, &self.control.stop).await
    }

    /// Waits for a checkpoint that is being taken.
    async fn files_kept(&self) -> Result<(), Halt> {
        let stop = &self.control.stop;
        let kept = stop.run_until_cancelled(self.steps.tools_begin()).await;
        kept.ok_or(Halt::Stopped)
    }

    /// Writes the messages that did not come from the model.
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
