//! The result of a session on this machine: which one, and its commits in a bare
//! repository of Kage's own, fetched from the coordinator over git.

use anyhow::Context as _;
use kage_agent::trust::git_auth;
use kage_core::id::{Oid, ProjectId, RepositoryName};
use kage_git::Mirror;
use kage_proto::blob;
use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
use crate::state::StateDir;
use crate::view;

/// A result, ready to be looked at or landed.
#[derive(Debug)]
pub struct FetchedResult {
    /// Holds both commits.
    pub mirror: Mirror,
    /// What the session started from.
    pub base: Oid,
    /// What it wants to land; its parent is the base.
    pub commit: Oid,
    /// The session.
    pub session: v1::Session,
}

/// Chooses the session asked for, or the winner.
///
/// # Errors
/// When there is no such session, or no winner.
pub fn choose(report: &v1::Report, asked: Option<&str>) -> anyhow::Result<v1::Session> {
    let sessions = || report.rows.iter().filter_map(|row| row.session.as_ref());
    if let Some(name) = asked {
        return sessions().find(|s| s.name == name).cloned().ok_or_else(|| {
            let names: Vec<_> = sessions().map(|s| s.name.as_str()).collect();
            Refusal::not_found(format!("the task has no session {name:?}; it has {}", names.join(", "))).into()
        });
    }
    sessions()
        .find(|s| !report.winner.is_empty() && s.name == report.winner)
        .cloned()
        .ok_or_else(|| {
            Refusal::not_found(
                "no session of this task has a result that may be landed; `kage compare` says why, and --session NAME picks one anyway",
            )
            .into()
        })
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
    })
}
