//! `kage merge`: a result as a merge commit on the current branch. It owns the plan, the
//! order of the writes and their undo; what the merge *is* comes from [`super::three_way`].

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;

use super::files::{Seen, Step, Target};
use super::index::{IndexLock, read_index, replace};
use super::three_way::{Outcome, compute};
use super::tree::{Change, Changed, Entry, Present, check_paths, makes_room, present, rendered, same};
use super::{LandedAs, LandingError, Obstacle, PlannedPath, Strategy, shown};
use crate::beneath::Beneath;
use crate::error::{GitError, blocking};
use crate::mirror::Mirror;
use crate::staging::split;
use crate::user_repo::{UserRepo, UserShadow};

const NO_OBJECT: &str = "0000000000000000000000000000000000000000";

/// What `merge` would do.
#[derive(Debug)]
pub struct MergePlan {
    repository: UserRepo,
    store: UserShadow,
    head: Oid,
    branch: Vec<u8>,
    result: Oid,
    message: String,
    index: Option<Vec<u8>>,
    paths: Vec<PlannedPath>,
    steps: Vec<Step>,
    /// Input of `update-index --index-info`.
    staged: Vec<u8>,
    new_index: Vec<u8>,
    /// Objects that the repository needs, with what they need.
    needed: Vec<String>,
    end: Merged,
}

/// How a merge ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// As a commit on the branch.
    Committed(Oid),
    /// With conflicts left for the person to resolve and commit.
    LeftConflicts,
    /// The branch has the result already.
    AlreadyThere,
}

impl MergePlan {
    /// Every path that changes on the branch, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// How it will end, if nothing changes until then.
    #[must_use]
    pub fn end(&self) -> &Merged {
        &self.end
    }

    /// Does it: objects, then files, then the index, then the branch. When a step fails,
    /// files and index are put back; objects that nothing names stay, which harms nothing.
    /// Nobody else can stage anything from before the first file until the end.
    ///
    /// # Errors
    /// When something changed since the plan, somebody else has the index, or the file
    /// system refuses.
    pub async fn execute(self) -> Result<Merged, LandingError> {
        if self.end == Merged::AlreadyThere {
            return Ok(self.end);
        }
        self.send_objects().await?;
        let index = IndexLock::take(self.repository.git_dir())?;
        let changed = |what: &str| LandingError::ChangedMeanwhile { path: what.to_owned() };
        if read_index(self.repository.git_dir())? != self.index {
            return Err(changed("the index"));
        }
        if self.repository.head().await?.as_ref() != Some(&self.head)
            || branch(&self.repository).await?.as_ref() != Some(&self.branch)
        {
            return Err(changed("HEAD"));
        }
        let (root, steps) = (self.repository.root().to_owned(), self.steps);
        let (beneath, undo) = blocking("writing files", move || {
            let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
            let undo = beneath.carry_out(&steps)?;
            Ok::<_, LandingError>((beneath, undo))
        })
        .await?;
        let finish = Finish {
            repository: &self.repository,
            head: &self.head,
            result: &self.result,
            message: &self.message,
            old_index: self.index.as_deref(),
            new_index: &self.new_index,
            end: &self.end,
        };
        let Err(error) = finish.run(&index).await else {
            return Ok(self.end);
        };
        blocking("undoing a merge", move || {
            beneath.undo(undo);
            Ok::<_, GitError>(())
        })
        .await?;
        Err(error.into())
    }

    async fn send_objects(&self) -> Result<(), GitError> {
        let pack = self.store.folder.path().join("pack");
        let output = fs::File::create(&pack).map_err(GitError::io("create", &pack))?;
        let wanted = format!("{}\n--not\n{}\n", self.needed.join("\n"), self.head);
        self.store
            .shadow
            .git("pack-objects")
            .args(["--revs", "--stdout", "--quiet"])
            .stdin(wanted)
            .stdout_file(output)
            .run()
            .await?;
        let input = fs::File::open(&pack).map_err(GitError::io("open", &pack))?;
        self.repository
            .git("index-pack")
            .args(["--stdin", "--strict"])
            .stdin_file(input)
            .run()
            .await
            .map(drop)
    }
}

/// Plans to merge `result` (a commit of `mirror`) into the current branch.
///
/// # Errors
/// When it conflicts and the strategy refuses that, or touched paths are dirty.
pub async fn plan_merge(
    repository: &UserRepo,
    mirror: &Mirror,
    result: &Oid,
    strategy: Strategy,
    message: &str,
) -> Result<MergePlan, LandingError> {
    refuse_in_progress(repository.git_dir())?;
    let branch = branch(repository).await?.ok_or(LandingError::NotOnABranch)?;
    let head = repository.head().await?.ok_or(LandingError::NotOnABranch)?;
    let index = read_index(repository.git_dir())?;
    let store = repository.shadow(&head, &[mirror.objects()]).await?;
    let outcome = blocking("merging two commits", {
        let (git_dir, head, result) = (store.shadow.git_dir().to_owned(), head.clone(), result.clone());
        move || compute(&git_dir, &head, &result, strategy)
    })
    .await?;
    let mut plan = MergePlan {
        repository: repository.clone(),
        store,
        head,
        branch,
        result: result.clone(),
        message: message.to_owned(),
        index,
        paths: Vec::new(),
        steps: Vec::new(),
        staged: Vec::new(),
        new_index: Vec::new(),
        needed: vec![result.to_string()],
        end: Merged::AlreadyThere,
    };
    let Some(outcome) = outcome else {
        return Ok(plan);
    };
    check_paths(repository, &plan.store, &outcome.changed).await?;
    let present = present(repository, &plan.store, outcome.changed.keys().cloned().collect()).await?;
    refuse_dirty(&plan, &outcome.changed, &present).await?;
    plan.end = match &outcome.tree {
        Some(tree) => {
            let commit = plan.commit(tree).await?;
            plan.needed = vec![commit.to_string()];
            Merged::Committed(commit)
        }
        None => Merged::LeftConflicts,
    };
    plan.prepare(outcome, &present).await?;
    Ok(plan)
}

impl MergePlan {
    async fn commit(&self, tree: &git2::Oid) -> Result<Oid, GitError> {
        let (name, email) = self.repository.identity();
        self.store
            .shadow
            .git("commit-tree")
            .args(["-p", self.head.as_str(), "-p", self.result.as_str()])
            .arg(tree.to_string())
            .env("GIT_AUTHOR_NAME", name)
            .env("GIT_AUTHOR_EMAIL", email)
            .env("GIT_COMMITTER_NAME", name)
            .env("GIT_COMMITTER_EMAIL", email)
            .stdin(self.message.as_str())
            .run_for_oid()
            .await
    }

    /// Works out every write, to files and to the index.
    async fn prepare(&mut self, outcome: Outcome, present: &HashMap<PathBuf, Present>) -> Result<(), GitError> {
        let differs = |change: &Change| change.before != change.after;
        let writes = outcome.changed.iter().filter(|(_, change)| differs(change));
        let wanted: Vec<(PathBuf, Entry)> = writes
            .filter_map(|(path, change)| Some((path.clone(), change.after?)))
            .collect();
        let mut files = rendered(&self.store, &wanted).await?;
        for (path, change) in outcome.changed {
            let conflict = outcome.conflicts.get(&path);
            let landed_as = match (conflict, change.before, change.after) {
                (Some(_), _, _) => LandedAs::Conflicted,
                (None, _, None) => LandedAs::Deleted,
                (None, None, Some(_)) => LandedAs::Created,
                (None, Some(_), Some(_)) => LandedAs::Updated,
            };
            self.paths.push(PlannedPath {
                path: shown(&path),
                landed_as,
            });
            match conflict {
                Some(stages) => {
                    self.stage(&path, 0, None);
                    for (stage, entry) in (1..).zip(stages) {
                        if entry.is_some() {
                            self.stage(&path, stage, *entry);
                        }
                    }
                }
                None => self.stage(&path, 0, change.after),
            }
            if change.before != change.after {
                let seen = present.get(&path).map_or(Seen::Absent, |it| it.seen.clone());
                let target = files.remove(&path).unwrap_or(Target::Absent);
                self.steps.push(Step { path, seen, target });
            }
        }
        self.new_index = self.changed_index().await?;
        Ok(())
    }

    /// The index with the changes. Made in the private git directory: git compares files
    /// when it writes an index, and in the person's own it would run filters for that.
    async fn changed_index(&mut self) -> Result<Vec<u8>, GitError> {
        let path = self.store.folder.path().join("new-index");
        if let Some(bytes) = &self.index {
            fs::write(&path, bytes).map_err(GitError::io("write", &path))?;
        }
        self.store
            .shadow
            .git("update-index")
            .args(["-z", "--index-info"])
            .env("GIT_INDEX_FILE", &path)
            // Half of a split one would stay behind in the private directory.
            .config("core.splitIndex", "false")
            .stdin(std::mem::take(&mut self.staged))
            .run()
            .await?;
        fs::read(&path).map_err(GitError::io("read", &path))
    }

    /// Adds a line of `--index-info`; `None` removes the path.
    fn stage(&mut self, path: &Path, stage: u8, entry: Option<Entry>) {
        let line = match entry {
            Some(entry) => {
                if self.end == Merged::LeftConflicts {
                    self.needed.push(entry.id.to_string());
                }
                format!("{:06o} {} {stage}\t", entry.mode, entry.id)
            }
            None => format!("0 {NO_OBJECT}\t"),
        };
        self.staged.extend_from_slice(line.as_bytes());
        self.staged.extend_from_slice(path.as_os_str().as_bytes());
        self.staged.push(0);
    }
}

/// What remains after the files are written.
struct Finish<'a> {
    repository: &'a UserRepo,
    head: &'a Oid,
    result: &'a Oid,
    message: &'a str,
    old_index: Option<&'a [u8]>,
    new_index: &'a [u8],
    end: &'a Merged,
}

impl Finish<'_> {
    async fn run(self, index: &IndexLock) -> Result<(), GitError> {
        index.replace(Some(self.new_index))?;
        let ended = self.end().await;
        if ended.is_err() {
            index.replace(self.old_index)?;
        }
        ended
    }

    async fn end(&self) -> Result<(), GitError> {
        let git_dir = self.repository.git_dir();
        match self.end {
            Merged::Committed(commit) => {
                let (name, email) = self.repository.identity();
                self.repository
                    .git("update-ref")
                    .args(["-m", "kage merge", "HEAD", commit.as_str(), self.head.as_str()])
                    .env("GIT_COMMITTER_NAME", name)
                    .env("GIT_COMMITTER_EMAIL", email)
                    .run()
                    .await
                    .map(drop)
            }
            Merged::LeftConflicts => {
                replace(git_dir, "MERGE_MSG", self.message.as_bytes())?;
                replace(git_dir, "MERGE_MODE", b"")?;
                replace(git_dir, "MERGE_HEAD", format!("{}\n", self.result).as_bytes())
            }
            Merged::AlreadyThere => Ok(()),
        }
    }
}

/// Refuses when a touched path is not what HEAD has, in the index or on the disk.
async fn refuse_dirty(
    plan: &MergePlan,
    changed: &Changed,
    present: &HashMap<PathBuf, Present>,
) -> Result<(), LandingError> {
    let listed = plan
        .store
        .shadow
        .git("diff-index")
        .args([
            "--cached",
            "--name-only",
            "-z",
            "--no-renames",
            "--end-of-options",
            plan.head.as_str(),
        ])
        .run()
        .await?;
    let staged: HashSet<&Path> = split(&listed).map(|path| Path::new(OsStr::from_bytes(path))).collect();
    let trusts_mode = plan.repository.trusts_mode();
    let mut paths = Vec::new();
    for (path, change) in changed {
        let here = present.get(path);
        let clean = here.is_some_and(|here| match &here.seen {
            Seen::Folder => change.before.is_none() && makes_room(changed, path),
            Seen::Beyond(by) => change.before.is_none() && changed.get(by).is_some_and(|it| it.after.is_none()),
            Seen::Absent | Seen::File { .. } | Seen::Link(_) | Seen::Special => {
                here.seen != Seen::Special && same(here.entry, change.before, trusts_mode)
            }
        });
        let reason = match (staged.contains(path.as_path()), clean, change.before) {
            (true, _, _) => "it has staged changes",
            (false, false, Some(_)) => "it has uncommitted changes",
            (false, false, None) => "something untracked is there",
            (false, true, _) => continue,
        };
        paths.push(Obstacle {
            path: shown(path),
            reason,
        });
    }
    if paths.is_empty() {
        Ok(())
    } else {
        Err(LandingError::Dirty { paths })
    }
}

fn refuse_in_progress(git_dir: &Path) -> Result<(), LandingError> {
    for (name, operation) in [
        ("MERGE_HEAD", "merge"),
        ("CHERRY_PICK_HEAD", "cherry-pick"),
        ("REVERT_HEAD", "revert"),
        ("rebase-merge", "rebase"),
        ("rebase-apply", "rebase"),
    ] {
        if git_dir.join(name).exists() {
            return Err(LandingError::InProgress { operation });
        }
    }
    Ok(())
}

/// The branch that HEAD is on.
async fn branch(repository: &UserRepo) -> Result<Option<Vec<u8>>, GitError> {
    repository
        .git("symbolic-ref")
        .args(["--quiet", "HEAD"])
        .run_or_no()
        .await
}
