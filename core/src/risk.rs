//! The risk of landing a result, judged by the paths it changes, the sizes of its files, and what it
//! leaves out. Content is not read: verify and people do that. `core/data/risk.toml` lists the paths that matter.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::ResultCommit;
use crate::left_out::in_units;
use crate::mentions::Mentions;
use crate::pattern::Patterns;
use crate::protect;
use crate::shadowed::Shadows;
use crate::suspicion::Suspicions;
use crate::task::TaskSpec;

mod rules;

use rules::{Kind, Weighs};

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
    /// It changes what verify depends on, so that verify proves less than it seems to, or what runs by
    /// itself where it lands; or the output of verify speaks against it.
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

impl Assessment {
    /// It, with what the output of verify says against the result.
    #[must_use]
    pub fn with(mut self, found: Suspicions) -> Self {
        if !found.strong.is_empty() {
            self.risk = Risk::High;
        } else if !found.weak.is_empty() {
            self.risk = self.risk.max(Risk::Low);
        }
        self.flags.splice(0..0, found.strong);
        self.flags.extend(found.weak);
        self
    }
}

/// True for tests, and for what decides how they run: a change is checked by them.
#[must_use]
pub fn is_of_tests(path: &str) -> bool {
    rules::kind(path).is_some_and(|kind| kind.tests)
}

/// Judges a result. `restored` are the paths that verify took from the base before it ran.
///
/// Tests, build scripts and the files that the setup or verify command names make it
/// [`Risk::High`], unless they were taken from the base: then they did not influence the verdict,
/// and are still flagged, because they land as the result has them.
///
/// A file that both a command and the prompt name is what the task is about: changing it was asked
/// for, so that alone is not high. Nor is what runs by itself where it lands, such as settings of an
/// editor, when the prompt names the file; otherwise it is, wherever verify took it from. A test or a build script stays high: "test.sh fails" names the
/// file that must not be changed to pass.
///
/// The list of paths in a result is bounded; when it is incomplete, the missing paths may be
/// anything, which is high as well.
#[must_use]
pub fn assess(result: &ResultCommit, spec: &TaskSpec, restored: &[String]) -> Assessment {
    let policy = &spec.policy.verify;
    // A task with a malformed pattern is refused; here it protects nothing.
    let protected = Patterns::new(&policy.protect).ok();
    let commands = protect::commands(policy);
    let shadows = Shadows::of(policy);
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
        let kind = rules::kind(path);
        let is_named = commands.name(path);
        let is_asked = mentions.name(path);
        match kind {
            // What verify takes from the base lands all the same.
            Some(kind) if kind.weighs == Weighs::Landing && !is_asked => high.add(&kind.says, path),
            _ if is_protected => low.add(RESTORED, path),
            _ if is_named && !is_asked => high.add("changes what the setup or verify command names", path),
            Some(kind) if counts_as_high(kind, is_asked) => high.add(&kind.says, path),
            // A file that is deleted hides nothing.
            _ if !is_asked && !result.deleted.contains(path) && shadows.hide(path) => high.add(SHADOWS, path),
            _ if is_named => low.add(
                "changes what both the prompt and the setup or verify command name",
                path,
            ),
            Some(kind) => low.add(&kind.says, path),
            None => {}
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

/// True when changing a path of this kind means that verify proves less.
fn counts_as_high(kind: &Kind, is_asked: bool) -> bool {
    kind.weighs == Weighs::Verify && !(kind.unless_asked && is_asked)
}

/// The flag for paths that a program or a module of the commands may be taken from instead.
const SHADOWS: &str = "puts something in the place of what the setup or verify command runs";

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

#[cfg(test)]
mod cheats;
#[cfg(test)]
mod tests;
