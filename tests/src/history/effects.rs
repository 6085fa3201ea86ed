//! I5 and I6: clients' requests took effect once, whole, or not at all; and final states do not
//! change.

use std::collections::BTreeMap;

use super::{Answer, Call, Final, History, Sight, Violation, What, is_over, task, violation};

pub(super) fn check(history: &History, end: &Final, found: &mut Vec<Violation>) {
    creations(history, end, found);
    cancellations(history, end, found);
    stores(history, end, found);
    ends(history, end, found);
}

/// I6: every answer to one request id names the same task, which exists with all its sessions; a
/// request without a successful answer has at most one task, and it is whole.
fn creations(history: &History, end: &Final, found: &mut Vec<Violation>) {
    let mut requests: BTreeMap<&str, (&str, usize, Vec<Answer>)> = BTreeMap::new();
    for (call, answer) in history.calls() {
        if let Call::Create {
            request,
            prompt,
            sessions,
        } = call
        {
            let entry = requests
                .entry(request)
                .or_insert_with(|| (prompt.as_str(), *sessions, Vec::new()));
            entry.2.push(answer);
        }
    }
    for (request, (prompt, sessions, answers)) in &requests {
        let mut told: Vec<&str> = answers
            .iter()
            .filter_map(|answer| match answer {
                Answer::Done(id) => Some(id.as_str()),
                Answer::Refused(_) | Answer::Unknown(_) => None,
            })
            .collect();
        told.sort_unstable();
        told.dedup();
        if told.len() > 1 {
            violation(
                found,
                "I6",
                format!("request {request} was answered with tasks {told:?}"),
            );
        }
        let stored: Vec<_> = end
            .tasks
            .iter()
            .filter(|task| task.task.spec.as_ref().is_some_and(|spec| spec.prompt == *prompt))
            .collect();
        let refused = answers.iter().all(|answer| matches!(answer, Answer::Refused(_)));
        match (told.first(), stored.as_slice()) {
            (Some(id), [task]) if task.task.id == **id => {}
            (Some(id), []) => violation(found, "I6", format!("task {id} of request {request} is lost")),
            (Some(id), [_, ..]) => {
                let text = format!("request {request} told of {id} has {} tasks", stored.len());
                violation(found, "I6", text);
            }
            (None, []) => {}
            (None, [_]) if !refused => {}
            (None, [_]) => violation(found, "I6", format!("request {request} was refused and carried out")),
            (None, [_, _, ..]) => violation(found, "I6", format!("request {request} has {} effects", stored.len())),
        }
        for task in stored {
            if task.task.sessions.len() != *sessions {
                let text = format!(
                    "task {} has {} of {sessions} sessions",
                    task.task.id,
                    task.task.sessions.len()
                );
                violation(found, "I6", text);
            }
        }
    }
}

/// I6: a task whose cancellation was acknowledged does not run.
fn cancellations(history: &History, end: &Final, found: &mut Vec<Violation>) {
    for (call, answer) in history.calls() {
        let (Call::Cancel { task: id, .. }, Answer::Done(_)) = (call, &answer) else {
            continue;
        };
        match task(end, id) {
            None => violation(found, "I6", format!("the cancelled task {id} is lost")),
            Some(task) if !is_over(task.task.state()) => {
                violation(found, "I6", format!("task {id} was cancelled and runs"));
            }
            Some(_) => {}
        }
    }
}

/// I6: data whose storage was acknowledged is listed.
fn stores(history: &History, end: &Final, found: &mut Vec<Violation>) {
    for (call, answer) in history.calls() {
        let (Call::Store { name }, Answer::Done(_)) = (call, &answer) else {
            continue;
        };
        if !end.listed.iter().any(|listed| listed.name == *name) {
            violation(found, "I6", format!("{name} was stored and is lost"));
        }
    }
}

/// I5: for each watcher by itself, and in the final state.
fn ends(history: &History, end: &Final, found: &mut Vec<Violation>) {
    let mut ended: BTreeMap<(String, String), i32> = BTreeMap::new();
    let mut compare = |who: &str, task: &kage_proto::v1::Task, found: &mut Vec<Violation>| {
        let mut note = |what: String, over: bool, state: i32| {
            let key = (who.to_owned(), what);
            match ended.get(&key) {
                Some(before) if *before != state => {
                    let text = format!("{} saw {} end as {before} and then be {state}", key.0, key.1);
                    violation(found, "I5", text);
                }
                Some(_) => {}
                None if over => drop(ended.insert(key, state)),
                None => {}
            }
        };
        note(task.id.clone(), is_over(task.state()), task.state);
        for session in &task.sessions {
            let name = format!("{} {}", task.id, session.name);
            note(name, session.state().is_ended(), session.state);
        }
    };
    let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (_, who, what) in history.each() {
        if let What::Saw(id, Sight::Task(task)) = what {
            compare(who, task, found);
            seen.entry(id).or_default().push(who);
        }
    }
    for (id, watchers) in seen {
        let Some(last) = task(end, id) else {
            violation(found, "I6", format!("task {id} was seen and is lost"));
            continue;
        };
        for who in watchers {
            compare(who, &last.task, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use kage_proto::v1;

    use super::super::sample::{broken, good, sample};
    use super::*;

    #[test]
    fn a_good_history_is_good() {
        good(&sample());
    }

    #[test]
    fn a_lost_task_is_found() {
        broken("I6", |_, end| drop(end.tasks.remove(0)));
    }

    #[test]
    fn a_task_created_twice_is_found() {
        broken("I6", |_, end| {
            let mut twice = end.tasks[0].clone();
            twice.task.id = "other".to_owned();
            end.tasks.push(twice);
        });
    }

    #[test]
    fn two_answers_to_one_request_are_found() {
        broken("I6", |history, _| {
            for entry in &mut history.entries {
                if let What::Answered(2, answer) = &mut entry.what {
                    *answer = Answer::Done("other".to_owned());
                }
            }
        });
    }

    #[test]
    fn a_refused_call_that_was_carried_out_is_found() {
        broken("I6", |history, _| {
            for entry in &mut history.entries {
                if let What::Answered(_, answer) = &mut entry.what {
                    *answer = Answer::Refused("no".to_owned());
                }
            }
        });
    }

    #[test]
    fn half_a_task_is_found() {
        broken("I6", |_, end| drop(end.tasks[0].task.sessions.pop()));
    }

    #[test]
    fn what_is_unknown_may_be_or_not() {
        let (mut history, mut end) = sample();
        history.entries.retain(|entry| matches!(entry.what, What::Called(..)));
        good(&(history.clone(), end.clone()));
        end.tasks.clear();
        good(&(history, end));
    }

    #[test]
    fn a_cancelled_task_that_runs_is_found() {
        broken("I6", |history, end| {
            let call = Call::Cancel {
                request: "c".to_owned(),
                task: "t".to_owned(),
            };
            history.add("client", What::Called(9, call));
            history.add("client", What::Answered(9, Answer::Done(String::new())));
            history.entries.retain(|entry| !matches!(entry.what, What::Saw(..)));
            end.tasks[0].task.set_state(v1::TaskState::Running);
        });
    }

    #[test]
    fn a_lost_blob_is_found() {
        broken("I6", |history, _| {
            let name = "blob".to_owned();
            history.add("client", What::Called(9, Call::Store { name }));
            history.add("client", What::Answered(9, Answer::Done(String::new())));
        });
    }

    #[test]
    fn an_end_that_changed_is_found() {
        broken("I5", |_, end| end.tasks[0].task.set_state(v1::TaskState::Failed));
        broken("I5", |_, end| {
            end.tasks[0].task.sessions[0].set_state(v1::SessionState::Running);
        });
    }
}
