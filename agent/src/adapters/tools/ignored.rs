//! What git ignores in a worktree, for the tools that go through folders: the `.gitignore` of each
//! folder and `.git/info/exclude`, with git's precedence: the deepest file first, and in a file the
//! last line. A folder that is ignored is not entered, so nothing in it can be taken back in.
//!
//! Two things are as in ripgrep and not as in git: a tracked file that a rule names counts as ignored,
//! and what a call names is shown although it is ignored, with everything below it. Files of rules are
//! never reached through a link, as git does not either.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::Refused;
use super::root::{Relative, Root, open_entry};

/// Larger files of rules are not read.
const MAX_RULES: u64 = 1 << 20;

/// A folder of the worktree, with the rules that hold in it.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// The folder's path from the top of the worktree.
    place: PathBuf,
    /// `None`: nothing is ignored here.
    rules: Option<Arc<Rules>>,
    /// It was named although it is ignored: no rules hold in it, its own neither.
    is_named: bool,
}

/// The rules of one file, and those that hold where it says nothing.
#[derive(Debug)]
struct Rules {
    own: Gitignore,
    above: Option<Arc<Rules>>,
}

impl Ground {
    /// Opens a folder that a call names.
    pub(super) fn open(root: &Root, path: &Relative) -> Result<(OwnedFd, Self), Refused> {
        let folder = root.folder(path)?;
        let place = root.place(&folder, path.as_path()).unwrap_or_default();
        let ground = Self::named(root, place);
        Ok((folder, ground))
    }

    /// The ground of the folder at this place, without links in it.
    fn named(root: &Root, place: PathBuf) -> Self {
        let excluded = root.git_exclude().map(File::from);
        let excluded = excluded.and_then(|file| rules(file, Path::new(""), None));
        let mut ground = Self {
            place: PathBuf::new(),
            rules: excluded,
            is_named: false,
        };
        let Ok(mut at) = root.top() else {
            return ground;
        };
        ground = ground.with_rules_of(&at);
        for name in &place {
            // What is in an ignored folder that was named is named as well.
            if ground.ignores(name, true) {
                return Self {
                    place,
                    rules: None,
                    is_named: true,
                };
            }
            let Ok(below) = open_entry(&at, name, true) else {
                break;
            };
            ground = ground.enter(name, &below);
            at = below;
        }
        Self {
            place,
            rules: ground.rules,
            is_named: false,
        }
    }

    /// True when git ignores this entry of the folder.
    pub(super) fn ignores(&self, name: &OsStr, is_folder: bool) -> bool {
        let mut rules = self.rules.as_deref();
        if rules.is_none() {
            return false;
        }
        let path = self.place.join(name);
        while let Some(layer) = rules {
            match layer.own.matched(&path, is_folder) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => rules = layer.above.as_deref(),
            }
        }
        false
    }

    /// The ground of an entry that is a folder.
    pub(super) fn enter(&self, name: &OsStr, folder: &OwnedFd) -> Self {
        let below = Self {
            place: self.place.join(name),
            rules: self.rules.clone(),
            is_named: self.is_named,
        };
        below.with_rules_of(folder)
    }

    fn with_rules_of(self, folder: &OwnedFd) -> Self {
        if self.is_named {
            return self;
        }
        let own = open_entry(folder, OsStr::new(".gitignore"), false).ok();
        let own = own.and_then(|file| rules(File::from(file), &self.place, self.rules.clone()));
        Self {
            rules: own.or(self.rules.clone()),
            ..self
        }
    }
}

/// The rules of a file that is about the folder at `place`. `None`: it has none.
fn rules(file: File, place: &Path, above: Option<Arc<Rules>>) -> Option<Arc<Rules>> {
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_RULES + 1).read_to_end(&mut text).ok()?;
    if text.len() as u64 > MAX_RULES {
        return None;
    }
    let text = String::from_utf8_lossy(&text);
    let mut builder = GitignoreBuilder::new(place);
    builder.allow_unclosed_class(false);
    for line in text.trim_start_matches('\u{feff}').lines() {
        // To git a pattern that cannot be read is one that fits nothing.
        if let Err(error) = builder.add_line(None, line) {
            tracing::debug!(%error, "a line of a .gitignore is no pattern");
        }
    }
    let own = builder.build().ok().filter(|own| !own.is_empty())?;
    Some(Arc::new(Rules { own, above }))
}
