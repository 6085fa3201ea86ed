//! `kage verify`: verify of a result that nothing checked, and its verdict.

use anyhow::Context as _;
use kage_proto::v1;

use crate::args::Verify;
use crate::exit::Exit;
use crate::follow::{self, Followed};
use crate::hold;
use crate::invocation::Invocation;
use crate::tasks;
use crate::verification;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Verify) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let asked = args.session.unwrap_or_default();
    let task = tasks::verify(&access, &task.id, asked.clone()).await?;
    if args.detach {
        invocation.out.message("task", &task)?;
        invocation.out.text(&task.id)?;
        return Ok(Exit::Done);
    }
    let task = match follow::follow(&invocation.out, &access, task, args.max_hold).await? {
        Followed::Ended(task) => task,
        Followed::Detached => return Ok(Exit::Done),
        Followed::Held { task, why } => {
            invocation.out.message("task", &task)?;
            hold::tell(&task, &why);
            return Ok(Exit::Held);
        }
    };
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    verification::compared(&invocation.out, &access, &task, &report).await?;
    // The server takes an empty name for the only session.
    let mut sessions = task.sessions.iter();
    let session = sessions.find(|session| asked.is_empty() || session.name == asked);
    let session = session.context("the coordinator sent a task without its session")?;
    invocation.out.text(&told(&task, session))?;
    Ok(match verdict(session) {
        Some(v1::VerdictKind::Passed) => Exit::Done,
        Some(v1::VerdictKind::Failed | v1::VerdictKind::Errored | v1::VerdictKind::Unspecified) | None => {
            Exit::TaskFailed
        }
    })
}

fn verdict(session: &v1::Session) -> Option<v1::VerdictKind> {
    session.verdict.as_ref().map(v1::Verdict::kind)
}

/// The verdict in words, and what to do with the result.
fn told(task: &v1::Task, session: &v1::Session) -> String {
    let (id, name) = (view::short_id(&task.id), view::printable(&session.name));
    let what = if session.is_unfinished {
        "unfinished result"
    } else {
        "result"
    };
    let Some(verdict) = &session.verdict else {
        return format!("{name}: nothing verified its {what}: {}", view::state_of(session));
    };
    let message = view::one_line(&verdict.message, 500);
    let next = match verdict.kind() {
        v1::VerdictKind::Passed => format!("; `kage apply {id} --session {name}` takes it"),
        v1::VerdictKind::Failed => format!("; `kage logs {id} --session {name}` has the output"),
        v1::VerdictKind::Errored | v1::VerdictKind::Unspecified => String::new(),
    };
    format!("{name}: {message} ({what}){next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_told_with_what_to_do() {
        let task = v1::Task {
            id: "0123456789abcdef".to_owned(),
            ..v1::Task::default()
        };
        let told = |kind: Option<v1::VerdictKind>, message: &str| {
            let session = v1::Session {
                name: "one".to_owned(),
                state: v1::SessionState::Failed.into(),
                is_unfinished: true,
                verdict: kind.map(|kind| v1::Verdict {
                    kind: kind.into(),
                    message: message.to_owned(),
                    ..v1::Verdict::default()
                }),
                ..v1::Session::default()
            };
            told(&task, &session)
        };
        insta::assert_snapshot!(told(Some(v1::VerdictKind::Passed), "verify passed"), @"one: verify passed (unfinished result); `kage apply 01234567 --session one` takes it");
        insta::assert_snapshot!(told(Some(v1::VerdictKind::Failed), "verify failed with exit code 1"), @"one: verify failed with exit code 1 (unfinished result); `kage logs 01234567 --session one` has the output");
        insta::assert_snapshot!(told(None, ""), @"one: nothing verified its unfinished result: failed, unfinished");
    }
}
