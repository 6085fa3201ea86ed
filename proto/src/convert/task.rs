//! Tasks as people ask for them: spec, assignments, policy.

use kage_core::cause::chain;
use kage_core::fallback::Fallback;
use kage_core::id::{Digest, ProjectId};
use kage_core::task::{Assignment, Policy, RepositoryRef, Task, TaskOrigin, TaskSpec, TaskState, VerifyPolicy};

use super::time::{limit, span, stamp};
use super::{InvalidField, InvalidFields, Wrong, enumerated, non_empty, parse, parse_optional, stand_in, unspecified};
use crate::v1;

/// The project of this name; an empty one is the default project.
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
        }
    }
}

fn read_repository(repository: &v1::Repository, wrong: &mut Wrong) -> RepositoryRef {
    RepositoryRef {
        name: wrong.or(parse("name", &repository.name), || stand_in("unknown")),
        base: wrong.or(parse("base_commit", &repository.base_commit), || {
            stand_in(&"0".repeat(40))
        }),
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
        }
    }
}

/// The assignment at this position, which its name stands in for when it cannot be read.
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
    }
}

impl From<VerifyPolicy> for v1::VerifyPolicy {
    fn from(policy: VerifyPolicy) -> Self {
        Self {
            setup: policy.setup.unwrap_or_default(),
            verify: policy.verify.unwrap_or_default(),
            protect: policy.protect,
            leave_named: policy.leave_named,
            timeout: Some(span(policy.timeout)),
        }
    }
}

fn read_verify(policy: v1::VerifyPolicy, wrong: &mut Wrong) -> VerifyPolicy {
    let default = VerifyPolicy::default();
    VerifyPolicy {
        setup: non_empty(policy.setup),
        verify: non_empty(policy.verify),
        protect: policy.protect,
        leave_named: policy.leave_named,
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
            max_reworks: policy.max_reworks,
            priority: policy.priority.as_i32(),
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
        max_reworks: policy.max_reworks,
        priority: wrong.or_default(priority.map_err(|invalid| InvalidField::new("priority", invalid))),
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
        }
    }
}

fn read_spec(spec: v1::TaskSpec, wrong: &mut Wrong) -> TaskSpec {
    let assignments = spec.assignments.into_iter().enumerate();
    TaskSpec {
        project: wrong.or_default(project("project", &spec.project)),
        prompt: spec.prompt,
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
        labels: spec.labels.into_iter().collect(),
    }
}

/// A spec that may become a task: as [`TaskSpec::try_from`], and within what a task may be.
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

/// How much of a task is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskDetail {
    /// Without what can be megabytes: prompt, contexts and paths.
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

    /// Takes out of a session what this view leaves out.
    #[must_use]
    pub fn of_session(self, mut session: v1::Session) -> v1::Session {
        if let (Self::Basic, Some(result)) = (self, &mut session.result) {
            result.paths.clear();
            result.deleted.clear();
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
        created_by: task.created_by.unwrap_or_default(),
        origin: task.origin.map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kage_core::priority::Priority;
    use prost::Message as _;

    use super::*;

    fn spec() -> TaskSpec {
        let labels = |k: &str| [(k.to_owned(), "v".to_owned())].into();
        TaskSpec {
            project: "p1".parse().unwrap(),
            prompt: "fix it".into(),
            repository: Some(RepositoryRef {
                name: "repo".parse().unwrap(),
                base: "b".repeat(64).parse().unwrap(),
            }),
            context_base: Some(Digest::of(b"{}")),
            assignments: vec![
                Assignment {
                    name: "one".parse().unwrap(),
                    adapter: "claude-api".parse().unwrap(),
                    model: Some("m".into()),
                    context_delta: Some("{\"a\":1}".into()),
                    requirements: labels("gpu"),
                    fallbacks: vec![Fallback {
                        adapter: "codex".parse().unwrap(),
                        model: Some("n".into()),
                    }],
                },
                Assignment {
                    name: "two".parse().unwrap(),
                    adapter: "shell".parse().unwrap(),
                    model: None,
                    context_delta: None,
                    requirements: Default::default(),
                    fallbacks: Vec::new(),
                },
            ],
            policy: Policy {
                verify: VerifyPolicy {
                    setup: Some("make".into()),
                    verify: Some("make test".into()),
                    protect: vec!["tests/**".into()],
                    leave_named: true,
                    timeout: Duration::from_secs(3),
                },
                timeout: Duration::from_secs(4),
                idle_timeout: Duration::from_secs(5),
                max_attempts: 6,
                max_reworks: Some(7),
                requirements: labels("os"),
                priority: Priority::HIGH,
            },
            labels: labels("team"),
        }
    }

    #[test]
    fn specs_survive_the_wire() {
        let full = spec();
        assert_eq!(TaskSpec::try_from(v1::TaskSpec::from(full.clone())), Ok(full));
    }

    #[test]
    fn origins_survive_the_wire_and_are_checked() {
        let path = std::path::Path::new("/p");
        for head in [None, Some("a".repeat(40).parse().unwrap())] {
            let origin = TaskOrigin::of("m", path, path, head);
            assert_eq!(TaskOrigin::try_from(v1::TaskOrigin::from(origin.clone())), Ok(origin));
        }
        let wire = v1::TaskOrigin {
            worktree: "/home/me".into(),
            ..v1::TaskOrigin::from(TaskOrigin::of("m", path, path, None))
        };
        assert_eq!(TaskOrigin::try_from(wire).unwrap_err().0[0].field, "worktree");
    }

    #[test]
    fn what_is_not_set_is_the_default() {
        let wire = v1::TaskSpec {
            prompt: "x".into(),
            ..Default::default()
        };
        let spec = TaskSpec::try_from(wire).unwrap();
        assert_eq!(spec.policy, Policy::default());
        assert_eq!(spec.project, ProjectId::default());
        assert_eq!((spec.repository, spec.context_base), (None, None));
        let wire = v1::TaskSpec {
            policy: Some(v1::Policy {
                verify: Some(v1::VerifyPolicy::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let policy = TaskSpec::try_from(wire).map(|spec| spec.policy);
        assert_eq!(policy, Ok(Policy::default()));
    }

    #[test]
    fn a_basic_task_says_so_and_has_nothing_that_may_be_large() {
        let mut large = spec();
        large.prompt = format!("a{}", "ä".repeat(1 << 20));
        let domain = Task::new(kage_core::id::TaskId::from_random(1), large.clone(), Default::default());
        let session = || v1::Session {
            result: Some(v1::ResultCommit {
                diff: Some(v1::DiffStat {
                    files: 1,
                    ..Default::default()
                }),
                paths: vec!["a".into()],
                deleted: vec!["b".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let basic = task(domain.clone(), [session()], TaskDetail::Basic);
        assert_eq!(basic.view(), v1::TaskView::Basic);
        let excerpt = basic.prompt_excerpt.len();
        assert_eq!(
            (excerpt, basic.prompt_size),
            (MAX_EXCERPT - 1, large.prompt.len() as u64)
        );
        let result = basic.sessions[0].result.as_ref().unwrap();
        assert!(result.paths.is_empty() && result.deleted.is_empty() && result.diff.is_some());
        let shown = basic.spec.unwrap();
        assert_eq!(shown.prompt, "");
        assert!(
            shown
                .assignments
                .iter()
                .all(|assignment| assignment.context_delta.is_empty())
        );
        assert!(shown.encoded_len() < 4096);

        let full = task(domain, [session()], TaskDetail::Full);
        assert_eq!((full.view(), full.prompt_size), (v1::TaskView::Full, basic.prompt_size));
        assert_eq!(full.spec, Some(large.into()));
        assert_eq!(full.sessions, [session()]);
    }

    #[test]
    fn names_every_field_that_is_wrong() {
        let mut wire = v1::TaskSpec::from(spec());
        wire.project = "No Such".into();
        wire.prompt.clear();
        wire.context_base = "x".into();
        wire.assignments[0].name.clear();
        wire.assignments[0].fallbacks[0].adapter.clear();
        wire.assignments[1].adapter = "No Such".into();
        let nothing = Some(v1::VerifyPolicy {
            timeout: Some(super::super::time::Span::default()),
            ..Default::default()
        });
        wire.policy = wire.policy.map(|policy| v1::Policy {
            priority: 11,
            verify: nothing,
            ..policy
        });
        wire.repository = wire.repository.map(|repository| v1::Repository {
            base_commit: "HEAD".into(),
            ..repository
        });
        let told = |wrong: InvalidFields| -> Vec<String> { wrong.0.into_iter().map(|wrong| wrong.field).collect() };
        let unreadable = [
            "project",
            "repository.base_commit",
            "context_base",
            "assignments[0].name",
            "assignments[0].fallbacks[0].adapter",
            "assignments[1].adapter",
            "policy.verify.timeout",
            "policy.priority",
        ];
        assert_eq!(told(TaskSpec::try_from(wire.clone()).unwrap_err()), unreadable);
        // What stands in for them is within all bounds, so what is told besides is the person's.
        let all = told(checked_spec(wire).unwrap_err());
        assert_eq!(
            (&all[..8], &all[8..]),
            (&unreadable.map(str::to_owned)[..], &["prompt".to_owned()][..])
        );
    }
}
