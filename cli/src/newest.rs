//! The task that a command means when none is named: the newest of the working tree that the
//! command runs in, and never one of another repository.
//!
//! ```text
//!   mine, of this working tree -> mine, of this repository -> anybody's, of this repository -> refused
//! ```
//! A folder may contain another repository than before, so only a task with a known base counts.

use std::path::Path;

use anyhow::Context as _;
use kage_core::task::TaskOrigin;
use kage_git::UserRepo;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
use crate::here::Here;
use crate::output::note;
use crate::view;

/// How many tasks of each scope are checked for a known base.
const LOOKED_AT: u32 = 10;

/// The tasks among which the newest is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    MineOfThisTree,
    MineOfThisRepository,
    AnybodysOfThisRepository,
}

impl Scope {
    /// The nearest first.
    const ORDER: [Self; 3] = [
        Self::MineOfThisTree,
        Self::MineOfThisRepository,
        Self::AnybodysOfThisRepository,
    ];

    fn filter(self, origin: &TaskOrigin) -> v1::TaskFilter {
        let of_tree = self == Self::MineOfThisTree;
        v1::TaskFilter {
            origin_repository: origin.repository.to_string(),
            origin_worktree: if of_tree {
                origin.worktree.to_string()
            } else {
                String::new()
            },
            mine: match self {
                Self::MineOfThisTree | Self::MineOfThisRepository => true,
                Self::AnybodysOfThisRepository => false,
            },
            ..v1::TaskFilter::default()
        }
    }
}

/// The newest task of the present folder, or of the given one.
///
/// # Errors
/// When that is in no repository, or nothing was run in it.
pub async fn newest(access: &Access, place: &Path) -> anyhow::Result<v1::Task> {
    let repository = UserRepo::discover(place).await.map_err(|error| {
        let why = anyhow::Error::from(error);
        Refusal::usage(format!(
            "no task is named, and the newest is looked for in the repository where this is typed: {why:#}; name a \
             task by its id, which `kage ls` lists"
        ))
    })?;
    let here = Here::new(&repository, &access.machine);
    for scope in Scope::ORDER {
        let Some(task) = of(access, &here, scope).await? else {
            continue;
        };
        if scope == Scope::AnybodysOfThisRepository {
            let id = view::short_id(&task.id);
            note(&format!("task {id}, the newest of this repository, is somebody else's"));
        }
        return Ok(task);
    }
    let elsewhere = newest_of_all(access).await?.map_or_else(String::new, |task| {
        let of = view::repository(&task).unwrap_or("none");
        format!(" (the newest of all, {}, is of {of})", view::short_id(&task.id))
    });
    Err(Refusal::not_found(format!(
        "there is no task of this repository, {} in {}; start one with `kage run`, or name one of another by its id, \
         which `kage ls` lists{elsewhere}",
        here.name()?,
        repository.root().display()
    ))
    .into())
}

/// The newest task of any repository, for a message only.
async fn newest_of_all(access: &Access) -> Result<Option<v1::Task>, ApiError> {
    let request = v1::ListTasksRequest {
        project: access.project.to_string(),
        page_size: 1,
        ..Default::default()
    };
    let listed = access.client.tasks().list_tasks(request).await?;
    Ok(listed.into_inner().tasks.into_iter().next())
}

async fn of(access: &Access, here: &Here<'_>, scope: Scope) -> anyhow::Result<Option<v1::Task>> {
    let filter = scope.filter(here.origin());
    let request = v1::ListTasksRequest {
        project: access.project.to_string(),
        page_size: LOOKED_AT,
        filter: Some(filter.clone()),
        ..Default::default()
    };
    let listed = access
        .client
        .tasks()
        .list_tasks(request)
        .await
        .map_err(ApiError::from)?;
    for task in listed.into_inner().tasks {
        if fits(&filter, &task)
            && here
                .has_base_of(&task)
                .await
                .context("cannot look for the base of a task")?
        {
            return Ok(Some(task));
        }
    }
    Ok(None)
}

/// True if a task has the origin of the filter. A coordinator of an older version lists all tasks.
fn fits(filter: &v1::TaskFilter, task: &v1::Task) -> bool {
    task.origin.as_ref().is_some_and(|origin| {
        origin.repository == filter.origin_repository
            && (filter.origin_worktree.is_empty() || origin.worktree == filter.origin_worktree)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(root: &str) -> TaskOrigin {
        TaskOrigin::of("machine", Path::new("/home"), Path::new(root), None)
    }

    #[test]
    fn what_is_asked_for_goes_from_near_to_far_and_never_beyond_the_repository() {
        let here = origin("/home");
        let asked = Scope::ORDER.map(|scope| scope.filter(&here));
        let of = |filter: &v1::TaskFilter| (filter.mine, !filter.origin_worktree.is_empty());
        assert_eq!(asked.each_ref().map(of), [(true, true), (true, false), (false, false)]);
        assert!(
            asked
                .iter()
                .all(|filter| filter.origin_repository == here.repository.as_str())
        );
    }

    #[test]
    fn an_answer_to_another_question_is_not_taken() {
        let task = |origin: Option<TaskOrigin>| v1::Task {
            origin: origin.map(Into::into),
            ..v1::Task::default()
        };
        let here = origin("/home");
        let elsewhere = TaskOrigin::of("machine", Path::new("/other"), Path::new("/other"), None);
        for scope in Scope::ORDER {
            let filter = scope.filter(&here);
            assert!(fits(&filter, &task(Some(here.clone()))), "{scope:?}");
            assert!(!fits(&filter, &task(Some(elsewhere.clone()))), "{scope:?}");
            assert!(!fits(&filter, &task(None)), "{scope:?}");
            let linked = fits(&filter, &task(Some(origin("/linked"))));
            assert_eq!(linked, scope != Scope::MineOfThisTree, "{scope:?}");
        }
    }
}
