//! Reports: the comparison of a task's sessions. One way only, as for sessions.

use kage_core::report::Report;
use kage_core::risk::Risk;

use super::{millis, session::session};
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

impl From<Report> for v1::Report {
    fn from(report: Report) -> Self {
        let rows = report.rows.into_iter().map(|row| v1::ReportRow {
            rank: row.rank,
            session: Some(session(&row.session, row.money, None)),
            risk: v1::Risk::from(row.risk).into(),
            flags: row.flags,
            duration_ms: millis(row.duration),
            history: row.history,
        });
        Self {
            task_id: report.task.to_string(),
            winner: report.winner.map(Into::into).unwrap_or_default(),
            rows: rows.collect(),
            provisional: report.provisional,
            notes: report.notes,
        }
    }
}
