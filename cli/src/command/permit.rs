//! `kage permit`: what the programs of running sessions ask before they do something, and a person's answers.

use kage_core::time::{Timestamp, in_words};
use kage_proto::convert::time::time;
use kage_proto::v1;

use crate::args::Answered;
use crate::exit::Exit;
use crate::hold::now;
use crate::invocation::Invocation;
use crate::listed::Wanted;
use crate::picked;
use crate::table::Table;
use crate::tasks;
use crate::view;

/// How many running tasks are looked at.
const MOST_TASKS: usize = 10_000;

pub(super) async fn ls(invocation: &Invocation) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let mut asking = Wanted::running().newest(&access, MOST_TASKS).await?;
    asking.retain(|task| task.sessions.iter().any(|session| !session.questions.is_empty()));
    invocation.out.messages("task", &asking)?;
    let now = now();
    let rows: Vec<_> = asking.iter().flat_map(|task| rows(task, now)).collect();
    let none = rows.is_empty();
    invocation
        .out
        .table(&Table::of_words(&["session", "question", "left", "about"], rows))?;
    if none {
        invocation.out.text("nothing waits for an answer")?;
    }
    Ok(Exit::Done)
}

fn rows(task: &v1::Task, now: Timestamp) -> Vec<Vec<String>> {
    let id = view::short_id(&task.id);
    let of = |session: &v1::Session| {
        let name = format!("{id}/{}", view::printable(&session.name));
        let questions = session.questions.iter().map(move |question| {
            let left = question.until.map(time).unwrap_or_default().since(now);
            vec![
                name.clone(),
                question.number.to_string(),
                match question.answered_by.as_str() {
                    "" => in_words(left),
                    by => format!("answered by {}", view::one_line(by, 40)),
                },
                view::one_line(&question.about, 200),
            ]
        });
        questions.collect::<Vec<_>>()
    };
    task.sessions.iter().flat_map(of).collect()
}

pub(super) async fn answer(invocation: &Invocation, args: Answered, allow: bool) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let (task, session) = picked::session(&access, args.session.task, &args.session.session).await?;
    let number = args.question.unwrap_or(0);
    let answered = tasks::answer(&access, &task.id, &session, number, allow).await?;
    invocation.out.message("task", &answered.task.unwrap_or(task))?;
    let about = answered.question.map(|question| question.about).unwrap_or_default();
    invocation.out.text(&format!(
        "{}: {}: {}",
        view::printable(&answered.session),
        if allow { "allowed" } else { "denied" },
        view::one_line(&about, 200)
    ))?;
    Ok(Exit::Done)
}
