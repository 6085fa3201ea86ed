//! `kage show`: a task and its sessions as they are now.

use kage_core::contain;
use kage_core::priority::Priority;
use kage_proto::convert::contain::claimed;
use kage_proto::v1;
use serde::Serialize;

use crate::args::{Format, Show};
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::table::{Cell, Column, Table};
use crate::tasks;
use crate::terminal::Ink;
use crate::verification::verifications;
use crate::view::{self, ShownJson};

/// A prompt, whole.
#[derive(Debug, Serialize)]
struct PromptJson<'a> {
    task_id: &'a str,
    prompt: &'a str,
}

const COLUMNS: [Column; 9] = [
    Column::words("session", 0),
    Column::words("adapter", 6),
    Column::words("state", 0),
    Column::words("agent", 5),
    Column::number("tries", 7),
    Column::number("tokens", 3),
    Column::words("money", 2),
    Column::number("time", 1),
    Column::long("last"),
];

pub(super) async fn run(invocation: &Invocation, args: Show) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    if args.prompt {
        let prompt = task.spec.as_ref().map_or("", |spec| &spec.prompt);
        let of = PromptJson {
            task_id: &task.id,
            prompt,
        };
        invocation.out.result("prompt", &of)?;
        // As it was given, with its own line ends.
        invocation.out.raw(prompt.as_bytes())?;
        if !prompt.ends_with('\n') {
            invocation.out.raw(b"\n")?;
        }
        return Ok(Exit::Done);
    }
    match invocation.out.format() {
        Format::Json | Format::Jsonl => {
            let verifications = verifications(&access, &task).await?;
            invocation.out.result("task", &ShownJson::of(&task, verifications))?;
        }
        Format::Human | Format::Tsv => {}
    }
    invocation.out.text(&heading(&task))?;
    invocation.out.table(&table(&task))?;
    // A table shortens long texts, and the reason for waiting is what people look for here.
    for session in task.sessions.iter().filter(|session| !session.waiting.is_empty()) {
        invocation.out.text(&format!("{}: {}", session.name, session.waiting))?;
    }
    for session in task.sessions.iter().filter(|session| session.is_unfinished) {
        invocation.out.text(&unfinished(&task, session))?;
    }
    for line in task.sessions.iter().filter_map(contained) {
        invocation.out.text(&line)?;
    }
    for session in task.sessions.iter().filter(|session| session.checkpoints > 0) {
        invocation.out.text(&checkpoints(session))?;
    }
    for session in &task.sessions {
        invocation.out.text(&view::steering(session).concat())?;
    }
    Ok(Exit::Done)
}

fn table(task: &v1::Task) -> Table {
    let mut table = Table::new(COLUMNS);
    for session in &task.sessions {
        table.row(row(session));
    }
    table
}

fn heading(task: &v1::Task) -> String {
    let spec = task.spec.as_ref();
    let mut text = format!(
        "task {}  {}\nprompt: {}\n",
        task.id,
        view::task_state(task.state()),
        view::one_line(&task.prompt_excerpt, 200)
    );
    if task.prompt_size > view::one_line(&task.prompt_excerpt, 200).len() as u64 {
        text += &format!(
            "        `kage show {} --prompt` prints the whole\n",
            view::short_id(&task.id)
        );
    }
    if let Some(repository) = spec.and_then(|s| s.repository.as_ref()) {
        text += &format!(
            "base: {} of {}\n",
            view::short_id(&repository.base_commit),
            repository.name
        );
        if let Some(baseline) = view::baseline(task) {
            text.insert_str(text.len() - 1, &format!(", {baseline}"));
        }
    }
    if let Some(policy) = spec.and_then(|s| s.policy.as_ref())
        && let Ok(priority) = Priority::try_from(policy.priority)
        && priority != Priority::NORMAL
    {
        text += &format!("priority: {priority}\n");
    }
    let demanded = spec
        .and_then(|s| s.policy.as_ref())
        .and_then(|policy| claimed(policy.contain));
    if let Some(tier) = demanded {
        text += &format!("containment: {tier} or higher\n");
    }
    if let Some(verify) = spec.and_then(|s| s.policy.as_ref()).and_then(|p| p.verify.as_ref())
        && !verify.verify.is_empty()
    {
        text += &format!("verify: {}\n", view::one_line(&verify.verify, 200));
    }
    text
}

/// The tiers of containment that a session worked in, and its verify.
fn contained(session: &v1::Session) -> Option<String> {
    let checked = session.verdict.as_ref();
    let checked = checked.map(|verdict| claimed(verdict.contained).unwrap_or_default());
    let words = contain::words(claimed(session.contained), checked)?;
    Some(format!("{}: {words}", view::printable(&session.name)))
}

/// What is there of a session that claimed nothing, and how to look at it.
fn unfinished(task: &v1::Task, session: &v1::Session) -> String {
    let stat = session.result.as_ref().and_then(|result| result.diff.as_ref());
    let stat = stat.copied().unwrap_or_default();
    let (id, name) = (view::short_id(&task.id), view::printable(&session.name));
    let checked = match &session.verdict {
        None => format!("`kage verify {id} --session {name}` checks it"),
        Some(verdict) => view::one_line(&verdict.message, 200),
    };
    format!(
        "{name}: unfinished result from checkpoint {}, {} +{} -{}; `kage diff {id} --session {name}` shows it; {checked}\n",
        session.head,
        view::counted(stat.files as usize, "file"),
        stat.added,
        stat.removed,
    )
}

/// The number of checkpoints, and which attempt continued from which.
fn checkpoints(session: &v1::Session) -> String {
    let stands = match session.head {
        0 => "the base".to_owned(),
        number => format!("checkpoint {number}"),
    };
    let count = view::counted(session.checkpoints as usize, "checkpoint");
    let mut text = format!("{}: {count}, stands on {stands}\n", session.name);
    for resumption in &session.resumptions {
        text += &format!(
            "  attempt {} continued from checkpoint {}, {} made again\n",
            resumption.attempt,
            resumption.checkpoint,
            view::counted(resumption.repeated_calls as usize, "model call")
        );
    }
    text
}

fn row(session: &v1::Session) -> Vec<Cell> {
    let last = if let Some(failure) = &session.failure {
        &failure.message
    } else if let Some(verdict) = &session.verdict {
        &verdict.message
    } else if !session.waiting.is_empty() {
        &session.waiting
    } else {
        &session.activity
    };
    let tries = match session.attempts {
        0 => "-".to_owned(),
        tries => tries.to_string(),
    };
    vec![
        Cell::new(Ink::Strong, &session.name),
        view::adapter(session).into(),
        view::state_cell(session),
        session.agent.clone().into(),
        tries.into(),
        view::tokens(session.usage.as_ref()).into(),
        view::money(&session.money).into(),
        view::duration_ms(session)
            .map_or_else(|| "-".to_owned(), view::short_duration)
            .into(),
        view::one_line(last, 200).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn sessions_fit_every_width() {
        let session = |name: &str, state: v1::SessionState| v1::Session {
            name: name.to_owned(),
            adapter: "claude-api".to_owned(),
            model: "claude-opus-5-5".to_owned(),
            state: state.into(),
            agent: "big-machine".to_owned(),
            attempts: 2,
            ..v1::Session::default()
        };
        let failed = v1::Session {
            failure: Some(v1::Failure {
                message: "the provider refused the login: HTTP 401".to_owned(),
                ..v1::Failure::default()
            }),
            ..session("claude-api-1", v1::SessionState::Failed)
        };
        let waits = v1::Session {
            attempts: 0,
            waiting: "waits for an agent: only big-machine has claude-api, and is full".to_owned(),
            ..session("claude-api-2", v1::SessionState::Queued)
        };
        let task = v1::Task {
            sessions: vec![failed, waits],
            ..v1::Task::default()
        };
        insta::assert_snapshot!(everywhere(&table(&task)));
    }

    #[test]
    fn the_tiers_of_work_and_check_are_shown_where_they_are_recorded() {
        use v1::ContainmentTier::{T1, T2, Unspecified};
        let told = |worked: v1::ContainmentTier, checked: Option<v1::ContainmentTier>| {
            contained(&v1::Session {
                name: "one".to_owned(),
                contained: worked.into(),
                verdict: checked.map(|tier| v1::Verdict {
                    contained: tier.into(),
                    ..v1::Verdict::default()
                }),
                ..v1::Session::default()
            })
        };
        insta::assert_snapshot!(told(T1, None).unwrap(), @"one: worked in containment T1");
        insta::assert_snapshot!(told(T2, Some(T2)).unwrap(), @"one: worked and was checked in containment T2");
        insta::assert_snapshot!(told(T2, Some(Unspecified)).unwrap(), @"one: worked in containment T2, was checked in T0");
        // A coordinator of before.
        assert_eq!(told(Unspecified, Some(Unspecified)), None);
    }

    #[test]
    fn a_demand_is_in_the_heading() {
        let policy = v1::Policy {
            contain: v1::ContainmentTier::T2.into(),
            ..v1::Policy::default()
        };
        let task = v1::Task {
            spec: Some(v1::TaskSpec {
                policy: Some(policy),
                ..v1::TaskSpec::default()
            }),
            ..v1::Task::default()
        };
        assert!(heading(&task).ends_with("containment: T2 or higher\n"));
    }
}
