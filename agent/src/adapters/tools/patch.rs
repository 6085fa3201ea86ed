//! Editing a file by a unified diff. Its lines decide where a hunk belongs, because models count badly: the line
//! numbers only choose among several places. All hunks apply, or nothing is changed.

use super::Refused;

/// A hunk of a diff.
#[derive(Debug, Default)]
struct Hunk<'p> {
    header: &'p str,
    /// The line at which it says that it begins, from 1; 0: it does not say.
    line: usize,
    lines: Vec<(Kind, &'p str)>,
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
    let crlf = text.contains("\r\n");
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let count = hunks.len();
    // Lines that earlier hunks added or took away, and where the last one ended.
    let (mut shift, mut from) = (0_isize, 0);
    let mut made = Vec::with_capacity(count);
    for (index, hunk) in hunks.iter().enumerate() {
        let old: Vec<&str> = hunk.side(Kind::Added);
        let at = place(&lines, &old, hunk, shift, from).map_err(|why| {
            Refused::new(format!(
                "hunk {} of {count} ({}) {why}; nothing was changed",
                index + 1,
                hunk.header
            ))
        })?;
        let new: Vec<String> = hunk.side(Kind::Removed).iter().map(|line| ended(line, crlf)).collect();
        made.push((at, old.len(), new));
        from = at + old.len();
        shift = isize::try_from(at).unwrap_or(0) - isize::try_from(hunk.line.saturating_sub(1)).unwrap_or(0);
    }
    let mut result = String::with_capacity(text.len() + patch.len());
    let mut rest = lines.drain(..);
    let mut at = 0;
    for (start, removed, new) in &made {
        for line in rest.by_ref().take(start - at) {
            push(&mut result, line, crlf);
        }
        let taken = rest.by_ref().take(*removed).count();
        at = start + taken;
        for line in new {
            push(&mut result, line, crlf);
        }
    }
    for line in rest {
        push(&mut result, line, crlf);
    }
    // A file without a line end at its end keeps that, as far as it ends as it did.
    let was_open = !text.is_empty() && !text.ends_with('\n');
    let touches_end = made
        .last()
        .is_some_and(|(start, removed, _)| start + removed >= text.split_inclusive('\n').count());
    let open = match patch.lines().last().map(str::trim_end) {
        Some(last) if last.starts_with("\\ No newline") => true,
        Some(_) | None => was_open && !touches_end,
    };
    if open {
        while result.ends_with(['\n', '\r']) {
            result.pop();
        }
    }
    Ok((result, count))
}

/// Adds a line, with an end to the one before it.
fn push(result: &mut String, line: &str, crlf: bool) {
    if !result.is_empty() && !result.ends_with('\n') {
        result.push_str(if crlf { "\r\n" } else { "\n" });
    }
    result.push_str(line);
}

fn ended(line: &str, crlf: bool) -> String {
    format!("{line}{}", if crlf { "\r\n" } else { "\n" })
}

impl<'p> Hunk<'p> {
    /// The lines of one side: all but these.
    fn side(&self, without: Kind) -> Vec<&'p str> {
        let lines = self.lines.iter().filter(|(kind, _)| *kind != without);
        lines.map(|(_, line)| *line).collect()
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
            Some('\\') => {}
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
fn begins_at(header: &str) -> usize {
    let old = header.split_whitespace().find_map(|word| word.strip_prefix('-'));
    old.and_then(|old| old.split(',').next()?.parse().ok()).unwrap_or(0)
}

fn same(line: &str, wanted: &str) -> bool {
    line.trim_end_matches(['\n', '\r']) == wanted
}

/// The index of the line at which a hunk's old lines are, none of them before `from`.
fn place(lines: &[&str], old: &[&str], hunk: &Hunk<'_>, shift: isize, from: usize) -> Result<usize, String> {
    let said = isize::try_from(hunk.line.saturating_sub(1)).unwrap_or(0) + shift;
    let expected = usize::try_from(said).unwrap_or(0).max(from);
    if old.is_empty() {
        // It only adds: after the line that it names.
        let at = if hunk.line == 0 || lines.is_empty() {
            0
        } else {
            expected + 1
        };
        return Ok(at.min(lines.len()).max(from));
    }
    let fits =
        |at: usize| lines.len() >= at + old.len() && lines[at..].iter().zip(old).all(|(line, old)| same(line, old));
    if hunk.line > 0 && fits(expected) {
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
    fn line_ends_stay_as_they_are() {
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
