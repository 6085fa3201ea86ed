//! The checkpoints of a session as a timeline, oldest on top: one column per line of work, and a
//! new column where a session went back.
//!
//! ```text
//!  ○    base
//!  ✔    1  baseline, safe
//!  ●    2  files changed
//!  ├─╮
//!  │ ●  3  files changed, after it went back to 1
//! ```

use std::collections::BTreeMap;

use kage_proto::v1;

use super::{reason, resumed};
use crate::view;

/// Which column each checkpoint is in; the base, number 0, is in the first.
struct Columns {
    of: BTreeMap<u32, usize>,
    count: usize,
}

impl Columns {
    /// The first checkpoint after another one continues its column.
    fn of(checkpoints: &[&v1::Checkpoint]) -> Self {
        let mut of = BTreeMap::from([(0, 0)]);
        let mut followed = Vec::new();
        let mut count = 1;
        for checkpoint in checkpoints {
            let parent = of.get(&checkpoint.parent_number).copied().unwrap_or(0);
            let column = if followed.contains(&checkpoint.parent_number) {
                count += 1;
                count - 1
            } else {
                parent
            };
            followed.push(checkpoint.parent_number);
            of.insert(checkpoint.number, column);
        }
        Self { of, count }
    }

    fn get(&self, number: u32) -> usize {
        self.of.get(&number).copied().unwrap_or(0)
    }

    /// The columns that have begun in `drawn` and have descendants in `later`.
    fn open(&self, drawn: &[&v1::Checkpoint], later: &[&v1::Checkpoint]) -> Vec<bool> {
        let begun = |n| n == 0 || drawn.iter().any(|checkpoint| self.get(checkpoint.number) == n);
        let needed = |n| later.iter().any(|checkpoint| self.get(checkpoint.parent_number) == n);
        (0..self.count).map(|n| begun(n) && needed(n)).collect()
    }
}

pub(super) fn draw(session: &v1::Session, checkpoints: &[&v1::Checkpoint]) -> String {
    let mut text = format!(
        "{}  {}, {}\n",
        session.name,
        view::session_state(session.state()),
        view::counted(session.attempts as usize, "attempt")
    );
    if checkpoints.is_empty() {
        return text + "  no checkpoint was taken yet\n\n";
    }
    let columns = Columns::of(checkpoints);
    let here = if session.head == 0 { "   <- here" } else { "" };
    text += &line(&["○"], columns.count, &format!("base{here}"));
    for (at, checkpoint) in checkpoints.iter().enumerate() {
        let (column, parent) = (columns.get(checkpoint.number), columns.get(checkpoint.parent_number));
        let (drawn, later) = checkpoints.split_at(at + 1);
        let after = columns.open(drawn, later);
        let cells = |own: &'static str| -> Vec<&'static str> {
            let cell = |(n, open): (usize, &bool)| match (n == column, open) {
                (true, _) => own,
                (false, true) => "│",
                (false, false) => " ",
            };
            after.iter().enumerate().map(cell).collect()
        };
        if column != parent {
            text += &branch(parent, column, &after);
        }
        text += &line(&cells(mark(checkpoint)), columns.count, &words(checkpoint));
        let own = if after.get(column) == Some(&true) { "│" } else { " " };
        for remark in remarks(checkpoint) {
            text += &line(&cells(own), columns.count, &remark);
        }
    }
    text + "\n"
}

/// The line on which a column begins.
fn branch(from: usize, to: usize, open: &[bool]) -> String {
    let mut text = String::from(" ");
    for (n, open) in open.iter().enumerate().take(to + 1) {
        text += match (n, open) {
            (n, true) if n == from => "├─",
            (n, false) if n == from => "╰─",
            (n, _) if n == to => "╮",
            (n, true) if n > from => "┼─",
            (n, false) if n > from => "──",
            (_, true) => "│ ",
            (_, false) => "  ",
        };
    }
    text + "\n"
}

fn line(cells: &[&str], width: usize, words: &str) -> String {
    let mut text = String::from(" ");
    for n in 0..width {
        text += cells.get(n).copied().unwrap_or(" ");
        text += " ";
    }
    format!("{text} {words}").trim_end().to_owned() + "\n"
}

fn mark(checkpoint: &v1::Checkpoint) -> &'static str {
    match checkpoint.safety() {
        v1::Safety::Safe => "✔",
        v1::Safety::Unsafe => "✘",
        v1::Safety::Unspecified | v1::Safety::Unknown => "●",
    }
}

fn words(checkpoint: &v1::Checkpoint) -> String {
    let safety = match checkpoint.safety() {
        v1::Safety::Safe => ", safe",
        v1::Safety::Unsafe => ", unsafe",
        v1::Safety::Unspecified | v1::Safety::Unknown => "",
    };
    let here = if checkpoint.head { "   <- here" } else { "" };
    format!(
        "{:<3} {}  attempt {} on {}: {} ({}){safety}{here}",
        checkpoint.number,
        view::short_id(&checkpoint.commit),
        checkpoint.attempt,
        view::printable(&checkpoint.agent),
        reason(checkpoint),
        view::counted(usize::try_from(checkpoint.files_changed).unwrap_or(usize::MAX), "file"),
    )
}

fn remarks(checkpoint: &v1::Checkpoint) -> Vec<String> {
    let note = (!checkpoint.note.is_empty()).then(|| format!("    \"{}\"", view::one_line(&checkpoint.note, 100)));
    let resumed = checkpoint.resumptions.iter().map(|by| format!("    {}", resumed(by)));
    note.into_iter().chain(resumed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(number: u32, parent_number: u32, attempt: u32) -> v1::Checkpoint {
        v1::Checkpoint {
            number,
            parent_number,
            attempt,
            agent: format!("w{attempt}"),
            commit: format!("{number:040x}"),
            reason: v1::CheckpointReason::FilesChanged.into(),
            files_changed: u64::from(number),
            ..Default::default()
        }
    }

    #[test]
    fn lines_of_work_are_drawn_beside_each_other() {
        let mut all = [
            checkpoint(1, 0, 1),
            checkpoint(2, 1, 1),
            checkpoint(3, 2, 1),
            checkpoint(4, 2, 2),
            checkpoint(5, 1, 3),
            checkpoint(6, 4, 4),
        ];
        all[0].reason = v1::CheckpointReason::Baseline.into();
        all[0].safety = v1::Safety::Safe.into();
        all[1].resumptions.push(v1::Resumption {
            attempt: 2,
            position: 5,
            repeated_calls: 1,
            ..Default::default()
        });
        all[1].note = "before\u{1b}[31m the move".to_owned();
        all[2].safety = v1::Safety::Unsafe.into();
        all[5].head = true;
        let session = v1::Session {
            name: "one".to_owned(),
            state: v1::SessionState::Running.into(),
            attempts: 4,
            head: 6,
            ..Default::default()
        };
        let all: Vec<_> = all.iter().collect();
        insta::assert_snapshot!(draw(&session, &all), @r#"
        one  running, 4 attempts
         ○      base
         ✔      1   00000000  attempt 1 on w1: baseline (1 file), safe
         ●      2   00000000  attempt 1 on w1: files changed (2 files)
         │          "before [31m the move"
         │          attempt 2 continued from here; 1 model call made again
         ✘      3   00000000  attempt 1 on w1: files changed (3 files), unsafe
         ├─╮
         │ ●    4   00000000  attempt 2 on w2: files changed (4 files)
         ╰─┼─╮
           │ ●  5   00000000  attempt 3 on w3: files changed (5 files)
           ●    6   00000000  attempt 4 on w4: files changed (6 files)   <- here
        "#);
    }

    #[test]
    fn a_session_without_any_says_so() {
        let text = draw(&v1::Session::default(), &[]);
        assert!(text.contains("no checkpoint"), "{text}");
    }
}
