//! The session that a command means: by its name in a task, or by a task that has one.

use kage_proto::v1;

use crate::connect::Access;
use crate::exit::Refusal;
use crate::tasks;
use crate::view;

/// How many characters of an id are enough to name a task.
const ID: std::ops::RangeInclusive<usize> = 4..=32;

/// The task, with everything of it, and the name of its session.
///
/// # Errors
/// When there is none, or several could be meant.
pub(crate) async fn session(access: &Access, task: Option<String>, said: &str) -> anyhow::Result<(v1::Task, String)> {
    if let (None, Some((task, name))) = (&task, said.split_once('/')) {
        let task = tasks::find(access, Some(task.to_owned())).await?;
        return named(task, name);
    }
    if task.is_some() {
        return named(tasks::find(access, task).await?, said);
    }
    if is_id(said) {
        // A name that looks like an id is a name first, if the newest task has it.
        if let Ok(newest) = tasks::find(access, None).await
            && newest.sessions.iter().any(|session| session.name == said)
        {
            return named(newest, said);
        }
        return named(tasks::find(access, Some(said.to_owned())).await?, "");
    }
    named(tasks::find(access, None).await?, said)
}

fn named(task: v1::Task, name: &str) -> anyhow::Result<(v1::Task, String)> {
    let found = match (name, task.sessions.as_slice()) {
        ("", [only]) => Some(only),
        _ => task.sessions.iter().find(|session| session.name == name),
    };
    if let Some(session) = found {
        let name = session.name.clone();
        return Ok((task, name));
    }
    let names: Vec<_> = task
        .sessions
        .iter()
        .map(|session| view::printable(&session.name))
        .collect();
    let (id, names) = (view::short_id(&task.id), names.join(", "));
    let problem = if name.is_empty() {
        format!("task {id} has several sessions; name one: {id}/NAME, with NAME of {names}")
    } else {
        let name = view::printable(name);
        format!("task {id} has no session {name:?}; it has {names}. Another task is named by TASK/SESSION or --task")
    };
    Err(Refusal::not_found(problem).into())
}

fn is_id(text: &str) -> bool {
    ID.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(names: &[&str]) -> v1::Task {
        v1::Task {
            id: "0123456789abcdef".to_owned(),
            sessions: names
                .iter()
                .map(|name| v1::Session {
                    name: (*name).to_owned(),
                    ..v1::Session::default()
                })
                .collect(),
            ..v1::Task::default()
        }
    }

    #[test]
    fn a_session_is_named_or_the_only_one() {
        let found = |names: &[&str], name| named(task(names), name).map(|(_, name)| name);
        assert_eq!(found(&["a", "b"], "b").unwrap(), "b");
        assert_eq!(found(&["a"], "").unwrap(), "a");
        let several = found(&["a", "b"], "").unwrap_err().to_string();
        assert!(several.contains("01234567/NAME, with NAME of a, b"), "{several}");
        let other = found(&["a"], "c").unwrap_err().to_string();
        assert!(other.contains("no session \"c\"; it has a"), "{other}");
        assert!(is_id("0a1b") && !is_id("codex") && !is_id("fed"));
    }
}
