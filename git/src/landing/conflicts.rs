//! Conflicts in words: where they are, and why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::merge_tree::{Conflict, ConflictKind};
use super::{Obstacle, ObstacleKind, shown};

/// Conflicts between commits, as a refusal lists them.
pub(super) fn obstacles(conflicts: &BTreeMap<PathBuf, Conflict>, base_in_history: bool) -> Vec<Obstacle> {
    let obstacle = |(path, conflict): (&PathBuf, &Conflict)| Obstacle {
        path: place(path, conflict),
        reason: describe(conflict, base_in_history),
        kind: ObstacleKind::Content,
    };
    conflicts.iter().map(obstacle).collect()
}

/// The path of a conflict for a person. When a folder takes a file's place, git appends the name of
/// a side to the file's name.
pub(super) fn place(path: &Path, conflict: &Conflict) -> String {
    let shown = shown(path);
    match shown.rsplit_once('~') {
        Some((whole, side)) if conflict.kind == ConflictKind::Folder && is_side(side) => whole.to_owned(),
        Some(_) | None => shown,
    }
}

/// With a number when the name is taken too.
fn is_side(name: &str) -> bool {
    let (side, number) = name.split_once('_').unwrap_or((name, ""));
    matches!(side, "HEAD" | "result") && number.chars().all(|c| c.is_ascii_digit())
}

/// Why git could not merge a path.
pub(super) fn describe(conflict: &Conflict, base_in_history: bool) -> &'static str {
    match (conflict.kind, conflict.stages) {
        (ConflictKind::Binary, [Some(_), Some(_), Some(_)]) => "you and the result changed it, and it is binary",
        (ConflictKind::Folder, _) => "it is a folder on one side and a file on the other",
        (ConflictKind::Kind, _) => "it is a file on one side and something else on the other",
        (ConflictKind::Rename, _) => "you and the result renamed it, or one of you renamed and the other deleted it",
        (ConflictKind::FolderRename, [None, None, None]) => {
            "one side renamed the folder, and where the other's new files belong now is not clear"
        }
        (ConflictKind::FolderRename, _) => "one side renamed the folder that it is in",
        (ConflictKind::Content | ConflictKind::Binary, stages) => match stages {
            [_, Some(_), None] => "the result deletes it and you changed it",
            [_, None, Some(_)] if !base_in_history => "it is not on your branch, and the result changed it",
            [_, None, Some(_)] => "you deleted it and the result changed it",
            [None, Some(_), Some(_)] => "you and the result added it with different content",
            [Some(_), Some(_), Some(_)] | [_, None, None] => "you and the result changed the same lines",
        },
    }
}
