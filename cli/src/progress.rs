//! Live progress of a task: a row per session on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kage_proto::convert::checkpoint::checkpoint_reason;
use kage_proto::v1;
use kage_proto::v1::event::Body;

use crate::output::note;
use crate::view;

/// Shows the progress of one task on standard error.
#[derive(Debug)]
pub enum Progress {
    /// Rows that are painted again in place.
    Rows(Rows),
    /// One line per change.
    Lines(Lines),
}

#[derive(Debug, Default)]
pub struct Rows {
    area: MultiProgress,
    bars: BTreeMap<String, ProgressBar>,
    /// How long each session had run before the row was left.
    elapsed: BTreeMap<String, Duration>,
    /// Width of the last column, in characters.
    room: usize,
}

/// The last line of each session.
#[derive(Debug, Default)]
pub struct Lines {
    states: BTreeMap<String, v1::SessionState>,
    /// True after the result of verify on the base was shown.
    base: bool,
}

impl Progress {
    /// Rows when standard error is a terminal, lines otherwise.
    #[must_use]
    pub fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Rows(Rows::default())
        } else {
            Self::Lines(Lines::default())
        }
    }

    /// Shows the task as it is now.
    pub fn task(&mut self, task: &v1::Task) {
        match self {
            Self::Rows(rows) => rows.task(task),
            Self::Lines(lines) => lines.task(task),
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
            Self::Rows(rows) => rows.activity(&event.session, &text),
            Self::Lines(_) => note(&format!("{}: {text}", event.session)),
        }
    }

    /// Leaves the rows as they are. Later output starts new rows.
    pub fn finish(&mut self) {
        match self {
            Self::Rows(rows) => {
                for (name, bar) in std::mem::take(&mut rows.bars) {
                    bar.abandon();
                    rows.elapsed.insert(name, bar.elapsed());
                }
            }
            Self::Lines(_) => {}
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Rows {
    fn task(&mut self, task: &v1::Task) {
        let width = task.sessions.iter().map(|s| s.name.len()).max().unwrap_or_default();
        // The rest of the line after the other columns.
        self.room = usize::from(view::terminal_width().unwrap_or(80))
            .saturating_sub(width + 68)
            .max(20);
        for session in &task.sessions {
            let bar = self.bar(&session.name);
            if bar.is_finished() {
                continue;
            }
            let row = format!(
                "{:width$}  {:<10}  {:<12}  {:>7}  {:<16}",
                session.name,
                view::session_state(session.state()),
                view::one_line(&session.agent, 12),
                view::tokens(session.usage.as_ref()),
                view::one_line(&view::money(&session.money), 24),
            );
            if !session.state().is_ended() {
                let activity = if session.waiting.is_empty() {
                    &session.activity
                } else {
                    &session.waiting
                };
                bar.set_prefix(row);
                bar.set_message(view::one_line(activity, self.room));
                continue;
            }
            let last = session
                .failure
                .as_ref()
                .map(|f| f.message.clone())
                .or_else(|| session.verdict.as_ref().map(|v| v.message.clone()))
                .unwrap_or_default();
            // The row's own clock would continue; an ended session shows its own time.
            let time = view::duration_ms(session).map_or_else(String::new, view::short_duration);
            if let Ok(style) = ProgressStyle::with_template("  {prefix}  {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(format!("{row}  {time:>8}"));
            bar.abandon_with_message(view::one_line(&last, self.room));
        }
    }

    fn activity(&mut self, session: &str, text: &str) {
        if let Some(bar) = self.bars.get(session)
            && !bar.is_finished()
        {
            bar.set_message(view::one_line(text, self.room));
        }
    }

    fn bar(&mut self, name: &str) -> ProgressBar {
        let (area, elapsed) = (&self.area, &self.elapsed);
        self.bars
            .entry(name.to_owned())
            .or_insert_with(|| {
                let elapsed = elapsed.get(name).copied().unwrap_or_default();
                let bar = area.add(ProgressBar::new_spinner().with_elapsed(elapsed));
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {elapsed:>8}  {msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(250));
                bar
            })
            .clone()
    }
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

    fn running() -> v1::Task {
        let session = v1::Session {
            name: "one".into(),
            state: v1::SessionState::Running.into(),
            ..v1::Session::default()
        };
        v1::Task {
            sessions: vec![session],
            ..v1::Task::default()
        }
    }

    #[test]
    fn rows_go_on_after_they_were_left_for_a_question() {
        let mut progress = Progress::Rows(Rows::default());
        progress.task(&running());
        progress.finish();
        progress.task(&running());
        let Progress::Rows(rows) = &progress else {
            unreachable!("made above");
        };
        assert!(rows.bars.values().all(|bar| !bar.is_finished()) && rows.bars.len() == 1);
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
