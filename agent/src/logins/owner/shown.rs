//! What others see of a login: who is logged in, or what a person has to do. No token is in it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kage_core::cause::chain;
use kage_core::login::{LoginMemory, LoginState, LoginStep, without_refresh};
use kage_core::time::Timestamp;

use crate::logins::file::{Held, LoginFileError};
use crate::logins::rule::{LoginRule, Sharing};

/// The newest state. Clones share it; the owner writes it.
#[derive(Debug, Clone)]
pub(super) struct ShownState(Arc<Mutex<Result<LoginState, String>>>);

type Read = Result<Held, LoginFileError>;

impl ShownState {
    pub(super) fn new(read: &Read, path: &Path, rule: &LoginRule, memory: &LoginMemory, now: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(state(read, path, rule, memory, now))))
    }

    pub(super) fn get(&self) -> Result<LoginState, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, read: &Read, path: &Path, rule: &LoginRule, memory: &LoginMemory, now: Timestamp) {
        let state = state(read, path, rule, memory, now);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

fn state(
    read: &Read,
    path: &Path,
    rule: &LoginRule,
    memory: &LoginMemory,
    now: Timestamp,
) -> Result<LoginState, String> {
    let held = match read {
        Ok(held) => held,
        Err(error) => {
            return Err(format!(
                "the login in {} cannot be read: {}",
                path.display(),
                chain(error)
            ));
        }
    };
    let marks = held.marks();
    let exclusive = rule.sessions == Sharing::One;
    let renewable = marks.refresh.is_some() && marks.refresh != memory.refused;
    if !renewable && let LoginStep::LogIn(why) = without_refresh(&marks, memory, now) {
        return Err(format!("{why}: {}", rule.log_in));
    }
    Ok(LoginState {
        account: held.account.clone(),
        until: held.until,
        renewable,
        exclusive,
    })
}
