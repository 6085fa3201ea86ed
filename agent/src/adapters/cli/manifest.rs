//! Manifests: how to run a program as an adapter, written as TOML and compiled into nothing.
//!
//! It owns their shape, their checks and filling in placeholders; running is `cli`'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::id::AdapterName;
use kage_core::network::{AllowRule, Destination};
use serde::{Deserialize, Deserializer, de};
use url::Url;

use super::formats::FormatName;
use crate::adapters::port::Resumes;
use crate::logins::rule::LoginRule;
use crate::process::AgentEnvironment;

pub mod acp;
pub(super) mod files;
mod gateway;
mod placeholders;
mod rules;
mod session;
mod version;

pub use acp::AcpRule;
pub use files::FileRule;
pub use gateway::GatewayRule;
use placeholders::{PLACEHOLDERS, is_known, placeholders};
pub(super) use placeholders::{VARIABLE, fill};
pub use rules::FailureRule;
pub use session::SessionRule;
pub use version::{Version, VersionRule};

/// Texts longer than this, in bytes, are not passed as an argument: Linux allows 128 KiB.
pub const LONG: usize = 100 << 10;

/// A manifest after its checks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Path of the manifest's file.
    #[serde(skip)]
    pub source: PathBuf,
    /// The adapter's name in tasks.
    pub name: AdapterName,
    /// The program: a name to look up in PATH, or a path. May use `{manifest_dir}`.
    pub command: String,
    /// Its arguments. A group is left out whole when one of its placeholders has no value.
    #[serde(default)]
    pub args: Vec<Argument>,
    /// The model when the task names none.
    #[serde(default)]
    pub model: Option<String>,
    /// The format of its output.
    #[serde(default)]
    pub parser: FormatName,
    /// The program as rules for failures name it; without it, that of the format.
    #[serde(default)]
    pub family: Option<String>,
    #[serde(default)]
    pub prompt: PromptRule,
    /// How it gets the context that all sessions of a task share.
    #[serde(default)]
    pub base: BaseRule,
    #[serde(default)]
    pub env: EnvRule,
    /// Folders that have to exist; may contain placeholders.
    #[serde(default)]
    pub folders: Vec<String>,
    /// Files that are written before it starts.
    #[serde(default, rename = "file")]
    pub files: Vec<FileRule>,
    /// Where it counts tokens, when not in its output.
    #[serde(default)]
    pub usage: Option<UsageRule>,
    /// From which points it can resume a session.
    #[serde(default)]
    pub resume: Resumes,
    /// Where it keeps its session; needed for `resume`.
    #[serde(default)]
    pub session: Option<SessionRule>,
    /// How it keeps the login of a person, who needs no key then.
    #[serde(default)]
    pub login: Option<LoginRule>,
    /// Where its provider is, for programs that reach only what is listed.
    #[serde(default)]
    pub network: NetworkRule,
    /// How its calls of models can go through the agent: the first of these that fits a session.
    #[serde(default, rename = "gateway")]
    pub gateways: Vec<GatewayRule>,
    /// How to find its version.
    #[serde(default)]
    pub version: Option<VersionRule>,
    /// Limits that a task may lower, not raise.
    #[serde(default)]
    pub watchdog: Watchdog,
    /// It speaks the Agent Client Protocol, on its standard input and output.
    #[serde(default)]
    pub acp: Option<AcpRule>,
    /// Rules for its exit codes and messages; they come before the built-in table.
    #[serde(default, rename = "failure")]
    pub failures: Vec<FailureRule>,
}

/// An argument, or several that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Argument {
    /// Always there; a placeholder without a value is empty.
    One(String),
    /// Present when all its placeholders have values.
    Group(Vec<String>),
}

/// The ways to hand a text to a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// In an argument, where `{prompt}` or `{base}` stands.
    Arg,
    #[default]
    Stdin,
    /// In a file, whose path is `{prompt_file}` or `{base_file}`.
    File,
}

/// How a program gets the prompt.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptRule {
    #[serde(default)]
    pub pass: Pass,
    /// The way for prompts longer than [`LONG`], when `pass` is an argument.
    #[serde(default)]
    pub long: Pass,
    /// Text that every prompt begins with.
    #[serde(default)]
    pub opening: String,
}

/// How a program gets the shared base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BasePass {
    /// Before the prompt, as one text.
    #[default]
    Prompt,
    /// In an argument, where `{base}` stands; before the prompt when it is too long.
    Arg,
    /// In a file, whose path is `{base_file}`.
    File,
}

/// How a program gets the shared base.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRule {
    #[serde(default)]
    pub pass: BasePass,
}

/// A program's environment, in addition to what every session program gets.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvRule {
    /// Copied from the agent's environment if set there. Overrides `set`.
    #[serde(default)]
    pub inherit: Vec<String>,
    /// Like `inherit`; the values are masked in output.
    #[serde(default)]
    pub secret: Vec<String>,
    /// Like `inherit`; without any of these the adapter cannot be used.
    #[serde(default)]
    pub require: Vec<String>,
    /// Set to these values, which may contain placeholders.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Also set when the agent runs as root.
    #[serde(default)]
    pub as_root: BTreeMap<String, String>,
}

impl EnvRule {
    /// Variables in a text are not secret, and stand in the lists, so that a shell hands them over.
    fn check(&self, text: &str) -> Result<(), String> {
        for name in placeholders(text).filter_map(|name| name.strip_prefix(VARIABLE)) {
            let is_in = |list: &[String]| list.iter().any(|listed| listed == name);
            if is_in(&self.secret) {
                return Err(format!(
                    "{{env:{name}}} is secret: other users can read arguments and files"
                ));
            }
            if !is_in(&self.inherit) && !is_in(&self.require) {
                return Err(format!("{{env:{name}}} needs {name:?} in [env] inherit"));
            }
        }
        Ok(())
    }
}

/// A file in which a program counts tokens; its format reads it when the program has ended.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRule {
    /// Its place, below `{home}` or `{scratch}`; `*` is any part of a name that the program chooses.
    pub file: String,
}

/// What a program needs of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRule {
    /// Hosts of its provider, as in `[network] allow`.
    #[serde(default)]
    pub hosts: Vec<AllowRule>,
    /// Variables of the agent's environment with the address of another provider.
    #[serde(default)]
    pub from: Vec<String>,
}

impl NetworkRule {
    /// What the program has to reach, for an agent with this environment.
    #[must_use]
    pub fn provider(&self, agent: &AgentEnvironment) -> Vec<AllowRule> {
        let set = self.from.iter().filter_map(|name| agent.text(name));
        let set = set.filter_map(|address| {
            let url = Url::parse(address).ok()?;
            let (host, port) = (url.host_str()?, url.port_or_known_default()?);
            let provider = Destination::parse(&format!("{host}:{port}"), None).ok()?;
            Some(AllowRule::of_provider(provider))
        });
        self.hosts.iter().cloned().chain(set).collect()
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watchdog {
    #[serde(default, deserialize_with = "seconds")]
    pub timeout_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    pub idle_seconds: Option<Duration>,
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(de::Error::custom("a limit of 0 seconds")),
        seconds => Ok(Some(Duration::from_secs(seconds))),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file or folder cannot be read.
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Invalid TOML, or unknown keys; the source says where.
    #[error("{path} is not a manifest")]
    Toml {
        path: PathBuf,
        /// What is wrong, with line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// It has the right shape and makes no sense.
    #[error("{path}: {problem}")]
    Invalid { path: PathBuf, problem: String },
}

/// Reads every `*.toml` of a folder, sorted by name. A folder that is not there is empty.
///
/// # Errors
/// At the first file that is not a manifest.
pub fn read_folder(folder: &Path) -> Result<Vec<Manifest>, ManifestError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ManifestError::Read { path, source }
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(folder)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
            Manifest::parse(&text, &path)
        })
        .collect()
}

impl Manifest {
    /// The program's name or path, with the manifest's folder filled in.
    #[must_use]
    pub fn program(&self) -> String {
        let dir = self.source.parent().unwrap_or(Path::new("")).display().to_string();
        fill(&self.command, &BTreeMap::from([("manifest_dir", dir)]))
    }

    /// The manifest of an agent that speaks ACP and about which nothing is known but its command and the variable
    /// with its key.
    ///
    /// # Errors
    /// When the command has an unknown placeholder.
    pub(in crate::adapters) fn of_agent(
        name: &str,
        command: &[String],
        key: Option<&str>,
    ) -> Result<Self, ManifestError> {
        let texts = |list: &[String]| toml::Value::from(list.to_vec());
        let (program, args) = command
            .split_first()
            .map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
        let mut manifest = toml::Table::new();
        manifest.insert("name".to_owned(), name.into());
        manifest.insert("command".to_owned(), program.into());
        manifest.insert("args".to_owned(), texts(args));
        manifest.insert("acp".to_owned(), toml::Table::new().into());
        if let Some(key) = key {
            let key = texts(&[key.to_owned()]);
            let env = [("require".to_owned(), key.clone()), ("secret".to_owned(), key)];
            manifest.insert("env".to_owned(), toml::Table::from_iter(env).into());
        }
        Self::parse(&manifest.to_string(), Path::new(&format!("[adapter.{name}]")))
    }

    /// Reads a manifest. `source` is where the text came from.
    ///
    /// # Errors
    /// For an unknown key, an unknown placeholder, or a prompt that would not reach the program.
    pub fn parse(text: &str, source: &Path) -> Result<Self, ManifestError> {
        let mut manifest: Self = toml::from_str(text).map_err(|error| ManifestError::Toml {
            path: source.to_owned(),
            source: Box::new(error),
        })?;
        manifest.source = source.to_owned();
        manifest.check().map_err(|problem| ManifestError::Invalid {
            path: source.to_owned(),
            problem,
        })?;
        Ok(manifest)
    }

    /// Every text that may contain placeholders.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let args = self.args.iter().flat_map(|argument| match argument {
            Argument::One(one) => std::slice::from_ref(one),
            Argument::Group(group) => group.as_slice(),
        });
        let values = self.env.set.values().chain(self.env.as_root.values());
        let file = self.session.iter().map(|session| &session.file);
        let files = self.files.iter().flat_map(|file| [&file.path, &file.content]);
        let token = self.login.iter().filter_map(|login| login.pass.as_ref()?.file.as_ref());
        args.chain(values)
            .chain(file)
            .chain(token)
            .chain(&self.folders)
            .chain(self.usage.iter().map(|usage| &usage.file))
            .chain(files)
            .map(String::as_str)
            .chain([self.command.as_str()])
    }

    fn check(&self) -> Result<(), String> {
        if self.command.trim().is_empty() {
            return Err("`command` is empty".to_owned());
        }
        for text in self.texts() {
            if let Some(unknown) = placeholders(text).find(|name| !is_known(name)) {
                return Err(format!(
                    "{{{unknown}}} is not a placeholder; there are {}, env:NAME",
                    PLACEHOLDERS.join(", ")
                ));
            }
            self.env.check(text)?;
        }
        let uses = |name: &str| self.texts().any(|text| placeholders(text).any(|found| found == name));
        let needs = [
            (self.prompt.pass == Pass::Arg, "prompt", "prompt.pass = \"arg\""),
            (self.prompt.pass == Pass::File, "prompt_file", "prompt.pass = \"file\""),
            (
                self.base.pass == BasePass::Arg && !uses("base_json"),
                "base",
                "base.pass = \"arg\"",
            ),
            (self.base.pass == BasePass::File, "base_file", "base.pass = \"file\""),
        ];
        for (needed, name, because) in needs {
            if needed && !uses(name) {
                return Err(format!("{because} needs {{{name}}} somewhere in `args`"));
            }
        }
        if self.prompt.pass == Pass::Arg {
            match self.prompt.long {
                Pass::Arg => {
                    return Err(
                        "prompt.long must be \"stdin\" or \"file\": long prompts do not fit an argument".to_owned(),
                    );
                }
                Pass::File if !uses("prompt_file") => {
                    return Err("prompt.long = \"file\" needs {prompt_file} somewhere in `args`".to_owned());
                }
                Pass::File | Pass::Stdin => {}
            }
        }
        // An agent that speaks ACP is asked for it.
        let asks = uses("old_session") || self.acp.is_some();
        if self.resume != Resumes::None && (self.session.is_none() || !asks) {
            return Err("`resume` needs [session], and {old_session} somewhere in `args`".to_owned());
        }
        if let Some(session) = &self.session {
            session.check()?;
        }
        if let Some(login) = &self.login {
            login.check()?;
        }
        if self.acp.is_some() && !self.gateways.is_empty() {
            // It would be started with the real key, and its calls would pass no gateway.
            return Err("[acp] and [[gateway]] do not go together: an agent that speaks ACP has no gateway".to_owned());
        }
        for gateway in &self.gateways {
            gateway.check(&self.env)?;
        }
        let written = self.files.iter().map(|file| &file.path);
        let counted = self.usage.iter().map(|usage| &usage.file);
        files::check(self.folders.iter().chain(written).chain(counted))?;
        self.failures.iter().try_for_each(FailureRule::check)
    }

    /// The program as rules for failures name it.
    #[must_use]
    pub fn family(&self) -> &str {
        self.family.as_deref().unwrap_or(self.parser.0.family)
    }

    /// Whether the model goes along with the command, in an argument or a file.
    pub(in crate::adapters) fn names_the_model(&self) -> bool {
        let mut named = self.texts().flat_map(placeholders);
        named.any(|name| matches!(name, "model" | "model_name"))
    }

    /// Every agent's variable that a placeholder stands for.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        let named = self.texts().flat_map(placeholders);
        named.filter(|name| name.starts_with(VARIABLE))
    }

    /// The arguments with their placeholders filled in.
    #[must_use]
    pub fn arguments(&self, values: &BTreeMap<&str, String>) -> Vec<String> {
        let mut args = Vec::new();
        for argument in &self.args {
            match argument {
                Argument::One(one) => args.push(fill(one, values)),
                Argument::Group(group) => {
                    if group.iter().all(|text| is_complete(text, values)) {
                        args.extend(group.iter().map(|text| fill(text, values)));
                    }
                }
            }
        }
        args
    }
}

/// Whether every placeholder of a text has a value.
fn is_complete(text: &str, values: &BTreeMap<&str, String>) -> bool {
    placeholders(text).all(|name| values.contains_key(name))
}

#[cfg(test)]
mod tests;
