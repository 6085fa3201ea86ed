//! The files of a difference in lines, as `git diff` has them with `--stat` and `--name-only`. No printing.

use kage_git::diff::{FileDiff, FileLines};

/// The most signs of one line.
const BAR: u64 = 40;

/// A path on a line of its own. git writes one that would not be read back in quotes.
fn quoted(path: &[u8]) -> Vec<u8> {
    let odd = |byte: &u8| byte.is_ascii_control() || matches!(byte, b'"' | b'\\');
    if !path.iter().any(odd) {
        return path.to_vec();
    }
    let mut quoted = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => quoted.extend([b'\\', *byte]),
            b'\n' => quoted.extend(b"\\n"),
            b'\t' => quoted.extend(b"\\t"),
            byte if byte.is_ascii_control() => quoted.extend(format!("\\{byte:03o}").bytes()),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'"');
    quoted
}

/// The paths, a line each.
pub(super) fn names(files: &[FileDiff]) -> Vec<u8> {
    let mut text = Vec::new();
    for file in files {
        text.extend(quoted(&file.path));
        text.push(b'\n');
    }
    text
}

/// Each file with its lines, and the sum of all.
pub(super) fn stat(files: &[FileDiff]) -> Vec<u8> {
    let name = |file: &FileDiff| match &file.old_path {
        Some(old) => [quoted(old), b" => ".to_vec(), quoted(&file.path)].concat(),
        None => quoted(&file.path),
    };
    let lines = |file: &FileDiff| match file.lines {
        FileLines::Counted { added, removed } => (added, removed),
        FileLines::Binary | FileLines::TooLarge => (0, 0),
    };
    let shown = |file: &FileDiff| match file.lines {
        FileLines::Counted { added, removed } => (added + removed).to_string(),
        FileLines::Binary => "Bin".to_owned(),
        FileLines::TooLarge => "large".to_owned(),
    };
    let names: Vec<Vec<u8>> = files.iter().map(name).collect();
    let letters = |name: &[u8]| String::from_utf8_lossy(name).chars().count();
    let width = names.iter().map(|name| letters(name)).max().unwrap_or(0);
    let digits = files.iter().map(|file| shown(file).len()).max().unwrap_or(0);
    let most = files
        .iter()
        .map(lines)
        .map(|(added, removed)| added + removed)
        .max()
        .unwrap_or(0);
    let signs = |count: u64| match most {
        0..=BAR => count,
        // Something is never nothing.
        _ => (count * BAR / most).max(u64::from(count > 0)),
    };
    let mut text = Vec::new();
    let (mut all_added, mut all_removed) = (0, 0);
    for (file, name) in files.iter().zip(names) {
        let (added, removed) = lines(file);
        all_added += added;
        all_removed += removed;
        text.push(b' ');
        text.extend(&name);
        text.resize(text.len() + width - letters(&name), b' ');
        text.extend(format!(" | {:>digits$} ", shown(file)).bytes());
        for (sign, count) in [(b'+', added), (b'-', removed)] {
            text.extend((0..signs(count)).map(|_| sign));
        }
        while text.last() == Some(&b' ') {
            text.pop();
        }
        text.push(b'\n');
    }
    let count = |number: u64, one: &str, more: &str| format!("{number} {}", if number == 1 { one } else { more });
    let mut sum = format!(" {} changed", count(files.len() as u64, "file", "files"));
    for (number, one, more) in [
        (all_added, "insertion(+)", "insertions(+)"),
        (all_removed, "deletion(-)", "deletions(-)"),
    ] {
        if number > 0 {
            sum += &format!(", {}", count(number, one, more));
        }
    }
    text.extend(sum.bytes());
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use kage_git::diff::FileStatus;

    use super::*;

    fn file(path: &str, old: Option<&str>, lines: FileLines) -> FileDiff {
        FileDiff {
            path: path.into(),
            old_path: old.map(Into::into),
            status: FileStatus::Modified,
            before: None,
            after: None,
            lines,
            patch: Vec::new(),
            truncated: false,
        }
    }

    #[test]
    fn files_are_listed_as_git_lists_them() {
        let files = [
            file("a", None, FileLines::Counted { added: 3, removed: 1 }),
            file("é \"x\"\n", None, FileLines::Binary),
            file("new", Some("old"), FileLines::Counted { added: 0, removed: 0 }),
        ];
        assert_eq!(
            String::from_utf8(names(&files)).unwrap(),
            "a\n\"é \\\"x\\\"\\n\"\nnew\n"
        );
        let expected = " a           |   4 +++-\n \"é \\\"x\\\"\\n\" | Bin\n old => new  |   0\n 3 files changed, 3 insertions(+), 1 deletion(-)\n";
        assert_eq!(String::from_utf8(stat(&files)).unwrap(), expected);
        let large = [
            file(
                "a",
                None,
                FileLines::Counted {
                    added: 4000,
                    removed: 1,
                },
            ),
            file("b", None, FileLines::TooLarge),
        ];
        let text = String::from_utf8(stat(&large)).unwrap();
        assert!(
            text.starts_with(&format!(" a |  4001 {}-\n b | large\n", "+".repeat(39))),
            "{text}"
        );
    }
}
