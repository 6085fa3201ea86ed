//! How risky it is to land a result, judged by the paths it changes. Content is not read:
//! that is what verify, and a person, are for. The paths that matter are data
//! (`core/data/risk.toml`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::event::ResultCommit;
use crate::pattern::Patterns;
use crate::task::TaskSpec;

/// How risky a result is; ordered, the least first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Nothing to say.
    #[default]
    None,
    /// Something to look at: it deletes files, changes CI or lock files or protected paths,
    /// or leaves the paths that the prompt names.
    Low,
    /// It changes what verify depends on, so that verify proves less than it seems to.
    High,
}

/// How risky a result is, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// The worst of the flags.
    pub risk: Risk,
    /// A sentence each, the worst first.
    pub flags: Vec<String>,
}

/// Judges a result.
///
/// Tests, build scripts and the files that the setup or verify command names make it
/// [`Risk::High`], unless `protect` restores them from the base before verify runs: then
/// they decide nothing, and are still flagged. The list of paths in a result is bounded;
/// when it is not whole, what is missing may be anything, which is high as well.
#[must_use]
pub fn assess(result: &ResultCommit, spec: &TaskSpec) -> Assessment {
    let rules = &*RULES;
    let policy = &spec.policy.verify;
    // A task with a malformed pattern is refused; here it protects nothing.
    let protected = Patterns::new(&policy.protect).ok();
    let commands = CommandFiles::of([&policy.setup, &policy.verify].into_iter().flatten());

    let mut high = Findings::default();
    let mut low = Findings::default();
    for path in &result.paths {
        let is_protected = protected
            .as_ref()
            .is_some_and(|patterns| patterns.matches(Path::new(path)));
        let decides = |yes: bool| if yes && !is_protected { Risk::High } else { Risk::Low };
        let found = if commands.name(path) {
            Some(("changes what the setup or verify command names", decides(true)))
        } else {
            let group = rules.groups.iter().find(|group| group.globs.is_match(path));
            group.map(|group| (group.says.as_str(), decides(group.decides_verify)))
        };
        match found {
            Some((says, Risk::High)) => high.add(says, path),
            _ if is_protected => low.add("changes protected paths, which are restored before verify", path),
            Some((says, _)) => low.add(says, path),
            None => {}
        }
    }
    for path in &result.deleted {
        low.add("deletes files", path);
    }
    for path in outside(&spec.prompt, &result.paths, rules) {
        low.add("leaves the paths that the prompt names", path);
    }

    let mut flags = high.sentences();
    let listed = result.paths.len();
    let files = usize::try_from(result.diff.files).unwrap_or(usize::MAX);
    if files > listed {
        flags.push(format!("changes {files} files, of which only {listed} could be judged"));
    }
    let risk = match (flags.is_empty(), low.groups.is_empty()) {
        (false, _) => Risk::High,
        (true, false) => Risk::Low,
        (true, true) => Risk::None,
    };
    flags.extend(low.sentences());
    Assessment { risk, flags }
}

/// Paths by what is said of them, in the order in which it was first said.
#[derive(Default)]
struct Findings<'a> {
    groups: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Findings<'a> {
    fn add(&mut self, says: &'a str, path: &'a str) {
        match self.groups.iter_mut().find(|(other, _)| *other == says) {
            Some((_, paths)) => paths.push(path),
            None => self.groups.push((says, vec![path])),
        }
    }

    fn sentences(&self) -> Vec<String> {
        let sentence = |(says, paths): &(&str, Vec<&str>)| {
            let named = paths.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
            match paths.len().saturating_sub(MAX_NAMED) {
                0 => format!("{says}: {named}"),
                more => format!("{says}: {named} and {more} more"),
            }
        };
        self.groups.iter().map(sentence).collect()
    }
}

/// Paths that one flag names.
const MAX_NAMED: usize = 3;

/// The files that shell commands name.
struct CommandFiles {
    words: BTreeSet<String>,
    globs: GlobSet,
}

impl CommandFiles {
    fn of<'a>(commands: impl Iterator<Item = &'a String>) -> Self {
        let is_break = |c: char| c.is_whitespace() || "\"'`;|&()<>$={}".contains(c);
        let words: BTreeSet<String> = commands
            .flat_map(|command| command.split(is_break))
            .map(|word| word.trim_start_matches("./").to_owned())
            .filter(|word| !word.is_empty())
            .collect();
        let patterns = words.iter().filter(|word| word.contains(['*', '?', '[']));
        Self {
            globs: globs(patterns.map(String::as_str)),
            words,
        }
    }

    /// True when a command names this path: whole, or its last parts, because commands change
    /// folders. A bare word is taken as a path only when it is the whole path.
    fn name(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| &path[at + 1..]);
        self.words.contains(path)
            || self.globs.is_match(path)
            || ends
                .filter(|end| end.contains(['.', '/']))
                .any(|end| self.words.contains(end))
    }
}

/// Changed paths outside those that the prompt names; none when it names none.
fn outside<'a>(prompt: &str, paths: &'a [String], rules: &Rules) -> Vec<&'a str> {
    let named: BTreeSet<&str> = words(prompt)
        .into_iter()
        .filter(|word| {
            // "and/or" looks like a folder: a word without an extension is one only if a
            // changed path says so.
            rules.looks_like_file(word) || (word.contains('/') && paths.iter().any(|path| is_within(path, word)))
        })
        .collect();
    if named.is_empty() {
        return Vec::new();
    }
    let inside = |path: &&str| named.iter().any(|name| is_within(path, name));
    paths.iter().map(String::as_str).filter(|path| !inside(path)).collect()
}

/// The words of a prompt that have only the characters of usual paths, without what prose
/// and compilers put around them (`./src/lib.rs:10:5,` is `src/lib.rs`). Links are no paths.
fn words(prompt: &str) -> BTreeSet<&str> {
    let mut end = prompt.len().min(MAX_READ);
    while !prompt.is_char_boundary(end) {
        end -= 1;
    }
    prompt[..end]
        .split(|c: char| c.is_whitespace() || "\"'`,;()[]{}<>".contains(c))
        .filter(|word| !word.contains("://"))
        .filter_map(|word| word.split(':').next())
        .map(|word| word.trim_end_matches(['.', '!', '?', '/']).trim_start_matches("./"))
        .filter(|word| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            !word.is_empty() && word.chars().all(plain)
        })
        .collect()
}

/// Bytes of a prompt that are searched for paths. Longer ones carry pasted material.
const MAX_READ: usize = 64 << 10;

/// True when `path` is `name`, lies below it or ends with it, or when `name` is its
/// absolute form.
fn is_within(path: &str, name: &str) -> bool {
    let below = |rest: Option<&str>| rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let above = |rest: Option<&str>| rest.is_some_and(|rest| rest.ends_with('/'));
    below(path.strip_prefix(name)) || above(path.strip_suffix(name)) || above(name.strip_suffix(path))
}

struct Rules {
    groups: Vec<Group>,
    extensions: BTreeSet<String>,
    not_paths: BTreeSet<String>,
}

struct Group {
    says: String,
    decides_verify: bool,
    globs: GlobSet,
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
    let file: RulesFile =
        toml::from_str(include_str!("../data/risk.toml")).expect("the tests read the built-in risk rules");
    let groups = file.group.into_iter().map(|group| Group {
        globs: set(group.globs.iter().map(|glob| {
            let glob = GlobBuilder::new(glob).literal_separator(true).build();
            glob.expect("the tests read the built-in globs")
        })),
        says: group.says,
        decides_verify: group.decides_verify,
    });
    Rules {
        groups: groups.collect(),
        extensions: file.prompt.extensions,
        not_paths: file.prompt.not_paths,
    }
});

/// The set of the patterns that are globs; one that is not matches nothing.
fn globs<'a>(patterns: impl Iterator<Item = &'a str>) -> GlobSet {
    set(patterns.filter_map(|pattern| GlobBuilder::new(pattern).literal_separator(true).build().ok()))
}

fn set(globs: impl Iterator<Item = Glob>) -> GlobSet {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob);
    }
    // Each glob was compiled alone; only a set beyond the regex size limit fails.
    builder.build().unwrap_or_else(|_| GlobSet::empty())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    group: Vec<GroupFile>,
    prompt: PromptFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    says: String,
    decides_verify: bool,
    globs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptFile {
    extensions: BTreeSet<String>,
    not_paths: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DiffStat;
    use crate::id::ProjectId;
    use crate::task::{Policy, VerifyPolicy};

    fn spec(prompt: &str, setup: &str, verify: &str, protect: &[&str]) -> TaskSpec {
        TaskSpec {
            project: ProjectId::default(),
            prompt: prompt.to_owned(),
            repository: None,
            context_base: None,
            assignments: Vec::new(),
            policy: Policy {
                verify: VerifyPolicy {
                    setup: Some(setup.to_owned()),
                    verify: Some(verify.to_owned()),
                    protect: protect.iter().map(ToString::to_string).collect(),
                    ..VerifyPolicy::default()
                },
                ..Policy::default()
            },
        }
    }

    fn result(paths: &[&str], deleted: &[&str]) -> ResultCommit {
        ResultCommit {
            commit: "a".repeat(40).parse().unwrap(),
            tree: None,
            diff: DiffStat {
                files: u32::try_from(paths.len()).unwrap(),
                added: 1,
                removed: 0,
            },
            paths: paths.iter().map(ToString::to_string).collect(),
            deleted: deleted.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn paths_that_decide_verify_are_high_and_others_to_look_at_are_low() {
        let cases = [
            ("src/calc.py", Risk::None),
            ("src/latest.java", Risk::None),
            ("src/contest/protest.rs", Risk::None),
            ("docs/testing.md", Risk::None),
            ("tests/test_calc.py", Risk::High),
            ("a/b/tests/data.json", Risk::High),
            ("Tests/AppTests/a.swift", Risk::High),
            ("test_calc.py", Risk::High),
            ("pkg/calc_test.go", Risk::High),
            ("src/calc.test.ts", Risk::High),
            ("src/CalcTest.java", Risk::High),
            ("test.sh", Risk::High),
            ("conftest.py", Risk::High),
            ("jest.config.js", Risk::High),
            ("src/__snapshots__/a.snap", Risk::High),
            ("Makefile", Risk::High),
            ("core/build.rs", Risk::High),
            ("Cargo.toml", Risk::High),
            (".cargo/config.toml", Risk::High),
            ("web/package.json", Risk::High),
            ("Package.swift", Risk::High),
            ("apps/web/mix.exs", Risk::High),
            ("gradle/wrapper/gradle-wrapper.properties", Risk::High),
            ("deno.jsonc", Risk::High),
            ("src/configure.ts", Risk::None),
            ("src/dune.rs", Risk::None),
            ("scripts/ci-helper", Risk::High),
            (".github/workflows/ci.yml", Risk::Low),
            ("Cargo.lock", Risk::Low),
            ("web/package-lock.json", Risk::Low),
        ];
        let spec = spec("fix the sum", "true", "make check", &[]);
        for (path, risk) in cases {
            let found = assess(&result(&[path], &[]), &spec);
            assert_eq!(found.risk, risk, "{path}: {:?}", found.flags);
            assert_eq!(found.flags.is_empty(), risk == Risk::None, "{path}: {:?}", found.flags);
        }
    }

    #[test]
    fn files_that_the_commands_name_are_high() {
        let cases = [
            ("sh check.sh", "check.sh", Risk::High),
            ("cd sub && ./check.sh --all", "sub/check.sh", Risk::High),
            ("python3 tools/verify.py; true", "tools/verify.py", Risk::High),
            ("sh -c 'exec ./run-it'", "run-it", Risk::High),
            ("node checks/*.js", "checks/a.js", Risk::High),
            ("node checks/*.js", "checks/deep/a.js", Risk::None),
            ("sh check.sh", "sub/precheck.sh", Risk::None),
            // A bare word is a path only as a whole: "check" is not "src/check".
            ("make check", "src/check", Risk::None),
            ("cd src && make", "src/a.c", Risk::None),
        ];
        for (command, path, risk) in cases {
            for (setup, verify) in [(command, "true"), ("true", command)] {
                let found = assess(&result(&[path], &[]), &spec("do it", setup, verify, &[]));
                assert_eq!(found.risk, risk, "{command}: {path}: {:?}", found.flags);
            }
        }
    }

    #[test]
    fn protected_paths_are_flagged_and_cannot_cheat() {
        let cases: [(&[&str], &[&str], Risk); 8] = [
            (&["tests"], &["tests/a.py"], Risk::Low),
            (&["tests/**"], &["tests/a.py"], Risk::Low),
            (&["tests/**"], &["tests/a.py", "Makefile"], Risk::High),
            (&["*.sh"], &["check.sh"], Risk::Low),
            (&["src"], &["src/a.py"], Risk::Low),
            (&["tests/*.py"], &["tests/deep/a.py"], Risk::High),
            (&["/check.sh"], &["sub/check.sh"], Risk::High),
            (&["tests", "["], &["tests/a.py"], Risk::High),
        ];
        for (protect, paths, risk) in cases {
            let found = assess(&result(paths, &[]), &spec("do it", "true", "sh check.sh", protect));
            assert_eq!(found.risk, risk, "{protect:?} {paths:?}: {:?}", found.flags);
            assert!(!found.flags.is_empty());
        }
    }

    #[test]
    fn paths_that_the_prompt_names_are_where_changes_belong() {
        let cases: [(&str, &[&str], bool); 14] = [
            ("fix the sum", &["src/a.py"], false),
            ("fix src/a.py", &["src/a.py"], false),
            ("fix src/a.py", &["src/a.py", "src/b.py"], true),
            ("fix (`./src/a.py`).", &["src/a.py"], false),
            ("error at src/a.py:10:5, fix it", &["src/a.py"], false),
            ("error at src/a.py:10:5, fix it", &["src/b.py"], true),
            ("fix /home/me/project/src/a.py!", &["src/a.py"], false),
            ("fix a.py", &["src/a.py"], false),
            ("fix a.py", &["src/aa.py"], true),
            ("change src/parser and nothing else", &["src/parser/a.rs"], false),
            ("change src/parser/ only", &["src/parser/a.rs", "src/lexer.rs"], true),
            ("sum and/or product", &["src/a.rs"], false),
            ("see https://example.org/a.html", &["src/a.rs"], false),
            ("a Node.js program, e.g. v1.2", &["src/a.js"], false),
        ];
        for (prompt, paths, leaves) in cases {
            let found = assess(&result(paths, &[]), &spec(prompt, "true", "true", &[]));
            let expected = if leaves { Risk::Low } else { Risk::None };
            assert_eq!(found.risk, expected, "{prompt}: {paths:?}: {:?}", found.flags);
        }
    }

    #[test]
    fn flags_name_the_worst_first_and_a_few_paths() {
        let paths = [
            "Cargo.lock",
            "old.rs",
            "tests/a",
            "tests/b",
            "tests/c",
            "tests/d",
            "tests/e",
        ];
        let found = assess(&result(&paths, &["old.rs"]), &spec("do it", "true", "true", &[]));
        assert_eq!(
            found.flags,
            [
                "changes tests: tests/a, tests/b, tests/c and 2 more",
                "changes lock files: Cargo.lock",
                "deletes files: old.rs",
            ]
        );
    }

    #[test]
    fn what_is_not_listed_may_be_anything() {
        let mut many = result(&["src/a.rs"], &[]);
        many.diff.files = 1200;
        let found = assess(&many, &spec("do it", "true", "true", &[]));
        assert_eq!(found.risk, Risk::High);
        assert_eq!(found.flags, ["changes 1200 files, of which only 1 could be judged"]);
    }

    #[test]
    fn a_long_prompt_is_cut_between_characters() {
        let prompt = format!("x{}", "é".repeat(MAX_READ));
        let found = assess(&result(&["src/a.rs"], &[]), &spec(&prompt, "true", "true", &[]));
        assert_eq!(found.risk, Risk::None);
    }
}
