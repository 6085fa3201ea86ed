//! Files that git does not track in folders that become files. The tracked files of such a folder
//! are deleted, so these would be the only reason to keep it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::Seen;
use super::present::{IndexEntries, Present};
use super::tree::{Changed, makes_room};
use super::{Obstacle, ObstacleKind, shown};
use crate::error::{GitError, blocking};
use crate::user_repo::UserRepo;

/// The obstacles in folders that lose all their tracked files.
pub(super) async fn leftovers(
    repository: &UserRepo,
    index: &IndexEntries,
    changed: &Changed,
    here: &HashMap<PathBuf, Present>,
) -> Result<Vec<Obstacle>, GitError> {
    let becomes_a_file = |path: &&PathBuf| {
        let is_folder = here.get(*path).is_some_and(|it| it.seen == Seen::Folder);
        let stays = changed.get(*path).is_some_and(|change| change.after.is_some());
        is_folder && stays && makes_room(changed, path)
    };
    let folders: Vec<PathBuf> = changed.keys().filter(becomes_a_file).cloned().collect();
    let root = repository.root().to_owned();
    let found = blocking("looking into folders", move || {
        let mut found = Vec::new();
        for folder in folders {
            let mut inside = Vec::new();
            list(&root, &folder, &mut inside).map_err(GitError::io("list", &root.join(&folder)))?;
            found.extend(inside.into_iter().map(|path| (folder.clone(), path)));
        }
        Ok::<_, GitError>(found)
    })
    .await?;
    let unknown = found.into_iter().filter(|(_, path)| {
        let goes = changed.get(path).is_some_and(|change| change.after.is_none());
        !goes && index.get(path).is_none()
    });
    let obstacle = |(folder, path): (PathBuf, PathBuf)| Obstacle {
        path: shown(&path),
        reason: "it is in a folder that becomes a file",
        kind: ObstacleKind::Inside { folder: shown(&folder) },
    };
    Ok(unknown.map(obstacle).collect())
}

/// Everything below `folder` but the folders that hold something.
fn list(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let before = found.len();
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        }
        if found.len() == before {
            found.push(path);
        }
    }
    Ok(())
}
