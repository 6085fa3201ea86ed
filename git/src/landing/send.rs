//! Sends objects from a private git directory to the person's repository, as a pack that git checks.
//! Objects that no reference leads to are harmless there.

use std::fs;

use kage_core::id::Oid;

use crate::error::GitError;
use crate::user_repo::{UserRepo, UserShadow};

/// Sends `needed` objects with all that they need, except what the history of `known` has.
pub(super) async fn send_objects(
    store: &UserShadow,
    repository: &UserRepo,
    needed: &[String],
    known: &Oid,
) -> Result<(), GitError> {
    let pack = store.folder.path().join("pack");
    let output = fs::File::create(&pack).map_err(GitError::io("create", &pack))?;
    let wanted = format!("{}\n--not\n{known}\n", needed.join("\n"));
    store
        .shadow
        .git("pack-objects")
        .args(["--revs", "--stdout", "--quiet"])
        .stdin(wanted)
        .stdout_file(output)
        .run()
        .await?;
    let input = fs::File::open(&pack).map_err(GitError::io("open", &pack))?;
    repository
        .git("index-pack")
        .args(["--stdin", "--strict"])
        .stdin_file(input)
        .run()
        .await
        .map(drop)
}
