//! Whose turn it is after the end of a session: core decides by the course of the task, and jobs are
//! released or stopped here. All of it is in rows, so nothing is lost with a coordinator.

use kage_core::checkpoint::Points;
use kage_core::event::{Verdict, VerdictKind};
use kage_core::job::{JobState, Subject};
use kage_core::session::{Climbed, Session, SessionStateKind, Spared};
use kage_core::task::Turn;
use kage_core::time::Timestamp;

use super::{points_of, session_of, stop};
use crate::store::rows::{Failed, JobRow, Rows, TaskHead};

/// Carries out what the end of a session means for the other sessions of its task. `said` is the
/// verdict by which it ended, with its output, if it was one.
pub(super) fn after(
    rows: &mut dyn Rows,
    head: &mut TaskHead,
    ended: &Session,
    said: Option<&Verdict>,
    now: Timestamp,
) -> Result<(), Failed> {
    let verified = head.standing.get(&SessionStateKind::Verified).copied().unwrap_or(0);
    match head.policy.course.after(ended.state.kind(), verified) {
        Turn::Unchanged => Ok(()),
        Turn::Next => {
            let rejecting = said.filter(|verdict| verdict.kind == VerdictKind::Failed);
            let Some(verdict) = rejecting.or_else(|| ended.state.verdict()) else {
                return Ok(());
            };
            let climbed = Climbed {
                from: ended.name.clone(),
                verdict: verdict.clone(),
            };
            next(rows, head, climbed, now)
        }
        Turn::Enough(spared) => {
            for row in rows.open_jobs(head.id)? {
                if row.job.subject != Subject::Base && row.job.subject != Subject::Session(ended.id) {
                    stop_session(rows, head, row, Some(spared), now)?;
                }
            }
            Ok(())
        }
    }
}

/// Releases the first session that waits for its turn.
fn next(rows: &mut dyn Rows, head: &TaskHead, climbed: Climbed, now: Timestamp) -> Result<(), Failed> {
    let waiting = rows.open_jobs(head.id)?.into_iter();
    let waiting = waiting.filter_map(|row| match row.job.state {
        JobState::Later { position } => Some((position, row)),
        JobState::Queued { .. } | JobState::Leased { .. } | JobState::Done => None,
    });
    let Some((_, mut row)) = waiting.min_by_key(|(position, _)| *position) else {
        return Ok(());
    };
    let mut session = session_of(rows, head, &row.job)?;
    if row.job.take_turn(&mut session, climbed, now) {
        row.queued_at = now;
        rows.save_job(&row)?;
        rows.save_session(&session)?;
    }
    Ok(())
}

/// Stops the session of an open job. True when that moved it at once; otherwise its agent is told.
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
