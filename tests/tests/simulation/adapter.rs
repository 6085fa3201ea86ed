//! An adapter whose sessions follow from the seed: they print, report, use tokens, hang, fail and
//! succeed. Its reports are recorded before they are sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_agent::adapters::port::{Adapter, AdapterEnd, Beginning, Reporter, ReporterClosed, Resumes, SessionInput};
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::fleet::AdapterInfo;
use kage_core::usage::Usage;
use tokio_util::sync::CancellationToken;

use crate::forge::{Files, text};
use crate::world::{Dice, End, World};

/// Between two looks whether it may go on.
const THAW: Duration = Duration::from_millis(50);

pub(crate) const SCRIPTED: &str = "scripted";

#[derive(Debug)]
pub(crate) struct Scripted(pub Arc<World>);

impl Adapter for Scripted {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: SCRIPTED.parse().expect("it is a name"),
            version: "1".to_owned(),
            unavailable: None,
            resumes: self.resumes(),
            access: None,
            slots: 0,
            hears: false,
        }
    }

    fn secrets(&self) -> Vec<kage_agent::process::Secret> {
        Vec::new()
    }

    fn uses_scratch(&self) -> bool {
        false
    }

    fn resumes(&self) -> Resumes {
        if self.0.whole_steps {
            Resumes::Position
        } else {
            Resumes::None
        }
    }

    fn tells_steps(&self) -> bool {
        self.0.whole_steps
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        let attempt = input.attempt.to_string();
        let play = Play {
            dice: self.0.dice(&format!("attempt {attempt}")),
            world: Arc::clone(&self.0),
            attempt,
            reporter,
            input,
        };
        async move {
            play.world
                .log(format_args!("{} begins {}", play.input.name, play.attempt));
            let end = match stop.run_until_cancelled(play.act()).await {
                Some(end) => end.unwrap_or(AdapterEnd::Stopped),
                None => AdapterEnd::Stopped,
            };
            play.world.log(format_args!("{} ends: {end:?}", play.attempt));
            end
        }
        .boxed()
    }
}

struct Play {
    world: Arc<World>,
    dice: Dice,
    attempt: String,
    reporter: Reporter,
    input: SessionInput,
}

impl Play {
    async fn act(&self) -> Result<AdapterEnd, ReporterClosed> {
        self.say(format!("attempt {}", self.attempt)).await?;
        let mut position = self.begin();
        for step in 0..1 + self.dice.below(8) {
            self.pause().await;
            match self.dice.below(10) {
                0..3 => self.print().await?,
                3..5 => self.say(format!("step {step}")).await?,
                5..6 => self.use_tokens().await?,
                _ => self.edit(&mut position).await?,
            }
        }
        if self.dice.chance(30) {
            // Until its watchdog looks.
            std::future::pending::<()>().await;
        }
        let (end, told) = self.end();
        self.world.emit(&self.attempt, |emitted| emitted.end = Some(told));
        Ok(end)
    }

    /// How many messages the conversation has, each of which must be where it was said.
    fn begin(&self) -> u64 {
        let Beginning::GoOn { said, .. } = &self.input.beginning else {
            return 0;
        };
        let said = String::from_utf8_lossy(said);
        for (position, line) in said.lines().enumerate() {
            if !line.starts_with(&format!("{position} by ")) {
                let text = format!("{} goes on from {line:?} at {position}", self.attempt);
                self.world.accuse(text);
            }
        }
        said.lines().count() as u64
    }

    /// A step of the conversation that changes both files, one after the other.
    async fn edit(&self, position: &mut u64) -> Result<(), ReporterClosed> {
        let Some(worktree) = &self.input.worktree else {
            return self.say("nothing to edit".to_owned()).await;
        };
        let message = |position: &mut u64| {
            self.input.steps.message(format!("{position} by {}", self.attempt));
            *position += 1;
        };
        message(position);
        self.input.steps.answered();
        self.input.steps.tools_begin().await;
        // Who was told what verify said does better.
        let told = matches!(&self.input.beginning, Beginning::GoOn { instruction, .. } if !instruction.is_empty());
        let text = text(self.dice.below(1_000_000), told || !self.dice.chance(250));
        for file in ["a", "b"] {
            self.world.forge.lock().unwrap().write(worktree, file, text.clone());
            tokio::time::sleep(self.dice.millis(0, 400)).await;
        }
        message(position);
        self.input.steps.tools_ended();
        Ok(())
    }

    /// Works for a while, but not while it is frozen.
    async fn pause(&self) {
        let long = self.dice.chance(50);
        let most = if long { 6000 } else { 600 };
        tokio::time::sleep(self.dice.millis(0, most)).await;
        // Waiting beside other waiters would make the order of wake-ups random.
        while *self.input.frozen.borrow() {
            tokio::time::sleep(THAW).await;
        }
    }

    async fn say(&self, text: String) -> Result<(), ReporterClosed> {
        self.world
            .emit(&self.attempt, |emitted| emitted.activities.push(text.clone()));
        self.reporter.event(EventBody::Activity(text)).await
    }

    async fn print(&self) -> Result<(), ReporterClosed> {
        let stream = self.dice.pick(&OutputStream::ALL);
        let length = if self.dice.chance(50) {
            200_000
        } else {
            self.dice.below(3000)
        };
        let first = self.dice.below(256);
        let bytes: Vec<u8> = (0..length).map(|at| ((first + at * 7) % 251) as u8).collect();
        self.world.print(&self.attempt, stream, &bytes);
        self.reporter.output(stream, Bytes::from(bytes)).await
    }

    async fn use_tokens(&self) -> Result<(), ReporterClosed> {
        let usage = Usage {
            input: self.dice.below(1000),
            output: 1 + self.dice.below(100),
            ..Usage::default()
        };
        let used = EventBody::UsageRecorded {
            model: "invented".to_owned(),
            usage,
            reported: None,
            metered: false,
            tools: None,
            call: None,
        };
        self.reporter.event(used).await
    }

    fn end(&self) -> (AdapterEnd, End) {
        if self.dice.chance(650) {
            let summary = String::new();
            return (AdapterEnd::Done { summary }, End::Done);
        }
        let kind = self.dice.pick(&[
            FailureKind::RateLimited,
            FailureKind::Overloaded,
            FailureKind::Network,
            FailureKind::QuotaExhausted,
            FailureKind::Auth,
            FailureKind::AdapterCrash,
            FailureKind::AdapterUnavailable,
            FailureKind::DiskFull,
            FailureKind::Unknown,
        ]);
        let mut failure = Failure::new(kind, "as the seed has it");
        if matches!(kind, FailureKind::RateLimited | FailureKind::QuotaExhausted) {
            failure.retry_after = Some(Duration::from_secs(1 + self.dice.below(10)));
        }
        (AdapterEnd::Failed(failure), End::Failed)
    }
}

/// Whether files are as they are in the middle of a step.
pub(crate) fn is_torn(files: &Files) -> bool {
    files.get("a") != files.get("b")
}
