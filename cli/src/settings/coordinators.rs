//! The coordinators that a person logged in to, by name: a file for each below the user's settings, with its
//! address and the files of its token and its CA, and which of them is used. Settings that name a coordinator
//! themselves come before all of this, and none of it is ever mixed with them: a token goes to the
//! coordinator that it is for.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CoordinatorSettings;

/// The name that stands for the coordinator of this machine.
pub(crate) const LOCAL: &str = "local";

/// Why logins cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum LoginsError {
    #[error("no home directory is known, so no login can be kept")]
    NoHome,
    #[error("{0:?} cannot be the name of a login: use letters, digits, `.`, `-` and `_`, and not `local`")]
    Name(String),
    #[error("the login {name:?} is of {url}; choose another name with --name")]
    Taken { name: String, url: String },
    #[error("there is no login {0:?}; `kage login ls` lists them")]
    Unknown(String),
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no login")]
    Broken {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// What is kept of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    pub(crate) url: String,
    token_file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<kage_core::id::ProjectId>,
}

/// A folder of logins.
#[derive(Debug, Clone)]
pub(crate) struct Logins(PathBuf);

impl Logins {
    /// The user's own; `None` when the user has no home.
    pub(crate) fn of_user() -> Option<Self> {
        super::user_dir().map(|dir| Self(dir.join("coordinators")))
    }

    /// The settings of the login in use: that of `asked`, else the chosen one. `None`: this machine's own
    /// coordinator.
    ///
    /// # Errors
    /// When a login is named that is not there, or cannot be read.
    pub(crate) fn in_use(&self, asked: Option<&str>) -> Result<Option<CoordinatorSettings>, LoginsError> {
        let Some(name) = asked.map(str::to_owned).or_else(|| self.chosen()) else {
            return Ok(None);
        };
        if name == LOCAL {
            return Ok(None);
        }
        let login = self.read(&name)?;
        Ok(Some(CoordinatorSettings {
            url: Some(login.url),
            token_file: Some(login.token_file),
            ca_file: login.ca_file,
            project: login.project,
            is_named_by_settings: false,
        }))
    }

    /// The name that was chosen last.
    pub(crate) fn chosen(&self) -> Option<String> {
        let name = fs::read_to_string(self.0.join("current")).ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    /// Uses this one from now on.
    pub(crate) fn choose(&self, name: &str) -> Result<(), LoginsError> {
        if name != LOCAL {
            self.read(name)?;
        }
        self.write("current", name.as_bytes())
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Result<Vec<(String, Login)>, LoginsError> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
            .filter(|name| check(name).is_ok())
            .collect();
        names.sort_unstable();
        names
            .into_iter()
            .map(|name| Ok((name.clone(), self.read(&name)?)))
            .collect()
    }

    fn read(&self, name: &str) -> Result<Login, LoginsError> {
        check(name)?;
        let path = self.0.join(format!("{name}.toml"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LoginsError::Unknown(name.to_owned())),
            Err(source) => return Err(LoginsError::File { path, source }),
        };
        toml::from_str(&text).map_err(|source| LoginsError::Broken {
            path,
            source: Box::new(source),
        })
    }

    /// Whether a login may have this name: there is none of it yet, or one of the same coordinator. Otherwise a
    /// token could be sent to another coordinator than the one that it is for.
    pub(crate) fn may_be_kept(&self, name: &str, url: &str) -> Result<(), LoginsError> {
        match self.read(name) {
            Ok(login) if login.url != url => Err(LoginsError::Taken {
                name: name.to_owned(),
                url: login.url,
            }),
            Ok(_) | Err(LoginsError::Unknown(_) | LoginsError::Broken { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Keeps a login, in place of one of the same name. Its files are for the user alone.
    pub(crate) fn keep(
        &self,
        name: &str,
        url: &str,
        token: &str,
        ca: Option<&[u8]>,
        project: Option<kage_core::id::ProjectId>,
    ) -> Result<(), LoginsError> {
        self.may_be_kept(name, url)?;
        let beside = |suffix: &str| format!("{name}.{suffix}");
        self.write(&beside("token"), token.as_bytes())?;
        if let Some(ca) = ca {
            self.write(&beside("ca.pem"), ca)?;
        }
        let login = Login {
            url: url.to_owned(),
            token_file: self.0.join(beside("token")),
            ca_file: ca.map(|_| self.0.join(beside("ca.pem"))),
            project,
        };
        let text = toml::to_string(&login).unwrap_or_default();
        self.write(&beside("toml"), text.as_bytes())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), LoginsError> {
        let path = self.0.join(name);
        let write = || {
            kage_git::private::make_private(&self.0)?;
            let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
            file.write_all(content)?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| LoginsError::File {
            path: path.clone(),
            source,
        })
    }
}

fn check(name: &str) -> Result<(), LoginsError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_name = !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(fits)
        && Path::new(name).components().count() == 1;
    match is_name && name != LOCAL {
        true => Ok(()),
        false => Err(LoginsError::Name(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_kept_chosen_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let logins = Logins(folder.path().join("coordinators"));
        assert!(logins.in_use(None).unwrap().is_none() && logins.all().unwrap().is_empty());
        logins
            .keep("team", "https://one:7443", "secret-1", Some(b"PEM"), None)
            .unwrap();
        logins
            .keep("other.host", "http://127.0.0.1:1", "secret-2", None, None)
            .unwrap();
        logins.choose("team").unwrap();
        let used = logins.in_use(None).unwrap().unwrap();
        assert_eq!(used.url.as_deref(), Some("https://one:7443"));
        let token = used.token_file.unwrap();
        assert_eq!(fs::read_to_string(&token).unwrap(), "secret-1");
        assert_eq!(fs::read(used.ca_file.unwrap()).unwrap(), b"PEM");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o077, 0);
        let other = logins.in_use(Some("other.host")).unwrap().unwrap();
        assert_eq!(
            (other.url.as_deref(), other.ca_file),
            (Some("http://127.0.0.1:1"), None)
        );
        assert!(logins.in_use(Some(LOCAL)).unwrap().is_none());
        let names: Vec<_> = logins.all().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["other.host", "team"]);
        let taken = logins.keep("team", "https://two:7443", "secret-3", None, None);
        assert!(matches!(taken, Err(LoginsError::Taken { url, .. }) if url == "https://one:7443"));
        assert_eq!(fs::read_to_string(&token).unwrap(), "secret-1");
        logins.keep("team", "https://one:7443", "secret-4", None, None).unwrap();
        assert_eq!(fs::read_to_string(&token).unwrap(), "secret-4");
        // What is no login is passed over.
        fs::write(folder.path().join("coordinators/a b.toml"), "").unwrap();
        assert_eq!(logins.all().unwrap().len(), 2);
        logins.choose(LOCAL).unwrap();
        assert!(logins.in_use(None).unwrap().is_none());
        assert!(matches!(logins.choose("nobody"), Err(LoginsError::Unknown(_))));
        for name in ["", "..", "a/b", LOCAL, ".hidden", "a b"] {
            assert!(
                matches!(logins.keep(name, "u", "t", None, None), Err(LoginsError::Name(_))),
                "{name}"
            );
        }
    }
}
