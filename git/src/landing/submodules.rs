//! Submodules that a landing moves. As in git's own merge, only the recorded commit changes: what is
//! checked out in the submodule's folder stays, and `git submodule update` brings it along. A folder
//! is made for a new one, and an empty one goes with the submodule that is no longer there.

use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use rustix::fs::{AtFlags, Mode};

use super::tree::{Change, Changed, Entry};
use crate::beneath::{Beneath, Parent};

/// What a landing may do to submodules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Submodules {
    /// Nothing: it writes files only.
    Stay,
    /// Record another commit for one, add one, or remove one.
    Move,
}

impl Submodules {
    /// False for the change of a submodule that does not land.
    pub(super) fn land(self, changed: &Changed, path: &Path, change: &Change) -> bool {
        let is_alone = change.sides().all(Entry::is_submodule);
        !change.is_of_submodule() || self == Self::Move && is_alone && !is_filled(changed, path)
    }
}

/// True if something is written into the folder at `path`.
fn is_filled(changed: &Changed, path: &Path) -> bool {
    let mut below = changed.range(path.to_owned()..).skip_while(|(other, _)| *other == path);
    below.any(|(other, change)| other.starts_with(path) && change.after.is_some())
}

/// A submodule whose recorded commit changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedSubmodule {
    /// Relative to the repository's top.
    pub path: PathBuf,
    /// The commit that is recorded from now on; `None` = there is no submodule any more.
    pub commit: Option<Oid>,
}

/// The submodules among changes from HEAD to the final files.
pub(super) fn moved(changed: &Changed) -> Vec<MovedSubmodule> {
    let moved = changed
        .iter()
        .filter(|(_, change)| change.is_of_submodule() && change.before != change.after);
    let moved = moved.map(|(path, change)| MovedSubmodule {
        path: path.clone(),
        commit: change.after.and_then(|entry| entry.id.to_string().parse().ok()),
    });
    moved.collect()
}

/// Makes and removes their folders. One that cannot be made shows in `git status`, and one that holds
/// something stays, so nothing else depends on it.
pub(super) fn place(beneath: &Beneath, moved: &[MovedSubmodule]) {
    for submodule in moved {
        if let Err(error) = place_one(beneath, submodule) {
            tracing::debug!(path = %submodule.path.display(), %error, "the folder of a submodule stays as it is");
        }
    }
}

fn place_one(beneath: &Beneath, submodule: &MovedSubmodule) -> std::io::Result<()> {
    let is_there = submodule.commit.is_some();
    let Parent::Open(parent, name) = beneath.parent(&submodule.path, is_there)? else {
        return Ok(());
    };
    if is_there {
        Ok(rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o777))?)
    } else {
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }
}
