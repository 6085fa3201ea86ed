//! The owner of one login file: one task, so that of all sessions one refresh runs, which takes the
//! locks of the login's program, since the person may use it at the same moment.
//!
//! ```text
//!   read --> next_step --> Lend, LendRest, LogIn: the answer
//!     ^          |
//!     |       Refresh: locks, read again (somebody else was faster: back), room on the disk,
//!     +------------    exchange, write
//! ```
//!
//! A server may end a login when its refresh token is lost. So from its answer to the rename of the
//! new file nothing is waited for but the disk, and what cannot be written stays in memory and is
//! written at the next occasion. A crash in between loses the login.

mod refresh;
mod shown;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::failure::{Failure, FailureKind};
use kage_core::login::{
    AccessMark, LoginMemory, LoginState, LoginStep, TokenEnd, TokenMark, WhyLogIn, next_step, without_refresh,
};
use kage_core::time::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::file::{self, Held, LoginFileError, NewTokens};
use super::rule::LoginRule;
use super::token::Token;
use crate::ports::Clock;
use shown::ShownState;

/// Sessions that wait for a token. When full, further ones wait to be heard.
const ASKS: usize = 64;
/// How often the file is looked at for one session. Every time but the first, somebody else changed
/// it meanwhile.
const LOOKS: u32 = 8;

/// How often the file is looked at while nobody asks: a person may log in or out.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// What an owner needs from outside.
#[derive(Clone)]
pub struct LoginParts {
    pub client: reqwest::Client,
    pub clock: Clock,
}

impl std::fmt::Debug for LoginParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginParts").finish_non_exhaustive()
    }
}

/// An access token that a session may use.
#[derive(Debug, Clone)]
pub struct Lent {
    pub token: Token,
    pub mark: AccessMark,
}

/// Why a session gets no access token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LendError {
    #[error("{why}; {log_in}, and run again")]
    LogIn { why: WhyLogIn, log_in: String },
    /// It may work a little later.
    #[error("the login in {path} cannot be refreshed now: {problem}")]
    NotNow { path: String, problem: String },
    #[error("the agent ends")]
    AgentEnds,
    /// The file cannot be read, or it is no login.
    #[error("the login in {path} cannot be used: {problem}")]
    File { path: String, problem: String },
}

impl LendError {
    /// The failure of a session that gets no token.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::LogIn { .. } => FailureKind::Auth,
            Self::NotNow { .. } => FailureKind::Network,
            Self::AgentEnds => FailureKind::AgentLost,
            Self::File { .. } => FailureKind::AdapterUnavailable,
        };
        Failure::new(kind, self.to_string())
    }
}

enum Ask {
    Lend {
        limit: Duration,
        answer: oneshot::Sender<Result<Lent, LendError>>,
    },
    WasRefused {
        lent: AccessMark,
        answer: oneshot::Sender<TokenEnd>,
    },
    WasAccepted(AccessMark),
    Tokens(oneshot::Sender<Vec<Token>>),
    Settle(oneshot::Sender<()>),
}

/// The handle of a login's owner. The task ends with the last one.
#[derive(Debug, Clone)]
pub struct LoginOwner {
    asks: mpsc::Sender<Ask>,
    shown: ShownState,
}

impl LoginOwner {
    /// Reads the file once, and starts the owner's task.
    pub(super) fn start(parts: LoginParts, rule: Arc<LoginRule>, path: &Path, tasks: &TaskTracker) -> Self {
        let (asks, asked) = mpsc::channel(ASKS);
        let read = file::read(path, &rule);
        let shown = ShownState::new(&read, path, &rule, &LoginMemory::default(), (parts.clock)());
        let owner = Owner {
            parts,
            rule,
            path: path.to_owned(),
            shown: shown.clone(),
            memory: LoginMemory::default(),
            unsaved: None,
            failed: None,
        };
        tasks.spawn(owner.run(asked));
        Self { asks, shown }
    }

    /// The login as it was last seen, or what a person has to do.
    ///
    /// # Errors
    /// When nobody is logged in.
    pub fn state(&self) -> Result<LoginState, String> {
        self.shown.get()
    }

    /// An access token for a session that may take as long as `limit`.
    ///
    /// # Errors
    /// When there is none: a person has to log in, or the server is away.
    pub async fn lend(&self, limit: Duration) -> Result<Lent, LendError> {
        let asked = self.ask(|answer| Ask::Lend { limit, answer }).await;
        asked.unwrap_or(Err(LendError::AgentEnds))
    }

    /// Why a session was refused that had this token.
    pub async fn was_refused(&self, lent: AccessMark) -> TokenEnd {
        let asked = self.ask(|answer| Ask::WasRefused { lent, answer }).await;
        asked.unwrap_or(TokenEnd::LoginRefused)
    }

    /// Notes that a session was let in with this token.
    pub async fn was_accepted(&self, lent: AccessMark) {
        drop(self.asks.send(Ask::WasAccepted(lent)).await);
    }

    /// The tokens in the file.
    pub async fn tokens(&self) -> Vec<Token> {
        self.ask(Ask::Tokens).await.unwrap_or_default()
    }

    /// Returns when everything that was asked before is done, and no file is half written.
    pub async fn settled(&self) {
        self.ask(Ask::Settle).await.unwrap_or_default();
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.ok()?;
        answered.await.ok()
    }
}

struct Owner {
    parts: LoginParts,
    rule: Arc<LoginRule>,
    path: PathBuf,
    /// What others see of it.
    shown: ShownState,
    memory: LoginMemory,
    /// Tokens that the server gave for the refresh token with this mark, and that are not in the file.
    unsaved: Option<(TokenMark, NewTokens)>,
    /// When the server gave no answer to the last request, and the words for that.
    failed: Option<(Timestamp, String)>,
}

impl Owner {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        loop {
            let ask = tokio::select! {
                biased;
                ask = asked.recv() => ask,
                () = tokio::time::sleep(IDLE_LOOK) => {
                    drop(self.look().await);
                    continue;
                }
            };
            let Some(ask) = ask else { return };
            // Nobody waits for the answer any more: the session was stopped.
            match ask {
                Ask::Lend { limit, answer } if !answer.is_closed() => drop(answer.send(self.lend(limit).await)),
                Ask::Lend { .. } => {}
                Ask::WasRefused { lent, answer } => drop(answer.send(self.was_refused(&lent).await)),
                Ask::WasAccepted(lent) => self.memory.was_accepted(&lent),
                Ask::Tokens(answer) => {
                    let held = self.look().await.unwrap_or_default();
                    drop(answer.send(held.tokens()));
                }
                Ask::Settle(answer) => {
                    if self.unsaved.is_some() {
                        drop(self.look().await);
                    }
                    answer.send(()).unwrap_or_default();
                }
            }
        }
    }

    async fn lend(&mut self, limit: Duration) -> Result<Lent, LendError> {
        let before = self.memory.issued.clone();
        for _ in 0..LOOKS {
            let held = self.look().await?;
            let marks = held.marks();
            let mut step = next_step(&marks, &self.memory, limit, (self.parts.clock)());
            let mark = marks.access.as_ref().map(|access| &access.mark);
            // A token that came just now is the best that there is, however soon it ends.
            if self.memory.issued != before && self.memory.issued.as_ref().map(|(mark, _)| mark) == mark {
                step = LoginStep::Lend;
            }
            match step {
                LoginStep::Lend | LoginStep::LendRest | LoginStep::LogIn(_) => return self.answer(step, held),
                LoginStep::Refresh => {
                    let Err(problem) = self.refresh(&held).await else {
                        continue;
                    };
                    // What is left of the token may be enough.
                    let rest = without_refresh(&marks, &self.memory, (self.parts.clock)());
                    if let LoginStep::LendRest = rest {
                        tracing::warn!(login = %self.path.display(), problem, "a login is not refreshed yet");
                        return self.answer(rest, held);
                    }
                    return Err(self.not_now(problem));
                }
            }
        }
        Err(self.not_now("its file changes all the time".to_owned()))
    }

    fn answer(&self, step: LoginStep, held: Held) -> Result<Lent, LendError> {
        let mark = held.marks().access;
        match (step, held.access, mark) {
            (LoginStep::Lend | LoginStep::LendRest, Some(token), Some(mark)) => Ok(Lent { token, mark }),
            (LoginStep::LogIn(why), _, _) => Err(self.log_in(why)),
            (LoginStep::Lend | LoginStep::LendRest | LoginStep::Refresh, _, _) => Err(self.log_in(WhyLogIn::Nobody)),
        }
    }

    fn log_in(&self, why: WhyLogIn) -> LendError {
        let log_in = self.rule.log_in.clone();
        LendError::LogIn { why, log_in }
    }

    fn not_now(&self, problem: String) -> LendError {
        let path = self.path.display().to_string();
        LendError::NotNow { path, problem }
    }

    async fn was_refused(&mut self, lent: &AccessMark) -> TokenEnd {
        let marks = self.look().await.map(|held| held.marks()).unwrap_or_default();
        self.memory.was_refused(lent, &marks, (self.parts.clock)())
    }

    /// What the login is: the file, or what should be in it.
    async fn look(&mut self) -> Result<Held, LendError> {
        let read = self.read().await;
        self.shown
            .set(&read, &self.path, &self.rule, &self.memory, (self.parts.clock)());
        let mut held = read.map_err(|error| LendError::File {
            path: self.path.display().to_string(),
            problem: chain(&error),
        })?;
        if let Some((sent, _)) = &self.unsaved {
            if held.marks().refresh.as_ref() == Some(sent) {
                self.save(None).await;
            } else {
                // Somebody logged in again.
                self.unsaved = None;
            }
            held = self.read().await.unwrap_or(held);
        }
        if let Some((_, tokens)) = &self.unsaved {
            held.take(tokens);
        }
        Ok(held)
    }

    async fn read(&self) -> Result<Held, LoginFileError> {
        let (path, rule) = (self.path.clone(), Arc::clone(&self.rule));
        blocking(move || file::read(&path, &rule)).await
    }
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoginFileError> + Send + 'static,
) -> Result<T, LoginFileError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(LoginFileError::Write(std::io::Error::other(error))))
}

#[cfg(test)]
mod tests;
