//! Logins that a person made with a program of their own, and that sessions use. A refresh token works
//! once: two programs that send the same one log the person out. So every login file of this machine
//! has one owner here, which reads it, refreshes it under the locks that the program itself takes, and
//! writes back what the server gave. Sessions get access tokens, which only end.
//!
//! What an owner does next is decided by [`kage_core::login`]; how a program describes its login is
//! [`rule`]; how a session's program gets the token is the adapters' business.

mod token;
pub mod rule;
mod text;
mod file;
mod lock_folder;
mod server;
mod owner;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kage_core::login::LoginState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::process::AgentEnvironment;
use rule::{LoginRule, Sharing};

pub use owner::{LendError, Lent, LoginOwner, LoginParts};
pub use token::Token;

/// The logins of an agent: one owner for each file, whichever adapters use it. Clones share them.
#[derive(Debug, Clone)]
pub struct Logins {
    parts: LoginParts,
    owners: Arc<Mutex<BTreeMap<PathBuf, Login>>>,
    /// The owners' tasks. Each ends when nobody has its handle any more.
    tasks: TaskTracker,
}

/// A login that an adapter uses.
#[derive(Debug, Clone)]
pub struct Login {
    rule: Arc<LoginRule>,
    path: PathBuf,
    owner: LoginOwner,
    /// One permit, for a program that cannot share its login.
    alone: Arc<Semaphore>,
}

/// Two manifests describe the same file in two ways.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another adapter describes the login in {path} differently; make [login] the same in both manifests")]
pub struct DescribedTwice {
    path: String,
}

impl Logins {
    #[must_use]
    pub fn new(parts: LoginParts) -> Self {
        Self {
            parts,
            owners: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// The login that a rule describes, whether or not somebody is logged in. `None` when the agent
    /// has no home folder.
    ///
    /// # Errors
    /// When the file has an owner by another rule.
    pub fn of(&self, rule: &LoginRule, agent: &AgentEnvironment) -> Result<Option<Login>, DescribedTwice> {
        let Some(path) = rule.path(agent) else {
            return Ok(None);
        };
        // Two names of one file are one login.
        let file = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = owners.get(&file) {
            return match *known.rule == *rule {
                true => Ok(Some(known.clone())),
                false => Err(DescribedTwice {
                    path: path.display().to_string(),
                }),
            };
        }
        let rule = Arc::new(rule.clone());
        let owner = LoginOwner::start(self.parts.clone(), Arc::clone(&rule), &path, &self.tasks);
        let login = Login {
            rule,
            path,
            owner,
            alone: Arc::new(Semaphore::new(1)),
        };
        owners.insert(file, login.clone());
        Ok(Some(login))
    }
}

impl Login {
    #[must_use]
    pub fn rule(&self) -> &LoginRule {
        &self.rule
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub const fn owner(&self) -> &LoginOwner {
        &self.owner
    }

    /// What people are told of it, as its owner last saw it, or what a person has to do.
    ///
    /// # Errors
    /// When nobody is logged in.
    pub fn state(&self) -> Result<LoginState, String> {
        self.owner.state()
    }

    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.rule.sessions == Sharing::One
    }

    /// The right to use a login that cannot be shared, for one session; `None` for one that can.
    ///
    /// # Errors
    /// When another session has it: the reason for people.
    pub fn reserve(&self) -> Result<Option<OwnedSemaphorePermit>, String> {
        if !self.is_exclusive() {
            return Ok(None);
        }
        let taken = Arc::clone(&self.alone).try_acquire_owned();
        taken.map(Some).map_err(|_| {
            format!(
                "another session uses the login in {}, which its program cannot share",
                self.path.display()
            )
        })
    }

    /// The tokens in the file, to be masked in output.
    #[must_use]
    pub async fn tokens(&self) -> Vec<Token> {
        self.owner.tokens().await
    }
}
