//! Tasks: a person's request, and when it is over. `bounds` checks the request once, on the way in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::budget::TaskBudget;
use crate::contain::Tier;
use crate::event::Verdict;
use crate::fallback::{AdapterLacks, Fallback, NobodyCan, TaskLacks};
use crate::folder::Folder;
use crate::id::{AdapterName, Digest, Oid, ProjectId, RepositoryName, SessionId, SessionName, TaskId};
use crate::priority::Priority;
use crate::session::{PermissionPolicy, Session, SessionStateKind};
use crate::time::Timestamp;
use crate::words::words;

mod bounds;
mod course;
mod environment;
mod lineage;
mod origin;
mod results;

pub use crate::labels::Labels;
pub use course::{Course, EndOfTurn, Turn};
pub use environment::{InvalidEnvironment, MAX_ENVIRONMENT_BYTES, TaskEnvironment};
pub use lineage::{Lineage, LineageId, RemoteUrl};
pub use origin::TaskOrigin;
pub use results::{MAX_EXCLUDES_BYTES, ResultRules, joined_excludes};

pub use bounds::{
    InvalidPart, InvalidSpec, MAX_COMMAND_BYTES, MAX_DELTA_BYTES, MAX_LABEL_BYTES, MAX_MODEL_BYTES,
    MAX_OVERRIDDEN_BYTES, MAX_PROMPT_BYTES, MAX_SESSIONS,
};

/// A commit of a repository that the coordinator holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRef {
    /// The repository's name.
    pub name: RepositoryName,
    /// The commit that every session starts from.
    pub base: Oid,
    /// The folder of it in which sessions work; `None`: its top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<Folder>,
    /// The commit with the tags, branches and submodules of its worktrees, beside the base in the
    /// repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Oid>,
}

/// One session to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Unique in the task.
    pub name: SessionName,
    /// The adapter that works.
    pub adapter: AdapterName,
    /// `None`: the adapter's default.
    pub model: Option<String>,
    /// What makes its context of the base, as JSON text (see [`Delta`](crate::context::Delta)).
    pub context_delta: Option<String>,
    /// Labels the agent must have besides the task's.
    pub requirements: Labels,
    /// The adapters that take over when this one cannot continue, in this order.
    #[serde(default)]
    pub fallbacks: Vec<Fallback>,
    /// Wall-clock limit of one attempt; `None`: the task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// How a claimed result is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyPolicy {
    /// Shell command that prepares a clean checkout.
    pub setup: Option<String>,
    /// The folder of the checkout in which `setup` runs; `None`: its top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_folder: Option<Folder>,
    /// Shell command that decides. `None`: nothing is checked.
    pub verify: Option<String>,
    /// The folder of the checkout in which `verify` runs; `None`: its top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_folder: Option<Folder>,
    /// Globs of paths that are restored from the base before verify runs.
    pub protect: Vec<String>,
    /// Leaves the files that setup and verify name as the result has them; otherwise the base's
    /// versions of them are restored as well (see `protect`).
    #[serde(default)]
    pub leave_named: bool,
    /// A result that passes is checked once more without its change, its tests apart: verify has to fail
    /// then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check_verify: bool,
    /// For setup and verify together.
    pub timeout: Duration,
}

impl Default for VerifyPolicy {
    fn default() -> Self {
        Self {
            setup: None,
            setup_folder: None,
            verify: None,
            verify_folder: None,
            protect: Vec::new(),
            leave_named: false,
            check_verify: false,
            timeout: Duration::from_secs(30 * 60),
        }
    }
}

/// The limits and rules of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How results are checked.
    pub verify: VerifyPolicy,
    /// Wall-clock limit of one attempt.
    pub timeout: Duration,
    /// Limit of an attempt without any output.
    pub idle_timeout: Duration,
    /// How many attempts of one job may fail. A lost agent and a used-up limit do not count, and a
    /// session that continues from a checkpoint, by itself or by hand, has a new job.
    pub max_attempts: u32,
    /// Labels that every agent of this task must have.
    pub requirements: Labels,
    /// The lowest tier of containment in which its sessions work and its checks run.
    #[serde(default, skip_serializing_if = "Tier::is_lowest")]
    pub contain: Tier,
    /// Its priority; tasks stored before priorities existed are normal.
    #[serde(default)]
    pub priority: Priority,
    /// How often a session whose result fails verify continues with verify's output. `None`:
    /// [`recovery::DEFAULT_REWORKS`](crate::recovery::DEFAULT_REWORKS) where the adapter can
    /// continue the conversation, else never.
    #[serde(default)]
    pub max_reworks: Option<u32>,
    /// Shell command that prepares the worktree of a session before its program starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_setup: Option<String>,
    /// The folder of the worktree in which `session_setup` runs; `None`: its top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_setup_folder: Option<Folder>,
    /// What of a session's files becomes a part of its result.
    #[serde(default, skip_serializing_if = "ResultRules::is_default")]
    pub results: ResultRules,
    /// Which sessions work when.
    #[serde(default, skip_serializing_if = "Course::is_race")]
    pub course: Course,
    /// How much its calls of models may use.
    #[serde(default, skip_serializing_if = "TaskBudget::is_none")]
    pub budget: TaskBudget,
    /// What programs are answered that ask for permission; `None`: as their adapter says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Permissions>,
    /// The digest of the base's `.mcp.json` that the person agreed to; `None`: sessions get no servers of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Digest>,
}

/// What a task's programs are answered that ask for permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// The answer, or that a person gives it.
    pub policy: PermissionPolicy,
    /// How long a question waits for a person.
    pub wait: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            verify: VerifyPolicy::default(),
            timeout: Duration::from_secs(60 * 60),
            idle_timeout: Duration::from_secs(10 * 60),
            max_attempts: 2,
            requirements: Labels::new(),
            contain: Tier::T0,
            priority: Priority::NORMAL,
            max_reworks: None,
            session_setup: None,
            session_setup_folder: None,
            results: ResultRules::default(),
            course: Course::Race,
            budget: TaskBudget::default(),
            permissions: None,
            mcp: None,
        }
    }
}

impl Policy {
    /// A person stopped the task. It is no ladder any more: no turn comes, and sessions that are cancelled
    /// are so because a person said it, not because a session below ended. The task's spec stays as it is.
    pub fn stopped_by_person(&mut self) {
        if self.course == Course::Ladder {
            self.course = Course::Race;
        }
    }
}

/// Everything that a person decides about a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Its project.
    pub project: ProjectId,
    /// What to do, in words.
    pub prompt: String,
    /// The blob of a prompt that is too long for an offer, as it was stored with the task; `None`:
    /// offers have the prompt itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_blob: Option<Digest>,
    /// `None`: sessions run without a workspace.
    pub repository: Option<RepositoryRef>,
    /// Digest of the base context; `None`: no context.
    pub context_base: Option<Digest>,
    /// One session each.
    pub assignments: Vec<Assignment>,
    /// Limits and rules.
    pub policy: Policy,
    /// True when verify runs on the base even if an earlier task's verdict on it is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh_baseline: bool,
    /// What the person put on it to find it again by; agents are not told.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// What its programs get besides what every program gets.
    #[serde(default, skip_serializing_if = "TaskEnvironment::is_empty")]
    pub environment: TaskEnvironment,
}

impl TaskSpec {
    /// The requirements of the task and of a session of it together; the session's value counts
    /// where both set one.
    #[must_use]
    pub fn requirements(&self, assignment: &Assignment) -> Labels {
        let mut labels = self.policy.requirements.clone();
        labels.extend(assignment.requirements.clone());
        labels
    }

    /// The session with which an assignment begins: with the first of its adapters that some agent
    /// could run, if there is one.
    #[must_use]
    pub fn session(&self, assignment: &Assignment, id: SessionId, task: TaskId, lacks: &AdapterLacks) -> Session {
        let (name, adapter) = (assignment.name.clone(), assignment.adapter.clone());
        let mut session = Session::new(id, task, name, adapter, assignment.model.clone());
        session.requirements = self.requirements(assignment);
        session.fallbacks.clone_from(&assignment.fallbacks);
        session.timeout = assignment.timeout;
        for _ in 0..lacks.passed_over() {
            session.hand_over();
        }
        session
    }

    /// The first session that no agent could run with any of its adapters, or the check of results that no
    /// agent could do.
    #[must_use]
    pub fn nobody_can(&self, lacks: &TaskLacks) -> Option<NobodyCan> {
        let mut sessions = self.assignments.iter().zip(&lacks.sessions);
        let run = sessions.find_map(|(assignment, lacks)| {
            let lacks = lacks.of_all()?.to_owned();
            let session = assignment.name.clone();
            Some(NobodyCan::Run { session, lacks })
        });
        let verify = || {
            let lacks = lacks.verify.clone()?;
            Some(NobodyCan::Verify { lacks })
        };
        run.or_else(verify)
    }

    /// The assignment with this name.
    #[must_use]
    pub fn assignment(&self, name: &SessionName) -> Option<&Assignment> {
        self.assignments.iter().find(|a| a.name == *name)
    }
}

words! {
    /// The state of a task.
    pub enum TaskState: "a state of tasks" {
        /// A session has not ended.
        Running = "running",
        /// A result may be landed.
        Succeeded = "succeeded",
        /// Every session ended and no result may be landed.
        Failed = "failed",
        /// It was stopped before any result could be landed.
        Cancelled = "cancelled",
    }
}

impl TaskState {
    /// True when the state is final.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Running)
    }
}

/// Somebody's decision which result is to be landed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The session.
    pub session: SessionId,
    /// Its name.
    pub name: SessionName,
    /// The caller that decided, as the coordinator knew it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A task as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// The request.
    pub spec: TaskSpec,
    /// Its state.
    pub state: TaskState,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When its last session ended.
    pub ended_at: Option<Timestamp>,
    /// Verify's verdict on the base; `None`: none, or not yet.
    pub baseline: Option<Verdict>,
    /// When that was decided, if it was for an earlier task with the same check.
    pub baseline_kept_since: Option<Timestamp>,
    /// The caller that created it, as the coordinator knew it; `None` for tasks stored before that
    /// was recorded.
    pub created_by: Option<String>,
    /// The working tree that it came from; `None` when the client did not say.
    pub origin: Option<TaskOrigin>,
    /// Which result is to be landed, whatever the ranking says; `None`: nobody decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selection>,
}

impl Task {
    /// A new task without ended sessions.
    #[must_use]
    pub const fn new(id: TaskId, spec: TaskSpec, now: Timestamp) -> Self {
        Self {
            id,
            spec,
            state: TaskState::Running,
            created_at: now,
            ended_at: None,
            baseline: None,
            baseline_kept_since: None,
            created_by: None,
            origin: None,
            selection: None,
        }
    }

    /// The task with its creator and its origin.
    #[must_use]
    pub fn created(self, created_by: String, origin: Option<TaskOrigin>) -> Self {
        Self {
            created_by: Some(created_by),
            origin,
            ..self
        }
    }
}

impl TaskSpec {
    /// The folders of the base that it names, each with the place of its name in the spec.
    pub fn folders(&self) -> impl Iterator<Item = (&'static str, &Folder)> {
        let checks = &self.policy.verify;
        let works = self
            .repository
            .as_ref()
            .and_then(|repository| repository.folder.as_ref());
        let named = [
            ("repository.folder", works),
            ("policy.session_setup_folder", self.policy.session_setup_folder.as_ref()),
            ("policy.verify.setup_folder", checks.setup_folder.as_ref()),
            ("policy.verify.verify_folder", checks.verify_folder.as_ref()),
        ];
        named.into_iter().filter_map(|(field, folder)| Some((field, folder?)))
    }

    /// The verify command as a session would run it where it works.
    #[must_use]
    pub fn verify_in_session(&self) -> Option<String> {
        let checks = &self.policy.verify;
        let (verify, at) = (checks.verify.as_ref()?, checks.verify_folder.as_ref());
        let works = self
            .repository
            .as_ref()
            .and_then(|repository| repository.folder.as_ref());
        if at == works {
            return Some(verify.clone());
        }
        let up = works.map(Folder::to_top).into_iter();
        let way = up.chain(at.map(Folder::to_string)).collect::<Vec<_>>().join("/");
        Some(format!("cd '{}' && {verify}", way.replace('\'', "'\\''")))
    }

    /// The commit with the names and submodules that go with the base.
    #[must_use]
    pub fn names(&self) -> Option<&Oid> {
        self.repository.as_ref()?.names.as_ref()
    }

    /// The base to run verify on; `None`: nothing is checked.
    #[must_use]
    pub fn checked_base(&self) -> Option<&Oid> {
        let repository = self.repository.as_ref()?;
        self.policy.verify.verify.is_some().then_some(&repository.base)
    }
}

/// The final state of a task once every session has ended; `None` before that. `policy` is that which
/// counts by then (see [`Policy::stopped_by_person`]).
#[must_use]
pub fn settle(policy: &Policy, sessions: impl IntoIterator<Item = SessionStateKind>) -> Option<TaskState> {
    let (mut landable, mut cancelled) = (false, false);
    for session in sessions {
        match session {
            SessionStateKind::Queued
            | SessionStateKind::Running
            | SessionStateKind::Claimed
            | SessionStateKind::Verifying
            | SessionStateKind::Saving => return None,
            SessionStateKind::Verified => landable = true,
            // Without a verify command nothing better than a claim exists.
            SessionStateKind::Unverified => landable |= policy.verify.verify.is_none(),
            // Nobody stopped the sessions above the end of a ladder.
            SessionStateKind::Cancelled => cancelled |= policy.course != Course::Ladder,
            SessionStateKind::Failed | SessionStateKind::Rejected => {}
        }
    }
    Some(match (landable, cancelled) {
        (true, _) => TaskState::Succeeded,
        (false, true) => TaskState::Cancelled,
        (false, false) => TaskState::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_told_verify_from_its_own_folder() {
        let folder = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        for (works, at, expected) in [
            ("", "", "make test"),
            ("packages/web", "packages/web", "make test"),
            ("packages/web", "", "cd '../..' && make test"),
            ("", "packages/it's", "cd 'packages/it'\\''s' && make test"),
            ("packages/web", "packages/api", "cd '../../packages/api' && make test"),
        ] {
            let mut spec = TaskSpec {
                project: ProjectId::default(),
                prompt: "x".to_owned(),
                prompt_blob: None,
                repository: Some(RepositoryRef {
                    name: "repo".parse().unwrap(),
                    base: "a".repeat(40).parse().unwrap(),
                    folder: folder(works),
                    names: None,
                }),
                context_base: None,
                assignments: Vec::new(),
                policy: Policy::default(),
                labels: Labels::new(),
                environment: TaskEnvironment::default(),
                fresh_baseline: false,
            };
            assert_eq!(spec.verify_in_session(), None);
            spec.policy.verify.verify = Some("make test".to_owned());
            spec.policy.verify.verify_folder = folder(at);
            assert_eq!(spec.verify_in_session().as_deref(), Some(expected));
            let named: Vec<_> = spec.folders().map(|(_, folder)| folder.as_str()).collect();
            let there: Vec<_> = [works, at].into_iter().filter(|folder| !folder.is_empty()).collect();
            assert_eq!(named, there);
        }
    }

    #[test]
    fn settles_when_every_session_has_ended() {
        use SessionStateKind as S;
        let checked = Policy {
            verify: VerifyPolicy {
                verify: Some("true".to_owned()),
                ..VerifyPolicy::default()
            },
            ..Policy::default()
        };
        let unchecked = Policy::default();
        let ladder = Policy {
            course: Course::Ladder,
            ..checked.clone()
        };
        let mut stopped = ladder.clone();
        stopped.stopped_by_person();
        let cases: [(&Policy, &[SessionStateKind], Option<TaskState>); 18] = [
            (&ladder, &[S::Failed, S::Cancelled], Some(TaskState::Failed)),
            (
                &ladder,
                &[S::Rejected, S::Unverified, S::Cancelled],
                Some(TaskState::Failed),
            ),
            (&ladder, &[S::Rejected, S::Cancelled], Some(TaskState::Failed)),
            (&stopped, &[S::Rejected, S::Cancelled], Some(TaskState::Cancelled)),
            (&stopped, &[S::Failed, S::Cancelled], Some(TaskState::Cancelled)),
            (&stopped, &[S::Unverified, S::Cancelled], Some(TaskState::Cancelled)),
            (&stopped, &[S::Verified, S::Cancelled], Some(TaskState::Succeeded)),
            (
                &ladder,
                &[S::Rejected, S::Verified, S::Cancelled],
                Some(TaskState::Succeeded),
            ),
            (&checked, &[S::Verified, S::Saving], None),
            (&checked, &[S::Verified, S::Running], None),
            (&checked, &[S::Queued], None),
            (&checked, &[S::Failed, S::Claimed], None),
            (&checked, &[S::Verified, S::Failed], Some(TaskState::Succeeded)),
            (&checked, &[S::Verified, S::Cancelled], Some(TaskState::Succeeded)),
            (&checked, &[S::Unverified, S::Rejected], Some(TaskState::Failed)),
            (&unchecked, &[S::Unverified, S::Failed], Some(TaskState::Succeeded)),
            (&checked, &[S::Cancelled, S::Failed], Some(TaskState::Cancelled)),
            (&checked, &[S::Rejected], Some(TaskState::Failed)),
        ];
        for (policy, sessions, expected) in cases {
            assert_eq!(settle(policy, sessions.iter().copied()), expected, "{sessions:?}");
        }
    }
}
