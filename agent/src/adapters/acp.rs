//! The adapter for agents that speak the Agent Client Protocol (<https://agentclientprotocol.com>), which are talked
//! to instead of read. It is a program by manifest like every other one: its box, environment, login, files and slots
//! are [`cli`](super::cli)'s; the manifest's `[acp]` makes it one of these.
//!
//! ```text
//!   AcpAdapter -> talk (pipes, time) -> conversation (what follows what) -> rpc
//!                   |                     +- models, usage, log, permission, sayings, failures
//!                   +- files, terminal (what the agent is served with), questions (what a person is asked)
//! ```
//!
//! The messages are read as JSON, like the answers of providers, and not through the protocol's own crate: see
//! "Not taken" in ARCHITECTURE.md.

mod rpc;
mod permission;
mod sayings;
mod models;
mod usage;
mod log;
mod failures;
mod files;
mod terminal;
mod conversation;
mod questions;
mod talk;

use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::fleet::AdapterInfo;
use kage_core::network::AllowRule;
use kage_core::session::{DEFAULT_WAIT, PermissionPolicy};
use kage_core::task::Permissions;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::adapters::cli::manifest::AcpRule;
use crate::adapters::cli::manifest::acp::{self as manifest, Service};
use crate::adapters::cli::stuck::Stuck;
use crate::adapters::cli::{CliAdapter, GRACE, Prepared, start_failure};
use crate::adapters::port::{
    Adapter, AdapterEnd, Admission, Beginning, Reporter, ReporterClosed, Resumes, SessionInput, SessionLimits,
};
use crate::adapters::session_file::SessionFile;
use crate::process::feed::Feed;
use crate::process::{Command, Control, Limits, Secret, Stdin};
use conversation::{Conversation, Plan, Resumed};
use files::Worktree;
use questions::Questions;
use talk::{CANCELLING, Talk, TalkLog};
use terminal::{Shell, Terminals};

/// An agent that is talked to.
#[derive(Debug)]
pub(super) struct AcpAdapter {
    program: CliAdapter,
    rule: AcpRule,
}

impl AcpAdapter {
    /// The adapter of a program whose manifest has this rule.
    pub(super) const fn new(program: CliAdapter, rule: AcpRule) -> Self {
        Self { program, rule }
    }

    async fn work(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> AdapterEnd {
        let admission = input.admission.clone();
        let prepared = match self.program.prepare(input.clone()).await {
            Ok(prepared) => prepared,
            Err(failure) => return AdapterEnd::Failed(failure),
        };
        let end = match self.talk(input, prepared, reporter, stop).await {
            Ok(end) => end,
            Err(failure) => AdapterEnd::Failed(failure),
        };
        self.program.judged(&admission, end).await
    }

    async fn talk(
        &self,
        input: SessionInput,
        prepared: Prepared,
        reporter: Reporter,
        stop: CancellationToken,
    ) -> Result<AdapterEnd, Failure> {
        let Prepared {
            mut command, runner, ..
        } = prepared;
        let scratch = input.scratch.clone();
        let worktree = input.worktree.clone().filter(|_| !self.rule.serve.is_empty());
        let making = tokio::task::spawn_blocking(move || {
            let worktree = worktree.map(|path| Worktree::open(&path)).transpose()?;
            Ok((Feed::make(&scratch)?, worktree))
        });
        let made = making.await.map_err(std::io::Error::other).and_then(|made| made);
        let (feed, worktree) = made.map_err(|error: std::io::Error| {
            let text = format!("cannot prepare to talk to the agent: {error}");
            local_failure(FailureKind::AdapterCrash, text)
        })?;
        let plan = self.plan(&input, &command)?;
        command.stdin = feed.stdin();
        let (conversation, first) = Conversation::begin(plan);
        let terminals = worktree.clone().filter(|_| self.rule.serves(Service::Terminal));
        let terminals = terminals.map(|worktree| {
            Terminals::new(Shell {
                worktree,
                env: command.env.clone(),
                runner: runner.clone(),
                frozen: input.frozen.clone(),
                reporter: reporter.clone(),
            })
        });
        let halt = CancellationToken::new();
        let control = Control {
            stop: halt.clone(),
            frozen: input.frozen.clone(),
        };
        let limits = Limits {
            timeout: None,
            grace: GRACE,
        };
        let mut talk = Talk {
            conversation,
            table: self.program.failures(),
            speaker: self.program.speaker(),
            stuck: Stuck::new(&self.program.manifest().failures),
            reporter: reporter.clone(),
            steps: input.steps.clone(),
            id: input.conversation.clone(),
            stop: stop.clone(),
            halt: halt.clone(),
            frozen: input.frozen.clone(),
            questions: Questions::new(input.permissions.unwrap_or(Permissions {
                policy: match self.rule.permissions {
                    manifest::PermissionPolicy::Allow => PermissionPolicy::Allow,
                    manifest::PermissionPolicy::Deny => PermissionPolicy::Deny,
                    manifest::PermissionPolicy::Ask => PermissionPolicy::Ask,
                },
                wait: DEFAULT_WAIT,
            })),
            hearing: input.hearing.clone(),
            worktree,
            terminals,
            log: TalkLog::new(),
        };
        // Full while the attempt's outbox is: then the program's pipes are not read.
        let (sender, chunks) = mpsc::channel(4);
        let working = async {
            tokio::join!(
                runner.run(command, limits, control, sender),
                talk.carry_on(first, chunks, feed)
            )
        };
        // An attempt that is told to stop may not be taking reports.
        let stopping = async {
            stop.cancelled().await;
            tokio::time::sleep(2 * CANCELLING).await;
            halt.cancel();
            std::future::pending().await
        };
        let (ended, told) = tokio::select! {
            worked = working => worked,
            never = stopping => never,
        };
        if let Some(terminals) = talk.terminals.take() {
            terminals.close().await;
        }
        reporter.program_ended(&ended);
        Ok(match (ended, told) {
            (Err(error), _) => AdapterEnd::Failed(start_failure(&error)),
            (Ok(_), Err(ReporterClosed)) => AdapterEnd::Stopped,
            (Ok(ended), Ok(())) => talk.end(ended).await,
        })
    }

    /// What the session is about. The prompt is what a program without the protocol would read.
    fn plan(&self, input: &SessionInput, command: &Command) -> Result<Plan, Failure> {
        let crash = |text: &str| Failure::new(FailureKind::AdapterCrash, text);
        let Stdin::Bytes(prompt) = &command.stdin else {
            return Err(crash(
                "the manifest of an agent that speaks ACP leaves [prompt] pass unset",
            ));
        };
        let cwd = command
            .cwd
            .to_str()
            .ok_or_else(|| crash("the worktree's path is not UTF-8"))?;
        let manifest = self.program.manifest();
        let resumed = match &input.beginning {
            Beginning::New => None,
            Beginning::GoOn { note, instruction, .. } => input.conversation.id().map(|id| Resumed {
                id: id.to_owned(),
                anew: [
                    &input.prompt.shared,
                    &manifest.prompt.opening,
                    &input.prompt.own,
                    note,
                    instruction,
                ]
                .into_iter()
                .filter(|part| !part.is_empty())
                .fold(String::new(), |text, part| match text.is_empty() {
                    true => part.clone(),
                    false => format!("{text}\n\n{part}"),
                }),
            }),
        };
        let model = input.model.clone().or_else(|| manifest.model.clone());
        Ok(Plan {
            rule: self.rule.clone(),
            cwd: cwd.to_owned(),
            prompt: String::from_utf8_lossy(prompt).into_owned(),
            resumed,
            mcp: input.mcp.clone(),
            model: model.filter(|_| !manifest.names_the_model()),
        })
    }
}

impl Adapter for AcpAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            hears: true,
            ..self.program.info()
        }
    }

    fn secrets(&self) -> Vec<Secret> {
        self.program.secrets()
    }

    fn reserve(&self) -> Result<Option<OwnedSemaphorePermit>, String> {
        self.program.reserve()
    }

    fn admit(&self, limit: Duration) -> BoxFuture<'_, Result<Admission, Failure>> {
        self.program.admit(limit)
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        self.program.settled()
    }

    fn resumes(&self) -> Resumes {
        self.program.resumes()
    }

    fn tells_steps(&self) -> bool {
        true
    }

    fn session_file(&self, input: &SessionInput) -> Option<SessionFile> {
        self.program.session_file(input)
    }

    fn provider(&self) -> Vec<AllowRule> {
        self.program.provider()
    }

    fn limits(&self, asked: SessionLimits) -> SessionLimits {
        self.program.limits(asked)
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(self.work(input, reporter, stop))
    }
}

#[cfg(test)]
mod tests;
