//! The paths that a prompt names: the task is about them. A prompt is prose, so a word is a path
//! only when it looks like one or is marked as one; `core/data/mentions.toml` defines what looks
//! like one.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::Deserialize;

/// The paths that a prompt names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions<'a> {
    /// Words that can only be files, by their extension.
    files: BTreeSet<&'a str>,
    /// Words that are paths if such a path exists: "and/or" looks like a folder.
    perhaps: BTreeSet<&'a str>,
    /// Words that are a file's name if such a file exists: quoted, or spelled unlike prose.
    bare: BTreeSet<&'a str>,
}

impl<'a> Mentions<'a> {
    /// Reads a prompt.
    #[must_use]
    pub fn of(prompt: &'a str) -> Self {
        let mut found = Self::default();
        let text = &prompt[..prompt.floor_char_boundary(MAX_READ)];
        for word in words(text) {
            if RULES.looks_like_file(word) {
                found.files.insert(word);
            } else if word.contains('/') {
                found.perhaps.insert(word);
            } else if spelled_like_a_name(word) {
                found.bare.insert(word);
            }
        }
        found.bare.extend(text.split_whitespace().filter_map(marked));
        found
    }

    /// True when this file is named: whole, by its last parts or by its absolute path. A folder
    /// does not name the files in it.
    #[must_use]
    pub fn name(&self, path: &str) -> bool {
        self.all().any(|word| is_file(path, word))
    }

    /// The ones of these paths that lie outside of the named ones; empty when nothing is named.
    #[must_use]
    pub fn outside<'p>(&self, paths: &'p [String]) -> Vec<&'p str> {
        let there = |word: &&str| paths.iter().any(|path| is_within(path, word));
        let perhaps = self.perhaps.iter().copied().filter(there);
        let named: BTreeSet<&str> = self.files.iter().copied().chain(perhaps).collect();
        if named.is_empty() {
            return Vec::new();
        }
        let inside = |path: &&str| named.iter().any(|name| is_within(path, name));
        paths.iter().map(String::as_str).filter(|path| !inside(path)).collect()
    }

    /// Every word that may name a file.
    pub fn all(&self) -> impl Iterator<Item = &'a str> {
        let sets = [&self.files, &self.perhaps, &self.bare];
        sets.into_iter().flatten().copied()
    }
}

/// The searched part of a prompt, in bytes. Longer prompts carry pasted material.
const MAX_READ: usize = 64 << 10;

/// True when a prompt's `word` is this file: its path, its last parts, or its absolute path.
#[must_use]
pub fn is_file(path: &str, word: &str) -> bool {
    let above = |rest: Option<&str>| rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    above(path.strip_suffix(word)) || (word.starts_with('/') && above(word.strip_suffix(path)))
}

/// True when `path` is `name`, lies below it or ends with it, or when `name` ends with it, as when
/// a person also names the folder around the repository.
fn is_within(path: &str, name: &str) -> bool {
    let below = |rest: Option<&str>| rest.is_some_and(|rest| rest.starts_with('/'));
    let above = |rest: Option<&str>| rest.is_some_and(|rest| rest.ends_with('/'));
    is_file(path, name) || below(path.strip_prefix(name)) || above(name.strip_suffix(path))
}

/// The words of a prompt that consist of usual characters of paths, without the punctuation of
/// prose and compilers around them (`./src/lib.rs:10:5,` is `src/lib.rs`). Links are not paths.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| c.is_whitespace() || "\"'`,;()[]{}<>".contains(c))
        .filter(|word| !word.contains("://"))
        .filter_map(|word| word.split(':').next())
        .map(|word| word.trim_end_matches(['.', '!', '?', '/']).trim_start_matches("./"))
        .filter(|word| is_plain(word))
        .collect()
}

fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    !word.is_empty() && word.chars().all(plain)
}

/// `run-it`, `check_all`, `Makefile`: hardly a word of prose.
fn spelled_like_a_name(word: &str) -> bool {
    let stem = |end: &str| word.strip_suffix(end).is_some_and(|stem| !stem.is_empty());
    word.contains(['-', '_']) || stem("file")
}

/// The name that backquotes, quotes or `./` mark.
fn marked(word: &str) -> Option<&str> {
    let word = word
        .trim_start_matches(['(', '['])
        .trim_end_matches([',', ';', ':', '.', '!', '?', ')', ']']);
    let quoted = ['`', '"', '\'']
        .into_iter()
        .find_map(|mark| word.strip_prefix(mark)?.strip_suffix(mark));
    let name = match quoted {
        Some(name) => name.strip_prefix("./").unwrap_or(name),
        None => word.strip_prefix("./")?,
    };
    Some(name).filter(|name| is_plain(name))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    extensions: BTreeSet<String>,
    not_paths: BTreeSet<String>,
}

impl Rules {
    fn looks_like_file(&self, word: &str) -> bool {
        let Some((stem, extension)) = word.rsplit_once('.') else {
            return false;
        };
        !stem.is_empty() && self.extensions.contains(extension) && !self.not_paths.contains(&word.to_ascii_lowercase())
    }
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    toml::from_str(include_str!("../data/mentions.toml")).expect("the tests read the built-in rules about paths")
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_whole_by_its_end_or_absolutely() {
        let cases = [
            ("fix test.sh", "test.sh", true),
            ("fix test.sh", "sub/test.sh", true),
            ("fix sub/test.sh", "test.sh", false),
            ("fix sub/test.sh", "other/test.sh", false),
            ("fix test.sh", "latest.sh", false),
            ("error at ./test.sh:10:5, fix it", "test.sh", true),
            ("fix /home/me/shop/test.sh!", "test.sh", true),
            // A folder does not stand for its files, and prose is not a path.
            ("refactor src/parser", "src/parser/check.sh", false),
            ("make the test pass", "test", false),
            ("run the check again", "check", false),
            ("make `check` faster", "check", true),
            ("make 'check', then stop", "check", true),
            ("(see \"check\")", "check", true),
            ("make ./check faster", "check", true),
            ("make run-it faster", "run-it", true),
            ("extend Makefile", "Makefile", true),
            ("read the file", "file", false),
            ("see https://example.org/test.sh", "test.sh", false),
            ("", "test.sh", false),
        ];
        for (prompt, path, expected) in cases {
            assert_eq!(Mentions::of(prompt).name(path), expected, "{prompt}: {path}");
        }
    }

    #[test]
    fn a_long_prompt_is_cut_between_characters() {
        let prompt = format!("x{} fix a.rs", "é".repeat(MAX_READ));
        assert_eq!(Mentions::of(&prompt), Mentions::default());
    }
}
