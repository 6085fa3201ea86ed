//! The risk of landing a result, judged by the paths it changes, the sizes of its files, and what it
//! leaves out. Content is not read: verify and people do that. `core/data/risk.toml` lists the paths that matter.

use std::path::Path;
use std::sync::LazyLock;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::event::ResultCommit;
use crate::left_out::in_units;
use crate::mentions::Mentions;
use crate::pattern::Patterns;
use crate::protect;
use crate::task::TaskSpec;

/// The risk of a result, least first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// No objection.
    #[default]
    None,
    /// Worth a look: it deletes files, changes CI or lock files or protected paths, has large files or
    /// leaves some out, or changes files outside the paths that the prompt names.
    Low,
    /// It changes what verify depends on, so that verify proves less than it seems to.
    High,
}

/// The risk of a result, and the reasons.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// The worst of the flags.
    pub risk: Risk,
    /// A sentence each, the worst first.
    pub flags: Vec<String>,
}

/// Judges a result. `restored` are the paths that verify took from the base before it ran.
///
/// Tests, build scripts and the files that the setup or verify command names make it
/// [`Risk::High`], unless they were taken from the base: then they did not influence the verdict,
/// and are still flagged, because they land as the result has them.
///
/// A file that both a command and the prompt name is what the task is about: changing it was asked
/// for, so that alone is not high. A test or a build script stays high: "test.sh fails" names the
/// file that must not be changed to pass.
///
/// The list of paths in a result is bounded; when it is incomplete, the missing paths may be
/// anything, which is high as well.
#[must_use]
pub fn assess(result: &ResultCommit, spec: &TaskSpec, restored: &[String]) -> Assessment {
    let rules = &*RULES;
    let policy = &spec.policy.verify;
    // A task with a malformed pattern is refused; here it protects nothing.
    let protected = Patterns::new(&policy.protect).ok();
    let commands = protect::commands(policy);
    let mentions = Mentions::of(&spec.prompt);

    let large: Vec<String> = result
        .large
        .iter()
        .map(|file| format!("{} ({})", file.path, in_units(file.bytes)))
        .collect();
    let left_out: Vec<String> = result
        .left_out
        .iter()
        .map(|file| format!("{} ({})", file.path, file.reason.words()))
        .collect();

    let mut high = Findings::default();
    let mut low = Findings::default();
    for path in &result.paths {
        let is_protected = restored.contains(path)
            || protected
                .as_ref()
                .is_some_and(|patterns| patterns.matches(Path::new(path)));
        let group = rules.groups.iter().find(|group| group.globs.is_match(path));
        let decides = group.is_some_and(|group| group.decides_verify);
        match (commands.name(path), group) {
            _ if is_protected => low.add(RESTORED, path),
            (true, _) if !mentions.name(path) => high.add("changes what the setup or verify command names", path),
            (_, Some(group)) if decides => high.add(&group.says, path),
            (true, _) => low.add(
                "changes what both the prompt and the setup or verify command name",
                path,
            ),
            (false, Some(group)) => low.add(&group.says, path),
            (false, None) => {}
        }
    }
    for path in &result.deleted {
        low.add("deletes files", path);
    }
    for file in &large {
        low.add("has large files", file);
    }
    for file in &left_out {
        low.add("leaves out what the session's worktree had", file);
    }
    for path in mentions.outside(&result.paths) {
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

/// The flag for paths that verify took from the base.
const RESTORED: &str = "changes protected paths, which verify took from the base (what lands has the change)";

/// Paths by their flag, in the order in which the flags came up.
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

/// The most paths that one flag names.
const MAX_NAMED: usize = 3;

struct Rules {
    groups: Vec<Group>,
}

struct Group {
    says: String,
    decides_verify: bool,
    globs: GlobSet,
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
    }
});

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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    says: String,
    decides_verify: bool,
    globs: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{DiffStat, LargeFile};
    use crate::id::ProjectId;
    use crate::left_out::{LeftOut, LeftOutReason};
    use crate::task::{Policy, VerifyPolicy};

    fn spec(prompt: &str, setup: &str, verify: &str, protect: &[&str]) -> TaskSpec {
        TaskSpec {
            project: ProjectId::default(),
            prompt: prompt.to_owned(),
            prompt_blob: None,
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
            fresh_baseline: false,
            labels: Default::default(),
            environment: Default::default(),
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
            large: Vec::new(),
            left_out: Vec::new(),
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
            let found = assess(&result(&[path], &[]), &spec, &[]);
            assert_eq!(found.risk, risk, "{path}: {:?}", found.flags);
            assert_eq!(found.flags.is_empty(), risk == Risk::None, "{path}: {:?}", found.flags);
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
            let found = assess(&result(paths, &[]), &spec("do it", "true", "sh check.sh", protect), &[]);
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
            let found = assess(&result(paths, &[]), &spec(prompt, "true", "true", &[]), &[]);
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
        let found = assess(&result(&paths, &["old.rs"]), &spec("do it", "true", "true", &[]), &[]);
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
    fn large_files_and_those_that_are_left_out_are_worth_a_look() {
        let spec = spec("do it", "true", "true", &[]);
        let mut result = result(&["a.rs", "assets/core"], &[]);
        assert_eq!(assess(&result, &spec, &[]).risk, Risk::None);
        result.large = vec![LargeFile {
            path: "assets/core".to_owned(),
            bytes: 52_428_800,
        }];
        let found = assess(&result, &spec, &[]);
        assert_eq!(found.risk, Risk::Low);
        assert_eq!(found.flags, ["has large files: assets/core (52.4 MB)"]);
        result.large.clear();
        result.left_out = vec![LeftOut {
            path: "dump".to_owned(),
            reason: LeftOutReason::Large { size: 400_000_000 },
        }];
        let found = assess(&result, &spec, &[]);
        assert_eq!(found.risk, Risk::Low);
        let flag = "leaves out what the session's worktree had: dump (it has 400.0 MB)";
        assert_eq!(found.flags, [flag]);
    }

    #[test]
    fn what_is_not_listed_may_be_anything() {
        let mut many = result(&["src/a.rs"], &[]);
        many.diff.files = 1200;
        let found = assess(&many, &spec("do it", "true", "true", &[]), &[]);
        assert_eq!(found.risk, Risk::High);
        assert_eq!(found.flags, ["changes 1200 files, of which only 1 could be judged"]);
    }

    #[test]
    fn what_the_task_is_about_is_not_risky_because_a_command_names_it() {
        let taken = ["check.sh".to_owned(), "test.sh".to_owned()];
        let cases: [(&str, &str, &str, &[String], Risk); 14] = [
            // It was not in the base, or was left as the result has it.
            ("write it", "test -f KAGE.txt", "KAGE.txt", &[], Risk::High),
            ("write KAGE.txt", "test -f KAGE.txt", "KAGE.txt", &[], Risk::Low),
            (
                "write a/KAGE.txt",
                "grep -q ok a/KAGE.txt",
                "a/KAGE.txt",
                &[],
                Risk::Low,
            ),
            ("print 3", "sh add.sh | grep 3", "add.sh", &[], Risk::High),
            ("make add.sh print 3", "sh add.sh | grep 3", "add.sh", &[], Risk::Low),
            ("make `add` print 3", "./add | grep 3", "add", &[], Risk::Low),
            ("add what is missing", "./add | grep 3", "add", &[], Risk::High),
            ("make b/add.sh print 3", "sh add.sh | grep 3", "add.sh", &[], Risk::High),
            // A test that the prompt names is rarely the file to change.
            ("test.sh fails", "sh test.sh", "test.sh", &[], Risk::High),
            ("fix `make test`", "make test", "Makefile", &[], Risk::High),
            ("extend the Makefile", "make -f Makefile", "Makefile", &[], Risk::High),
            // Taken from the base, it did not influence the verdict.
            ("fix the sum", "sh test.sh", "test.sh", &taken, Risk::Low),
            ("fix the sum", "sh check.sh", "check.sh", &taken, Risk::Low),
            ("fix the sum", "sh other.sh", "other.sh", &taken, Risk::High),
        ];
        for (prompt, verify, path, restored, risk) in cases {
            for (setup, verify) in [("true", verify), (verify, "true")] {
                let found = assess(&result(&[path], &[]), &spec(prompt, setup, verify, &[]), restored);
                assert_eq!(found.risk, risk, "{prompt}: {verify}: {path}: {:?}", found.flags);
                assert!(!found.flags.is_empty());
            }
        }
    }
}
