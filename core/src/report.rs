//! The comparison of a task's sessions, best first, and which of them to land.
//!
//! The order is: standing (verified, unverified, not over, rejected, failed, cancelled), risk,
//! lines changed, files changed, money (unknown last), time, name. Every input of it is in
//! the row. A verified session that changed what verify depends on has [`Risk::High`], and so
//! ranks below every clean pass and above everything that did not pass: it wins only when
//! nothing clean passed, and its flags say why to look twice.

use std::time::Duration;

use crate::event::DiffStat;
use crate::id::{SessionName, TaskId};
use crate::price::{PriceTable, session_money};
use crate::risk::{Assessment, Risk, assess};
use crate::session::{Session, SessionState, SessionStateKind};
use crate::task::Task;
use crate::time::Timestamp;
use crate::usage::{Money, Usage};

/// The comparison of a task's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whose sessions.
    pub task: TaskId,
    /// The session to land. `None` when none may be landed: nothing was verified, or, without
    /// a verify command, nobody sent a result.
    pub winner: Option<SessionName>,
    /// Best first.
    pub rows: Vec<ReportRow>,
    /// A session is not over, so the order may still change.
    pub provisional: bool,
}

/// One session in the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// From 1.
    pub rank: u32,
    /// The session.
    pub session: Session,
    /// How risky it is to land its result.
    pub risk: Risk,
    /// Why, a sentence each.
    pub flags: Vec<String>,
    /// What it cost, by provenance.
    pub money: Vec<Money>,
    /// What it used, all models together.
    pub usage: Usage,
    /// From its first attempt to its end, or until now.
    pub duration: Duration,
    /// What it took, a sentence each.
    pub history: Vec<String>,
}

/// Compares the sessions of a task. Usage is priced as of the start of each session, so that
/// a later price does not change what an earlier session cost.
#[must_use]
pub fn rank(task: &Task, sessions: &[Session], prices: &PriceTable, now: Timestamp) -> Report {
    let mut rows: Vec<ReportRow> = sessions.iter().map(|session| row(task, session, prices, now)).collect();
    rows.sort_by_cached_key(order);
    for (rank, row) in (1..).zip(&mut rows) {
        row.rank = rank;
    }
    Report {
        task: task.id,
        winner: winner(task, &rows),
        provisional: rows.iter().any(|row| !row.session.state.is_terminal()),
        rows,
    }
}

fn row(task: &Task, session: &Session, prices: &PriceTable, now: Timestamp) -> ReportRow {
    let Assessment { risk, flags } = session
        .state
        .result()
        .map(|result| assess(result, &task.spec))
        .unwrap_or_default();
    let priced_at = session.started_at.unwrap_or(now);
    let end = session.ended_at.unwrap_or(now);
    ReportRow {
        rank: 0,
        risk,
        flags,
        money: session_money(&session.usage, prices, priced_at),
        usage: session.total_usage(),
        duration: session.started_at.map_or(Duration::ZERO, |start| end.since(start)),
        history: history(session),
        session: session.clone(),
    }
}

/// The first row that may be landed: a verified one, or, when there is nothing to verify
/// with, an unverified one that has a result.
fn winner(task: &Task, rows: &[ReportRow]) -> Option<SessionName> {
    let checked = task.spec.policy.verify.verify.is_some();
    let best = rows.iter().find(|row| match standing(&row.session.state) {
        Standing::Verified => true,
        Standing::Unverified => !checked && row.session.state.result().is_some(),
        Standing::Open | Standing::Rejected | Standing::Failed | Standing::Cancelled => false,
    })?;
    Some(best.session.name.clone())
}

/// How far a session came, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Verified,
    Unverified,
    Open,
    Rejected,
    Failed,
    Cancelled,
}

const fn standing(state: &SessionState) -> Standing {
    match state.kind() {
        SessionStateKind::Verified => Standing::Verified,
        SessionStateKind::Unverified => Standing::Unverified,
        SessionStateKind::Queued
        | SessionStateKind::Running
        | SessionStateKind::Claimed
        | SessionStateKind::Verifying => Standing::Open,
        SessionStateKind::Rejected => Standing::Rejected,
        SessionStateKind::Failed => Standing::Failed,
        SessionStateKind::Cancelled => Standing::Cancelled,
    }
}

/// Sorts rows; the smallest is the best.
type Order = (Standing, bool, Risk, u64, u32, Cost, Duration, SessionName);

fn order(row: &ReportRow) -> Order {
    let result = row.session.state.result();
    let diff = result.map_or_else(DiffStat::default, |result| result.diff);
    (
        standing(&row.session.state),
        result.is_none(),
        row.risk,
        diff.added.saturating_add(diff.removed),
        diff.files,
        Cost::of(&row.money),
        row.duration,
        row.session.name.clone(),
    )
}

/// Money as far as the order needs it. Nothing else sees the total over provenances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    Known(i128),
    /// Also when nothing was told at all: a program that tells no cost is not free.
    Unknown,
}

impl Cost {
    fn of(money: &[Money]) -> Self {
        if money.is_empty() {
            return Self::Unknown;
        }
        money
            .iter()
            .try_fold(0_i128, |sum, part| Some(sum + i128::from(part.amount?.0)))
            .map_or(Self::Unknown, Self::Known)
    }
}

fn history(session: &Session) -> Vec<String> {
    let mut lines = Vec::new();
    if session.attempts > 1 {
        lines.push(format!("took {} attempts", session.attempts));
    }
    match session.call_retries {
        0 => {}
        1 => lines.push("repeated 1 model call".to_owned()),
        n => lines.push(format!("repeated {n} model calls")),
    }
    if let Some(verdict) = session.state.verdict() {
        lines.push(format!("verify on {}: {}", verdict.agent, verdict.message));
    }
    if let SessionState::Failed { failure } = &session.state {
        lines.push(format!("failed: {failure}"));
    }
    lines
}
