//! The comparison of a task's sessions, best first, and the one to land.
//!
//! The order is: standing (verified, unverified, not over, rejected, failed, cancelled), risk,
//! suspicion, lines changed, files changed, money (unknown last), time, name. Every input of it is in the row.
//! A verified session that changed what verify depends on has [`Risk::High`], and so ranks below
//! every clean pass and above everything that did not pass; one whose run of verify looks unlike the
//! base's is suspicious, which is of high risk and ranks below others of that risk. It does not win: a result of high risk
//! lands only when a person picks it or accepts the risk. A result that a person selected wins
//! without changing the order. A session that failed or was cancelled may have an unfinished
//! result: it ranks before others of its standing, first of all when verify passed it, below every
//! claimed result, and never wins by itself.

use std::time::Duration;

use crate::checkpoint::Resumption;
use crate::contain;
use crate::event::{Verdict, VerdictKind};
use crate::id::{SessionName, TaskId};
use crate::recovery::{Action, Incident};
use crate::risk::{Assessment, Risk, assess};
use crate::session::{Costs, Fork, Session, SessionMessage, SessionState};
use crate::suspicion::suspicions;
use crate::task::Task;
use crate::time::Timestamp;

mod order;
mod savings;

use order::{Standing, order, standing};

/// The comparison of a task's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The task.
    pub task: TaskId,
    /// The session to land, or why there is none.
    pub best: Best,
    /// Best first.
    pub rows: Vec<ReportRow>,
    /// True when a session is not over, so the order may still change.
    pub provisional: bool,
    /// Notes about every session, a sentence each.
    pub notes: Vec<String>,
}

/// The best result, and whether it lands without a person's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Best {
    /// A person or their program decided on this session's result.
    Selected {
        /// The session.
        session: SessionName,
        /// Who decided.
        by: String,
    },
    /// This session's result passed verify, and its risk is not high.
    Verified(SessionName),
    /// There is no verify command; this is the first session with a result, and its risk is not
    /// high.
    Unchecked(SessionName),
    /// Every result that could be landed is of high risk: this one is the first of them, and does
    /// not win by itself.
    Risky {
        /// The first.
        session: SessionName,
        /// Why its risk is high, and other flags.
        flags: Vec<String>,
    },
    /// Nothing was verified or, without a verify command, no session sent a result.
    Nothing,
}

impl Best {
    /// The session to land.
    #[must_use]
    pub const fn winner(&self) -> Option<&SessionName> {
        match self {
            Self::Selected { session, .. } | Self::Verified(session) | Self::Unchecked(session) => Some(session),
            Self::Risky { .. } | Self::Nothing => None,
        }
    }

    /// One sentence for people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Selected { session, by } => format!("{session} was selected by {by}"),
            Self::Verified(session) => format!("{session} is the best session that passed verify"),
            Self::Unchecked(session) => {
                format!("{session} is the best session with a result; there is no verify command")
            }
            Self::Risky { session, flags } => format!(
                "no session wins by itself, because every result that could be landed is of high risk; the first is \
                 {session}, which {}",
                flags.join("; ")
            ),
            Self::Nothing => "no session has a result that may be landed".to_owned(),
        }
    }
}

/// A session in the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// From 1.
    pub rank: u32,
    /// The session.
    pub session: Session,
    /// The risk of landing its result.
    pub risk: Risk,
    /// The reasons for the risk, a sentence each.
    pub flags: Vec<String>,
    /// The output of verify speaks against it: see [`crate::suspicion`]. The reasons are the first of
    /// `flags`.
    pub suspicious: bool,
    /// Its cost.
    pub costs: Costs,
    /// How long its attempts ran, the present one until now.
    pub duration: Duration,
    /// Its history, a sentence each.
    pub history: Vec<String>,
}

/// Compares the sessions of a task.
#[must_use]
pub fn rank(task: &Task, sessions: &[Session], now: Timestamp) -> Report {
    let mut rows: Vec<ReportRow> = sessions.iter().map(|session| row(task, session, now)).collect();
    rows.sort_by_cached_key(order);
    for (rank, row) in (1..).zip(&mut rows) {
        row.rank = rank;
    }
    Report {
        task: task.id,
        best: best(task, &rows),
        provisional: rows.iter().any(|row| !row.session.state.is_terminal()),
        notes: about_base(task)
            .into_iter()
            .chain(not_compared(task, &rows))
            .chain(savings::note(task, &rows))
            .collect(),
        rows,
    }
}

/// That numbers of tests are known, and nothing to compare them with.
fn not_compared(task: &Task, rows: &[ReportRow]) -> Option<String> {
    let why = match &task.baseline {
        None if rows.iter().all(|row| row.session.state.is_terminal()) => "verify did not run on the base in time",
        // That it cannot be run there is a note of its own.
        Some(base) if base.kind == VerdictKind::Errored || base.has_counts() => return None,
        Some(base) if base.tests.is_none() => "the agent that checked the base is of a version that counts no tests",
        Some(_) => "verify told no number of tests on the base",
        None => return None,
    };
    let counted = |verdict: &Verdict| verdict.kind == VerdictKind::Passed && verdict.has_counts();
    let mut verdicts = rows.iter().filter_map(|row| row.session.state.verdict());
    let told = verdicts.any(counted);
    told.then(|| format!("{why}, so nothing says whether the results ran all of its tests"))
}

/// A note about the base for people: `None` when it passed.
fn about_base(task: &Task) -> Option<String> {
    let verdict = task.baseline.as_ref()?;
    let what = match verdict.kind {
        VerdictKind::Passed => None,
        VerdictKind::Failed => Some("verify already fails on the base"),
        VerdictKind::Errored => Some("verify cannot be run on the base"),
    };
    let what = what.map(|what| format!("{what}: {}", verdict.message));
    let Some(at) = task.baseline_kept_since else {
        return what;
    };
    let kept = checked_before(at, &verdict.agent);
    Some(match what {
        None => format!("base {kept}"),
        Some(what) => format!("{what} (base {kept})"),
    })
}

/// That a verdict on the base is one of an earlier task, in the same words wherever it is shown.
#[must_use]
pub fn checked_before(at: Timestamp, agent: &str) -> String {
    format!(
        "verified on {} by {agent}, for an earlier task",
        at.to_date_and_minute()
    )
}

fn row(task: &Task, session: &Session, now: Timestamp) -> ReportRow {
    let restored = session.state.verdict().map_or(&[][..], |verdict| &verdict.restored);
    let judged = session.state.result().map(|result| {
        let found = suspicions(session.state.verdict(), task.baseline.as_ref());
        (
            !found.strong.is_empty(),
            assess(result, &task.spec, restored).with(found),
        )
    });
    let (suspicious, Assessment { risk, flags }) = judged.unwrap_or_default();
    ReportRow {
        rank: 0,
        risk,
        flags,
        suspicious,
        costs: session.costs(),
        duration: session.worked.until(now),
        history: history(session),
        session: session.clone(),
    }
}

/// The selected row or, when there is none, the first row that may be landed: a verified one or,
/// without a verify command, an unverified one that has a result.
fn best(task: &Task, rows: &[ReportRow]) -> Best {
    if let Some(selection) = &task.selection
        && let Some(row) = rows.iter().find(|row| row.session.id == selection.session)
        && row.session.state.result().is_some()
    {
        return Best::Selected {
            session: row.session.name.clone(),
            by: selection.by.clone(),
        };
    }
    let checked = task.spec.policy.verify.verify.is_some();
    let first = rows.iter().find(|row| match standing(&row.session.state) {
        Standing::Verified => true,
        Standing::Unverified => !checked && row.session.state.result().is_some(),
        Standing::Open | Standing::Rejected | Standing::Failed | Standing::Cancelled => false,
    });
    let Some(row) = first else {
        return Best::Nothing;
    };
    let session = row.session.name.clone();
    match (row.risk, checked) {
        // All later rows in the order are of high risk as well.
        (Risk::High, _) => Best::Risky {
            session,
            flags: row.flags.clone(),
        },
        (Risk::None | Risk::Low, true) => Best::Verified(session),
        (Risk::None | Risk::Low, false) => Best::Unchecked(session),
    }
}

fn history(session: &Session) -> Vec<String> {
    let mut lines = Vec::new();
    if session.attempts > 1 {
        lines.push(format!("took {} attempts", session.attempts));
    }
    match session.calls.repeated {
        0 => {}
        1 => lines.push("repeated 1 model call".to_owned()),
        n => lines.push(format!("repeated {n} model calls")),
    }
    lines.extend(session.fork.iter().map(Fork::words));
    lines.extend(session.turn_words());
    lines.extend(session.messages.kept.iter().map(SessionMessage::words));
    lines.extend(session.incidents.iter().map(Incident::words));
    lines.extend(session.checkpoints.resumptions.iter().map(Resumption::words));
    let checked = session.state.verdict().map(|verdict| verdict.contained);
    lines.extend(contain::words(session.contained, checked));
    if let Some(verdict) = session.state.verdict() {
        let place = match verdict.agent.as_str() {
            "" => String::new(),
            agent => format!(" on {agent}"),
        };
        lines.push(format!("verify{place}: {}", verdict.message));
    }
    let told = session
        .incidents
        .last()
        .is_some_and(|incident| incident.decision.action == Action::Escalate);
    if let (SessionState::Failed { failure, .. }, false) = (&session.state, told) {
        lines.push(format!("failed: {failure}"));
    }
    if session.state.is_unfinished() {
        let from = session.checkpoints.head.as_ref().map_or(0, |head| head.number);
        lines.push(format!(
            "its result is unfinished: the files of checkpoint {from}{}",
            match session.state.verdict() {
                None => ", which nothing checked",
                Some(_) => "",
            }
        ));
    }
    lines
}

#[cfg(test)]
mod tests;
