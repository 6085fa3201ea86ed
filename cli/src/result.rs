//! The result of a session on this machine: which one, and its commits in a bare
//! repository of Kage's own, fetched from the coordinator over git.

use anyhow::Context as _;
use kage_agent::identity::trust::git_auth;
use kage_core::id::{Oid, ProjectId, RepositoryName};
use kage_git::Mirror;
use kage_proto::blob;
use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
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
    /// What it wants to land; its parent is the base.
    pub commit: Oid,
    pub session: v1::Session,
    pub task: String,
    /// Flags without which it could not be asked for again.
    pub flags: Vec<&'static str>,
}

/// Chooses the session asked for, or the winner; where the risk is accepted, also the first
/// that does not win because of it. `command` takes the result; `diff` only shows it.
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
        return sessions().find(|s| s.name == name).cloned().ok_or_else(|| {
            let names: Vec<_> = sessions().map(|s| s.name.as_str()).collect();
            Refusal::not_found(format!("the task has no session {name:?}; it has {}", names.join(", "))).into()
        });
    }
    let best = report.best.clone().unwrap_or_default();
    let name = match best.session.as_str() {
        "" if accept_risk => best.candidate.as_str(),
        winner => winner,
    };
    let found = sessions().find(|s| !name.is_empty() && s.name == name).cloned();
    found.ok_or_else(|| refused(report, &best, command).into())
}

fn refused(report: &v1::Report, best: &v1::Best, command: &str) -> Refusal {
    if best.reason() == v1::BestReason::HighRisk {
        return Refusal::usage(risky(report, best, command));
    }
    Refusal::not_found(
        "no session of this task has a result that may be landed; `kage compare` shows why, and --session NAME selects one anyway",
    )
}

/// Why nobody wins although there are results, and which commands go on from there. `command` is
/// the one that takes a result.
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

/// What a result brings along that verify did not see; empty when there is nothing.
#[must_use]
pub fn unseen(session: &v1::Session) -> Vec<String> {
    let restored = session.verdict.as_ref().map_or(&[][..], |verdict| &verdict.restored);
    let changed = session.result.as_ref().map_or(&[][..], |result| &result.paths);
    let both = changed.iter().filter(|path| restored.contains(path));
    both.map(|path| view::printable(path)).collect()
}

/// Says what a landed result, or one that would be, brings along unchecked.
pub fn tell_unseen(session: &v1::Session) {
    let unseen = unseen(session);
    if !unseen.is_empty() {
        note(&format!(
            "verify ran with the base's version of these, so nothing checked how they land: {}",
            unseen.join(", ")
        ));
    }
}

/// Fetches what a session wants to land.
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
        let state = view::session_state(session.state());
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
    Ok(FetchedResult {
        mirror,
        base,
        commit,
        session,
        task: task.id.clone(),
        flags: Vec::new(),
    })
}
