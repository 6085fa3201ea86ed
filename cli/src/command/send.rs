//! `kage send`: a person's words for a session, as its next instruction, and what came of them.

use kage_proto::v1;

use super::{run, wait};
use crate::args::{Send, Waiting};
use crate::connect::Access;
use crate::environment::LeftValues;
use crate::exit::{Exit, Refusal};
use crate::follow::{self, Followed};
use crate::hold;
use crate::invocation::Invocation;
use crate::output::note;
use crate::picked;
use crate::table::Shape;
use crate::tasks;
use crate::verification;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Send) -> anyhow::Result<Exit> {
    let text = run::asked_prompt(
        args.prompt.as_deref(),
        args.prompt_file.as_deref(),
        "What is the session to do next?",
    )?;
    if text.trim().is_empty() {
        return Err(Refusal::usage("there is nothing to send: say what the session is to do next").into());
    }
    let access = invocation.existing().await?;
    let (task, session) = picked::session(&access, args.session.task, &args.session.session).await?;
    let before = state(&task, &session);
    let left = leave_again(invocation, &task).await?;
    let sent = tasks::send(&access, &task.id, &session, text).await;
    if let Some(left) = &left {
        left.settle(sent.is_ok().then_some(&task));
    }
    let sent = sent?;
    let task = sent.task.unwrap_or(task);
    note(&format!(
        "{} of task {}: message {} {}",
        view::printable(&session),
        view::short_id(&task.id),
        sent.number,
        comes(before, sent.live)
    ));
    finish(invocation, &access, task, &session, &args.waiting).await
}

/// Leaves the values of variables for the agent of this machine, where it had them from here.
pub(super) async fn leave_again(invocation: &Invocation, task: &v1::Task) -> anyhow::Result<Option<LeftValues>> {
    if invocation.settings.coordinator.url.is_some() {
        return Ok(None);
    }
    LeftValues::leave_again(invocation, task).await
}

/// When the session gets the message, by its state before.
const fn comes(before: v1::SessionState, live: bool) -> &'static str {
    if live {
        return "is handed to its running attempt, whose model is told after its present turn; should the attempt end \
                before that, the next one is told";
    }
    match before {
        v1::SessionState::Running => {
            "is told when its present attempt ends, before verify: its adapter takes nothing while it works"
        }
        v1::SessionState::Unspecified | v1::SessionState::Queued => "is told with its next attempt",
        v1::SessionState::Claimed | v1::SessionState::Verifying => "is told now: its result so far is not verified",
        v1::SessionState::Verified
        | v1::SessionState::Rejected
        | v1::SessionState::Unverified
        | v1::SessionState::Failed
        | v1::SessionState::Cancelled
        | v1::SessionState::Saving => "is told now: the session goes on, and its task is open again",
    }
}

fn state(task: &v1::Task, session: &str) -> v1::SessionState {
    let found = task.sessions.iter().find(|found| found.name == session);
    found.map_or(v1::SessionState::Unspecified, v1::Session::state)
}

/// Follows the task to its end, unless the person does not wait, and says what the session came to.
pub(super) async fn finish(
    invocation: &Invocation,
    access: &Access,
    task: v1::Task,
    session: &str,
    waiting: &Waiting,
) -> anyhow::Result<Exit> {
    if waiting.detach {
        invocation.out.message("task", &task)?;
        invocation.out.text(&task.id)?;
        return Ok(Exit::Done);
    }
    let task = match follow::follow(&invocation.out, access, task, waiting.max_hold).await? {
        Followed::Ended(task) => task,
        Followed::Detached => return Ok(Exit::Done),
        Followed::Held { task, why } => {
            invocation.out.message("task", &task)?;
            hold::tell(&task, &why);
            return Ok(Exit::Held);
        }
    };
    let report = tasks::report(access, &task.id).await?.report.unwrap_or_default();
    invocation
        .out
        .painted(&view::report_text(&report, Shape::of(invocation.out.screen())))?;
    verification::compared(&invocation.out, access, &task, &report).await?;
    let id = view::short_id(&task.id);
    if let Some(session) = task.sessions.iter().find(|found| found.name == session) {
        let name = view::printable(&session.name);
        if let Some(why) = unheard(session) {
            note(&format!("{name} came to no result with what you said: {why}"));
            return Ok(Exit::TaskFailed);
        }
        if session.result.is_some() {
            note(&format!(
                "{name} is {}; `kage diff {id} --session {name}` shows its change, `kage apply {id} --session {name}` \
                 applies it to the working tree",
                view::state_of(session)
            ));
        }
    }
    Ok(wait::outcome(task.state(), &report))
}

/// Why no result follows the last message of a session that is over; `None` when one does.
fn unheard(session: &v1::Session) -> Option<String> {
    let last = session.messages.last()?;
    if last.state() == v1::MessageState::Followed {
        return None;
    }
    let why = session
        .incidents
        .last()
        .map(|incident| view::one_line(&incident.summary, 600));
    let stands = match session.is_unfinished {
        false if session.result.is_some() => "; it has the result that it had before",
        _ => "",
    };
    Some(why.unwrap_or_else(|| "it was stopped".to_owned()) + stands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_before_is_not_taken_for_an_answer() {
        let message = |state: v1::MessageState| v1::SessionMessage {
            state: state.into(),
            ..v1::SessionMessage::default()
        };
        let mut session = v1::Session {
            messages: vec![message(v1::MessageState::Followed), message(v1::MessageState::Given)],
            result: Some(v1::ResultCommit::default()),
            ..v1::Session::default()
        };
        assert_eq!(
            unheard(&session).unwrap(),
            "it was stopped; it has the result that it had before"
        );
        session.incidents.push(v1::Incident {
            summary: "attempt 2: not authorised: x; given up: log in".to_owned(),
            ..v1::Incident::default()
        });
        session.is_unfinished = true;
        assert_eq!(
            unheard(&session).unwrap(),
            "attempt 2: not authorised: x; given up: log in"
        );
        session.messages.pop();
        assert_eq!(unheard(&session), None);
    }
}
