//! Whether a task is held: everything that is left of it waits until a used-up limit is reset.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kage_core::time::Timestamp;
use kage_proto::convert::time::time;
use kage_proto::v1;

use crate::output::note;
use crate::view;

/// What the sessions of a task wait for, if all remaining ones are held and the first continues
/// only after `patience`.
#[must_use]
pub fn held(task: &v1::Task, now: Timestamp, patience: Duration) -> Option<String> {
    let mut open = task
        .sessions
        .iter()
        .filter(|session| !session.state().is_ended())
        .peekable();
    open.peek()?;
    let holds: Option<Vec<_>> = open.map(|session| Some((left(session, now)?, session))).collect();
    let (wait, first) = holds?.into_iter().min_by_key(|(wait, _)| *wait)?;
    (wait > patience).then(|| format!("{}: {}", first.name, first.waiting))
}

/// By this machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(0) + since
}

/// Reports that the task is held, and how it continues.
pub(crate) fn tell(task: &v1::Task, why: &str) {
    let id = view::short_id(&task.id);
    note(&format!(
        "task {id} is held: {why}\nhint: it continues by itself; `kage wait {id} --max-hold 24h` waits for it, `kage \
         stop {id}` ends it"
    ));
}

/// How long a session is still held.
///
/// The times are the coordinator's, and this machine's clock may be another: a hold is never
/// longer than it was decided to be.
fn left(session: &v1::Session, now: Timestamp) -> Option<Duration> {
    let last = session.incidents.last()?;
    if last.action() != v1::RecoveryAction::HoldUntil || session.waiting.is_empty() {
        return None;
    }
    let until = time(last.next_attempt_at.unwrap_or_default());
    let whole = until.since(time(last.at.unwrap_or_default()));
    Some(until.since(now).min(whole))
}

#[cfg(test)]
mod tests {
    use kage_proto::convert::time::stamp;

    use super::*;

    const HOUR: u64 = 3_600_000;

    fn session(state: v1::SessionState, hold: Option<u64>) -> v1::Session {
        let incident = |until| v1::Incident {
            at: Some(stamp(Timestamp::from_millis(HOUR))),
            action: v1::RecoveryAction::HoldUntil.into(),
            next_attempt_at: Some(stamp(Timestamp::from_millis(until))),
            ..Default::default()
        };
        v1::Session {
            name: format!("s{}", hold.unwrap_or(0) / HOUR),
            state: state.into(),
            waiting: hold.map_or_else(String::new, |_| "held until later".to_owned()),
            incidents: hold.map(incident).into_iter().collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_task_is_held_when_nothing_else_is_left_for_longer_than_one_has_patience() {
        use v1::SessionState::{Failed, Queued, Running};
        let (short, long) = (session(Queued, Some(2 * HOUR)), session(Queued, Some(6 * HOUR)));
        let (runs, failed, queued) = (session(Running, None), session(Failed, None), session(Queued, None));
        let minute = Duration::from_secs(60);
        let cases = [
            (vec![], HOUR, None),
            (vec![failed.clone()], HOUR, None),
            (vec![long.clone(), failed], HOUR, Some("s6: held until later")),
            (vec![long.clone(), runs], HOUR, None),
            (vec![long.clone(), queued], HOUR, None),
            (vec![long.clone(), short.clone()], HOUR, Some("s2: held until later")),
            // The first one continues within a minute.
            (vec![long, short.clone()], 2 * HOUR - 30_000, None),
            // A clock that is a day slow does not make the hold longer than it is.
            (vec![short.clone()], 0, Some("s2: held until later")),
            (vec![short], 30 * HOUR, None),
        ];
        for (sessions, now, expected) in cases {
            let task = v1::Task {
                sessions,
                ..Default::default()
            };
            let said = held(&task, Timestamp::from_millis(now), minute);
            assert_eq!(said.as_deref(), expected, "{task:?}");
        }
    }
}
