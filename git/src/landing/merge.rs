//! `kage merge`: lands a result as a commit on the current branch. It owns the plan, the order of
//! writes and their undo. [`super::three_way`] merges, [`super::commits`] decides on the commits.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::Oid as Id;
use kage_core::id::Oid;

use super::commits::{LandingMessage, Prepared, is_in_history};
use super::committing::{Proposal, refresh};
use super::dirty::{is_staged_already, refuse_dirty};
use super::files::{Seen, Step, Target};
use super::finish::Finish;
use super::hooks::Hooks;
use super::index::{IndexLock, read_index};
use super::large::LargeFiles;
use super::merge_tree::Landed;
use super::person::Person;
use super::present::{IndexEntries, Present, present};
use super::send::send_objects;
use super::submodules::{self, MovedSubmodule, Submodules};
use super::three_way::{Outcome, compute};
use super::tree::{Change, Entry, check_paths, rendered, same};
use super::{LandedAs, LandingError, Merged, PlannedPath, Strategy};
use crate::beneath::Beneath;
use crate::error::{GitError, blocking};
use crate::mirror::Mirror;
use crate::user_repo::{UserRepo, UserShadow};

const NO_OBJECT: &str = "0000000000000000000000000000000000000000";

#[derive(Debug)]
pub struct MergePlan {
    repository: UserRepo,
    store: UserShadow,
    head: Oid,
    branch: Vec<u8>,
    prepared: Prepared,
    index: Option<Vec<u8>>,
    paths: Vec<PlannedPath>,
    steps: Vec<Step>,
    /// Input of `update-index --index-info`.
    staged: Vec<u8>,
    /// Paths that stay in the index only: lines of `update-index --stdin`.
    not_on_disk: Vec<u8>,
    new_index: Vec<u8>,
    /// Objects that the repository needs, with their dependencies.
    needed: Vec<String>,
    end: MergeEnd,
    hooks: Option<Hooks>,
    large: LargeFiles,
    submodules: Vec<MovedSubmodule>,
}

/// How a plan ends, if nothing changes until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeEnd {
    /// A commit with this tree is made.
    Commit(Id),
    /// Conflicts are left for the person to resolve and commit.
    LeaveConflicts,
    /// The branch has the result already.
    AlreadyThere,
}

impl MergePlan {
    /// Every path that changes on the branch, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// The submodules that get another commit. What is checked out in their folders stays.
    #[must_use]
    pub fn submodules(&self) -> &[MovedSubmodule] {
        &self.submodules
    }

    /// How it will end, if nothing changes until then.
    #[must_use]
    pub const fn end(&self) -> MergeEnd {
        self.end
    }

    /// Lets the person's commit hooks take part, as they would in `git commit`.
    #[must_use]
    pub fn with_hooks(mut self, hooks: Hooks) -> Self {
        self.hooks = Some(hooks);
        self
    }

    /// Executes the plan: commits, objects, files, index, branch. When a step fails, files and index are
    /// restored; unreferenced objects stay, which is harmless. The index is locked from before the
    /// first file until the end, so nobody else can stage anything.
    ///
    /// With hooks the commit comes after the files, which the hooks look at. Files that the hooks are
    /// made of come last, so that no hook runs as the result has it.
    ///
    /// # Errors
    /// When something changed since the plan, another process holds the index, a hook fails, or the
    /// file system refuses.
    pub async fn execute(mut self) -> Result<Merged, LandingError> {
        let tree = match self.end {
            MergeEnd::AlreadyThere => return Ok(Merged::AlreadyThere),
            MergeEnd::Commit(tree) => Some(tree),
            MergeEnd::LeaveConflicts => None,
        };
        // Conflicts are committed by the person, with their hooks.
        let hooks = self.hooks.take().filter(|hooks| tree.is_some() && hooks.is_asked());
        let parts = match &hooks {
            Some(hooks) => {
                hooks
                    .unchanged_parts(&self.repository, &self.store, &self.paths)
                    .await?
            }
            None => Vec::new(),
        };
        self.large.store(&self.repository, &self.store).await?;
        let repository = self.repository.clone();
        let person = Person::of(&repository).await?;
        // The person's git may ask them something, so nothing is locked yet.
        let (mut end, merge_head) = match tree {
            Some(tree) if hooks.is_some() => {
                self.needed.push(tree.to_string());
                (Merged::AlreadyThere, None)
            }
            Some(tree) => {
                let commit = self.prepared.commit(&person, &self.store, &self.head, tree).await?;
                self.needed.push(commit.to_string());
                (Merged::Committed(commit), None)
            }
            None => {
                let change = self.prepared.commit_change(&person, &self.store).await?;
                self.needed.extend(change.as_ref().map(Oid::to_string));
                (Merged::LeftConflicts, change)
            }
        };
        send_objects(&self.store, &self.repository, &self.needed, &self.head).await?;
        let index = IndexLock::take(self.repository.git_dir())?;
        self.refuse_changed().await?;
        let is_late = |step: &Step| parts.iter().any(|part| step.path.starts_with(part));
        let (late, steps): (Vec<Step>, Vec<Step>) = std::mem::take(&mut self.steps).into_iter().partition(is_late);
        let root = self.repository.root().to_owned();
        let submodules = std::mem::take(&mut self.submodules);
        let (beneath, undo) = blocking("writing files", move || {
            let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
            let undo = beneath.carry_out(&steps)?;
            submodules::place(&beneath, &submodules);
            Ok::<_, LandingError>((beneath, undo))
        })
        .await?;
        let finished = async {
            if let Some(hooks) = &hooks {
                end = Merged::Committed(self.commit_with(hooks, &person).await?);
            } else if matches!(end, Merged::Committed(_)) {
                let at = self.store.folder.path().join("refreshed-index");
                refresh(&self.store, &at, &self.new_index).await?;
                self.new_index = fs::read(&at).map_err(GitError::io("read", &at))?;
            }
            let finish = Finish {
                repository: &self.repository,
                person: &person,
                head: &self.head,
                message: &self.prepared.message,
                merge_head: merge_head.as_ref(),
                old_index: self.index.as_deref(),
                new_index: &self.new_index,
                end: &end,
            };
            finish.run(&index).await?;
            Ok::<_, LandingError>(end)
        };
        let finished = finished.await;
        drop(index);
        match finished {
            Ok(end) => {
                if let Some(hooks) = &hooks {
                    hooks.tell_committed().await;
                }
                write_late(beneath, late).await?;
                Ok(end)
            }
            Err(error) => {
                blocking("undoing a merge", move || {
                    beneath.undo(undo);
                    Ok::<_, GitError>(())
                })
                .await?;
                Err(error)
            }
        }
    }

    /// Refuses when index or HEAD are not as they were for the plan.
    async fn refuse_changed(&self) -> Result<(), LandingError> {
        let changed = |what: &str| LandingError::ChangedMeanwhile { path: what.to_owned() };
        if read_index(self.repository.git_dir())? != self.index {
            return Err(changed("the index"));
        }
        if self.repository.head().await?.as_ref() != Some(&self.head)
            || self.repository.branch().await?.as_ref() != Some(&self.branch)
        {
            return Err(changed("HEAD"));
        }
        Ok(())
    }

    /// Makes the commit that the person's hooks agree to, and puts its index in place of the planned one.
    async fn commit_with(&mut self, hooks: &Hooks, person: &Person<'_>) -> Result<Oid, LandingError> {
        let proposal = Proposal {
            repository: &self.repository,
            store: &self.store,
            index: &self.new_index,
            message: &self.prepared.message,
            is_merge: self.prepared.is_merge(),
        };
        let agreed = proposal.ask(hooks).await?;
        self.prepared.message = agreed.message;
        self.new_index = agreed.index;
        let commit = self
            .prepared
            .commit(person, &self.store, &self.head, agreed.tree)
            .await?;
        send_objects(&self.store, &self.repository, &[commit.to_string()], &self.head).await?;
        Ok(commit)
    }
}

/// Writes the files that the hooks are made of. The commit is made by now, and has them; a file that
/// cannot be written shows as changed.
async fn write_late(beneath: Beneath, late: Vec<Step>) -> Result<(), LandingError> {
    blocking("writing files", move || {
        if let Err(error) = beneath.carry_out(&late) {
            tracing::warn!(
                ?error,
                "the commit is made, and some of its files are not in the working tree"
            );
        }
        Ok(())
    })
    .await
}

/// Plans to merge the change from `base` to `result` (a commit of `mirror`) into the current
/// branch.
///
/// # Errors
/// When it conflicts and the strategy refuses that, or touched paths are dirty.
pub async fn plan_merge(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
    strategy: Strategy,
    message: &LandingMessage,
) -> Result<MergePlan, LandingError> {
    refuse_in_progress(repository.git_dir())?;
    let branch = repository.branch().await?.ok_or(LandingError::NotOnABranch)?;
    plan_on(repository, branch, mirror, (base, result), strategy, message).await
}

/// How a merge would end if HEAD were on a branch, whether it is or not.
///
/// # Errors
/// As [`plan_merge`].
pub async fn probe_merge(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
    strategy: Strategy,
) -> Result<MergeEnd, LandingError> {
    let message = LandingMessage::default();
    let branch = Vec::new();
    let plan = plan_on(repository, branch, mirror, (base, result), strategy, &message).await?;
    Ok(plan.end)
}

async fn plan_on(
    repository: &UserRepo,
    branch: Vec<u8>,
    mirror: &Mirror,
    (base, result): (&Oid, &Oid),
    strategy: Strategy,
    message: &LandingMessage,
) -> Result<MergePlan, LandingError> {
    let head = repository.head().await?.ok_or(LandingError::NoCommits)?;
    let index = read_index(repository.git_dir())?;
    let store = repository.shadow(&head, &[mirror.objects()]).await?;
    let (result, large) = LargeFiles::of(repository, &store, base, result).await?;
    let landed = Landed {
        base_in_history: is_in_history(repository, base, &head).await?,
        base: base.clone(),
        result,
        head,
    };
    let outcome = compute(&store, &landed, strategy).await?;
    let mut plan = MergePlan {
        repository: repository.clone(),
        store,
        head: landed.head.clone(),
        branch,
        prepared: Prepared::default(),
        index,
        paths: Vec::new(),
        steps: Vec::new(),
        staged: Vec::new(),
        not_on_disk: Vec::new(),
        new_index: Vec::new(),
        needed: Vec::new(),
        end: MergeEnd::AlreadyThere,
        hooks: None,
        large,
        submodules: Vec::new(),
    };
    let Some(outcome) = outcome else {
        return Ok(plan);
    };
    check_paths(repository, &plan.store, &outcome.changed, Submodules::Move).await?;
    let indexed = IndexEntries::read(&plan.store).await?;
    let paths = outcome.changed.keys().cloned().collect();
    let present = present(repository, &plan.store, &indexed, paths).await?;
    refuse_dirty(repository, &plan.store, &plan.head, &outcome, &indexed, &present).await?;
    plan.prepare(&landed, outcome, (&indexed, &present), message).await?;
    Ok(plan)
}

impl MergePlan {
    /// Works out every commit, and every write to files and to the index.
    async fn prepare(
        &mut self,
        landed: &Landed,
        outcome: Outcome,
        (indexed, present): (&IndexEntries, &HashMap<PathBuf, Present>),
        message: &LandingMessage,
    ) -> Result<(), GitError> {
        let landed_as = |path: &PathBuf, change: &Change| match outcome.conflicts.get(path) {
            Some(_) => LandedAs::Conflicted,
            None => LandedAs::of(change.before.is_some(), change.after.is_some()),
        };
        let planned = outcome.changed.iter().map(|(path, change)| PlannedPath {
            path: path.clone(),
            landed_as: landed_as(path, change),
        });
        let places = outcome
            .conflicts
            .keys()
            .filter(|path| !outcome.changed.contains_key(*path));
        let places = places.map(|path| PlannedPath {
            path: path.clone(),
            landed_as: LandedAs::Conflicted,
        });
        self.paths = planned.chain(places).collect();
        self.paths.sort_by(|one, other| one.path.cmp(&other.path));
        let (repository, store) = (&self.repository, &self.store);
        self.prepared = Prepared::new(repository, store, landed, message, &self.paths).await?;
        self.submodules = submodules::moved(&outcome.changed);
        self.end = outcome.tree.map_or(MergeEnd::LeaveConflicts, MergeEnd::Commit);
        self.write_files(&outcome, indexed, present).await?;
        for (path, change) in &outcome.changed {
            if change.after.is_some() && stays_off_disk(&outcome, present, path) {
                self.not_on_disk.extend_from_slice(path.as_os_str().as_bytes());
                self.not_on_disk.push(0);
            }
            match outcome.conflicts.get(path) {
                Some(conflict) if conflict.has_stages() => {
                    self.stage(path, 0, None);
                    for (stage, entry) in (1..).zip(conflict.stages) {
                        if entry.is_some() {
                            self.stage(path, stage, entry);
                        }
                    }
                }
                Some(_) | None => self.stage(path, 0, change.after),
            }
        }
        self.new_index = self.changed_index().await?;
        Ok(())
    }

    /// Writes the files that do not have their final content yet.
    async fn write_files(
        &mut self,
        outcome: &Outcome,
        indexed: &IndexEntries,
        present: &HashMap<PathBuf, Present>,
    ) -> Result<(), GitError> {
        let trusts_mode = self.repository.trusts_mode();
        let writes = outcome.changed.iter().filter(|(path, change)| {
            let here = present.get(*path).and_then(|here| here.entry);
            change.before != change.after
                && !change.is_of_submodule()
                && !is_staged_already(indexed.get(path), change)
                && !same(here, change.after, trusts_mode)
                && !stays_off_disk(outcome, present, path)
        });
        let writes: Vec<(&PathBuf, Option<Entry>)> = writes.map(|(path, change)| (path, change.after)).collect();
        let wanted: Vec<(PathBuf, Entry)> = writes
            .iter()
            .filter_map(|(path, after)| Some(((*path).clone(), (*after)?)))
            .collect();
        let mut files = rendered(&self.store, &wanted).await?;
        self.large
            .fill(&self.repository, &self.store, &wanted, &mut files)
            .await?;
        for (path, _) in writes {
            self.steps.push(Step {
                seen: present.get(path).map_or(Seen::Absent, |it| it.seen.clone()),
                target: files.remove(path).unwrap_or(Target::Absent),
                path: path.clone(),
            });
        }
        Ok(())
    }

    /// The index with the changes. Made in the private git directory: git compares files
    /// when it writes an index, and in the person's own it would run filters for that.
    async fn changed_index(&mut self) -> Result<Vec<u8>, GitError> {
        let path = self.store.folder.path().join("new-index");
        if let Some(bytes) = &self.index {
            fs::write(&path, bytes).map_err(GitError::io("write", &path))?;
        }
        let update = |how: &'static str| {
            let command = self.store.shadow.git("update-index").args(["-z", how]);
            // A part of a split index would stay in the private directory.
            command.env("GIT_INDEX_FILE", &path).config("core.splitIndex", "false")
        };
        let staged = std::mem::take(&mut self.staged);
        update("--index-info").stdin(staged).run().await?;
        let not_on_disk = std::mem::take(&mut self.not_on_disk);
        if !not_on_disk.is_empty() {
            let update = update("--skip-worktree").args(["--stdin"]);
            update.stdin(not_on_disk).run().await?;
        }
        fs::read(&path).map_err(GitError::io("read", &path))
    }

    /// Adds a line of `--index-info`; `None` removes the path.
    fn stage(&mut self, path: &Path, stage: u8, entry: Option<Entry>) {
        let line = match entry {
            Some(entry) => {
                if self.end == MergeEnd::LeaveConflicts && !entry.is_submodule() {
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

/// Paths that the person does not have on the disk are merged in the index, as git does. Only a
/// conflict needs a file.
fn stays_off_disk(outcome: &Outcome, present: &HashMap<PathBuf, Present>, path: &Path) -> bool {
    let not_on_disk = present.get(path).is_some_and(|here| here.not_on_disk);
    not_on_disk
        && outcome
            .conflicts
            .get(path)
            .is_none_or(|conflict| !conflict.has_stages())
}

fn refuse_in_progress(git_dir: &Path) -> Result<(), LandingError> {
    for (name, operation) in [
        ("MERGE_HEAD", "merge"),
        ("rebase-apply/applying", "am"),
        ("CHERRY_PICK_HEAD", "cherry-pick"),
        ("REVERT_HEAD", "revert"),
        ("rebase-merge", "rebase"),
        ("rebase-apply", "rebase"),
        ("BISECT_LOG", "bisect"),
    ] {
        if git_dir.join(name).exists() {
            return Err(LandingError::InProgress { operation });
        }
    }
    Ok(())
}
