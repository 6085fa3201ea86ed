//! Adapters for providers' APIs: an agentic loop in the agent itself.
//!
//! ```text
//!   ApiAdapter -> session (turns) -> caller (retries) -> wire -> messages, ... (a file a dialect)
//!                      |                                  |
//!                      +--- turns, answer: without the provider ---+
//! ```
//!
//! This file owns the adapter and the list of providers. A new dialect is a file of its own and a
//! line in [`PROVIDERS`].

mod answer;
mod asked;
mod frames;
mod halt;
mod turn;
mod pauses;
mod wire;
mod turns;
mod provider;
pub(super) mod messages;
mod chat;
mod ollama;
mod responses;
mod gemini;
mod circles;
mod caller;
mod session;
mod counting;

pub(crate) use caller::client;
pub(crate) use counting::metered;
pub(crate) use counting::{AnswerEnd, Counting};
pub(in crate::adapters) use provider::{Instance, Provider, instances};

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::call::{AccountName, Prefix};
use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::fleet::AdapterInfo;
use kage_core::folder::Folder;
use kage_core::id::Digest;
use kage_core::price::PriceTable;
use tokio_util::sync::CancellationToken;

use super::settings::Models;
use super::{AdapterConfig, LoadError, local_time};
use crate::adapters::port::{Adapter, AdapterEnd, Beginning, Reporter, Resumes, SessionInput, next_message};
use crate::adapters::tools::{self, Toolbox};
use crate::calls::Calls;
use crate::process::{AgentEnvironment, Control, Environment, EnvironmentParts, Runner, Secret};
use asked::Asked;
use caller::Caller;
use halt::Halt;
use pauses::Pauses;
use session::Session;
use turns::Conversation;

pub(super) static PROVIDERS: &[Provider] = &[
    messages::CLAUDE,
    responses::OPENAI,
    chat::CHAT,
    gemini::GEMINI,
    ollama::OLLAMA,
];

/// The first system text. It is the same for every session of a task, so it names no model, session
/// or machine.
fn system(folder: Option<&Folder>) -> String {
    let place = match folder {
        None => "is the root of the worktree".to_owned(),
        Some(folder) => format!("is {folder} in the worktree, whose root is {}", folder.to_top()),
    };
    format!(
        "You are a software engineer working alone on one task in a git worktree. Use the tools to look at the code, \
         change it and check your change; all paths are relative to the working folder, which {place}. Nobody can \
         answer questions, so decide sensibly yourself. Change only what the task needs, do not commit, and do not \
         weaken tests to make them pass. When the task is done, say in one or two sentences what you did."
    )
}

/// Bytes of a token of a prompt, at most on average: what is called a token of a prefix is one.
const BYTES_PER_TOKEN: usize = 5;

/// The beginning that all sessions of a task with this dialect send: tools, and system texts.
pub(crate) fn shared_prefix<'a>(wire: &'a str, said: impl IntoIterator<Item = &'a str>) -> Prefix {
    let parts: Vec<&str> = [wire].into_iter().chain(said).collect();
    // Lengths between them: where one part ends is a part of what is sent.
    let text: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    Prefix {
        digest: Digest::of(text.as_bytes()),
        tokens: (bytes / BYTES_PER_TOKEN) as u64,
    }
}

/// How failed calls are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRules {
    /// Maximum of attempts of one call, the first included.
    pub max_calls: u32,
    /// Wait before the first repetition; each further one doubles it.
    pub backoff: Duration,
}

impl Default for CallRules {
    fn default() -> Self {
        Self {
            max_calls: 4,
            backoff: Duration::from_secs(1),
        }
    }
}

/// The default number of sessions at once: they wait for the provider nearly all the time.
const SLOTS: u32 = 32;

/// How long a server is waited for that is asked whether it runs.
const PROBE: Duration = Duration::from_secs(2);

/// The default maximum of turns of an attempt.
const TURNS: NonZeroU32 = const { NonZeroU32::new(200).unwrap() };

#[derive(Debug)]
pub(super) struct ApiAdapter {
    instance: Instance,
    calls: CallRules,
    prices: PriceTable,
    base_url: String,
    key: Option<String>,
    /// Why it cannot be used here.
    lacks: Option<String>,
    client: reqwest::Client,
    agent: AgentEnvironment,
    runner: Runner,
}

impl ApiAdapter {
    /// The adapter with its key, base URL and HTTP client. A missing key makes it
    /// unavailable and is no error.
    ///
    /// # Errors
    /// When the key file that was named cannot be read, or there can be no HTTP client.
    pub(super) fn new(instance: Instance, config: &AdapterConfig) -> Result<Self, LoadError> {
        let key = instance.read_key(config)?;
        Ok(Self {
            base_url: instance.base_url(config),
            lacks: instance.lacks(key.as_deref(), config),
            calls: config.calls,
            prices: config.prices.clone(),
            key,
            client: caller::client().map_err(LoadError::Http)?,
            agent: config.agent.clone(),
            runner: config.runner.clone(),
            instance,
        })
    }

    async fn work(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> AdapterEnd {
        if let Some(lacks) = &self.lacks {
            return AdapterEnd::Failed(Failure::new(FailureKind::AdapterUnavailable, lacks));
        }
        let mut session = match self.session(input, reporter, stop).await {
            Ok(session) => session,
            Err(failure) => return AdapterEnd::Failed(failure),
        };
        match session.work().await {
            Ok(summary) => AdapterEnd::Done { summary },
            Err(Halt::Failed(failure)) => AdapterEnd::Failed(failure),
            Err(Halt::Stopped) => AdapterEnd::Stopped,
        }
    }

    async fn session(
        &self,
        input: SessionInput,
        reporter: Reporter,
        stop: CancellationToken,
    ) -> Result<Session, Failure> {
        let wire = self.instance.provider.wire;
        let asked = self.asked(&input, &reporter).await?;
        let tools = self.tools(&input).await?;
        let conversation = match input.beginning {
            Beginning::New => Conversation::new(wire, &input.prompt.own),
            Beginning::GoOn {
                said,
                note,
                instruction,
            } => Conversation::resumed(wire, &said, &next_message(&note, &instruction)).map_err(|error| {
                let problem = format!("the conversation of the checkpoint cannot be read: {error}");
                local_failure(FailureKind::CorruptedState, problem)
            })?,
        };
        let mut system = vec![system(input.folder.as_ref())];
        system.extend(Some(input.prompt.shared).filter(|shared| !shared.trim().is_empty()));
        let tool_definitions = (wire.tools)(&tools::definitions());
        let said = [tool_definitions.get()]
            .into_iter()
            .chain(system.iter().map(String::as_str));
        let caller = Caller {
            calls: input.calls,
            prefix: Some(shared_prefix(wire.name, said)),
            ..self.caller(&asked.model, input.limits.idle)
        };
        Ok(Session {
            name: self.instance.name.clone(),
            task: input.task.to_string(),
            max_turns: self.instance.settings.max_turns.unwrap_or(TURNS),
            tool_definitions,
            system,
            conversation,
            steps: input.steps,
            caller,
            asked,
            pauses: Pauses::default(),
            tools,
            reporter,
            control: Control {
                stop,
                frozen: input.frozen,
            },
            useless: 0,
            circles: circles::Circles::default(),
        })
    }

    fn caller(&self, model: &str, idle: Duration) -> Caller {
        let provider = self.instance.provider;
        let own = (provider.wire.headers)(self.key.as_deref());
        // A header of the settings replaces the dialect's own: sent twice, servers refuse it or read either.
        let is_set = |name: &str| {
            let mut set = self.instance.settings.headers.keys();
            set.any(|key| key.as_str().eq_ignore_ascii_case(name))
        };
        let own = own.into_iter().filter(|(name, _)| !is_set(name));
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let set = self.instance.settings.headers.iter();
        let set = set.map(|(name, value)| (name.as_str().to_owned(), value.as_str().to_owned()));
        Caller {
            client: self.client.clone(),
            wire: provider.wire,
            name: self.instance.name.clone(),
            url: format!("{}{}", self.base_url, (provider.wire.path)(model)),
            headers: own.chain(set).collect(),
            free: self
                .instance
                .settings
                .free
                .unwrap_or_else(|| (provider.free)(&self.base_url, model)),
            seller: self.instance.seller(&self.base_url),
            model: model.to_owned(),
            context: self.instance.settings.context,
            before: None,
            idle,
            rules: self.calls,
            calls: Calls::Unlimited,
            account: AccountName::of_key(provider.name, &self.base_url, self.key.as_deref()),
            prefix: None,
            was_cut: false,
            warned: None,
        }
    }

    /// The parameters of the session's model calls. Reports settings that the model does not
    /// support.
    async fn asked(&self, input: &SessionInput, reporter: &Reporter) -> Result<Asked, Failure> {
        let (name, settings) = (&self.instance.name, &self.instance.settings);
        let usual = settings
            .models
            .as_ref()
            .map(Models::first)
            .or(self.instance.provider.model);
        let Some(model) = input.model.as_deref().or(usual) else {
            let text =
                format!("{name} has no model of its own: name one, as {name}:MODEL, or in [adapter.{name}] models");
            return Err(Failure::new(FailureKind::InvalidRequest, text));
        };
        let (asked, left_out) = asked::asked(
            name.as_str(),
            model.to_owned(),
            settings,
            &self.prices,
            local_time().now,
        )?;
        if let Some(warning) = left_out {
            // A closed reporter stops the session before its first call.
            let _closed = reporter.event(EventBody::Warning(warning)).await;
        }
        Ok(asked)
    }

    /// The tools of a session, and its folders.
    async fn tools(&self, input: &SessionInput) -> Result<Toolbox, Failure> {
        let places = input.places.clone();
        let env = Environment::of(&EnvironmentParts {
            agent: &self.agent,
            places: &places,
            manifest: None,
            root: false,
            task: Some(&input.variables),
            path: None,
            work: Some(&input.work_names()),
        });
        let runner = self.runner.within(input.room.as_ref());
        let (worktree, scratch) = (input.worktree.clone(), input.scratch.clone());
        let (within, turns) = (input.folder.clone(), input.turns.clone());
        let tools = tokio::task::spawn_blocking(move || {
            places.make()?;
            let folder = match worktree {
                Some(worktree) => worktree,
                None => {
                    let work = scratch.join("work");
                    std::fs::create_dir_all(&work)?;
                    work
                }
            };
            Toolbox::open(&folder, within.as_ref(), env, runner, turns)
        });
        let opened = tools.await.map_err(std::io::Error::other).and_then(|opened| opened);
        opened.map_err(|error| {
            let problem = format!("cannot open the session's folders: {error}");
            local_failure(FailureKind::CorruptedState, problem)
        })
    }
}

impl ApiAdapter {
    /// Asks whether its server runs, where that is not the provider's business.
    async fn look(&self) -> Result<(), String> {
        let probe = self.instance.provider.probe;
        let Some(path) = probe.filter(|_| self.lacks.is_none()) else {
            return Ok(());
        };
        let (url, wire) = (&self.base_url, self.instance.provider.wire);
        let request = self.client.get(format!("{url}{path}")).timeout(PROBE).send();
        // A refusal, for a key that it wants, is an answer too.
        let Err(error) = request.await else {
            return Ok(());
        };
        let failure = (wire.advice)(caller::network(&error), "");
        Err(format!("no answer at {url}: {}", failure.message))
    }
}

impl Adapter for ApiAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: self.instance.name.clone(),
            version: String::new(),
            unavailable: self.lacks.clone(),
            resumes: self.resumes(),
            access: None,
            slots: self.instance.settings.slots.unwrap_or(SLOTS),
        }
    }

    fn secrets(&self) -> Vec<Secret> {
        let name = self.instance.key_variable().unwrap_or("the key of an adapter");
        let key = self.key.iter().map(|key| Secret::new(name, key));
        // People put keys of gateways there, against all advice.
        let headers = self.instance.settings.headers.iter();
        let headers = headers.map(|(name, value)| Secret::new(name.as_str(), value.as_str()));
        key.chain(headers).chain(self.agent.proxy_secrets()).collect()
    }

    fn asks_for_calls(&self) -> bool {
        true
    }

    fn resumes(&self) -> Resumes {
        Resumes::Position
    }

    fn tells_steps(&self) -> bool {
        true
    }

    fn answers(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.look())
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(self.work(input, reporter, stop))
    }
}

#[cfg(test)]
pub(crate) mod tests;
