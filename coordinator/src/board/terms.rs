//! Deadlines of live attempts, by this process's clock, ordered by time, so that checking them
//! costs the same however many there are. `kage_core::deadline` decides their length.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::id::{AgentId, AttemptId};
use tokio::time::Instant;

/// An attempt past its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) attempt: AttemptId,
    pub(crate) agent: AgentId,
    pub(crate) reason: EndReason,
}

struct Term {
    agent: AgentId,
    /// `None`: later than any clock can represent.
    ends_by: Option<Instant>,
    /// The deadline for the answer to an order to stop.
    stop_by: Option<Instant>,
}

impl Term {
    fn next(&self) -> Option<Instant> {
        self.ends_by.into_iter().chain(self.stop_by).min()
    }
}

#[derive(Default)]
pub(super) struct Terms {
    by_attempt: HashMap<AttemptId, Term>,
    order: BTreeSet<(Instant, AttemptId)>,
}

impl Terms {
    /// Whether the attempt has a deadline.
    pub(super) fn has(&self, attempt: AttemptId) -> bool {
        self.by_attempt.contains_key(&attempt)
    }

    /// Limits how long an attempt may be live.
    pub(super) fn allow(&mut self, agent: AgentId, attempt: AttemptId, allowed: Duration, now: Instant) {
        self.change(agent, attempt, |term| term.ends_by = now.checked_add(allowed));
    }

    /// Limits the time to stop; an earlier order's deadline stays.
    pub(super) fn stop(&mut self, agent: AgentId, attempt: AttemptId, within: Duration, now: Instant) {
        self.change(agent, attempt, |term| {
            term.stop_by = term.stop_by.or_else(|| now.checked_add(within));
        });
    }

    /// Adds the time in which the attempt had no lease.
    pub(super) fn give_back(&mut self, attempt: AttemptId, time: Duration) {
        if let Some(agent) = self.by_attempt.get(&attempt).map(|term| term.agent) {
            self.change(agent, attempt, |term| {
                term.ends_by = term.ends_by.and_then(|at| at.checked_add(time));
            });
        }
    }

    pub(super) fn forget(&mut self, attempt: AttemptId) {
        if let Some(next) = self.by_attempt.remove(&attempt).and_then(|term| term.next()) {
            self.order.remove(&(next, attempt));
        }
    }

    /// The attempts past their deadline, each returned once.
    pub(super) fn late(&mut self, now: Instant) -> Vec<Late> {
        let mut late = Vec::new();
        while let Some((at, attempt)) = self.order.first().copied().filter(|(at, _)| *at <= now) {
            self.order.remove(&(at, attempt));
            let Some(term) = self.by_attempt.remove(&attempt) else {
                continue;
            };
            let reason = match term.stop_by {
                Some(stop_by) if stop_by == at => EndReason::StopUnanswered,
                Some(_) | None => EndReason::Overdue,
            };
            let agent = term.agent;
            late.push(Late { attempt, agent, reason });
        }
        late
    }

    fn change(&mut self, agent: AgentId, attempt: AttemptId, change: impl FnOnce(&mut Term)) {
        let term = self.by_attempt.entry(attempt).or_insert(Term {
            agent,
            ends_by: None,
            stop_by: None,
        });
        let before = term.next();
        change(term);
        let after = term.next();
        if before != after {
            if let Some(before) = before {
                self.order.remove(&(before, attempt));
            }
            if let Some(after) = after {
                self.order.insert((after, attempt));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_earliest_is_late_first_and_once() {
        let (mut terms, now) = (Terms::default(), Instant::now());
        let (one, two, three) = (1, 2, 3);
        let id = AttemptId::from_random;
        let agent = AgentId::from_random(9);
        terms.allow(agent, id(one), secs(10), now);
        terms.allow(agent, id(two), secs(20), now);
        terms.allow(agent, id(three), Duration::MAX, now);
        terms.stop(agent, id(two), secs(5), now);
        // Repeating the order changes nothing.
        terms.stop(agent, id(two), secs(5), now + secs(4));
        terms.give_back(id(one), secs(3));
        terms.give_back(id(7), secs(3));
        let mut late = |seconds| {
            let late = terms.late(now + secs(seconds));
            late.into_iter()
                .map(|late| (late.attempt, late.reason))
                .collect::<Vec<_>>()
        };
        assert_eq!(late(4), []);
        assert_eq!(late(5), [(id(two), EndReason::StopUnanswered)]);
        assert_eq!(late(12), []);
        assert_eq!(late(20), [(id(one), EndReason::Overdue)]);
        assert_eq!(late(1_000_000), []);
        assert!(terms.has(id(three)));
        terms.stop(agent, id(three), secs(1), now);
        terms.forget(id(three));
        assert_eq!(terms.late(now + secs(1_000_000)), []);
        assert!(terms.order.is_empty() && terms.by_attempt.is_empty());
    }
}
