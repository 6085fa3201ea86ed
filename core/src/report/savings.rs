//! What the course of a task saved against a race: an estimate, by the sessions that worked to their end,
//! in words that say so. `task::Course` decides whom it spares.

use super::ReportRow;
use super::order::Cost;
use crate::session::Spared;
use crate::task::{Course, Task};
use crate::usage::PicoUsd;

/// A note about the sessions that were spared; `None`: there are none.
pub(super) fn note(task: &Task, rows: &[ReportRow]) -> Option<String> {
    let is_spared = |row: &&ReportRow| row.session.spared_for().is_some();
    let spared: Vec<_> = rows.iter().filter(is_spared).collect();
    if spared.is_empty() {
        return None;
    }
    let began = spared.iter().filter(|row| row.session.started_at.is_some()).count();
    let why = match spared.iter().any(|row| row.session.spared == Some(Spared::Verified)) {
        true => "because enough sessions were verified",
        false => "because verify did not reject the one before",
    };
    let what = match (began, spared.len() - began) {
        (0, never) => format!("{} not started, {why}", sessions(never)),
        (began, 0) => format!("{} stopped, {why}", sessions(began)),
        (began, never) => format!("{} stopped and {never} not started, {why}", sessions(began)),
    };
    Some(format!("{what}: {}", saved(task, rows, &spared)))
}

fn sessions(count: usize) -> String {
    match count {
        1 => "1 session was".to_owned(),
        n => format!("{n} sessions were"),
    }
}

fn saved(task: &Task, rows: &[ReportRow], spared: &[&ReportRow]) -> String {
    let ended = |row: &&ReportRow| row.session.spared_for().is_none() && row.session.started_at.is_some();
    let costs: Option<Vec<i128>> = rows.iter().filter(ended).map(known).collect();
    let Some(costs) = costs.filter(|costs| !costs.is_empty()) else {
        return "how much that saved is unknown, because the costs of those that worked to their end are".to_owned();
    };
    let mean = costs.iter().sum::<i128>() / i128::try_from(costs.len()).unwrap_or(1);
    // What a stopped session had cost is not saved; where that is unknown, the estimate is too high by it.
    let rest = spared.iter().map(|row| (mean - known(row).unwrap_or(0)).max(0));
    let saved = PicoUsd(i64::try_from(rest.sum::<i128>()).unwrap_or(i64::MAX));
    let dearer = match task.spec.policy.course {
        Course::Ladder => "; dearer models would have cost more",
        Course::Race | Course::FirstVerified(_) => "",
    };
    format!(
        "about ${:.4} less than the race would have cost, by an estimate and no bill: as if each had cost as much as \
         those that worked to their end did on average{dearer}",
        dollars(saved)
    )
}

/// What a session cost, whoever said so: for an estimate that is good enough.
fn known(row: &ReportRow) -> Option<i128> {
    match Cost::of(&row.costs.all) {
        Cost::Known(cost) => Some(cost),
        Cost::Unknown if row.session.started_at.is_none() => Some(0),
        Cost::Unknown => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "four decimals of an estimate")]
fn dollars(amount: PicoUsd) -> f64 {
    amount.0 as f64 / 1e12
}
