//! Tasks and reports as they are shown: the words and numbers that tables use. No printing.

use comfy_table::{ContentArrangement, Table, presets};
use kage_core::report::checked_before;
use kage_proto::convert::time::{Span, duration, time};
use kage_proto::json::JsonMessage;
use kage_proto::v1;
use prost::{Message, Name};
use serde::Serialize;

/// A task with the comparison of its sessions, as JSON has them.
#[derive(Debug, Serialize)]
pub struct ComparedJson {
    #[serde(flatten)]
    task: JsonMessage,
    report: JsonMessage,
}

impl ComparedJson {
    /// Both, as they are now.
    #[must_use]
    pub fn of(task: &v1::Task, report: &v1::Report) -> Self {
        Self {
            task: JsonMessage::of(task),
            report: JsonMessage::of(report),
        }
    }
}

/// A message about a session, as JSON has it: with the task that the session is of.
#[derive(Debug, Serialize)]
pub struct OfTaskJson<'a> {
    task_id: &'a str,
    #[serde(flatten)]
    message: JsonMessage,
}

impl<'a> OfTaskJson<'a> {
    /// The message, of this task.
    #[must_use]
    pub fn of<M: Message + Name>(task_id: &'a str, message: &M) -> Self {
        Self {
            task_id,
            message: JsonMessage::of(message),
        }
    }
}

/// How long the session's attempts ran; `None` when none was started.
#[must_use]
pub fn duration_ms(session: &v1::Session) -> Option<u64> {
    session.started_at.map(|_| span_millis(session.ran))
}

/// Whole milliseconds of a duration; 0 when it is not known.
#[must_use]
pub fn span_millis(span: Option<Span>) -> u64 {
    let duration = span.map(duration).unwrap_or_default();
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// All tokens for a table, each counted once: `-` when none were reported, and with a `+` when a
/// part is unknown.
#[must_use]
pub fn tokens(usage: Option<&v1::Usage>) -> String {
    let Some(usage) = usage.map(|usage| kage_core::usage::Usage::from(*usage)) else {
        return "-".to_owned();
    };
    match (usage.total(), usage.unreported.of_the_bill()) {
        (0, true) => "-".to_owned(),
        (total, true) => format!("{}+", short_count(total)),
        (total, false) => short_count(total),
    }
}

/// A count in few characters: `950`, `12.3k`, `4.5M`.
#[must_use]
pub fn short_count(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{}.{}k", count / 1_000, count % 1_000 / 100),
        _ => format!("{}.{}M", count / 1_000_000, count % 1_000_000 / 100_000),
    }
}

/// Amounts side by side, each with its provenance unless it is billed.
#[must_use]
pub fn money(amounts: &[v1::Money]) -> String {
    let texts: Vec<String> = amounts
        .iter()
        .map(|money| match (money.pico, money.provenance()) {
            (Some(pico), v1::Provenance::Billed) => format!("${}", dollars(pico)),
            (Some(_), v1::Provenance::Free) => "free".to_owned(),
            (Some(pico), other) => format!("${} {}", dollars(pico), provenance(other)),
            (None, _) => "price unknown".to_owned(),
        })
        .collect();
    if texts.is_empty() {
        "-".to_owned()
    } else {
        texts.join(", ")
    }
}

/// Dollars for a table: four places, rounded half away from zero. JSON has the exact amount.
fn dollars(pico: i64) -> String {
    let sign = if pico < 0 { "-" } else { "" };
    let units = pico.unsigned_abs().saturating_add(50_000_000) / 100_000_000;
    format!("{sign}{}.{:04}", units / 10_000, units % 10_000)
}

/// A time in few characters.
#[must_use]
pub fn short_duration(millis: u64) -> String {
    match millis {
        0..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{} m {:02} s", millis / 60_000, millis % 60_000 / 1_000),
        _ => format!("{} h {:02} m", millis / 3_600_000, millis % 3_600_000 / 60_000),
    }
}

/// The first characters of an id, as people type them.
#[must_use]
pub fn short_id(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// The name of the task's repository; `None` for a task without one.
#[must_use]
pub fn repository(task: &v1::Task) -> Option<&str> {
    let repository = task.spec.as_ref()?.repository.as_ref()?;
    Some(&repository.name)
}

/// The first line of a text, cut to at most `width` characters.
#[must_use]
pub fn one_line(text: &str, width: usize) -> String {
    let line: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.chars().count() <= width {
        return line;
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A foreign name for a terminal: characters that would move the cursor or change colours are
/// replaced.
#[must_use]
pub fn printable(name: &str) -> String {
    name.replace(char::is_control, "\u{fffd}")
}

/// A table as every command prints it.
#[must_use]
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(header.iter().copied());
    if let Some(width) = terminal_width() {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// Columns of the terminal; `None` when no output goes to one, so that lines may be long.
#[must_use]
pub fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(std::io::stderr()))
        .ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// The rows of a report, best first.
#[must_use]
pub fn report_rows(report: &v1::Report) -> Vec<Vec<String>> {
    report
        .rows
        .iter()
        .filter_map(|row| row.session.as_ref().map(|session| (row, session)))
        .map(|(row, session)| {
            let mark = if report.best.as_ref().is_some_and(|best| session.name == best.session) {
                "*"
            } else {
                ""
            };
            vec![
                format!("{}{mark}", row.rank),
                session.name.clone(),
                state_of(session),
                session.result.as_ref().and_then(|r| r.diff.as_ref()).map_or_else(
                    || "-".to_owned(),
                    |d| format!("{} +{} -{}", counted(d.files as usize, "file"), d.added, d.removed),
                ),
                match row.suspicious {
                    true => format!("{}, suspicious", risk(row.risk())),
                    false => risk(row.risk()).to_owned(),
                },
                tokens(session.usage.as_ref()),
                money(&session.money),
                duration_ms(session).map_or_else(|| "-".to_owned(), short_duration),
                notes(row),
            ]
        })
        .collect()
}

pub const REPORT_HEADER: [&str; 9] = [
    "#", "session", "state", "change", "risk", "tokens", "money", "time", "notes",
];

/// The report as a table, with the notes on all sessions below it.
#[must_use]
pub fn report_text(report: &v1::Report) -> String {
    let mut text = table(&REPORT_HEADER, report_rows(report));
    for note in &report.notes {
        text += &format!("\n{}", one_line(note, NOTE));
    }
    if let Some(best) = report
        .best
        .as_ref()
        .filter(|best| best.reason() == v1::BestReason::HighRisk)
    {
        text += &format!("\n{}", one_line(&best.message, NOTE));
    }
    text
}

/// Most characters of one note: an incident, and the reason of the decision.
const NOTE: usize = 500;

/// Flags and history; the latter ends with the failure of a session that failed.
fn notes(row: &v1::ReportRow) -> String {
    row.flags
        .iter()
        .chain(&row.history)
        .map(|note| one_line(note, NOTE))
        .collect::<Vec<_>>()
        .join("; ")
}

/// What was said to a session, and from whose files it goes on: a line each.
#[must_use]
pub fn steering(session: &v1::Session) -> Vec<String> {
    let name = printable(&session.name);
    let said = session.messages.iter().map(|message| &message.summary);
    let lines = session.fork.iter().map(|fork| &fork.summary).chain(said);
    lines
        .map(|line| format!("{name}: {}\n", one_line(line, NOTE)))
        .collect()
}

/// A number and its noun: `1 file`, `2 files`.
#[must_use]
pub fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The word for what is known of a checkpoint's files.
#[must_use]
pub const fn safety(safety: v1::Safety) -> &'static str {
    match safety {
        v1::Safety::Unspecified | v1::Safety::Unknown => "unknown",
        v1::Safety::Safe => "safe",
        v1::Safety::Unsafe => "unsafe",
    }
}

/// The word for a task's state.
#[must_use]
pub const fn task_state(state: v1::TaskState) -> &'static str {
    match state {
        v1::TaskState::Unspecified => "unknown",
        v1::TaskState::Running => "running",
        v1::TaskState::Succeeded => "succeeded",
        v1::TaskState::Failed => "failed",
        v1::TaskState::Cancelled => "cancelled",
    }
}

/// The state of a session for a table: also that its result is unfinished.
#[must_use]
pub fn state_of(session: &v1::Session) -> String {
    let state = session_state(session.state());
    if session.is_unfinished {
        format!("{state}, unfinished")
    } else {
        state.to_owned()
    }
}

/// The word for a session's state.
#[must_use]
pub const fn session_state(state: v1::SessionState) -> &'static str {
    match state {
        v1::SessionState::Unspecified => "unknown",
        v1::SessionState::Queued => "queued",
        v1::SessionState::Running => "running",
        v1::SessionState::Claimed => "claimed",
        v1::SessionState::Verifying => "verifying",
        v1::SessionState::Verified => "verified",
        v1::SessionState::Rejected => "rejected",
        v1::SessionState::Unverified => "unverified",
        v1::SessionState::Failed => "failed",
        v1::SessionState::Cancelled => "cancelled",
        v1::SessionState::Saving => "saving",
    }
}

/// The result of verify on the base of a task.
#[must_use]
pub fn baseline(task: &v1::Task) -> Option<String> {
    let verdict = task.baseline.as_ref()?;
    let message = one_line(&verdict.message, 200);
    let what = match verdict.kind() {
        v1::VerdictKind::Passed => "verify passed on it".to_owned(),
        v1::VerdictKind::Failed => format!("verify already fails on it: {message}"),
        v1::VerdictKind::Unspecified | v1::VerdictKind::Errored => format!("verify cannot be run on it: {message}"),
    };
    Some(match task.baseline_kept_since {
        None => what,
        Some(at) => format!("{what} ({})", checked_before(time(at), &verdict.agent)),
    })
}

#[must_use]
pub const fn verdict(kind: v1::VerdictKind) -> &'static str {
    match kind {
        v1::VerdictKind::Unspecified => "unknown",
        v1::VerdictKind::Passed => "passed",
        v1::VerdictKind::Failed => "failed",
        v1::VerdictKind::Errored => "errored",
    }
}

/// Why a result is best, or why none is, in a word.
#[must_use]
pub const fn best_reason(reason: v1::BestReason) -> &'static str {
    match reason {
        v1::BestReason::Unspecified => "unknown",
        v1::BestReason::Verified => "verified",
        v1::BestReason::Unchecked => "unchecked",
        v1::BestReason::HighRisk => "high_risk",
        v1::BestReason::NoResult => "no_result",
        v1::BestReason::Selected => "selected",
    }
}

/// The word for a risk.
#[must_use]
pub const fn risk(risk: v1::Risk) -> &'static str {
    match risk {
        v1::Risk::Unspecified => "unknown",
        v1::Risk::None => "none",
        v1::Risk::Low => "low",
        v1::Risk::High => "high",
    }
}

/// The word for where an amount comes from.
#[must_use]
pub const fn provenance(provenance: v1::Provenance) -> &'static str {
    match provenance {
        v1::Provenance::Billed => "billed",
        v1::Provenance::Reported => "reported",
        v1::Provenance::Estimated => "estimated",
        v1::Provenance::Free => "free",
        v1::Provenance::Unspecified | v1::Provenance::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_a_table() {
        assert_eq!(short_count(950), "950");
        assert_eq!(short_count(12_345), "12.3k");
        assert_eq!(short_count(4_560_000), "4.5M");
        assert_eq!(short_duration(1_250), "1.2 s");
        assert_eq!(short_duration(61_000), "1 m 01 s");
        assert_eq!(dollars(12_345_678_900), "0.0123");
        assert_eq!(dollars(-1_500_000_000_000), "-1.5000");
        assert_eq!(dollars(i64::MAX), "9223372.0369");
        let most = v1::Usage {
            input: u64::MAX,
            output: u64::MAX,
            ..v1::Usage::default()
        };
        assert_eq!(tokens(Some(&most)), short_count(u64::MAX));
        assert_eq!(one_line("a\u{1b}[31m\nb", 10), "a [31m");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(printable("a\u{1b}[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
    }

    #[test]
    fn unknown_tokens_are_not_zero() {
        let of = |usage: kage_core::usage::Usage| tokens(Some(&usage.into()));
        let mut sum = kage_core::usage::Usage {
            input: 1_200,
            ..Default::default()
        };
        assert_eq!(tokens(None), "-");
        assert_eq!(of(kage_core::usage::Usage::default()), "0");
        assert_eq!(of(kage_core::usage::Usage::UNKNOWN), "-");
        assert_eq!(of(sum), "1.2k");
        sum += kage_core::usage::Usage::UNKNOWN;
        assert_eq!(of(sum), "1.2k+");
    }

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
        let told = report_rows(&report)[0].last().unwrap().clone();
        assert_eq!(
            told,
            format!("changes tests: a; {incident}; failed: not authorised: the key is refused")
        );
    }

    #[test]
    fn provenance_is_never_hidden() {
        let of = |pico, provenance: v1::Provenance| v1::Money {
            pico,
            currency: "USD".into(),
            provenance: provenance.into(),
        };
        assert_eq!(money(&[]), "-");
        assert_eq!(
            money(&[
                of(Some(15_000_000_000), v1::Provenance::Billed),
                of(Some(20_000_000_000), v1::Provenance::Reported),
                of(None, v1::Provenance::Unknown),
                of(Some(0), v1::Provenance::Free),
            ]),
            "$0.0150, $0.0200 reported, price unknown, free"
        );
    }
}
