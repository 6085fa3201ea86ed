//! Conflicts that the result's side wins, with one limit: if the history of HEAD does not contain
//! the base (it was uncommitted work, or was amended), the result's side may have content of the
//! base that no commit has. Such content is not brought in.

use std::collections::HashSet;
use std::path::PathBuf;

use git2::{Blob, FileFavor, MergeFileInput, MergeFileOptions, Repository};

use super::conflicts::place;
use super::merge_tree::{Conflict, ConflictKind, Landed, TreeMerge};
use super::tree::{Entry, replaced};
use super::{LandingError, Obstacle, ObstacleKind};
use crate::error::{GitError, blocking};
use crate::large::Pointer;
use crate::user_repo::UserShadow;

/// The tree in which the result's side wins every conflict.
pub(super) async fn resolve(store: &UserShadow, landed: &Landed, merge: &TreeMerge) -> Result<git2::Oid, LandingError> {
    let mut unknown = HashSet::new();
    for (path, conflict) in &merge.conflicts {
        let [base, _, theirs] = conflict.stages;
        if landed.base_in_history || theirs.is_none() {
            continue;
        }
        let is_known = match (base, conflict.kind) {
            // The former path has another name, or two.
            (_, ConflictKind::Rename) => false,
            (Some(base), _) => is_in_history(store, landed, path, base).await?,
            // The session's alone.
            (None, _) => true,
        };
        if !is_known {
            unknown.insert(path.clone());
        }
    }
    let git_dir = store.shadow.git_dir().to_owned();
    let (tree, conflicts) = (merge.tree, merge.conflicts.clone());
    blocking("taking one side of conflicts", move || {
        let failed = |error| LandingError::from(GitError::library("take one side of conflicts")(error));
        let repository = Repository::open_bare(&git_dir).map_err(failed)?;
        let (mut decided, mut refused) = (Vec::new(), Vec::new());
        // For conflicts without stages, the merged tree has the result's files where the result has
        // them.
        for (path, conflict) in conflicts.iter().filter(|(_, conflict)| conflict.has_stages()) {
            match decide(&repository, conflict, unknown.contains(path)).map_err(failed)? {
                Ok(entry) => decided.push((path.as_path(), entry)),
                Err(reason) => refused.push(Obstacle {
                    path: place(path, conflict),
                    reason,
                    kind: ObstacleKind::Content,
                }),
            }
        }
        if !refused.is_empty() {
            return Err(LandingError::Conflicts { conflicts: refused });
        }
        replaced(&repository, tree, decided).map_err(failed)
    })
    .await
}

/// Whether a commit of HEAD's history has this content at this path.
async fn is_in_history(store: &UserShadow, landed: &Landed, path: &PathBuf, base: Entry) -> Result<bool, GitError> {
    let found = store
        .shadow
        .git("log")
        .args(["-1", "--format=%H", "--no-ext-diff", "--no-textconv"])
        .arg(format!("--find-object={}", base.id))
        .args(["--end-of-options", landed.head.as_str(), "--"])
        .arg(path)
        .env("GIT_LITERAL_PATHSPECS", "1")
        .run()
        .await?;
    Ok(!found.is_empty())
}

type Decided = Result<Option<Entry>, &'static str>;

fn decide(repository: &Repository, conflict: &Conflict, base_is_unknown: bool) -> Result<Decided, git2::Error> {
    let [base, ours, theirs] = conflict.stages;
    if conflict.kind == ConflictKind::Folder && theirs.is_some() {
        return Ok(Err("your branch has a folder where the result has a file"));
    }
    let Some(theirs) = theirs else {
        return Ok(Ok(None));
    };
    let Some(taken) = taken(repository, base, ours, theirs)? else {
        return Ok(if base_is_unknown {
            Err(UNKNOWN)
        } else {
            Ok(Some(theirs))
        });
    };
    if let (Some(base), Some(ours), true) = (base, ours, base_is_unknown)
        && holds_lines_of(repository, taken, base, ours)?
    {
        return Ok(Err(UNKNOWN));
    }
    Ok(Ok(Some(taken)))
}

const UNKNOWN: &str = "the result's side of it holds what the task began with and no commit of yours has";

/// Both sides' changes, with the result's version of conflicting lines; `None` when only a whole
/// side can be taken.
fn taken(
    repository: &Repository,
    base: Option<Entry>,
    ours: Option<Entry>,
    theirs: Entry,
) -> Result<Option<Entry>, git2::Error> {
    let (Some(base), Some(ours)) = (base, ours) else {
        return Ok(None);
    };
    let Some([base_text, our_text, their_text]) = texts(repository, [base, ours, theirs])? else {
        return Ok(None);
    };
    let [mut ancestor, mut mine, mut other] = [(); 3].map(|()| MergeFileInput::new());
    ancestor.content(base_text.content());
    mine.content(our_text.content());
    other.content(their_text.content());
    let mut options = MergeFileOptions::new();
    options.favor(FileFavor::Theirs);
    let merged = git2::merge_file(&ancestor, &mine, &other, Some(&mut options))?;
    let executable = if theirs.is_executable() == base.is_executable() {
        ours.is_executable()
    } else {
        theirs.is_executable()
    };
    Ok(Some(Entry::file(repository.blob(merged.content())?, executable)))
}

/// Whether a text has lines that the base has and HEAD does not.
fn holds_lines_of(repository: &Repository, taken: Entry, base: Entry, ours: Entry) -> Result<bool, git2::Error> {
    let Some([taken, base, ours]) = texts(repository, [taken, base, ours])? else {
        return Ok(true);
    };
    let lines = |blob: &Blob<'_>| -> HashSet<Vec<u8>> {
        let lines = blob.content().split(|byte| *byte == b'\n');
        lines.map(|line| line.trim_ascii().to_vec()).collect()
    };
    let (taken, base, ours) = (lines(&taken), lines(&base), lines(&ours));
    Ok(base.difference(&ours).any(|line| taken.contains(line)))
}

/// The blobs of three text files.
fn texts(repository: &Repository, entries: [Entry; 3]) -> Result<Option<[Blob<'_>; 3]>, git2::Error> {
    if !entries.into_iter().all(Entry::is_file) {
        return Ok(None);
    }
    let [one, two, three] = entries.map(|entry| repository.find_blob(entry.id));
    let blobs = [one?, two?, three?];
    // A pointer has the size of its content, and not a line of another.
    let is_whole = |blob: &Blob<'_>| blob.is_binary() || Pointer::read(blob.content()).is_some();
    Ok((!blobs.iter().any(is_whole)).then_some(blobs))
}
