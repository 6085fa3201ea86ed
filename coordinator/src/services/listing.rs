//! Which tasks a caller asks for: a list of them, or to watch them.

use kage_proto::convert::task::task_state;
use kage_proto::convert::time::time;
use kage_proto::convert::{InvalidField, Wrong, parse_optional};
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::door::auth::Principal;
use crate::store::{TaskFilter, TaskOrder};
use crate::watch::tasks::TasksWatch;
use crate::watch::tasks::cursor::TasksCursor;

/// The tasks that a request asks for.
///
/// # Errors
/// With every field that is wrong; and when the project is not the caller's.
pub(super) fn filter(caller: &Principal, message: &v1::ListTasksRequest) -> Result<TaskFilter, ApiError> {
    let mut wrong = Wrong::default();
    let asked = message.filter.clone().unwrap_or_default();
    let order = match v1::TaskOrder::try_from(message.order) {
        Ok(v1::TaskOrder::Unspecified | v1::TaskOrder::NewestFirst) => TaskOrder::NewestFirst,
        Ok(v1::TaskOrder::OldestFirst) => TaskOrder::OldestFirst,
        Err(_) => {
            wrong.add(InvalidField::new("order", "is no order of tasks"));
            TaskOrder::default()
        }
    };
    let filter = wrong.within("filter", |wrong| {
        if asked.mine && !asked.created_by.is_empty() {
            wrong.add(InvalidField::new("created_by", "is not taken together with mine"));
        }
        let states = asked.states.iter().map(|number| task_state("states", *number));
        let states: Vec<_> = states
            .filter_map(|state| state.map_err(|field| wrong.add(field)).ok())
            .collect();
        TaskFilter {
            repository: wrong.or_default(parse_optional("origin_repository", &asked.origin_repository)),
            worktree: wrong.or_default(parse_optional("origin_worktree", &asked.origin_worktree)),
            created_by: match asked.created_by.as_str() {
                "" => asked.mine.then(|| caller.name()),
                name => Some(name.to_owned()),
            },
            states: (!states.is_empty()).then_some(states),
            works_on: wrong.or_default(parse_optional("repository", &asked.repository)),
            labels: asked.labels.into_iter().collect(),
            created_from: asked.created_from.map(time),
            created_before: asked.created_before.map(time),
            order,
            ..TaskFilter::default()
        }
    });
    let filter = wrong.none(filter)?;
    Ok(TaskFilter {
        project: caller.project("project", &message.project)?,
        ..filter
    })
}

/// What a caller asks to watch, in this run of the coordinator.
///
/// # Errors
/// As for a list; and when the cursor is not of a watch of these tasks.
pub(super) fn watch(caller: &Principal, run: u128, message: v1::WatchTasksRequest) -> Result<TasksWatch, ApiError> {
    let asked = v1::ListTasksRequest {
        project: message.project,
        filter: message.filter,
        ..v1::ListTasksRequest::default()
    };
    let filter = filter(caller, &asked)?;
    let begin = TasksCursor::begin(run, &caller.name(), filter.project.as_str(), asked.filter.as_ref());
    Ok(TasksWatch {
        cursor: begin.decode(&message.cursor)?,
        begin,
        filter,
        caller: caller.clone(),
        agents: message.agents,
        holds: message.holds,
    })
}
