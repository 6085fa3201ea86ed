//! How risky it is to land a result, judged by the paths it changes. Content is not read:
//! that is what verify, and a person, are for. The paths that matter are data
//! (`core/data/risk.toml`).

use std::collections::BTreeSet;
use std::sync::LazyLock;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::event::ResultCommit;
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
    let protected = globs(policy.protect.iter().map(String::as_str));
    let commands = CommandFiles::of([&policy.setup, &policy.verify].into_iter().flatten());

    let mut high = Findings::default();
    let mut low = Findings::default();
    for path in &result.paths {
        let is_protected = protected.is_match(path);
        let decides = |yes: bool| if yes && !is_protected { Risk::High } else { Risk::Low };
        let found = if commands.name(path) {
            Some(("changes what the verify command names", decides(true)))
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
    let named: Vec<&str> = prompt
        .split(|c: char| c.is_whitespace() || "\"'`,;()[]{}<>".contains(c))
        .map(|word| word.trim_end_matches([':', '.', '!', '?']))
        .map(|word| word.trim_start_matches("./").trim_end_matches('/'))
        .filter(|word| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            !word.is_empty() && word.chars().all(plain)
        })
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

/// True when `path` is `name`, lies below it, or ends with it.
fn is_within(path: &str, name: &str) -> bool {
    let below = |rest: Option<&str>| rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let above = |rest: Option<&str>| rest.is_some_and(|rest| rest.ends_with('/'));
    below(path.strip_prefix(name)) || above(path.strip_suffix(name))
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
            let glob = GlobBuilder::new(glob)
                .literal_separator(true)
                .case_insensitive(true)
                .build();
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
