//! A session's result on this machine: chooses it, and fetches its commits from the coordinator
//! over git into a bare repository of Kage's.

use std::path::PathBuf;

use anyhow::Context as _;
use kage_agent::identity::trust::git_auth;
use kage_core::id::{Oid, ProjectId, RepositoryName};
use kage_git::Mirror;
use kage_proto::blob;
use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
use crate::landed_settings::{self, SettingsOf};
use crate::output::note;
use crate::state::StateDir;
use crate::view;

/// A result, ready to be looked at or landed.
#[derive(Debug)]
pub struct FetchedResult {
    /// Holds both commits.
    pub mirror: Mirror,
    /// The commit that the session started from.
    pub base: Oid,
    /// The result's commit; its parent is the base.
    pub commit: Oid,
    pub session: v1::Session,
    pub task: String,
    /// Flags without which it could not be asked for again.
    pub flags: Vec<&'static str>,
    /// The same, of `kage merge` alone.
    pub merge_flags: Vec<&'static str>,
    /// The only paths of it that are applied, from the repository's top; none: all.
    pub only: Vec<PathBuf>,
    /// It is the way back: base and result are exchanged.
    pub is_undo: bool,
}

impl FetchedResult {
    /// The way back from the result to what the session started from.
    #[must_use]
    pub fn undone(mut self) -> Self {
        std::mem::swap(&mut self.base, &mut self.commit);
        self.is_undo = true;
        self.flags.push("--undo");
        self
    }
}

/// Chooses the requested session, or the winner. If the risk is accepted, also the first session
/// that does not win because of its risk. `command` lands the result; `diff` only shows it.
///
/// # Errors
/// When there is no such session, or no winner.
pub fn choose(
    report: &v1::Report,
    asked: Option<&str>,
    accept_risk: bool,
    command: &str,
) -> anyhow::Result<v1::Session> {
    let sessions = || report.rows.iter().filter_map(|row| row.session.as_ref());
    if let Some(name) = asked {
        return Ok(named(report, name)?);
    }
    let best = report.best.clone().unwrap_or_default();
    let name = match best.session.as_str() {
        "" if accept_risk => best.candidate.as_str(),
        winner => winner,
    };
    let found = sessions().find(|s| !name.is_empty() && s.name == name).cloned();
    found.ok_or_else(|| refused(report, &best, command).into())
}

/// The session of this name.
///
/// # Errors
/// When the task has no such session, with the names that it has.
pub fn named(report: &v1::Report, name: &str) -> Result<v1::Session, Refusal> {
    let sessions = || report.rows.iter().filter_map(|row| row.session.as_ref());
    sessions().find(|s| s.name == name).cloned().ok_or_else(|| {
        let names: Vec<_> = sessions().map(|s| s.name.as_str()).collect();
        Refusal::not_found(format!("the task has no session {name:?}; it has {}", names.join(", ")))
    })
}

fn refused(report: &v1::Report, best: &v1::Best, command: &str) -> Refusal {
    if best.reason() == v1::BestReason::HighRisk {
        return Refusal::usage(risky(report, best, command));
    }
    Refusal::not_found(
        "no session of this task has a result that may be landed; `kage compare` shows why, and --session NAME selects one anyway",
    )
}

/// Why no session wins although there are results, and the commands that continue from there.
/// `command` is the one that lands a result.
#[must_use]
pub fn risky(report: &v1::Report, best: &v1::Best, command: &str) -> String {
    let task = view::short_id(&report.task_id);
    let candidate = view::printable(&best.candidate);
    let taking = match command {
        "diff" => String::new(),
        _ => format!(
            "; `kage {command} {task} --session {candidate}` lands it anyway, as does `kage {command} {task} \
             --accept-risk`"
        ),
    };
    let message = view::one_line(&best.message, 1000);
    format!("{message}; `kage diff {task} --session {candidate}` shows it{taking}")
}

/// The parts of a result that verify did not see; empty if there are none.
#[must_use]
pub fn unseen(session: &v1::Session) -> Vec<String> {
    let restored = session.verdict.as_ref().map_or(&[][..], |verdict| &verdict.restored);
    let changed = session.result.as_ref().map_or(&[][..], |result| &result.paths);
    let both = changed.iter().filter(|path| restored.contains(path));
    both.map(|path| view::printable(path)).collect()
}

/// Reports the unchecked parts of a landed result, or of one that would be landed.
pub fn tell_unseen(session: &v1::Session) {
    let unseen = unseen(session);
    if !unseen.is_empty() {
        note(&format!(
            "verify ran with the base's version of these, so nothing checked how they land: {}",
            unseen.join(", ")
        ));
    }
}

/// Reports that a landed result, or one that would be landed, is unfinished.
pub fn tell_unfinished(session: &v1::Session) {
    if let Some(why) = unfinished(session) {
        note(&format!(
            "the result of {} is unfinished: {why}",
            view::printable(&session.name)
        ));
    }
}

/// Why a session's result is unfinished, and what that means; `None` when it is not.
#[must_use]
pub fn unfinished(session: &v1::Session) -> Option<String> {
    let why = session.is_unfinished.then_some(session.failure.as_ref())?;
    let ended = why.map_or_else(
        || "was cancelled".to_owned(),
        |failure| format!("failed ({})", view::one_line(&failure.message, 200)),
    );
    let checked = match session.verdict.as_ref() {
        None => "nothing verified them".to_owned(),
        Some(verdict) => view::one_line(&verdict.message, 200),
    };
    Some(format!(
        "the session {ended}; these are the files of checkpoint {}, and {checked}",
        session.head
    ))
}

/// Fetches a session's result.
///
/// # Errors
/// When it has no result, or the coordinator cannot be reached.
pub async fn fetch(
    access: &Access,
    state: &StateDir,
    task: &v1::Task,
    session: v1::Session,
) -> anyhow::Result<FetchedResult> {
    let Some(result) = &session.result else {
        let state = view::state_of(&session);
        return Err(Refusal::not_found(format!("session {} has no result: it is {state}", session.name)).into());
    };
    let spec = task
        .spec
        .as_ref()
        .context("the coordinator sent a task without a spec")?;
    let repository = spec
        .repository
        .as_ref()
        .ok_or_else(|| Refusal::not_found("the task has no repository"))?;
    let project: ProjectId = spec.project.parse()?;
    let name: RepositoryName = repository.name.parse()?;
    let base: Oid = repository.base_commit.parse()?;
    let commit: Oid = result.commit.parse()?;
    let path = state.results().join(project.as_str()).join(format!("{name}.git"));
    let mirror = Mirror::open_or_init(path).await?;
    if !mirror.has_commit(&commit).await? {
        let url = format!("{}{}", access.url, blob::repository_path(&project, &name));
        let base_ref = format!("refs/kage/bases/{base}");
        let result_ref = format!("refs/kage/results/{}", session.id);
        let refspecs = [format!("+{base_ref}:{base_ref}"), format!("+{result_ref}:{result_ref}")];
        mirror
            .fetch(
                &url,
                &git_auth(&access.credentials),
                &refspecs.each_ref().map(String::as_str),
            )
            .await
            .context("cannot fetch the result from the coordinator")?;
    }
    let of = SettingsOf {
        task: &task.id,
        session: &session.name,
    };
    landed_settings::remember(state, mirror.path(), &base, &commit, of)
        .await
        .context("cannot remember which settings the result changes")?;
    Ok(FetchedResult {
        mirror,
        base,
        commit,
        session,
        task: task.id.clone(),
        flags: Vec::new(),
        merge_flags: Vec::new(),
        only: Vec::new(),
        is_undo: false,
    })
}
