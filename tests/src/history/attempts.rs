//! I1 to I3: one attempt of a job has authority at a time, and its result counts once.

use std::collections::{BTreeMap, BTreeSet};

use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;

use super::{Final, FinalTask, History, Violation, What, Write, jobs, of_session, parts, task, violation};

pub(super) fn check(history: &History, end: &Final, found: &mut Vec<Violation>) {
    tokens(history, found);
    late_writes(history, end, found);
    for task in &end.tasks {
        order(task, found);
        for session in &task.task.sessions {
            results(task, session, found);
        }
    }
}

/// I2: numbers rise, tokens are new.
fn tokens(history: &History, found: &mut Vec<Violation>) {
    let mut used = BTreeSet::new();
    let mut last: BTreeMap<(&super::JobKey, &str), u32> = BTreeMap::new();
    let mut given = BTreeSet::new();
    for (_, who, what) in history.each() {
        let What::Granted { job, number, token, .. } = what else {
            continue;
        };
        if !used.insert(token) {
            violation(found, "I2", format!("a token of {job:?} was used before"));
        }
        // Two agents may record their grants in another order than they were given.
        let before = last.insert((job, who), *number);
        if before.is_some_and(|before| before >= *number) {
            violation(
                found,
                "I2",
                format!("attempt {number} of {job:?} follows attempt {before:?}"),
            );
        }
        if !given.insert((job, *number)) {
            violation(found, "I2", format!("attempt {number} of {job:?} was given twice"));
        }
    }
}

/// I1: data that an agent first sent after a newer attempt was granted is not stored.
fn late_writes(history: &History, end: &Final, found: &mut Vec<Violation>) {
    let grants = history.grants();
    let mut sent: BTreeMap<&str, u64> = BTreeMap::new();
    for (at, _, what) in history.each() {
        let What::Sent(attempt, Write::Events(upto)) = what else {
            continue;
        };
        let Some((_, job, number)) = grants.get(attempt.as_str()) else {
            continue;
        };
        // Repeated data was sent before.
        let before = sent.get(attempt.as_str()).copied().unwrap_or_default();
        sent.insert(attempt, before.max(*upto));
        let newer = grants
            .values()
            .any(|(given, other, n)| other == job && n > number && *given < at);
        let Some(task) = task(end, &job.task).filter(|_| newer && *upto > before) else {
            continue;
        };
        let stale = task.events.iter().any(|event| {
            let (seq, _) = parts(event);
            task.job(event) == **job && event.attempt == *number && (before + 1..=*upto).contains(&seq)
        });
        if stale {
            let text = format!("attempt {number} of {job:?} wrote after a newer one was given");
            violation(found, "I1", text);
        }
    }
}

/// I1: in the order of the task, attempts of a job follow each other and never mix.
fn order(task: &FinalTask, found: &mut Vec<Violation>) {
    for job in jobs(task) {
        let mut last = 0;
        for event in &task.events {
            if task.job(event).session != job.session {
                continue;
            }
            if event.job().as_str() != job.job {
                // A claim begins a new verify job, whose attempts count from one.
                if matches!(outcome(event), Some(Outcome::Claimed(_))) {
                    last = 0;
                }
                continue;
            }
            if event.attempt < last {
                let text = format!("attempt {} of {job:?} was taken after attempt {last}", event.attempt);
                violation(found, "I1", text);
            }
            last = event.attempt;
        }
    }
}

/// I3: a claim is accepted once between two decisions about it, it is its attempt's last event, and
/// the result of the session is that of its last claim.
fn results(task: &FinalTask, session: &v1::Session, found: &mut Vec<Violation>) {
    let name = format!("{} of {}", session.name, task.task.id);
    let mut over: BTreeSet<(&str, u32)> = BTreeSet::new();
    let mut open = false;
    let mut sent: Option<(u32, &str)> = None;
    let mut claimed: Option<Option<&str>> = None;
    for event in of_session(task, session) {
        let key = (event.job().as_str(), event.attempt);
        if event.job() == v1::JobKind::Session && over.contains(&key) {
            violation(
                found,
                "I3",
                format!("attempt {} of {name} went on after its end", event.attempt),
            );
        }
        if let (_, Some(Body::ResultCommitted(result))) = parts(event) {
            sent = result
                .result
                .as_ref()
                .map(|result| (event.attempt, result.commit.as_str()));
        }
        match outcome(event) {
            None => continue,
            Some(Outcome::Claimed(_)) => {
                if open {
                    violation(found, "I3", format!("{name} was claimed twice"));
                }
                open = true;
                let own = sent.filter(|(attempt, _)| *attempt == event.attempt);
                claimed = Some(own.map(|(_, commit)| commit));
            }
            Some(Outcome::Verdict(_) | Outcome::Failure(_)) => open = false,
        }
        over.insert(key);
    }
    let result = session.result.as_ref().map(|result| result.commit.as_str());
    match (result, claimed) {
        (None, Some(Some(accepted))) if is_kept(session.state()) => {
            let text = format!("the result {accepted} of {name} is gone");
            violation(found, "I3", text);
        }
        (None, _) => {}
        // Nobody claimed it.
        (Some(_), _) if session.is_unfinished => {
            if is_kept(session.state()) {
                violation(found, "I3", format!("the result of {name} is claimed and unfinished"));
            }
        }
        (Some(commit), Some(Some(accepted))) if commit == accepted => {}
        (Some(commit), _) => {
            let text = format!("the result {commit} of {name} is not what its last claim said: {claimed:?}");
            violation(found, "I3", text);
        }
    }
}

/// Whether a session in this state has the result that it claimed.
const fn is_kept(state: v1::SessionState) -> bool {
    match state {
        v1::SessionState::Claimed
        | v1::SessionState::Verifying
        | v1::SessionState::Verified
        | v1::SessionState::Rejected
        | v1::SessionState::Unverified => true,
        v1::SessionState::Unspecified
        | v1::SessionState::Queued
        | v1::SessionState::Running
        | v1::SessionState::Saving
        | v1::SessionState::Failed
        | v1::SessionState::Cancelled => false,
    }
}

fn outcome(event: &v1::SessionEvent) -> Option<&Outcome> {
    match parts(event) {
        (_, Some(Body::Finished(finished))) => finished.outcome.as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{broken, claimed, event, grant};
    use super::*;

    #[test]
    fn an_older_attempt_that_was_taken_after_a_newer_one_is_found() {
        broken("I1", |_, end| {
            let late = event(1, 4, Body::Activity(v1::Activity::default()));
            end.tasks[0].events.push(late);
        });
    }

    #[test]
    fn a_write_after_the_lease_was_given_away_is_found() {
        broken("I1", |history, _| {
            history.entries.push(grant(1, "a", "token 1"));
            history.entries.push(grant(2, "b", "token 2"));
            history.add("agent", What::Sent("a".to_owned(), Write::Events(1)));
        });
    }

    #[test]
    fn a_write_before_it_is_none() {
        let (mut history, end) = super::super::sample::sample();
        history.entries.push(grant(1, "a", "token 1"));
        history.add("agent", What::Sent("a".to_owned(), Write::Events(3)));
        history.entries.push(grant(2, "b", "token 2"));
        for again in [1, 2, 3] {
            history.add("agent", What::Sent("a".to_owned(), Write::Events(again)));
        }
        super::super::sample::good(&(history, end));
    }

    #[test]
    fn a_token_or_a_number_used_twice_is_found() {
        broken("I2", |history, _| {
            history.entries.push(grant(1, "a", "token"));
            history.entries.push(grant(2, "b", "token"));
        });
        broken("I2", |history, _| {
            history.entries.push(grant(1, "a", "token 1"));
            history.entries.push(grant(1, "b", "token 2"));
        });
        broken("I2", |history, _| {
            history.entries.push(grant(2, "a", "token 1"));
            history.entries.push(grant(1, "b", "token 2"));
        });
    }

    #[test]
    fn a_result_that_is_accepted_twice_is_found() {
        broken("I3", |_, end| {
            let again = event(3, 1, claimed());
            end.tasks[0].events.push(again);
            end.tasks[0].task.sessions[0].attempts = 3;
        });
    }

    #[test]
    fn a_result_of_another_attempt_is_found() {
        broken("I3", |_, end| {
            let result = end.tasks[0].task.sessions[0].result.as_mut().unwrap();
            result.commit = "d".repeat(40);
        });
    }

    #[test]
    fn words_after_the_end_are_found() {
        broken("I3", |_, end| {
            let late = event(2, 3, Body::Activity(v1::Activity::default()));
            end.tasks[0].events.push(late);
        });
    }
}
