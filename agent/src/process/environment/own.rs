//! The agent's own environment, read once at its start, and what of it every program gets.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::process::Secret;

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

/// The home folder, which is that of the agent's user.
const HOME: &str = "HOME";

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

    /// The same environment with another value of a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// The same environment without a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(OsStr::new(name));
        self
    }

    /// The variables of this environment that a shell hands over to the daemon of its machine: what every
    /// program gets, and these, which adapters are given. Values that are no text stay here.
    #[must_use]
    pub fn handed_over(&self, named: &BTreeSet<String>) -> BTreeMap<String, String> {
        let named = named.iter().map(String::as_str);
        let all = ALLOWED.iter().copied().chain(named).filter(|name| *name != HOME);
        all.filter_map(|name| Some((name.to_owned(), self.get(name)?.to_str()?.to_owned())))
            .collect()
    }

    /// This environment as an agent would have it that was started in a shell with these variables, and
    /// the names of those that differ. What every program gets is as in the shell, also when it is not
    /// set there; what adapters are given stays where the shell says nothing, so that a key which only
    /// the agent has can be used. Other variables of the shell do not count.
    #[must_use]
    pub fn as_in(&self, shell: &BTreeMap<String, String>, named: &BTreeSet<String>) -> (Self, Vec<String>) {
        let (mut variables, mut differs) = (self.variables.clone(), Vec::new());
        let of_adapters = named.iter().map(String::as_str);
        let of_adapters = of_adapters.filter(|name| *name != HOME && !ALLOWED.contains(name));
        let of_all = ALLOWED.iter().map(|name| (*name, true));
        for (name, is_of_all) in of_all.chain(of_adapters.map(|name| (name, false))) {
            let here = variables.get(OsStr::new(name));
            match shell.get(name) {
                Some(there) if here.is_some_and(|here| here == there.as_str()) => continue,
                Some(there) => drop(variables.insert(name.into(), there.into())),
                // Without a PATH there are no programs.
                None if here.is_some() && is_of_all && name != "PATH" => drop(variables.remove(OsStr::new(name))),
                None => continue,
            }
            differs.push(name.to_owned());
        }
        (Self::new(variables), differs)
    }

    pub(super) fn tool_folders(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.tool_folders.iter().map(|(name, folder)| (*name, folder.as_path()))
    }

    /// What programs need for their proxies and nobody may read: names with passwords, and these
    /// alone.
    #[must_use]
    pub fn proxy_secrets(&self) -> Vec<Secret> {
        let values = PROXIES
            .iter()
            .filter_map(|name| Some((*name, self.get(name)?.to_str()?)));
        let mut secrets = Vec::new();
        for (name, value) in values {
            let address = value.split_once("://").map_or(value, |(_, address)| address);
            let authority = address.split(['/', '?', '#']).next().unwrap_or(address);
            if let Some((user_info, _)) = authority.rsplit_once('@')
                && let Some((_, password)) = user_info.split_once(':')
            {
                secrets.extend([user_info, password].map(|value| Secret::new(name, value)));
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
            Secret::values(&agent.proxy_secrets()),
            ["me:p@ssword", "p@ssword", "you:secret", "secret"]
        );
    }

    #[test]
    fn a_shell_says_what_programs_get_and_adds_what_adapters_are_given() {
        let agent = AgentEnvironment::from_iter([
            ("PATH", "/bin"),
            ("TZ", "UTC"),
            ("HOME", "/home/me"),
            ("OLD_KEY", "of the agent"),
            ("OTHER", "of the agent"),
        ]);
        let named = ["NEW_KEY", "OLD_KEY", "HOME"].map(str::to_owned).into();
        let shell = AgentEnvironment::from_iter([
            ("PATH", "/bin"),
            ("LANG", "C"),
            ("HOME", "/elsewhere"),
            ("NEW_KEY", "of the shell"),
            ("OTHER", "of the shell"),
        ]);
        let (both, differs) = agent.as_in(&shell.handed_over(&named), &named);
        assert_eq!(differs, ["LANG", "TZ", "NEW_KEY"]);
        let value = |name: &str| both.get(name).and_then(OsStr::to_str);
        assert_eq!((value("TZ"), value("LANG")), (None, Some("C")));
        assert_eq!(
            (value("NEW_KEY"), value("OLD_KEY")),
            (Some("of the shell"), Some("of the agent"))
        );
        assert_eq!(
            (value("HOME"), value("OTHER")),
            (Some("/home/me"), Some("of the agent"))
        );

        // A shell that has nothing of its own differs in nothing; PATH is never lost.
        let (same, differs) = agent.as_in(&agent.handed_over(&named), &named);
        assert!(differs.is_empty() && same == agent);
        assert_eq!(agent.as_in(&BTreeMap::new(), &named).0.path(), "/bin");
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
