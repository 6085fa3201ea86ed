//! The order of a report's rows: the criteria, and their sequence.

use std::time::Duration;

use super::ReportRow;
use crate::event::{DiffStat, VerdictKind};
use crate::id::SessionName;
use crate::risk::Risk;
use crate::session::{SessionState, SessionStateKind};
use crate::usage::Money;

/// How far a session came, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Verified,
    Unverified,
    Open,
    Rejected,
    Failed,
    Cancelled,
}

pub(super) const fn standing(state: &SessionState) -> Standing {
    match state.kind() {
        SessionStateKind::Verified => Standing::Verified,
        SessionStateKind::Unverified => Standing::Unverified,
        SessionStateKind::Queued
        | SessionStateKind::Running
        | SessionStateKind::Claimed
        | SessionStateKind::Verifying
        | SessionStateKind::Saving => Standing::Open,
        SessionStateKind::Rejected => Standing::Rejected,
        SessionStateKind::Failed => Standing::Failed,
        SessionStateKind::Cancelled => Standing::Cancelled,
    }
}

/// What verify, when somebody asked for it, said about an unfinished result, best first. Of every
/// other session its standing says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Checked {
    Passed,
    NotAtAll,
    Failed,
}

impl Checked {
    fn of(state: &SessionState) -> Self {
        match state
            .verdict()
            .filter(|_| state.is_unfinished())
            .map(|verdict| verdict.kind)
        {
            Some(VerdictKind::Passed) => Self::Passed,
            Some(VerdictKind::Errored) | None => Self::NotAtAll,
            Some(VerdictKind::Failed) => Self::Failed,
        }
    }
}

/// Sorts rows; the smallest is the best.
pub(super) type Order = (
    Standing,
    bool,
    Checked,
    Risk,
    bool,
    u64,
    u32,
    Cost,
    Duration,
    SessionName,
);

pub(super) fn order(row: &ReportRow) -> Order {
    let result = row.session.state.result();
    let diff = result.map_or_else(DiffStat::default, |result| result.diff);
    (
        standing(&row.session.state),
        result.is_none(),
        Checked::of(&row.session.state),
        row.risk,
        row.suspicious,
        diff.added.saturating_add(diff.removed),
        diff.files,
        Cost::of(&row.costs.all),
        row.duration,
        row.session.name.clone(),
    )
}

/// Money for the order. Nothing else sees the total over provenances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cost {
    Known(i128),
    /// Also when no cost was reported at all: a program that reports no cost is not free.
    Unknown,
}

impl Cost {
    pub(super) fn of(money: &[Money]) -> Self {
        if money.is_empty() {
            return Self::Unknown;
        }
        money
            .iter()
            .try_fold(0_i128, |sum, part| Some(sum + i128::from(part.amount?.0)))
            .map_or(Self::Unknown, Self::Known)
    }
}
