//! Calls of models: reserved under the budgets of their scopes, settled by what they used, and never
//! forgotten. A reservation is a row that its attempt owns. It goes when its call is in the ledger or was
//! not made; the end of its attempt puts it into the ledger whole.

use kage_core::attempt::Attempt;
use kage_core::budget::{self, BudgetRule, BudgetUse, CallCost, Decision, Held, ScopeKey};
use kage_core::call::{CallEnd, CallRef, Spent};
use kage_core::event::{Event, EventBody};
use kage_core::id::{AgentId, CallId};
use kage_core::job::JobKind;
use kage_core::ledger::{CallRow, Reservation};
use kage_core::price::{Charge, PriceTable, Used};
use kage_core::session::Session;
use kage_core::time::Timestamp;
use kage_core::usage::{PicoUsd, Usage, UsageClass};

use super::{Command, job_of, session_of, task_of};
use crate::store::command::{AskToStart, CallSettled, Claim, CommitCall, MayStart, ReleaseCall, ReserveCall, Reserved};
use crate::store::rows::{Failed, Rows, TaskHead};
use crate::store::unit::Key;

impl Command for ReserveCall {
    type Outcome = Reserved;

    fn reads(&self) -> Vec<Key> {
        vec![Key::Calling {
            attempt: self.claim.attempt,
            call: self.call,
            rules: self.rules.clone(),
            now: self.now,
        }]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Reserved, Failed> {
        let attempt = match authorised(rows, &self.claim, self.agent)? {
            Ok(attempt) => attempt,
            Err(reason) => return Ok(Reserved::Stale(reason)),
        };
        if let Some(reserved) = rows.reservation(attempt.id, self.call)? {
            // Its answer was lost.
            return Ok(Reserved::Granted {
                output: reserved.output,
                warning: None,
            });
        }
        if rows.has_call(attempt.id, &self.call.to_string())? {
            return Ok(Reserved::Stale("the call has ended".to_owned()));
        }
        let head = task_of(rows, &attempt)?;
        let row = job_of(rows, &attempt)?;
        if row.job.kind != JobKind::Session {
            return Ok(Reserved::Stale("only sessions call models".to_owned()));
        }
        let budgets = budgets(rows, &head, &attempt, &self.rules, self.now)?;
        let cost = CallCost::of(&self.ask, &self.prices, self.now);
        Ok(match budget::decide(&self.ask, cost, &budgets, self.now) {
            Decision::Unlimited => Reserved::Unlimited,
            Decision::Granted {
                output,
                money,
                tokens,
                warning,
            } => {
                rows.put_reservation(&Reservation {
                    attempt: attempt.id,
                    call: self.call,
                    task: head.id,
                    session: attempt.session,
                    project: head.project,
                    person: head.created_by,
                    account: self.ask.account,
                    model: self.ask.model,
                    input: self.ask.input,
                    output: output.get(),
                    held: Held {
                        money,
                        tokens,
                        until: self.held_until,
                    },
                    at: self.now,
                })?;
                Reserved::Granted {
                    output: output.get(),
                    warning,
                }
            }
            Decision::Wait { scope, reason } => {
                let of = (head.id, attempt.session);
                // A budget that nobody pays is not looked at.
                let key = scope.key(of, &head.project, head.created_by.as_deref(), self.now);
                Reserved::Wait {
                    reason,
                    scope: key.unwrap_or(ScopeKey::Task(head.id)),
                }
            }
            Decision::Refused { reason } => Reserved::Refused(reason),
        })
    }
}

impl Command for AskToStart {
    type Outcome = MayStart;

    fn reads(&self) -> Vec<Key> {
        vec![Key::Budgets {
            attempt: self.claim.attempt,
            rules: self.rules.clone(),
            now: self.now,
        }]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<MayStart, Failed> {
        let attempt = match authorised(rows, &self.claim, self.agent)? {
            Ok(attempt) => attempt,
            Err(reason) => return Ok(MayStart::Stale(reason)),
        };
        let head = task_of(rows, &attempt)?;
        let budgets = budgets(rows, &head, &attempt, &self.rules, self.now)?;
        Ok(budget::passed(&budgets).map_or(MayStart::Yes, MayStart::No))
    }
}

impl Command for CommitCall {
    type Outcome = CallSettled;

    fn reads(&self) -> Vec<Key> {
        vec![of_call(&self.claim, self.call, self.now)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<CallSettled, Failed> {
        let (attempt, reserved) = match held(rows, &self.claim, self.agent, self.call)? {
            Ok(held) => held,
            // Where nothing is held back for it, its event tells what it used, or did.
            Err(settled) => return Ok(settled),
        };
        let head = task_of(rows, &attempt)?;
        let row = job_of(rows, &attempt)?;
        let mut session = session_of(rows, &head, &row.job)?;
        let Spent {
            model,
            usage,
            end,
            request,
        } = self.spent;
        let call = CallRef {
            id: self.call,
            account: reserved.account.clone(),
            end,
            request,
        };
        let told = Told {
            model: &model,
            usage: &usage,
            reported: None,
            metered: true,
            call: Some(&call),
        };
        let name = self.call.to_string();
        book(
            rows,
            (&head, &attempt, &mut session),
            (name, told),
            &self.prices,
            self.now,
        )?;
        rows.save_session(&session)?;
        Ok(CallSettled::Settled)
    }
}

impl Command for ReleaseCall {
    type Outcome = CallSettled;

    fn reads(&self) -> Vec<Key> {
        vec![of_call(&self.claim, self.call, self.now)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<CallSettled, Failed> {
        let (attempt, reserved) = match held(rows, &self.claim, self.agent, self.call)? {
            Ok(held) => held,
            Err(settled) => return Ok(settled),
        };
        rows.remove_reservation(attempt.id, reserved.call)?;
        Ok(CallSettled::Settled)
    }
}

/// What has to be read to settle a call.
fn of_call(claim: &Claim, call: CallId, now: Timestamp) -> Key {
    Key::Calling {
        attempt: claim.attempt,
        call,
        rules: Vec::new(),
        now,
    }
}

/// What is held back for a call of a claim's attempt; the inner error says that there is nothing to settle.
fn held(
    rows: &mut dyn Rows,
    claim: &Claim,
    agent: Option<AgentId>,
    call: CallId,
) -> Result<Result<(Attempt, Reservation), CallSettled>, Failed> {
    let attempt = match authorised(rows, claim, agent)? {
        Ok(attempt) => attempt,
        Err(reason) => return Ok(Err(CallSettled::Stale(reason))),
    };
    let reserved = rows.reservation(attempt.id, call)?;
    Ok(reserved.map(|reserved| (attempt, reserved)).ok_or(CallSettled::Nothing))
}

/// The attempt of a claim; the inner error says why it has no authority.
fn authorised(rows: &mut dyn Rows, claim: &Claim, agent: Option<AgentId>) -> Result<Result<Attempt, String>, Failed> {
    let Some(attempt) = rows.attempt(claim.attempt)? else {
        return Ok(Err("no such attempt was started".to_owned()));
    };
    let speaker = agent.unwrap_or(attempt.agent);
    let authority = attempt.authorise(&claim.token_hash, speaker);
    Ok(authority.map(|()| attempt).map_err(|stale| stale.to_string()))
}

/// What was used of every budget that a call of this attempt counts against.
pub(super) fn budgets(
    rows: &mut dyn Rows,
    head: &TaskHead,
    attempt: &Attempt,
    rules: &[BudgetRule],
    now: Timestamp,
) -> Result<Vec<BudgetUse>, Failed> {
    let mut used = Vec::new();
    for rule in head.policy.budget.rules().chain(rules.iter().copied()) {
        let of = (head.id, attempt.session);
        let Some(key) = rule.scope.key(of, &head.project, head.created_by.as_deref(), now) else {
            continue;
        };
        let (spent, held) = rows.used_of(&key)?;
        used.push(BudgetUse { rule, spent, held });
    }
    Ok(used)
}

/// What is told of a call or by a report.
#[derive(Clone, Copy)]
struct Told<'a> {
    model: &'a str,
    usage: &'a Usage,
    reported: Option<PicoUsd>,
    metered: bool,
    call: Option<&'a CallRef>,
}

/// Books the usage that an event tells of, unless its call is in the ledger already. Returns the new row.
pub(super) fn book_event(
    rows: &mut dyn Rows,
    of: (&TaskHead, &Attempt, &mut Session),
    event: &Event,
    prices: &PriceTable,
    now: Timestamp,
) -> Result<Option<CallRow>, Failed> {
    let EventBody::UsageRecorded {
        model,
        usage,
        reported,
        metered,
        tools: _,
        call,
    } = &event.body
    else {
        return Ok(None);
    };
    // A report of tools alone.
    if usage.is_zero() && !metered && reported.is_none() {
        return Ok(None);
    }
    let name = name(event);
    if call.is_some() && rows.has_call(of.1.id, &name)? {
        return Ok(None);
    }
    let told = Told {
        model,
        usage,
        reported: *reported,
        metered: *metered,
        call: call.as_ref(),
    };
    book(rows, of, (name, told), prices, now).map(Some)
}

/// The name in the ledger of what an event tells.
pub(super) fn name(event: &Event) -> String {
    match &event.body {
        EventBody::UsageRecorded { call: Some(call), .. } => call.id.to_string(),
        _ => CallRow::name_of_report(event.seq),
    }
}

/// Writes the row of a call, adds it to its session, and gives back what was held for it.
fn book(
    rows: &mut dyn Rows,
    (head, attempt, session): (&TaskHead, &Attempt, &mut Session),
    (name, told): (String, Told<'_>),
    prices: &PriceTable,
    now: Timestamp,
) -> Result<CallRow, Failed> {
    let reserved = match told.call {
        Some(call) => rows.reservation(attempt.id, call.id)?,
        None => None,
    };
    let (model, usage, charge) = charged(session, told, reserved.as_ref(), prices, now);
    let row = CallRow {
        attempt: attempt.id,
        name,
        task: head.id,
        session: session.id,
        project: head.project.clone(),
        person: head.created_by.clone(),
        adapter: session.adapter.clone(),
        account: told.call.map(|call| call.account.clone()),
        model,
        usage,
        reported: told.reported,
        money: charge.money,
        price: charge.price,
        metered: told.metered,
        end: told.call.map(|call| call.end),
        request: told.call.and_then(|call| call.request.clone()),
        at: now,
    };
    rows.insert_call(&row)?;
    if let Some(reserved) = reserved {
        rows.remove_reservation(attempt.id, reserved.call)?;
    }
    Ok(row)
}

/// Adds what is told to the session. Returns the model by which it is priced, its tokens and what they cost.
/// While something is held back for a call with a price, the call never counts for nothing: where its answer
/// names a model without a price, the model that was asked for is taken, and where that does not give an
/// amount either, or no tokens were told, all that was held.
fn charged(
    session: &mut Session,
    told: Told<'_>,
    reserved: Option<&Reservation>,
    prices: &PriceTable,
    now: Timestamp,
) -> (String, Usage, Charge) {
    let usage = reserved.map_or(*told.usage, |reserved| used_of(told, reserved));
    let used = Used {
        model: told.model,
        usage: &usage,
        reported: told.reported,
        metered: told.metered,
        // Agents that name no calls tell of each metered one.
        call: (told.metered).then(|| told.call.map_or(CallEnd::Whole, |call| call.end)),
    };
    let Some(reserved) = reserved else {
        return (told.model.to_owned(), usage, session.charge(used, prices, now));
    };
    let asked = Used {
        model: &reserved.model,
        usage: &usage,
        reported: told.reported,
        metered: told.metered,
        // The answer names another model, so this is an estimate, as of a call that was cut.
        call: Some(CallEnd::Cut),
    };
    let is_untold = told.usage.total() == 0 && told.usage.unreported.of_the_bill();
    let has_amount = |used: &Used<'_>| prices.charge(*used, now).money.amount.is_some();
    let chosen = if is_untold {
        None
    } else if reserved.held.money.0 == 0 || has_amount(&used) {
        Some(used)
    } else if has_amount(&asked) {
        Some(asked)
    } else {
        None
    };
    match chosen {
        Some(used) => (used.model.to_owned(), usage, session.charge(used, prices, now)),
        None => (reserved.model.clone(), reserved.usage(), session.charge_held(reserved)),
    }
}

/// The tokens of a call that something is held back for. Of an answer that was cut before its output was
/// counted, all that was granted may have been written, and be billed.
fn used_of(told: Told<'_>, reserved: &Reservation) -> Usage {
    let mut usage = *told.usage;
    let is_cut = told.call.is_some_and(|call| call.end == CallEnd::Cut);
    let is_uncounted = usage.output == 0 || usage.unreported.contains(UsageClass::Output);
    if is_cut && is_uncounted {
        usage.output = usage.output.max(u64::from(reserved.output));
        usage.unreported = usage.unreported.without(UsageClass::Output);
    }
    usage
}

/// Puts the calls of an attempt that ends, and that nothing more was heard of, into the ledger whole.
pub(super) fn close(
    rows: &mut dyn Rows,
    head: &TaskHead,
    attempt: &Attempt,
    session: &mut Session,
    now: Timestamp,
) -> Result<(), Failed> {
    for reserved in rows.reservations_of(attempt.id)? {
        let charge = session.charge_held(&reserved);
        rows.insert_call(&CallRow {
            attempt: attempt.id,
            name: reserved.call.to_string(),
            task: head.id,
            session: session.id,
            project: head.project.clone(),
            person: head.created_by.clone(),
            adapter: session.adapter.clone(),
            account: Some(reserved.account.clone()),
            model: reserved.model.clone(),
            usage: reserved.usage(),
            reported: None,
            money: charge.money,
            price: charge.price,
            metered: true,
            end: None,
            request: None,
            at: now,
        })?;
        rows.remove_reservation(attempt.id, reserved.call)?;
    }
    Ok(())
}
