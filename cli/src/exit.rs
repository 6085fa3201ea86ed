//! Exit codes, and the one place that turns errors into text for people and JSON for programs.

use std::process::ExitCode;

use kage_agent::adapters::LoadError;
use kage_agent::identity::enrolment::JoinError;
use kage_coordinator::InvalidConfig;
use kage_coordinator::config::UnusablePrices;
use kage_git::GitError;
use kage_git::snapshot::SnapshotError;
use kage_git::user_repo::DiscoverError;
use kage_proto::client::ConnectError;
use kage_proto::convert::InvalidField;
use kage_proto::status::ApiError;
use serde::Serialize;

use crate::assignments::{InvalidLabel, InvalidWorker};
use crate::config_file::ConfigFileError;
use crate::connect::AccessError;
use crate::output::{Output, note};
use crate::settings::SettingsError;
use crate::settings::coordinators::LoginsError;

/// How the process ends. The numbers are public: scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The task ended without a result to land, or only with results of high risk.
    TaskFailed = 1,
    /// Wrong usage, or impossible in the present state.
    Usage = 2,
    /// A time limit passed.
    Timeout = 3,
    /// The task, session, agent or repository does not exist.
    NotFound = 4,
    /// Not allowed.
    Denied = 5,
    /// A budget is used up, and without a result to land.
    Budget = 6,
    /// Everything left of the task waits until a used-up limit is reset.
    Held = 7,
    /// The coordinator cannot be reached.
    Unavailable = 8,
    /// A bug in Kage.
    Internal = 70,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A refusal of a command, with the reason and a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub exit: Exit,
    /// The reason, and what to do.
    pub message: String,
    /// The parts of the reason, for programs.
    pub details: Vec<Detail>,
}

/// One of several things that are wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Detail {
    /// A field of a message of the API.
    Field(InvalidField),
    /// A path of the person's repository that blocks a landing.
    Path {
        /// Within the repository; what of it is not UTF-8 is U+FFFD.
        path: String,
        /// Why it does.
        problem: &'static str,
    },
}

impl Refusal {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// A refusal because of wrong usage or the present state.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }
}

/// Why there is no result. Programs read it: `docs/json.md`.
#[derive(Debug, Serialize)]
struct ErrorJson {
    kind: Exit,
    code: u8,
    /// The ErrorInfo reason of the coordinator's refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<Detail>,
}

impl ErrorJson {
    fn of(error: &anyhow::Error, exit: Exit, hint: Option<&'static str>) -> Self {
        let api = error.chain().find_map(|cause| cause.downcast_ref::<ApiError>());
        let refusal = error.chain().find_map(|cause| cause.downcast_ref::<Refusal>());
        let details = match (refusal, api) {
            (Some(refusal), _) => refusal.details.clone(),
            (None, Some(ApiError::InvalidArgument { violations })) => {
                violations.iter().cloned().map(Detail::Field).collect()
            }
            (None, _) => Vec::new(),
        };
        Self {
            kind: exit,
            code: exit as u8,
            reason: api.map(ApiError::reason),
            message: format!("{error:#}"),
            hint,
            details,
        }
    }
}

/// Prints the error for people, and for the program that asked for JSON; returns the exit code.
pub fn report(error: &anyhow::Error, out: &Output) -> Exit {
    // `kage ls | head` is not a failure.
    if is_closed_pipe(error) {
        return Exit::Done;
    }
    let (exit, hint) = classify(error);
    // For people in any case: who reads the JSON may not show it.
    note(&format!("error: {}", words(error, hint)));
    // When nobody reads the results, the words are left.
    drop(out.error(&ErrorJson::of(error, exit, hint)));
    exit
}

fn words(error: &anyhow::Error, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!("\nhint: {hint}"));
    format!("{error:#}{}", hint.unwrap_or_default())
}

/// The error in words, with what to do about it, and as the JSON of `docs/json.md`.
pub(crate) fn told(error: &anyhow::Error) -> (String, String) {
    let (exit, hint) = classify(error);
    let json = serde_json::to_string(&ErrorJson::of(error, exit, hint));
    // Neither maps nor numbers are in it that JSON could not have.
    (words(error, hint), json.unwrap_or_default())
}

/// What is wrong with a command line that cannot be parsed.
pub(crate) fn mistake(error: &clap::Error) -> Refusal {
    let text = error.render().to_string();
    let message = text.split("\n\nUsage:").next().unwrap_or_default().trim();
    Refusal::usage(message.strip_prefix("error: ").unwrap_or(message))
}

/// As [`report`], for a command line that cannot be parsed. Help and version, when asked for, are no errors.
pub fn mistyped(error: &clap::Error, out: &Output) -> Exit {
    if !error.use_stderr() {
        // As in `note`; all of it is Kage's own text.
        drop(error.print());
        return Exit::Done;
    }
    note(error.render().to_string().trim_end());
    drop(out.error(&ErrorJson::of(&mistake(error).into(), Exit::Usage, None)));
    Exit::Usage
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn classify(error: &anyhow::Error) -> (Exit, Option<&'static str>) {
    for cause in error.chain() {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return (refusal.exit, None);
        }
        if let Some(api) = cause.downcast_ref::<ApiError>() {
            return classify_api(api);
        }
        if let Some(access) = cause.downcast_ref::<AccessError>() {
            return classify_access(access);
        }
        if let Some(join) = cause.downcast_ref::<JoinError>()
            && let Some(exit) = classify_join(join)
        {
            return (exit, None);
        }
        if cause
            .downcast_ref::<GitError>()
            .is_some_and(GitError::suggests_damage_there)
        {
            let hint = "the coordinator's copy of this repository is damaged: restore the coordinator's data folder \
                        from a backup, or move repos/PROJECT/REPOSITORY in it away and run again, which sends the base \
                        anew (results that were in it are lost)";
            return (Exit::Unavailable, Some(hint));
        }
        if is_usage(cause) {
            return (Exit::Usage, None);
        }
    }
    (Exit::Internal, None)
}

/// `None`: the source has the advice.
const fn classify_join(error: &JoinError) -> Option<Exit> {
    match error {
        JoinError::Address { .. } | JoinError::State(_) | JoinError::Io { .. } => Some(Exit::Usage),
        JoinError::Unreachable { .. } | JoinError::Silent { .. } | JoinError::Connect(_) => Some(Exit::Unavailable),
        JoinError::OtherCa { .. } => Some(Exit::Denied),
        JoinError::Refused(_) => None,
        JoinError::Key(_) | JoinError::Answer(_) | JoinError::Interrupted => Some(Exit::Internal),
    }
}

fn is_usage(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<SettingsError>()
        || cause.is::<LoginsError>()
        || cause.is::<ConfigFileError>()
        || cause.is::<InvalidWorker>()
        || cause.is::<InvalidLabel>()
        || cause.is::<SnapshotError>()
        || cause.is::<DiscoverError>()
        || cause.is::<LoadError>()
        || cause.is::<InvalidConfig>()
        || cause.is::<UnusablePrices>()
        || cause.downcast_ref().is_some_and(kage_coordinator::RunError::is_usage)
        || cause
            .downcast_ref()
            .is_some_and(kage_coordinator::backup::BackupError::is_usage)
        || cause.downcast_ref().is_some_and(kage_agent::RunError::is_usage)
}

const fn classify_api(error: &ApiError) -> (Exit, Option<&'static str>) {
    match error {
        ApiError::InvalidArgument { .. }
        | ApiError::Conflict { .. }
        | ApiError::FailedPrecondition { .. }
        | ApiError::AgentIdInUse { .. } => (Exit::Usage, None),
        ApiError::NoAgent { .. } => (
            Exit::Usage,
            Some(
                "--wait-for-agent stores it anyway, for an agent that comes later; `kage agent ls` lists the \
                 fleet, `kage doctor` says what this machine lacks",
            ),
        ),
        ApiError::NotFound { .. } => (Exit::NotFound, Some("`kage ls` lists tasks, `kage agent ls` agents")),
        ApiError::Unauthenticated => (
            Exit::Denied,
            Some(
                "coordinator.token_file must hold a token of that coordinator: one of `kage token create`, or the \
                 `token` file of its data folder",
            ),
        ),
        ApiError::PermissionDenied { .. } | ApiError::JoinRefused(_) => (Exit::Denied, None),
        // The message says how much there may be, and when there is room again.
        ApiError::ResourceExhausted { .. } => (Exit::Unavailable, None),
        ApiError::Unavailable { .. } => (
            Exit::Unavailable,
            Some("stored data is safe; try again when the coordinator runs"),
        ),
        ApiError::Unimplemented { .. } | ApiError::OtherProtocol { .. } => (
            Exit::Unavailable,
            Some("the coordinator has another version than this program"),
        ),
        ApiError::Internal { .. } => (Exit::Internal, None),
    }
}

fn classify_access(error: &AccessError) -> (Exit, Option<&'static str>) {
    match error {
        // It refused its options or data, with the exit code of this program.
        AccessError::Died { status, .. } if status.code() == Some(Exit::Usage as i32) => (Exit::Usage, None),
        AccessError::NoTokenFile | AccessError::NoCaFile | AccessError::Read { .. } => (Exit::Usage, None),
        AccessError::Connect(
            ConnectError::Address { .. } | ConnectError::Plain { .. } | ConnectError::Token | ConnectError::Tls { .. },
        ) => (Exit::Usage, None),
        AccessError::OtherToken { .. } => (Exit::Denied, None),
        AccessError::Connect(ConnectError::Unreachable { .. })
        | AccessError::OtherVersion { .. }
        | AccessError::NoCoordinator { .. }
        | AccessError::Unused
        | AccessError::ServerDown { .. }
        | AccessError::Spawn(_)
        | AccessError::Silent { .. }
        | AccessError::Died { .. } => (Exit::Unavailable, None),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn json(error: &anyhow::Error) -> String {
        let (exit, hint) = classify(error);
        serde_json::to_string(&ErrorJson::of(error, exit, hint)).unwrap()
    }

    #[test]
    fn programs_read_the_name_of_the_code_and_everything_that_is_wrong() {
        let violations = vec![
            InvalidField::new("spec.prompt", "is empty"),
            InvalidField::new("spec.policy.max_attempts", "must be at most 100"),
        ];
        let refused = anyhow::Error::from(ApiError::InvalidArgument { violations }).context("the task");
        insta::assert_snapshot!(json(&refused), @r#"{"kind":"usage","code":2,"reason":"INVALID_ARGUMENT","message":"the task: spec.prompt: is empty; spec.policy.max_attempts: must be at most 100","details":[{"field":"spec.prompt","problem":"is empty"},{"field":"spec.policy.max_attempts","problem":"must be at most 100"}]}"#);
        let missing = ApiError::NotFound {
            what: "task 0123".into(),
        };
        insta::assert_snapshot!(json(&missing.into()), @r#"{"kind":"not_found","code":4,"reason":"NOT_FOUND","message":"task 0123 was not found","hint":"`kage ls` lists tasks, `kage agent ls` agents"}"#);
        let dirty = Refusal {
            details: vec![Detail::Path {
                path: "a.txt".into(),
                problem: "it has uncommitted changes",
            }],
            ..Refusal::usage("paths of the result have uncommitted changes")
        };
        insta::assert_snapshot!(json(&dirty.into()), @r#"{"kind":"usage","code":2,"message":"paths of the result have uncommitted changes","details":[{"path":"a.txt","problem":"it has uncommitted changes"}]}"#);
        insta::assert_snapshot!(json(&anyhow::anyhow!("a defect")), @r#"{"kind":"internal","code":70,"message":"a defect"}"#);
    }

    #[test]
    fn a_damaged_repository_of_the_coordinator_is_no_defect_and_says_what_to_do() {
        let failed = |stderr: &str| GitError::Failed {
            operation: "push",
            exit: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let classified = |stderr: &str| classify(&Err::<(), _>(failed(stderr)).context("the base").unwrap_err());
        let damaged = "remote: fatal: unresolved deltas left after unpacking\nerror: remote unpack failed";
        let (exit, hint) = classified(damaged);
        assert_eq!(exit, Exit::Unavailable);
        assert!(hint.is_some_and(|hint| hint.contains("repos/PROJECT/REPOSITORY")));
        assert_eq!(classified("fatal: something else").0, Exit::Internal);
    }
}
