//! `kage merge --into`: lands a result as a commit on a branch that is checked out nowhere. No file, no
//! index and no HEAD is written: the commit, its objects, and then the branch, if it still points to
//! where it did.

use kage_core::id::Oid;

use super::branches::{self, Branch};
use super::commits::{LandingMessage, Prepared, is_in_history};
use super::large::LargeFiles;
use super::merge::MergeEnd;
use super::merge_tree::Landed;
use super::person::Person;
use super::send::send_objects;
use super::submodules::Submodules;
use super::three_way::compute;
use super::tree::check_names;
use super::{LandedAs, LandingError, Merged, PlannedPath, Strategy};
use crate::error::GitError;
use crate::mirror::Mirror;
use crate::user_repo::{UserRepo, UserShadow};

/// No commit: the branch must not exist.
const NOTHING: &str = "0000000000000000000000000000000000000000";

/// The branch to put a commit on.
#[derive(Debug, Clone)]
pub struct Onto {
    pub branch: Branch,
    /// Where a branch that does not exist begins; `None` = it must exist.
    pub start: Option<Oid>,
}

#[derive(Debug)]
pub struct IntoPlan {
    repository: UserRepo,
    store: UserShadow,
    branch: Branch,
    /// The commit of the branch; `None` = it will be made.
    tip: Option<Oid>,
    head: Oid,
    prepared: Prepared,
    paths: Vec<PlannedPath>,
    end: MergeEnd,
    large: LargeFiles,
}

impl IntoPlan {
    /// Every path that changes on the branch, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PlannedPath] {
        &self.paths
    }

    /// How it will end, if nothing changes until then.
    #[must_use]
    pub const fn end(&self) -> MergeEnd {
        self.end
    }

    /// The branch itself, if the name is another name of one.
    #[must_use]
    pub const fn branch(&self) -> &Branch {
        &self.branch
    }

    /// The commit of the branch; `None` = the branch will be made.
    #[must_use]
    pub const fn tip(&self) -> Option<&Oid> {
        self.tip.as_ref()
    }

    /// Executes the plan: the commit, its objects, the branch.
    ///
    /// # Errors
    /// When the branch changed since the plan or was checked out, or the person's git makes no commit.
    pub async fn execute(self) -> Result<Merged, LandingError> {
        let tree = match self.end {
            MergeEnd::Commit(tree) => tree,
            MergeEnd::AlreadyThere | MergeEnd::LeaveConflicts => return Ok(Merged::AlreadyThere),
        };
        self.large.store(&self.repository, &self.store).await?;
        let person = Person::of(&self.repository).await?;
        let commit = self.prepared.commit(&person, &self.store, &self.head, tree).await?;
        send_objects(&self.store, &self.repository, &[commit.to_string()], &self.head).await?;
        refuse_held(&self.repository, &self.branch).await?;
        let reference = self.branch.reference();
        let before = self.tip.as_ref().map_or(NOTHING, Oid::as_str);
        let update = self.repository.git("update-ref");
        let update = update.args(["-m", "kage merge", &reference, commit.as_str(), before]);
        match person.logs(update).run().await {
            Ok(_) => Ok(Merged::Committed(commit)),
            Err(error) if self.branch.tip(&self.repository).await? != self.tip => {
                tracing::debug!(%error, "the branch was moved");
                Err(LandingError::ChangedMeanwhile { path: reference })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Plans to merge the change from `base` to `result` (a commit of `mirror`) into a branch that is checked
/// out nowhere. There is nowhere to leave conflicts, so they are refused unless the strategy decides.
///
/// # Errors
/// When it conflicts, there is no such branch, or files belong to it.
pub async fn plan_merge_into(
    repository: &UserRepo,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
    strategy: Strategy,
    message: &LandingMessage,
    onto: &Onto,
) -> Result<IntoPlan, LandingError> {
    let branch = onto.branch.resolved(repository).await?;
    let tip = branch.tip(repository).await?;
    let Some(head) = tip.clone().or_else(|| onto.start.clone()) else {
        return Err(LandingError::NoBranch {
            branch: branch.as_str().to_owned(),
            others: branches::names(repository).await?,
        });
    };
    let store = repository.shadow(&head, &[mirror.objects()]).await?;
    let (result, large) = LargeFiles::of(repository, &store, base, result).await?;
    let landed = Landed {
        base_in_history: is_in_history(repository, base, &head).await?,
        base: base.clone(),
        result,
        head,
    };
    let strategy = match strategy {
        Strategy::Theirs => Strategy::Theirs,
        Strategy::Auto | Strategy::Manual => Strategy::Auto,
    };
    let outcome = compute(&store, &landed, strategy).await;
    if !matches!(outcome, Ok(None)) {
        // Before conflicts, which would be resolved in another working tree of the branch.
        refuse_held(repository, &branch).await?;
    }
    let outcome = outcome?;
    let mut plan = IntoPlan {
        repository: repository.clone(),
        store,
        branch,
        tip,
        head: landed.head.clone(),
        prepared: Prepared::default(),
        paths: Vec::new(),
        end: MergeEnd::AlreadyThere,
        large,
    };
    let Some((outcome, tree)) = outcome.and_then(|outcome| outcome.tree.map(|tree| (outcome, tree))) else {
        return Ok(plan);
    };
    let obstacles = check_names(&outcome.changed, Submodules::Move)?;
    if !obstacles.is_empty() {
        return Err(LandingError::Unsupported { paths: obstacles });
    }
    let planned = outcome.changed.iter().map(|(path, change)| PlannedPath {
        path: path.clone(),
        landed_as: LandedAs::of(change.before.is_some(), change.after.is_some()),
    });
    plan.paths = planned.collect();
    plan.prepared = match plan.tip {
        Some(_) => Prepared::new(repository, &plan.store, &landed, message, &plan.paths).await?,
        None => Prepared::single(message, &plan.paths),
    };
    plan.end = MergeEnd::Commit(tree);
    Ok(plan)
}

async fn refuse_held(repository: &UserRepo, branch: &Branch) -> Result<(), LandingError> {
    let held = branch
        .held(repository)
        .await
        .map_err(|error: GitError| LandingError::Git(error))?;
    match held {
        Some(held) => Err(LandingError::Held {
            branch: branch.as_str().to_owned(),
            held,
        }),
        None => Ok(()),
    }
}
