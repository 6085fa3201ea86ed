//! The messages between agents and coordinator: an agent's identity, an attempt's work, and the key
//! that proves authority over an attempt. The domain types are defined here, because only the two
//! ends of the control session use them.

use std::time::Duration;

use kage_core::access::{Capabilities, Capability};
use kage_core::checkpoint::{Resume, Resumes};
use kage_core::contain::{Containment, Tier};
use kage_core::fleet::{AdapterAccess, AdapterInfo};
use kage_core::folder::Folder;
use kage_core::id::{
    AdapterName, AgentId, AttemptId, AttemptToken, BootId, Digest, Oid, ProjectId, SessionId, SessionName, TaskId,
};
use kage_core::login::LoginState;
use kage_core::task::{Labels, Permissions, RepositoryRef, ResultRules, TaskEnvironment, VerifyPolicy};

use super::contain::{above_lowest, demanded};
use super::task::permissions;
use super::time::{duration, span, stamp, time};
use super::{InvalidField, non_empty, parse, parse_optional, required};
use crate::v1;
use crate::v1::adapter_access::By;
use crate::v1::work::Kind;

/// The most adapters of an agent.
const MOST_ADAPTERS: usize = 256;
/// The most labels of an agent, and the most bytes of a key or value of one.
const MOST_LABELS: usize = 100;
const LONGEST_LABEL: usize = 256;
/// The most bytes kept of what a program says of its version, and of why an adapter cannot be used.
const LONGEST_VERSION: usize = 1000;
const LONGEST_REASON: usize = 2000;

/// The beginning of a text, up to so many bytes.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// Names an attempt and proves the right to speak for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// Which attempt.
    pub attempt: AttemptId,
    /// The proof.
    pub token: AttemptToken,
}

impl From<AttemptKey> for v1::AttemptKey {
    fn from(key: AttemptKey) -> Self {
        Self {
            attempt_id: key.attempt.to_string(),
            token: key.token.into(),
        }
    }
}

impl TryFrom<v1::AttemptKey> for AttemptKey {
    type Error = InvalidField;

    fn try_from(key: v1::AttemptKey) -> Result<Self, InvalidField> {
        Ok(Self {
            attempt: parse("attempt_id", &key.attempt_id)?,
            token: parse("token", &key.token)?,
        })
    }
}

impl From<AdapterInfo> for v1::AdapterInfo {
    fn from(adapter: AdapterInfo) -> Self {
        Self {
            name: adapter.name.into(),
            version: adapter.version,
            unavailable: adapter.unavailable.unwrap_or_default(),
            resumes: v1::Resumes::from(adapter.resumes).into(),
            access: adapter.access.map(Into::into),
            slots: adapter.slots,
            busy: 0,
            hears: adapter.hears,
        }
    }
}

impl TryFrom<v1::AdapterInfo> for AdapterInfo {
    type Error = InvalidField;

    fn try_from(adapter: v1::AdapterInfo) -> Result<Self, InvalidField> {
        Ok(Self {
            name: parse("name", &adapter.name)?,
            version: cut(adapter.version, LONGEST_VERSION),
            unavailable: non_empty(cut(adapter.unavailable, LONGEST_REASON)),
            resumes: resumes(adapter.resumes),
            access: adapter.access.and_then(access),
            slots: adapter.slots,
            hears: adapter.hears,
        })
    }
}

impl From<AdapterAccess> for v1::AdapterAccess {
    fn from(access: AdapterAccess) -> Self {
        let by = match access {
            AdapterAccess::Variable { name } => By::Variable(name),
            AdapterAccess::Login(login) => By::Login(v1::AdapterLogin {
                account: login.account.unwrap_or_default(),
                until: login.until.map(stamp),
                renewable: login.renewable,
                exclusive: login.exclusive,
            }),
        };
        Self { by: Some(by) }
    }
}

/// A way that this build does not know says nothing.
#[must_use]
pub fn access(access: v1::AdapterAccess) -> Option<AdapterAccess> {
    Some(match access.by? {
        By::Variable(name) => AdapterAccess::Variable { name },
        By::Login(login) => AdapterAccess::Login(LoginState {
            account: non_empty(login.account),
            until: login.until.map(time),
            renewable: login.renewable,
            exclusive: login.exclusive,
        }),
    })
}

impl From<Resumes> for v1::Resumes {
    fn from(resumes: Resumes) -> Self {
        match resumes {
            Resumes::None => Self::Unspecified,
            Resumes::Latest => Self::Latest,
            Resumes::Position => Self::Position,
        }
    }
}

/// An unknown value promises nothing.
fn resumes(number: i32) -> Resumes {
    match v1::Resumes::try_from(number) {
        Ok(v1::Resumes::Unspecified) | Err(_) => Resumes::None,
        Ok(v1::Resumes::Latest) => Resumes::Latest,
        Ok(v1::Resumes::Position) => Resumes::Position,
    }
}

impl From<Capability> for v1::Capability {
    fn from(capability: Capability) -> Self {
        match capability {
            Capability::Run => Self::Run,
            Capability::Verify => Self::Verify,
        }
    }
}

/// The numbers of an agent's capabilities.
#[must_use]
pub fn can(capabilities: Capabilities) -> Vec<i32> {
    let all = capabilities.iter().map(|one| v1::Capability::from(one).into());
    all.collect()
}

/// Capabilities by their numbers.
///
/// # Errors
/// When one is none that this build knows: what it would allow is not known either.
pub fn capabilities(field: &'static str, numbers: &[i32]) -> Result<Capabilities, InvalidField> {
    let known = numbers.iter().map(|number| match v1::Capability::try_from(*number) {
        Ok(v1::Capability::Run) => Ok(Capability::Run),
        Ok(v1::Capability::Verify) => Ok(Capability::Verify),
        Ok(v1::Capability::Unspecified) | Err(_) => Err(InvalidField::new(field, "must be run or verify")),
    });
    known.collect()
}

/// The first message of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Which agent; the same after a restart.
    pub agent: AgentId,
    /// Which start of its daemon.
    pub boot: BootId,
    /// The oldest and newest protocol it speaks.
    pub protocols: std::ops::RangeInclusive<u32>,
    /// The name that people see.
    pub name: String,
    /// How many attempts it runs at once.
    pub slots: u32,
    /// The labels that it claims for its machine.
    pub labels: Labels,
    /// Its adapters, and whether each can be used.
    pub adapters: Vec<AdapterInfo>,
    /// Attempts that this boot still runs or has unacknowledged events of.
    pub running: Vec<AttemptKey>,
    /// Its process id.
    pub pid: u32,
    /// Its build.
    pub version: String,
    /// True when it answers pings.
    pub answers_pings: bool,
    /// What its machine brings to a check of a base, if it says so.
    pub machine: Option<Digest>,
    /// How well it keeps programs apart from its machine.
    pub contained: Containment,
    /// The newest version of context deltas that it reads.
    pub context_deltas: u32,
}

impl From<Hello> for v1::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            agent_id: hello.agent.to_string(),
            boot_id: hello.boot.to_string(),
            protocol_min: *hello.protocols.start(),
            protocol_max: *hello.protocols.end(),
            name: hello.name,
            slots: hello.slots,
            labels: hello.labels.into_iter().collect(),
            adapters: hello.adapters.into_iter().map(Into::into).collect(),
            running: hello.running.into_iter().map(Into::into).collect(),
            pid: hello.pid,
            version: hello.version,
            answers_pings: hello.answers_pings,
            machine: hello.machine.map(Into::into).unwrap_or_default(),
            contained: Some(hello.contained.into()),
            context_deltas: hello.context_deltas,
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = InvalidField;

    fn try_from(hello: v1::Hello) -> Result<Self, InvalidField> {
        if hello.name.is_empty() || hello.name.len() > 100 {
            return Err(InvalidField::new("name", "must have 1 to 100 bytes"));
        }
        if hello.adapters.len() > MOST_ADAPTERS {
            let problem = format_args!("are more than {MOST_ADAPTERS}");
            return Err(InvalidField::new("adapters", problem));
        }
        let long = |(key, value): (&String, &String)| key.len() > LONGEST_LABEL || value.len() > LONGEST_LABEL;
        if hello.labels.len() > MOST_LABELS || hello.labels.iter().any(long) {
            let problem = format_args!("must be at most {MOST_LABELS}, with keys and values of {LONGEST_LABEL} bytes");
            return Err(InvalidField::new("labels", problem));
        }
        if hello.protocol_min > hello.protocol_max {
            return Err(InvalidField::new("protocol_min", "is larger than protocol_max"));
        }
        Ok(Self {
            agent: parse("agent_id", &hello.agent_id)?,
            boot: parse("boot_id", &hello.boot_id)?,
            protocols: hello.protocol_min..=hello.protocol_max,
            name: hello.name,
            slots: hello.slots,
            labels: hello.labels.into_iter().collect(),
            adapters: hello
                .adapters
                .into_iter()
                .enumerate()
                .map(|(i, a)| {
                    a.try_into()
                        .map_err(|e: InvalidField| e.within(format_args!("adapters[{i}]")))
                })
                .collect::<Result<_, _>>()?,
            running: attempt_keys(hello.running)?,
            pid: hello.pid,
            version: cut(hello.version, LONGEST_VERSION),
            answers_pings: hello.answers_pings,
            machine: parse_optional("machine", &hello.machine)?,
            contained: hello.contained.map(Into::into).unwrap_or_default(),
            context_deltas: hello.context_deltas.max(1),
        })
    }
}

/// Decodes the `running` list of Hello and Heartbeat.
///
/// # Errors
/// When one of the keys is malformed.
pub fn attempt_keys(keys: Vec<v1::AttemptKey>) -> Result<Vec<AttemptKey>, InvalidField> {
    keys.into_iter()
        .enumerate()
        .map(|(i, key)| {
            key.try_into()
                .map_err(|e: InvalidField| e.within(format_args!("running[{i}]")))
        })
        .collect()
}

/// Where the text of a prompt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptText {
    /// In the message.
    Inline(String),
    /// On the blob plane, because it is long.
    Blob(Digest),
}

/// The work of a session attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionWork {
    /// The session's name.
    pub name: SessionName,
    /// The adapter.
    pub adapter: AdapterName,
    /// `None` = the adapter's default.
    pub model: Option<String>,
    /// The prompt.
    pub prompt: PromptText,
    /// Digest of the base context.
    pub context_base: Option<Digest>,
    /// Merge patch over it.
    pub context_delta: Option<String>,
    /// Members of the base that some session overrides, as JSON pointers.
    pub overridden: Vec<String>,
    /// Wall-clock limit.
    pub timeout: Duration,
    /// Limit without any output.
    pub idle_timeout: Duration,
    /// Where another attempt stopped; `None` = it begins at the base.
    pub resume: Option<Box<Resume>>,
    /// Prepares a new worktree before the adapter starts.
    pub setup: Option<String>,
    /// The folder of the worktree in which that runs; `None`: its top.
    pub setup_folder: Option<Folder>,
    /// What people said since, without a [`resume`](Self::resume); empty: nothing.
    pub instruction: String,
    /// What of the worktree becomes a part of checkpoints and the result.
    pub results: ResultRules,
    /// What its program is answered that asks for permission; `None`: as its adapter says.
    pub permissions: Option<Permissions>,
    /// The digest of the worktree's `.mcp.json` whose servers it gets.
    pub mcp: Option<Digest>,
}

/// The work of a verify attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyWork {
    /// The commit to check.
    pub commit: Oid,
    /// How.
    pub policy: VerifyPolicy,
    /// Words for files that are left as they are although a command names them.
    pub left_alone: Vec<String>,
}

/// The kinds of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkKind {
    /// An adapter works on the task.
    Session(SessionWork),
    /// A result is checked.
    Verify(VerifyWork),
}

/// The work of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The task.
    pub task: TaskId,
    /// Its session.
    pub session: SessionId,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// The scope of repository, contexts and blobs.
    pub project: ProjectId,
    /// `None` = no workspace.
    pub repository: Option<RepositoryRef>,
    /// What the task's programs get besides what every program gets.
    pub environment: TaskEnvironment,
    /// The lowest tier of containment in which it may be done.
    pub contain: Tier,
    /// The work itself.
    pub kind: WorkKind,
}

impl From<SessionWork> for v1::SessionWork {
    fn from(work: SessionWork) -> Self {
        let (prompt, prompt_digest) = match work.prompt {
            PromptText::Inline(text) => (text, String::new()),
            PromptText::Blob(digest) => (String::new(), digest.into()),
        };
        Self {
            name: work.name.into(),
            adapter: work.adapter.into(),
            model: work.model.unwrap_or_default(),
            prompt,
            prompt_digest,
            context_base: work.context_base.map(Into::into).unwrap_or_default(),
            context_delta: work.context_delta.unwrap_or_default(),
            overridden: work.overridden,
            timeout: Some(span(work.timeout)),
            idle_timeout: Some(span(work.idle_timeout)),
            resume: work.resume.map(|resume| Box::new((*resume).into())),
            setup: work.setup.unwrap_or_default(),
            setup_folder: work.setup_folder.map(Into::into).unwrap_or_default(),
            instruction: work.instruction,
            results: (!work.results.is_default()).then(|| work.results.into()),
            permissions: work.permissions.map(Into::into),
            mcp_digest: work.mcp.map(Into::into).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::SessionWork> for SessionWork {
    type Error = InvalidField;

    fn try_from(work: v1::SessionWork) -> Result<Self, InvalidField> {
        Ok(Self {
            name: parse("name", &work.name)?,
            adapter: parse("adapter", &work.adapter)?,
            model: non_empty(work.model),
            prompt: match parse_optional("prompt_digest", &work.prompt_digest)? {
                Some(digest) => PromptText::Blob(digest),
                None => PromptText::Inline(work.prompt),
            },
            context_base: parse_optional("context_base", &work.context_base)?,
            context_delta: non_empty(work.context_delta),
            overridden: work.overridden,
            timeout: duration(work.timeout.unwrap_or_default()),
            idle_timeout: duration(work.idle_timeout.unwrap_or_default()),
            resume: work
                .resume
                .map(|resume| Resume::try_from(*resume))
                .transpose()
                .map_err(|e| e.within("resume"))?
                .map(Box::new),
            setup: non_empty(work.setup),
            setup_folder: parse_optional("setup_folder", &work.setup_folder)?,
            instruction: work.instruction,
            results: work.results.unwrap_or_default().into(),
            permissions: work
                .permissions
                .map(permissions)
                .transpose()
                .map_err(|e| e.within("permissions"))?,
            mcp: parse_optional("mcp_digest", &work.mcp_digest)?,
        })
    }
}

impl From<VerifyWork> for v1::VerifyWork {
    fn from(work: VerifyWork) -> Self {
        Self {
            commit: work.commit.into(),
            policy: Some(work.policy.into()),
            left_alone: work.left_alone,
        }
    }
}

impl TryFrom<v1::VerifyWork> for VerifyWork {
    type Error = InvalidField;

    fn try_from(work: v1::VerifyWork) -> Result<Self, InvalidField> {
        Ok(Self {
            commit: parse("commit", &work.commit)?,
            policy: required("policy", work.policy)?
                .try_into()
                .map_err(|e: InvalidField| e.within("policy"))?,
            left_alone: work.left_alone,
        })
    }
}

impl From<Work> for v1::Work {
    fn from(work: Work) -> Self {
        Self {
            task_id: work.task.to_string(),
            session_id: work.session.to_string(),
            attempt: work.attempt,
            project: work.project.into(),
            repository: work.repository.map(Into::into),
            environment: super::task::environment(work.environment),
            contain: above_lowest(work.contain),
            kind: Some(match work.kind {
                WorkKind::Session(session) => Kind::Session(session.into()),
                WorkKind::Verify(verify) => Kind::Verify(verify.into()),
            }),
        }
    }
}

impl TryFrom<v1::Work> for Work {
    type Error = InvalidField;

    /// Fails with field `kind` when the kind of work is newer than this build.
    fn try_from(work: v1::Work) -> Result<Self, InvalidField> {
        Ok(Self {
            task: parse("task_id", &work.task_id)?,
            session: parse("session_id", &work.session_id)?,
            attempt: work.attempt,
            project: super::task::project("project", &work.project)?,
            repository: work
                .repository
                .map(RepositoryRef::try_from)
                .transpose()
                .map_err(|e| e.within("repository"))?,
            environment: super::task::read_environment(work.environment.unwrap_or_default())
                .map_err(|e| e.within("environment"))?,
            contain: demanded("contain", work.contain)?,
            kind: match required("kind", work.kind)? {
                Kind::Session(session) => {
                    WorkKind::Session(session.try_into().map_err(|e: InvalidField| e.within("session"))?)
                }
                Kind::Verify(verify) => {
                    WorkKind::Verify(verify.try_into().map_err(|e: InvalidField| e.within("verify"))?)
                }
            },
        })
    }
}

#[cfg(test)]
mod tests;
