//! The environment of session programs: made from an allow-list, never inherited whole.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Variables that say where tools, certificates and proxies are. They hold no secret, but for
/// [`proxy_secrets`].
const ALLOWED: &[&str] = &[
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

/// What programs need for their proxies and nobody may read: names with passwords, and these alone.
#[must_use]
pub fn proxy_secrets(snapshot: &BTreeMap<OsString, OsString>) -> Vec<String> {
    let values = PROXIES
        .iter()
        .filter_map(|name| snapshot.get(OsStr::new(name))?.to_str());
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

/// Tool folders that are looked for under HOME, and the variable that points to each.
/// HOME itself is another in a session, and without these `cargo` would not be found.
const HOME_FOLDERS: &[(&str, &str)] = &[("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")];

/// An environment in the making. The caller takes a snapshot of the agent's own; nothing
/// here reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The allowed part of the agent's environment, with HOME and TMPDIR in `scratch`.
    #[must_use]
    pub fn for_session(snapshot: &BTreeMap<OsString, OsString>, scratch: &Path) -> Self {
        let mut env = Self::default();
        env.inherit(snapshot, ALLOWED.iter().copied());
        if let Some(home) = snapshot.get(&OsString::from("HOME")) {
            for (name, folder) in HOME_FOLDERS {
                let folder = PathBuf::from(home).join(folder);
                if !env.0.contains_key(&OsString::from(name)) && folder.is_dir() {
                    env.set(name, folder);
                }
            }
        }
        env.set("HOME", scratch.join("home"));
        env.set("TMPDIR", scratch.join("tmp"));
        env.set("TERM", "dumb");
        env
    }

    /// Adds the named variables as they are in the snapshot; absent ones stay absent.
    pub fn inherit<'a>(&mut self, snapshot: &BTreeMap<OsString, OsString>, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if let Some((name, value)) = snapshot.get_key_value(&OsString::from(name)) {
                self.0.insert(name.clone(), value.clone());
            }
        }
    }

    /// Sets one variable.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// The variables.
    #[must_use]
    pub fn into_map(self) -> BTreeMap<OsString, OsString> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_proxies_are_secrets() {
        let snapshot: BTreeMap<OsString, OsString> = [
            ("HTTPS_PROXY", "http://me:p@ssword@proxy:3128/"),
            ("http_proxy", "you:secret@proxy:3128"),
            ("ALL_PROXY", "socks5://proxy:1080/a:b@c"),
            ("NO_PROXY", "a:b@c"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        assert_eq!(
            proxy_secrets(&snapshot),
            ["me:p@ssword", "p@ssword", "you:secret", "secret"]
        );
    }

    #[test]
    fn takes_what_is_allowed_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".rustup")).unwrap();
        let snapshot: BTreeMap<OsString, OsString> = [
            ("PATH", "/bin".into()),
            ("HOME", home.path().as_os_str().to_owned()),
            ("ANTHROPIC_API_KEY", "secret".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret".into()),
            ("GIT_DIR", "/elsewhere".into()),
        ]
        .into_iter()
        .map(|(name, value): (_, OsString)| (OsString::from(name), value))
        .collect();

        let mut env = Environment::for_session(&snapshot, Path::new("/scratch"));
        env.inherit(&snapshot, ["ANTHROPIC_API_KEY", "ABSENT"]);
        let map = env.into_map();

        let names: Vec<_> = map.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["ANTHROPIC_API_KEY", "HOME", "PATH", "RUSTUP_HOME", "TERM", "TMPDIR"]
        );
        assert_eq!(map[&OsString::from("HOME")], "/scratch/home");
        assert_eq!(map[&OsString::from("RUSTUP_HOME")], home.path().join(".rustup"));
    }
}
