//! Events of a live attempt: accepted once and in order, with their consequences.

use kage_core::attempt::{Admission, Attempt};
use kage_core::budget;
use kage_core::checkpoint::Safety;
use kage_core::event::{AttemptOutcome, Event, EventBody, InvalidBatch, check_batch};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::{Oid, SessionId};
use kage_core::job::{JobKind, Subject};
use kage_core::ledger::CallRow;
use kage_core::session::Session;
use kage_core::time::Timestamp;

use super::ending::End;
use super::{Command, calls, job_of, session_of, task_of};
use crate::store::command::{AppendEvents, Appended};
use crate::store::rows::{Failed, Rows, TaskHead};
use crate::store::unit::Key;

impl Command for AppendEvents {
    type Outcome = Appended;

    fn reads(&self) -> Vec<Key> {
        let mut checkpoints = Vec::new();
        for event in &self.events {
            if let EventBody::CheckpointTaken(taken) = &event.body {
                checkpoints.push((taken.parent.clone(), taken.tree.clone()));
            }
        }
        let mut calls = Vec::new();
        let mut reports = false;
        for event in &self.events {
            if let EventBody::UsageRecorded { call, metered, .. } = &event.body {
                calls.extend(call.as_ref().map(|call| call.id));
                reports |= !metered;
            }
        }
        let mut keys = vec![Key::Reporting {
            attempt: self.claim.attempt,
            checkpoints,
            calls,
            ends: self.events.iter().any(|event| event.body.is_last()),
        }];
        if reports || self.begins() {
            keys.push(Key::Budgets {
                attempt: self.claim.attempt,
                rules: self.rules.clone(),
                now: self.now,
            });
        }
        keys
    }

    fn apply(mut self, rows: &mut dyn Rows) -> Result<Appended, Failed> {
        if let Err(invalid) = check_batch(&self.events) {
            return Ok(Appended::Invalid(invalid));
        }
        let Some(mut attempt) = rows.attempt(self.claim.attempt)? else {
            return Ok(Appended::UnknownAttempt);
        };
        for event in &mut self.events {
            event.body.ran_in(attempt.contained);
        }
        let first = self.events.first().map_or(0, |event| event.seq);
        let admission = attempt.admit(&self.claim.token_hash, self.agent, first, self.events.len());
        let fresh = match admission {
            Admission::Accept { skip } => self.events.get(skip..).unwrap_or_default(),
            Admission::Gap { acked_seq } => return Ok(Appended::Gap { acked_seq }),
            Admission::Stale(stale) => return Ok(Appended::Stale(stale)),
        };
        if fresh.is_empty() {
            return Ok(Appended::Acked { seq: attempt.acked_seq });
        }
        let mut head = task_of(rows, &attempt)?;
        let mut row = job_of(rows, &attempt)?;
        if row.job.kind != JobKind::Session
            && let Some(event) = fresh.iter().find(|event| event.body.is_of_sessions())
        {
            return Ok(Appended::Invalid(InvalidBatch::NotOfThisJob(event.seq)));
        }
        if let Some(stray) = stray_checkpoint(rows, &head, attempt.session, fresh)? {
            return Ok(Appended::Invalid(stray));
        }
        let before = session_of(rows, &head, &row.job)?;
        let mut session = before.clone();
        let mut end = None;
        let mut reported = Vec::new();
        for event in fresh {
            head.last_event += 1;
            rows.insert_event(head.id, head.last_event, attempt.id, event)?;
            if row.job.subject != Subject::Base {
                let of = (&head, &attempt, &mut session);
                let booked = calls::book_event(rows, of, event, &self.prices, self.now)?;
                reported.extend(booked.filter(|row| !row.metered));
                session.record(event, self.now);
            }
            checkpoint(rows, &head, &session, event, self.now)?;
            attempt.acked_seq = event.seq;
            if let EventBody::Finished(outcome) = &event.body {
                end = Some((outcome, event.at));
            }
        }
        // A program that told of calls of its own in an earlier attempt asks for none of them now either.
        let goes_on =
            self.begins() && row.job.kind == JobKind::Session && before.usage.iter().any(|entry| !entry.metered);
        if goes_on || !reported.is_empty() {
            self.hold_to_budgets(rows, &head, &mut attempt, &reported)?;
        }
        if let Some((outcome, said)) = end {
            let instead = attempt
                .over_budget
                .clone()
                .filter(|_| matches!(outcome, AttemptOutcome::Failed(_)));
            let instead =
                instead.map(|reason| AttemptOutcome::Failed(Failure::new(FailureKind::BudgetExceeded, reason)));
            let outcome = (instead.as_ref().unwrap_or(outcome), said);
            let ended = End {
                attempt: &mut attempt,
                row: &mut row,
                session: &mut session,
                before: before.state.kind(),
                head: &mut head,
            };
            ended.finish(rows, outcome, self.next_job, self.jitter, self.now)?;
        } else if session != before {
            rows.save_session(&session)?;
        }
        attempt.hear(self.now);
        rows.save_attempt(&attempt)?;
        rows.save_task(&head)?;
        Ok(Appended::Acked { seq: attempt.acked_seq })
    }
}

impl AppendEvents {
    /// True when the first event of the attempt is among them.
    fn begins(&self) -> bool {
        self.events.first().is_some_and(|event| event.seq == 1)
    }

    /// Has an attempt stopped when a budget is used up, or its program reports tokens of a model without a
    /// price where only money is limited. Reports come afterwards, so nothing else can be done about them.
    fn hold_to_budgets(
        &self,
        rows: &mut dyn Rows,
        head: &TaskHead,
        attempt: &mut Attempt,
        reported: &[CallRow],
    ) -> Result<(), Failed> {
        let mut budgets = calls::budgets(rows, head, attempt, &self.rules, self.now)?;
        for budget in &mut budgets {
            for row in reported {
                budget.spent.add(row.amount(), row.usage.total());
            }
        }
        let unpriced = reported
            .iter()
            .find(|row| row.money.amount.is_none() && row.usage.total() > 0)
            .and_then(|row| budget::unpriced(&budgets, &row.model));
        if let Some(reason) = budget::passed(&budgets).or(unpriced) {
            attempt.over_budget.get_or_insert(reason);
            attempt.ask_to_stop(self.now);
        }
        Ok(())
    }
}

/// The first checkpoint that follows neither the base nor another checkpoint of its session: it
/// could never be restored.
fn stray_checkpoint(
    rows: &mut dyn Rows,
    head: &TaskHead,
    session: SessionId,
    events: &[Event],
) -> Result<Option<InvalidBatch>, Failed> {
    let mut told: Vec<&Oid> = head.base.iter().collect();
    for event in events {
        let EventBody::CheckpointTaken(taken) = &event.body else {
            continue;
        };
        let known = told.contains(&&taken.parent) || rows.position(head.id, session, &taken.parent)?.is_some();
        if !known {
            return Ok(Some(InvalidBatch::UnknownParent(event.seq)));
        }
        told.push(&taken.commit);
    }
    Ok(None)
}

/// Stores the checkpoint that an event reports; `session` counts it already.
fn checkpoint(
    rows: &mut dyn Rows,
    head: &TaskHead,
    session: &Session,
    event: &Event,
    now: Timestamp,
) -> Result<(), Failed> {
    let EventBody::CheckpointTaken(taken) = &event.body else {
        return Ok(());
    };
    let parent = rows.position(session.task, session.id, &taken.parent)?;
    // The conversation of another adapter cannot be resumed.
    let before = parent.map_or(
        0,
        |(position, adapter)| if adapter == session.adapter { position } else { 0 },
    );
    let mut checkpoint = session.checkpoint(taken.clone(), before, event.at, now);
    checkpoint.safety = rows.safety(session.task, &taken.tree)?;
    let of_base = head.base.as_ref().is_some_and(|base| taken.is_base(base));
    if checkpoint.safety == Safety::Unknown && of_base {
        checkpoint.safety = head.base_safety();
    }
    rows.insert_checkpoint(session.task, &checkpoint)
}
