//! A refresh: under the locks of the login's program, with room on the disk made before the request,
//! and the new tokens in the file right after the answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kage_core::cause::chain;
use kage_core::login::TokenMark;
use tokio::time::{Instant, sleep};

use super::{Owner, blocking};
use crate::logins::file::{self, Held, LoginFileError, NewTokens, Reserved};
use crate::logins::lock_folder::{BEAT, LockFolders, Taken};
use crate::logins::rule::{LoginRule, TokenServer};
use crate::logins::server::{RefreshError, exchange, too_soon};
use crate::logins::token::Token;

/// A lock for refreshing whose holder is taken for dead after this time, as `claude` does.
const REFRESH_STALE: Duration = Duration::from_secs(60);
/// The same for writing.
const WRITE_STALE: Duration = Duration::from_secs(15);
/// How long another program may refresh before the owner gives up for now.
const REFRESH_PATIENCE: Duration = Duration::from_secs(75);
/// How long it may write, before there is something to lose and afterwards. Then the file is written
/// all the same: tokens that are lost are worse than what another program may miss.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// How often a lock is tried.
const TRY: Duration = Duration::from_millis(200);
const TRY_TO_WRITE: Duration = Duration::from_millis(20);

impl Owner {
    /// Exchanges the refresh token that was `held`, unless somebody else did. Afterwards the file is
    /// looked at again.
    ///
    /// # Errors
    /// When there is nothing new: the words for people.
    pub(super) async fn refresh(&mut self, held: &Held) -> Result<(), String> {
        let rule = Arc::clone(&self.rule);
        let Some(server) = &rule.server else {
            return Err("its manifest names no server that refreshes it".to_owned());
        };
        if let Some((at, problem)) = &self.failed
            && too_soon(Some(*at), (self.parts.clock)())
        {
            return Err(problem.clone());
        }
        let Some(mut locks) = self.locked(held).await? else {
            return Ok(());
        };
        // Whoever writes now is waited for, before the last look at the file.
        drop(self.writing().await);
        let locked = self.read().await.map_err(|error| chain(&error))?;
        let still = self.unsaved.is_some() || locked.marks() == held.marks();
        let Some(refresh) = held.refresh.clone().filter(|_| still) else {
            return Ok(());
        };
        // Nothing that can fail by itself is left for the time after the request.
        let room = self.room(&locked).await.map_err(|error| chain(&error))?;
        let exchanged = self.exchange(server, &refresh, held, &mut locks).await;
        match exchanged {
            Ok(tokens) => {
                self.failed = None;
                self.memory.refused = None;
                self.memory.issued = Some((tokens.access.mark(), tokens.life));
                // What an earlier refresh gave is for the token that is still in the file.
                let sent = match self.unsaved.take() {
                    Some((sent, _)) => sent,
                    None => refresh.mark(),
                };
                let tokens = NewTokens {
                    refresh: tokens.refresh.or(Some(refresh)),
                    ..tokens
                };
                self.unsaved = Some((sent, tokens));
                self.save(Some(room)).await;
                Ok(())
            }
            Err(error @ RefreshError::Refused(_)) => {
                tracing::warn!(login = %self.path.display(), error = chain(&error), "a login is not refreshed");
                self.refused(refresh.mark()).await;
                Ok(())
            }
            Err(error) => {
                let problem = chain(&error);
                self.failed = Some(((self.parts.clock)(), problem.clone()));
                Err(problem)
            }
        }
    }

    /// The server refused a refresh token: somebody used it before, or the login is over.
    async fn refused(&mut self, sent: TokenMark) {
        let now = self.read().await.map(|held| held.marks()).unwrap_or_default();
        if now.refresh.as_ref() == Some(&sent) || self.unsaved.is_some() {
            self.memory.refused = Some(sent);
        }
    }

    /// The locks of a refresh. `None`: somebody else changed the file meanwhile.
    async fn locked(&self, held: &Held) -> Result<Option<LockFolders>, String> {
        let paths = self.lock_paths(&self.rule.locks.refresh);
        let until = Instant::now() + REFRESH_PATIENCE;
        loop {
            match LockFolders::take(&paths, REFRESH_STALE, SystemTime::now()) {
                Ok(Taken::All(locks)) => return Ok(Some(locks)),
                Ok(Taken::Busy) if Instant::now() >= until => {
                    return Err("another program refreshes it, or left its lock behind".to_owned());
                }
                Ok(Taken::Busy) => sleep(TRY + TRY * rand::random_range(0..4)).await,
                Err(error) => return Err(format!("its lock cannot be taken: {error}")),
            }
            let now = self.read().await.map_err(|error| chain(&error))?;
            if self.unsaved.is_none() && now.marks() != held.marks() {
                return Ok(None);
            }
        }
    }

    /// The locks of a write, or none when somebody else keeps them for too long.
    async fn writing(&self) -> LockFolders {
        let paths = self.lock_paths(&self.rule.locks.write);
        let until = Instant::now() + WRITE_PATIENCE;
        loop {
            match LockFolders::take(&paths, WRITE_STALE, SystemTime::now()) {
                Ok(Taken::All(locks)) => return locks,
                Ok(Taken::Busy) if Instant::now() < until => sleep(TRY_TO_WRITE).await,
                Ok(Taken::Busy) => {
                    tracing::warn!(login = %self.path.display(), "a login is written without its lock");
                    return LockFolders::default();
                }
                Err(error) => {
                    tracing::warn!(%error, login = %self.path.display(), "a login is written without its lock");
                    return LockFolders::default();
                }
            }
        }
    }

    /// The request, while others see that the locks are held.
    async fn exchange(
        &self,
        server: &TokenServer,
        refresh: &Token,
        held: &Held,
        locks: &mut LockFolders,
    ) -> Result<NewTokens, RefreshError> {
        let scopes = held.scopes.as_deref();
        let mut exchanging = std::pin::pin!(exchange(&self.parts.client, server, refresh, scopes, &self.parts.clock));
        loop {
            tokio::select! {
                biased;
                done = &mut exchanging => return done,
                () = sleep(BEAT) => match locks.beat(SystemTime::now()) {
                    Ok(true) => {}
                    Ok(false) => tracing::warn!(login = %self.path.display(), "a login's lock was taken away"),
                    Err(error) => tracing::warn!(%error, login = %self.path.display(), "a login's lock is not renewed"),
                },
            }
        }
    }

    /// Writes the unsaved tokens, unless the file has another login by now. What cannot be written
    /// stays unsaved.
    pub(super) async fn save(&mut self, room: Option<Reserved>) {
        let Some((sent, tokens)) = self.unsaved.clone() else {
            return;
        };
        let writing = self.writing().await;
        let (path, rule) = (self.path.clone(), Arc::clone(&self.rule));
        let written = blocking(move || {
            let written = write(&path, &rule, room, &sent, &tokens);
            drop(writing);
            written
        });
        match written.await {
            Ok(()) => {
                if let Some((_, tokens)) = self.unsaved.take() {
                    tracing::info!(login = %self.path.display(), until = %tokens.until, "the login was refreshed");
                }
            }
            Err(error) => tracing::error!(
                login = %self.path.display(),
                error = chain(&error),
                "a refreshed login cannot be written and is kept in memory; make the file writable before the agent ends"
            ),
        }
    }

    async fn room(&self, held: &Held) -> Result<Reserved, LoginFileError> {
        let (path, held) = (self.path.clone(), held.clone());
        blocking(move || file::reserve(&path, &held)).await
    }

    fn lock_paths(&self, rules: &[String]) -> Vec<PathBuf> {
        let folder = self.path.parent().unwrap_or(&self.path);
        // The program names its lock after the folder behind a link.
        let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let folder = folder.display().to_string();
        rules
            .iter()
            .map(|rule| PathBuf::from(rule.replace("{folder}", &folder)))
            .collect()
    }
}

fn write(
    path: &std::path::Path,
    rule: &LoginRule,
    room: Option<Reserved>,
    sent: &TokenMark,
    tokens: &NewTokens,
) -> Result<(), LoginFileError> {
    let now = file::read(path, rule)?;
    if now.marks().refresh.as_ref() != Some(sent) {
        // Somebody logged in again meanwhile, which is newer.
        return Ok(());
    }
    let room = match room {
        Some(room) => room,
        None => file::reserve(path, &now)?,
    };
    room.write(&now, rule, tokens)
}
