//! The JSON that scripts read of tasks, sessions and reports.

use std::collections::BTreeMap;

use kage_core::usage::{PicoUsd, Usage, UsageClass};
use kage_proto::v1;
use serde::Serialize;

use super::{best_reason, duration_ms, provenance, repository, risk, session_state, task_state, verdict};

/// A task with its sessions, best first when a report was asked for.
#[derive(Debug, Serialize)]
pub struct TaskJson {
    /// Its id.
    pub task: String,
    /// The repository that it is of, by its name on the coordinator; null without one.
    pub repository: Option<String>,
    /// Whose call created it: `owner`, or `token:` and an id; null when nobody knows.
    pub created_by: Option<String>,
    /// Where it stands.
    pub state: &'static str,
    /// What verify says of the base; null until that is known.
    pub baseline: Option<&'static str>,
    /// What only a report knows; no member is there where none was asked for.
    #[serde(flatten)]
    pub comparison: Option<ComparisonJson>,
    /// Every session.
    pub sessions: Vec<SessionJson>,
}

/// What comparing the sessions says.
#[derive(Debug, Serialize)]
pub struct ComparisonJson {
    /// The session to land.
    pub winner: Option<String>,
    /// The same, with the reason, also of why there is none.
    pub best: BestJson,
    /// What concerns every session.
    pub notes: Vec<String>,
}

/// Which result is best, and why it is, or why none is.
#[derive(Debug, Serialize)]
pub struct BestJson {
    /// The session to land; null when none lands without a person's word.
    pub session: Option<String>,
    /// Its id.
    pub session_id: Option<String>,
    /// `verified`, `unchecked`, `high_risk` or `no_result`.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// With `high_risk`: the first session when the risk is accepted.
    pub candidate: Option<String>,
}

/// One session.
#[derive(Debug, Serialize)]
pub struct SessionJson {
    /// Its name in the task.
    pub name: String,
    /// Who worked.
    pub adapter: String,
    /// The model asked for.
    pub model: Option<String>,
    /// Where it ran.
    pub agent: Option<String>,
    /// Where it stands.
    pub state: &'static str,
    /// What verify decided.
    pub verdict: Option<&'static str>,
    /// Paths of which verify saw the base's version.
    pub restored: Vec<String>,
    /// Tokens by class.
    pub usage: BTreeMap<&'static str, Option<u64>>,
    /// Whether that is all; false also when some program did not tell.
    pub usage_complete: bool,
    /// One entry per provenance.
    pub money: Vec<MoneyJson>,
    /// How long its attempts ran, the present one until now; null before the first.
    pub duration_ms: Option<u64>,
    /// How much it changes.
    pub diff: Option<DiffJson>,
    /// How risky landing it is; absent without a report.
    pub risk: Option<&'static str>,
    /// Why.
    pub flags: Vec<String>,
    /// The commit to land.
    pub commit: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
    /// What went wrong on the way and what was done about it, a sentence each; empty without
    /// a report.
    pub history: Vec<String>,
    /// Why it waits.
    pub waiting: Option<String>,
    /// Attempts started.
    pub attempts: u32,
    /// How often it worked on because its work did not pass.
    pub reworks: u32,
    /// Model calls made again.
    pub call_retries: u32,
}

/// An amount of one provenance.
#[derive(Debug, Serialize)]
pub struct MoneyJson {
    /// Decimal, exact; absent when no price is known.
    pub amount: Option<String>,
    /// ISO 4217.
    pub currency: String,
    /// billed, reported, estimated or unknown.
    pub provenance: &'static str,
}

/// The size of a change.
#[derive(Debug, Serialize)]
pub struct DiffJson {
    /// Files that differ.
    pub files: u32,
    /// Lines added.
    pub added: u64,
    /// Lines removed.
    pub removed: u64,
}

impl TaskJson {
    /// A task without a report.
    #[must_use]
    pub fn of_task(task: &v1::Task) -> Self {
        Self::new(task, None, task.sessions.iter().map(|s| SessionJson::new(s, None)))
    }

    /// A task with its report: sessions best first.
    #[must_use]
    pub fn of_report(task: &v1::Task, report: &v1::Report) -> Self {
        let comparison = ComparisonJson {
            winner: report.best.as_ref().and_then(|best| non_empty(&best.session)),
            best: best_json(&report.best.clone().unwrap_or_default()),
            notes: report.notes.clone(),
        };
        let rows = report.rows.iter();
        let sessions = rows.filter_map(|row| row.session.as_ref().map(|s| SessionJson::new(s, Some(row))));
        Self::new(task, Some(comparison), sessions)
    }

    fn new(task: &v1::Task, comparison: Option<ComparisonJson>, sessions: impl Iterator<Item = SessionJson>) -> Self {
        Self {
            task: task.id.clone(),
            repository: repository(task).map(str::to_owned),
            created_by: non_empty(&task.created_by),
            state: task_state(task.state()),
            baseline: task.baseline.as_ref().map(|v| verdict(v.kind())),
            comparison,
            sessions: sessions.collect(),
        }
    }
}

impl SessionJson {
    fn new(session: &v1::Session, row: Option<&v1::ReportRow>) -> Self {
        Self {
            name: session.name.clone(),
            adapter: session.adapter.clone(),
            model: non_empty(&session.model),
            agent: non_empty(&session.agent),
            state: session_state(session.state()),
            verdict: session.verdict.as_ref().map(|v| verdict(v.kind())),
            restored: session.verdict.as_ref().map(|v| v.restored.clone()).unwrap_or_default(),
            usage: usage_classes(session.usage.as_ref()),
            usage_complete: usage_complete(session.usage.as_ref()),
            money: session.money.iter().map(money_json).collect(),
            duration_ms: duration_ms(session),
            diff: session
                .result
                .as_ref()
                .and_then(|r| r.diff.as_ref())
                .map(|diff| DiffJson {
                    files: diff.files,
                    added: diff.added,
                    removed: diff.removed,
                }),
            risk: row.map(|row| risk(row.risk())),
            flags: row.map(|row| row.flags.clone()).unwrap_or_default(),
            commit: session.result.as_ref().map(|r| r.commit.clone()),
            failure: session.failure.as_ref().map(|f| f.message.clone()),
            history: row.map(|row| row.history.clone()).unwrap_or_default(),
            waiting: non_empty(&session.waiting),
            attempts: session.attempts,
            reworks: session.reworks,
            call_retries: session.call_retries,
        }
    }
}

fn best_json(best: &v1::Best) -> BestJson {
    BestJson {
        session: non_empty(&best.session),
        session_id: non_empty(&best.session_id),
        reason: best_reason(best.reason()),
        message: best.message.clone(),
        candidate: non_empty(&best.candidate),
    }
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Tokens by the names of the classes; all of them, also those that are zero. Null is unknown.
fn usage_classes(usage: Option<&v1::Usage>) -> BTreeMap<&'static str, Option<u64>> {
    let usage = usage.map_or(Usage::UNKNOWN, |usage| Usage::from(*usage));
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

/// Whether those are all tokens that are billed.
fn usage_complete(usage: Option<&v1::Usage>) -> bool {
    usage.is_some_and(|usage| !Usage::from(*usage).unreported.of_the_bill())
}

fn money_json(money: &v1::Money) -> MoneyJson {
    MoneyJson {
        amount: money.pico.map(|pico| PicoUsd(pico).to_string()),
        currency: money.currency.clone(),
        provenance: provenance(money.provenance()),
    }
}
