//! `kage compare --by`: adapters or models over the sessions of one task or of many. What counts and how
//! is core's (`comparison`); this reads the sessions and shows the rows.

use std::time::Duration;

use kage_core::comparison::{Compared, Interval, Observed, compare};
use kage_core::session::SessionStateKind;
use kage_core::time::Timestamp;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Money, Usage, UsageClass};
use kage_proto::convert::time::{duration, stamp};
use kage_proto::json::JsonMessage;
use kage_proto::status::ApiError;
use kage_proto::v1;
use serde::Serialize;

use crate::args::{By, Compare};
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::hold;
use crate::invocation::Invocation;
use crate::settings::time;
use crate::table::Table;
use crate::tasks;
use crate::view;

/// The most tasks that are read: more than a team makes in months.
const MAX_TASKS: usize = 10_000;

pub(super) async fn run(invocation: &Invocation, args: Compare, by: By) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let tasks = match args.since {
        Some(since) => {
            let from = time::moment(&since, hold::now()).map_err(Refusal::usage)?;
            created_since(&access, from).await?
        }
        None => vec![tasks::find(&access, args.task).await?],
    };
    let sessions = tasks.iter().flat_map(|task| {
        let checked = is_checked(task);
        let sessions = task.sessions.iter();
        sessions.filter_map(move |session| Some((name(session, by), observed(session, checked)?)))
    });
    let rows = compare(sessions);
    let json = ComparisonJson {
        by,
        tasks: tasks.len(),
        rows: rows.iter().map(RowJson::of).collect(),
    };
    invocation.out.result("comparison", &json)?;
    let shown: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let first = match by {
        By::Adapter => "adapter",
        By::Model => "model",
    };
    let header: Vec<&str> = [first].into_iter().chain(HEADER).collect();
    match args.markdown {
        true => invocation.out.text(&markdown(&header, &shown))?,
        false => invocation.out.table(&Table::of_words(&header, shown))?,
    }
    invocation.out.text(&format!(
        "\n{} tasks; success with its 95 % interval (Wilson); sessions that were stopped or have not ended are no tries\n",
        tasks.len()
    ))?;
    Ok(Exit::Done)
}

async fn created_since(access: &Access, from: Timestamp) -> anyhow::Result<Vec<v1::Task>> {
    let filter = v1::TaskFilter {
        created_from: Some(stamp(from)),
        ..v1::TaskFilter::default()
    };
    let mut tasks = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListTasksRequest {
            project: access.project.to_string(),
            page_size: 100,
            page_token,
            filter: Some(filter.clone()),
            ..v1::ListTasksRequest::default()
        };
        let page = access.client.tasks().list_tasks(request).await;
        let page = page.map_err(ApiError::from)?.into_inner();
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            return Ok(tasks);
        }
        if tasks.len() >= MAX_TASKS {
            let text = format!("there are more than {MAX_TASKS} tasks since then; ask for a shorter time");
            return Err(Refusal::usage(text).into());
        }
        page_token = page.next_page_token;
    }
}

fn is_checked(task: &v1::Task) -> bool {
    let policy = task.spec.as_ref().and_then(|spec| spec.policy.as_ref());
    let verify = policy.and_then(|policy| policy.verify.as_ref());
    verify.is_some_and(|verify| !verify.verify.is_empty())
}

fn name(session: &v1::Session, by: By) -> String {
    match by {
        By::Adapter => session.adapter.clone(),
        By::Model if !session.model.is_empty() => session.model.clone(),
        // The one that wrote the most.
        By::Model => {
            let output = |used: &&v1::ModelUsage| used.usage.as_ref().map_or(0, |usage| usage.output);
            let used = session.models.iter().max_by_key(output);
            used.map_or_else(|| format!("{} (default)", session.adapter), |used| used.model.clone())
        }
    }
}

/// The session for core; `None`: it has a state that this program does not know.
fn observed(session: &v1::Session, checked: bool) -> Option<Observed> {
    let state = match session.state() {
        v1::SessionState::Queued => SessionStateKind::Queued,
        v1::SessionState::Running => SessionStateKind::Running,
        v1::SessionState::Claimed => SessionStateKind::Claimed,
        v1::SessionState::Verifying => SessionStateKind::Verifying,
        v1::SessionState::Verified => SessionStateKind::Verified,
        v1::SessionState::Rejected => SessionStateKind::Rejected,
        v1::SessionState::Unverified => SessionStateKind::Unverified,
        v1::SessionState::Failed => SessionStateKind::Failed,
        v1::SessionState::Cancelled => SessionStateKind::Cancelled,
        v1::SessionState::Saving => SessionStateKind::Saving,
        v1::SessionState::Unspecified => return None,
    };
    let tools = session.tools.clone().map(ToolUses::from);
    Some(Observed {
        state,
        checked,
        has_result: session.result.is_some() && !session.is_unfinished,
        usage: session.usage.map(Usage::from),
        money: session
            .money
            .iter()
            .filter_map(|money| Money::try_from(money.clone()).ok())
            .collect(),
        ran: session.started_at.and(session.ran).map(duration),
        turns: (session.calls > 0).then_some(u64::from(session.calls)),
        tools: tools.map(|tools| tools.iter().map(|(_, calls)| calls).sum()),
    })
}

const HEADER: [&str; 10] = [
    "success",
    "tries",
    "verified",
    "in / write / read / out",
    "cached",
    "money",
    "p50",
    "p95",
    "turns",
    "tools",
];

fn shown(row: &Compared) -> Vec<String> {
    let usage = &row.usage;
    let classes: [&[UsageClass]; 4] = [
        &[UsageClass::Input],
        &[UsageClass::CacheWrite5m, UsageClass::CacheWrite1h],
        &[UsageClass::CacheRead],
        &[UsageClass::Output],
    ];
    let tokens = classes.map(|classes| view::tokens_of(usage, classes, view::short_count));
    let money: Vec<v1::Money> = row.money.iter().map(|money| v1::Money::from(*money)).collect();
    let time = |time: Option<Duration>| {
        time.map_or_else(dash, |time| {
            view::short_duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
        })
    };
    let average = |value: Option<f64>| value.map_or_else(dash, |value| format!("{value:.1}"));
    vec![
        view::printable(&row.name),
        row.success.map_or_else(dash, percent),
        match row.sessions - row.tries {
            0 => row.tries.to_string(),
            others => format!("{} of {}", row.tries, row.tries + others),
        },
        row.verified.to_string(),
        tokens.join(" / "),
        row.cache_share
            .map_or_else(dash, |share| format!("{:.0} %", share * 100.0)),
        view::money(&money),
        time(row.p50),
        time(row.p95),
        average(row.turns),
        average(row.tools),
    ]
}

fn dash() -> String {
    "-".to_owned()
}

fn percent(share: Interval) -> String {
    let Interval { seen, low, high } = share;
    format!("{:.0} % ({:.0}-{:.0})", seen * 100.0, low * 100.0, high * 100.0)
}

fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| {
        let cells = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " "));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let owned = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut text = line(&owned(header)) + &line(&vec!["---".to_owned(); header.len()]);
    text.extend(rows.iter().map(|row| line(row)));
    text
}

#[derive(Debug, Serialize)]
struct ComparisonJson {
    by: By,
    tasks: usize,
    rows: Vec<RowJson>,
}

#[derive(Debug, Serialize)]
struct RowJson {
    name: String,
    sessions: u64,
    tries: u64,
    succeeded: u64,
    verified: u64,
    /// Shares from 0 to 1; `null` without a try.
    success: Option<f64>,
    success_low: Option<f64>,
    success_high: Option<f64>,
    usage: JsonMessage,
    cache_share: Option<f64>,
    money: Vec<JsonMessage>,
    p50_ms: Option<u64>,
    p95_ms: Option<u64>,
    turns: Option<f64>,
    tools: Option<f64>,
}

impl RowJson {
    fn of(row: &Compared) -> Self {
        let millis = |time: Option<Duration>| time.and_then(|time| u64::try_from(time.as_millis()).ok());
        let money = row.money.iter().map(|money| JsonMessage::of(&v1::Money::from(*money)));
        Self {
            name: row.name.clone(),
            sessions: row.sessions,
            tries: row.tries,
            succeeded: row.succeeded,
            verified: row.verified,
            success: row.success.map(|share| share.seen),
            success_low: row.success.map(|share| share.low),
            success_high: row.success.map(|share| share.high),
            usage: JsonMessage::of(&v1::Usage::from(row.usage)),
            cache_share: row.cache_share,
            money: money.collect(),
            p50_ms: millis(row.p50),
            p95_ms: millis(row.p95),
            turns: row.turns,
            tools: row.tools,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(adapter: &str, state: v1::SessionState) -> v1::Session {
        v1::Session {
            adapter: adapter.to_owned(),
            state: state.into(),
            usage: Some(v1::Usage {
                input: 1_000,
                cache_read: 3_000,
                output: 500,
                ..v1::Usage::default()
            }),
            money: vec![v1::Money {
                pico: Some(20_000_000_000),
                currency: "USD".to_owned(),
                provenance: v1::Provenance::Billed.into(),
            }],
            calls: 4,
            ..v1::Session::default()
        }
    }

    #[test]
    fn a_row_says_all_of_it_in_a_line() {
        let all = [
            session("codex", v1::SessionState::Verified),
            session("codex", v1::SessionState::Rejected),
            session("codex", v1::SessionState::Cancelled),
        ];
        let rows = compare(
            all.iter()
                .map(|session| (name(session, By::Adapter), observed(session, true).unwrap())),
        );
        assert_eq!(
            shown(&rows[0]),
            [
                "codex",
                "50 % (9-91)",
                "2 of 3",
                "1",
                "3.0k / 0 / 9.0k / 1.5k",
                "75 %",
                "$0.0600",
                "-",
                "-",
                "4.0",
                "-"
            ]
        );
        let text = markdown(&["adapter"], &[vec!["a|b".to_owned()]]);
        assert_eq!(text, "| adapter |\n| --- |\n| a\\|b |\n");
    }

    #[test]
    fn a_comparison_fits_every_width() {
        let all = [
            session("codex", v1::SessionState::Verified),
            session("claude-api", v1::SessionState::Rejected),
        ];
        let rows = compare(
            all.iter()
                .map(|session| (name(session, By::Adapter), observed(session, true).unwrap())),
        );
        let header: Vec<&str> = ["adapter"].into_iter().chain(HEADER).collect();
        let table = Table::of_words(&header, rows.iter().map(shown));
        insta::assert_snapshot!(crate::table::everywhere(&table));
    }

    #[test]
    fn a_session_is_of_the_model_that_was_asked_for_or_wrote_the_most() {
        let mut of = session("claude-code", v1::SessionState::Verified);
        assert_eq!(name(&of, By::Model), "claude-code (default)");
        let used = |model: &str, output| v1::ModelUsage {
            model: model.to_owned(),
            usage: Some(v1::Usage {
                output,
                ..v1::Usage::default()
            }),
            ..v1::ModelUsage::default()
        };
        of.models = vec![used("small", 10), used("large", 90)];
        assert_eq!(name(&of, By::Model), "large");
        of.model = "asked".to_owned();
        assert_eq!(name(&of, By::Model), "asked");
        assert_eq!(name(&of, By::Adapter), "claude-code");
    }

    #[test]
    fn an_unknown_state_is_left_out() {
        assert_eq!(observed(&session("a", v1::SessionState::Unspecified), true), None);
    }
}
