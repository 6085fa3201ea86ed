//! Reports: the comparison of a task's sessions. One way only, as for sessions.

use kage_core::id::SessionName;
use kage_core::report::{Best, Report};
use kage_core::risk::Risk;

use super::session::session;
use crate::v1;

impl From<Risk> for v1::Risk {
    fn from(risk: Risk) -> Self {
        match risk {
            Risk::None => Self::None,
            Risk::Low => Self::Low,
            Risk::High => Self::High,
        }
    }
}

fn best(report: &Report) -> v1::Best {
    let winner = report.best.winner();
    let id = |name: &SessionName| {
        let mut sessions = report.rows.iter().map(|row| &row.session);
        sessions
            .find(|session| session.name == *name)
            .map(|session| session.id.to_string())
    };
    let (reason, candidate) = match &report.best {
        Best::Selected { .. } => (v1::BestReason::Selected, None),
        Best::Verified(_) => (v1::BestReason::Verified, None),
        Best::Unchecked(_) => (v1::BestReason::Unchecked, None),
        Best::Risky { session, .. } => (v1::BestReason::HighRisk, Some(session.to_string())),
        Best::Nothing => (v1::BestReason::NoResult, None),
    };
    v1::Best {
        session_id: winner.and_then(id).unwrap_or_default(),
        session: winner.map(ToString::to_string).unwrap_or_default(),
        reason: reason.into(),
        message: report.best.words(),
        candidate: candidate.unwrap_or_default(),
    }
}

impl From<Report> for v1::Report {
    fn from(report: Report) -> Self {
        let best = best(&report);
        let rows = report.rows.into_iter().map(|row| v1::ReportRow {
            rank: row.rank,
            session: Some(session(&row.session, None, row.duration)),
            risk: v1::Risk::from(row.risk).into(),
            flags: row.flags,
            suspicious: row.suspicious,
            history: row.history,
        });
        Self {
            task_id: report.task.to_string(),
            rows: rows.collect(),
            provisional: report.provisional,
            notes: report.notes,
            best: Some(best),
        }
    }
}
