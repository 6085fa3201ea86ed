//! Lines at the end of a terminal that are painted again in place. What they say is decided elsewhere.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::terminal::Screen;

/// How often what is painted is looked at again, for the times in it.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// The lines, which fit into the terminal.
pub(crate) struct Live {
    target: Box<dyn Fn() -> ProgressDrawTarget + Send>,
    area: MultiProgress,
    lines: Vec<(ProgressBar, String)>,
    /// While there are lines.
    unechoed: Option<Unechoed>,
}

/// A terminal that does not show what is typed. The cursor stands behind the last column of the last line, so
/// anything there would begin another line, and one of those above would stay when all are cleared: the two
/// characters `^C`, an Enter, and on some terminals also a Ctrl-C that is shown as the byte that it is.
#[derive(Debug)]
struct Unechoed;

impl Unechoed {
    /// `None` when nothing is typed at a terminal, or it shows nothing anyway.
    fn begin() -> Option<Self> {
        let terminal = std::io::stdin();
        let mut modes = tcgetattr(&terminal).ok()?;
        if !modes.local_modes.contains(LocalModes::ECHO) {
            return None;
        }
        modes.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Now, &modes).ok()?;
        Some(Self)
    }
}

impl Drop for Unechoed {
    fn drop(&mut self) {
        let terminal = std::io::stdin();
        if let Ok(mut modes) = tcgetattr(&terminal) {
            modes.local_modes.insert(LocalModes::ECHO);
            // A terminal that is gone needs nothing.
            tcsetattr(&terminal, OptionalActions::Now, &modes).ok();
        }
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("lines", &self.lines.len())
            .finish_non_exhaustive()
    }
}

impl Live {
    /// At the end of what was written to standard error.
    pub(crate) fn new() -> Self {
        Self::on(Box::new(ProgressDrawTarget::stderr))
    }

    fn on(target: Box<dyn Fn() -> ProgressDrawTarget + Send>) -> Self {
        Self {
            area: MultiProgress::with_draw_target(target()),
            target,
            lines: Vec::new(),
            unechoed: None,
        }
    }

    /// Shows these lines in place of the earlier ones.
    pub(crate) fn show(&mut self, lines: &[String]) {
        if self.lines.len() > lines.len() {
            self.clear();
        }
        if self.unechoed.is_none() && !lines.is_empty() {
            self.unechoed = Unechoed::begin();
        }
        for (at, line) in lines.iter().enumerate() {
            match self.lines.get_mut(at) {
                Some((shown, text)) => {
                    if text != line {
                        shown.set_message(line.clone());
                        text.clone_from(line);
                    }
                }
                None => {
                    let added = self.area.add(ProgressBar::new_spinner());
                    if let Ok(style) = ProgressStyle::with_template("{msg}") {
                        added.set_style(style);
                    }
                    added.set_message(line.clone());
                    added.tick();
                    self.lines.push((added, line.clone()));
                }
            }
        }
    }

    /// Takes the lines away.
    pub(crate) fn clear(&mut self) {
        // A terminal that cannot be painted has nothing to clear.
        self.area.clear().ok();
        // What is dropped now would be painted once more.
        self.area.set_draw_target(ProgressDrawTarget::hidden());
        self.lines.clear();
        self.unechoed = None;
        self.area = MultiProgress::with_draw_target((self.target)());
    }

    /// Takes the lines away and gives them back, to be printed as they are.
    #[must_use]
    pub(crate) fn end(&mut self) -> Vec<String> {
        let lines = self.lines.iter().map(|(_, text)| text.clone()).collect();
        self.clear();
        lines
    }
}

/// As many of the lines as the terminal has room for, with a word for the rest.
pub(crate) fn fitted(mut lines: Vec<String>, screen: Screen) -> Vec<String> {
    let room = screen
        .size
        .map_or(usize::MAX, |(_, rows)| usize::from(rows.saturating_sub(2)).max(1));
    if lines.len() > room {
        let more = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(format!("… and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;

    #[test]
    fn lines_are_painted_in_place_and_none_stays_when_they_are_taken_away() {
        let terminal = InMemoryTerm::new(10, 40);
        let painted = terminal.clone();
        // As often as a real one is painted.
        let mut live = Live::on(Box::new(move || {
            ProgressDrawTarget::term_like(Box::new(painted.clone()))
        }));
        let texts = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        for round in 0..50 {
            live.show(&texts(&[&format!("one {round}"), "two queued", "three"]));
        }
        live.clear();
        assert_eq!(terminal.contents(), "", "before a question is asked");
        live.show(&texts(&["one running", "two running"]));
        live.show(&texts(&["one running"]));
        live.clear();
        assert_eq!(terminal.contents(), "");
        live.show(&texts(&["one verified", "two rejected"]));
        assert_eq!(live.end(), ["one verified", "two rejected"]);
        assert_eq!(terminal.contents(), "");
    }

    #[test]
    fn what_a_terminal_has_no_room_for_is_counted() {
        let lines = |count: usize| (0..count).map(|at| at.to_string()).collect::<Vec<_>>();
        let screen = Screen {
            size: Some((40, 6)),
            ..Screen::PIPE
        };
        assert_eq!(fitted(lines(4), screen), lines(4));
        assert_eq!(fitted(lines(9), screen), ["0", "1", "2", "… and 6 more"]);
        assert_eq!(fitted(lines(9), Screen::PIPE), lines(9));
    }
}
