//! The agent's own environment, read once at its start, and what of it every program gets.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Variables that say where tools, certificates and proxies are. They hold no secret, but for
/// [`AgentEnvironment::proxy_secrets`].
pub(super) const ALLOWED: &[&str] = &[
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "GOROOT",
    "GOPATH",
    "JAVA_HOME",
    "NVM_DIR",
    "PYENV_ROOT",
    "VIRTUAL_ENV",
];

/// Those of the allowed variables in which an address may stand with a password.
const PROXIES: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
];

/// Tool folders that are looked for under HOME, and the variable that points to each.
/// HOME itself is another in a session, and without these `cargo` would not be found.
const HOME_FOLDERS: &[(&str, &str)] = &[("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")];

/// What kind of terminal there is: none.
pub(super) const TERM: (&str, &str) = ("TERM", "dumb");

/// The agent's environment, and the tool folders that were in its home when it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentEnvironment {
    variables: BTreeMap<OsString, OsString>,
    tool_folders: BTreeMap<&'static str, PathBuf>,
}

impl AgentEnvironment {
    /// These variables as an agent's environment. Looks for tool folders in their HOME.
    #[must_use]
    pub fn new(variables: BTreeMap<OsString, OsString>) -> Self {
        let home = variables.get(OsStr::new("HOME")).map(Path::new);
        let folders = home.into_iter().flat_map(|home| {
            let found = HOME_FOLDERS
                .iter()
                .map(|(variable, folder)| (*variable, home.join(folder)));
            found.filter(|(_, folder)| folder.is_dir())
        });
        Self {
            tool_folders: folders.collect(),
            variables,
        }
    }

    /// The environment of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::new(std::env::vars_os().collect())
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// The value of a variable that must be text to be useful, without the spaces around it.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.get(name)?.to_str()?.trim();
        (!value.is_empty()).then_some(value)
    }

    /// Where programs are looked for; empty when it is not set.
    #[must_use]
    pub fn path(&self) -> &OsStr {
        self.get("PATH").unwrap_or_default()
    }

    /// The same environment with another PATH, where there is one.
    #[must_use]
    pub fn with_path(mut self, path: OsString) -> Self {
        if let Some(set) = self.variables.get_mut(OsStr::new("PATH")) {
            *set = path;
        }
        self
    }

    pub(super) fn tool_folders(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.tool_folders.iter().map(|(name, folder)| (*name, folder.as_path()))
    }

    /// What programs need for their proxies and nobody may read: names with passwords, and these
    /// alone.
    #[must_use]
    pub fn proxy_secrets(&self) -> Vec<String> {
        let values = PROXIES.iter().filter_map(|name| self.get(name)?.to_str());
        let mut secrets = Vec::new();
        for value in values {
            let address = value.split_once("://").map_or(value, |(_, address)| address);
            let authority = address.split(['/', '?', '#']).next().unwrap_or(address);
            if let Some((user_info, _)) = authority.rsplit_once('@')
                && let Some((_, password)) = user_info.split_once(':')
            {
                secrets.extend([user_info.to_owned(), password.to_owned()]);
            }
        }
        secrets
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for AgentEnvironment {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(variables: T) -> Self {
        let variables = variables.into_iter();
        Self::new(variables.map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_proxies_are_secrets() {
        let agent = AgentEnvironment::from_iter([
            ("HTTPS_PROXY", "http://me:p@ssword@proxy:3128/"),
            ("http_proxy", "you:secret@proxy:3128"),
            ("ALL_PROXY", "socks5://proxy:1080/a:b@c"),
            ("NO_PROXY", "a:b@c"),
        ]);
        assert_eq!(
            agent.proxy_secrets(),
            ["me:p@ssword", "p@ssword", "you:secret", "secret"]
        );
    }

    #[test]
    fn a_variable_is_text_or_nothing() {
        let agent = AgentEnvironment::from_iter([("A", " key\n"), ("B", " ")]);
        assert_eq!(
            (agent.text("A"), agent.text("B"), agent.text("C")),
            (Some("key"), None, None)
        );
        assert_eq!(agent.with_path("/bin".into()).path(), "", "there was none");
    }
}
