//! Tables as people and scripts read them: columns beside each other as far as a terminal has room, what
//! has none below its row, plain columns in a pipe, and tab-separated values. Layout only; no printing.

use std::borrow::Cow;

use textwrap::{Options, WordSplitter};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::terminal::{self, Ink, Painted, Screen};

/// Between columns.
const GAP: usize = 2;
/// In front of what stands below a row.
const INDENT: usize = 4;
/// Columns of this rank and above make room for a long text.
const YIELDING: u8 = 3;
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

/// Which columns stand beside each other, and how wide each is.
#[derive(Debug)]
struct Layout {
    beside: Vec<(usize, usize)>,
    below: Vec<usize>,
    /// The column of long texts, and the room that it has beside the others, if that is enough.
    long: Option<(usize, Option<usize>)>,
    width: usize,
}

impl Layout {
    /// `for_long`: columns of a high rank make room for as much of the long text.
    fn of(table: &Table, width: usize, for_long: usize, told: Vec<usize>) -> Self {
        let natural = |at: usize| {
            let cells = table.rows.iter().map(|row| row[at].text.width());
            cells.max().unwrap_or_default().max(table.columns[at].title.width())
        };
        let (long, mut fixed): (Vec<usize>, Vec<usize>) = told.into_iter().partition(|at| table.columns[*at].is_long);
        let mut below = Vec::new();
        let needed = |fixed: &[usize]| {
            fixed
                .iter()
                .map(|at| natural(*at) + GAP)
                .sum::<usize>()
                .saturating_sub(GAP)
        };
        while needed(&fixed) > width {
            let rank = |at: &usize| table.columns[*at].rank;
            // Of one rank the last goes first.
            let Some(gone) = fixed.iter().copied().filter(|at| rank(at) > 0).max_by_key(rank) else {
                break;
            };
            fixed.retain(|at| *at != gone);
            below.push(gone);
        }
        let keeps = |at: &usize| table.columns[*at].rank < YIELDING;
        let kept: Vec<usize> = fixed.iter().copied().filter(keeps).collect();
        let wanted = long.first().map_or(0, |at| natural(*at).min(for_long));
        if wanted > 0 && needed(&kept) + GAP + wanted <= width {
            while needed(&fixed) + GAP + wanted > width
                && let Some(gone) = fixed
                    .iter()
                    .copied()
                    .filter(|at| !keeps(at))
                    .max_by_key(|at| table.columns[*at].rank)
            {
                fixed.retain(|at| *at != gone);
                below.push(gone);
            }
        }
        below.sort_unstable();
        let mut beside: Vec<(usize, usize)> = fixed.iter().map(|at| (*at, natural(*at))).collect();
        let mut over = needed(&fixed).saturating_sub(width);
        // What cannot go below is cut, the widest most.
        while over > 0
            && let Some((_, widest)) = beside.iter_mut().max_by_key(|(_, width)| *width)
            && *widest > 4
        {
            *widest -= 1;
            over -= 1;
        }
        let long = long.first().map(|at| {
            let room = width.saturating_sub(needed(&fixed) + GAP);
            (*at, (room >= natural(*at).min(READABLE)).then_some(room))
        });
        Self {
            beside,
            below,
            long,
            width,
        }
    }

    fn heading(&self, table: &Table) -> Vec<(Ink, String)> {
        let titles: Vec<Cell> = table.columns.iter().map(|c| Cell::new(Ink::Faint, c.title)).collect();
        self.line(table, &titles)
    }

    /// The cells beside each other, the long text cut to its room.
    fn line(&self, table: &Table, row: &[Cell]) -> Vec<(Ink, String)> {
        let mut line = self.fixed(table, row);
        if let Some((at, Some(room))) = self.long {
            Self::gap(&mut line);
            line.push((row[at].ink, cut(&row[at].text, room)));
        }
        trimmed(line)
    }

    /// The cells beside each other with the whole long text, and below them what has no room there.
    fn block(&self, table: &Table, row: &[Cell]) -> Vec<Vec<(Ink, String)>> {
        let mut first = self.fixed(table, row);
        let mut more = Vec::new();
        let items: Vec<String> = self
            .below
            .iter()
            .filter(|at| row[**at].is_known())
            .map(|at| format!("{}: {}", table.columns[*at].title, row[*at].text))
            .collect();
        let indented = |text: &str, ink: Ink| -> Vec<Vec<(Ink, String)>> {
            let lines = wrapped(text, self.width.saturating_sub(INDENT));
            lines
                .iter()
                .map(|line| vec![(Ink::Plain, " ".repeat(INDENT)), (ink, line.to_string())])
                .collect()
        };
        for line in packed(&items, self.width.saturating_sub(INDENT)) {
            more.extend(indented(&line, Ink::Plain));
        }
        match self.long {
            Some((at, Some(room))) if row[at].is_known() => {
                let lines = wrapped(&row[at].text, room);
                let before = self.width - room;
                let mut lines = lines.iter();
                Self::gap(&mut first);
                first.push((row[at].ink, lines.next().map(ToString::to_string).unwrap_or_default()));
                let rest = lines.map(|line| vec![(Ink::Plain, " ".repeat(before)), (row[at].ink, line.to_string())]);
                // The text goes on before anything else is said.
                more.splice(0..0, rest);
            }
            Some((at, None)) if row[at].is_known() => more.extend(indented(&row[at].text, row[at].ink)),
            Some(_) | None => {}
        }
        std::iter::once(trimmed(first)).chain(more).collect()
    }

    fn fixed(&self, table: &Table, row: &[Cell]) -> Vec<(Ink, String)> {
        let mut line = Vec::new();
        for (at, width) in &self.beside {
            Self::gap(&mut line);
            let text = cut(&row[*at].text, *width);
            let room = " ".repeat(width.saturating_sub(text.width()));
            let number = table.columns[*at].is_number;
            let (before, after) = if number {
                (room, String::new())
            } else {
                (String::new(), room)
            };
            line.extend([(Ink::Plain, before), (row[*at].ink, text), (Ink::Plain, after)]);
        }
        line
    }

    fn gap(line: &mut Vec<(Ink, String)>) {
        if !line.is_empty() {
            line.push((Ink::Plain, " ".repeat(GAP)));
        }
    }
}

/// Lines of so many columns. Names keep their dashes.
fn wrapped(text: &str, width: usize) -> Vec<Cow<'_, str>> {
    textwrap::wrap(
        text,
        Options::new(width.max(1)).word_splitter(WordSplitter::NoHyphenation),
    )
}

/// Items on as few lines as hold them whole.
fn packed(items: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if line.width() + GAP + item.width() <= width => *line += &format!("  {item}"),
            Some(_) | None => lines.push(item.clone()),
        }
    }
    lines
}

/// A line without spaces at its end.
fn trimmed(mut line: Vec<(Ink, String)>) -> Vec<(Ink, String)> {
    while let Some((_, text)) = line.last_mut() {
        text.truncate(text.trim_end().len());
        if !text.is_empty() {
            break;
        }
        line.pop();
    }
    line
}

/// At most so many columns of a text; `…` stands for the rest.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = width.saturating_sub(1);
    for character in text.chars() {
        let takes = character.width().unwrap_or_default();
        if takes > left {
            break;
        }
        left -= takes;
        out.push(character);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn wide_characters_count_as_they_are_shown() {
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("abc", 0), "");
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
