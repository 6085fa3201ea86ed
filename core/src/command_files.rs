//! The files that shell commands name. No shell is run: the words of a command are compared with
//! paths, so files that a script reads, or that a tool finds by its own rules (`make`, `npm test`),
//! are not found.

use std::collections::BTreeSet;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::folder::Folder;

/// The files that some shell commands name.
#[derive(Debug, Clone)]
pub struct CommandFiles {
    words: BTreeSet<String>,
    /// The words with a slash, which name a path as programs in the present folder do, whatever the
    /// file is called.
    paths: BTreeSet<String>,
    globs: GlobSet,
}

impl CommandFiles {
    /// The files that these commands name, each in the folder in which it runs. A word counts as a
    /// path from that folder and as one from the repository's top, because commands change folders.
    #[must_use]
    pub fn of<'a>(commands: impl IntoIterator<Item = (&'a String, Option<&'a Folder>)>) -> Self {
        let (mut found, mut paths) = (BTreeSet::new(), BTreeSet::new());
        for (command, folder) in commands {
            for word in words(command).chain(quoted(command)).filter(|word| !word.is_empty()) {
                let plain_word = plain(word);
                if word.contains('/') {
                    paths.insert(plain_word.clone());
                }
                found.insert(plain_word);
                if let Some(folder) = folder {
                    found.insert(plain(&format!("{}/{word}", escaped_for(folder, word))));
                }
            }
        }
        found.remove("");
        Self {
            globs: globs(found.iter().filter(|word| is_pattern(word))),
            paths,
            words: found,
        }
    }

    /// True when a command may name this path: whole, or its last parts, because commands change
    /// folders. A bare word counts as a path only when it is the whole path.
    #[must_use]
    pub fn name(&self, path: &str) -> bool {
        self.is_named_whole(path) || self.by_its_end(path, &BTreeSet::new())
    }

    /// The ones of `paths`, a complete list, that the commands name. A word that equals a whole
    /// path names that path, and no other path that ends with it.
    #[must_use]
    pub fn among<'p>(&self, paths: impl Iterator<Item = &'p str> + Clone) -> BTreeSet<&'p str> {
        let whole: BTreeSet<&str> = paths.clone().filter(|path| self.words.contains(*path)).collect();
        paths
            .filter(|path| self.is_named_whole(path) || self.by_its_end(path, &whole))
            .collect()
    }

    /// True when `word`, a person's text for a file, may be a file that the commands name: by the
    /// last part of both, or by a pattern.
    #[must_use]
    pub fn may_name(&self, word: &str) -> bool {
        fn last(path: &str) -> &str {
            path.rsplit('/').next().unwrap_or(path)
        }
        self.words.iter().any(|own| is_pattern(own) || last(own) == last(word))
    }

    /// True when no word can be a path.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn is_named_whole(&self, path: &str) -> bool {
        self.words.contains(path) || self.globs.is_match(path)
    }

    fn by_its_end(&self, path: &str, taken: &BTreeSet<&str>) -> bool {
        path.match_indices('/')
            .map(|(at, _)| &path[at + 1..])
            .filter(|end| !taken.contains(end))
            .any(|end| self.paths.contains(end) || (end.contains(['.', '/']) && self.words.contains(end)))
    }
}

/// The words of a command. A word that begins with a variable (`$PWD/test.sh`) counts as the path
/// after it.
fn words(command: &str) -> impl Iterator<Item = &str> {
    let is_break = |c: char| c.is_whitespace() || "\"'`;|&()<>{}=".contains(c);
    command.split(is_break).flat_map(|word| {
        word.split('$').enumerate().map(|(at, part)| match part.find('/') {
            Some(slash) if at > 0 => &part[slash..],
            Some(_) | None => part,
        })
    })
}

/// The text in quotes, such as file names with blanks.
fn quoted(command: &str) -> impl Iterator<Item = &str> {
    let between = |mark| command.split(mark).skip(1).step_by(2);
    between('"').chain(between('\''))
}

/// A path without redundant parts: `./a//b/../c` is `a/c`.
fn plain(word: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in word.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The folder, as a part of a pattern if the word is one.
fn escaped_for(folder: &Folder, word: &str) -> String {
    if is_pattern(word) {
        globset::escape(folder.as_str())
    } else {
        folder.to_string()
    }
}

fn is_pattern(word: &str) -> bool {
    word.contains(['*', '?', '['])
}

/// The set of the patterns that are valid globs; an invalid one matches nothing.
fn globs<'a>(patterns: impl Iterator<Item = &'a String>) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in patterns.filter_map(|pattern| GlobBuilder::new(pattern).literal_separator(true).build().ok()) {
        set.add(glob);
    }
    // Each glob was compiled alone; only a set beyond the regex size limit fails.
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_files_as_a_shell_reads_them() {
        let cases = [
            ("sh check.sh", "check.sh", true),
            ("cd sub && ./check.sh --all", "sub/check.sh", true),
            ("python3 tools/verify.py; true", "tools/verify.py", true),
            ("sh -c 'exec ./run-it'", "run-it", true),
            ("cd ci && ./check", "ci/check", true),
            ("cd ci/deep; ../check --all", "ci/check", true),
            ("(cd ci && exec \"$PWD/check\")", "ci/check", true),
            ("cd ci && ./check", "ci/precheck", false),
            ("cd ci && ./check", "ci/check/a", false),
            ("node checks/*.js", "checks/a.js", true),
            ("node checks/*.js", "checks/deep/a.js", false),
            ("sh check.sh", "sub/precheck.sh", false),
            // A bare word is a path only as a whole: "check" is not "src/check".
            ("make check", "src/check", false),
            ("cd src && make", "src/a.c", false),
            // A folder does not stand for its files.
            ("pytest tests/", "tests/a.py", false),
            ("sh \"$PWD/check.sh\"", "check.sh", true),
            ("sh ${PWD}/tools/check.sh", "tools/check.sh", true),
            ("\"$(pwd)/check.sh\"", "check.sh", true),
            ("RULES=rules.json sh check", "rules.json", true),
            ("sh <check.sh >/dev/null", "check.sh", true),
            ("sh tools/../check.sh", "check.sh", true),
            ("sh .//tools/./check.sh", "tools/check.sh", true),
            ("sh 'all checks.sh' && sh \"two words\"", "all checks.sh", true),
            ("sh 'all checks.sh' && sh \"two words\"", "two words", true),
        ];
        for (command, path, expected) in cases {
            let files = CommandFiles::of([(&command.to_owned(), None)]);
            assert_eq!(files.name(path), expected, "{command}: {path}");
        }
    }

    #[test]
    fn a_word_that_is_a_whole_path_is_no_other_path() {
        let files = CommandFiles::of([(&"python3 main.py && cd sub && sh check.sh".to_owned(), None)]);
        let base = ["main.py", "other/main.py", "sub/check.sh", "src/a.py"];
        assert!(
            files
                .among(base.into_iter())
                .into_iter()
                .eq(["main.py", "sub/check.sh"])
        );
        let elsewhere = ["other/main.py"];
        assert!(files.among(elsewhere.into_iter()).into_iter().eq(elsewhere));
    }

    #[test]
    fn words_are_paths_from_the_folder_in_which_a_command_runs() {
        let web: Folder = "packages/web".parse().unwrap();
        let cases = [
            ("sh check", "packages/web/check", true),
            ("sh check", "packages/other/check", false),
            ("sh ./check.sh", "packages/web/check.sh", true),
            ("sh \"$PWD/check.sh\"", "packages/web/check.sh", true),
            ("sh ../../ci/run", "ci/run", true),
            ("sh ../ci/run", "packages/ci/run", true),
            ("cd ../.. && sh tools/run", "tools/run", true),
            ("node checks/*.js", "packages/web/checks/a.js", true),
            ("node checks/*.js", "packages/web/checks/deep/a.js", false),
            ("npm test", "packages/web/package.json", false),
        ];
        for (command, path, expected) in cases {
            let files = CommandFiles::of([(&command.to_owned(), Some(&web))]);
            assert_eq!(files.name(path), expected, "{command}: {path}");
        }
        // Both could be meant: `cd` is not followed.
        let files = CommandFiles::of([(&"sh check.sh".to_owned(), Some(&web))]);
        let base = ["check.sh", "packages/web/check.sh", "packages/other/check.sh"];
        assert!(
            files
                .among(base.into_iter())
                .into_iter()
                .eq(["check.sh", "packages/web/check.sh"])
        );
    }
}
