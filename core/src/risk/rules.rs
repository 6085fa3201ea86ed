//! The paths that matter more than others, by kind: `core/data/risk.toml`, compiled.

use std::sync::LazyLock;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;

/// What a change of such a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Weighs {
    /// Verify depends on it, so what verify says proves less.
    Verify,
    /// It runs or decides something on the machine of whoever lands it, whatever verify says.
    Landing,
    /// It is worth a look.
    Look,
}

/// Paths of one kind.
#[derive(Debug)]
pub(super) struct Kind {
    /// What a result does that changes one, in plain words.
    pub(super) says: String,
    pub(super) weighs: Weighs,
    /// It is low when the prompt names the file: a project may well have such a file of its own.
    pub(super) unless_asked: bool,
    /// They are what a change is checked by.
    pub(super) tests: bool,
    globs: GlobSet,
}

/// The kind of a path, if it is of one.
pub(super) fn kind(path: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.globs.is_match(path))
}

static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let file: RulesFile =
        toml::from_str(include_str!("../../data/risk.toml")).expect("the tests read the built-in risk rules");
    file.group.into_iter().map(Kind::from).collect()
});

impl From<GroupFile> for Kind {
    fn from(group: GroupFile) -> Self {
        let inside = group.folders.iter().map(|name| format!("**/{name}/**"));
        let itself = group.folders.iter().map(|name| format!("**/{name}"));
        let globs = group.globs.iter().cloned().chain(inside).chain(itself);
        Self {
            globs: set(globs.map(|glob| {
                let glob = GlobBuilder::new(&glob)
                    .literal_separator(true)
                    .empty_alternates(true)
                    .case_insensitive(group.any_case)
                    .build();
                glob.expect("the tests read the built-in globs")
            })),
            says: group.says,
            weighs: group.weighs,
            unless_asked: group.unless_asked,
            tests: group.tests,
        }
    }
}

fn set(globs: impl Iterator<Item = Glob>) -> GlobSet {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob);
    }
    builder.build().expect("the tests compile the built-in globs together")
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
    weighs: Weighs,
    #[serde(default)]
    any_case: bool,
    #[serde(default)]
    unless_asked: bool,
    #[serde(default)]
    tests: bool,
    #[serde(default)]
    folders: Vec<String>,
    #[serde(default)]
    globs: Vec<String>,
}
