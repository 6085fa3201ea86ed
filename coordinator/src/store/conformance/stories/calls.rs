//! Calls of models: what is held back for them, what they are booked at, and what budgets make of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::budget::{BudgetPeriod, BudgetRule, BudgetScope, Limit, TaskBudget};
use kage_core::call::{Ask, CallEnd, CallRef, OutputBounds, Spent};
use kage_core::event::{AttemptOutcome, Event, EventBody};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::CallId;
use kage_core::ledger::{CallRow, CostTable, CostsBy};
use kage_core::price::PriceTable;
use kage_core::session::SessionState;
use kage_core::usage::{PicoUsd, Provenance, Unreported, Usage, UsageClass};

use super::{end, view};
use crate::store::conformance::fixture::{
    activity, at, attempt_id, boot_id, claimed, create, event, request, spec, started, task_id, token, told, two_agents,
};
use crate::store::conformance::followed::Followed as _;
use crate::store::{
    AskToStart, CallFilter, CallSettled, CancelTask, Claim, CommitCall, DropTask, EndAttempts, Ending, MayStart,
    QueuedJob, ReleaseCall, ReserveCall, Reserved, Store,
};

/// A dollar.
const USD: i64 = 1_000_000_000_000;
/// Of `claude-opus-5-5`: dearest input and output, in pico-dollars.
const INPUT: i64 = 8_000_000;
const OUTPUT: i64 = 20_000_000;

fn money(pico: i64) -> Limit {
    Limit {
        money: Some(PicoUsd(pico)),
        tokens: None,
    }
}

/// Two agents and a task under a budget.
async fn begin(store: &Store, sessions: usize, budget: TaskBudget) -> Vec<QueuedJob> {
    two_agents(store).await;
    let mut command = create(1, spec(sessions, None), at(1));
    command.spec.policy.budget = budget;
    store.followed(command).await.queued
}

fn claim(attempt: u128) -> Claim {
    Claim {
        attempt: attempt_id(attempt),
        token_hash: token(attempt_id(attempt)),
    }
}

pub(in crate::store::conformance) fn reserve(attempt: u128, call: u128, input: u64) -> ReserveCall {
    ReserveCall {
        claim: claim(attempt),
        agent: None,
        call: CallId::from_random(call),
        ask: Ask {
            account: "anthropic/a".parse().unwrap(),
            model: "claude-opus-5-5".to_owned(),
            free: false,
            prefix: None,
            input,
            output: OutputBounds::of(NonZeroU32::new(128_000).unwrap(), false),
        },
        rules: Vec::new(),
        prices: Arc::new(PriceTable::builtin().clone()),
        held_until: at(900_000),
        now: at(2_000),
    }
}

fn commit(attempt: u128, call: u128, usage: Usage) -> CommitCall {
    CommitCall {
        claim: claim(attempt),
        agent: None,
        call: CallId::from_random(call),
        spent: Spent {
            model: "claude-opus-5-5".to_owned(),
            usage,
            end: CallEnd::Whole,
            request: Some("req_1".to_owned()),
        },
        prices: Arc::new(PriceTable::builtin().clone()),
        now: at(3_000),
    }
}

fn release(attempt: u128, call: u128) -> ReleaseCall {
    ReleaseCall {
        claim: claim(attempt),
        agent: None,
        call: CallId::from_random(call),
        now: at(3_000),
    }
}

fn may_start(attempt: u128) -> AskToStart {
    AskToStart {
        claim: claim(attempt),
        agent: None,
        rules: Vec::new(),
        now: at(3_000),
    }
}

fn output(tokens: u64) -> Usage {
    Usage {
        output: tokens,
        ..Usage::default()
    }
}

/// The event that tells of a call what its commit tells.
fn used(seq: u64, call: u128, usage: Usage) -> Event {
    let body = EventBody::UsageRecorded {
        model: "claude-opus-5-5".to_owned(),
        usage,
        reported: None,
        metered: true,
        tools: None,
        call: Some(CallRef {
            id: CallId::from_random(call),
            account: "anthropic/a".parse().unwrap(),
            end: CallEnd::Whole,
            request: Some("req_1".to_owned()),
        }),
    };
    event(seq, body)
}

fn reported(seq: u64, pico: i64) -> Event {
    let body = EventBody::UsageRecorded {
        model: "claude-opus-5-5".to_owned(),
        usage: output(5),
        reported: Some(PicoUsd(pico)),
        metered: false,
        tools: None,
        call: None,
    };
    event(seq, body)
}

/// The ledger, of which every session's totals are the sum; nothing is held back for an attempt that ended.
async fn ledger(store: &Store) -> Vec<CallRow> {
    let rows = store.calls(&CallFilter::default(), 0, 1000).await.unwrap();
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    if let Some(view) = store.task(task_id(1)).await.unwrap() {
        for session in &view.sessions {
            let mut table = CostTable::new(CostsBy::Model);
            let own = rows.iter().filter(|row| row.session == session.id);
            own.for_each(|row| table.add(row));
            assert_eq!(table.all.money(), session.costs().all, "{}", session.name);
            assert_eq!(table.all.usage, session.total_usage(), "{}", session.name);
        }
    }
    let live = store.live_attempts(None).await.unwrap();
    for held in store.reservations().await.unwrap() {
        assert!(live.iter().any(|live| live.attempt == held.attempt), "{held:?}");
    }
    rows
}

async fn held(store: &Store) -> i64 {
    let reservations = store.reservations().await.unwrap();
    reservations.iter().map(|reserved| reserved.held.money.0).sum()
}

pub(in crate::store::conformance) async fn without_a_budget_nothing_is_held_back(store: Store) {
    let jobs = begin(&store, 1, TaskBudget::default()).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    assert_eq!(store.apply(reserve(1, 7, 1_000)).await.unwrap(), Reserved::Unlimited);
    assert_eq!(held(&store).await, 0);
    // Its event tells what it used, whatever came of the commit.
    assert_eq!(
        store.apply(commit(1, 7, output(9))).await.unwrap(),
        CallSettled::Nothing
    );
    told(&store, 1, 1, vec![used(1, 7, output(9)), reported(2, 3)]).await;
    let rows = ledger(&store).await;
    let shown: Vec<_> = rows
        .iter()
        .map(|row| (row.amount().0, row.money.provenance, row.metered, row.person.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            (9 * OUTPUT, Provenance::Billed, true, Some("user")),
            (3, Provenance::Reported, false, Some("user")),
        ]
    );
    assert_eq!(rows[0].request.as_deref(), Some("req_1"));
    end(&store).await;
}

/// LiteLLM #35569 counted what was reserved and what was spent; #30460 and #36926 drifted from the database.
pub(in crate::store::conformance) async fn a_call_is_booked_once_whichever_way_it_is_told(store: Store) {
    let budget = TaskBudget {
        task: money(USD),
        ..TaskBudget::default()
    };
    let jobs = begin(&store, 1, budget).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let granted = Reserved::Granted {
        output: 16_384,
        warning: None,
    };
    let whole = 1_000 * INPUT + 16_384 * OUTPUT;
    for (call, seq) in [(7, 1), (8, 2)] {
        // Its answer is lost, and it is asked again.
        for _ in 0..2 {
            assert_eq!(store.apply(reserve(1, call, 1_000)).await.unwrap(), granted);
            assert_eq!(held(&store).await, whole);
        }
        let told_first = call == 8;
        if told_first {
            told(&store, 1, 1, vec![used(seq, call, output(9))]).await;
        }
        let settled = if told_first {
            CallSettled::Nothing
        } else {
            CallSettled::Settled
        };
        assert_eq!(store.apply(commit(1, call, output(9))).await.unwrap(), settled);
        assert_eq!(
            store.apply(commit(1, call, output(9))).await.unwrap(),
            CallSettled::Nothing
        );
        assert_eq!(store.apply(release(1, call)).await.unwrap(), CallSettled::Nothing);
        if !told_first {
            told(&store, 1, 1, vec![used(seq, call, output(9))]).await;
        }
        assert_eq!(held(&store).await, 0);
        assert_eq!(ledger(&store).await.len(), usize::try_from(seq).unwrap());
        let again = store.apply(reserve(1, call, 1_000)).await.unwrap();
        assert!(matches!(again, Reserved::Stale(_)), "{again:?}");
    }
    let session = view(&store).await.sessions.remove(0);
    assert_eq!(session.costs().all[0].amount, Some(PicoUsd(18 * OUTPUT)));
    assert_eq!(session.calls.answered, 2);
    what_is_told_in_part_counts_as_much_as_it_can_cost(&store).await;
    end(&store).await;
}

/// Of answers that were cut before their output was counted, and of one that names a model without a price.
async fn what_is_told_in_part_counts_as_much_as_it_can_cost(store: &Store) {
    let uncounted = Usage {
        unreported: Unreported::default().with(UsageClass::Output),
        ..output(1)
    };
    let cases = [
        // Model, what is told, how it ended; the tokens of output that count.
        ("claude-opus-5-5", uncounted, CallEnd::Cut, 16_384),
        ("claude-opus-5-5", output(9), CallEnd::Cut, 9),
        ("claude-opus-5-5-odd", output(9), CallEnd::Whole, 9),
    ];
    for (call, (model, usage, how, counted)) in (20..).zip(cases) {
        drop(store.apply(reserve(1, call, 1_000)).await.unwrap());
        let told = CommitCall {
            spent: Spent {
                model: model.to_owned(),
                usage,
                end: how,
                request: None,
            },
            ..commit(1, call, usage)
        };
        assert_eq!(store.apply(told).await.unwrap(), CallSettled::Settled);
        assert_eq!(held(store).await, 0);
        let rows = ledger(store).await;
        let row = rows.last().unwrap();
        assert_eq!(row.model, "claude-opus-5-5");
        assert_eq!((row.usage.output, row.end), (counted, Some(how)));
        assert_eq!(row.amount(), PicoUsd(i64::try_from(counted).unwrap() * OUTPUT));
        assert_eq!(row.money.provenance, Provenance::Estimated);
    }
}

/// LiteLLM #27639 and PR#30522: what was reserved for a cancelled stream was never given back.
pub(in crate::store::conformance) async fn a_cancelled_stream_holds_nothing_back_after_its_attempt(store: Store) {
    let budget = TaskBudget {
        task: money(USD),
        ..TaskBudget::default()
    };
    let jobs = begin(&store, 3, budget).await;
    for (n, job) in jobs.iter().enumerate() {
        started(&store, job, n as u128 + 1, 1, 1).await;
    }
    let whole = 1_000 * INPUT + 16_384 * OUTPUT;
    // The first is refused by its provider, the second is never heard of again, the third ends well.
    for attempt in 1..=2 {
        drop(store.apply(reserve(attempt, attempt, 1_000)).await.unwrap());
    }
    assert_eq!(held(&store).await, 2 * whole);
    assert_eq!(store.apply(release(1, 1)).await.unwrap(), CallSettled::Settled);
    let lost = EndAttempts {
        which: Ending::These(vec![attempt_id(2)]),
        reason: EndReason::AgentSilent,
        now: at(50_000),
    };
    store.apply(lost).await.unwrap();
    drop(store.apply(reserve(3, 3, 1_000)).await.unwrap());
    told(&store, 3, 1, vec![activity(1), claimed(2)]).await;
    assert_eq!(held(&store).await, 0);
    let rows = ledger(&store).await;
    let shown: Vec<_> = rows
        .iter()
        .map(|row| (row.amount().0, row.money.provenance, row.end))
        .collect();
    assert_eq!(shown, [(whole, Provenance::Estimated, None); 2]);
    // A late word on it comes from nobody with authority.
    let late = store.apply(commit(2, 2, output(1))).await.unwrap();
    assert!(matches!(late, CallSettled::Stale(_)), "{late:?}");
    end(&store).await;
}

/// LiteLLM #34732 and #40095: checked, and added afterwards.
pub(in crate::store::conformance) async fn sessions_side_by_side_never_hold_more_than_the_budget(store: Store) {
    let each = 1_000 * INPUT + 4_096 * OUTPUT;
    let budget = TaskBudget {
        task: money(2 * each),
        session: money(each + each / 2),
    };
    let jobs = begin(&store, 3, budget).await;
    for (n, job) in jobs.iter().enumerate() {
        started(&store, job, n as u128 + 1, 1, 1).await;
    }
    let mut answers = Vec::new();
    for attempt in 1..=3 {
        answers.push(store.apply(reserve(attempt, attempt, 1_000)).await.unwrap());
        assert!(held(&store).await <= 2 * each);
    }
    let [
        Reserved::Granted { output: first, .. },
        Reserved::Wait { .. },
        Reserved::Wait { reason, .. },
    ] = &answers[..]
    else {
        panic!("{answers:?}");
    };
    assert!(*first > 4_096, "{first}");
    assert_eq!(reason, "other calls hold back what is left of the budget of the task");
    drop(store.apply(commit(1, 1, output(1))).await.unwrap());
    let next = store.apply(reserve(2, 2, 1_000)).await.unwrap();
    assert!(matches!(next, Reserved::Granted { .. }), "{next:?}");
    // Nobody else holds anything of the session's own budget.
    drop(
        store
            .apply(commit(2, 2, output(u64::try_from(each / OUTPUT).unwrap())))
            .await
            .unwrap(),
    );
    let over = store.apply(reserve(2, 22, 1_000)).await.unwrap();
    let Reserved::Refused(reason) = over else {
        panic!("{over:?}");
    };
    assert!(reason.starts_with("the budget of the session is used up"), "{reason}");
    ledger(&store).await;
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_a_person_spent_stays_spent_when_tasks_go(store: Store) {
    let jobs = begin(&store, 1, TaskBudget::default()).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let rule = |scope| BudgetRule {
        scope,
        limit: money(USD),
    };
    let asked = |attempt, call, scope| ReserveCall {
        rules: vec![rule(scope)],
        ..reserve(attempt, call, 1_000)
    };
    let person = BudgetScope::Person(BudgetPeriod::Month);
    let first = store.apply(asked(1, 1, person)).await.unwrap();
    assert!(matches!(first, Reserved::Granted { .. }), "{first:?}");
    let most = u64::try_from(USD / OUTPUT).unwrap();
    drop(store.apply(commit(1, 1, output(most))).await.unwrap());
    told(&store, 1, 1, vec![claimed(1)]).await;
    let gone = DropTask {
        request: Some(request(9)),
        task: task_id(1),
        now: at(60_000),
    };
    store.apply(gone).await.unwrap();
    assert_eq!(ledger(&store).await.len(), 1);

    let next = store.followed(create(2, spec(1, None), at(70_000))).await.queued;
    started(&store, &next[0], 2, 1, 1).await;
    for (call, scope) in [(2, person), (3, BudgetScope::Project(BudgetPeriod::Day))] {
        let refused = store.apply(asked(2, call, scope)).await.unwrap();
        assert!(matches!(refused, Reserved::Refused(_)), "{refused:?}");
    }
    // The next month begins anew.
    let later = ReserveCall {
        now: at(0) + Duration::from_secs(40 * 24 * 60 * 60),
        ..asked(2, 4, person)
    };
    let later = store.apply(later).await.unwrap();
    assert!(matches!(later, Reserved::Granted { .. }), "{later:?}");
}

pub(in crate::store::conformance) async fn a_program_that_reports_too_much_is_stopped(store: Store) {
    let budget = TaskBudget {
        task: money(USD),
        ..TaskBudget::default()
    };
    let jobs = begin(&store, 3, budget).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    started(&store, &jobs[1], 2, 1, 1).await;
    started(&store, &jobs[2], 3, 1, 2).await;
    told(&store, 3, 2, vec![reported(1, 1)]).await;
    let lost = EndAttempts {
        which: Ending::These(vec![attempt_id(3)]),
        reason: EndReason::AgentSilent,
        now: at(4),
    };
    let again = store.followed(lost).await.queued;
    let stopped = async |attempt: u128| {
        let live = store.live_attempts(None).await.unwrap();
        let live = live.iter().find(|live| live.attempt == attempt_id(attempt)).unwrap();
        live.term.stop_asked.is_some()
    };
    // Without a price, the budget cannot hold.
    assert!(!stopped(2).await);
    let unpriced = EventBody::UsageRecorded {
        model: "nobody-knows-1".to_owned(),
        usage: output(5),
        reported: None,
        metered: false,
        tools: None,
        call: None,
    };
    told(&store, 2, 1, vec![event(1, unpriced)]).await;
    assert!(stopped(2).await);
    told(&store, 1, 1, vec![reported(1, USD - 2)]).await;
    assert!(!stopped(1).await);
    assert_eq!(store.apply(may_start(1)).await.unwrap(), MayStart::Yes);
    told(&store, 1, 1, vec![reported(2, 1)]).await;
    assert!(stopped(1).await);
    // It begins once more, and does not get to its next report, or does not start at all.
    started(&store, &again[0], 4, 2, 2).await;
    let answer = store.apply(may_start(4)).await.unwrap();
    let MayStart::No(reason) = &answer else {
        panic!("it starts: {answer:?}");
    };
    assert!(reason.contains("1.00 of 1.00 USD"), "{reason}");
    let unknown = store.apply(may_start(9)).await.unwrap();
    assert!(matches!(unknown, MayStart::Stale(_)), "{unknown:?}");
    assert!(!stopped(4).await);
    told(&store, 4, 2, vec![activity(1)]).await;
    assert!(stopped(4).await);
    let cancelled = Failure::new(FailureKind::Cancelled, "it was told to stop");
    let ends = event(3, EventBody::Finished(AttemptOutcome::Failed(cancelled)));
    told(&store, 1, 1, vec![ends]).await;
    let session = view(&store).await.sessions.remove(0);
    let SessionState::Failed { failure, .. } = &session.state else {
        panic!("{:?}", session.state);
    };
    assert_eq!(failure.kind, FailureKind::BudgetExceeded);
    assert!(failure.message.contains("1.00 of 1.00 USD"), "{failure}");
    ledger(&store).await;
    end(&store).await;
}

pub(in crate::store::conformance) async fn nobody_calls_without_authority(store: Store) {
    let budget = TaskBudget {
        task: money(USD),
        ..TaskBudget::default()
    };
    let jobs = begin(&store, 1, budget).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let strangers = [
        ReserveCall {
            claim: Claim {
                attempt: attempt_id(1),
                token_hash: token(attempt_id(2)),
            },
            ..reserve(1, 1, 1_000)
        },
        ReserveCall {
            agent: Some(kage_core::id::AgentId::from_random(99)),
            ..reserve(1, 1, 1_000)
        },
        reserve(5, 1, 1_000),
    ];
    for stranger in strangers {
        let answer = store.apply(stranger).await.unwrap();
        assert!(matches!(answer, Reserved::Stale(_)), "{answer:?}");
    }
    assert_eq!(held(&store).await, 0);
    let cancel = CancelTask {
        request: request(9),
        task: task_id(1),
        now: at(4_000),
    };
    store.apply(cancel).await.unwrap();
    // It was told to stop, and what it still does counts.
    let answer = store.apply(reserve(1, 1, 1_000)).await.unwrap();
    assert!(matches!(answer, Reserved::Granted { .. }), "{answer:?}");
    let gone = EndAttempts {
        which: Ending::Boot {
            agent: kage_core::id::AgentId::from_random(1),
            boot: boot_id(1),
        },
        reason: EndReason::AgentGone,
        now: at(50_000),
    };
    store.apply(gone).await.unwrap();
    assert_eq!(held(&store).await, 0);
    assert_eq!(ledger(&store).await.len(), 1);
    end(&store).await;
}
