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
mod halt;
mod turn;
mod wire;
mod turns;
pub(super) mod messages;
mod caller;
mod session;

pub(in crate::adapters) use caller::client;

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::fleet::AdapterInfo;
use kage_core::folder::Folder;
use kage_core::id::AdapterName;
use kage_core::price::PriceTable;
use tokio_util::sync::CancellationToken;

use super::settings::{ApiSettings, BaseUrl, Models};
use super::{AdapterConfig, LoadError, local_time};
use crate::adapters::port::{Adapter, AdapterEnd, Beginning, Reporter, Resumes, SessionInput, next_message};
use crate::adapters::tools::{self, Toolbox};
use crate::process::{AgentEnvironment, Control, Environment, EnvironmentParts, Runner, Secret};
use asked::Asked;
use caller::Caller;
use halt::Halt;
use session::Session;
use turns::Conversation;
use wire::Wire;

/// A provider with a built-in adapter.
#[derive(Debug)]
pub(super) struct Provider {
    /// The adapter's name in tasks.
    pub(super) name: &'static str,
    /// The default address of requests.
    base_url: &'static str,
    /// The environment variable that replaces the default address.
    base_url_variable: &'static str,
    key_variable: &'static str,
    /// The model when the task names none.
    model: &'static str,
    wire: &'static Wire,
}

impl Provider {
    /// The variables that its adapter reads.
    pub(super) const fn variables(&self) -> [&'static str; 2] {
        [self.key_variable, self.base_url_variable]
    }
}

pub(super) static PROVIDERS: &[Provider] = &[messages::CLAUDE];

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

/// The default maximum of turns of an attempt.
const TURNS: NonZeroU32 = const { NonZeroU32::new(200).unwrap() };

#[derive(Debug)]
pub(super) struct ApiAdapter {
    provider: &'static Provider,
    settings: ApiSettings,
    calls: CallRules,
    prices: PriceTable,
    base_url: String,
    key: Option<String>,
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
    pub(super) fn new(provider: &'static Provider, config: &AdapterConfig) -> Result<Self, LoadError> {
        let settings = config.settings.of(provider.name);
        let key = match (config.agent.text(provider.key_variable), &settings.key_file) {
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
        let set = settings.base_url.as_ref().map(BaseUrl::as_str);
        let base_url = set
            .or_else(|| config.agent.text(provider.base_url_variable))
            .unwrap_or(provider.base_url);
        Ok(Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            provider,
            settings,
            calls: config.calls,
            prices: config.prices.clone(),
            key,
            client: caller::client().map_err(LoadError::Http)?,
            agent: config.agent.clone(),
            runner: config.runner.clone(),
        })
    }

    fn no_key(&self) -> String {
        let variable = self.provider.key_variable;
        let name = self.provider.name;
        format!(
            "set {variable} in the shell of `kage run` or, on another machine, where its agent starts; or set \
             [adapter.{name}] key_file"
        )
    }

    async fn work(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> AdapterEnd {
        let Some(key) = &self.key else {
            return AdapterEnd::Failed(Failure::new(FailureKind::AdapterUnavailable, self.no_key()));
        };
        let mut session = match self.session(key, input, reporter, stop).await {
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
        key: &str,
        input: SessionInput,
        reporter: Reporter,
        stop: CancellationToken,
    ) -> Result<Session, Failure> {
        let wire = self.provider.wire;
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
        Ok(Session {
            name: self.provider.name,
            asked,
            max_turns: self.settings.max_turns.unwrap_or(TURNS),
            tool_definitions: (wire.tools)(&tools::definitions()),
            system,
            conversation,
            steps: input.steps,
            caller: Caller {
                client: self.client.clone(),
                wire,
                url: format!("{}{}", self.base_url, wire.path),
                key: key.to_owned(),
                idle: input.limits.idle,
                rules: self.calls,
            },
            tools,
            reporter,
            control: Control {
                stop,
                frozen: input.frozen,
            },
            useless: 0,
        })
    }

    /// The parameters of the session's model calls. Reports settings that the model does not
    /// support.
    async fn asked(&self, input: &SessionInput, reporter: &Reporter) -> Result<Asked, Failure> {
        let name = self.provider.name;
        let usual = self.settings.models.as_ref().map_or(self.provider.model, Models::first);
        let model = input.model.clone().unwrap_or_else(|| usual.to_owned());
        let (asked, left_out) = asked::asked(name, model, &self.settings, &self.prices, local_time().now)?;
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

impl Adapter for ApiAdapter {
    fn info(&self) -> AdapterInfo {
        let name = self.provider.name.parse::<AdapterName>();
        AdapterInfo {
            name: name.expect("the name is a literal that fits"),
            version: String::new(),
            unavailable: self.key.is_none().then(|| self.no_key()),
            resumes: self.resumes(),
            access: None,
            slots: self.settings.slots.unwrap_or(SLOTS),
        }
    }

    fn secrets(&self) -> Vec<Secret> {
        let key = self.key.iter().map(|key| Secret::new(self.provider.key_variable, key));
        key.chain(self.agent.proxy_secrets()).collect()
    }

    fn resumes(&self) -> Resumes {
        Resumes::Position
    }

    fn tells_steps(&self) -> bool {
        true
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(self.work(input, reporter, stop))
    }
}

#[cfg(test)]
pub(crate) mod tests;
