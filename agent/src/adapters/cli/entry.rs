//! What lets a program in at its provider: a variable of the agent's environment or, without one, the
//! login of a person. A variable that somebody set on purpose wins.

use std::time::Duration;

use kage_core::failure::{Failure, FailureKind};
use kage_core::fleet::AdapterAccess;

use super::manifest::Manifest;
use crate::adapters::port::{AdapterEnd, Admission};
use crate::logins::{Lent, Login, Logins};
use crate::process::AgentEnvironment;

#[derive(Debug)]
pub(super) enum Entry {
    /// It needs nothing that its manifest knows of.
    Open,
    /// A variable is set.
    Variable(String),
    Login {
        login: Login,
        /// The variable of the folder that has the login's file, where somebody set it: without the file,
        /// the folder may let the program in by other means, as it is.
        folder: Option<String>,
        /// What may be set instead; empty: nothing.
        instead: String,
    },
    /// Nothing lets it in; says what would.
    Missing(String),
}

impl Entry {
    pub(super) fn find(manifest: &Manifest, agent: &AgentEnvironment, logins: &Logins) -> Self {
        let require = &manifest.env.require;
        let folder = manifest.login.as_ref().and_then(|rule| rule.folder.as_ref());
        let keys: Vec<_> = require.iter().filter(|name| Some(*name) != folder).cloned().collect();
        if let Some(name) = keys.iter().find(|name| agent.text(name).is_some()) {
            return Self::Variable(name.clone());
        }
        let instead = match keys.is_empty() {
            true => String::new(),
            false => format!(
                "set {} in the shell of `kage run` or, on another machine, where its agent starts",
                keys.join(" or ")
            ),
        };
        let Some(rule) = &manifest.login else {
            return if require.is_empty() {
                Self::Open
            } else {
                Self::Missing(instead)
            };
        };
        let whole = folder.filter(|name| require.contains(name) && agent.text(name).is_some());
        match (logins.of(rule, agent), whole) {
            (Ok(Some(login)), folder) => Self::Login {
                login,
                folder: folder.cloned(),
                instead,
            },
            (Ok(None), Some(name)) => Self::Variable(name.clone()),
            (Ok(None), None) => Self::Missing(instead),
            (Err(twice), _) => Self::Missing(twice.to_string()),
        }
    }

    /// The login that lets it in now.
    pub(super) fn login(&self) -> Option<&Login> {
        match self {
            Self::Login { login, folder, .. } => (folder.is_none() || login.path().exists()).then_some(login),
            Self::Open | Self::Variable(_) | Self::Missing(_) => None,
        }
    }

    /// The variable that lets it in.
    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Variable(name) => Some(name),
            Self::Open | Self::Login { .. } | Self::Missing(_) => None,
        }
    }

    /// What lets it in now; otherwise what a person has to do.
    pub(super) fn access(&self) -> Result<Option<AdapterAccess>, String> {
        match self {
            Self::Open => Ok(None),
            Self::Variable(name) => Ok(Some(AdapterAccess::Variable { name: name.clone() })),
            Self::Missing(what) => Err(what.clone()),
            Self::Login {
                login,
                folder: Some(name),
                ..
            } if !login.path().exists() => Ok(Some(AdapterAccess::Variable { name: name.clone() })),
            Self::Login { login, instead, .. } => match login.state() {
                Ok(state) => Ok(Some(AdapterAccess::Login(state))),
                Err(what) if instead.is_empty() => Err(what),
                Err(what) => Err(format!("{what}; or {instead}")),
            },
        }
    }

    /// What lets a session with this time limit in.
    pub(super) async fn admit(&self, limit: Duration) -> Result<Admission, Failure> {
        let Some(login) = self.login() else {
            return Ok(Admission::default());
        };
        if login.is_exclusive() {
            return Ok(Admission {
                lent: None,
                readable: login.tokens().await,
            });
        }
        let lent = login.owner().lend(limit).await.map_err(|error| error.failure())?;
        Ok(Admission {
            lent: Some(lent),
            readable: Vec::new(),
        })
    }

    /// The end of a session that had this token: a token that ended is no refused login.
    pub(super) async fn judged(&self, lent: Option<&Lent>, end: AdapterEnd) -> AdapterEnd {
        let (Some(login), Some(lent)) = (self.login(), lent) else {
            return end;
        };
        match end {
            AdapterEnd::Failed(failure) if failure.kind == FailureKind::Auth => {
                let why = login.owner().was_refused(lent.mark.clone()).await;
                AdapterEnd::Failed(match why.words() {
                    Some(words) => Failure::new(FailureKind::TokenExpired, format!("{words} ({})", failure.message)),
                    None => failure,
                })
            }
            AdapterEnd::Done { .. } => {
                login.owner().was_accepted(lent.mark.clone()).await;
                end
            }
            AdapterEnd::Failed(_) | AdapterEnd::Stopped => end,
        }
    }
}
