//! The environment of programs as a value: which variables a program gets, and where each comes from.
//! It is put together in one place ([`Environment::of`]), from data alone, and set in one place
//! ([`set`]); no program inherits the agent's environment whole.
//!
//! A later source wins over an earlier one:
//!
//! ```text
//!   the agent's, by the list ◀ its home's tools ◀ of the task ◀ places ◀ set ◀ set for root ◀ the agent's, named ◀ the login ◀ PATH ◀ the work ◀ the door
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::{Digest, SessionId, TaskId};

mod door;
mod own;

pub use own::AgentEnvironment;
use own::{ALLOWED, TERM};

use crate::process::Secret;

/// Where a variable of a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VariableSource {
    /// The agent's environment, by the list of what every program gets.
    Agent,
    /// A tool's folder in the agent's home.
    AgentHome,
    /// What the task asks for.
    Task,
    /// The same for every program.
    Constant,
    /// A folder of the attempt.
    Places,
    /// A value that the adapter's manifest sets.
    Manifest,
    /// A value that the manifest sets where the agent runs as root.
    ManifestAsRoot,
    /// The agent's environment, because the manifest names it; a key, for example.
    ManifestNamed,
    /// The login of a person.
    Login,
    /// The programs that verify may use.
    Programs,
    /// What the attempt works on.
    Work,
    /// Where the attempt's door to the network is.
    Door,
}

/// A variable's value, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    pub value: OsString,
    pub source: VariableSource,
}

/// The folders of an attempt in which its programs may leave what they like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// HOME.
    pub home: PathBuf,
    /// TMPDIR.
    pub tmp: PathBuf,
}

impl Places {
    /// The places in an attempt's scratch folder.
    #[must_use]
    pub fn within(scratch: &Path) -> Self {
        Self {
            home: scratch.join("home"),
            tmp: scratch.join("tmp"),
        }
    }

    /// Makes the folders. Blocks.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn make(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.home)?;
        std::fs::create_dir_all(&self.tmp)
    }
}

/// What an adapter's manifest says of its program's environment, with every placeholder filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestVariables {
    pub set: BTreeMap<String, String>,
    /// Values to set where the agent runs as root.
    pub as_root: BTreeMap<String, String>,
    /// Variables of the agent to hand on.
    pub named: Vec<String>,
    /// What lets the program in by the login of a person.
    pub login: Option<LoginVariable>,
}

/// A variable that lets a program in: an access token, or the folder of a login.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginVariable {
    pub name: String,
    pub value: OsString,
}

/// Without the value.
impl std::fmt::Debug for LoginVariable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginVariable")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a task adds to the environment of its programs, with the values that they get here.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TaskVariables {
    /// Variables that the task has with their values.
    pub set: BTreeMap<String, String>,
    /// Variables that the task has by name: secrets, for all that is known.
    pub passed: BTreeMap<String, OsString>,
    /// The names that have no value here.
    pub missing: Vec<String>,
}

impl TaskVariables {
    /// The values that may not be shown.
    #[must_use]
    pub fn secrets(&self) -> Vec<Secret> {
        let passed = self.passed.iter();
        passed
            .map(|(name, value)| Secret::new(name, value.to_string_lossy()))
            .collect()
    }
}

/// Without values: they are nobody's to read.
impl std::fmt::Debug for TaskVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (set, passed) = (self.set.keys(), self.passed.keys());
        let names: Vec<_> = set.chain(passed).collect();
        f.debug_struct("TaskVariables")
            .field("names", &names)
            .field("missing", &self.missing)
            .finish()
    }
}

/// What a program is told that it works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkNames {
    pub task: TaskId,
    /// The session whose program, or result, it is.
    pub session: SessionId,
    /// The file with the base context, for a session's programs.
    pub base_context: Option<PathBuf>,
}

/// Everything that an environment follows from.
#[derive(Debug, Clone, Copy)]
pub struct EnvironmentParts<'a> {
    pub agent: &'a AgentEnvironment,
    pub places: &'a Places,
    /// What the adapter wants, for a program of an adapter.
    pub manifest: Option<&'a ManifestVariables>,
    /// True where the agent runs as root.
    pub root: bool,
    /// What the task asks for; `None` for a program of no task.
    pub task: Option<&'a TaskVariables>,
    /// Another PATH than the agent's.
    pub path: Option<&'a OsStr>,
    /// The attempt's work; `None` for a program that is only asked what it is.
    pub work: Option<&'a WorkNames>,
}

/// The environment of a program: exactly these variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, Variable>);

impl Environment {
    /// The environment that follows from `parts`, and from nothing else.
    #[must_use]
    pub fn of(parts: &EnvironmentParts<'_>) -> Self {
        let agent = parts.agent;
        let mut all = Self::default();
        all.hand_on(VariableSource::Agent, agent, ALLOWED.iter().copied());
        for (name, folder) in agent.tool_folders() {
            all.0.entry(name.into()).or_insert_with(|| Variable {
                value: folder.into(),
                source: VariableSource::AgentHome,
            });
        }
        if let Some(task) = parts.task {
            for (name, value) in &task.set {
                all.set(VariableSource::Task, name, value);
            }
            for (name, value) in &task.passed {
                all.set(VariableSource::Task, name, value);
            }
        }
        all.set(VariableSource::Places, "HOME", &parts.places.home);
        all.set(VariableSource::Places, "TMPDIR", &parts.places.tmp);
        all.set(VariableSource::Constant, TERM.0, TERM.1);
        if let Some(manifest) = parts.manifest {
            for (name, value) in &manifest.set {
                all.set(VariableSource::Manifest, name, value);
            }
            for (name, value) in manifest.as_root.iter().filter(|_| parts.root) {
                all.set(VariableSource::ManifestAsRoot, name, value);
            }
            let named = manifest.named.iter().map(String::as_str);
            all.hand_on(VariableSource::ManifestNamed, agent, named);
            if let Some(LoginVariable { name, value }) = &manifest.login {
                all.set(VariableSource::Login, name, value);
            }
        }
        if let Some(path) = parts.path {
            all.set(VariableSource::Programs, "PATH", path);
        }
        if let Some(work) = parts.work {
            all.set(VariableSource::Work, "KAGE_TASK", work.task.to_string());
            all.set(VariableSource::Work, "KAGE_SESSION", work.session.to_string());
            if let Some(context) = &work.base_context {
                all.set(VariableSource::Work, "KAGE_BASE_CONTEXT", context);
            }
        }
        all
    }

    /// The same for programs that have no network of their own, and a door at this port of their loopback
    /// address. It comes before everything else: without it no program reaches anything.
    #[must_use]
    pub fn behind_door(mut self, port: u16) -> Self {
        for (name, value, follows) in door::variables(port) {
            let mut all = self.get(name).filter(|_| follows).map_or_else(OsString::new, |before| {
                let mut before = before.value.clone();
                before.push(" ");
                before
            });
            all.push(value);
            self.set(VariableSource::Door, name, all);
        }
        self
    }

    /// The same for programs that have no network: no proxy is of use to them, and its address may have a
    /// password in it.
    #[must_use]
    pub fn without_proxies(mut self) -> Self {
        for name in door::PROXIES {
            self.0.remove(OsStr::new(name));
        }
        self
    }

    /// Adds those of the named variables that the agent has.
    fn hand_on<'n>(
        &mut self,
        source: VariableSource,
        agent: &AgentEnvironment,
        names: impl IntoIterator<Item = &'n str>,
    ) {
        for name in names {
            if let Some(value) = agent.get(name) {
                self.set(source, name, value);
            }
        }
    }

    fn set(&mut self, source: VariableSource, name: impl Into<OsString>, value: impl AsRef<OsStr>) {
        let value = value.as_ref().to_owned();
        self.0.insert(name.into(), Variable { value, source });
    }

    /// The variable of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Variable> {
        self.0.get(OsStr::new(name))
    }

    /// Every variable, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &Variable)> {
        self.0.iter().map(|(name, variable)| (name.as_os_str(), variable))
    }

    /// Names and values.
    pub fn pairs(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.iter().map(|(name, variable)| (name, variable.value.as_os_str()))
    }

    /// A digest of what an attempt's programs have in common with those of other attempts at this
    /// agent: the folders and names of the attempt itself do not count, and what its task asks for
    /// neither. Values are in it only as a
    /// part of the digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        let common = self.iter().filter(|(_, variable)| match variable.source {
            VariableSource::Places | VariableSource::Task | VariableSource::Work | VariableSource::Login => false,
            VariableSource::Agent
            | VariableSource::AgentHome
            | VariableSource::Constant
            | VariableSource::Manifest
            | VariableSource::ManifestAsRoot
            | VariableSource::ManifestNamed
            | VariableSource::Programs
            | VariableSource::Door => true,
        });
        for (name, variable) in common {
            // No variable has a zero byte in it.
            for part in [name, variable.value.as_os_str()] {
                bytes.extend_from_slice(part.as_bytes());
                bytes.push(0);
            }
        }
        Digest::of(&bytes)
    }
}

/// Variables that are the same for every program, for programs outside of attempts.
impl<N: Into<OsString>, V: AsRef<OsStr>> FromIterator<(N, V)> for Environment {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(variables: T) -> Self {
        let mut all = Self::default();
        for (name, value) in variables {
            all.set(VariableSource::Constant, name, value);
        }
        all
    }
}

/// Gives a program these variables and no others.
pub(super) fn set<N: AsRef<OsStr>, V: AsRef<OsStr>>(
    command: &mut std::process::Command,
    variables: impl IntoIterator<Item = (N, V)>,
) {
    command.env_clear().envs(variables);
}

#[cfg(test)]
mod tests;
