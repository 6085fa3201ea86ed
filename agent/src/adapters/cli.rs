//! The adapter for programs: runs a program by its manifest and turns its output into reports.
//!
//! Exit codes alone are not reliable, so a run has succeeded only when the program exited with 0
//! *and* its output reports success. The attempt decides whether the tree really changed.

pub(in crate::adapters) mod dollars;
mod lines;
mod formats;
pub mod manifest;
mod entry;
pub mod decoders;
mod launch;
mod own_words;
pub(in crate::adapters) mod stuck;
mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::cause::chain;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::{FailureTable, Speaker, local_failure};
use kage_core::fleet::AdapterInfo;
use kage_core::network::AllowRule;
use kage_git::executable::Executable;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::{AdapterConfig, api};
use crate::adapters::metered::MeteredProvider;
use crate::adapters::port::{
    Adapter, AdapterEnd, Admission, Reporter, ReporterClosed, Resumes, SessionInput, SessionLimits,
};
use crate::adapters::session_file::FilePlace;
use crate::adapters::session_file::SessionFile;
use crate::logins::{Login, Logins};
use crate::process::excerpt::{HeadTail, one_line};
use crate::process::{
    AgentEnvironment, Chunk, Command, Control, Environment, EnvironmentParts, Limits, Pipe, Places, RunError, Runner,
    Secret, Stdin,
};
use entry::Entry;
use manifest::{GatewayRule, Manifest, Version};
use run::Run;

/// Time limit of asking a program for its version.
const VERSION_TIME: Duration = Duration::from_secs(20);
/// Time between SIGTERM and SIGKILL.
pub(in crate::adapters) const GRACE: Duration = Duration::from_secs(5);

/// A session's program, ready to be run.
#[derive(Debug)]
pub(in crate::adapters) struct Prepared {
    pub(in crate::adapters) command: Command,
    pub(in crate::adapters) runner: Runner,
    /// The file in which the program counts tokens.
    usage_file: Option<FilePlace>,
}

/// A command-line program as an adapter.
#[derive(Debug)]
pub struct CliAdapter {
    manifest: Manifest,
    /// The program, or why it cannot be used.
    program: Result<Executable, String>,
    version: String,
    /// What lets it in at its provider.
    entry: Entry,
    agent: AgentEnvironment,
    runner: Runner,
    failures: FailureTable,
}

impl CliAdapter {
    /// Looks for the program and asks for its version.
    pub async fn new(manifest: Manifest, config: &AdapterConfig, logins: &Logins) -> Self {
        let command = manifest.program();
        let mut adapter = Self {
            program: config.program(&command),
            version: String::new(),
            entry: Entry::find(&manifest, &config.agent, logins),
            manifest,
            agent: config.agent.clone(),
            runner: config.runner.clone(),
            failures: FailureTable::builtin().clone().overlay(config.failures.clone()),
        };
        if let Ok(program) = adapter.program.clone() {
            match adapter.ask_version(program.path()).await {
                Ok(version) => adapter.version = version,
                Err(problem) => adapter.program = Err(problem),
            }
        }
        adapter
    }

    /// The version that the program prints, if it is supported.
    async fn ask_version(&self, program: &Path) -> Result<String, String> {
        let Some(rule) = &self.manifest.version else {
            return Ok(String::new());
        };
        let failed = |problem: String| format!("{} does not tell its version: {problem}", program.display());
        let home = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        let places = Places::within(home.path());
        places.make().map_err(|error| failed(error.to_string()))?;
        let env = Environment::of(&EnvironmentParts {
            agent: &self.agent,
            places: &places,
            manifest: None,
            root: false,
            task: None,
            path: None,
            work: None,
        });
        let command = Command {
            program: program.into(),
            args: rule.args.iter().map(OsString::from).collect(),
            env,
            cwd: home.path().to_owned(),
            stdin: Stdin::Null,
        };
        let limits = Limits {
            timeout: Some(VERSION_TIME),
            grace: Duration::from_secs(1),
        };
        // The reader below always reads.
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

    /// Writes what a session's program needs, and says how to run it.
    ///
    /// # Errors
    /// When the program cannot be used, or its folders cannot be made.
    pub(in crate::adapters) async fn prepare(&self, input: SessionInput) -> Result<Prepared, Failure> {
        let program: Result<PathBuf, String> = match self.program() {
            Ok(program) => program.to_run().map(Into::into).map_err(|changed| changed.to_string()),
            Err(problem) => Err(problem),
        };
        let program = program.map_err(|problem| Failure::new(FailureKind::AdapterUnavailable, problem))?;
        let gateway = input.gateway.as_ref();
        let rule = gateway.and_then(|_| self.gateway_rule(input.model.as_deref()));
        let agent = match (gateway, rule) {
            (Some(pass), Some(rule)) => launch::behind_gateway(&self.agent, &self.manifest, rule, pass),
            (None, _) | (Some(_), None) => self.agent.clone(),
        };
        let (manifest, login) = (self.manifest.clone(), self.entry.login().cloned());
        // Of several, the variable whose value it gets.
        let key = rule.map_or_else(|| self.entry.key(), |rule| Some(rule.key.as_str()));
        let key = key.map(str::to_owned);
        // Arguments may name files beside the manifest.
        let beside = self.manifest.source.parent().filter(|folder| folder.is_absolute());
        let room = input.room.as_ref().map(|room| match beside {
            Some(folder) => room.lending(folder),
            None => Arc::clone(room),
        });
        let runner = self.runner.within(room.as_ref());
        let command = tokio::task::spawn_blocking(move || {
            let place = launch::Place {
                program: &program,
                agent: &agent,
                login: login.as_ref(),
                key: key.as_deref(),
                root: rustix::process::geteuid().is_root(),
            };
            let command = launch::command(&manifest, &input, place)?;
            let usage_file = launch::usage_file(&manifest, &input, &command.cwd, place);
            Ok((command, usage_file))
        });
        let command = command.await.map_err(std::io::Error::other).and_then(|made| made);
        let (command, usage_file) = command.map_err(|error| {
            let problem = format!("cannot prepare the session's folders: {error}");
            local_failure(FailureKind::AdapterCrash, problem)
        })?;
        Ok(Prepared {
            command,
            runner,
            usage_file,
        })
    }

    async fn work(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> AdapterEnd {
        let limits = Limits {
            timeout: None,
            grace: GRACE,
        };
        let mut watched = run::Watched {
            stop: stop.clone(),
            halt: stop.child_token(),
            frozen: input.frozen.clone(),
            model: input.model.clone().or_else(|| self.manifest.model.clone()),
            beginning: input.beginning.clone(),
            conversation: input.conversation.clone(),
            usage_file: None,
            gateway: input.gateway.clone(),
        };
        let control = Control {
            stop: watched.halt.clone(),
            frozen: input.frozen.clone(),
        };
        let admission = input.admission.clone();
        let Prepared {
            command,
            runner,
            usage_file,
        } = match self.prepare(input).await {
            Ok(prepared) => prepared,
            Err(failure) => return AdapterEnd::Failed(failure),
        };
        watched.usage_file = usage_file;
        let mut run = Run::new(self, reporter.clone(), watched);
        // Full while the attempt's outbox is: then the program's pipes are not read.
        let (sender, chunks) = mpsc::channel(4);
        let (ended, told) = tokio::join!(runner.run(command, limits, control, sender), run.take(chunks));
        reporter.program_ended(&ended);
        match (ended, told) {
            (Err(error), _) => AdapterEnd::Failed(start_failure(&error)),
            (Ok(_), Err(ReporterClosed)) => AdapterEnd::Stopped,
            (Ok(ended), Ok(())) => {
                let end = run.end(ended).await;
                self.judged(&admission, end).await
            }
        }
    }

    /// The end of a session that was let in so: a token that ended is no refused login.
    pub(in crate::adapters) async fn judged(&self, admission: &Admission, end: AdapterEnd) -> AdapterEnd {
        self.entry.judged(admission.lent.as_ref(), end).await
    }

    pub(in crate::adapters) const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What words of the program mean.
    pub(in crate::adapters) const fn failures(&self) -> &FailureTable {
        &self.failures
    }

    pub(in crate::adapters) fn speaker(&self) -> Speaker<'_> {
        Speaker {
            adapter: self.manifest.name.as_str(),
            family: self.manifest.family(),
        }
    }

    /// How the calls of a session with this model can go through the agent.
    fn gateway_rule(&self, model: Option<&str>) -> Option<&GatewayRule> {
        // What is paid for by a subscription has no price for each call, and its login is for the program itself.
        if self.entry.login().is_some() {
            return None;
        }
        let model = self.model(model);
        let mut rules = self.manifest.gateways.iter();
        rules.find(|rule| rule.target(model, &self.agent).is_some())
    }

    fn model<'a>(&'a self, asked: Option<&'a str>) -> Option<&'a str> {
        asked.or(self.manifest.model.as_deref())
    }

    /// Whether its sessions are in folders of their own: not in the folder of a person's login, where that
    /// person's sessions are too.
    fn keeps_sessions_apart(&self) -> bool {
        let login = self.entry.login().filter(|login| login.is_exclusive());
        let shared = login.and_then(|login| login.rule().folder.as_ref());
        let own = self.manifest.session.as_ref().map(|rule| &rule.folder);
        shared.is_none() || shared != own
    }

    /// The program, unless something is missing without which it is of no use.
    fn program(&self) -> Result<&Executable, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        self.entry.access().map(|_| program)
    }
}

/// The failure of a program that could not be run to its end.
pub(in crate::adapters) fn start_failure(error: &RunError) -> Failure {
    let kind = match error {
        RunError::Spawn { .. } | RunError::Warden { .. } => FailureKind::AdapterUnavailable,
        RunError::WardenLost { .. } | RunError::Wait { .. } => FailureKind::AdapterCrash,
    };
    local_failure(kind, chain(error))
}

impl Adapter for CliAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: self.manifest.name.clone(),
            version: self.version.clone(),
            unavailable: self.program().err(),
            resumes: self.resumes(),
            access: self.entry.access().ok().flatten(),
            slots: 0,
            hears: false,
        }
    }

    fn secrets(&self) -> Vec<Secret> {
        let names = self.manifest.env.secret.iter();
        names
            .filter_map(|name| Some(Secret::new(name, self.agent.text(name)?)))
            .chain(self.agent.proxy_secrets())
            .collect()
    }

    fn reserve(&self) -> Result<Option<OwnedSemaphorePermit>, String> {
        self.entry.login().map_or(Ok(None), Login::reserve)
    }

    fn admit(&self, limit: Duration) -> BoxFuture<'_, Result<Admission, Failure>> {
        Box::pin(self.entry.admit(limit))
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(login) = self.entry.login() {
                login.owner().settled().await;
            }
        })
    }

    fn resumes(&self) -> Resumes {
        match self.keeps_sessions_apart() {
            true => self.manifest.resume,
            false => Resumes::None,
        }
    }

    fn provider(&self) -> Vec<AllowRule> {
        self.manifest.network.provider(&self.agent)
    }

    fn metered(&self, model: Option<&str>) -> Option<MeteredProvider> {
        let rule = self.gateway_rule(model)?;
        let (address, key) = rule.target(self.model(model), &self.agent)?;
        Some(api::metered(rule.wire, &self.manifest.name, address, key))
    }

    fn session_file(&self, input: &SessionInput) -> Option<SessionFile> {
        if !self.keeps_sessions_apart() {
            return None;
        }
        let place = launch::Place {
            program: Path::new(""),
            agent: &self.agent,
            login: self.entry.login(),
            key: self.entry.key(),
            root: rustix::process::geteuid().is_root(),
        };
        launch::session_file(&self.manifest, input, place)
    }

    fn limits(&self, asked: SessionLimits) -> SessionLimits {
        let watchdog = &self.manifest.watchdog;
        let within = |asked: Duration, limit: Option<Duration>| limit.map_or(asked, |limit| asked.min(limit));
        SessionLimits {
            timeout: within(asked.timeout, watchdog.timeout_seconds),
            idle: within(asked.idle, watchdog.idle_seconds),
        }
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(self.work(input, reporter, stop))
    }
}

#[cfg(test)]
mod tests;
