//! Logins of programs. A login is a file with an access token, which lets a session in and ends by
//! itself, and a refresh token, for which a server gives the next pair, once. This file decides what
//! the one owner of such a file does; the agent reads, asks and writes. No token comes here: only the
//! marks that tell two of them apart.
//!
//! ```text
//!   lives long enough ------------------------> Lend
//!   too short, with a refresh token ----------> Refresh, and look again
//!   too short, and no refresh can be had -----> LendRest
//!   over, and no refresh can be had ----------> LogIn
//! ```

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::time::Timestamp;

/// The life that a token must have left to be given to a session, unless the session's own limit is
/// shorter. More would refresh more often, and some servers end the tokens before when they give new
/// ones.
pub const ENOUGH: Duration = Duration::from_secs(30 * 60);
/// How far the clocks of a machine and of a provider may differ: a token that ends within this time
/// may be refused already.
pub const CLOCKS: Duration = Duration::from_secs(60);

/// Tells a token from another one, and is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMark(Digest);

impl TokenMark {
    /// The mark of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Digest::of(token.as_bytes()))
    }
}

/// An access token without the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessMark {
    /// Which token.
    pub mark: TokenMark,
    /// When it ends; `None`: the file does not say.
    pub until: Option<Timestamp>,
}

impl AccessMark {
    /// Whether it lives for this time from `now` on.
    fn lives(&self, time: Duration, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now + time)
    }
}

/// What a login's file holds, without the tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoginMarks {
    /// Its access token.
    pub access: Option<AccessMark>,
    /// Its refresh token.
    pub refresh: Option<TokenMark>,
}

/// What the owner of a login remembers of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoginMemory {
    /// The access token that its last refresh gave, and the life that it had then.
    pub issued: Option<(TokenMark, Duration)>,
    /// The refresh token that the server refused.
    pub refused: Option<TokenMark>,
    /// The access token that a provider refused before its end.
    pub rejected: Option<TokenMark>,
    /// Access tokens that a provider refused before their end, one after the other and none accepted
    /// in between.
    pub rejections: u32,
}

/// What the owner of a login does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum LoginStep {
    /// The access token in the file lives long enough.
    Lend,
    /// The refresh token is exchanged first.
    Refresh,
    /// The access token in the file ends sooner than wanted, and there is no other one.
    LendRest,
    /// A person has to log in.
    LogIn(WhyLogIn),
}

/// Why a person has to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyLogIn {
    /// There is no token.
    Nobody,
    /// The access token is over, and there is no refresh token.
    Ended,
    /// The server refused the refresh token.
    Refused,
}

impl fmt::Display for WhyLogIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "nobody is logged in",
            Self::Ended => "the access token has ended, and there is no refresh token",
            Self::Refused => "the login has ended: the server refused its refresh token",
        })
    }
}

/// What to do so that a session whose limit is `limit` gets an access token.
pub fn next_step(found: &LoginMarks, memory: &LoginMemory, limit: Duration, now: Timestamp) -> LoginStep {
    let usable = found.access.as_ref().filter(|access| is_accepted(access, memory));
    let enough = usable.is_some_and(|access| access.lives(wanted(access, memory, limit), now));
    if enough {
        return LoginStep::Lend;
    }
    match &found.refresh {
        Some(refresh) if memory.refused.as_ref() != Some(refresh) => LoginStep::Refresh,
        Some(_) | None => without_refresh(found, memory, now),
    }
}

/// What to do when the refresh token cannot be exchanged now.
pub fn without_refresh(found: &LoginMarks, memory: &LoginMemory, now: Timestamp) -> LoginStep {
    let usable = found.access.as_ref().filter(|access| is_accepted(access, memory));
    if usable.is_some_and(|access| access.lives(CLOCKS, now)) {
        return LoginStep::LendRest;
    }
    LoginStep::LogIn(match (&found.access, &found.refresh) {
        (_, Some(_)) => WhyLogIn::Refused,
        (Some(_), None) => WhyLogIn::Ended,
        (None, None) => WhyLogIn::Nobody,
    })
}

fn is_accepted(access: &AccessMark, memory: &LoginMemory) -> bool {
    memory.rejected.as_ref() != Some(&access.mark)
}

/// The life that a token must have. One that came just now is not exchanged before half of its life
/// is over, however short that is: a server may refuse to be asked at every session.
fn wanted(access: &AccessMark, memory: &LoginMemory, limit: Duration) -> Duration {
    let usual = limit.min(ENOUGH).max(CLOCKS);
    match &memory.issued {
        Some((mark, life)) if *mark == access.mark => usual.min(*life / 2),
        Some(_) | None => usual,
    }
}

/// Why a session was refused although it had been given a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum TokenEnd {
    /// The token ended while the session ran.
    Expired,
    /// There is a newer one, and some servers end those before it.
    Replaced,
    /// The provider refused it before its end, for the first time; the next session gets another one.
    Early,
    /// Not the token but the login is refused: another token would be, too.
    LoginRefused,
}

impl TokenEnd {
    /// One clause for people; `None` when the login itself is refused.
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Expired => Some("the access token that the session was given ended while it ran"),
            Self::Replaced => Some("the access token that the session was given was replaced while it ran"),
            Self::Early => Some("the access token that the session was given was refused before its end"),
            Self::LoginRefused => None,
        }
    }
}

impl LoginMemory {
    /// Notes that a provider refused the token `lent`, while the file holds `found`.
    pub fn was_refused(&mut self, lent: &AccessMark, found: &LoginMarks, now: Timestamp) -> TokenEnd {
        if !lent.lives(CLOCKS, now) {
            return TokenEnd::Expired;
        }
        if found.access.as_ref().is_some_and(|access| access.mark != lent.mark) {
            return TokenEnd::Replaced;
        }
        // Sessions that ran at the same time had the same token.
        if self.rejected.as_ref() != Some(&lent.mark) {
            self.rejected = Some(lent.mark.clone());
            self.rejections = self.rejections.saturating_add(1);
        }
        let refreshable = found.refresh.is_some() && self.refused != found.refresh;
        if self.rejections <= 1 && refreshable {
            TokenEnd::Early
        } else {
            TokenEnd::LoginRefused
        }
    }

    /// Notes that a session with this token was let in.
    pub fn was_accepted(&mut self, lent: &AccessMark) {
        if self.rejected.as_ref() != Some(&lent.mark) {
            self.rejections = 0;
        }
    }
}

/// A login as people are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginState {
    /// The plan or account, as the file names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// When the access token in the file ends, as far as the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// True when the agent can get the next access token by itself.
    pub renewable: bool,
    /// True when one session at a time can use it.
    #[serde(default)]
    pub exclusive: bool,
}

impl LoginState {
    /// "logged in (max), token until 14:05 UTC, then renewed".
    #[must_use]
    pub fn words(&self, now: Timestamp) -> String {
        let mut text = "logged in".to_owned();
        if let Some(account) = &self.account {
            text += &format!(" ({account})");
        }
        match (self.until, self.renewable) {
            (Some(until), true) if until > now => {
                text += &format!(", token until {}, then renewed", until.to_minute(now))
            }
            (Some(_), true) => text += ", token renewed for the next session",
            (Some(until), false) => text += &format!(", token until {}", until.to_minute(now)),
            (None, _) => {}
        }
        if self.exclusive {
            text += ", one session at a time";
        }
        text
    }
}

#[cfg(test)]
mod tests;
