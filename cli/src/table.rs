//! Tables as people and scripts read them: columns beside each other as far as a terminal has room, what
//! has none below its row, plain columns in a pipe, and tab-separated values. Layout only; no printing.

use layout::Layout;

use crate::terminal::{self, Ink, Painted, Screen};

mod layout;

/// Columns that a long text needs beside the others to be read.
const READABLE: usize = 28;

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    title: &'static str,
    /// Those of a higher rank go below the row first; those of rank 0 never do.
    rank: u8,
    is_number: bool,
    /// Long text, which is wrapped.
    is_long: bool,
}

impl Column {
    /// A column of words.
    #[must_use]
    pub const fn words(title: &'static str, rank: u8) -> Self {
        Self {
            title,
            rank,
            is_number: false,
            is_long: false,
        }
    }

    /// A column of numbers, to the right.
    #[must_use]
    pub const fn number(title: &'static str, rank: u8) -> Self {
        Self {
            is_number: true,
            ..Self::words(title, rank)
        }
    }

    /// A column of long texts. A table has one at most, as its last column.
    #[must_use]
    pub const fn long(title: &'static str) -> Self {
        Self {
            is_long: true,
            ..Self::words(title, u8::MAX)
        }
    }
}

/// A text of one line, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    ink: Ink,
}

impl Cell {
    /// A text that is shown in a colour.
    #[must_use]
    pub fn new(ink: Ink, text: impl AsRef<str>) -> Self {
        // A table has its own line ends and tabs.
        let text = terminal::shown(text.as_ref()).replace(['\n', '\t'], " ");
        Self {
            text: text.trim().to_owned(),
            ink,
        }
    }

    fn is_known(&self) -> bool {
        !matches!(self.text.as_str(), "" | "-")
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Ink::Plain, text)
    }
}

/// Rows under titles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// For whom a table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A person at a terminal of so many columns.
    Terminal { width: usize },
    /// The same, in a line for each row and without titles: what has no room is left out.
    Lines { width: usize },
    /// A pipe: every column, and a line for each row.
    Plain,
    /// Titles and rows with tabs between the cells.
    Tabs,
}

impl Shape {
    /// For who reads this stream.
    #[must_use]
    pub fn of(screen: Screen) -> Self {
        screen.width().map_or(Self::Plain, |width| Self::Terminal { width })
    }
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// A table of words, of which the last column has long texts.
    #[must_use]
    pub fn of_words(titles: &[&'static str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let last = titles.len().saturating_sub(1);
        let column = |(at, title): (usize, &&'static str)| match at {
            _ if at == last && at > 0 => Column::long(title),
            // The first say what a row is about.
            _ => Column::words(title, u8::try_from(at).unwrap_or(u8::MAX - 1)),
        };
        let mut table = Self::new(titles.iter().enumerate().map(column).collect::<Vec<_>>());
        for row in rows {
            table.row(row.into_iter().map(Cell::from).collect());
        }
        table
    }

    /// Adds a row, which has a cell for each column.
    pub fn row(&mut self, mut cells: Vec<Cell>) {
        cells.resize(self.columns.len(), Cell::from(""));
        self.rows.push(cells);
    }

    /// The titles of all columns.
    pub fn titles(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().map(|column| column.title)
    }

    /// The rows as text.
    pub fn texts(&self) -> impl Iterator<Item = Vec<&str>> {
        self.rows
            .iter()
            .map(|row| row.iter().map(|cell| cell.text.as_str()).collect())
    }

    /// The whole table; no line end behind the last line.
    #[must_use]
    pub fn laid_out(&self, shape: Shape) -> Painted {
        let mut lines = Painted::default();
        for (at, line) in self.lines(shape).into_iter().enumerate() {
            if at > 0 {
                lines.push(Ink::Plain, "\n");
            }
            for (ink, text) in line {
                lines.push(ink, text);
            }
        }
        lines
    }

    /// Each line of the table by itself.
    fn lines(&self, shape: Shape) -> Vec<Vec<(Ink, String)>> {
        match shape {
            Shape::Tabs => {
                let titles = self.titles().collect::<Vec<_>>().join("\t");
                let rows = self.texts().map(|row| row.join("\t"));
                std::iter::once(titles)
                    .chain(rows)
                    .map(|line| vec![(Ink::Plain, line)])
                    .collect()
            }
            Shape::Plain => {
                let layout = Layout::of(self, usize::MAX, 0, (0..self.columns.len()).collect());
                let rows = self.rows.iter().map(|row| layout.line(self, row));
                std::iter::once(layout.heading(self)).chain(rows).collect()
            }
            Shape::Terminal { width } => {
                let layout = Layout::of(self, width, 0, self.told());
                let rows = self.rows.iter().flat_map(|row| layout.block(self, row));
                std::iter::once(layout.heading(self)).chain(rows).collect()
            }
            Shape::Lines { width } => {
                // What has no room here is lost, and the long text says most.
                let layout = Layout::of(self, width, READABLE, self.told());
                self.rows.iter().map(|row| layout.line(self, row)).collect()
            }
        }
    }

    /// A line for each row, as a terminal of so many columns gets it.
    #[must_use]
    pub fn rows_for(&self, width: usize, colours: bool) -> Vec<String> {
        let painted = |line: Vec<(Ink, String)>| {
            let mut painted = Painted::default();
            for (ink, text) in line {
                painted.push(ink, text);
            }
            painted.for_terminal(colours)
        };
        self.lines(Shape::Lines { width }).into_iter().map(painted).collect()
    }

    /// The columns in which a row has something.
    fn told(&self) -> Vec<usize> {
        let is_told = |at: &usize| self.columns[*at].rank == 0 || self.rows.iter().any(|row| row[*at].is_known());
        (0..self.columns.len()).filter(is_told).collect()
    }
}

/// The table at terminals of 40, 80 and 120 columns, in a pipe, and with tabs: for snapshots.
#[cfg(test)]
pub(crate) fn everywhere(table: &Table) -> String {
    let at = |width| (format!("{width} columns"), Shape::Terminal { width });
    let pipe = [("a pipe".to_owned(), Shape::Plain), ("tabs".to_owned(), Shape::Tabs)];
    let shapes = [40, 80, 120].map(at).into_iter().chain(pipe);
    shapes
        .map(|(name, shape)| format!("--- {name}\n{}\n", table.laid_out(shape).text()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([
            Column::words("session", 0),
            Column::words("adapter", 3),
            Column::words("state", 0),
            Column::number("tokens", 1),
            Column::number("money", 2),
            Column::long("notes"),
        ]);
        table.row(vec![
            "claude-api-1".into(),
            "claude-api:claude-sonnet-5-5".into(),
            Cell::new(Ink::Good, "verified"),
            "3.7k".into(),
            "-".into(),
            "verify on agent-3: verify passed".into(),
        ]);
        table.row(vec![
            "shell-fixer".into(),
            "shell-fixer".into(),
            Cell::new(Ink::Bad, "rejected"),
            "-".into(),
            "-".into(),
            "verify on agent-1: verify failed with exit code 1: FAILED  ten per cent off: expected 180, got 4000"
                .into(),
        ]);
        table
    }

    #[test]
    fn what_has_no_room_beside_stands_below_and_what_nobody_knows_nowhere() {
        let at = |width| sample().laid_out(Shape::Terminal { width }).text();
        insta::assert_snapshot!(at(120), @r#"
        session       adapter                       state     tokens  notes
        claude-api-1  claude-api:claude-sonnet-5-5  verified    3.7k  verify on agent-3: verify passed
        shell-fixer   shell-fixer                   rejected       -  verify on agent-1: verify failed with exit code 1: FAILED
                                                                      ten per cent off: expected 180, got 4000
        "#);
        insta::assert_snapshot!(at(80), @r#"
        session       adapter                       state     tokens
        claude-api-1  claude-api:claude-sonnet-5-5  verified    3.7k
            verify on agent-3: verify passed
        shell-fixer   shell-fixer                   rejected       -
            verify on agent-1: verify failed with exit code 1: FAILED  ten per cent off:
            expected 180, got 4000
        "#);
        insta::assert_snapshot!(at(40), @r#"
        session       state     tokens
        claude-api-1  verified    3.7k
            adapter:
            claude-api:claude-sonnet-5-5
            verify on agent-3: verify passed
        shell-fixer   rejected       -
            adapter: shell-fixer
            verify on agent-1: verify failed
            with exit code 1: FAILED  ten per
            cent off: expected 180, got 4000
        "#);
        let lines = |width| sample().rows_for(width, false).join("\n");
        insta::assert_snapshot!(lines(80), @r#"
        claude-api-1  verified    3.7k  verify on agent-3: verify passed
        shell-fixer   rejected       -  verify on agent-1: verify failed with exit code…
        "#);
        insta::assert_snapshot!(lines(40), @r#"
        claude-api-1  verified    3.7k
        shell-fixer   rejected       -
        "#);
    }

    #[test]
    fn a_pipe_gets_every_column_and_a_line_for_each_row() {
        insta::assert_snapshot!(sample().laid_out(Shape::Plain).text(), @r#"
        session       adapter                       state     tokens  money  notes
        claude-api-1  claude-api:claude-sonnet-5-5  verified    3.7k      -  verify on agent-3: verify passed
        shell-fixer   shell-fixer                   rejected       -      -  verify on agent-1: verify failed with exit code 1: FAILED  ten per cent off: expected 180, got 4000
        "#);
        insta::assert_snapshot!(sample().laid_out(Shape::Tabs).text(), @r#"
        session	adapter	state	tokens	money	notes
        claude-api-1	claude-api:claude-sonnet-5-5	verified	3.7k	-	verify on agent-3: verify passed
        shell-fixer	shell-fixer	rejected	-	-	verify on agent-1: verify failed with exit code 1: FAILED  ten per cent off: expected 180, got 4000
        "#);
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal_and_nothing_that_is_known_is_lost(
            cells in prop::collection::vec(prop::collection::vec("[a-z日\u{1b}\n]{0,12}( [a-z]{1,12}){0,9}", 6), 1..5),
            width in 40usize..200,
        ) {
            let mut table = Table::new(sample().columns);
            for row in &cells {
                table.row(row.iter().map(Cell::from).collect());
            }
            let text = table.laid_out(Shape::Terminal { width }).text();
            for line in text.lines().chain(table.rows_for(width, false).iter().map(String::as_str)) {
                prop_assert!(line.width() <= width, "{line:?} in {width}");
            }
            let found: String = text.split_whitespace().collect();
            for row in &table.rows {
                // The long text and what moved below stand there whole.
                let long: String = row[5].text.split_whitespace().collect();
                prop_assert!(!row[5].is_known() || found.contains(&long), "{long} in {text}");
            }
            let plain = table.laid_out(Shape::Plain).text();
            prop_assert_eq!(plain.lines().count(), cells.len() + 1);
            let tabs = table.laid_out(Shape::Tabs).text();
            prop_assert!(tabs.lines().all(|line| line.split('\t').count() == 6));
        }
    }
}
