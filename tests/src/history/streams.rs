//! I4: events and bytes have no gap and no repeat, in the final state and for every watcher on the
//! way, and data that was acknowledged to an agent exists.

use std::collections::BTreeMap;

use kage_proto::v1;

use super::{Final, FinalTask, History, JobKey, Sight, StreamKey, Violation, What, Write, parts, task, violation};

pub(super) fn check(history: &History, end: &Final, found: &mut Vec<Violation>) {
    for task in &end.tasks {
        numbers(task, found);
    }
    watchers(history, end, found);
    acknowledged(history, end, found);
}

/// Events of an attempt count from one.
fn numbers(task: &FinalTask, found: &mut Vec<Violation>) {
    let mut last: BTreeMap<(JobKey, u32), u64> = BTreeMap::new();
    let mut claims: BTreeMap<&str, u32> = BTreeMap::new();
    for event in &task.events {
        let (seq, body) = parts(event);
        let mut job = task.job(event);
        if job.job == "verify" {
            // Each claim has a verify job of its own, with attempts from one.
            let claim = claims.get(event.session.as_str()).copied().unwrap_or_default();
            job.job = format!("verify of claim {claim}");
        } else if let Some(v1::event::Body::Finished(v1::Finished {
            outcome: Some(v1::finished::Outcome::Claimed(_)),
        })) = body
        {
            *claims.entry(&event.session).or_default() += 1;
        }
        let expected = last.entry((job, event.attempt)).or_default();
        *expected += 1;
        if seq != *expected {
            let text = format!(
                "event {seq} of attempt {} of {} {} should be {expected}",
                event.attempt, event.session, task.task.id
            );
            violation(found, "I4", text);
            *expected = seq;
        }
    }
}

/// A watcher saw a prefix of the final events, in the same order.
fn watchers(history: &History, end: &Final, found: &mut Vec<Violation>) {
    let mut events: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut output: BTreeMap<(&str, StreamKey), usize> = BTreeMap::new();
    for (_, who, what) in history.each() {
        let What::Saw(id, sight) = what else {
            continue;
        };
        let Some(task) = task(end, id) else {
            // I6 reports that.
            continue;
        };
        match sight {
            Sight::Task(_) => {}
            Sight::Event(event) => {
                let at = events.entry((who, id)).or_default();
                if task.events.get(*at) != Some(&**event) {
                    let text = format!(
                        "{who} saw as event {at} of {id}: {event:?}; there is {:?}",
                        task.events.get(*at)
                    );
                    violation(found, "I4", text);
                }
                *at += 1;
            }
            Sight::Output(chunk) => {
                let key = stream_key(id, chunk);
                let all = task.output.get(&key).map_or(&[][..], Vec::as_slice);
                let at = output.entry((who, key)).or_default();
                let same = chunk.offset == *at as u64 && all.get(*at..*at + chunk.data.len()) == Some(&chunk.data[..]);
                if !same {
                    let text = format!("{who} saw other bytes of {id} {} at {}", chunk.session, chunk.offset);
                    violation(found, "I4", text);
                }
                *at += chunk.data.len();
            }
        }
    }
}

/// The stream of a piece of output.
#[must_use]
pub fn stream_key(task: &str, chunk: &v1::OutputChunk) -> StreamKey {
    StreamKey {
        job: JobKey {
            task: task.to_owned(),
            session: chunk.session.clone(),
            job: chunk.job().as_str().to_owned(),
        },
        attempt: chunk.attempt,
        stream: chunk.stream,
    }
}

/// Data that was acknowledged to agents, compared with the bytes that they sent.
fn acknowledged(history: &History, end: &Final, found: &mut Vec<Violation>) {
    let grants = history.grants();
    for (_, _, what) in history.each() {
        let (What::AckedEvents(attempt, _) | What::AckedOutput(attempt, ..) | What::Sent(attempt, _)) = what else {
            continue;
        };
        let Some((_, job, number)) = grants.get(attempt.as_str()) else {
            violation(found, "I4", format!("{attempt} was never given to anybody"));
            continue;
        };
        let Some(task) = task(end, &job.task) else {
            violation(found, "I6", format!("task {} was worked on and is lost", job.task));
            continue;
        };
        let stream = |stream| {
            let key = StreamKey {
                job: (*job).clone(),
                attempt: *number,
                stream,
            };
            task.output.get(&key).map_or(&[][..], Vec::as_slice)
        };
        match what {
            What::AckedEvents(_, seq) => {
                let of_it = |event: &&v1::SessionEvent| task.job(event) == **job && event.attempt == *number;
                let stored = task.events.iter().filter(of_it).count() as u64;
                if stored < *seq {
                    let text =
                        format!("{seq} events of attempt {number} of {job:?} were acknowledged; {stored} are there");
                    violation(found, "I4", text);
                }
            }
            What::AckedOutput(_, kind, offset) => {
                let stored = stream(*kind).len() as u64;
                if stored < *offset {
                    let text =
                        format!("{offset} bytes of attempt {number} of {job:?} were acknowledged; {stored} are there");
                    violation(found, "I4", text);
                }
            }
            What::Sent(
                _,
                Write::Output {
                    stream: kind,
                    offset,
                    bytes,
                },
            ) => {
                // Unacknowledged data may be missing, from some byte on.
                let stored = usize::try_from(*offset).ok().and_then(|at| stream(*kind).get(at..));
                let stored = stored.unwrap_or_default();
                let common = stored.len().min(bytes.len());
                if stored[..common] != bytes[..common] {
                    let text = format!("bytes at {offset} of attempt {number} of {job:?} are not those that were sent");
                    violation(found, "I4", text);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{broken, grant};
    use super::*;

    #[test]
    fn a_gap_and_a_repeat_are_found() {
        broken("I4", |history, end| {
            history.entries.retain(|entry| !matches!(entry.what, What::Saw(..)));
            drop(end.tasks[0].events.remove(1));
        });
        broken("I4", |history, end| {
            history.entries.retain(|entry| !matches!(entry.what, What::Saw(..)));
            let twice = end.tasks[0].events[1].clone();
            end.tasks[0].events.insert(1, twice);
        });
    }

    #[test]
    fn a_watcher_who_missed_or_saw_something_else_is_found() {
        broken("I4", |history, _| {
            let events = |entry: &super::super::Observation| matches!(entry.what, What::Saw(_, Sight::Event(_)));
            let at = history.entries.iter().position(events).unwrap();
            drop(history.entries.remove(at));
        });
        broken("I4", |history, _| {
            for entry in &mut history.entries {
                if let What::Saw(_, Sight::Output(chunk)) = &mut entry.what {
                    chunk.data = b"other".to_vec().into();
                }
            }
        });
    }

    #[test]
    fn lost_output_is_found() {
        broken("I4", |_, end| end.tasks[0].output.clear());
    }

    #[test]
    fn an_acknowledged_event_that_is_gone_is_found() {
        broken("I4", |history, _| {
            history.entries.insert(0, grant(2, "b", "token"));
            history.add("agent", What::AckedEvents("b".to_owned(), 3));
        });
    }

    #[test]
    fn acknowledged_bytes_that_are_gone_or_others_are_found() {
        broken("I4", |history, _| {
            history.entries.insert(0, grant(2, "b", "token"));
            history.add("agent", What::AckedOutput("b".to_owned(), 1, 100));
        });
        broken("I4", |history, _| {
            history.entries.insert(0, grant(2, "b", "token"));
            let write = Write::Output {
                stream: 1,
                offset: 0,
                bytes: b"xello".to_vec(),
            };
            history.add("agent", What::Sent("b".to_owned(), write));
        });
    }
}
