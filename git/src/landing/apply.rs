//! `kage apply`: a result's changes into the working tree, three-way, files only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use git2::{MergeFileInput, MergeFileOptions, Repository};
use kage_core::id::Oid;

use super::files::{Seen, Step, Target};
use super::tree::{Changed, Entry, Present, check_paths, difference, makes_room, present, rendered, same};
use super::{LandedAs, LandingError, Obstacle, PlannedPath, shown};
use crate::beneath::Beneath;
use crate::error::{GitError, blocking};
use crate::mirror::Mirror;
use crate::user_repo::UserRepo;

/// What `apply` would do.
#[derive(Debug)]
pub struct ApplyPlan {
    root: PathBuf,
    paths: Vec<PlannedPath>,
    steps: Vec<Step>,
}

impl ApplyPlan {
    /// Every path of the result, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// Does it: files only; index, HEAD and references stay as they are. All of it or, when
    /// it fails, nothing.
    ///
    /// # Errors
    /// When something changed since the plan, or the file system refuses.
    pub async fn execute(self) -> Result<(), LandingError> {
        blocking("writing files", move || {
            let beneath = Beneath::open(&self.root).map_err(GitError::io("open", &self.root))?;
            beneath.carry_out(&self.steps)?;
            Ok(())
        })
        .await
    }
}

/// Plans to bring what `result` (a commit of `mirror`) changes into the working tree.
///
/// # Errors
/// When it conflicts, with every conflict.
pub async fn plan_apply(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
) -> Result<ApplyPlan, LandingError> {
    let store = repository.shadow(base, &[mirror.objects()]).await?;
    let git_dir = store.shadow.git_dir().to_owned();
    let (from, to) = (base.clone(), result.clone());
    let changed = blocking("comparing two commits", {
        let git_dir = git_dir.clone();
        move || compare(&git_dir, &from, &to).map_err(GitError::library("compare two commits"))
    })
    .await?;
    check_paths(repository, &store, &changed).await?;
    let present = present(repository, &store, changed.keys().cloned().collect()).await?;
    let trusts_mode = repository.trusts_mode();
    let (decisions, present) = blocking("merging files", move || {
        let decisions = decide(&git_dir, &changed, &present, trusts_mode)?;
        Ok::<_, LandingError>((decisions, present))
    })
    .await?;
    let wanted: Vec<(PathBuf, Entry)> = decisions
        .iter()
        .filter_map(|decision| Some((decision.path.clone(), decision.write?)))
        .collect();
    let mut files = rendered(&store, &wanted).await?;
    let mut plan = ApplyPlan {
        root: repository.root().to_owned(),
        paths: Vec::new(),
        steps: Vec::new(),
    };
    for decision in decisions {
        plan.paths.push(PlannedPath {
            path: shown(&decision.path),
            landed_as: decision.landed_as,
        });
        if decision.landed_as == LandedAs::Unchanged {
            continue;
        }
        let target = files.remove(&decision.path).unwrap_or(Target::Absent);
        let seen = present.get(&decision.path).map_or(Seen::Absent, |it| it.seen.clone());
        plan.steps.push(Step {
            path: decision.path,
            seen,
            target,
        });
    }
    Ok(plan)
}

struct Decision {
    path: PathBuf,
    landed_as: LandedAs,
    /// What to write; `None` = nothing, or a deletion.
    write: Option<Entry>,
}

fn compare(git_dir: &Path, base: &Oid, result: &Oid) -> Result<Changed, git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let tree = |commit: &Oid| repository.find_commit(git2::Oid::from_str(commit.as_str())?)?.tree();
    difference(&repository, &tree(base)?, &tree(result)?)
}

fn decide(
    git_dir: &Path,
    changed: &Changed,
    present: &HashMap<PathBuf, Present>,
    trusts_mode: bool,
) -> Result<Vec<Decision>, LandingError> {
    let repository = Repository::open_bare(git_dir).map_err(GitError::library("open a git directory"))?;
    let mut decisions = Vec::new();
    let mut conflicts = Vec::new();
    for path in changed.keys() {
        let Some(here) = present.get(path) else {
            continue;
        };
        match decide_one(&repository, changed, path, here, trusts_mode) {
            Ok(Ok((landed_as, write))) => decisions.push(Decision {
                path: path.clone(),
                landed_as,
                write,
            }),
            Ok(Err(reason)) => conflicts.push(Obstacle {
                path: shown(path),
                reason,
            }),
            Err(error) => return Err(GitError::library("merge a file")(error).into()),
        }
    }
    if conflicts.is_empty() {
        Ok(decisions)
    } else {
        Err(LandingError::Conflicts { conflicts })
    }
}

type Choice = Result<(LandedAs, Option<Entry>), &'static str>;

fn decide_one(
    repository: &Repository,
    changed: &Changed,
    path: &Path,
    here: &Present,
    trusts_mode: bool,
) -> Result<Choice, git2::Error> {
    let Some(change) = changed.get(path) else {
        return Ok(Ok((LandedAs::Unchanged, None)));
    };
    let goes = |path: &Path| changed.get(path).is_some_and(|change| change.after.is_none());
    match &here.seen {
        Seen::Special => return Ok(Err("something that is not a file is there")),
        Seen::Folder if change.after.is_none() => return Ok(Err("a folder is there")),
        // A folder whose files all go makes room; else the write fails and all is undone.
        Seen::Folder if change.before.is_some() || !makes_room(changed, path) => {
            return Ok(Err("a folder is there"));
        }
        Seen::Beyond(by) if change.after.is_some() && !goes(by) => {
            return Ok(Err("something that is not a folder is above it"));
        }
        Seen::Folder | Seen::Beyond(_) | Seen::Absent | Seen::File { .. } | Seen::Link(_) => {}
    }
    if same(here.entry, change.after, trusts_mode) {
        return Ok(Ok((LandedAs::Unchanged, None)));
    }
    if same(here.entry, change.before, trusts_mode) {
        return Ok(Ok(match (change.before, change.after) {
            (_, None) => (LandedAs::Deleted, None),
            (None, Some(after)) => (LandedAs::Created, Some(after)),
            (Some(_), Some(after)) => (LandedAs::Updated, Some(after)),
        }));
    }
    let (Some(before), Some(after), Some(mine)) = (change.before, change.after, here.entry) else {
        return Ok(Err(match (change.before, change.after, here.entry) {
            (None, _, _) => "you and the result added it with different content",
            (_, None, _) => "the result deletes it and you changed it",
            (_, _, _) => "you deleted it and the result changed it",
        }));
    };
    if ![before, after, mine].into_iter().all(Entry::is_file) {
        return Ok(Err("you and the result changed it, and it is not a file on both sides"));
    }
    merge_text(repository, before, after, mine)
}

fn merge_text(repository: &Repository, before: Entry, after: Entry, mine: Entry) -> Result<Choice, git2::Error> {
    let blob = |entry: Entry| repository.find_blob(entry.id);
    let (base, theirs, ours) = (blob(before)?, blob(after)?, blob(mine)?);
    if [&base, &theirs, &ours].into_iter().any(|blob| blob.is_binary()) {
        return Ok(Err("you and the result changed it, and it is binary"));
    }
    let (mut ancestor, mut our, mut their) = (MergeFileInput::new(), MergeFileInput::new(), MergeFileInput::new());
    ancestor.content(base.content());
    our.content(ours.content());
    their.content(theirs.content());
    let merged = git2::merge_file(&ancestor, &our, &their, Some(&mut MergeFileOptions::new()))?;
    if !merged.is_automergeable() {
        return Ok(Err("you and the result changed the same lines"));
    }
    // The side that changed the bit wins; when both did, they agree.
    let executable = if mine.is_executable() == before.is_executable() {
        after.is_executable()
    } else {
        mine.is_executable()
    };
    let entry = Entry::file(repository.blob(merged.content())?, executable);
    Ok(Ok((LandedAs::Merged, Some(entry))))
}
