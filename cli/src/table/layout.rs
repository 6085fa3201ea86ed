//! Which columns of a table a width has room for, and the lines that come of it.

use std::borrow::Cow;

use textwrap::{Options, WordSplitter};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{Cell, READABLE, Table};
use crate::terminal::Ink;

/// Between columns.
const GAP: usize = 2;
/// In front of what stands below a row.
const INDENT: usize = 4;
/// Columns of this rank and above make room for a long text.
const YIELDING: u8 = 3;

/// Which columns stand beside each other, and how wide each is.
#[derive(Debug)]
pub(super) struct Layout {
    beside: Vec<(usize, usize)>,
    below: Vec<usize>,
    /// The column of long texts, and the room that it has beside the others, if that is enough.
    long: Option<(usize, Option<usize>)>,
    width: usize,
}

impl Layout {
    /// `for_long`: columns of a high rank make room for as much of the long text.
    pub(super) fn of(table: &Table, width: usize, for_long: usize, told: Vec<usize>) -> Self {
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

    pub(super) fn heading(&self, table: &Table) -> Vec<(Ink, String)> {
        let titles: Vec<Cell> = table.columns.iter().map(|c| Cell::new(Ink::Faint, c.title)).collect();
        self.line(table, &titles)
    }

    /// The cells beside each other, the long text cut to its room.
    pub(super) fn line(&self, table: &Table, row: &[Cell]) -> Vec<(Ink, String)> {
        let mut line = self.fixed(table, row);
        if let Some((at, Some(room))) = self.long {
            Self::gap(&mut line);
            line.push((row[at].ink, cut(&row[at].text, room)));
        }
        trimmed(line)
    }

    /// The cells beside each other with the whole long text, and below them what has no room there.
    pub(super) fn block(&self, table: &Table, row: &[Cell]) -> Vec<Vec<(Ink, String)>> {
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
    use super::*;

    #[test]
    fn wide_characters_count_as_they_are_shown() {
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("abc", 0), "");
    }
}
