//! Adapters or models compared over the sessions of many tasks: how often they succeed, what they use,
//! what that costs and how long it takes. `report` compares the sessions of one task and chooses a
//! result; nothing here chooses.
//!
//! A session counts as a try when it ended by itself: verified, rejected, unverified or failed. One that a
//! person stopped, that was spared or that has not ended says nothing about success; what it used and
//! cost is counted all the same.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::session::SessionStateKind;
use crate::usage::{Money, PicoUsd, Provenance, Usage};

/// What is known of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its state.
    pub state: SessionStateKind,
    /// True when its task has a verify command.
    pub checked: bool,
    /// True when it has a result that somebody claimed.
    pub has_result: bool,
    /// Its tokens; `None`: nothing was reported.
    pub usage: Option<Usage>,
    /// Its cost, one amount for each provenance.
    pub money: Vec<Money>,
    /// How long its attempts ran; `None`: none was started.
    pub ran: Option<Duration>,
    /// Answered model calls; `None`: nobody told.
    pub turns: Option<u64>,
    /// Calls of tools; `None`: nobody told.
    pub tools: Option<u64>,
}

/// All sessions of one adapter or model.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The adapter or the model.
    pub name: String,
    /// All of its sessions.
    pub sessions: u64,
    /// Those that ended by themselves.
    pub tries: u64,
    /// Those of them that were verified or, in a task without a verify command, have a result.
    pub succeeded: u64,
    /// Those that were verified.
    pub verified: u64,
    /// The share of successes, between the bounds of [`wilson`]; `None`: there was no try.
    pub success: Option<Interval>,
    /// Tokens of all sessions.
    pub usage: Usage,
    /// The part of all input that was read from a cache; `None`: there was no input.
    pub cache_share: Option<f64>,
    /// Money of all sessions, one amount for each provenance.
    pub money: Vec<Money>,
    /// Half of the tries took no longer.
    pub p50: Option<Duration>,
    /// 19 of 20 tries took no longer.
    pub p95: Option<Duration>,
    /// Answered model calls for each session that told, on average.
    pub turns: Option<f64>,
    /// Calls of tools for each session that told, on average.
    pub tools: Option<f64>,
}

/// A share with what it may be by chance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// What was seen.
    pub seen: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// Compares by name: the most successful first, by the lower bound of success, so that one lucky try is
/// not the best. Among equals the one with more tries, and then the name.
#[must_use]
pub fn compare(sessions: impl IntoIterator<Item = (String, Observed)>) -> Vec<Compared> {
    let mut groups: BTreeMap<String, Vec<Observed>> = BTreeMap::new();
    for (name, observed) in sessions {
        groups.entry(name).or_default().push(observed);
    }
    let mut rows: Vec<Compared> = groups.into_iter().map(|(name, all)| compared(name, &all)).collect();
    let low = |row: &Compared| row.success.map_or(-1.0, |success| success.low);
    rows.sort_by(|a, b| {
        low(b)
            .total_cmp(&low(a))
            .then(b.tries.cmp(&a.tries))
            .then_with(|| a.name.cmp(&b.name))
    });
    rows
}

fn compared(name: String, all: &[Observed]) -> Compared {
    let tries: Vec<&Observed> = all.iter().filter(|session| is_try(session.state)).collect();
    let verified = count(
        tries
            .iter()
            .filter(|session| session.state == SessionStateKind::Verified),
    );
    let succeeded = count(tries.iter().filter(|session| succeeded(session)));
    let mut usage = Usage::default();
    for session in all {
        // What nobody reported is not zero tokens, if anything ran.
        usage += match (session.usage, session.ran) {
            (Some(usage), _) => usage,
            (None, Some(_)) => Usage::UNKNOWN,
            (None, None) => Usage::default(),
        };
    }
    let mut ran: Vec<Duration> = tries.iter().filter_map(|session| session.ran).collect();
    ran.sort_unstable();
    Compared {
        name,
        sessions: count(all.iter()),
        tries: count(tries.iter()),
        succeeded,
        verified,
        success: wilson(succeeded, count(tries.iter())),
        usage,
        cache_share: cache_share(&usage),
        money: sums(all),
        p50: percentile(&ran, 50),
        p95: percentile(&ran, 95),
        turns: mean(all.iter().filter_map(|session| session.turns)),
        tools: mean(all.iter().filter_map(|session| session.tools)),
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    items.fold(0, |count, _| count + 1)
}

const fn is_try(state: SessionStateKind) -> bool {
    match state {
        SessionStateKind::Verified
        | SessionStateKind::Rejected
        | SessionStateKind::Unverified
        | SessionStateKind::Failed => true,
        SessionStateKind::Queued
        | SessionStateKind::Running
        | SessionStateKind::Claimed
        | SessionStateKind::Verifying
        | SessionStateKind::Saving
        | SessionStateKind::Cancelled => false,
    }
}

const fn succeeded(session: &Observed) -> bool {
    match session.state {
        SessionStateKind::Verified => true,
        // Verify could not decide, or there is none: then a result is all that can be had.
        SessionStateKind::Unverified => !session.checked && session.has_result,
        _ => false,
    }
}

/// The Wilson score interval of 95 %: what the share may be when so many of so many succeeded. Unlike the
/// mean with its standard error it holds for few tries and for shares of 0 and 1 (Wilson 1927; Newcombe
/// 1998, method 3). `None`: there was no try.
#[must_use]
pub fn wilson(succeeded: u64, tries: u64) -> Option<Interval> {
    /// The quantile of the normal distribution at 97.5 %.
    const Z: f64 = 1.959_963_984_540_054;
    if tries == 0 {
        return None;
    }
    let (k, n) = (float(succeeded.min(tries)), float(tries));
    let seen = k / n;
    let middle = (k + Z * Z / 2.0) / (n + Z * Z);
    let half = Z / (n + Z * Z) * (k * (n - k) / n + Z * Z / 4.0).sqrt();
    Some(Interval {
        seen,
        low: (middle - half).max(0.0),
        high: (middle + half).min(1.0),
    })
}

/// The smallest of the sorted values that so many percent of them do not exceed (the nearest rank).
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

fn mean(values: impl Iterator<Item = u64>) -> Option<f64> {
    let (sum, count) = values.fold((0_u64, 0_u64), |(sum, count), value| {
        (sum.saturating_add(value), count + 1)
    });
    (count > 0).then(|| float(sum) / float(count))
}

/// The part of all input that was read from a cache.
#[must_use]
pub fn cache_share(usage: &Usage) -> Option<f64> {
    let written = usage.cache_write_5m.saturating_add(usage.cache_write_1h);
    let input = usage.input.saturating_add(written).saturating_add(usage.cache_read);
    (input > 0).then(|| float(usage.cache_read) / float(input))
}

/// One amount for each provenance; an unknown part makes that of its provenance unknown.
fn sums(all: &[Observed]) -> Vec<Money> {
    let mut sums: BTreeMap<Provenance, Option<PicoUsd>> = BTreeMap::new();
    for money in all.iter().flat_map(|session| &session.money) {
        let sum = sums.entry(money.provenance).or_insert(Some(PicoUsd(0)));
        *sum = sum.zip(money.amount).map(|(a, b)| a.saturating_add(b));
    }
    sums.into_iter()
        .map(|(provenance, amount)| Money { amount, provenance })
        .collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts below 2^53 are exact, and shares need few digits"
)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 0.000_05
    }

    /// Values that were published: Newcombe (1998), table I, method 3; Brown, Cai and DasGupta (2001).
    #[test]
    fn the_interval_is_wilsons() {
        for (k, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0000, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (8, 10, 0.4902, 0.9433),
            (10, 10, 0.7225, 1.0000),
            (1, 1, 0.2065, 1.0000),
        ] {
            let found = wilson(k, n).unwrap();
            assert!(near(found.low, low) && near(found.high, high), "{k}/{n}: {found:?}");
        }
        assert_eq!(wilson(0, 0), None);
        assert!(wilson(9, 3).unwrap().high <= 1.0);
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let seconds = |all: &[u64]| all.iter().copied().map(Duration::from_secs).collect::<Vec<_>>();
        for (all, p50, p95) in [
            (&[7][..], 7, 7),
            (&[1, 2], 1, 2),
            (&[1, 2, 3], 2, 3),
            (&(1..=20).collect::<Vec<_>>(), 10, 19),
            (&(1..=100).collect::<Vec<_>>(), 50, 95),
        ] {
            let sorted = seconds(all);
            assert_eq!(percentile(&sorted, 50), Some(Duration::from_secs(p50)), "{all:?}");
            assert_eq!(percentile(&sorted, 95), Some(Duration::from_secs(p95)), "{all:?}");
        }
        assert_eq!(percentile(&[], 50), None);
    }

    fn observed(state: SessionStateKind) -> Observed {
        Observed {
            state,
            checked: true,
            has_result: true,
            usage: Some(Usage {
                input: 100,
                cache_write_5m: 100,
                cache_read: 600,
                output: 50,
                ..Usage::default()
            }),
            money: vec![Money {
                amount: Some(PicoUsd(5)),
                provenance: Provenance::Billed,
            }],
            ran: Some(Duration::from_secs(3)),
            turns: Some(4),
            tools: None,
        }
    }

    #[test]
    fn stopped_and_open_sessions_are_no_tries_but_cost() {
        use SessionStateKind as S;
        let all = [
            S::Verified,
            S::Rejected,
            S::Failed,
            S::Unverified,
            S::Cancelled,
            S::Running,
        ];
        let rows = compare(all.map(|state| ("a".to_owned(), observed(state))));
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.sessions, row.tries, row.succeeded, row.verified), (6, 4, 1, 1));
        assert_eq!(row.usage.cache_read, 3_600);
        assert_eq!(row.cache_share, Some(0.75));
        assert_eq!(row.money[0].amount, Some(PicoUsd(30)));
        assert_eq!((row.turns, row.tools), (Some(4.0), None));
    }

    #[test]
    fn without_a_verify_command_a_result_is_a_success() {
        let session = |checked, has_result| Observed {
            checked,
            has_result,
            ..observed(SessionStateKind::Unverified)
        };
        let all = [session(false, true), session(false, false), session(true, true)];
        let rows = compare(all.map(|session| ("a".to_owned(), session)));
        assert_eq!((rows[0].tries, rows[0].succeeded, rows[0].verified), (3, 1, 0));
    }

    #[test]
    fn one_lucky_try_is_not_the_best() {
        use SessionStateKind as S;
        let many = |name: &str, verified: usize, rejected: usize| {
            let states = std::iter::repeat_n(S::Verified, verified).chain(std::iter::repeat_n(S::Rejected, rejected));
            states
                .map(|state| (name.to_owned(), observed(state)))
                .collect::<Vec<_>>()
        };
        let all = [
            many("lucky", 1, 0),
            many("good", 18, 2),
            many("bad", 1, 9),
            many("waits", 0, 0),
        ];
        let waits = ("waits".to_owned(), observed(S::Queued));
        let rows = compare(all.into_iter().flatten().chain([waits]));
        let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["good", "lucky", "bad", "waits"]);
        assert_eq!(rows[3].success, None);
    }

    #[test]
    fn what_is_unknown_is_not_zero() {
        let untold = Observed {
            usage: None,
            money: vec![Money {
                amount: None,
                provenance: Provenance::Unknown,
            }],
            ..observed(SessionStateKind::Verified)
        };
        let rows = compare([
            ("a".to_owned(), observed(SessionStateKind::Verified)),
            ("a".to_owned(), untold),
        ]);
        assert!(rows[0].usage.unreported.of_the_bill());
        let amounts: Vec<_> = rows[0]
            .money
            .iter()
            .map(|money| (money.provenance, money.amount))
            .collect();
        assert_eq!(
            amounts,
            [(Provenance::Billed, Some(PicoUsd(5))), (Provenance::Unknown, None)]
        );
    }
}
