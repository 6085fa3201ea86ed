//! What the tools can be told. Each request is the command that a person would have typed: it has the same
//! defaults, is refused for the same reasons, and answers with the same JSON.

use std::ffi::OsString;

use rmcp::schemars::JsonSchema;
use serde::Deserialize;

use crate::exit::Refusal;

/// A command line that grows.
#[derive(Debug)]
struct Words(Vec<OsString>);

impl Words {
    fn new(command: &[&str]) -> Self {
        Self(command.iter().map(OsString::from).collect())
    }

    /// A flag with its value, which may begin with a dash.
    fn flag(mut self, name: &str, value: Option<&(impl ToString + ?Sized)>) -> Self {
        self.0
            .extend(value.map(|value| format!("--{name}={}", value.to_string()).into()));
        self
    }

    fn flags(self, name: &str, values: &[String]) -> Self {
        values.iter().fold(self, |words, value| words.flag(name, Some(value)))
    }

    fn switch(mut self, name: &str, on: bool) -> Self {
        self.0.extend(on.then(|| format!("--{name}").into()));
        self
    }

    /// The words that are no flags; the last ones.
    fn then<'a>(mut self, words: impl IntoIterator<Item = &'a String>) -> Vec<OsString> {
        self.0.push("--".into());
        self.0.extend(words.into_iter().map(OsString::from));
        self.0
    }
}

/// Words that a command would read from standard input, which here belongs to the client.
fn said<'a>(what: &str, words: &'a String) -> Result<&'a String, Refusal> {
    match words.trim() {
        "" | "-" => Err(Refusal::usage(format!("`{what}` must say something"))),
        _ => Ok(words),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// What is to be done, in words. Sessions see the repository and this; they do not see your conversation.
    prompt: String,
    /// The repository, or the folder in it to work in [default: the folder in which this server was started].
    repo: Option<String>,
    /// The adapters that compete, with a model if need be: `claude-code`, `codex`, `claude-api:claude-opus-5-5`.
    /// [default: those of kage.toml]
    #[serde(default)]
    with: Vec<String>,
    /// How many sessions of each [default: 1].
    repeat: Option<u32>,
    /// A shell command that passes when a result works, such as `cargo test`; it runs in a clean checkout of
    /// each result [default: that of kage.toml].
    verify: Option<String>,
    /// A shell command that prepares the checkout for verify, such as `npm ci`.
    setup: Option<String>,
    /// Paths that results cannot change for verify, such as `tests/**`.
    #[serde(default)]
    protect: Vec<String>,
    /// The longest time of each session: `90s`, `30m`, `1h30m`.
    timeout: Option<String>,
    /// The most that the task may cost, in US dollars: `2.50`.
    budget: Option<String>,
    /// Stop the other sessions when so many results are verified.
    first_verified: Option<u32>,
    /// Instead of `with`: adapters to try one after the other, in this order, until a result is verified.
    #[serde(default)]
    ladder: Vec<String>,
}

impl Run {
    pub(super) fn command(&self) -> Result<Vec<OsString>, Refusal> {
        let prompt = said("prompt", &self.prompt)?;
        Ok(Words::new(&["run", "--detach"])
            .flag("repo", self.repo.as_ref())
            .flags("with", &self.with)
            .flag("repeat", self.repeat.as_ref())
            .flag("verify", self.verify.as_ref())
            .flag("setup", self.setup.as_ref())
            .flags("protect", &self.protect)
            .flag("timeout", self.timeout.as_ref())
            .flag("budget", self.budget.as_ref())
            .flag("first-verified", self.first_verified.as_ref())
            .flags("ladder", &self.ladder)
            .then([prompt]))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    /// The most tasks, newest first [default: 20].
    limit: Option<u32>,
    /// Only tasks in these states: `running`, `succeeded`, `failed`, `cancelled`.
    #[serde(default)]
    state: Vec<String>,
    /// Only tasks of this repository: a folder, or a name.
    repo: Option<String>,
    /// Only tasks since then: `90m`, `1d`, or a day such as `2026-11-30`.
    since: Option<String>,
    /// Only tasks that have all these words in their prompt or their names.
    search: Option<String>,
    /// Only tasks that you created.
    #[serde(default)]
    mine: bool,
}

impl List {
    pub(super) fn command(&self) -> Vec<OsString> {
        Words::new(&["ls"])
            .flag("limit", self.limit.as_ref())
            .flags("state", &self.state)
            .flag("repo", self.repo.as_ref())
            .flag("since", self.since.as_ref())
            .flag("search", self.search.as_ref())
            .switch("mine", self.mine)
            .then([])
    }
}

/// A task.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct OfTask {
    /// Id of the task, or its first characters [default: your newest of this repository].
    task: Option<String>,
}

impl OfTask {
    pub(super) fn command(&self, command: &str) -> Vec<OsString> {
        Words::new(&[command]).then(&self.task)
    }
}

/// The longest time that a call of `wait` takes: clients give up calls, and some of them after a minute.
const WAIT_SECONDS: u32 = 45;

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// Id of the task, or its first characters [default: your newest of this repository].
    pub(super) task: Option<String>,
    /// How long to wait at most; the task goes on after it, and `wait` can be called again.
    #[serde(default = "wait_seconds")]
    #[schemars(range(min = 0, max = 86_400))]
    pub(super) seconds: u32,
}

const fn wait_seconds() -> u32 {
    WAIT_SECONDS
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct Diff {
    /// Id of the task, or its first characters [default: your newest of this repository].
    task: Option<String>,
    /// Which session [default: the winner].
    session: Option<String>,
    /// Compare with the result of this session instead of with the base.
    from_session: Option<String>,
    /// Only how many lines of which files, instead of the patch.
    #[serde(default)]
    stat: bool,
}

impl Diff {
    pub(super) fn command(&self) -> Result<Vec<OsString>, Refusal> {
        let words = Words::new(&["diff"]).switch("stat", self.stat);
        match (&self.from_session, &self.session) {
            (None, session) => Ok(words.flag("session", session.as_ref()).then(&self.task)),
            (Some(from), Some(session)) => Ok(words.then(self.task.iter().chain([from, session]))),
            (Some(_), None) => Err(Refusal::usage("`from_session` needs the other one in `session`")),
        }
    }
}

/// How a result is put into the repository.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "snake_case")]
enum Way {
    /// Into the files of the working tree, without a commit.
    #[default]
    Apply,
    /// As a commit on the present branch.
    Merge,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct DryRun {
    /// Id of the task, or its first characters [default: your newest of this repository].
    task: Option<String>,
    /// Which session [default: the winner].
    session: Option<String>,
    /// The repository [default: the folder in which this server was started].
    repo: Option<String>,
    /// Whether it would be applied to the files or merged.
    #[serde(default)]
    way: Way,
    /// Also a result that was not verified.
    #[serde(default)]
    unverified: bool,
    /// Also a result whose risk is high.
    #[serde(default)]
    accept_risk: bool,
}

impl DryRun {
    pub(super) fn command(&self) -> Vec<OsString> {
        let command = match self.way {
            Way::Apply => "apply",
            Way::Merge => "merge",
        };
        Words::new(&[command, "--dry-run"])
            .flag("session", self.session.as_ref())
            .flag("repo", self.repo.as_ref())
            .switch("unverified", self.unverified)
            .switch("accept-risk", self.accept_risk)
            .then(&self.task)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(deny_unknown_fields)]
pub(super) struct Explain {
    /// The words of an error, as a program printed them.
    error: String,
    /// The adapter whose program printed it; it may have rules of its own.
    adapter: Option<String>,
}

impl Explain {
    pub(super) fn command(&self) -> Result<Vec<OsString>, Refusal> {
        let error = said("error", &self.error)?;
        // Words that could be the id of a task are an error here.
        let error = format!(" {error}");
        Ok(Words::new(&["explain"])
            .flag("adapter", self.adapter.as_ref())
            .then([&error]))
    }
}
