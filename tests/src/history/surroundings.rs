//! I7 to I13: listed things exist, worktrees have one owner, sums are right, decisions are
//! recorded, nothing is left running, and faults are reported.

use std::collections::BTreeMap;

use kage_proto::convert::time::time;
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;

use super::{Final, FinalTask, History, Violation, What, of_session, parts, violation};

/// The end of a violation about the times of incidents: a clock that was set back excuses it.
pub const OUT_OF_ORDER: &str = "are out of order";

const REMEMBERED: usize = 16;

pub(super) fn check(history: &History, end: &Final, found: &mut Vec<Violation>) {
    for listed in &end.listed {
        if let Some(missing) = &listed.missing {
            violation(
                found,
                "I7",
                format!("{} is listed, and cannot be had: {missing}", listed.name),
            );
        }
    }
    for task in &end.tasks {
        checkpoints(task, found);
    }
    worktrees(history, found);
    for task in &end.tasks {
        for session in &task.task.sessions {
            sums(task, session, found);
            incidents(task, session, found);
        }
    }
    for survivor in &end.survivors {
        violation(found, "I11", format!("still running: {survivor}"));
    }
    words(end, found);
}

/// I7: a checkpoint is listed if and only if its event was accepted; numbers have no gap, and each
/// follows the base or an earlier one.
fn checkpoints(task: &FinalTask, found: &mut Vec<Violation>) {
    let spec = task.task.spec.as_ref();
    let base = spec
        .and_then(|spec| spec.repository.as_ref())
        .map(|repository| repository.base_commit.as_str());
    for session in &task.task.sessions {
        let told = of_session(task, session).filter_map(|event| match parts(event) {
            (_, Some(Body::CheckpointTaken(taken))) => Some(taken.commit.as_str()),
            _ => None,
        });
        let told: Vec<&str> = told.collect();
        let listed: Vec<_> = task.checkpoints.iter().filter(|c| c.session == session.name).collect();
        let commits: Vec<&str> = listed.iter().map(|checkpoint| checkpoint.commit.as_str()).collect();
        let name = format!("{} of {}", session.name, task.task.id);
        if told != commits {
            violation(
                found,
                "I7",
                format!("{name} told of checkpoints {told:?}, and {commits:?} are listed"),
            );
        }
        for (index, checkpoint) in listed.iter().enumerate() {
            let before = &commits[..index];
            let follows = base == Some(&checkpoint.parent) || before.contains(&checkpoint.parent.as_str());
            if checkpoint.number as usize != index + 1 || !follows {
                let text = format!(
                    "checkpoint {} of {name} follows {}, at place {index}",
                    checkpoint.number, checkpoint.parent
                );
                violation(found, "I7", text);
            }
        }
    }
}

/// I8: a program that begins in a worktree finds no other program there.
fn worktrees(history: &History, found: &mut Vec<Violation>) {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (_, _, what) in history.each() {
        match what {
            What::Began { program, worktree } => {
                if let Some(owner) = owners.insert(worktree, program) {
                    violation(found, "I8", format!("{program} and {owner} work in {worktree}"));
                }
            }
            What::Ended(program) => owners.retain(|_, owner| *owner != program),
            _ => {}
        }
    }
}

/// I9: a session's usage is the sum of its accepted events.
fn sums(task: &FinalTask, session: &v1::Session, found: &mut Vec<Violation>) {
    let mut sum = v1::Usage::default();
    for event in task.events.iter().filter(|event| event.session == session.name) {
        if let (_, Some(Body::UsageRecorded(recorded))) = parts(event) {
            let usage = recorded.usage.unwrap_or_default();
            sum.input += usage.input;
            sum.cache_write_5m += usage.cache_write_5m;
            sum.cache_write_1h += usage.cache_write_1h;
            sum.cache_read += usage.cache_read;
            sum.output += usage.output;
            sum.reasoning += usage.reasoning;
            sum.unreported |= usage.unreported;
        }
    }
    let told = session.usage.unwrap_or_default();
    if told != sum {
        let text = format!(
            "{} of {} used {sum:?}, and is said to have used {told:?}",
            session.name, task.task.id
        );
        violation(found, "I9", text);
    }
}

/// I10: every failed attempt has its incident, and incidents follow each other in time.
fn incidents(task: &FinalTask, session: &v1::Session, found: &mut Vec<Violation>) {
    let name = format!("{} of {}", session.name, task.task.id);
    if !session.incidents.is_sorted_by_key(|incident| incident.at.map(time)) {
        violation(found, "I10", format!("incidents of {name} {OUT_OF_ORDER}"));
    }
    // A stopped session decides nothing about its last failure.
    if session.state() == v1::SessionState::Cancelled || session.incidents.len() >= REMEMBERED {
        return;
    }
    for event in of_session(task, session) {
        let (_, Some(Body::Finished(finished))) = parts(event) else {
            continue;
        };
        let Some(Outcome::Failure(_)) = finished.outcome else {
            continue;
        };
        let told = session
            .incidents
            .iter()
            .any(|incident| incident.job == event.job && incident.attempt == event.attempt);
        if !told {
            let text = format!(
                "nothing was decided about the failure of attempt {} of {name}",
                event.attempt
            );
            violation(found, "I10", text);
        }
    }
}

/// I13: deliberate faults are reported, and no others are.
fn words(end: &Final, found: &mut Vec<Violation>) {
    for said in &end.said {
        let expected = end.broken.iter().any(|(words, _)| said.line.contains(words));
        if !expected {
            violation(found, "I13", format!("{} says: {}", said.daemon, said.line));
        }
    }
    for (words, must) in &end.broken {
        if *must && !end.said.iter().any(|said| said.line.contains(words)) {
            violation(found, "I13", format!("nobody says {words:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{broken, event};
    use super::super::{Listed, Said};
    use super::*;

    #[test]
    fn a_result_that_cannot_be_fetched_is_found() {
        broken("I7", |_, end| {
            end.listed.push(Listed {
                name: "c".repeat(40),
                missing: Some("bad object".to_owned()),
            });
        });
    }

    /// Reports and lists a checkpoint after a base or `parent`.
    fn checkpointed(end: &mut Final, parent: &str) {
        let task = &mut end.tasks[0];
        task.task.spec.get_or_insert_default().repository = Some(v1::Repository {
            base_commit: "base".to_owned(),
            ..v1::Repository::default()
        });
        let taken = v1::CheckpointTaken {
            commit: "c1".to_owned(),
            ..v1::CheckpointTaken::default()
        };
        // Before the claim, which is the last event of its attempt.
        let claim = task.events.pop().unwrap();
        task.events.push(event(2, 2, Body::CheckpointTaken(taken)));
        let mut claim = claim;
        claim.event.as_mut().unwrap().seq = 3;
        task.events.push(claim);
        task.checkpoints.push(v1::Checkpoint {
            session: "only".to_owned(),
            number: 1,
            commit: "c1".to_owned(),
            parent: parent.to_owned(),
            ..v1::Checkpoint::default()
        });
    }

    #[test]
    fn checkpoints_are_those_that_were_told_each_after_one_that_is_there() {
        let (mut history, mut end) = super::super::sample::sample();
        checkpointed(&mut end, "base");
        // Watchers saw the events without it.
        history.entries.retain(|entry| !matches!(entry.what, What::Saw(..)));
        super::super::sample::good(&(history, end));
        broken("I7", |_, end| {
            checkpointed(end, "base");
            end.tasks[0].checkpoints.clear();
        });
        broken("I7", |_, end| {
            checkpointed(end, "base");
            let mut again = end.tasks[0].checkpoints[0].clone();
            again.number = 2;
            end.tasks[0].checkpoints.push(again);
        });
        broken("I7", |_, end| checkpointed(end, "stray"));
        broken("I7", |_, end| {
            checkpointed(end, "base");
            end.tasks[0].checkpoints[0].number = 2;
        });
    }

    #[test]
    fn two_programs_in_one_worktree_are_found() {
        let begin = |program: &str| What::Began {
            program: program.to_owned(),
            worktree: "w".to_owned(),
        };
        broken("I8", |history, _| {
            history.add("machine", begin("p1"));
            history.add("machine", begin("p2"));
        });
        let (mut history, end) = super::super::sample::sample();
        history.add("machine", begin("p1"));
        history.add("machine", What::Ended("p1".to_owned()));
        history.add("machine", begin("p2"));
        super::super::sample::good(&(history, end));
    }

    #[test]
    fn a_wrong_sum_is_found() {
        broken("I9", |_, end| {
            end.tasks[0].task.sessions[0].usage.get_or_insert_default().output += 1;
        });
    }

    #[test]
    fn a_failure_without_a_decision_is_found() {
        broken("I10", |_, end| end.tasks[0].task.sessions[0].incidents.clear());
        broken("I10", |_, end| {
            let incidents = &mut end.tasks[0].task.sessions[0].incidents;
            let mut earlier = incidents[0].clone();
            earlier.at = None;
            incidents.push(earlier);
        });
    }

    #[test]
    fn what_still_runs_is_found() {
        broken("I11", |_, end| end.survivors.push("sleep 1000".to_owned()));
    }

    #[test]
    fn words_without_trouble_and_trouble_without_words_are_found() {
        let line = Said {
            daemon: "coordinator".to_owned(),
            line: "ERROR cannot write output".to_owned(),
        };
        broken("I13", |_, end| end.said.push(line.clone()));
        broken("I13", |_, end| end.broken.push(("cannot write".to_owned(), true)));
        let (history, mut end) = super::super::sample::sample();
        end.said.push(line);
        end.broken.push(("cannot write".to_owned(), true));
        super::super::sample::good(&(history, end));
    }
}
