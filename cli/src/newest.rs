//! The task that a command means when none is named: the newest of the working tree that the
//! command runs in, and never one of another repository.
//!
//! ```text
//!   mine:      of this working tree -> of this clone -> of this repository
//!   anybody's:                         of this clone -> of this repository -> refused
//! ```
//! A folder may contain another repository than before, and another clone may have commits that
//! this one does not have, so only a task with a known base counts.

use std::path::Path;

use anyhow::Context as _;
use kage_core::id::RepositoryName;
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
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    mine: bool,
    place: Place,
}

/// Where its tasks were run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Tree,
    /// All working trees of the clone.
    Clone,
    /// All clones whose objects are kept under this name.
    Repository(RepositoryName),
}

impl Scope {
    /// What is asked for before the repository's name is known, the nearest first.
    const NEAR: [Self; 2] = [Self::mine(Place::Tree), Self::mine(Place::Clone)];

    /// The rest, the nearest first. Without a name there are no other clones.
    fn far(name: Option<RepositoryName>) -> Vec<Self> {
        let repository = name.map(Place::Repository);
        let mine = repository.clone().map(Self::mine);
        let anybodys = [Some(Place::Clone), repository];
        let anybodys = anybodys.into_iter().flatten();
        mine.into_iter()
            .chain(anybodys.map(|place| Self { mine: false, place }))
            .collect()
    }

    const fn mine(place: Place) -> Self {
        Self { mine: true, place }
    }

    fn filter(&self, origin: &TaskOrigin) -> v1::TaskFilter {
        let mut filter = v1::TaskFilter {
            mine: self.mine,
            ..v1::TaskFilter::default()
        };
        match &self.place {
            Place::Tree => {
                filter.origin_repository = origin.repository.to_string();
                filter.origin_worktree = origin.worktree.to_string();
            }
            Place::Clone => filter.origin_repository = origin.repository.to_string(),
            Place::Repository(name) => filter.repository = name.to_string(),
        }
        filter
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
    for scope in Scope::NEAR {
        if let Some(task) = of(access, &here, &scope).await? {
            return Ok(task);
        }
    }
    for scope in Scope::far(here.name(access).await?) {
        if let Some(task) = of(access, &here, &scope).await? {
            tell_far(&here, &scope, &task);
            return Ok(task);
        }
    }
    let elsewhere = newest_of_all(access).await?.map_or_else(String::new, |task| {
        let of = view::repository(&task).unwrap_or("none");
        format!(" (the newest of all, {}, is of {of})", view::short_id(&task.id))
    });
    Err(Refusal::not_found(format!(
        "there is no task of this repository, {} in {}; start one with `kage run`, or name one of another by its id, \
         which `kage ls` lists{elsewhere}",
        here.shown(access).await?,
        repository.root().display()
    ))
    .into())
}

/// Says what a person may not expect of the task that was found.
fn tell_far(here: &Here<'_>, scope: &Scope, task: &v1::Task) {
    let id = view::short_id(&task.id);
    let whose = if scope.mine { "yours" } else { "somebody else's" };
    if here.is_same_clone(task) {
        note(&format!("task {id}, the newest of this repository, is {whose}"));
    } else {
        note(&format!(
            "task {id}, the newest of this repository, is {whose}, from another clone"
        ));
    }
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

async fn of(access: &Access, here: &Here<'_>, scope: &Scope) -> anyhow::Result<Option<v1::Task>> {
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

/// True if a task is what the filter asks for. A coordinator of an older version lists all tasks.
fn fits(filter: &v1::TaskFilter, task: &v1::Task) -> bool {
    let is = |asked: &str, found: Option<&str>| asked.is_empty() || found == Some(asked);
    let origin = task.origin.as_ref();
    is(
        &filter.origin_repository,
        origin.map(|origin| origin.repository.as_str()),
    ) && is(&filter.origin_worktree, origin.map(|origin| origin.worktree.as_str()))
        && is(&filter.repository, view::repository(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(root: &str) -> TaskOrigin {
        TaskOrigin::of("machine", Path::new("/home"), Path::new(root), None)
    }

    fn all(name: &str) -> Vec<Scope> {
        let far = Scope::far(Some(name.parse().unwrap()));
        Scope::NEAR.into_iter().chain(far).collect()
    }

    #[test]
    fn what_is_asked_for_goes_from_near_to_far_and_never_beyond_the_repository() {
        let here = origin("/home");
        let asked: Vec<_> = all("home-1").iter().map(|scope| scope.filter(&here)).collect();
        let of = |filter: &v1::TaskFilter| {
            (
                filter.mine,
                filter.origin_worktree == here.worktree.as_str(),
                filter.origin_repository == here.repository.as_str(),
                filter.repository == "home-1",
            )
        };
        assert_eq!(
            asked.iter().map(of).collect::<Vec<_>>(),
            [
                (true, true, true, false),
                (true, false, true, false),
                (true, false, false, true),
                (false, false, true, false),
                (false, false, false, true),
            ]
        );
        let alone = Scope::far(None);
        assert_eq!(
            alone,
            [Scope {
                mine: false,
                place: Place::Clone
            }],
            "no other clone is known"
        );
    }

    #[test]
    fn an_answer_to_another_question_is_not_taken() {
        let task = |origin: Option<TaskOrigin>, name: &str| v1::Task {
            origin: origin.map(Into::into),
            spec: Some(v1::TaskSpec {
                repository: Some(v1::Repository {
                    name: name.to_owned(),
                    ..v1::Repository::default()
                }),
                ..v1::TaskSpec::default()
            }),
            ..v1::Task::default()
        };
        let here = origin("/home");
        let elsewhere = TaskOrigin::of("machine", Path::new("/other"), Path::new("/other"), None);
        for scope in all("home-1") {
            let filter = scope.filter(&here);
            let fits = |origin: Option<&TaskOrigin>, name| fits(&filter, &task(origin.cloned(), name));
            let (by_tree, by_name) = (scope.place == Place::Tree, matches!(scope.place, Place::Repository(_)));
            assert!(fits(Some(&here), "home-1"), "{scope:?}");
            assert!(!fits(Some(&elsewhere), "other-1"), "{scope:?}");
            assert!(!fits(None, "other-1"), "{scope:?}");
            assert_eq!(fits(Some(&origin("/linked")), "home-1"), !by_tree, "{scope:?}");
            assert_eq!(fits(Some(&elsewhere), "home-1"), by_name, "{scope:?}");
            assert_eq!(fits(Some(&here), "home-of-an-earlier-version"), !by_name, "{scope:?}");
        }
    }
}
