//! Lands a fetched result, and reports it. `kage_git::landing` plans it; [`remedy`] explains
//! obstacles.

use std::pin::pin;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use kage_git::UserRepo;
use kage_git::landing::{self, ApplyPlan, LandingMessage, MergePlan, PlannedPath, Strategy};
use kage_proto::v1;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Refusal};
use crate::output::{Output, note};
use crate::result::{FetchedResult, unfinished};
use crate::view;

pub(crate) mod remedy;

use remedy::{Asked, told};

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
    paths: Vec<PathJson>,
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
    let planned = landing::plan_apply(repository, &fetched.mirror, &fetched.base, &fetched.commit).await;
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
pub fn tell(
    out: Output,
    task: &v1::Task,
    fetched: &FetchedResult,
    paths: &[PlannedPath],
    done: bool,
    merge_commit: Option<String>,
) -> anyhow::Result<()> {
    let landing = LandingJson {
        task_id: &task.id,
        session: &fetched.session.name,
        commit: fetched.commit.as_str(),
        is_unfinished: fetched.session.is_unfinished,
        done,
        merge_commit: merge_commit.as_deref(),
        paths: paths.iter().map(PathJson::of).collect(),
    };
    out.result("landing", &landing)?;
    out.text(&landed(fetched, paths, done, merge_commit.as_deref()))?;
    Ok(())
}

/// Says in words what was landed.
#[must_use]
pub fn landed(fetched: &FetchedResult, paths: &[PlannedPath], done: bool, merge_commit: Option<&str>) -> String {
    let verb = if done { "landed" } else { "would land" };
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

    use kage_git::landing::LandedAs;
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
