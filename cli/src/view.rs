//! Tasks and reports as they are shown: the words and numbers that tables use. No printing.

use kage_core::report::checked_before;
use kage_core::time::Timestamp;
use kage_core::usage::{Usage, UsageClass};
use kage_proto::convert::time::{Span, duration, time};
use kage_proto::v1;

use crate::table::{Cell, Shape, Table};
use crate::terminal::{self, Ink, Screen};

mod json;
mod report;

pub use json::{ComparedJson, OfTaskJson, ShownJson, Verification};
pub use report::{report, report_notes, report_text};

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
    let Some(usage) = usage.map(|usage| Usage::from(*usage)) else {
        return "-".to_owned();
    };
    match (usage.total(), usage.unreported.of_the_bill()) {
        (0, true) => "-".to_owned(),
        (total, true) => format!("{}+", short_count(total)),
        (total, false) => short_count(total),
    }
}

/// The tokens of these classes together: `-` when none was reported, and with a `+` when a part is unknown.
#[must_use]
pub fn tokens_of(usage: &Usage, classes: &[UsageClass], count: impl Fn(u64) -> String) -> String {
    let known: Vec<u64> = classes.iter().filter_map(|class| usage.of(*class)).collect();
    let more = match classes.iter().any(|class| usage.unreported.contains(*class)) {
        true => "+",
        false => "",
    };
    match known.is_empty() {
        true => "-".to_owned(),
        false => count(known.into_iter().fold(0, u64::saturating_add)) + more,
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

/// A foreign name within a line: characters that would move the cursor, change colours or end the line are
/// replaced.
#[must_use]
pub fn printable(name: &str) -> String {
    terminal::shown(&name.replace(char::is_control, "\u{fffd}")).into_owned()
}

/// A table as text, for standard output.
#[must_use]
pub fn laid_out(table: &Table) -> String {
    table.laid_out(Shape::of(Screen::stdout())).text()
}

/// The adapter of a session with its model: the one asked for, or in brackets the one that it took.
#[must_use]
pub fn adapter(session: &v1::Session) -> String {
    let used = session.models.iter().filter(|used| !used.model.is_empty());
    let used = used.max_by_key(|used| used.usage.map_or(0, |usage| Usage::from(usage).total()));
    match (session.model.as_str(), used) {
        ("", None) => session.adapter.clone(),
        ("", Some(used)) => format!("{} ({})", session.adapter, used.model),
        (model, _) => format!("{}:{model}", session.adapter),
    }
}

/// The state of a session in its colour.
#[must_use]
pub fn state_cell(session: &v1::Session) -> Cell {
    let ink = match session.state() {
        v1::SessionState::Verified => Ink::Good,
        v1::SessionState::Rejected | v1::SessionState::Failed => Ink::Bad,
        v1::SessionState::Unverified => Ink::Notice,
        v1::SessionState::Cancelled | v1::SessionState::Queued => Ink::Faint,
        v1::SessionState::Unspecified
        | v1::SessionState::Running
        | v1::SessionState::Claimed
        | v1::SessionState::Verifying
        | v1::SessionState::Saving => Ink::Plain,
    };
    Cell::new(ink, state_of(session))
}

/// How long ago a time is, in few characters.
#[must_use]
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = now.since(then).as_secs();
    let unit = UNITS.into_iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(
        || "now".to_owned(),
        |(length, name)| format!("{} {name} ago", seconds / length),
    )
}

/// What sessions cost together: amounts of one provenance are added up, others stand side by side.
#[must_use]
pub fn money_of<'a>(sessions: impl Iterator<Item = &'a v1::Session>) -> String {
    let mut sums: Vec<v1::Money> = Vec::new();
    for amount in sessions.flat_map(|session| &session.money) {
        let same = sums.iter_mut().find(|sum| {
            sum.provenance == amount.provenance
                && sum.currency == amount.currency
                && sum.pico.is_some() == amount.pico.is_some()
        });
        match same {
            Some(sum) => sum.pico = sum.pico.zip(amount.pico).map(|(a, b)| a.saturating_add(b)),
            None => sums.push(amount.clone()),
        }
    }
    money(&sums)
}

/// Most characters of one note: an incident, and the reason of the decision.
const NOTE: usize = 500;

/// What was said to a session, and from whose files it goes on: a line each.
#[must_use]
pub fn steering(session: &v1::Session) -> Vec<String> {
    let name = printable(&session.name);
    let said = session.messages.iter().map(|message| &message.summary);
    let asked = session.questions.iter().map(|question| {
        format!(
            "asks a person, `kage permit allow|deny {} {}`: {}",
            session.name, question.number, question.about
        )
    });
    let lines = session.fork.iter().map(|fork| &fork.summary).chain(said).cloned();
    lines
        .chain(asked)
        .map(|line| format!("{name}: {}\n", one_line(&line, NOTE)))
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
        let of = |usage: Usage| tokens(Some(&usage.into()));
        let mut sum = Usage {
            input: 1_200,
            ..Default::default()
        };
        assert_eq!(tokens(None), "-");
        assert_eq!(of(Usage::default()), "0");
        assert_eq!(of(Usage::UNKNOWN), "-");
        assert_eq!(of(sum), "1.2k");
        sum += Usage::UNKNOWN;
        assert_eq!(of(sum), "1.2k+");
    }

    #[test]
    fn times_are_told_from_now() {
        let at = |seconds: u64| Timestamp::from_millis(seconds * 1_000);
        let told = |seconds: u64| ago(at(1_000_000 - seconds), at(1_000_000));
        assert_eq!(
            [0, 59, 60, 7_199, 90_000].map(told),
            ["now", "59 s ago", "1 min ago", "1 h ago", "1 d ago"]
        );
        assert_eq!(ago(at(20), at(10)), "now", "the coordinator's clock is ahead");
    }

    #[test]
    fn money_of_one_provenance_is_added_up_and_no_other() {
        let session = |pico: Option<i64>, provenance: v1::Provenance| v1::Session {
            money: vec![v1::Money {
                pico,
                currency: "USD".into(),
                provenance: provenance.into(),
            }],
            ..v1::Session::default()
        };
        let sessions = [
            session(Some(15_000_000_000), v1::Provenance::Billed),
            session(Some(20_000_000_000), v1::Provenance::Reported),
            session(Some(5_000_000_000), v1::Provenance::Billed),
            session(None, v1::Provenance::Unknown),
            session(None, v1::Provenance::Unknown),
        ];
        assert_eq!(money_of(sessions.iter()), "$0.0200, $0.0200 reported, price unknown");
        assert_eq!(money_of([].into_iter()), "-");
    }

    #[test]
    fn a_model_is_named_whoever_chose_it() {
        let mut session = v1::Session {
            adapter: "claude-code".into(),
            ..v1::Session::default()
        };
        assert_eq!(adapter(&session), "claude-code");
        let used = |model: &str, input| v1::ModelUsage {
            model: model.into(),
            usage: Some(v1::Usage {
                input,
                ..v1::Usage::default()
            }),
            ..v1::ModelUsage::default()
        };
        session.models = vec![used("claude-haiku-5-5", 3), used("claude-opus-5-5", 900)];
        assert_eq!(adapter(&session), "claude-code (claude-opus-5-5)");
        session.model = "claude-sonnet-5-5".into();
        assert_eq!(adapter(&session), "claude-code:claude-sonnet-5-5");
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
