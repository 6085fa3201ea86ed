//! The agent's view of its leases: by its monotonic clock, counted from when it asked, so that it
//! never believes in a lease that the coordinator has forgotten. Synchronous; `connection` carries
//! out the effects.
//!
//! ```text
//!   held --shortly before its end--> frozen --too long--> killed
//!     ^-----------renewed--------------/
//! ```
//! Expiry takes authority away and kills nothing: a frozen attempt continues when its lease
//! is renewed, however late that is, unless it was killed before.

use std::collections::BTreeMap;
use std::time::Duration;

use kage_core::id::AttemptId;
use tokio::time::Instant;

/// What has to be done to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Effect {
    /// Pause its programs and its model calls.
    Freeze(AttemptId),
    Thaw(AttemptId),
    Kill(AttemptId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Lifetime after each renewal.
    pub(crate) ttl: Duration,
    /// How long an attempt may stay frozen.
    pub(crate) max_detached: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Lease {
    Held { freeze_at: Instant },
    Frozen { kill_at: Instant },
}

impl Lease {
    const fn due(self) -> Instant {
        match self {
            Self::Held { freeze_at } => freeze_at,
            Self::Frozen { kill_at } => kill_at,
        }
    }
}

/// The leases of all running attempts.
#[derive(Debug)]
pub(crate) struct Leases {
    terms: Terms,
    leases: BTreeMap<AttemptId, Lease>,
}

impl Leases {
    pub(crate) const fn new(terms: Terms) -> Self {
        Self {
            terms,
            leases: BTreeMap::new(),
        }
    }

    pub(crate) const fn terms(&self) -> Terms {
        self.terms
    }

    /// Called at each Welcome.
    pub(crate) const fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// Reserves a fifth of the lease for stopping the attempt.
    fn held(&self, asked: Instant) -> Lease {
        Lease::Held {
            freeze_at: asked + self.terms.ttl - self.terms.ttl / 5,
        }
    }

    /// Adds the lease of a new attempt, requested at `asked`.
    pub(crate) fn grant(&mut self, attempt: AttemptId, asked: Instant) {
        let lease = self.held(asked);
        self.leases.insert(attempt, lease);
    }

    /// Renews a lease by a heartbeat sent at `asked`.
    #[must_use]
    pub(crate) fn renew(&mut self, attempt: AttemptId, asked: Instant) -> Option<Effect> {
        let renewed = self.held(asked);
        let lease = self.leases.get_mut(&attempt)?;
        let before = std::mem::replace(lease, renewed);
        match before {
            Lease::Held { .. } => None,
            Lease::Frozen { .. } => Some(Effect::Thaw(attempt)),
        }
    }

    /// Removes the lease of an ended attempt.
    pub(crate) fn end(&mut self, attempt: AttemptId) {
        self.leases.remove(&attempt);
    }

    /// When [`Leases::due`] has to be called next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.due()).min()
    }

    pub(crate) fn due(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (attempt, lease) in &mut self.leases {
            if lease.due() > now {
                continue;
            }
            match *lease {
                Lease::Held { .. } => {
                    *lease = Lease::Frozen {
                        kill_at: now + self.terms.max_detached,
                    };
                    effects.push(Effect::Freeze(*attempt));
                }
                Lease::Frozen { .. } => effects.push(Effect::Kill(*attempt)),
            }
        }
        for effect in &effects {
            if let Effect::Kill(attempt) = effect {
                self.leases.remove(attempt);
            }
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        ttl: Duration::from_secs(20),
        max_detached: Duration::from_secs(600),
    };

    #[test]
    fn freezes_thaws_and_kills() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let one = AttemptId::from_random(1);
        let mut leases = Leases::new(TERMS);
        assert_eq!(leases.next(), None);
        leases.grant(one, start);
        assert_eq!(leases.next(), Some(at(16)));
        assert_eq!(leases.due(at(15)), []);
        assert_eq!(leases.renew(one, at(10)), None);
        assert_eq!(leases.due(at(16)), []);
        assert_eq!(leases.due(at(26)), [Effect::Freeze(one)]);
        assert_eq!(leases.due(at(27)), []);
        assert_eq!(leases.renew(one, at(100)), Some(Effect::Thaw(one)));
        assert_eq!(leases.due(at(116)), [Effect::Freeze(one)]);
        assert_eq!(leases.due(at(716)), [Effect::Kill(one)]);
        assert_eq!(leases.next(), None);
        assert_eq!(leases.renew(one, at(717)), None);
    }

    #[test]
    fn an_ended_attempt_has_no_lease() {
        let start = Instant::now();
        let mut leases = Leases::new(TERMS);
        leases.grant(AttemptId::from_random(1), start);
        leases.end(AttemptId::from_random(1));
        assert_eq!(leases.due(start + TERMS.ttl), []);
    }
}
