//! Lands a fetched result, and reports it. `kage_git::landing` plans it; [`remedy`] explains
//! obstacles.

use std::pin::pin;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use kage_git::UserRepo;
use kage_git::landing::{
    self, ApplyPlan, Hook, Hooks, IntoPlan, LandedAs, LandingMessage, MergePlan, Onto, PlannedPath, Strategy,
};
use kage_proto::v1;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Refusal};
use crate::output::{Output, note};
use crate::result::{FetchedResult, unfinished};
use crate::view;

pub(crate) mod forge;
pub(crate) mod only;
pub(crate) mod remedy;
pub(crate) mod request;

use remedy::{Asked, Way, told};

/// As much of a prompt is in the message of a commit.
const PROMPT_LINES: usize = 40;
const PROMPT_LINE: usize = 500;

/// The landing that was done, or would be done.
#[derive(Debug, Serialize)]
struct LandingJson<'a> {
    task_id: &'a str,
    session: &'a str,
    commit: &'a str,
    /// True: what the session had done when it ended without a claim.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_unfinished: bool,
    /// False for a dry run.
    done: bool,
    /// The commit on the branch, if one was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    merge_commit: Option<&'a str>,
    #[serde(flatten)]
    more: &'a Landing,
    paths: Vec<PathJson>,
}

/// What is told of a landing besides its paths.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Landing {
    /// The branch that the commit is on, if it is not the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) branch: Option<String>,
    /// The address of the pull request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pull_request: Option<String>,
    /// The page on which a pull request is opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) open_at: Option<String>,
    /// The command that undoes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) undo: Option<String>,
    /// The person's hooks that did not run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hooks_not_run: Vec<&'static str>,
}

/// A path, in the two forms that messages of the API have.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct PathJson {
    path: String,
    display_path: String,
    action: &'static str,
}

impl PathJson {
    fn of(planned: &PlannedPath) -> Self {
        Self {
            path: BASE64.encode(planned.path.as_os_str().as_encoded_bytes()),
            display_path: planned.shown(),
            action: planned.landed_as.word(),
        }
    }
}

/// Puts a fetched result into the working tree, and reports it.
///
/// # Errors
/// When it contradicts the person's work; nothing was changed then.
pub async fn land(repository: &UserRepo, fetched: &FetchedResult) -> anyhow::Result<Vec<PlannedPath>> {
    let plan = plan(repository, fetched).await?;
    let paths = plan.paths().to_vec();
    let applied = to_the_end(plan.execute()).await?;
    told(repository, fetched, Asked::Apply, applied).await?;
    Ok(paths)
}

/// The command that takes an applied change out of the working tree again; `None` when nothing changed.
#[must_use]
pub fn undo_apply(repository: &UserRepo, fetched: &FetchedResult, paths: &[PlannedPath]) -> Option<String> {
    let changed = || paths.iter().filter(|it| it.landed_as != LandedAs::Unchanged);
    if changed().next().is_none() || fetched.is_undo {
        return None;
    }
    // What was there before stays there.
    let only = match changed().count() == paths.len() {
        true => fetched.only.clone(),
        false => changed().map(|it| it.path.clone()).collect(),
    };
    Some(Way::new(repository, fetched).undo(&only))
}

/// Says how a landing is undone.
pub fn tell_undo(undo: Option<&str>) {
    if let Some(undo) = undo {
        note(&format!("`{undo}` undoes it"));
    }
}

/// The hooks of the person for a commit: those that will run, or the names of those that will not, which
/// are told.
///
/// # Errors
/// When they are wanted and git fails.
pub(crate) async fn hooks(
    repository: &UserRepo,
    wanted: bool,
    push: bool,
) -> anyhow::Result<(Option<Hooks>, Vec<&'static str>)> {
    let found = match Hooks::find(repository).await {
        Ok(found) => found,
        Err(error) if wanted => return Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "git does not say where the hooks are");
            return Ok((None, Vec::new()));
        }
    };
    if wanted {
        return Ok((Some(found), Vec::new()));
    }
    let pushed = (push && found.has(Hook::PrePush)).then_some(Hook::PrePush);
    let left: Vec<_> = found.of_commit().into_iter().chain(pushed).map(Hook::name).collect();
    Ok((None, left))
}

/// Says which hooks did not run.
pub(crate) fn tell_hooks(left: &[&str]) {
    if !left.is_empty() {
        note(&format!(
            "your hooks were not run ({}); --hooks runs them",
            left.join(", ")
        ));
    }
}

/// Waits for a plan that is being executed: a Ctrl-C, a closed window or a shutdown of the machine
/// would leave the person's files half written. A second signal ends the program, except for a
/// closed window, which may send several.
///
/// # Errors
/// When it is interrupted twice. How the plan ended is in the value.
pub async fn to_the_end<T>(executing: impl Future<Output = T>) -> anyhow::Result<T> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminates = signal(SignalKind::terminate())?;
    // While this exists, the default action (to end) is off.
    let mut hangups = signal(SignalKind::hangup())?;
    let mut executing = pin!(executing);
    let mut asked = false;
    loop {
        tokio::select! {
            done = &mut executing => return Ok(done),
            _ = hangups.recv() => continue,
            _ = interrupts.recv() => {}
            _ = terminates.recv() => {}
        }
        if std::mem::replace(&mut asked, true) {
            break;
        }
        note("finishing the current step; a second Ctrl-C leaves it half done");
    }
    Err(Refusal::new(Exit::Interrupted, "interrupted; files may be half written").into())
}

/// Plans to put a fetched result into the working tree.
///
/// # Errors
/// When it contradicts the person's work.
pub async fn plan(repository: &UserRepo, fetched: &FetchedResult) -> anyhow::Result<ApplyPlan> {
    let (base, result) = (&fetched.base, &fetched.commit);
    let planned = landing::plan_apply_of(repository, &fetched.mirror, base, result, &fetched.only).await;
    told(repository, fetched, Asked::Apply, planned).await
}

/// Plans to put a fetched result onto the current branch.
///
/// # Errors
/// When it contradicts the person's work.
pub async fn plan_merge(
    repository: &UserRepo,
    fetched: &FetchedResult,
    strategy: Strategy,
    message: &LandingMessage,
) -> anyhow::Result<MergePlan> {
    let (base, result) = (&fetched.base, &fetched.commit);
    let planned = landing::plan_merge(repository, &fetched.mirror, base, result, strategy, message).await;
    told(repository, fetched, Asked::Merge(strategy), planned).await
}

/// Plans to put a fetched result onto a branch that is checked out nowhere.
///
/// # Errors
/// When it contradicts what is on the branch, there is no such branch, or files belong to it.
pub async fn plan_into(
    repository: &UserRepo,
    fetched: &FetchedResult,
    strategy: Strategy,
    message: &LandingMessage,
    onto: &Onto,
) -> anyhow::Result<IntoPlan> {
    let (base, result) = (&fetched.base, &fetched.commit);
    let planned = landing::plan_merge_into(repository, &fetched.mirror, base, result, strategy, message, onto).await;
    told(repository, fetched, Asked::Into(strategy, onto), planned).await
}

/// The message of a landing's commits: the task and the author.
#[must_use]
pub fn message(task: &v1::Task, fetched: &FetchedResult) -> LandingMessage {
    message_of(task, &fetched.session)
}

fn message_of(task: &v1::Task, session: &v1::Session) -> LandingMessage {
    let name = &session.name;
    let prompt = task.spec.as_ref().map_or("", |spec| spec.prompt.as_str());
    // git removes lines that begin with # from a message that a person commits.
    let asked = prompt.trim_start_matches(|c: char| c == '#' || c.is_whitespace());
    let subject = match view::one_line(asked, 65) {
        line if line.trim().is_empty() => format!("Result of {name}"),
        line => line.trim_end().to_owned(),
    };
    let mut body = "Asked for:\n\n".to_owned();
    for line in prompt.trim().lines().take(PROMPT_LINES) {
        body += format!("    {}\n", view::one_line(line, PROMPT_LINE)).trim_end();
        body.push('\n');
    }
    if let Some(why) = unfinished(session) {
        body += &format!("\nIt is unfinished: {why}.\n");
    }
    body += &format!("\nKage-Task: {}\nKage-Session: {name}\n", task.id);
    for model in models(session) {
        body += &format!("Kage-Model: {}\n", view::one_line(model, PROMPT_LINE));
    }
    LandingMessage {
        merge_subject: format!("Merge result of {name}: {}", view::one_line(&subject, 50)),
        subject,
        body,
    }
}

/// The models that answered; where nobody told, the one that was asked for.
fn models(session: &v1::Session) -> Vec<&str> {
    let told = session.models.iter().map(|usage| usage.model.as_str());
    let mut models: Vec<&str> = told.filter(|model| !model.is_empty()).collect();
    models.sort_unstable();
    models.dedup();
    if models.is_empty() && !session.model.is_empty() {
        models.push(&session.model);
    }
    models
}

/// Reports what was done, or would be done.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn tell(
    out: &Output,
    task: &v1::Task,
    fetched: &FetchedResult,
    paths: &[PlannedPath],
    done: bool,
    merge_commit: Option<String>,
    more: &Landing,
) -> anyhow::Result<()> {
    let landing = LandingJson {
        task_id: &task.id,
        session: &fetched.session.name,
        commit: fetched.commit.as_str(),
        is_unfinished: fetched.session.is_unfinished,
        done,
        merge_commit: merge_commit.as_deref(),
        more,
        paths: paths.iter().map(PathJson::of).collect(),
    };
    out.result("landing", &landing)?;
    let mut text = landed(fetched, paths, done, merge_commit.as_deref());
    if let Some(branch) = &more.branch {
        text += &format!("branch {branch}\n");
    }
    out.text(&text)?;
    Ok(())
}

/// Says in words what was landed.
#[must_use]
pub fn landed(fetched: &FetchedResult, paths: &[PlannedPath], done: bool, merge_commit: Option<&str>) -> String {
    let verb = match (done, fetched.is_undo) {
        (true, false) => "landed",
        (false, false) => "would land",
        (true, true) => "took out",
        (false, true) => "would take out",
    };
    let result = if fetched.session.is_unfinished {
        "unfinished result"
    } else {
        "result"
    };
    let mut text = format!("{verb} the {result} of {}:\n", fetched.session.name);
    for path in paths {
        text += &format!("  {:<10} {}\n", path.landed_as.word(), view::printable(&path.shown()));
    }
    if let Some(commit) = merge_commit {
        text += &format!("commit {commit}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::PathBuf;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// Sends this process a signal, and returns when its receivers have been told.
    async fn send(number: Signal) {
        let kind = SignalKind::from_raw(number.as_raw());
        let mut arrived = signal(kind).unwrap();
        kill_process(getpid(), number).unwrap();
        arrived.recv().await;
        // Whoever waits for it beside this goes first.
        tokio::task::yield_now().await;
    }

    #[test]
    fn a_path_that_is_not_utf8_has_its_bytes() {
        let planned = PlannedPath {
            path: PathBuf::from(OsStr::from_bytes(b"a\xff")),
            landed_as: LandedAs::Created,
        };
        let json = serde_json::to_value(PathJson::of(&planned)).unwrap();
        let expected = serde_json::json!({ "path": "Yf8=", "display_path": "a\u{fffd}", "action": "created" });
        assert_eq!(json, expected);
    }

    #[tokio::test]
    async fn what_was_begun_is_finished_unless_it_is_interrupted_twice() {
        for signals in [
            &[Signal::INT][..],
            &[Signal::TERM],
            &[Signal::HUP],
            &[Signal::HUP, Signal::HUP, Signal::TERM],
        ] {
            let once = to_the_end(async {
                for signal in signals {
                    send(*signal).await;
                }
                7
            });
            assert_eq!(once.await.unwrap(), 7, "{signals:?}");
        }
        for signal in [Signal::INT, Signal::TERM] {
            let twice = to_the_end::<()>(async {
                loop {
                    send(signal).await;
                }
            });
            let refused = twice.await.unwrap_err();
            let refused = refused.downcast_ref::<Refusal>().unwrap();
            assert_eq!(refused.exit, Exit::Interrupted);
        }
    }
}
