//! Live progress of a task: a row per session on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kage_proto::convert::checkpoint::checkpoint_reason;
use kage_proto::v1;
use kage_proto::v1::event::Body;

use crate::live::{self, Live};
use crate::output::{self, note};
use crate::table::{Cell, Column, Table};
use crate::terminal::Screen;
use crate::view;

/// Shows the progress of one task on standard error.
#[derive(Debug)]
pub enum Progress {
    /// Rows that are painted again in place.
    Rows(Box<Rows>),
    /// One line per change.
    Lines(Lines),
    /// Nothing.
    Silent,
}

/// The rows of a task.
#[derive(Debug)]
pub struct Rows {
    live: Live,
    screen: Screen,
    task: v1::Task,
    /// When the task was told.
    since: Instant,
    /// What each running session did last.
    activities: BTreeMap<String, String>,
}

/// The last line of each session.
#[derive(Debug, Default)]
pub struct Lines {
    states: BTreeMap<String, v1::SessionState>,
    activities: BTreeMap<String, String>,
    /// True after the result of verify on the base was shown.
    base: bool,
}

impl Progress {
    /// Rows when standard error is a terminal, lines otherwise.
    #[must_use]
    pub fn new() -> Self {
        match Self::on_terminal() {
            Self::Silent => Self::Lines(Lines::default()),
            rows => rows,
        }
    }

    /// Rows when standard error is a terminal, nothing otherwise.
    #[must_use]
    pub fn on_terminal() -> Self {
        let screen = Screen::stderr();
        match screen.is_terminal {
            true => Self::Rows(Box::new(Rows::on(screen, Live::new()))),
            false => Self::Silent,
        }
    }

    /// Shows the task as it is now.
    pub fn task(&mut self, task: &v1::Task) {
        match self {
            Self::Rows(rows) => rows.task(task),
            Self::Lines(lines) => lines.task(task),
            Self::Silent => {}
        }
    }

    /// Shows one event. On a terminal only events that no later row shows.
    pub fn event(&mut self, event: &v1::SessionEvent) {
        if event.job() == v1::JobKind::Baseline {
            // The session did not cause it; the task shows the result.
            return;
        }
        let Some(text) = event.event.as_ref().and_then(|e| e.body.as_ref()).and_then(describe) else {
            return;
        };
        match self {
            Self::Rows(rows) => {
                rows.activities.insert(event.session.clone(), text);
                rows.paint();
            }
            Self::Lines(lines) => lines.activity(&event.session, text),
            Self::Silent => {}
        }
    }

    /// Shows how the time passed.
    pub fn tick(&mut self) {
        if let Self::Rows(rows) = self {
            rows.paint();
        }
    }

    /// Takes the rows away, for a question or for good. What follows paints them again.
    pub fn clear(&mut self) {
        if let Self::Rows(rows) = self {
            rows.live.clear();
        }
    }

    /// Leaves the rows as they are.
    pub fn finish(&mut self) {
        if let Self::Rows(rows) = self {
            output::leave(&rows.live.end());
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// The columns of the rows; the last one has no title, as none has.
const ROWS: [Column; 8] = [
    Column::words("session", 0),
    Column::words("adapter", 6),
    Column::words("state", 0),
    Column::words("agent", 5),
    Column::number("tokens", 3),
    Column::words("money", 4),
    Column::number("time", 2),
    Column::long("last"),
];

impl Rows {
    fn on(screen: Screen, live: Live) -> Self {
        Self {
            live,
            screen,
            task: v1::Task::default(),
            since: Instant::now(),
            activities: BTreeMap::new(),
        }
    }

    fn task(&mut self, task: &v1::Task) {
        self.task = task.clone();
        self.since = Instant::now();
        self.paint();
    }

    fn paint(&mut self) {
        let table = rows(&self.task, &self.activities, self.since.elapsed());
        // A line that fills the terminal would wrap on some.
        let width = self.screen.width().unwrap_or(80).saturating_sub(1);
        let lines = table.rows_for(width, self.screen.colours);
        self.live.show(&live::fitted(lines, self.screen));
    }
}

/// The sessions of a task that was told some time ago.
fn rows(task: &v1::Task, activities: &BTreeMap<String, String>, ago: Duration) -> Table {
    let mut table = Table::new(ROWS);
    for session in &task.sessions {
        let is_over = session.state().is_ended();
        let failure = session.failure.as_ref().map(|failure| failure.message.as_str());
        let verdict = session.verdict.as_ref().map(|verdict| verdict.message.as_str());
        let last = match is_over {
            true => failure.or(verdict).unwrap_or_default(),
            false if !session.waiting.is_empty() => &session.waiting,
            false => activities.get(&session.name).map_or(&*session.activity, String::as_str),
        };
        let works = matches!(
            session.state(),
            v1::SessionState::Running | v1::SessionState::Verifying | v1::SessionState::Saving
        );
        let more = if works { ago } else { Duration::ZERO };
        let more = u64::try_from(more.as_millis()).unwrap_or_default();
        table.row(vec![
            Cell::from(&session.name),
            view::adapter(session).into(),
            view::state_cell(session),
            view::one_line(&session.agent, 20).into(),
            view::tokens(session.usage.as_ref()).into(),
            view::one_line(&view::money(&session.money), 24).into(),
            view::duration_ms(session)
                .map_or_else(String::new, |ran| view::short_duration(ran.saturating_add(more)))
                .into(),
            view::one_line(last, 500).into(),
        ]);
    }
    table
}

impl Lines {
    fn task(&mut self, task: &v1::Task) {
        if let (Some(baseline), false) = (view::baseline(task), self.base) {
            self.base = true;
            note(&format!("base: {baseline}"));
        }
        for session in &task.sessions {
            let state = session.state();
            if self.states.insert(session.name.clone(), state) == Some(state) {
                continue;
            }
            let mut line = format!("{}: {}", session.name, view::session_state(state));
            if !session.agent.is_empty() && state == v1::SessionState::Running {
                line += &format!(" on {}", session.agent);
            }
            if !session.waiting.is_empty() {
                line += &format!(", {}", session.waiting);
            }
            if let Some(failure) = &session.failure {
                line += &format!(": {}", view::one_line(&failure.message, 200));
            }
            if let Some(verdict) = &session.verdict {
                line += &format!(": {}", view::one_line(&verdict.message, 200));
            }
            note(&line);
        }
    }

    /// What programs say twice, as their last words and as their answer, is told once.
    fn activity(&mut self, session: &str, text: String) {
        if self.activities.get(session) != Some(&text) {
            note(&format!("{}: {text}", view::printable(session)));
            self.activities.insert(session.to_owned(), text);
        }
    }
}

/// One line for an event; `None` for events that people do not need.
#[must_use]
pub fn describe(body: &Body) -> Option<String> {
    match body {
        Body::Activity(activity) => Some(view::one_line(&activity.summary, 160)),
        Body::CallRetried(retried) => {
            let why = retried.failure.as_ref().map_or("a call failed", |f| f.message.as_str());
            let wait = view::short_duration(view::span_millis(retried.delay));
            Some(format!("{}; trying again in {wait}", view::one_line(why, 120)))
        }
        Body::FilesChanged(changed) => {
            let files: Vec<String> = changed
                .files
                .iter()
                .take(3)
                .map(|f| format!("{} +{} -{}", view::printable(&f.path), f.added, f.removed))
                .collect();
            let more = changed.files.len().saturating_sub(files.len());
            let tail = if more == 0 {
                String::new()
            } else {
                format!(" and {more} more")
            };
            Some(format!("changed {}{tail}", files.join(", ")))
        }
        Body::Warning(warning) => Some(format!("warning: {}", view::one_line(&warning.message, 200))),
        Body::OutputTruncated(cut) => Some(format!("output cut after {} bytes", cut.at)),
        Body::ResultCommitted(result) => {
            let commit = result.result.as_ref().map_or("", |r| r.commit.as_str());
            Some(format!("result {}", view::short_id(commit)))
        }
        Body::CheckpointTaken(taken) => {
            let reason =
                checkpoint_reason("reason", taken.reason).map_or_else(|_| String::new(), |r| format!(" ({r})"));
            Some(format!("checkpoint {}{reason}", view::short_id(&taken.commit)))
        }
        Body::MessageTold(told) => Some(format!("was told message {} while it works", told.number)),
        Body::PermissionAsked(asked) => Some(format!(
            "asks question {}; answer it with `kage permit`: {}",
            asked.number,
            view::one_line(&asked.about, 160)
        )),
        Body::PermissionDecided(decided) => Some(format!(
            "question {} is {} {}",
            decided.number,
            if decided.allowed { "allowed" } else { "denied" },
            view::one_line(&decided.by, 80)
        )),
        Body::Resumed(resumed) => Some(format!(
            "continues from checkpoint {}, {} made again",
            view::short_id(&resumed.commit),
            view::counted(resumed.repeated_calls as usize, "model call")
        )),
        // The table shows phases, tokens and ends; a kind that says nothing to people has no line.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> v1::Task {
        let session = |name: &str, state: v1::SessionState| v1::Session {
            name: name.into(),
            adapter: "claude-api".into(),
            model: "claude-sonnet-5-5".into(),
            state: state.into(),
            started_at: Some(prost_time()),
            ran: Some(kage_proto::convert::time::span(Duration::from_secs(61))),
            agent: "agent-1".into(),
            ..v1::Session::default()
        };
        v1::Task {
            sessions: vec![
                session("claude-api-1", v1::SessionState::Running),
                v1::Session {
                    verdict: Some(v1::Verdict {
                        message: "verify failed with exit code 1: FAILED  ten per cent off".into(),
                        ..v1::Verdict::default()
                    }),
                    ..session("claude-api-2", v1::SessionState::Rejected)
                },
                v1::Session {
                    started_at: None,
                    waiting: "waits for an agent with claude-api; two have it, both full".into(),
                    agent: String::new(),
                    ..session("claude-api-3", v1::SessionState::Queued)
                },
            ],
            ..v1::Task::default()
        }
    }

    fn prost_time() -> kage_proto::convert::time::Stamp {
        kage_proto::convert::time::stamp(kage_core::time::Timestamp::from_millis(0))
    }

    #[test]
    fn rows_fit_the_terminal_and_their_time_goes_on() {
        let activities = [("claude-api-1".to_owned(), "bash: cargo test".to_owned())].into();
        let at = |width| {
            rows(&task(), &activities, Duration::from_secs(5))
                .rows_for(width, false)
                .join("\n")
        };
        insta::assert_snapshot!(at(119), @r#"
        claude-api-1  claude-api:claude-sonnet-5-5  running   agent-1  1 m 06 s  bash: cargo test
        claude-api-2  claude-api:claude-sonnet-5-5  rejected  agent-1  1 m 01 s  verify failed with exit code 1: FAILED  ten p…
        claude-api-3  claude-api:claude-sonnet-5-5  queued                       waits for an agent with claude-api; two have …
        "#);
        insta::assert_snapshot!(at(79), @r#"
        claude-api-1  running   agent-1  1 m 06 s  bash: cargo test
        claude-api-2  rejected  agent-1  1 m 01 s  verify failed with exit code 1: FAI…
        claude-api-3  queued                       waits for an agent with claude-api;…
        "#);
        insta::assert_snapshot!(at(39), @r#"
        claude-api-1  running   1 m 06 s
        claude-api-2  rejected  1 m 01 s
        claude-api-3  queued
        "#);
    }

    #[test]
    fn names_of_files_cannot_paint_the_terminal() {
        let changed = Body::FilesChanged(v1::FilesChanged {
            files: vec![v1::FileChange {
                path: "a\u{1b}[2Jb".into(),
                added: 1,
                ..v1::FileChange::default()
            }],
        });
        assert_eq!(describe(&changed).as_deref(), Some("changed a\u{fffd}[2Jb +1 -0"));
    }
}
