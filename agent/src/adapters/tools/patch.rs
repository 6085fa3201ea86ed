//! Editing a file by a unified diff. Its lines decide where a hunk belongs, because models count badly: the line
//! numbers only choose among several places. All hunks apply, or nothing is changed.

use super::Refused;

/// A hunk of a diff.
#[derive(Debug, Default)]
struct Hunk<'p> {
    header: &'p str,
    /// The line of the old file that its header names; `None`: it names none.
    line: Option<usize>,
    lines: Vec<(Kind, &'p str)>,
    /// The last line that it adds has no end.
    open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Context,
    Removed,
    Added,
}

/// The text with the patch applied, and how many hunks there were.
///
/// # Errors
/// Names the hunk that does not fit, and what the file has in its place.
pub(super) fn apply(text: &str, patch: &str) -> Result<(String, usize), Refused> {
    let hunks = parse(patch)?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let count = hunks.len();
    // How far from its number the last hunk was found that has one and old lines, and where the last hunk ended. Both
    // are about the old file, so it does not matter how much the hunks add.
    let (mut shift, mut from) = (0_isize, 0);
    let mut places = Vec::with_capacity(count);
    for (index, hunk) in hunks.iter().enumerate() {
        let old = hunk.old();
        let at = place(&lines, &old, hunk, shift, from).map_err(|why| {
            Refused::new(format!(
                "hunk {} of {count} ({}) {why}; nothing was changed",
                index + 1,
                hunk.header
            ))
        })?;
        places.push(at);
        from = at + old.len();
        if let Some(first) = hunk.first()
            && !old.is_empty()
        {
            shift = signed(at) - signed(first);
        }
    }
    let mut result = String::with_capacity(text.len() + patch.len());
    let mut next = 0;
    for (hunk, at) in hunks.iter().zip(places) {
        result.extend(lines[next..at].iter().copied());
        next = at;
        for (kind, line) in &hunk.lines {
            match kind {
                // As the file has it, with its own end.
                Kind::Context => {
                    result.push_str(lines[next]);
                    next += 1;
                }
                Kind::Removed => next += 1,
                Kind::Added => add(&mut result, line, end_near(&lines, next)),
            }
        }
    }
    if next == lines.len() && hunks.last().is_some_and(|hunk| hunk.open) {
        let bare = result.strip_suffix('\n').unwrap_or(&result);
        let length = bare.strip_suffix('\r').unwrap_or(bare).len();
        result.truncate(length);
    }
    result.extend(lines[next..].iter().copied());
    Ok((result, count))
}

/// Adds a line, and an end to the one before it where the file had none.
fn add(result: &mut String, line: &str, end: &str) {
    if !result.is_empty() && !result.ends_with('\n') {
        result.push_str(end);
    }
    result.push_str(line);
    result.push_str(end);
}

/// How a new line ends before this line of the file: like the line before it, or else like the one after it.
fn end_near(lines: &[&str], at: usize) -> &'static str {
    let (before, after) = lines.split_at(at);
    // Only the last line of a file may be without an end.
    let mut ended = before.iter().rev().chain(after).filter(|line| line.ends_with('\n'));
    match ended.next() {
        Some(line) if line.ends_with("\r\n") => "\r\n",
        Some(_) | None => "\n",
    }
}

fn signed(index: usize) -> isize {
    isize::try_from(index).unwrap_or(isize::MAX)
}

impl<'p> Hunk<'p> {
    /// The lines that the file has to have.
    fn old(&self) -> Vec<&'p str> {
        let lines = self.lines.iter().filter(|(kind, _)| *kind != Kind::Added);
        lines.map(|(_, line)| *line).collect()
    }

    /// The index of its first old line, by its own number.
    fn first(&self) -> Option<usize> {
        self.line?.checked_sub(1)
    }
}

fn parse(patch: &str) -> Result<Vec<Hunk<'_>>, Refused> {
    let mut hunks: Vec<Hunk<'_>> = Vec::new();
    let mut files = 0;
    for (number, line) in patch.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        if line.starts_with("@@") {
            hunks.push(Hunk {
                header: line,
                line: begins_at(line),
                lines: Vec::new(),
                open: false,
            });
            continue;
        }
        let Some(hunk) = hunks.last_mut() else {
            // The names of the files, and what git says of them.
            files += usize::from(line.starts_with("+++ "));
            continue;
        };
        let mut chars = line.chars();
        match chars.next() {
            Some(' ') => hunk.lines.push((Kind::Context, chars.as_str())),
            Some('-')
                if line.starts_with("--- ")
                    && patch
                        .lines()
                        .nth(number + 1)
                        .is_some_and(|next| next.starts_with("+++ ")) =>
            {
                files = 2;
                break;
            }
            Some('-') => hunk.lines.push((Kind::Removed, chars.as_str())),
            Some('+') => hunk.lines.push((Kind::Added, chars.as_str())),
            // Its space is often lost.
            None => hunk.lines.push((Kind::Context, "")),
            Some('\\') => hunk.open = matches!(hunk.lines.last(), Some((Kind::Added, _))),
            Some(_) => {
                return Err(Refused::new(format!(
                    "line {} of the patch begins with none of ' ', '-', '+' and '@@': {line}",
                    number + 1
                )));
            }
        }
    }
    if files > 1 {
        return Err(Refused::new(
            "the patch is about several files; make a call for each of them",
        ));
    }
    // A patch often ends with an empty line that is none of the file's.
    if let Some(hunk) = hunks.last_mut()
        && hunk.lines.last() == Some(&(Kind::Context, ""))
    {
        hunk.lines.pop();
    }
    match hunks
        .iter()
        .find(|hunk| hunk.lines.iter().all(|(kind, _)| *kind == Kind::Context))
    {
        Some(hunk) => Err(Refused::new(format!("the hunk {} changes nothing", hunk.header))),
        None if hunks.is_empty() => Err(Refused::new(
            "the patch has no hunk: each begins with a line @@ -1,2 +1,2 @@",
        )),
        None => Ok(hunks),
    }
}

/// The line of the old file in a hunk's header.
fn begins_at(header: &str) -> Option<usize> {
    let old = header.split_whitespace().find_map(|word| word.strip_prefix('-'))?;
    old.split(',').next()?.parse().ok()
}

fn same(line: &str, wanted: &str) -> bool {
    line.trim_end_matches(['\n', '\r']) == wanted
}

/// The index of the line at which a hunk's old lines are, none of them before `from`. `shift` is how far the lines are
/// from their numbers there.
fn place(lines: &[&str], old: &[&str], hunk: &Hunk<'_>, shift: isize, from: usize) -> Result<usize, String> {
    let shifted = |index: usize| index.saturating_add_signed(shift).max(from).min(lines.len());
    if old.is_empty() {
        // It only adds: after the line that it names, which is before the line with that index.
        return match hunk.line {
            _ if lines.is_empty() => Ok(0),
            Some(line) => Ok(shifted(line)),
            None => Err(
                "only adds, and does not say where: begin it with the line to add after, as in @@ -12,0 +13 @@, or \
                 give it lines around the new ones"
                    .to_owned(),
            ),
        };
    }
    let expected = hunk.first().map_or(from, shifted);
    let fits =
        |at: usize| lines.len() >= at + old.len() && lines[at..].iter().zip(old).all(|(line, old)| same(line, old));
    if hunk.first().is_some() && fits(expected) {
        return Ok(expected);
    }
    let places: Vec<usize> = (from..lines.len()).filter(|at| fits(*at)).collect();
    match places[..] {
        [at] => Ok(at),
        [] => Err(mismatch(lines, old, expected, from)),
        _ => {
            let shown: Vec<String> = places.iter().take(10).map(|at| (at + 1).to_string()).collect();
            Err(format!(
                "fits at several places (lines {}): add lines around it",
                shown.join(", ")
            ))
        }
    }
}

/// What the file has instead, at the place where most lines of the hunk fit.
fn mismatch(lines: &[&str], old: &[&str], expected: usize, from: usize) -> String {
    let fitting = |at: usize| {
        lines[at..]
            .iter()
            .zip(old)
            .take_while(|(line, old)| same(line, old))
            .count()
    };
    let nearest = |at: &usize| at.abs_diff(expected);
    let best = (from..lines.len()).max_by_key(|at| (fitting(*at), std::cmp::Reverse(nearest(at))));
    let Some(at) = best.filter(|at| fitting(*at) > 0) else {
        return format!(
            "does not fit: its first line {:?} is nowhere in the file, or before an earlier hunk",
            old[0]
        );
    };
    let right = fitting(at);
    let has = lines.get(at + right).map_or("the end of the file".to_owned(), |line| {
        format!("{:?}", line.trim_end_matches(['\n', '\r']))
    });
    format!(
        "does not fit: line {} of the file is {has}, and the hunk has {:?}",
        at + right + 1,
        old[right]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, patch: &str) -> Result<String, String> {
        apply(text, patch)
            .map(|(text, _)| text)
            .map_err(|refused| refused.to_string())
    }

    const TEXT: &str = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n";

    #[test]
    fn hunks_apply_in_order_whatever_their_numbers_say() {
        let patch = "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n@@ -90,2 +90,3 @@ fn x()\n six\n+and\n seven\n";
        assert_eq!(
            applied(TEXT, patch).unwrap(),
            "one\nTWO\nthree\nfour\nfive\nsix\nand\nseven\n"
        );
        let added = "@@ -7,0 +8,1 @@\n+eight\n";
        assert_eq!(applied(TEXT, added).unwrap(), format!("{TEXT}eight\n"));
        assert_eq!(applied("", "@@ -0,0 +1,2 @@\n+a\n+b\n").unwrap(), "a\nb\n");
        let removed = "@@ -1,2 +1,1 @@\n-one\n two\n";
        assert_eq!(applied(TEXT, removed).unwrap(), &TEXT[4..]);
    }

    #[test]
    fn line_numbers_choose_among_places_that_fit() {
        let text = "x\n}\ny\n}\nz\n}\n";
        assert_eq!(
            applied(text, "@@ -4 +4 @@\n-}\n+END\n").unwrap(),
            "x\n}\ny\nEND\nz\n}\n"
        );
        let unclear = applied(text, "@@ @@\n-}\n+END\n").unwrap_err();
        assert!(unclear.contains("several places (lines 2, 4, 6)"), "{unclear}");
    }

    #[test]
    fn hunks_that_only_add_go_after_the_line_that_they_name() {
        let two = "@@ -2,0 +3 @@\n+a\n@@ -5,0 +7 @@\n+b\n";
        assert_eq!(
            applied(TEXT, two).unwrap(),
            "one\ntwo\na\nthree\nfour\nfive\nb\nsix\nseven\n"
        );
        assert_eq!(
            applied(TEXT, "@@ -0,0 +1 @@\n+zero\n").unwrap(),
            format!("zero\n{TEXT}")
        );
        let huge = format!("@@ -{0} +{0} @@\n-two\n+2\n@@ -{0},0 +{0} @@\n+end\n", isize::MAX);
        assert_eq!(
            applied(TEXT, &huge).unwrap(),
            "one\n2\nend\nthree\nfour\nfive\nsix\nseven\n"
        );
        // Without a line to add after, only an empty file has a place for it.
        let nowhere = "@@ @@\n+new\n";
        assert_eq!(applied("", nowhere).unwrap(), "new\n");
        for patch in [nowhere.to_owned(), format!("@@ -1 +1 @@\n-one\n+1\n{nowhere}")] {
            let refused = applied(TEXT, &patch).unwrap_err();
            assert!(refused.contains("only adds, and does not say where"), "{refused}");
        }
    }

    #[test]
    fn earlier_hunks_do_not_mislead_later_ones_over_repeated_lines() {
        for (text, patch, expected) in [
            // One that only adds does not shift the next one.
            (
                "}\n}\n}\n}\n",
                "@@ -1,0 +2 @@\n+a\n@@ -3 +4 @@\n-}\n+END\n",
                "}\na\n}\nEND\n}\n",
            ),
            // Nor does one without a number.
            (
                "x\n}\ny\n}\nz\n}\n}\n}\n}\n",
                "@@ @@\n-y\n+Y\n@@ -6 +6 @@\n-}\n+END\n",
                "x\n}\nY\n}\nz\nEND\n}\n}\n}\n",
            ),
            // Nor one that adds much.
            (
                "x\n}\ny\n}\nz\n}\n",
                "@@ -1 +1,3 @@\n-x\n+1\n+2\n+3\n@@ -4 +6 @@\n-}\n+END\n",
                "1\n2\n3\n}\ny\nEND\nz\n}\n",
            ),
            // Numbers that are wrong by one line are so for the next hunks, too.
            (
                "a\n}\nb\n}\nc\n}\n",
                "@@ -2 +2 @@\n-b\n+B\n@@ -3,0 +4 @@\n+n\n@@ -5 +6 @@\n-}\n+END\n",
                "a\n}\nB\n}\nn\nc\nEND\n",
            ),
        ] {
            assert_eq!(applied(text, patch).unwrap(), expected, "{patch}");
        }
    }

    #[test]
    fn line_ends_stay_as_they_are() {
        let mixed = "a\r\nb\nc\n";
        for (patch, expected) in [
            ("@@ -1,3 +1,4 @@\n a\n b\n+new\n c\n", "a\r\nb\nnew\nc\n"),
            ("@@ -1,3 +1,4 @@\n a\n+new\n b\n c\n", "a\r\nnew\r\nb\nc\n"),
            ("@@ -0,0 +1 @@\n+new\n", "new\r\na\r\nb\nc\n"),
        ] {
            assert_eq!(applied(mixed, patch).unwrap(), expected, "{patch}");
        }
        assert_eq!(applied("a\r\nb", "@@ -2 +2,2 @@\n b\n+c\n").unwrap(), "a\r\nb\r\nc\r\n");
        assert_eq!(applied("a\nb", "@@ -1,2 +1,2 @@\n-a\n+A\n b\n").unwrap(), "A\nb");
        assert_eq!(
            applied("a\nb", "@@ -1,2 +1 @@\n a\n-b\n\\ No newline at end of file\n").unwrap(),
            "a\n"
        );
        let patch = "@@ -1,2 +1,3 @@\n a\n-b\n+B\n+c\n";
        assert_eq!(applied("a\r\nb\r\n", patch).unwrap(), "a\r\nB\r\nc\r\n");
        assert_eq!(applied("a\nb", "@@ -1 +1,2 @@\n a\n+new\n").unwrap(), "a\nnew\nb");
        assert_eq!(applied("a\nb", "@@ -2 +2 @@\n-b\n+c\n").unwrap(), "a\nc\n");
        assert_eq!(
            applied("a\nb\n", "@@ -2 +2 @@\n-b\n+c\n\\ No newline at end of file\n").unwrap(),
            "a\nc"
        );
    }

    #[test]
    fn the_hunk_that_does_not_fit_is_named_and_nothing_changes() {
        let good = "@@ -1 +1 @@\n-one\n+ONE\n";
        for (patch, words) in [
            (
                format!("{good}@@ -5,2 +5,2 @@\n five\n-SIX\n+6\n"),
                "hunk 2 of 2 (@@ -5,2 +5,2 @@) does not fit: line 6 of the file is \"six\", and the hunk has \"SIX\"",
            ),
            (format!("{good}@@ -9 +9 @@\n-nine\n+9\n"), "\"nine\" is nowhere"),
            ("@@ -7,2 +7 @@\n seven\n-eight\n".to_owned(), "the end of the file"),
            (
                "@@ -3 +3 @@\n-three\n+3\n@@ -1 +1 @@\n-one\n+1\n".to_owned(),
                "before an earlier hunk",
            ),
            ("@@ -1 +1 @@\n one\n".to_owned(), "changes nothing"),
            ("just words".to_owned(), "no hunk"),
            (String::new(), "no hunk"),
            ("@@ -1 +1 @@\n*one\n".to_owned(), "begins with none of"),
            (
                format!("--- a/f\n+++ b/f\n{good}--- a/g\n+++ b/g\n{good}"),
                "several files",
            ),
        ] {
            let said = applied(TEXT, &patch).unwrap_err();
            assert!(said.contains(words), "{patch}: {said}");
        }
    }
}
