//! Calls of models: their names, what is asked before each and what is told after it. How much money
//! and tokens one may use is decided in `budget`; what it cost in `price`.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{CallId, Digest, InvalidId};
use crate::usage::Usage;
use crate::words::words;

/// The most bytes of an account's name.
const LONGEST_ACCOUNT: usize = 100;
/// The digits of the digest in an account's name: enough to tell the keys of one fleet apart, and far from
/// enough to find a key.
const KEY_DIGITS: usize = 12;

/// A login or key at a provider, whoever uses it: its limits and its prompt caches are those of all
/// sessions with it. The same on every agent that holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AccountName(String);

impl AccountName {
    /// The account of a key at an address. Neither of them can be read from it.
    #[must_use]
    pub fn of_key(provider: &str, address: &str, key: Option<&str>) -> Self {
        let secret = format!("kage account\n{address}\n{}", key.unwrap_or_default());
        let digest = Digest::of(secret.as_bytes());
        let provider: String = provider.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
        Self(format!("{provider}/{}", &digest.as_str()[..KEY_DIGITS]))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AccountName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let fits = !text.is_empty() && text.len() <= LONGEST_ACCOUNT && text.chars().all(|c| c.is_ascii_graphic());
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidId {
            text: text.chars().take(LONGEST_ACCOUNT).collect(),
            expected: "the name of an account (1 to 100 visible ASCII characters)",
        })
    }
}

impl From<AccountName> for String {
    fn from(name: AccountName) -> Self {
        name.0
    }
}

impl TryFrom<String> for AccountName {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

words! {
    /// How a call ended.
    pub enum CallEnd: "an end of a call" {
        /// The answer came whole: its usage is what the provider bills.
        Whole = "whole",
        /// The answer broke off: the usage is what was told until then.
        Cut = "cut",
    }
}

/// A call that an event tells the usage of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRef {
    /// Its id, drawn by the agent.
    pub id: CallId,
    /// The account that pays.
    pub account: AccountName,
    /// How it ended.
    pub end: CallEnd,
    /// The provider's own id of the request or its answer, if it told one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

/// The most bytes of a provider's id of a request.
pub const MAX_REQUEST_ID: usize = 200;

/// What is asked before a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The account that pays.
    pub account: AccountName,
    /// As it is priced.
    pub model: String,
    /// True when it costs nothing.
    pub free: bool,
    /// What of the request other sessions send too, for a session's first call; `None`: it waits for
    /// nobody's cache.
    pub prefix: Option<Prefix>,
    /// Tokens that its input has at most.
    pub input: u64,
    /// Tokens that its answer may have.
    pub output: OutputBounds,
}

/// The beginning of a request that a provider may have in its cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Digest of the rendered prefix, tools included.
    pub digest: Digest,
    /// Tokens that it has at least.
    pub tokens: u64,
}

/// An earlier request of a conversation, and what its prompt was counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BilledInput {
    /// Bytes of the request.
    pub bytes: u64,
    /// Tokens of the prompt, cached ones included.
    pub tokens: u64,
}

/// Tokens that a provider may add to a prompt, for tools for instance, besides what the request says.
const ADDED: u64 = 1_024;

/// Tokens that the input of a request of so many bytes has at most: those of the one before it, as they were
/// counted, and a token for each byte that came since. A request that became shorter is bounded by its own bytes,
/// as one without another before it. Holds for content that is in the request, and not for what it refers to.
#[must_use]
pub fn input_bound(before: Option<BilledInput>, bytes: u64) -> u64 {
    let whole = bytes.saturating_add(ADDED);
    match before {
        Some(before) if before.bytes <= bytes => before.tokens.saturating_add(bytes - before.bytes).min(whole),
        Some(_) | None => whole,
    }
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputBounds {
    /// What is asked for where nothing limits it.
    pub most: NonZeroU32,
    /// What is asked for under a budget: answers are rarely as long as they may be, and what one could cost is
    /// held back until it ends.
    pub usual: NonZeroU32,
}

/// An answer under a budget, until a longer one was needed.
pub const USUAL_OUTPUT: NonZeroU32 = const { NonZeroU32::new(16_384).unwrap() };
/// The shortest answer that is asked for: with less than that, a model does not come to an end.
pub const LEAST_OUTPUT: NonZeroU32 = const { NonZeroU32::new(4_096).unwrap() };

impl OutputBounds {
    /// The bounds of a request for so many tokens; `cut`: the last answer was cut at its limit.
    #[must_use]
    pub fn of(most: NonZeroU32, cut: bool) -> Self {
        let usual = if cut { most } else { most.min(USUAL_OUTPUT) };
        Self { most, usual }
    }

    /// The fewest tokens that may be granted.
    #[must_use]
    pub fn least(&self) -> NonZeroU32 {
        self.usual.min(LEAST_OUTPUT)
    }
}

/// What a provider told about an account's limits with an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateTold {
    /// Requests.
    pub requests: Option<LimitTold>,
    /// Tokens of input.
    pub input: Option<LimitTold>,
    /// Tokens of output.
    pub output: Option<LimitTold>,
    /// How long nobody may call.
    pub retry_after: Option<Duration>,
}

impl RateTold {
    /// True when nothing was told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One limit, as it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitTold {
    /// How much there is in a full window; `None`: not told.
    pub limit: Option<u64>,
    /// How much is left.
    pub remaining: u64,
    /// Until it is full again; `None`: not told.
    pub reset: Option<Duration>,
}

/// What is told after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// As it is priced: the answer may name another model than the request.
    pub model: String,
    /// What was counted.
    pub usage: Usage,
    /// How it ended.
    pub end: CallEnd,
    /// The provider's own id of it.
    pub request: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_the_same_everywhere_and_tells_no_key() {
        let one = AccountName::of_key("anthropic", "https://api.anthropic.com", Some("sk-secret"));
        assert_eq!(
            one,
            AccountName::of_key("anthropic", "https://api.anthropic.com", Some("sk-secret"))
        );
        for other in [
            AccountName::of_key("anthropic", "https://api.anthropic.com", Some("sk-other")),
            AccountName::of_key("anthropic", "https://elsewhere", Some("sk-secret")),
            AccountName::of_key("anthropic", "https://api.anthropic.com", None),
        ] {
            assert_ne!(one, other);
        }
        assert!(!one.as_str().contains("secret") && !one.as_str().contains("api.anthropic"));
        assert_eq!(one.as_str().parse::<AccountName>().unwrap(), one);
        for wrong in ["", "with space", "l\u{f6}ss", &"x".repeat(101)] {
            assert!(wrong.parse::<AccountName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_request_is_bounded_by_the_one_before_it() {
        let before = |bytes, tokens| Some(BilledInput { bytes, tokens });
        for (before, bytes, expected) in [
            (None, 9_000, 10_024),
            (before(9_000, 2_000), 9_000, 2_000),
            (before(9_000, 2_000), 9_400, 2_400),
            // It became shorter: what was left out may have been cheaper than what came.
            (before(9_000, 2_000), 8_000, 9_024),
            // A count beyond its bytes teaches nothing.
            (before(100, 50_000), 200, 1_224),
            (before(0, u64::MAX), u64::MAX, u64::MAX),
        ] {
            assert_eq!(input_bound(before, bytes), expected, "{before:?} {bytes}");
        }
    }

    #[test]
    fn answers_are_short_under_a_budget_until_one_was_cut() {
        let tokens = |n| NonZeroU32::new(n).unwrap();
        for (most, cut, usual, least) in [
            (128_000, false, 16_384, 4_096),
            (128_000, true, 128_000, 4_096),
            (8_000, false, 8_000, 4_096),
            (100, false, 100, 100),
        ] {
            let bounds = OutputBounds::of(tokens(most), cut);
            assert_eq!(
                (bounds.usual.get(), bounds.least().get()),
                (usual, least),
                "{most} {cut}"
            );
        }
    }
}
