//! Tasks as people ask for them: spec, assignments, policy.

use std::num::NonZeroU32;
use std::time::Duration;

use kage_core::budget::{Limit, TaskBudget};
use kage_core::cause::chain;
use kage_core::fallback::Fallback;
use kage_core::id::{Digest, ProjectId};
use kage_core::session::{DEFAULT_WAIT, MAX_WAIT, PermissionPolicy};
use kage_core::task::{
    Assignment, Course, Permissions, Policy, RepositoryRef, ResultRules, Selection, Task, TaskEnvironment, TaskOrigin,
    TaskSpec, TaskState, VerifyPolicy,
};
use kage_core::usage::PicoUsd;

use super::contain::{above_lowest, demanded};
use super::time::{duration, limit, span, stamp};
use super::{InvalidField, InvalidFields, Wrong, enumerated, non_empty, parse, parse_optional, stand_in, unspecified};
use crate::v1;

/// The project of this name; empty means the default project.
///
/// # Errors
/// When it is not a name.
pub fn project(field: &str, name: &str) -> Result<ProjectId, InvalidField> {
    Ok(parse_optional(field, name)?.unwrap_or_default())
}

impl From<RepositoryRef> for v1::Repository {
    fn from(repository: RepositoryRef) -> Self {
        Self {
            name: repository.name.into(),
            base_commit: repository.base.into(),
            folder: repository.folder.map(Into::into).unwrap_or_default(),
            names_commit: repository.names.map(Into::into).unwrap_or_default(),
        }
    }
}

fn read_repository(repository: &v1::Repository, wrong: &mut Wrong) -> RepositoryRef {
    RepositoryRef {
        name: wrong.or(parse("name", &repository.name), || stand_in("unknown")),
        base: wrong.or(parse("base_commit", &repository.base_commit), || {
            stand_in(&"0".repeat(40))
        }),
        folder: wrong.or_default(parse_optional("folder", &repository.folder)),
        names: wrong.or_default(parse_optional("names_commit", &repository.names_commit)),
    }
}

impl TryFrom<v1::Repository> for RepositoryRef {
    type Error = InvalidField;

    fn try_from(repository: v1::Repository) -> Result<Self, InvalidField> {
        let mut wrong = Wrong::default();
        let read = read_repository(&repository, &mut wrong);
        wrong.first(read)
    }
}

impl From<TaskOrigin> for v1::TaskOrigin {
    fn from(origin: TaskOrigin) -> Self {
        Self {
            repository: origin.repository.into(),
            worktree: origin.worktree.into(),
            head: origin.head.map(Into::into).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::TaskOrigin> for TaskOrigin {
    type Error = InvalidFields;

    fn try_from(origin: v1::TaskOrigin) -> Result<Self, InvalidFields> {
        let mut wrong = Wrong::default();
        let nowhere = || "0".repeat(64);
        let read = Self {
            repository: wrong.or(parse("repository", &origin.repository), || stand_in(&nowhere())),
            worktree: wrong.or(parse("worktree", &origin.worktree), || stand_in(&nowhere())),
            head: wrong.or_default(parse_optional("head", &origin.head)),
        };
        wrong.none(read)
    }
}

impl From<Fallback> for v1::Fallback {
    fn from(fallback: Fallback) -> Self {
        Self {
            adapter: fallback.adapter.into(),
            model: fallback.model.unwrap_or_default(),
        }
    }
}

/// An adapter that may take over.
///
/// # Errors
/// When its name is none.
pub fn fallback(field: &str, fallback: v1::Fallback) -> Result<Fallback, InvalidField> {
    Ok(Fallback {
        adapter: parse(&format!("{field}.adapter"), &fallback.adapter)?,
        model: non_empty(fallback.model),
    })
}

fn read_fallback(fallback: v1::Fallback, wrong: &mut Wrong) -> Fallback {
    Fallback {
        adapter: wrong.or(parse("adapter", &fallback.adapter), || stand_in("unknown")),
        model: non_empty(fallback.model),
    }
}

impl From<Assignment> for v1::Assignment {
    fn from(assignment: Assignment) -> Self {
        Self {
            name: assignment.name.into(),
            adapter: assignment.adapter.into(),
            model: assignment.model.unwrap_or_default(),
            context_delta: assignment.context_delta.unwrap_or_default(),
            requirements: assignment.requirements.into_iter().collect(),
            fallbacks: assignment.fallbacks.into_iter().map(Into::into).collect(),
            timeout: assignment.timeout.map(span),
        }
    }
}

/// The assignment at this position. An unreadable one gets a stand-in with its name.
fn read_assignment(position: usize, assignment: v1::Assignment, wrong: &mut Wrong) -> Assignment {
    let fallbacks = assignment.fallbacks.into_iter().enumerate();
    Assignment {
        name: wrong.or(parse("name", &assignment.name), || {
            stand_in(&format!("unnamed-{position}"))
        }),
        adapter: wrong.or(parse("adapter", &assignment.adapter), || stand_in("unknown")),
        model: non_empty(assignment.model),
        context_delta: non_empty(assignment.context_delta),
        requirements: assignment.requirements.into_iter().collect(),
        fallbacks: fallbacks
            .map(|(n, fallback)| wrong.within(format_args!("fallbacks[{n}]"), |wrong| read_fallback(fallback, wrong)))
            .collect(),
        timeout: wrong.or_default(limit("timeout", assignment.timeout)),
    }
}

impl From<VerifyPolicy> for v1::VerifyPolicy {
    fn from(policy: VerifyPolicy) -> Self {
        Self {
            setup: policy.setup.unwrap_or_default(),
            verify: policy.verify.unwrap_or_default(),
            protect: policy.protect,
            leave_named: policy.leave_named,
            check_verify: policy.check_verify,
            setup_folder: policy.setup_folder.map(Into::into).unwrap_or_default(),
            verify_folder: policy.verify_folder.map(Into::into).unwrap_or_default(),
            timeout: Some(span(policy.timeout)),
        }
    }
}

fn read_verify(policy: v1::VerifyPolicy, wrong: &mut Wrong) -> VerifyPolicy {
    let default = VerifyPolicy::default();
    VerifyPolicy {
        setup: non_empty(policy.setup),
        setup_folder: wrong.or_default(parse_optional("setup_folder", &policy.setup_folder)),
        verify_folder: wrong.or_default(parse_optional("verify_folder", &policy.verify_folder)),
        verify: non_empty(policy.verify),
        protect: policy.protect,
        leave_named: policy.leave_named,
        check_verify: policy.check_verify,
        timeout: wrong
            .or_default(limit("timeout", policy.timeout))
            .unwrap_or(default.timeout),
    }
}

impl TryFrom<v1::VerifyPolicy> for VerifyPolicy {
    type Error = InvalidField;

    fn try_from(policy: v1::VerifyPolicy) -> Result<Self, InvalidField> {
        let mut wrong = Wrong::default();
        let read = read_verify(policy, &mut wrong);
        wrong.first(read)
    }
}

impl From<Policy> for v1::Policy {
    fn from(policy: Policy) -> Self {
        Self {
            verify: Some(policy.verify.into()),
            timeout: Some(span(policy.timeout)),
            idle_timeout: Some(span(policy.idle_timeout)),
            max_attempts: policy.max_attempts,
            requirements: policy.requirements.into_iter().collect(),
            contain: above_lowest(policy.contain),
            max_reworks: policy.max_reworks,
            priority: policy.priority.as_i32(),
            session_setup: policy.session_setup.unwrap_or_default(),
            session_setup_folder: policy.session_setup_folder.map(Into::into).unwrap_or_default(),
            results: (!policy.results.is_default()).then(|| policy.results.into()),
            course: course(policy.course),
            permissions: policy.permissions.map(Into::into),
            mcp_digest: policy.mcp.map(Into::into).unwrap_or_default(),
            budget: (!policy.budget.is_none()).then(|| budget(policy.budget)),
        }
    }
}

fn course(course: Course) -> Option<v1::Course> {
    let kind = match course {
        Course::Race => return None,
        Course::FirstVerified(enough) => v1::course::Kind::FirstVerified(enough.get()),
        Course::Ladder => v1::course::Kind::Ladder(v1::Ladder {}),
    };
    Some(v1::Course { kind: Some(kind) })
}

fn read_course(course: Option<v1::Course>) -> Result<Course, InvalidField> {
    Ok(match course.and_then(|course| course.kind) {
        None => Course::Race,
        Some(v1::course::Kind::Ladder(v1::Ladder {})) => Course::Ladder,
        Some(v1::course::Kind::FirstVerified(enough)) => match NonZeroU32::new(enough) {
            Some(enough) => Course::FirstVerified(enough),
            None => return Err(InvalidField::new("course.first_verified", "is 0")),
        },
    })
}

fn budget(budget: TaskBudget) -> v1::TaskBudget {
    v1::TaskBudget {
        task_pico: budget.task.money.map(|money| money.0),
        session_pico: budget.session.money.map(|money| money.0),
        task_tokens: budget.task.tokens,
    }
}

fn read_budget(budget: v1::TaskBudget, wrong: &mut Wrong) -> TaskBudget {
    let mut money = |field: &str, pico: Option<i64>| {
        let is_right = pico.is_none_or(|pico| pico >= 0);
        let read = match is_right {
            true => Ok(pico.map(PicoUsd)),
            false => Err(InvalidField::new(field, "is less than nothing")),
        };
        wrong.or_default(read)
    };
    TaskBudget {
        task: Limit {
            money: money("task_pico", budget.task_pico),
            tokens: budget.task_tokens,
        },
        session: Limit {
            money: money("session_pico", budget.session_pico),
            tokens: None,
        },
    }
}

impl From<ResultRules> for v1::ResultRules {
    fn from(rules: ResultRules) -> Self {
        Self {
            excludes: rules.excludes,
            max_file_bytes: rules.max_file_bytes,
            max_new_bytes: rules.max_new_bytes,
            max_new_files: rules.max_new_files,
        }
    }
}

impl From<v1::ResultRules> for ResultRules {
    fn from(rules: v1::ResultRules) -> Self {
        let default = Self::default();
        let given = |number, default| if number == 0 { default } else { number };
        Self {
            excludes: rules.excludes,
            max_file_bytes: given(rules.max_file_bytes, default.max_file_bytes),
            max_new_bytes: given(rules.max_new_bytes, default.max_new_bytes),
            max_new_files: given(rules.max_new_files, default.max_new_files),
        }
    }
}

fn read_policy(policy: v1::Policy, wrong: &mut Wrong) -> Policy {
    let default = Policy::default();
    let priority = policy.priority.try_into();
    Policy {
        verify: wrong.within("verify", |wrong| read_verify(policy.verify.unwrap_or_default(), wrong)),
        timeout: wrong
            .or_default(limit("timeout", policy.timeout))
            .unwrap_or(default.timeout),
        idle_timeout: wrong
            .or_default(limit("idle_timeout", policy.idle_timeout))
            .unwrap_or(default.idle_timeout),
        max_attempts: match policy.max_attempts {
            0 => default.max_attempts,
            n => n,
        },
        requirements: policy.requirements.into_iter().collect(),
        contain: wrong.or_default(demanded("contain", policy.contain)),
        max_reworks: policy.max_reworks,
        session_setup: non_empty(policy.session_setup),
        session_setup_folder: wrong.or_default(parse_optional("session_setup_folder", &policy.session_setup_folder)),
        results: policy.results.unwrap_or_default().into(),
        course: wrong.or_default(read_course(policy.course)),
        permissions: wrong.or_default(read_permissions(policy.permissions)),
        mcp: wrong.or_default(parse_optional("mcp_digest", &policy.mcp_digest)),
        budget: wrong.within("budget", |wrong| read_budget(policy.budget.unwrap_or_default(), wrong)),
        priority: wrong.or_default(priority.map_err(|invalid| InvalidField::new("priority", invalid))),
    }
}

fn read_permissions(told: Option<v1::Permissions>) -> Result<Option<Permissions>, InvalidField> {
    let read = told.map(permissions).transpose();
    read.map_err(|invalid| invalid.within("permissions"))
}

/// What a program is answered that asks for permission.
pub(super) fn permissions(told: v1::Permissions) -> Result<Permissions, InvalidField> {
    let policy = match told.policy() {
        v1::PermissionPolicy::Allow => PermissionPolicy::Allow,
        v1::PermissionPolicy::Deny => PermissionPolicy::Deny,
        v1::PermissionPolicy::Ask => PermissionPolicy::Ask,
        v1::PermissionPolicy::Unspecified => return Err(InvalidField::new("policy", "is missing or not known")),
    };
    let wait = told.wait.map_or(DEFAULT_WAIT, duration);
    if !(Duration::from_secs(1)..=MAX_WAIT).contains(&wait) {
        return Err(InvalidField::new("wait", "is not between 1 second and 24 hours"));
    }
    Ok(Permissions { policy, wait })
}

impl From<Permissions> for v1::Permissions {
    fn from(permissions: Permissions) -> Self {
        let policy = match permissions.policy {
            PermissionPolicy::Allow => v1::PermissionPolicy::Allow,
            PermissionPolicy::Deny => v1::PermissionPolicy::Deny,
            PermissionPolicy::Ask => v1::PermissionPolicy::Ask,
        };
        Self {
            policy: policy.into(),
            wait: Some(span(permissions.wait)),
        }
    }
}

impl From<TaskSpec> for v1::TaskSpec {
    fn from(spec: TaskSpec) -> Self {
        Self {
            project: spec.project.into(),
            prompt: spec.prompt,
            repository: spec.repository.map(Into::into),
            context_base: spec.context_base.map(Into::into).unwrap_or_default(),
            assignments: spec.assignments.into_iter().map(Into::into).collect(),
            policy: Some(spec.policy.into()),
            labels: spec.labels.into_iter().collect(),
            environment: environment(spec.environment),
            fresh_baseline: spec.fresh_baseline,
        }
    }
}

/// An environment as it is sent; an empty one is not.
pub(super) fn environment(environment: TaskEnvironment) -> Option<v1::TaskEnvironment> {
    let given = !environment.is_empty();
    given.then(|| v1::TaskEnvironment {
        pass: environment.pass.into_iter().collect(),
        set: environment.set.into_iter().collect(),
        home: environment.home.into_iter().collect(),
        handed: environment.handed.map(Into::into).unwrap_or_default(),
        files_commit: environment.files.map(Into::into).unwrap_or_default(),
    })
}

/// The environment that was sent.
pub(super) fn read_environment(environment: v1::TaskEnvironment) -> Result<TaskEnvironment, InvalidField> {
    Ok(TaskEnvironment {
        pass: environment.pass.into_iter().collect(),
        set: environment.set.into_iter().collect(),
        home: environment.home.into_iter().collect(),
        handed: parse_optional("handed", &environment.handed)?,
        files: parse_optional("files_commit", &environment.files_commit)?,
    })
}

fn read_spec(spec: v1::TaskSpec, wrong: &mut Wrong) -> TaskSpec {
    let assignments = spec.assignments.into_iter().enumerate();
    TaskSpec {
        project: wrong.or_default(project("project", &spec.project)),
        prompt: spec.prompt,
        prompt_blob: None,
        repository: spec
            .repository
            .map(|repository| wrong.within("repository", |wrong| read_repository(&repository, wrong))),
        context_base: match parse_optional("context_base", &spec.context_base) {
            Ok(base) => base,
            Err(field) => {
                wrong.add(field);
                Some(Digest::of(b""))
            }
        },
        assignments: assignments
            .map(|(n, assignment)| {
                wrong.within(format_args!("assignments[{n}]"), |wrong| {
                    read_assignment(n, assignment, wrong)
                })
            })
            .collect(),
        policy: wrong.within("policy", |wrong| read_policy(spec.policy.unwrap_or_default(), wrong)),
        fresh_baseline: spec.fresh_baseline,
        labels: spec.labels.into_iter().collect(),
        environment: wrong.within("environment", |wrong| {
            wrong.or_default(read_environment(spec.environment.unwrap_or_default()))
        }),
    }
}

/// A valid spec of a task: as [`TaskSpec::try_from`], and within the bounds.
///
/// # Errors
/// With everything that is wrong with it.
pub fn checked_spec(spec: v1::TaskSpec) -> Result<TaskSpec, InvalidFields> {
    let mut wrong = Wrong::default();
    let spec = read_spec(spec, &mut wrong);
    for part in spec.problems() {
        wrong.add(InvalidField::new(part.field, chain(&part.problem)));
    }
    wrong.none(spec)
}

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = InvalidFields;

    fn try_from(spec: v1::TaskSpec) -> Result<Self, InvalidFields> {
        let mut wrong = Wrong::default();
        let spec = read_spec(spec, &mut wrong);
        wrong.none(spec)
    }
}

impl From<TaskState> for v1::TaskState {
    fn from(state: TaskState) -> Self {
        match state {
            TaskState::Running => Self::Running,
            TaskState::Succeeded => Self::Succeeded,
            TaskState::Failed => Self::Failed,
            TaskState::Cancelled => Self::Cancelled,
        }
    }
}

/// The most bytes of `Task.prompt_excerpt`.
const MAX_EXCERPT: usize = 1024;
/// The most bytes of a message's text in the view BASIC: a task may have 256 sessions with 32 each.
const MAX_MESSAGE_EXCERPT: usize = 200;

/// How much of a task is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskDetail {
    /// Without the parts that can have megabytes: prompt, contexts and paths.
    Basic,
    /// All of it.
    Full,
}

impl TaskDetail {
    /// How much a call asks for.
    ///
    /// # Errors
    /// When that is no view.
    pub fn asked(field: &str, number: i32) -> Result<Self, InvalidField> {
        Ok(match enumerated(field, number)? {
            v1::TaskView::Unspecified | v1::TaskView::Basic => Self::Basic,
            v1::TaskView::Full => Self::Full,
        })
    }

    /// Removes the parts of a session that this view omits.
    #[must_use]
    pub fn of_session(self, mut session: v1::Session) -> v1::Session {
        if let (Self::Basic, Some(result)) = (self, &mut session.result) {
            result.paths.clear();
            result.deleted.clear();
        }
        if self == Self::Basic {
            for message in &mut session.messages {
                let end = message.text.floor_char_boundary(MAX_MESSAGE_EXCERPT);
                message.text.truncate(end);
            }
        }
        session
    }
}

/// The state of this number on the wire.
///
/// # Errors
/// When there is none; `field` names where the number was.
pub fn task_state(field: &str, number: i32) -> Result<TaskState, InvalidField> {
    Ok(match enumerated(field, number)? {
        v1::TaskState::Unspecified => return Err(unspecified(field)),
        v1::TaskState::Running => TaskState::Running,
        v1::TaskState::Succeeded => TaskState::Succeeded,
        v1::TaskState::Failed => TaskState::Failed,
        v1::TaskState::Cancelled => TaskState::Cancelled,
    })
}

/// A task and its sessions, which the caller converted already.
#[must_use]
pub fn task(mut task: Task, sessions: impl IntoIterator<Item = v1::Session>, detail: TaskDetail) -> v1::Task {
    let prompt = &task.spec.prompt;
    let prompt_excerpt = prompt[..prompt.floor_char_boundary(MAX_EXCERPT)].to_owned();
    let prompt_size = prompt.len() as u64;
    let view = match detail {
        TaskDetail::Full => v1::TaskView::Full,
        TaskDetail::Basic => {
            task.spec.prompt.clear();
            for assignment in &mut task.spec.assignments {
                assignment.context_delta = None;
            }
            v1::TaskView::Basic
        }
    };
    v1::Task {
        view: view.into(),
        prompt_excerpt,
        prompt_size,
        id: task.id.to_string(),
        spec: Some(task.spec.into()),
        state: v1::TaskState::from(task.state).into(),
        sessions: sessions.into_iter().map(|session| detail.of_session(session)).collect(),
        created_at: Some(stamp(task.created_at)),
        ended_at: task.ended_at.map(stamp),
        baseline: task.baseline.map(Into::into),
        baseline_kept_since: task.baseline_kept_since.map(stamp),
        created_by: task.created_by.unwrap_or_default(),
        origin: task.origin.map(Into::into),
        selection: task.selection.map(Into::into),
    }
}

impl From<Selection> for v1::Selection {
    fn from(selection: Selection) -> Self {
        Self {
            session_id: selection.session.to_string(),
            session: selection.name.into(),
            selected_by: selection.by,
            selected_at: Some(stamp(selection.at)),
        }
    }
}

#[cfg(test)]
mod tests;
