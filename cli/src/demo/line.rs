//! The line of JSON that `kage demo` ends with: a summary of the comparison in plain words. Scripts
//! that try Kage out read it, so it is kept as it is; other commands print the messages of the API.

use std::collections::BTreeMap;

use kage_core::usage::{PicoUsd, Usage, UsageClass};
use kage_proto::v1;
use serde_json::{Value, json};

use crate::view;

pub(super) fn line(task: &v1::Task, report: &v1::Report) -> Value {
    let best = report.best.clone().unwrap_or_default();
    let rows = report.rows.iter();
    let sessions: Vec<_> = rows
        .filter_map(|row| Some(session(row.session.as_ref()?, row)))
        .collect();
    json!({
        "task": task.id,
        "repository": view::repository(task),
        "created_by": some(&task.created_by),
        "state": view::task_state(task.state()),
        "baseline": task.baseline.as_ref().map(|v| view::verdict(v.kind())),
        "winner": some(&best.session),
        "best": {
            "session": some(&best.session),
            "session_id": some(&best.session_id),
            "reason": view::best_reason(best.reason()),
            "message": best.message,
            "candidate": some(&best.candidate),
        },
        "notes": report.notes,
        "sessions": sessions,
    })
}

fn session(session: &v1::Session, row: &v1::ReportRow) -> Value {
    let result = session.result.as_ref();
    let verdict = session.verdict.as_ref();
    let usage = session.usage.map_or(Usage::UNKNOWN, Usage::from);
    let diff = |diff: &v1::DiffStat| json!({ "files": diff.files, "added": diff.added, "removed": diff.removed });
    json!({
        "name": session.name,
        "adapter": session.adapter,
        "model": some(&session.model),
        "agent": some(&session.agent),
        "state": view::session_state(session.state()),
        "verdict": verdict.map(|v| view::verdict(v.kind())),
        "restored": verdict.map_or(&[][..], |v| &v.restored),
        "usage": classes(&usage),
        "usage_complete": session.usage.is_some() && !usage.unreported.of_the_bill(),
        "money": session.money.iter().map(money).collect::<Vec<_>>(),
        "duration_ms": view::duration_ms(session),
        "diff": result.and_then(|r| r.diff.as_ref()).map(diff),
        "risk": view::risk(row.risk()),
        "flags": row.flags,
        "commit": result.map(|r| &r.commit),
        "failure": session.failure.as_ref().map(|f| &f.message),
        "history": row.history,
        "waiting": some(&session.waiting),
        "attempts": session.attempts,
        "reworks": session.reworks,
        "call_retries": session.call_retries,
    })
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Tokens by the names of the classes; all of them, also those that are zero. Null is unknown.
fn classes(usage: &Usage) -> BTreeMap<&'static str, Option<u64>> {
    let name = |class| match class {
        UsageClass::Input => "input",
        UsageClass::CacheWrite5m => "cache_write_5m",
        UsageClass::CacheWrite1h => "cache_write_1h",
        UsageClass::CacheRead => "cache_read",
        UsageClass::Output => "output",
        UsageClass::Reasoning => "reasoning",
    };
    UsageClass::ALL.map(|class| (name(class), usage.of(class))).into()
}

fn money(money: &v1::Money) -> Value {
    json!({
        "amount": money.pico.map(|pico| PicoUsd(pico).to_string()),
        "currency": money.currency,
        "provenance": view::provenance(money.provenance()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_what_it_always_had() {
        let session = v1::Session {
            name: "claude-api-1".into(),
            adapter: "claude-api".into(),
            agent: "agent-1".into(),
            state: v1::SessionState::Verified.into(),
            usage: Some(v1::Usage {
                input: 12,
                unreported: 0b10_0000,
                ..v1::Usage::default()
            }),
            money: vec![v1::Money {
                pico: Some(-1_500_000_000_000),
                currency: "USD".into(),
                provenance: v1::Provenance::Billed.into(),
            }],
            ..v1::Session::default()
        };
        let row = v1::ReportRow {
            session: Some(session),
            risk: v1::Risk::Low.into(),
            ..v1::ReportRow::default()
        };
        let report = v1::Report {
            best: Some(v1::Best {
                session: "claude-api-1".into(),
                reason: v1::BestReason::Verified.into(),
                ..v1::Best::default()
            }),
            rows: vec![row],
            ..v1::Report::default()
        };
        insta::assert_snapshot!(line(&v1::Task::default(), &report), @r#"{"baseline":null,"best":{"candidate":null,"message":"","reason":"verified","session":"claude-api-1","session_id":null},"created_by":null,"notes":[],"repository":null,"sessions":[{"adapter":"claude-api","agent":"agent-1","attempts":0,"call_retries":0,"commit":null,"diff":null,"duration_ms":null,"failure":null,"flags":[],"history":[],"model":null,"money":[{"amount":"-1.50","currency":"USD","provenance":"billed"}],"name":"claude-api-1","restored":[],"reworks":0,"risk":"low","state":"verified","usage":{"cache_read":0,"cache_write_1h":0,"cache_write_5m":0,"input":12,"output":0,"reasoning":null},"usage_complete":true,"verdict":null,"waiting":null}],"state":"unknown","task":"","winner":"claude-api-1"}"#);
    }
}
