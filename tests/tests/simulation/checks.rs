//! The checks at the end of a world, besides those of every history: the coordinator has a gapless
//! beginning of what each attempt's adapter reported; all of it, if the end of the attempt was
//! accepted; and every task has ended.

use std::collections::BTreeMap;

use kage_core::event::OutputStream;
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;
use kage_tests::history::{Final, FinalTask, JobKey, StreamKey};

use crate::adapter::SCRIPTED;
use crate::world::{Emitted, End};

/// The events of one attempt of one session.
type Attempts<'a> = BTreeMap<(&'a str, u32), Vec<&'a Body>>;

/// Lists every violation.
pub(crate) fn check(end: &Final, emitted: &BTreeMap<String, Emitted>) -> Vec<String> {
    let mut wrong = Vec::new();
    for task in &end.tasks {
        if task.task.state() == v1::TaskState::Running {
            wrong.push(format!("task {} never ended", task.task.id));
        }
        for ((session, number), events) in attempts(task) {
            if session.starts_with(SCRIPTED) {
                let name = format!("attempt {number} of {session} of {}", task.task.id);
                compare(task, session, number, &events, emitted, &mut |text| {
                    wrong.push(format!("{name}: {text}"));
                });
            }
        }
    }
    wrong
}

fn attempts(task: &FinalTask) -> Attempts<'_> {
    let mut attempts = Attempts::new();
    let of_sessions = task.events.iter().filter(|event| event.job() == v1::JobKind::Session);
    for event in of_sessions {
        if let Some(body) = event.event.as_ref().and_then(|event| event.body.as_ref()) {
            let key = (event.session.as_str(), event.attempt);
            attempts.entry(key).or_default().push(body);
        }
    }
    attempts
}

fn compare(
    task: &FinalTask,
    session: &str,
    number: u32,
    events: &[&Body],
    emitted: &BTreeMap<String, Emitted>,
    wrong: &mut dyn FnMut(String),
) {
    let told: Vec<&str> = events
        .iter()
        .filter_map(|body| match body {
            Body::Activity(activity) => Some(activity.summary.as_str()),
            _ => None,
        })
        .collect();
    // An adapter's first report names its attempt.
    let Some(first) = told.first() else {
        return;
    };
    let Some(emitted) = first.strip_prefix("attempt ").and_then(|id| emitted.get(id)) else {
        return wrong(format!("{first:?} was never said"));
    };
    let finished = events.iter().rev().find_map(|body| match body {
        Body::Finished(finished) => finished.outcome.as_ref(),
        _ => None,
    });
    // A stopped attempt may have reported less than its adapter did.
    let whole = match finished {
        Some(Outcome::Claimed(_)) if emitted.end != Some(End::Done) => {
            return wrong(format!("claimed, and its adapter ended as {:?}", emitted.end));
        }
        Some(Outcome::Claimed(_)) => true,
        Some(Outcome::Failure(failure)) => failure.message == "as the seed has it",
        Some(Outcome::Verdict(_)) => return wrong("a session has no verdict of its own".to_owned()),
        None => false,
    };
    if !starts(&emitted.activities, &told, whole) {
        wrong(format!("told {told:?} of {:?}", emitted.activities));
    }
    for stream in OutputStream::ALL {
        let key = StreamKey {
            job: JobKey {
                task: task.task.id.clone(),
                session: session.to_owned(),
                job: "session".to_owned(),
            },
            attempt: number,
            stream: v1::OutputStream::from(stream).into(),
        };
        let stored = task.output.get(&key).map_or(&[][..], Vec::as_slice);
        let printed = emitted.output.get(stream.as_str()).map_or(&[][..], Vec::as_slice);
        let same = printed.starts_with(stored) && (!whole || printed.len() == stored.len());
        if !same {
            let (stored, printed) = (stored.len(), printed.len());
            wrong(format!("{stored} bytes of {} for {printed}", stream.as_str()));
        }
    }
}

/// True if `told` equals `said`, or is its beginning.
fn starts(said: &[String], told: &[&str], whole: bool) -> bool {
    told.len() <= said.len()
        && (!whole || told.len() == said.len())
        && told.iter().zip(said).all(|(told, said)| told == said)
}
