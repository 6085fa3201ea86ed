//! Whose turn it is after the end of a session: core decides by the course of the task, and jobs are
//! released or stopped here. All of it is in rows, so nothing is lost with a coordinator.

use kage_core::checkpoint::Points;
use kage_core::event::{Verdict, VerdictKind};
use kage_core::job::{JobState, Subject};
use kage_core::session::{Climbed, Session, SessionStateKind, Spared};
use kage_core::task::{Course, EndOfTurn, Turn};
use kage_core::time::Timestamp;

use super::{points_of, session_of, stop};
use crate::store::rows::{Failed, JobRow, Rows, TaskHead};

/// The session of a ladder whose turn comes next.
struct NextRung {
    position: u32,
    row: JobRow,
    session: Session,
    /// How many wait for their turn, this one among them.
    waiting: u32,
}

/// Carries out what the end of a session means for the other sessions of its task. `said` is the
/// verdict by which it ended, with its output, if it was one.
pub(super) fn after(
    rows: &mut dyn Rows,
    head: &mut TaskHead,
    ended: &Session,
    said: Option<&Verdict>,
    now: Timestamp,
) -> Result<(), Failed> {
    if ended.spared.is_some() && ended.spared_for().is_none() {
        // It was faster than the order to stop.
        let mut kept = ended.clone();
        kept.spared = None;
        rows.save_session(&kept)?;
    }
    if ended.cancel_requested && ended.spared.is_none() {
        head.policy.stopped_by_person();
    }
    let next = match head.policy.course {
        Course::Race => return Ok(()),
        Course::FirstVerified(_) => None,
        Course::Ladder => next_rung(rows, head)?,
    };
    let waiting = next.as_ref().map_or(0, |next| next.waiting);
    let end = EndOfTurn {
        state: ended.state.kind(),
        verified: head.standing.get(&SessionStateKind::Verified).copied().unwrap_or(0),
        working: head.open_sessions().saturating_sub(waiting),
        highest: next.as_ref().is_some_and(|next| ended.is_rung_below(next.position)),
        due: next.as_ref().is_some_and(|next| next.session.climbed.is_some()),
    };
    match head.policy.course.after(end) {
        Turn::Unchanged => Ok(()),
        Turn::Due => {
            let Some(mut next) = next else {
                return Ok(());
            };
            if let Some(climbed) = climbed(ended, said, next.position) {
                next.session.climbed = Some(Box::new(climbed));
                rows.save_session(&next.session)?;
            }
            Ok(())
        }
        Turn::Next => {
            let Some(mut next) = next else {
                return Ok(());
            };
            // It was told already when another one ends than the rejected one.
            let told = match end.highest {
                true => climbed(ended, said, next.position),
                false => next.session.climbed.take().map(|climbed| *climbed),
            };
            match told {
                Some(told) => release(rows, next, told, now),
                None => Ok(()),
            }
        }
        Turn::Enough(spared) => {
            // What works on a ladder beside the highest, a person asked for.
            let all = head.policy.course != Course::Ladder;
            for row in rows.open_jobs(head.id)? {
                let waits = matches!(row.job.state, JobState::Later { .. });
                let other = row.job.subject != Subject::Base && row.job.subject != Subject::Session(ended.id);
                if other && (all || waits) {
                    stop_session(rows, head, row, Some(spared), now)?;
                }
            }
            Ok(())
        }
    }
}

/// What the session at this position is told of one that was rejected.
fn climbed(ended: &Session, said: Option<&Verdict>, position: u32) -> Option<Climbed> {
    let rejecting = said.filter(|verdict| verdict.kind == VerdictKind::Failed);
    let verdict = rejecting.or_else(|| ended.state.verdict())?;
    Some(Climbed {
        from: ended.name.clone(),
        verdict: verdict.clone(),
        position: Some(position),
    })
}

/// The first session that waits for its turn; `None`: none waits.
fn next_rung(rows: &mut dyn Rows, head: &TaskHead) -> Result<Option<NextRung>, Failed> {
    let mut waiting = 0;
    let mut first: Option<(u32, JobRow)> = None;
    for row in rows.open_jobs(head.id)? {
        let JobState::Later { position } = row.job.state else {
            continue;
        };
        waiting += 1;
        if first.as_ref().is_none_or(|(lowest, _)| position < *lowest) {
            first = Some((position, row));
        }
    }
    let Some((position, row)) = first else {
        return Ok(None);
    };
    let session = session_of(rows, head, &row.job)?;
    Ok(Some(NextRung {
        position,
        row,
        session,
        waiting,
    }))
}

/// Gives the next session its turn.
fn release(rows: &mut dyn Rows, next: NextRung, climbed: Climbed, now: Timestamp) -> Result<(), Failed> {
    let NextRung {
        mut row, mut session, ..
    } = next;
    if row.job.take_turn(&mut session, climbed, now) {
        row.queued_at = now;
        rows.save_job(&row)?;
        rows.save_session(&session)?;
    }
    Ok(())
}

/// Stops the session of an open job, because a person said so or its task does without it (`spared`). True
/// when that moved it at once; otherwise its agent is told.
pub(super) fn stop_session(
    rows: &mut dyn Rows,
    head: &mut TaskHead,
    mut row: JobRow,
    spared: Option<Spared>,
    now: Timestamp,
) -> Result<bool, Failed> {
    let mut session = session_of(rows, head, &row.job)?;
    let before = session.state.kind();
    session.spared = spared.or(session.spared);
    if spared.is_none() {
        head.policy.stopped_by_person();
    }
    if let JobState::Later { .. } = row.job.state {
        // It may have been due, but its turn does not come any more.
        session.climbed = None;
    }
    let points = match row.job.state {
        JobState::Queued { .. } | JobState::Later { .. } => points_of(rows, &session)?,
        JobState::Leased { .. } | JobState::Done => Points::default(),
    };
    if row.job.cancel(&mut session, &points, now) {
        rows.save_job(&row)?;
    } else {
        session.cancel_requested = true;
        if let JobState::Leased { attempt } = row.job.state {
            stop(rows, attempt, &row.job, now)?;
        }
    }
    rows.save_session(&session)?;
    Ok(head.session_moved(before, session.state.kind()))
}
