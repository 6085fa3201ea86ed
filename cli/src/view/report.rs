//! The comparison of a task's sessions as a table, and what is said below it.

use kage_proto::v1;

use super::{NOTE, adapter, counted, duration_ms, money, one_line, risk, short_duration, state_cell, tokens};
use crate::table::{Cell, Column, Shape, Table};
use crate::terminal::{Ink, Painted};

/// The columns of a report.
const REPORT: [Column; 10] = [
    Column::words("#", 0),
    Column::words("session", 0),
    Column::words("adapter", 6),
    Column::words("state", 0),
    Column::words("change", 4),
    Column::words("risk", 3),
    Column::number("tokens", 5),
    Column::words("money", 1),
    Column::number("time", 2),
    Column::long("notes"),
];

/// The sessions of a report, best first.
#[must_use]
pub fn report(report: &v1::Report) -> Table {
    let mut table = Table::new(REPORT);
    let rows = report.rows.iter();
    for (row, session) in rows.filter_map(|row| row.session.as_ref().map(|session| (row, session))) {
        let is_best = report.best.as_ref().is_some_and(|best| session.name == best.session);
        let change = session.result.as_ref().and_then(|r| r.diff.as_ref());
        let change = change.map_or_else(
            || "-".to_owned(),
            |d| format!("{} +{} -{}", counted(d.files as usize, "file"), d.added, d.removed),
        );
        // Without a result there is no risk to speak of.
        let risk = match (&session.result, row.suspicious) {
            (None, _) => Cell::from("-"),
            (Some(_), true) => Cell::new(Ink::Bad, format!("{}, suspicious", risk(row.risk()))),
            (Some(_), false) => Cell::new(
                match row.risk() {
                    v1::Risk::High => Ink::Bad,
                    v1::Risk::Low => Ink::Notice,
                    v1::Risk::None | v1::Risk::Unspecified => Ink::Plain,
                },
                risk(row.risk()),
            ),
        };
        let (mark, ink) = if is_best { ("*", Ink::Strong) } else { ("", Ink::Plain) };
        table.row(vec![
            Cell::new(ink, format!("{}{mark}", row.rank)),
            Cell::new(ink, &session.name),
            adapter(session).into(),
            state_cell(session),
            change.into(),
            risk,
            tokens(session.usage.as_ref()).into(),
            money(&session.money).into(),
            duration_ms(session)
                .map_or_else(|| "-".to_owned(), short_duration)
                .into(),
            notes(row).into(),
        ]);
    }
    table
}

/// What is said below the sessions of a report: a line each.
#[must_use]
pub fn report_notes(report: &v1::Report) -> String {
    let best = report.best.as_ref();
    let risky = best.filter(|best| best.reason() == v1::BestReason::HighRisk);
    let lines = report.notes.iter().chain(risky.map(|best| &best.message));
    lines.map(|line| one_line(line, NOTE) + "\n").collect()
}

/// The report as a table, with the notes on all sessions below it.
#[must_use]
pub fn report_text(report: &v1::Report, shape: Shape) -> Painted {
    let mut text = self::report(report).laid_out(shape);
    let notes = report_notes(report);
    if !notes.is_empty() {
        text.push(Ink::Plain, format!("\n{notes}"));
    }
    text
}

/// Flags and history; the latter ends with the failure of a session that failed.
fn notes(row: &v1::ReportRow) -> String {
    row.flags
        .iter()
        .chain(&row.history)
        .map(|note| one_line(note, NOTE))
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn notes_tell_every_decision_with_its_reason_once() {
        let incident = "attempt 1: rate limited: HTTP 429: this request would exceed your rate limit; again after 15 s: \
                        rate limits reset by themselves";
        let row = v1::ReportRow {
            session: Some(v1::Session {
                failure: Some(v1::Failure {
                    message: "the key is refused".into(),
                    ..v1::Failure::default()
                }),
                ..v1::Session::default()
            }),
            flags: vec!["changes tests: a".into()],
            history: vec![incident.into(), "failed: not authorised: the key is refused".into()],
            ..v1::ReportRow::default()
        };
        let report = v1::Report {
            rows: vec![row],
            ..v1::Report::default()
        };
        let table = super::report(&report);
        let told = (*table.texts().next().unwrap().last().unwrap()).to_owned();
        assert_eq!(
            told,
            format!("changes tests: a; {incident}; failed: not authorised: the key is refused")
        );
    }

    #[test]
    fn a_report_fits_every_width() {
        let session = |name: &str, state: v1::SessionState| v1::Session {
            name: name.to_owned(),
            adapter: "claude-api".to_owned(),
            model: "claude-opus-5-5".to_owned(),
            state: state.into(),
            ..v1::Session::default()
        };
        let row = |rank, session, history: &str| v1::ReportRow {
            rank,
            session: Some(session),
            history: vec![history.to_owned()],
            ..v1::ReportRow::default()
        };
        let compared = v1::Report {
            best: Some(v1::Best {
                session: "claude-api-1".to_owned(),
                ..v1::Best::default()
            }),
            rows: vec![
                row(
                    1,
                    session("claude-api-1", v1::SessionState::Verified),
                    "verify on big-machine: verify passed",
                ),
                row(
                    2,
                    session("claude-api-2", v1::SessionState::Rejected),
                    "verify on big-machine: verify failed with exit code 1: FAILED  ten per cent off: expected 180, got 4000",
                ),
            ],
            ..v1::Report::default()
        };
        insta::assert_snapshot!(everywhere(&report(&compared)));
    }
}
