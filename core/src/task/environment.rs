//! What the programs of a task find around them besides what every program of an agent gets: names
//! of variables to hand on, variables to set, and files of the home folder. Values that are handed
//! on are never a part of a task: a machine looks them up when a program starts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Oid};

/// The most bytes of all names, values and paths of a task's environment together.
pub const MAX_ENVIRONMENT_BYTES: usize = 64 << 10;

/// The environment that a task's sessions, setup and verify get.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskEnvironment {
    /// Variables whose values are handed on from the machine of the program, or from the person's
    /// shell where that is the machine.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub pass: BTreeSet<String>,
    /// Variables with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Files of the home folder that are copied into the HOME of programs, as relative paths.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub home: BTreeSet<String>,
    /// The commit with the ignored files that are put into every worktree; the coordinator's repository
    /// has it as it has bases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Oid>,
    /// Under which name the client left the values of `pass` for the agent of its own machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handed: Option<Digest>,
}

/// Why a task cannot have an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnvironment {
    /// No shell could set it.
    #[error("{0:?} is not a name of a variable: letters, digits and `_`, and no digit first")]
    NotAName(String),
    /// Sessions get the keys of providers from their adapter, and no other program gets any.
    #[error(
        "{0} is of a model provider and cannot be in a task's environment: an agent gives it to the adapter that needs \
         it; set it where the agent starts, or in its settings"
    )]
    Provider(String),
    /// It decides which programs run, where they keep files, or what they are told of their work.
    #[error("{0} cannot be in a task's environment: it is set for every program, or decides what runs in its place")]
    Control(String),
    /// Both a value and the name alone.
    #[error("{0} is both passed and set; decide for one")]
    Twice(String),
    /// A value no program can get.
    #[error("the value of {0} has a zero byte")]
    ZeroByte(String),
    /// It would be somewhere else than in the home folder.
    #[error("{0:?} is not a path within the home folder: name a file below it, without `..` and without a leading `/`")]
    NotBelowHome(String),
    /// Copied into every session, it would be in the hands of every program.
    #[error("{0:?} holds logins or keys, and is not copied into the home folder of sessions")]
    Login(String),
}

/// How names of variables begin that adapters read keys, logins and addresses from.
const PROVIDERS: &[&str] = &[
    "ANTHROPIC_",
    "CLAUDE_",
    "OPENAI_",
    "CODEX_",
    "GEMINI_",
    "GOOGLE_GEMINI_",
    "GOOGLE_API_KEY",
    "OPENROUTER_",
    "COPILOT_",
    "KIMI_",
    "QWEN_",
    "DASHSCOPE_",
    "MISTRAL_",
    "DEEPSEEK_",
    "GROQ_",
    "XAI_",
    "OLLAMA_",
    "OPENCODE_",
    "AMP_API_KEY",
    "CURSOR_",
    "AWS_BEARER_TOKEN_BEDROCK",
];

/// Variables that every program gets from its agent, and those by which a loader or a shell runs
/// something before the program itself.
const CONTROL: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "TERM",
    "SHELL",
    "PWD",
    "IFS",
    "ENV",
    "BASH_ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "LD_PRELOAD",
    "LD_AUDIT",
    "DYLD_INSERT_LIBRARIES",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_EXEC_PATH",
];

/// How names begin that are of this program itself, and of functions that shells take from their
/// environment.
const CONTROL_BEGINNINGS: &[&str] = &["KAGE_", "BASH_FUNC_"];

/// Folders and files of a home, in which programs and people keep logins.
const LOGINS: &[&str] = &[
    ".claude",
    ".claude.json",
    ".codex",
    ".gemini",
    ".qwen",
    ".kimi",
    ".copilot",
    ".config/opencode",
    ".local/share/opencode",
    ".aider.conf.yml",
    ".config/github-copilot",
    ".cursor",
    ".config/kage",
    ".local/state/kage",
    ".ssh",
    ".gnupg",
];

impl TaskEnvironment {
    /// True when nothing is added to what every program gets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Everything that is wrong with it, with its path within the environment.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, InvalidEnvironment)> {
        let names = self.pass.iter().map(|name| ("pass", name));
        let names = names.chain(self.set.keys().map(|name| ("set", name)));
        let mut found: Vec<_> = names
            .filter_map(|(field, name)| Some((field.to_owned(), refused_name(name)?)))
            .collect();
        for (name, value) in &self.set {
            if self.pass.contains(name) {
                found.push(("set".to_owned(), InvalidEnvironment::Twice(name.clone())));
            }
            if value.contains('\0') {
                found.push(("set".to_owned(), InvalidEnvironment::ZeroByte(name.clone())));
            }
        }
        let files = self.home.iter().filter_map(|path| Self::refuses_file(path));
        found.extend(files.map(|problem| ("home".to_owned(), problem)));
        found
    }

    /// Why a file of the home folder cannot be copied, if it cannot.
    #[must_use]
    pub fn refuses_file(path: &str) -> Option<InvalidEnvironment> {
        refused_file(path)
    }

    /// The bytes of all names, values and paths.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let names = self.pass.iter().chain(&self.home).map(String::len);
        let set = self.set.iter().map(|(name, value)| name.len() + value.len());
        names.chain(set).sum()
    }
}

fn refused_name(name: &str) -> Option<InvalidEnvironment> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    if !first || !characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Some(InvalidEnvironment::NotAName(name.to_owned()))
    } else if begins(PROVIDERS) {
        Some(InvalidEnvironment::Provider(name.to_owned()))
    } else if CONTROL.contains(&name) || begins(CONTROL_BEGINNINGS) {
        Some(InvalidEnvironment::Control(name.to_owned()))
    } else {
        None
    }
}

fn refused_file(path: &str) -> Option<InvalidEnvironment> {
    let mut parts = path.split('/');
    if path.contains('\0') || !parts.all(|part| !matches!(part, "" | "." | "..")) {
        return Some(InvalidEnvironment::NotBelowHome(path.to_owned()));
    }
    // File systems that ignore case exist.
    let lower = path.to_lowercase();
    let within =
        |login: &&str| lower == **login || lower.strip_prefix(*login).is_some_and(|rest| rest.starts_with('/'));
    LOGINS
        .iter()
        .any(within)
        .then(|| InvalidEnvironment::Login(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::InvalidEnvironment as Wrong;
    use super::*;

    fn name(name: &str) -> Option<Wrong> {
        let pass = TaskEnvironment {
            pass: [name.to_owned()].into(),
            ..TaskEnvironment::default()
        };
        let set = TaskEnvironment {
            set: [(name.to_owned(), "value".to_owned())].into(),
            ..TaskEnvironment::default()
        };
        let [pass, set] = [pass, set].map(|environment| environment.problems().pop().map(|(_, problem)| problem));
        assert_eq!(pass, set, "{name}");
        pass
    }

    #[test]
    fn what_tests_need_is_taken() {
        for fine in [
            "DATABASE_URL",
            "RUST_LOG",
            "NODE_OPTIONS",
            "GOPROXY",
            "npm_config_registry",
            "LD_LIBRARY_PATH",
            "_",
        ] {
            assert_eq!(name(fine), None);
        }
    }

    #[test]
    fn keys_of_providers_and_what_decides_what_runs_are_refused() {
        for key in [
            "ANTHROPIC_API_KEY",
            "OPENAI_BASE_URL",
            "CLAUDE_CONFIG_DIR",
            "GOOGLE_API_KEY",
        ] {
            assert_eq!(name(key), Some(Wrong::Provider(key.to_owned())));
        }
        for control in [
            "PATH",
            "HOME",
            "TMPDIR",
            "LD_PRELOAD",
            "KAGE_TASK",
            "BASH_ENV",
            "GIT_DIR",
            "KAGE__RUN__VERIFY",
        ] {
            assert_eq!(name(control), Some(Wrong::Control(control.to_owned())));
        }
        for no in ["", "1A", "A-B", "A=B", "A B", "Ä"] {
            assert_eq!(name(no), Some(Wrong::NotAName(no.to_owned())));
        }
    }

    #[test]
    fn files_are_within_the_home_and_no_logins() {
        let file = |path: &str| {
            let environment = TaskEnvironment {
                home: [path.to_owned()].into(),
                ..TaskEnvironment::default()
            };
            environment.problems().pop().map(|(_, problem)| problem)
        };
        for fine in [
            ".npmrc",
            ".m2/settings.xml",
            ".claudette",
            "...",
            ".config/pip/pip.conf",
        ] {
            assert_eq!(file(fine), None);
        }
        for outside in ["/etc/passwd", "../x", "a/../../x", "", ".", "a//b", "a/"] {
            assert_eq!(file(outside), Some(Wrong::NotBelowHome(outside.to_owned())));
        }
        for login in [
            ".claude/.credentials.json",
            ".codex/auth.json",
            ".Gemini",
            ".claude.json",
            ".ssh/id_ed25519",
        ] {
            assert_eq!(file(login), Some(Wrong::Login(login.to_owned())));
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let environment = TaskEnvironment {
            pass: ["A".to_owned(), "PATH".to_owned()].into(),
            set: [("A".to_owned(), "\0".to_owned())].into(),
            home: ["..".to_owned()].into(),
            files: None,
            handed: None,
        };
        let fields: Vec<_> = environment.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["pass", "set", "set", "home"]);
        assert_eq!(environment.bytes(), 9);
    }

    #[test]
    fn an_empty_one_is_stored_as_nothing() {
        assert_eq!(serde_json::to_string(&TaskEnvironment::default()).unwrap(), "{}");
        assert!(serde_json::from_str::<TaskEnvironment>("{}").unwrap().is_empty());
    }
}
