//! Which call writes a prompt cache that other sessions' calls can read, and until when those wait for it. A prefix is
//! in a provider's cache from the beginning of the answer that wrote it on; calls that go out before that write it,
//! and pay for it, again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::AccountName;
use crate::id::{CallId, Digest};
use crate::time::Timestamp;

/// How long others wait for the answer of a call that was sent.
const LEAD: Duration = Duration::from_secs(30);
/// How long a call waits in all, whoever writes meanwhile.
const LONGEST: Duration = Duration::from_secs(2 * 60);
/// How long a prefix counts as cached: the shorter of the usual lifetimes.
const CACHED: Duration = Duration::from_secs(5 * 60);

/// A prefix as providers keep it: of one account and one model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PrefixKey {
    pub(super) account: AccountName,
    pub(super) model: String,
    pub(super) digest: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    /// This call writes it, and waits for its own turn until it is sent.
    Led { by: CallId },
    /// This call was sent; its answer is waited for.
    Sent { by: CallId, until: Timestamp },
    /// Nobody waits for it.
    Open { until: Timestamp },
}

impl Prefix {
    /// What it is now. Whether an answer began of which nothing is heard is not known, and nobody waits any longer.
    fn at(self, now: Timestamp) -> Self {
        match self {
            Self::Sent { until, .. } if now >= until => Self::Open { until: until + CACHED },
            Self::Led { .. } | Self::Sent { .. } | Self::Open { .. } => self,
        }
    }
}

/// Whether a call waits for another one's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It has waited since then.
    Since(Timestamp),
    /// It waits no more.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Gated {
    Pass,
    Wait { until: Timestamp },
}

#[derive(Debug, Default)]
pub(super) struct PrefixGate {
    prefixes: BTreeMap<PrefixKey, Prefix>,
}

impl PrefixGate {
    /// Asks for a call. The first one writes.
    pub(super) fn ask(&mut self, key: &PrefixKey, call: CallId, patience: Patience, now: Timestamp) -> Gated {
        let until = match self.prefixes.get(key).map(|prefix| prefix.at(now)) {
            Some(Prefix::Led { by } | Prefix::Sent { by, .. }) if by == call => return Gated::Pass,
            Some(Prefix::Open { until }) if now < until => return Gated::Pass,
            Some(Prefix::Open { .. }) | None => {
                self.prefixes.insert(key.clone(), Prefix::Led { by: call });
                return Gated::Pass;
            }
            Some(Prefix::Sent { until, .. }) => Some(until),
            Some(Prefix::Led { .. }) => None,
        };
        let Patience::Since(since) = patience else {
            return Gated::Pass;
        };
        let longest = since + LONGEST;
        let until = until.map_or(longest, |until| until.min(longest));
        if now < until {
            Gated::Wait { until }
        } else {
            Gated::Pass
        }
    }

    /// The call goes out.
    pub(super) fn sent(&mut self, key: &PrefixKey, call: CallId, now: Timestamp) {
        if let Some(prefix) = self.prefixes.get_mut(key)
            && *prefix == (Prefix::Led { by: call })
        {
            *prefix = Prefix::Sent {
                by: call,
                until: now + LEAD,
            };
        }
    }

    /// The answer of a call with this prefix begins. True when others waited for that.
    pub(super) fn written(&mut self, key: &PrefixKey, now: Timestamp) -> bool {
        // Whoever wrote it: it is there.
        let until = now + CACHED;
        let before = self.prefixes.insert(key.clone(), Prefix::Open { until });
        matches!(before, Some(Prefix::Led { .. } | Prefix::Sent { .. }))
    }

    /// The call was not made, or failed. True when it was to write, and another one is to.
    pub(super) fn failed(&mut self, key: &PrefixKey, call: CallId, now: Timestamp) -> bool {
        let leads = matches!(
            self.prefixes.get(key).map(|prefix| prefix.at(now)),
            Some(Prefix::Led { by } | Prefix::Sent { by, .. }) if by == call
        );
        if leads {
            self.prefixes.remove(key);
        }
        leads
    }

    pub(super) fn sweep(&mut self, now: Timestamp) {
        self.prefixes.retain(|_, prefix| match prefix.at(now) {
            Prefix::Led { .. } | Prefix::Sent { .. } => true,
            Prefix::Open { until } => now < until,
        });
    }
}
